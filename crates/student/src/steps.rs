//! Which micro-batches each step of a run sums over, and the thread that reads them.

use std::{sync::mpsc, thread};

use anyhow::Result;

use crate::{
    batches::{self, Batch},
    config::TrainConfig,
    examples::Examples,
};

/// Steps that the reader may be ahead of the device.
const PREFETCHED_STEPS: usize = 4;

/// Every step of the run as the micro-batches it sums over.
pub(crate) struct Steps(Vec<Vec<Vec<usize>>>);

impl Steps {
    pub(crate) fn new(config: &TrainConfig, examples: &Examples) -> Self {
        let lengths: Vec<usize> = examples.token_counts().iter().map(|&(tokens, _)| tokens).collect();
        let limit = usize::try_from(config.max_steps).ok().filter(|&limit| limit > 0).unwrap_or(usize::MAX);
        let mut steps = Vec::new();
        for epoch in 0..config.epochs {
            let batches = batches::plan(&lengths, config.max_tokens_per_batch, config.seed, epoch);
            steps.extend(batches.chunks(config.accumulate_batches).map(<[_]>::to_vec));
            if steps.len() >= limit {
                break;
            }
        }
        steps.truncate(limit);
        Steps(steps)
    }

    pub(crate) fn len(&self) -> u64 {
        self.0.len() as u64
    }
}

/// Reads and collates the steps from `first` on, on a thread of its own.
pub(crate) fn prefetch<'scope>(
    scope: &'scope thread::Scope<'scope, '_>,
    examples: &'scope Examples,
    steps: &'scope Steps,
    first: u64,
    vocabulary: usize,
) -> mpsc::Receiver<Result<Vec<Batch>>> {
    let (sender, receiver) = mpsc::sync_channel(PREFETCHED_STEPS);
    scope.spawn(move || {
        let skipped = usize::try_from(first).unwrap_or(usize::MAX);
        for step in steps.0.iter().skip(skipped) {
            let read = |batch: &Vec<usize>| Batch::read(examples, batch, vocabulary);
            if sender.send(step.iter().map(read).collect()).is_err() {
                return; // the loop ended early
            }
        }
    });
    receiver
}
