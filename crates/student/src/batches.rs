//! Which sequences share a micro-batch, and the micro-batch itself.

use anyhow::Result;
use rand::{SeedableRng, seq::SliceRandom};
use rand_chacha::ChaCha8Rng;
use softshard_losses::Targets;
use softshard_model::batches_by_length;

use crate::examples::Examples;

/// Sequences of this many micro-batches are sorted by length together: enough to keep the padding low, few enough to
/// keep the order random.
const BATCHES_PER_BUCKET: usize = 50;

/// The micro-batches of one epoch as indices into the dataset: shuffled by seed and epoch, of like lengths, none over
/// `max_tokens` with its padding (a single longer sequence stands alone).
pub(crate) fn plan(lengths: &[usize], max_tokens: usize, seed: u64, epoch: u32) -> Vec<Vec<usize>> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    random.set_stream(u64::from(epoch));
    let mut order: Vec<usize> = (0..lengths.len()).collect();
    order.shuffle(&mut random);

    let mean = lengths.iter().sum::<usize>().div_ceil(lengths.len().max(1)).max(1);
    let bucket = (max_tokens / mean).max(1) * BATCHES_PER_BUCKET;
    let mut batches = Vec::new();
    for bucket in order.chunks(bucket) {
        let bucket_lengths: Vec<usize> = bucket.iter().map(|&index| lengths[index]).collect();
        let by_length = batches_by_length(&bucket_lengths, max_tokens);
        batches.extend(
            by_length.into_iter().map(|batch| batch.into_iter().map(|at| bucket[at]).collect::<Vec<_>>()),
        );
    }
    batches.shuffle(&mut random);
    batches
}

/// One sequence with what its loss compares with.
pub(crate) struct Example {
    /// The whole sequence, L tokens.
    pub(crate) input_ids: Vec<i32>,
    /// Labelled positions, ascending, each in 1..L.
    pub(crate) positions: Vec<i32>,
    /// One row per position.
    pub(crate) targets: Targets,
}

/// One micro-batch: what one forward and backward pass reads.
pub(crate) struct Batch {
    pub(crate) input_ids: Vec<Vec<i32>>,
    pub(crate) positions: Vec<Vec<i32>>,
    /// One row per labelled token, sequence by sequence.
    pub(crate) targets: Targets,
}

impl Batch {
    pub(crate) fn new(examples: impl IntoIterator<Item = Example>) -> Self {
        let mut batch = Batch { input_ids: Vec::new(), positions: Vec::new(), targets: Targets::default() };
        for example in examples {
            batch.input_ids.push(example.input_ids);
            batch.positions.push(example.positions);
            batch.targets.append(example.targets);
        }
        batch
    }

    /// Reads the sequences at `indices`, for a student with a head of `vocabulary` rows.
    ///
    /// # Errors
    /// A row that does not decode or breaks the format's rules.
    pub(crate) fn read(examples: &Examples, indices: &[usize], vocabulary: usize) -> Result<Self> {
        let read = |&index: &usize| {
            let mut example = examples.read(index)?;
            example.targets.fold_ids_from(vocabulary);
            Ok(example)
        };
        Ok(Batch::new(indices.iter().map(read).collect::<Result<Vec<_>>>()?))
    }

    /// Token ids and labelled positions of each sequence.
    pub(crate) fn rows(&self) -> (Vec<&[i32]>, Vec<&[i32]>) {
        fn slices(rows: &[Vec<i32>]) -> Vec<&[i32]> {
            rows.iter().map(Vec::as_slice).collect()
        }
        (slices(&self.input_ids), slices(&self.positions))
    }

    /// Tokens, without padding.
    pub(crate) fn tokens(&self) -> usize {
        self.input_ids.iter().map(Vec::len).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_sequence_is_in_one_batch_and_no_batch_is_over_the_budget() {
        let lengths: Vec<usize> = (0..1000).map(|index| 5 + index * 7 % 60).collect();
        let batches = plan(&lengths, 512, 3, 0);
        let mut seen: Vec<usize> = batches.iter().flatten().copied().collect();
        seen.sort_unstable();
        assert_eq!(seen, (0..1000).collect::<Vec<_>>());
        let padded = |batch: &Vec<usize>| batch.len() * batch.iter().map(|&i| lengths[i]).max().unwrap_or(0);
        assert!(batches.iter().all(|batch| padded(batch) <= 512));
        let (padded, real) = (batches.iter().map(padded).sum::<usize>(), lengths.iter().sum::<usize>());
        assert!(padded * 100 <= real * 105, "padding over 5 %: {padded} for {real} tokens");
    }

    #[test]
    fn order_depends_on_seed_and_epoch_only() {
        let lengths: Vec<usize> = (0..100).map(|index| 5 + index % 9).collect();
        assert_eq!(plan(&lengths, 64, 1, 0), plan(&lengths, 64, 1, 0));
        assert_ne!(plan(&lengths, 64, 1, 0), plan(&lengths, 64, 1, 1));
        assert_ne!(plan(&lengths, 64, 1, 0), plan(&lengths, 64, 2, 0));
    }
}
