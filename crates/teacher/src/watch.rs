//! What a run did so far: for the summary at its end, and for those who look on.
//!
//! An observer is told of the progress after each batch, and of the metrics of each shard.

use std::{
    collections::BTreeMap,
    io,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use softshard_labels::{LabelPlan, Metrics, Observer, Progress, ShardRecord};

use crate::{
    labeller::{Batch, Labeller},
    summary::Summary,
};

/// Name of the stage.
const STAGE: &str = "teacher-labels";

/// A shard on its way.
#[derive(Clone, Debug)]
pub(crate) struct Shard {
    pub(crate) index: usize,
    began: Instant,
    seconds: f64,
    batches: Batch,
}

impl Shard {
    pub(crate) fn new(index: usize) -> Self {
        Self { index, began: Instant::now(), seconds: 0.0, batches: Batch::default() }
    }

    /// Counts one of its batches.
    pub(crate) fn add(&mut self, batch: &Batch) {
        self.batches.add(batch);
    }

    /// Its last batch is labelled.
    pub(crate) fn ended(&self) -> Self {
        Self { seconds: self.began.elapsed().as_secs_f64(), ..self.clone() }
    }
}

impl Batch {
    fn add(&mut self, other: &Self) {
        self.sequences += other.sequences;
        self.tokens += other.tokens;
        self.padded_tokens += other.padded_tokens;
        self.labelled_tokens += other.labelled_tokens;
        self.forward_seconds += other.forward_seconds;
        self.head_seconds += other.head_seconds;
        self.entropy += other.entropy;
        self.retained_mass += other.retained_mass;
    }
}

/// Seconds of the two halves of writing a shard.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Seconds {
    /// Checking, encoding, hashing, syncing.
    pub(crate) write: f64,
    /// Reading back and committing.
    pub(crate) commit: f64,
}

/// The run as it stands.
pub(crate) struct Watch<'a> {
    observer: &'a dyn Observer,
    split: String,
    /// Sequences and shards that are to be labelled.
    sequences: u64,
    shards: u64,
    began: Instant,
    state: Mutex<State>,
}

struct State {
    summary: Summary,
    failed: u64,
    /// Of each device: tokens, and batches that were done again.
    devices: BTreeMap<usize, (u64, u64)>,
}

