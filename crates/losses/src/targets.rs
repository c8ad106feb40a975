//! What the student is trained towards, at the temperature of its loss.

use std::ops::Range;

use crate::labels::HeadLabels;

/// The teacher's kept log probabilities at another temperature than 1, where the mass of the rest at it is known.
///
/// The kept tokens have what the rest leaves, and among them log p_T = log_prob/T + c: so rounding, which at a low temperature is
/// mostly that of the most probable token, changes their shares alone, and all probabilities are 1 together.
///
/// # Shapes
/// `counts` `[N]`, `log_probs` `[Σ counts]` at temperature 1, `tail_log_mass` `[N]` at this one. Returns `[Σ counts]`.
///
/// # Panics
/// If the lengths disagree, or the temperature is not positive.
pub fn at_temperature(
    counts: &[i32],
    log_probs: &[f32],
    tail_log_mass: &[f32],
    temperature: f64,
) -> Vec<f32> {
    assert!(temperature > 0.0 && temperature.is_finite(), "a temperature is positive, found {temperature}");
    assert_eq!(tail_log_mass.len(), counts.len(), "tail_log_mass [N]");
    let mut kept = Vec::with_capacity(log_probs.len());
    let mut rest = log_probs;
    for (&count, &tail) in counts.iter().zip(tail_log_mass) {
        let (row, after) = rest.split_at(entries(count));
        rest = after;
        let softened = || row.iter().map(|&log_prob| f64::from(log_prob) / temperature);
        let largest = softened().fold(f64::NEG_INFINITY, f64::max);
        let sum: f64 = softened().map(|log_prob| (log_prob - largest).exp()).sum();
        let mass = (-f64::from(tail).exp_m1()).ln();
        kept.extend(softened().map(|log_prob| (log_prob - largest - sum.ln() + mass).min(0.0) as f32));
    }
    assert!(rest.is_empty(), "log_probs [sum of counts]");
    kept
}

/// As [`at_temperature`], of labels that do not say what the rest has: also the log of that, which is then a difference.
///
/// With z = log_prob + log_sum_exp, log p_T = z/T - log_partition, and the rest is what the kept tokens leave,
/// 1 - Σ p_T in f64 (-inf if rounding leaves nothing). Below a temperature of 1 the kept tokens have nearly all, so that the difference
/// is the rounding of the labels: such labels are not to be used there.
///
/// # Shapes
/// `counts` `[N]`, `log_probs` `[Σ counts]` at temperature 1, `log_sum_exp` `[N]`, `log_partition` `[N]`:
/// log Σ exp(z / T). Returns `[Σ counts]` and `[N]`.
///
/// # Panics
/// If the lengths disagree, or the temperature is not positive.
pub fn at_temperature_without_tail(
    counts: &[i32],
    log_probs: &[f32],
    log_sum_exp: &[f32],
    log_partition: &[f32],
    temperature: f64,
) -> (Vec<f32>, Vec<f32>) {
    assert!(temperature > 0.0 && temperature.is_finite(), "a temperature is positive, found {temperature}");
    assert_eq!(log_sum_exp.len(), counts.len(), "log_sum_exp [N]");
    assert_eq!(log_partition.len(), counts.len(), "log_partition [N]");
    let mut kept = Vec::with_capacity(log_probs.len());
    let mut tail_log_mass = Vec::with_capacity(counts.len());
    let mut stored = log_probs.iter();
    for ((&count, &log_sum_exp), &log_partition) in counts.iter().zip(log_sum_exp).zip(log_partition) {
        let mut mass = 0.0;
        for &log_prob in stored.by_ref().take(entries(count)) {
            let logit = f64::from(log_prob) + f64::from(log_sum_exp);
            let log_prob = (logit / temperature - f64::from(log_partition)).min(0.0);
            mass += log_prob.exp();
            kept.push(log_prob as f32);
        }
        tail_log_mass.push((1.0 - mass).max(0.0).ln() as f32);
    }
    assert_eq!((kept.len(), stored.len()), (log_probs.len(), 0), "log_probs [sum of counts]");
    (kept, tail_log_mass)
}

