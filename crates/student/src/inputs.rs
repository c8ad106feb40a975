//! What a run is given.

use std::{path::Path, sync::atomic::AtomicBool};

use burn::tensor::Device;
use softshard_labels::{Difference, Observer, OwnTokenizer};

use crate::config::{Mixed, Objective, TrainConfig};

/// What a run reads and where it writes.
pub struct TrainInputs<'a> {
    /// Recipe section.
    pub config: &'a TrainConfig,
    /// The section's objective, or the stage's own.
    pub objective: Objective,
    /// Name of the stage in logs, progress and metrics.
    pub stage: &'static str,
    /// Label datasets, or the one sequence dataset, as [`Objective::reads_labels`] says; one at least.
    pub data: &'a [Mixed],
    /// Name of the recipe's prompt template; a dataset of another one is refused, among several it is said.
    pub template: &'a str,
    /// Folder with the tokenizer's files, copied beside a whole model.
    pub tokenizer_folder: &'a Path,
    /// That tokenizer; data of one with other ids is refused.
    pub tokenizer: &'a OwnTokenizer,
    /// Differences between the recipe and the data that were taken all the same: kept in what the run makes.
    pub accepted: &'a [Difference],
    /// Receives `adapter/` or `model/`, `checkpoints/` and `metrics.jsonl`.
    pub output: &'a Path,
    /// Where it computes: each without autodiff, which the loop adds, and with the micro-batches of a step that are computed at a
    /// time on it, which are the cores of a CPU, 1 on a GPU. The first has the optimizer and all that is summed.
    pub devices: &'a [(Device, usize)],
    /// Set to stop at the next step with a checkpoint.
    pub stop: &'a AtomicBool,
    /// Sees the progress and the metrics of each step and evaluation, and when a checkpoint is to be written.
    pub observer: &'a dyn Observer,
}

impl TrainInputs<'_> {
    /// Batches that are computed at a time where the first device is the only one that computes.
    pub(crate) fn workers(&self) -> usize {
        let first = &self.devices[0].0;
        self.devices.iter().filter(|(device, _)| device == first).map(|(_, workers)| workers).sum()
    }
}
