//! The order of an epoch: which sequences share a micro-batch, and when their turn comes.

use rand::{SeedableRng, seq::SliceRandom};
use rand_chacha::ChaCha8Rng;
use softshard_model::{Arrangement, batches_by_length};

use crate::config::TrainConfig;

/// Sequences of this many micro-batches are sorted by length together: enough to keep the padding low, few enough to
/// keep the order random.
const BATCHES_PER_BUCKET: usize = 50;
/// Micro-batches that packing fills at a time: it takes a time that grows with the data alone, and little room is left.
const OPEN_BATCHES: usize = 64;

/// What an order depends on, beside the sequences and the epoch.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Order {
    max_tokens: usize,
    packing: bool,
    seed: u64,
}

impl Order {
    pub(crate) fn of(config: &TrainConfig) -> Self {
        Order { max_tokens: config.max_tokens_per_batch, packing: config.packing, seed: config.seed }
    }

    /// How the sequences of its micro-batches lie.
    pub(crate) fn arrangement(&self) -> Arrangement {
        if self.packing { Arrangement::Packed } else { Arrangement::Ragged }
    }

    /// The micro-batches of an epoch over `rows`, in an order by seed and epoch. A sequence over the budget stands alone.
    ///
    /// Packed: whole sequences of any length, not over the budget. Else sequences of like lengths, not over the budget with their
    /// padding.
    pub(crate) fn batches(
        &self,
        mut rows: Vec<u32>,
        length: impl Fn(u32) -> usize,
        epoch: u32,
    ) -> Vec<Vec<u32>> {
        let mut random = ChaCha8Rng::seed_from_u64(self.seed);
        random.set_stream(u64::from(epoch));
        rows.shuffle(&mut random);
        let mut batches = if self.packing {
            packed(&rows, length, self.max_tokens)
        } else {
            of_like_lengths(&rows, length, self.max_tokens)
        };
        batches.shuffle(&mut random);
        batches
    }
}

fn of_like_lengths(rows: &[u32], length: impl Fn(u32) -> usize, max_tokens: usize) -> Vec<Vec<u32>> {
    let mean = rows.iter().map(|&row| length(row)).sum::<usize>().div_ceil(rows.len().max(1)).max(1);
    let bucket = (max_tokens / mean).max(1) * BATCHES_PER_BUCKET;
    let mut batches = Vec::new();
    for bucket in rows.chunks(bucket) {
        let lengths: Vec<usize> = bucket.iter().map(|&row| length(row)).collect();
        let by_length = batches_by_length(&lengths, max_tokens).into_iter();
        batches.extend(by_length.map(|batch| batch.into_iter().map(|at| bucket[at]).collect::<Vec<_>>()));
    }
    batches
}

/// First fit: each sequence goes to the first open micro-batch with room for it. Where none has room, the fullest one is done.
fn packed(rows: &[u32], length: impl Fn(u32) -> usize, max_tokens: usize) -> Vec<Vec<u32>> {
    let mut done = Vec::new();
    let mut open: Vec<(usize, Vec<u32>)> = Vec::with_capacity(OPEN_BATCHES);
    for &row in rows {
        let tokens = length(row);
        if let Some((room, batch)) = open.iter_mut().find(|(room, _)| *room >= tokens) {
            *room -= tokens;
            batch.push(row);
            continue;
        }
        if open.len() == OPEN_BATCHES {
            let fullest = (0..open.len()).min_by_key(|&index| open[index].0).unwrap_or(0);
            done.push(open.remove(fullest).1);
        }
        open.push((max_tokens.saturating_sub(tokens), vec![row]));
    }
    done.extend(open.into_iter().map(|(_, batch)| batch));
    done
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order(packing: bool, seed: u64) -> Order {
        Order { max_tokens: 512, packing, seed }
    }

    fn length(row: u32) -> usize {
        5 + row as usize * 7 % 60
    }

    #[test]
    fn every_sequence_is_in_one_batch_and_no_batch_is_over_the_budget() {
        for packing in [false, true] {
            let batches = order(packing, 3).batches((0..1000).collect(), length, 0);
            let mut seen: Vec<u32> = batches.iter().flatten().copied().collect();
            seen.sort_unstable();
            assert_eq!(seen, (0..1000).collect::<Vec<_>>());
            let real = |batch: &Vec<u32>| batch.iter().map(|&row| length(row)).sum::<usize>();
            let longest = |batch: &Vec<u32>| batch.iter().map(|&row| length(row)).max().unwrap_or(0);
            let used = |batch: &Vec<u32>| if packing { real(batch) } else { batch.len() * longest(batch) };
            assert!(batches.iter().all(|batch| used(batch) <= 512));
            let (used, real) =
                (batches.iter().map(used).sum::<usize>(), batches.iter().map(real).sum::<usize>());
            assert!(used * 100 <= real * 105, "padding over 5 %: {used} for {real} tokens");
            if packing {
                let room = batches.len() * 512;
                assert!(real * 100 >= room * 95, "over 5 % of the room is left: {real} of {room}");
            }
        }
    }

    #[test]
    fn order_depends_on_seed_and_epoch_only() {
        for packing in [false, true] {
            let of = |seed, epoch| order(packing, seed).batches((0..400).collect(), length, epoch);
            assert_eq!(of(1, 0), of(1, 0));
            assert_ne!(of(1, 0), of(1, 1));
            assert_ne!(of(1, 0), of(2, 0));
        }
    }

    #[test]
    fn a_sequence_over_the_budget_stands_alone() {
        for packing in [false, true] {
            let length = |row: u32| if row == 7 { 600 } else { 100 };
            let batches = order(packing, 1).batches((0..20).collect(), length, 0);
            assert!(batches.contains(&vec![7]), "{batches:?}");
        }
    }
}