/// What N positions are trained towards: the token that is really there, and the teacher's distribution as some
/// tokens plus one "everything else" event.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Targets {
    /// The token that is really there, `[N]`.
    pub gold: Vec<i32>,
    /// The teacher's entries per position, `[N]`.
    pub counts: Vec<i32>,
    /// Tokens of the entries, each once per position, `[Σ counts]`.
    pub token_ids: Vec<i32>,
    /// The teacher's log probabilities at the temperature of the loss, `[Σ counts]`.
    pub log_probs: Vec<f32>,
    /// Log of the teacher's mass on all other tokens at that temperature, `[N]`.
    pub tail_log_mass: Vec<f32>,
    /// Nats added to the divergence of each position, `[N]`. No gradient: it makes the value of a divergence from drawn
    /// entries an unbiased estimate of the one from the full distribution.
    pub divergence_offset: Vec<f32>,
    /// The loss's alpha is multiplied by this at each position, `[N]`: 1; the teacher's entropy in nats, where alpha is by entropy;
    /// 0 for no divergence and no gradient of one, as where there is no teacher.
    pub alpha_factors: Vec<f32>,
}

impl Targets {
    /// Targets at temperature 1. Drawn entries share the mass beyond the exact ones by their counts (arXiv 2503.16870),
    /// which leaves nothing for "everything else"; without any, that mass is one event.
    ///
    /// The divergence from drawn entries p̂ has the expected gradient of the one from the full distribution p; its value
    /// `Σ p̂ (log p̂ - log q)` is too large by the entropy that p̂ lacks, so `H(p̂) - H(p)` is added.
    ///
    /// # Panics
    /// If the lengths disagree, or the entropy of drawn entries is not there.
    pub fn of(gold: Vec<i32>, labels: &HeadLabels) -> Self {
        let rows = gold.len();
        let mut targets = Self {
            gold,
            counts: labels.counts.to_vec(),
            token_ids: labels.token_ids.to_vec(),
            log_probs: labels.log_probs.to_vec(),
            tail_log_mass: labels.tail_log_mass.to_vec(),
            divergence_offset: vec![0.0; rows],
            alpha_factors: vec![1.0; rows],
        };
        if !labels.sample_counts.is_empty() {
            targets.spread_draws(labels);
        }
        targets.assert_valid();
        targets
    }

    /// Targets at temperature 1 of the exact entries alone: drawn ones are part of the mass beyond them. For divergences that draws
    /// cannot estimate, see [`DistillLoss::reads_draws`](crate::DistillLoss::reads_draws).
    ///
    /// # Panics
    /// If the lengths disagree, or there are drawn entries but no exact ones.
    pub fn of_exact(gold: Vec<i32>, labels: &HeadLabels) -> Self {
        if labels.sample_counts.is_empty() {
            return Self::of(gold, labels);
        }
        let exact_entries = labels.exact_entries();
        assert!(exact_entries > 0, "all entries were drawn: only the forward KL can be estimated from them");
        let mut token_ids = Vec::with_capacity(labels.log_probs.len());
        let mut rest = labels.token_ids.as_slice();
        for &count in &labels.counts {
            let (row, after) = rest.split_at(entries(count));
            token_ids.extend_from_slice(&row[..exact_entries]);
            rest = after;
        }
        let count = i32::try_from(exact_entries).expect("a part of a count");
        let exact = HeadLabels {
            counts: vec![count; gold.len()],
            token_ids,
            log_probs: labels.log_probs.clone(),
            tail_log_mass: labels.tail_log_mass.clone(),
            ..HeadLabels::default()
        };
        Self::of(gold, &exact)
    }

