//! What the loss of one sequence compares with: its own tokens, and the teacher's distribution where there are labels.

use softshard_labels::{Sequence, SequenceLabels};
use softshard_losses::{HeadLabels, Targets, at_temperature, at_temperature_without_tail};

use crate::{example::Example, loss_config::LossConfig};

/// The gold tokens of the loss mask.
pub(crate) fn supervised(sequence: &Sequence) -> Example {
    Example {
        input_ids: sequence.input_ids.clone(),
        positions: sequence.positions.clone(),
        targets: Targets::without_teacher(sequence.gold()),
    }
}

/// The labels; `stored` is the index of the loss's temperature among those of the labels, none at T = 1.
pub(crate) fn distilled(labels: SequenceLabels, stored: Option<usize>, loss: &LossConfig) -> Example {
    let gold = labels.gold();
    let SequenceLabels { input_ids, positions, .. } = labels;
    if loss.alpha.is_zero() {
        return Example { input_ids, positions, targets: Targets::without_teacher(gold) };
    }
    let labels = HeadLabels {
        counts: labels.counts,
        token_ids: labels.token_ids,
        log_probs: labels.log_probs,
        sample_counts: labels.sample_counts,
        log_sum_exp: labels.log_sum_exp,
        tail_log_mass: labels.tail_log_mass,
        entropy: labels.entropy,
        gold_log_prob: labels.gold_log_prob,
        log_partitions: labels.log_partitions,
        tail_log_masses: labels.tail_log_masses,
    };
    Example { input_ids, positions, targets: taught(gold, &labels, stored, loss) }
}

fn taught(gold: Vec<i32>, labels: &HeadLabels, temperature: Option<usize>, loss: &LossConfig) -> Targets {
    let read = if loss.reads_draws() { Targets::of } else { Targets::of_exact };
    let mut targets = read(gold, labels);
    if loss.alpha.is_by_entropy() {
        // An entropy of zero may be stored as a rounded one below.
        targets.alpha_factors = labels.entropy.iter().map(|entropy| entropy.max(0.0)).collect();
    }
    // At temperature 1 as stored.
    let Some(index) = temperature else { return targets };
    let HeadLabels { counts, log_probs, log_sum_exp, log_partitions, tail_log_masses, .. } = labels;
    if let Some(tail_log_mass) = tail_log_masses.get(index) {
        targets.log_probs = at_temperature(counts, log_probs, tail_log_mass, loss.temperature);
        targets.tail_log_mass.clone_from(tail_log_mass);
    } else {
        (targets.log_probs, targets.tail_log_mass) = at_temperature_without_tail(
            counts,
            log_probs,
            log_sum_exp,
            &log_partitions[index],
            loss.temperature,
        );
    }
    targets
}

/// The same with every token from the second on, as if the loss mask were set everywhere: where there are no labels the gold
/// token counts alone.
pub(crate) fn for_every_token(example: Example) -> Example {
    let Example { input_ids, positions, targets } = example;
    let mut all = Targets::without_teacher(input_ids[1..].to_vec());
    for (row, &position) in positions.iter().enumerate() {
        let at = usize::try_from(position).expect("checked by the reader: 1..L") - 1;
        all.counts[at] = targets.counts[row];
        all.tail_log_mass[at] = targets.tail_log_mass[row];
        all.divergence_offset[at] = targets.divergence_offset[row];
        all.alpha_factors[at] = targets.alpha_factors[row];
    }
    // Positions ascend, so the entries are in their order already.
    (all.token_ids, all.log_probs) = (targets.token_ids, targets.log_probs);
    let end =
        i32::try_from(input_ids.len()).expect("checked by the reader: a sequence has fewer than 2^31 tokens");
    Example { input_ids, positions: (1..end).collect(), targets: all }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::loss_config::{Alpha, AlphaRule};

    #[test]
    fn tokens_without_labels_are_scored_without_a_teacher() {
        let labels = SequenceLabels {
            input_ids: vec![5, 6, 7, 8],
            positions: vec![1, 3],
            counts: vec![2, 1],
            token_ids: vec![6, 0, 8],
            log_probs: vec![-0.5, -1.5, -0.25],
            log_sum_exp: vec![0.0; 2],
            tail_log_mass: vec![-2.0, -3.0],
            entropy: vec![0.75, 0.5],
            ..SequenceLabels::default()
        };
        let of = |alpha| {
            for_every_token(distilled(labels.clone(), None, &LossConfig { alpha, ..LossConfig::default() }))
        };
        let Example { input_ids, positions, targets } = of(Alpha::Constant(0.5));
        assert_eq!((input_ids, positions), (vec![5, 6, 7, 8], vec![1, 2, 3]));
        assert_eq!(targets.gold, [6, 7, 8]);
        assert_eq!(targets.counts, [2, 0, 1]);
        assert_eq!(targets.token_ids, [6, 0, 8]);
        assert_eq!(targets.log_probs, [-0.5, -1.5, -0.25]);
        assert_eq!(targets.tail_log_mass, [-2.0, 0.0, -3.0]);
        assert_eq!(targets.alpha_factors, [1.0, 0.0, 1.0]);
        let by_entropy = of(Alpha::Rule(AlphaRule::Entropy { scale: 3.0 })).targets;
        assert_eq!(by_entropy.alpha_factors, [0.75, 0.0, 0.5]);
        let alone = of(Alpha::Constant(0.0)).targets;
        assert_eq!((alone.gold, alone.counts), (vec![6, 7, 8], vec![0; 3]));
    }
}
