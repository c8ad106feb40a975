//! What is kept of a step whose loss or gradient is not finite.

use std::path::PathBuf;

use anyhow::Result;
use fs_err as fs;
use serde::Serialize;
use softshard_labels::SequenceKey;

use crate::{batches::Batch, gradients::Step, inputs::TrainInputs};

/// `not-finite-step-<step>.json`: what the step read; values that are not finite are `null`.
#[derive(Serialize)]
struct Inspection<'a> {
    stage: &'a str,
    /// Steps taken before this one; the last checkpoint is of this step or an earlier one.
    step: u64,
    cross_entropy_sum: String,
    divergence_sum: String,
    gradient_norm: Option<String>,
    /// Of the distillation term, before the factors.
    alpha: f64,
    micro_batches: Vec<MicroBatch<'a>>,
}

#[derive(Serialize)]
struct MicroBatch<'a> {
    sequences: Vec<ReadSequence<'a>>,
    /// The teacher's entries, flat, position by position, sequence by sequence.
    counts: &'a [i32],
    token_ids: &'a [i32],
    log_probs: &'a [f32],
    tail_log_mass: &'a [f32],
    divergence_offset: &'a [f32],
    /// What alpha is multiplied by at each position.
    alpha_factors: &'a [f32],
    dropout_seed: u64,
}

#[derive(Serialize)]
struct ReadSequence<'a> {
    sequence_key: String,
    input_ids: &'a [i32],
    positions: &'a [i32],
}

impl<'a> MicroBatch<'a> {
    fn of((batch, &dropout_seed): (&'a Batch, &u64)) -> Self {
        let sequence = |(input_ids, positions): (&'a Vec<i32>, &'a Vec<i32>)| ReadSequence {
            sequence_key: SequenceKey::of(input_ids).to_string(),
            input_ids,
            positions,
        };
        MicroBatch {
            sequences: batch.input_ids.iter().zip(&batch.positions).map(sequence).collect(),
            counts: &batch.targets.counts,
            token_ids: &batch.targets.token_ids,
            log_probs: &batch.targets.log_probs,
            tail_log_mass: &batch.targets.tail_log_mass,
            divergence_offset: &batch.targets.divergence_offset,
            alpha_factors: &batch.targets.alpha_factors,
            dropout_seed,
        }
    }
}

/// What was found that is not finite; numbers as text, as JSON has no NaN.
pub(crate) struct NotFinite {
    pub(crate) cross_entropy_sum: f64,
    pub(crate) divergence_sum: f64,
    pub(crate) gradient_norm: Option<f64>,
}

/// Writes the step's micro-batches beside the metrics and returns the file.
///
/// # Errors
/// The file cannot be written.
pub(crate) fn save(inputs: &TrainInputs, step: u64, read: &Step, found: &NotFinite) -> Result<PathBuf> {
    let inspection = Inspection {
        stage: inputs.stage,
        step,
        cross_entropy_sum: found.cross_entropy_sum.to_string(),
        divergence_sum: found.divergence_sum.to_string(),
        alpha: read.loss.alpha,
        gradient_norm: found.gradient_norm.map(|norm| norm.to_string()),
        micro_batches: read.batches.iter().zip(&read.dropout_seeds).map(MicroBatch::of).collect(),
    };
    let path = inputs.output.join(format!("not-finite-step-{step:08}.json"));
    fs::write(&path, serde_json::to_vec(&inspection)?)?;
    Ok(path)
}