    /// Replaces the counts of drawn entries by log probabilities.
    fn spread_draws(&mut self, labels: &HeadLabels) {
        let (mut exact, mut drawn) = (labels.log_probs.iter(), labels.sample_counts.iter());
        let exact_entries = labels.exact_entries();
        self.log_probs.clear();
        for (row, &count) in labels.counts.iter().enumerate() {
            let start = self.log_probs.len();
            self.log_probs.extend(exact.by_ref().take(exact_entries));
            let counts = &drawn.as_slice()[..entries(count) - exact_entries];
            drawn = drawn.as_slice()[counts.len()..].iter();
            if counts.is_empty() {
                continue;
            }
            let draws = f64::from(counts.iter().sum::<i32>());
            // Without exact entries all of the mass is drawn from; the stored tail is what was not drawn.
            let mass = if exact_entries == 0 { 0.0 } else { f64::from(labels.tail_log_mass[row]) };
            let log_prob = |&count: &i32| (mass + (f64::from(count) / draws).ln()) as f32;
            self.log_probs.extend(counts.iter().map(log_prob));
            self.tail_log_mass[row] = f32::NEG_INFINITY;
            let own = self.log_probs[start..].iter().map(|&log_prob| f64::from(log_prob));
            let own: f64 = own.map(|log_prob| -log_prob.exp() * log_prob).sum();
            self.divergence_offset[row] = (own - f64::from(labels.entropy[row])) as f32;
        }
    }

    /// Targets without a teacher: no divergence. All its mass is on "everything else", so an evaluation finds none either.
    pub fn without_teacher(gold: Vec<i32>) -> Self {
        let zeros = vec![0.0; gold.len()];
        Self {
            counts: vec![0; gold.len()],
            tail_log_mass: zeros.clone(),
            divergence_offset: zeros.clone(),
            alpha_factors: zeros,
            gold,
            ..Self::default()
        }
    }

    /// Adds the positions of `other` behind these.
    pub fn append(&mut self, other: Self) {
        self.gold.extend(other.gold);
        self.counts.extend(other.counts);
        self.token_ids.extend(other.token_ids);
        self.log_probs.extend(other.log_probs);
        self.tail_log_mass.extend(other.tail_log_mass);
        self.divergence_offset.extend(other.divergence_offset);
        self.alpha_factors.extend(other.alpha_factors);
    }

    /// The positions `rows` of these.
    ///
    /// # Panics
    /// There are not so many.
    #[must_use]
    pub fn part(&self, rows: Range<usize>) -> Self {
        let kept = |counts: &[i32]| counts.iter().map(|&count| entries(count)).sum::<usize>();
        let first = kept(&self.counts[..rows.start]);
        let own = first..first + kept(&self.counts[rows.clone()]);
        Self {
            gold: self.gold[rows.clone()].to_vec(),
            counts: self.counts[rows.clone()].to_vec(),
            token_ids: self.token_ids[own.clone()].to_vec(),
            log_probs: self.log_probs[own].to_vec(),
            tail_log_mass: self.tail_log_mass[rows.clone()].to_vec(),
            divergence_offset: self.divergence_offset[rows.clone()].to_vec(),
            alpha_factors: self.alpha_factors[rows].to_vec(),
        }
    }

    /// Moves the teacher's entries with ids from `vocabulary` on to the tail: a student with fewer rows in its head than
    /// its teacher (Qwen2.5 pads by size) has no logit for them.
    pub fn fold_ids_from(&mut self, vocabulary: usize) {
        let fits = |id: i32| usize::try_from(id).is_ok_and(|id| id < vocabulary);
        if self.token_ids.iter().all(|&id| fits(id)) {
            return;
        }
        let (token_ids, log_probs) =
            (std::mem::take(&mut self.token_ids), std::mem::take(&mut self.log_probs));
        let mut all = token_ids.into_iter().zip(log_probs);
        let plogp = |mass: f64| if mass > 0.0 { mass * mass.ln() } else { 0.0 };
        let rows = self.counts.iter_mut().zip(&mut self.tail_log_mass).zip(&mut self.divergence_offset);
        for ((count, tail), offset) in rows {
            let mut mass = f64::from(*tail).exp();
            let mut apart = plogp(mass);
            let kept = entries(*count);
            for (id, log_prob) in all.by_ref().take(kept) {
                if fits(id) {
                    self.token_ids.push(id);
                    self.log_probs.push(log_prob);
                } else {
                    let one = f64::from(log_prob).exp();
                    mass += one;
                    apart += plogp(one);
                    *count -= 1;
                }
            }
            // Entries that were drawn have less entropy as one event.
            if *offset != 0.0 {
                *offset += (apart - plogp(mass)) as f32;
            }
            *tail = mass.ln() as f32;
        }
    }

