//! What a step computes, and its gradients over some of its micro-batches.

use std::ops::Range;

use anyhow::Result;
use rayon::prelude::*;
use softshard_losses::DistillLoss;
use softshard_model::Decoder;

use crate::{batches::Batch, config::Checkpointing, pass::Pass};

/// One step: the same for every device that computes a part of it.
pub(crate) struct Step {
    /// Its micro-batches, in the order in which their gradients are summed.
    pub(crate) batches: Vec<Batch>,
    pub(crate) loss: DistillLoss,
    pub(crate) checkpointing: Checkpointing,
    /// Of each micro-batch.
    pub(crate) dropout_seeds: Vec<u64>,
    /// Labelled tokens of the whole step.
    pub(crate) divide_by: f64,
}

impl Step {
    /// Tokens that are scored, in all of its micro-batches.
    pub(crate) fn labelled_tokens(&self) -> usize {
        self.batches.iter().map(|batch| batch.targets.len()).sum()
    }

    /// Forward and backward over these micro-batches, all at a time.
    ///
    /// # Errors
    /// Streamed weights cannot be read.
    pub(crate) fn passes(&self, decoder: &Decoder, batches: Range<usize>) -> Result<Vec<Pass>> {
        let pass = |index: usize| {
            let (batch, seed) = (&self.batches[index], self.dropout_seeds[index]);
            Pass::over(batch, decoder, self.checkpointing, seed, &self.loss, self.divide_by)
        };
        Ok(match batches.len() {
            1 => vec![pass(batches.start)?],
            _ => batches.into_par_iter().map(pass).collect::<Result<_, _>>()?,
        })
    }
}