impl<'a> Watch<'a> {
    /// Of a run that will label the `missing` shards; `summary` is what is known before.
    pub(crate) fn new(
        plan: &LabelPlan,
        missing: &[usize],
        summary: Summary,
        observer: &'a dyn Observer,
    ) -> Self {
        let rows = |&shard: &usize| plan.shards[shard][1] - plan.shards[shard][0];
        Self {
            observer,
            split: plan.split.clone(),
            sequences: missing.iter().map(rows).sum(),
            shards: missing.len() as u64,
            began: Instant::now(),
            state: Mutex::new(State { summary, failed: 0, devices: BTreeMap::new() }),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A shard was read.
    pub(crate) fn read(&self, time: Duration) {
        self.state().summary.seconds.read += time.as_secs_f64();
    }

    /// A device labelled a batch; `retries` are all of that device so far.
    pub(crate) fn batch(&self, device: usize, batch: &Batch, retries: u64) {
        let mut state = self.state();
        let counts = state.devices.entry(device).or_default();
        *counts = (counts.0 + batch.tokens, retries);
        let Summary {
            sequences,
            tokens,
            padded_tokens,
            labelled_tokens,
            entropy,
            retained_mass,
            seconds,
            ..
        } = &mut state.summary;
        *sequences += batch.sequences;
        *tokens += batch.tokens;
        *padded_tokens += batch.padded_tokens;
        *labelled_tokens += batch.labelled_tokens;
        *entropy += batch.entropy;
        *retained_mass += batch.retained_mass;
        seconds.forward += batch.forward_seconds;
        seconds.head += batch.head_seconds;
        self.tell(&state, device);
    }

    /// A shard could not be labelled: the run ends.
    pub(crate) fn failed(&self) {
        let mut state = self.state();
        state.failed += 1;
        self.tell(&state, 0);
    }

    fn tell(&self, state: &State, device: usize) {
        let summary = &state.summary;
        self.observer.progress(&Progress {
            stage: STAGE,
            split: Some(&self.split),
            worker: Some(device as u64),
            done: summary.sequences,
            total: self.sequences,
            unit: "sequences",
            tokens: Some(summary.tokens),
            scalars: &[
                ("worker_tokens", state.devices.get(&device).map_or(0, |counts| counts.0).into()),
                ("labelled_tokens", summary.labelled_tokens.into()),
                ("shards_done", summary.new_shards.into()),
                ("shards_total", self.shards.into()),
                ("shards_failed", state.failed.into()),
                ("retries", state.retries().into()),
            ],
        });
    }

    /// A shard was committed, with this file if it was the first.
    pub(crate) fn committed(&self, shard: &Shard, record: &ShardRecord, seconds: Seconds) {
        let mut state = self.state();
        state.summary.new_shards += 1;
        state.summary.new_bytes += record.bytes;
        state.summary.seconds.write += seconds.write;
        state.summary.seconds.commit += seconds.commit;
        let Shard { index, seconds: taken, batches, .. } = shard;
        let labelled = batches.labelled_tokens.max(1) as f64;
        let padding = 1.0 - batches.tokens as f64 / batches.padded_tokens.max(1) as f64;
        self.observer.metrics(&Metrics {
            stage: STAGE,
            split: &self.split,
            // Of all runs of this part: a resumed one goes on.
            step: (state.summary.own_shards + state.summary.new_shards) as u64 - self.shards,
            scalars: &[
                ("shard", (*index).into()),
                ("tokens", batches.tokens.into()),
                ("labelled_tokens", batches.labelled_tokens.into()),
                ("tokens_per_second", (batches.tokens as f64 / taken.max(1e-9)).into()),
                ("mean_entropy_nats", (batches.entropy / labelled).into()),
                ("retained_mass", (batches.retained_mass / labelled).into()),
                ("padding", padding.into()),
                ("bytes", record.bytes.into()),
                ("busy_share", ((batches.forward_seconds + batches.head_seconds) / taken.max(1e-9)).into()),
                ("retries", state.retries().into()),
            ],
        });
    }

    /// Whether all shards were committed.
    pub(crate) fn is_done(&self) -> bool {
        self.state().summary.new_shards as u64 == self.shards
    }

    /// A stop that was asked for, with what is left to do.
    pub(crate) fn stopped(&self) -> anyhow::Error {
        let state = self.state();
        let Summary { new_shards, sequences, .. } = state.summary;
        let seconds = self.began.elapsed().as_secs_f64();
        let left = self.sequences.saturating_sub(sequences) as f64 * seconds / sequences.max(1) as f64;
        let message = format!(
            "teacher-labels stopped at a shard boundary: {new_shards} of {} shards were labelled now, the others take about \
             {:.1} hours at this speed\nhint: run again to go on",
            self.shards,
            left / 3600.0,
        );
        io::Error::new(io::ErrorKind::Interrupted, message).into()
    }

    /// What the run did.
    pub(crate) fn end(self, labellers: &[Labeller]) -> Summary {
        let state = self.state.into_inner().unwrap_or_else(PoisonError::into_inner);
        let retries = state.retries();
        let mut summary = state.summary;
        let labelling = self.began.elapsed().as_secs_f64();
        summary.retries = retries;
        summary.devices = labellers.len();
        summary.seconds.labelling = labelling;
        summary.seconds.busy_share =
            (summary.seconds.forward + summary.seconds.head) / (labelling * labellers.len() as f64).max(1e-9);
        summary
    }
}

impl State {
    fn retries(&self) -> u64 {
        self.devices.values().map(|counts| counts.1).sum()
    }
}