    /// Number of positions, N.
    pub fn len(&self) -> usize {
        self.gold.len()
    }

    /// Whether there is no position.
    pub fn is_empty(&self) -> bool {
        self.gold.is_empty()
    }

    pub(crate) fn assert_valid(&self) {
        let rows = self.gold.len();
        assert_eq!(self.counts.len(), rows, "counts [N]");
        assert_eq!(self.tail_log_mass.len(), rows, "tail_log_mass [N]");
        assert_eq!(self.divergence_offset.len(), rows, "divergence_offset [N]");
        assert_eq!(self.alpha_factors.len(), rows, "alpha_factors [N]");
        let bad = self.alpha_factors.iter().find(|factor| !(**factor >= 0.0 && factor.is_finite()));
        assert!(bad.is_none(), "a factor of alpha is not negative, found {bad:?}");
        let kept: usize = self.counts.iter().map(|&count| entries(count)).sum();
        assert_eq!(self.token_ids.len(), kept, "token_ids [sum of counts]");
        assert_eq!(self.log_probs.len(), kept, "log_probs [sum of counts]");
    }
}

/// A count as a length.
pub(crate) fn entries(count: i32) -> usize {
    usize::try_from(count).expect("a count of entries is not negative")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_the_whole() {
        let one = |gold: i32, ids: &[i32]| Targets {
            gold: vec![gold],
            counts: vec![i32::try_from(ids.len()).expect("a few")],
            token_ids: ids.to_vec(),
            log_probs: ids.iter().map(|&id| -0.1 * id as f32).collect(),
            tail_log_mass: vec![-(gold as f32)],
            divergence_offset: vec![0.5 * gold as f32],
            alpha_factors: vec![1.0 + gold as f32],
        };
        let rows = [one(1, &[3, 4]), one(2, &[]), one(3, &[5]), one(4, &[6, 7, 8])];
        let mut whole = Targets::default();
        rows.iter().for_each(|row| whole.append(row.clone()));
        for cut in 0..=4 {
            let (mut first, second) = (whole.part(0..cut), whole.part(cut..4));
            first.append(second);
            assert_eq!(first, whole);
        }
        for (index, row) in rows.iter().enumerate() {
            assert_eq!(whole.part(index..index + 1), *row);
        }
    }

    #[test]
    fn ids_beyond_the_student_go_to_the_tail() {
        let ln = |mass: f32| mass.ln();
        let mut targets = Targets {
            gold: vec![1, 2],
            counts: vec![3, 1],
            token_ids: vec![9, 1, 8, 2],
            log_probs: vec![ln(0.5), ln(0.25), ln(0.125), ln(0.75)],
            tail_log_mass: vec![ln(0.125), f32::NEG_INFINITY],
            divergence_offset: vec![0.0; 2],
            alpha_factors: vec![1.0; 2],
        };
        let before = targets.clone();
        targets.fold_ids_from(10);
        assert_eq!(targets, before, "all ids fit");
        targets.fold_ids_from(8);
        assert_eq!((targets.counts, targets.token_ids), (vec![1, 1], vec![1, 2]));
        assert_eq!(targets.log_probs, [ln(0.25), ln(0.75)]);
        assert!((targets.tail_log_mass[0] - ln(0.75)).abs() < 1e-6, "{:?}", targets.tail_log_mass);
        assert!(targets.tail_log_mass[1] == f32::NEG_INFINITY);
    }
}
