//! Which micro-batches each step of a run sums over, and the thread that reads them.

use std::{sync::mpsc, thread};

use anyhow::Result;

use crate::{batches::Batch, config::TrainConfig, examples::Examples, order::Order};

/// Tokens that the reader may be ahead of the device, one step at least: bounds what is in memory, some 0.5 KB a token for
/// 64 entries of a distribution.
const PREFETCHED_TOKENS: usize = 1 << 16;
/// Steps that it may be ahead at most.
const PREFETCHED_STEPS: usize = 4;

/// Steps that the reader is ahead of the device at most.
pub(crate) fn prefetched_steps(config: &TrainConfig) -> usize {
    let step_tokens = config.max_tokens_per_batch.saturating_mul(config.accumulate_batches).max(1);
    (PREFETCHED_TOKENS / step_tokens).clamp(1, PREFETCHED_STEPS)
}

/// The steps of a run. The micro-batches of an epoch are planned when it comes.
pub(crate) struct Steps {
    order: Order,
    seed: u64,
    accumulate_batches: usize,
    prefetched: usize,
    /// The first step behind each epoch.
    ends: Vec<u64>,
}

impl Steps {
    pub(crate) fn new(config: &TrainConfig, examples: &Examples) -> Self {
        let accumulate_batches = config.accumulate_batches;
        let mut steps = Steps {
            order: Order::of(config),
            seed: config.seed,
            accumulate_batches,
            prefetched: prefetched_steps(config),
            ends: Vec::new(),
        };
        let limit = if config.max_steps == 0 { u64::MAX } else { config.max_steps };
        for epoch in 0..config.epochs {
            let of_epoch = steps.batches(examples, epoch).len().div_ceil(accumulate_batches) as u64;
            steps.ends.push((steps.len() + of_epoch).min(limit));
            if steps.len() == limit {
                break;
            }
        }
        steps
    }

    pub(crate) fn len(&self) -> u64 {
        self.ends.last().copied().unwrap_or(0)
    }

    fn batches(&self, examples: &Examples, epoch: u32) -> Vec<Vec<u32>> {
        let rows = examples.epoch(self.seed, epoch);
        self.order.batches(rows, |row| examples.length(row), epoch)
    }

    /// Gives the micro-batches of each step of the first epoch to `take`.
    pub(crate) fn each_of_first_epoch(&self, examples: &Examples, mut take: impl FnMut(&[Vec<u32>])) {
        let mut left = self.ends.first().copied().unwrap_or(0);
        self.each_from(examples, 0, |step| {
            take(step);
            left = left.saturating_sub(1);
            left > 0
        });
    }

    /// Gives the micro-batches of each step from `first` on to `take`, until it wants no more.
    fn each_from(&self, examples: &Examples, first: u64, mut take: impl FnMut(&[Vec<u32>]) -> bool) {
        let mut start = 0;
        for (epoch, &end) in (0..).zip(&self.ends) {
            if first < end {
                let batches = self.batches(examples, epoch);
                let skipped = usize::try_from(first.saturating_sub(start)).expect("a place in an epoch");
                let planned = usize::try_from(end - start).expect("a place in an epoch");
                let steps = batches.chunks(self.accumulate_batches).take(planned);
                for step in steps.skip(skipped) {
                    if !take(step) {
                        return;
                    }
                }
            }
            start = end;
        }
    }
}

/// Reads and collates the steps from `first` on, on a thread of its own. Waits for the first one, so that what comes after
/// is the loop's own time.
pub(crate) fn prefetch<'scope>(
    scope: &'scope thread::Scope<'scope, '_>,
    examples: &'scope Examples,
    steps: &'scope Steps,
    first: u64,
    vocabulary: usize,
) -> impl Iterator<Item = Result<Vec<Batch>>> + use<> {
    let (sender, receiver) = mpsc::sync_channel(steps.prefetched);
    scope.spawn(move || {
        let arrangement = steps.order.arrangement();
        let read = |batch: &Vec<u32>| Batch::read(examples, batch, arrangement, vocabulary);
        // A send fails when the loop ended early.
        steps.each_from(examples, first, |step| sender.send(step.iter().map(read).collect()).is_ok());
    });
    receiver.recv().ok().into_iter().chain(receiver)
}
