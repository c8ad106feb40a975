//! Labels that are wrong on purpose: at some positions the most probable token changes places with a random one.
//!
//! The distribution keeps its shape, so that entropy, partitions and the mass that was cut stay what they are; only which
//! token has which probability is wrong. That is symmetric label noise, for soft labels.

use anyhow::Result;
use burn::tensor::{FloatDType, Int, Tensor, TensorData};
use softshard_labels::Sequence;
use softshard_losses::{HeadError, HeadLabels};

use crate::rows::Wanted;

/// Random numbers of their own, beside those of the draws.
const CHOOSES_POSITIONS: u64 = 0x6e6f_6973_655f_6174;
const CHOOSES_TOKENS: u64 = 0x6e6f_6973_655f_6964;

/// Two tokens of a row that change places.
struct Exchange {
    row: usize,
    /// The most probable token, or where tokens are drawn alone the one that was drawn most.
    top: i32,
    other: i32,
}

/// Exchanges tokens at the positions that the seed chooses. Rows are those of the batch, hidden states `[N, D]`, head `[V, D]`.
pub(crate) fn exchange(
    labels: &mut HeadLabels,
    batch: &[&Sequence],
    wanted: &Wanted,
    (hidden, head): (&Tensor<2>, &Tensor<2>),
) -> Result<()> {
    if wanted.noise <= 0.0 {
        return Ok(());
    }
    let exchanges = choose(labels, batch, wanted);
    let gold: Vec<i32> = batch.iter().flat_map(|sequence| sequence.gold()).collect();
    for Exchange { row, top, other } in &exchanges {
        let ids = entries(labels, *row);
        for id in &mut labels.token_ids[ids] {
            *id = if *id == *top {
                *other
            } else if *id == *other {
                *top
            } else {
                *id
            };
        }
        sort_drawn(labels, *row, wanted);
    }
    // The token that is really there now has what the one in its place had.
    let moved: Vec<(usize, i32)> = exchanges
        .iter()
        .filter_map(|one| match gold[one.row] {
            gold if gold == one.top => Some((one.row, one.other)),
            gold if gold == one.other => Some((one.row, one.top)),
            _ => None,
        })
        .collect();
    for ((row, _), logit) in moved.iter().zip(logits(&moved, hidden, head)?) {
        let log_prob = wanted.logit_scale * logit - labels.log_sum_exp[*row];
        labels.gold_log_prob[*row] = log_prob.clamp(f32::MIN, 0.0);
    }
    Ok(())
}

/// The positions, and with which token of the vocabulary each exchanges its most probable one.
fn choose(labels: &HeadLabels, batch: &[&Sequence], wanted: &Wanted) -> Vec<Exchange> {
    let mut exchanges = Vec::new();
    let mut row = 0;
    let mut first = 0;
    for sequence in batch {
        let key = sequence.key();
        for &position in &sequence.positions {
            let count = usize::try_from(labels.counts[row]).expect("counts are not negative");
            let is_chosen = key.uniform(wanted.seed ^ CHOOSES_POSITIONS, position) < wanted.noise;
            if is_chosen && count > 0 && wanted.vocab_size > 1 {
                let top = labels.token_ids[first];
                // One of all the others.
                let share = key.uniform(wanted.seed ^ CHOOSES_TOKENS, position);
                #[expect(clippy::cast_possible_truncation, reason = "below the vocabulary")]
                let drawn = (share * f64::from(wanted.vocab_size - 1)) as i32;
                exchanges.push(Exchange { row, top, other: drawn + i32::from(drawn >= top) });
            }
            (row, first) = (row + 1, first + count);
        }
    }
    exchanges
}

/// Where the entries of a row are.
fn entries(labels: &HeadLabels, row: usize) -> std::ops::Range<usize> {
    let count = |count: &i32| usize::try_from(*count).expect("counts are not negative");
    let first: usize = labels.counts[..row].iter().map(count).sum();
    first..first + count(&labels.counts[row])
}

/// Drawn tokens of one count are in the order of their ids; the writer sees to the exact ones.
fn sort_drawn(labels: &mut HeadLabels, row: usize, wanted: &Wanted) {
    if wanted.keep.draws().is_none() {
        return;
    }
    let ids = entries(labels, row);
    let exact = |count: &i32| usize::try_from(*count).map_or(0, |count| count.min(wanted.keep.exact()));
    let exact_before: usize = labels.counts[..row].iter().map(exact).sum();
    let exact = exact(&labels.counts[row]);
    let drawn_before = ids.start - exact_before;
    let ids = &mut labels.token_ids[ids.start + exact..ids.end];
    let counts = &labels.sample_counts[drawn_before..drawn_before + ids.len()];
    let mut start = 0;
    for tied in counts.chunk_by(|a, b| a == b) {
        ids[start..start + tied.len()].sort_unstable();
        start += tied.len();
    }
}

