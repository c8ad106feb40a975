//! The gradients of one step: its micro-batches, some at a time, summed.

use anyhow::Result;
use rayon::prelude::*;
use softshard_losses::DistillLoss;
use softshard_model::Decoder;

use crate::{batches::Batch, config::Checkpointing, pass::Pass};

/// What all micro-batches of a step share.
pub(crate) struct StepTask<'a> {
    pub(crate) loss: &'a DistillLoss,
    pub(crate) checkpointing: Checkpointing,
    /// Of each micro-batch by its index.
    pub(crate) dropout_seeds: &'a (dyn Fn(usize) -> u64 + Sync),
    /// Labelled tokens of the whole step.
    pub(crate) divide_by: f64,
}

/// Forward and backward over every micro-batch, `workers` at a time.
///
/// # Errors
/// Streamed weights cannot be read.
pub(crate) fn of_step(
    decoder: &Decoder,
    batches: &[Batch],
    task: &StepTask<'_>,
    workers: usize,
) -> Result<Pass> {
    let pass = |(index, batch): (usize, &Batch)| {
        let seed = (task.dropout_seeds)(index);
        Pass::over(batch, decoder, task.checkpointing, seed, task.loss, task.divide_by)
    };
    // Summed in the order of the micro-batches, not of the workers; the gradients of a few are held at a time.
    let mut sum = Pass::default();
    let numbered: Vec<(usize, &Batch)> = batches.iter().enumerate().collect();
    // Streamed layers are in memory once: one micro-batch at a time.
    let workers = if decoder.is_streamed() { 1 } else { workers };
    for group in numbered.chunks(workers) {
        let passes: Vec<Pass> = match group {
            [alone] => vec![pass(*alone)?],
            group => group.par_iter().copied().map(pass).collect::<Result<_, _>>()?,
        };
        passes.into_iter().for_each(|pass| sum.add(pass));
    }
    Ok(sum)
}
