//! Labels that are wrong on purpose: at some positions the most probable token changes places with a random one.
//!
//! The distribution keeps its shape, so that entropy, partitions and the mass that was cut stay what they are; only which
//! token has which probability is wrong. That is symmetric label noise, for soft labels.

use std::ops::Range;

use anyhow::Result;
use burn::tensor::{FloatDType, Int, Tensor, TensorData};
use softshard_labels::{Sequence, SequenceKey};
use softshard_losses::HeadLabels;

use crate::{batch_size::device_failed, rows::Wanted};

/// Random numbers of their own, beside those of the draws.
const CHOOSES_POSITIONS: u64 = 0x6e6f_6973_655f_6174;
const CHOOSES_TOKENS: u64 = 0x6e6f_6973_655f_6964;

/// Two tokens of a row that change places.
struct Exchange {
    row: usize,
    /// Where the entries of the row are: all, and of these the exact ones, which come first.
    entries: Range<usize>,
    exact: Range<usize>,
    /// The most probable token, or where tokens are drawn alone the one that was drawn most.
    top: i32,
    other: i32,
}

/// Whether the label at a position is wrong, where a share `noise` of all are.
pub(crate) fn hits(key: &SequenceKey, seed: u64, noise: f64, position: i32) -> bool {
    noise > 0.0 && key.uniform(seed ^ CHOOSES_POSITIONS, position) < noise
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
    // The token that is really there will have what the one in whose place it comes has.
    let mut computed = Vec::new();
    for one in &exchanges {
        let place = match gold[one.row] {
            gold if gold == one.top => one.other,
            gold if gold == one.other => one.top,
            _ => continue,
        };
        let kept = labels.token_ids[one.entries.clone()].iter().take(one.exact.len());
        match kept.zip(&labels.log_probs[one.exact.clone()]).find(|(id, _)| **id == place) {
            Some((_, log_prob)) => labels.gold_log_prob[one.row] = *log_prob,
            None => computed.push((one, place)),
        }
    }
    let rows: Vec<(usize, i32)> = computed.iter().map(|(one, place)| (one.row, *place)).collect();
    for ((one, _), logit) in computed.iter().zip(logits(&rows, hidden, head)?) {
        let log_prob = wanted.logit_scale * logit - labels.log_sum_exp[one.row];
        // It was cut off: the product of the whole head may have rounded otherwise.
        let least = labels.log_probs[one.exact.clone()].last().copied().unwrap_or(0.0);
        let tail = if one.exact.is_empty() { 0.0 } else { labels.tail_log_mass[one.row] };
        labels.gold_log_prob[one.row] = log_prob.min(least).min(tail).clamp(f32::MIN, 0.0);
    }
    for one in exchanges {
        for id in &mut labels.token_ids[one.entries.clone()] {
            *id = match *id {
                id if id == one.top => one.other,
                id if id == one.other => one.top,
                id => id,
            };
        }
        sort_drawn(labels, &one);
    }
    Ok(())
}

/// The positions, and with which token of the vocabulary each exchanges its most probable one.
fn choose(labels: &HeadLabels, batch: &[&Sequence], wanted: &Wanted) -> Vec<Exchange> {
    let mut exchanges = Vec::new();
    let (mut row, mut entry, mut exact) = (0, 0, 0);
    for sequence in batch {
        let key = sequence.key();
        for &position in &sequence.positions {
            let count = usize::try_from(labels.counts[row]).expect("counts are not negative");
            let entries = entry..entry + count;
            let of_exact = exact..exact + count.min(wanted.keep.exact());
            (entry, exact) = (entries.end, of_exact.end);
            if hits(&key, wanted.seed, wanted.noise, position) && count > 0 && wanted.vocab_size > 1 {
                let top = labels.token_ids[entries.start];
                // One of all the others.
                let share = key.uniform(wanted.seed ^ CHOOSES_TOKENS, position);
                #[expect(clippy::cast_possible_truncation, reason = "below the vocabulary")]
                let drawn = (share * f64::from(wanted.vocab_size - 1)) as i32;
                let other = drawn + i32::from(drawn >= top);
                exchanges.push(Exchange { row, entries, exact: of_exact, top, other });
            }
            row += 1;
        }
    }
    exchanges
}