/// The logits of some tokens, one a row.
fn logits(of: &[(usize, i32)], hidden: &Tensor<2>, head: &Tensor<2>) -> Result<Vec<f32>> {
    if of.is_empty() {
        return Ok(Vec::new());
    }
    let rows: Vec<i32> = of.iter().map(|(row, _)| i32::try_from(*row)).collect::<Result<_, _>>()?;
    let ids: Vec<i32> = of.iter().map(|(_, id)| *id).collect();
    let pick = |tensor: &Tensor<2>, indices: Vec<i32>| {
        let indices = TensorData::new(indices, [of.len()]);
        let indices = Tensor::<1, Int>::from_data(indices, &tensor.device());
        tensor.clone().inner().select(0, indices).cast(FloatDType::F32)
    };
    let logits = (pick(hidden, rows) * pick(head, ids)).sum_dim(1);
    let data = logits.try_into_data().map_err(|error| HeadError::Device(error.to_string()))?;
    Ok(data.try_to_vec::<f32>().expect("it was cast to f32"))
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;
    use softshard_losses::{HeadOptions, Keep, label_rows};

    use super::*;
    use crate::rows::Wanted;

    const VOCABULARY: usize = 11;

    fn wanted(keep: Keep, noise: f64) -> Wanted<'static> {
        Wanted::for_test(keep, noise, u32::try_from(VOCABULARY).unwrap())
    }

    fn batch() -> Vec<Sequence> {
        let sequence = |salt: i32| {
            let input_ids = (0..40).map(|index| (index * 7 + salt) % 11).collect();
            Sequence { source: None, input_ids, positions: (1..40).collect() }
        };
        vec![sequence(1), sequence(4)]
    }

    /// Labels with and without noise, from the same states.
    fn both(keep: Keep, noise: f64) -> (HeadLabels, HeadLabels, Vec<i32>, Vec<Vec<f32>>) {
        let sequences = batch();
        let batch: Vec<&Sequence> = sequences.iter().collect();
        let device = Device::flex();
        let numbers = |count: usize, factor: f32| (0..count).map(move |i| ((i as f32) * factor).sin() * 2.0);
        let hidden = TensorData::new(numbers(78 * 3, 1.7).collect::<Vec<_>>(), [78, 3]);
        let head = TensorData::new(numbers(VOCABULARY * 3, 0.9).collect::<Vec<_>>(), [VOCABULARY, 3]);
        let (hidden, head) = (Tensor::<2>::from_data(hidden, &device), Tensor::<2>::from_data(head, &device));
        let gold: Vec<i32> = batch.iter().flat_map(|one| one.gold()).collect();
        let wanted = wanted(keep, noise);
        let options = HeadOptions { keep, logit_scale: 1.0, temperatures: &[], rows_per_chunk: 16 };
        let uniforms = crate::rows::uniforms(&batch, &wanted);
        let clean = label_rows(hidden.clone(), head.clone(), &gold, &uniforms, &options).unwrap();
        let mut noisy = clean.clone();
        exchange(&mut noisy, &batch, &wanted, (&hidden, &head)).unwrap();
        let logits = hidden.matmul(head.transpose()).into_data().try_to_vec::<f32>().unwrap();
        (clean, noisy, gold, logits.chunks(VOCABULARY).map(<[f32]>::to_vec).collect())
    }

    #[test]
    fn no_noise_changes_nothing() {
        let (clean, noisy, ..) = both(Keep::TopK { k: 4 }, 0.0);
        assert_eq!(clean, noisy);
    }

    #[test]
    fn noise_is_an_exchange_of_two_tokens() {
        for keep in [Keep::TopK { k: 4 }, Keep::TopK { k: VOCABULARY }, Keep::TopKSampled { k: 2, draws: 5 }]
        {
            let (clean, noisy, gold, logits) = both(keep, 0.5);
            let mut exchanged = 0;
            for row in 0..78 {
                let (before, after) =
                    (&clean.token_ids[entries(&clean, row)], &noisy.token_ids[entries(&noisy, row)]);
                let (top, other) = (before[0], after[0]);
                exchanged += usize::from(top != other);
                let swap = |id: i32| match id {
                    id if id == top => other,
                    id if id == other => top,
                    id => id,
                };
                let mut expected: Vec<i32> = before.iter().map(|id| swap(*id)).collect();
                let mut found = after.to_vec();
                expected.sort_unstable();
                found.sort_unstable();
                assert_eq!(expected, found);
                // The gold token's probability is that of the token whose place it took.
                let place = usize::try_from(swap(gold[row])).unwrap();
                let expected = logits[row][place] - noisy.log_sum_exp[row];
                assert!((noisy.gold_log_prob[row] - expected).abs() < 1e-5);
            }
            assert!((25..=53).contains(&exchanged), "{exchanged} of 78");
            let same = |labels: &HeadLabels| (labels.entropy.clone(), labels.tail_log_mass.clone());
            assert_eq!(same(&clean), same(&noisy));
            assert_eq!((clean.counts, clean.log_probs), (noisy.counts, noisy.log_probs));
        }
    }

    #[test]
    fn drawn_tokens_stay_in_order() {
        let (_, noisy, ..) = both(Keep::Sampled { draws: 9 }, 1.0);
        for row in 0..78 {
            let entries = entries(&noisy, row);
            let drawn: Vec<(i32, i32)> =
                entries.clone().map(|entry| (-noisy.sample_counts[entry], noisy.token_ids[entry])).collect();
            assert!(drawn.is_sorted(), "{drawn:?}");
        }
    }
}