/// Drawn tokens of one count are in the order of their ids; the writer sees to the exact ones.
fn sort_drawn(labels: &mut HeadLabels, one: &Exchange) {
    let drawn_before = one.entries.start - one.exact.start;
    let ids = &mut labels.token_ids[one.entries.start + one.exact.len()..one.entries.end];
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
    let data = logits.try_into_data().map_err(|error| device_failed(error.to_string()))?;
    Ok(data.try_to_vec::<f32>().expect("it was cast to f32"))
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;
    use softshard_losses::{HeadOptions, Keep, label_rows};

    use super::*;
    use crate::rows::Wanted;

    const VOCABULARY: usize = 11;

    /// Where the entries of a row are.
    fn entries(labels: &HeadLabels, row: usize) -> Range<usize> {
        let count = |count: &i32| usize::try_from(*count).unwrap();
        let first: usize = labels.counts[..row].iter().map(count).sum();
        first..first + count(&labels.counts[row])
    }

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
        both_in(keep, noise, FloatDType::F32)
    }

    fn both_in(
        keep: Keep,
        noise: f64,
        dtype: FloatDType,
    ) -> (HeadLabels, HeadLabels, Vec<i32>, Vec<Vec<f32>>) {
        let sequences = batch();
        let batch: Vec<&Sequence> = sequences.iter().collect();
        let device = Device::flex();
        let numbers = |count: usize, factor: f32| (0..count).map(move |i| ((i as f32) * factor).sin() * 2.0);
        let hidden = TensorData::new(numbers(78 * 3, 1.7).collect::<Vec<_>>(), [78, 3]);
        let head = TensorData::new(numbers(VOCABULARY * 3, 0.9).collect::<Vec<_>>(), [VOCABULARY, 3]);
        let (hidden, head) = (Tensor::<2>::from_data(hidden, &device), Tensor::<2>::from_data(head, &device));
        let (hidden, head) = (hidden.cast(dtype), head.cast(dtype));
        let gold: Vec<i32> = batch.iter().flat_map(|one| one.gold()).collect();
        let wanted = wanted(keep, noise);
        let options = HeadOptions { keep, logit_scale: 1.0, temperatures: &[], rows_per_chunk: 16 };
        let uniforms = crate::rows::uniforms(&batch, &wanted);
        let clean = label_rows(hidden.clone(), head.clone(), &gold, &uniforms, &options).unwrap();
        let mut noisy = clean.clone();
        exchange(&mut noisy, &batch, &wanted, (&hidden, &head)).unwrap();
        let logits =
            hidden.matmul(head.transpose()).cast(FloatDType::F32).into_data().try_to_vec::<f32>().unwrap();
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

    /// What is kept and what is computed again round differently, and the format compares them.
    #[test]
    fn rounded_logits_give_labels_that_are_valid() {
        let (_, noisy, gold, _) = both_in(Keep::TopK { k: 6 }, 1.0, FloatDType::BF16);
        let (mut kept, mut cut) = (0, 0);
        for (row, gold) in gold.iter().enumerate() {
            let entries = entries(&noisy, row);
            let log_probs = &noisy.log_probs[entries.clone()];
            match noisy.token_ids[entries].iter().position(|id| id == gold) {
                Some(entry) => {
                    kept += 1;
                    assert_eq!(noisy.gold_log_prob[row], log_probs[entry]);
                }
                None => {
                    cut += 1;
                    let most = log_probs[5].min(noisy.tail_log_mass[row]);
                    assert!(noisy.gold_log_prob[row] <= most);
                }
            }
        }
        assert!(kept > 10 && cut > 10, "{kept} and {cut}");
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
