//! A step: gradients of its micro-batches, clipped, and what learns moved along them.

use std::{sync::Arc, time::Instant};

use anyhow::{Error, Result, anyhow};
use burn::tensor::Tensor;
use softshard_losses::DistillLoss;

use super::{TRAIN_GENTLER, Trainer};
use crate::{
    batches::Batch,
    config::{Checkpointing, EvaluationConfig, Objective, TrainConfig},
    gradients::Step,
    inspection::{self, NotFinite},
    metrics::StepMetrics,
    optimizer::clip_global_norm,
    pass::{Pass, lap},
};

impl Trainer<'_> {
    /// Forward and backward over every micro-batch, and one update; the loop `waited` so many seconds for
    /// them.
    pub(crate) fn take_step(&mut self, batches: Vec<Batch>, waited: f64) -> Result<()> {
        let began = Instant::now();
        let step = Arc::new(self.next_step(batches));
        let mut sum = self.replicas.sum(&step)?;
        self.seconds.add(&sum.seconds);
        let updating = Instant::now();
        let gradient_norm = self.clip(&step, &mut sum)?;
        let learning_rate = self.update(std::mem::take(&mut sum.gradients));
        lap(&mut self.seconds.update, updating);
        self.seconds.read += waited;

        let seconds = waited + began.elapsed().as_secs_f64();
        let tokens = step.batches.iter().map(Batch::tokens).sum::<usize>();
        self.tell(&StepMetrics {
            step: self.progress.step,
            loss: sum.loss / step.divide_by,
            cross_entropy: sum.cross_entropy / step.divide_by,
            divergence: (step.loss.alpha > 0.0).then_some(sum.divergence / step.divide_by),
            alpha: step.loss.alpha,
            learning_rate,
            gradient_norm,
            tokens,
            labelled_tokens: step.labelled_tokens(),
            tokens_per_second: as_f64(tokens) / seconds,
            stall_share: waited / seconds,
            memory_bytes: softshard_model::used_bytes(&self.inputs.devices[0].0),
        })
    }

    /// What the step over these micro-batches computes.
    fn next_step(&self, batches: Vec<Batch>) -> Step {
        let mut step = Step {
            dropout_seeds: (0..batches.len()).map(|index| self.dropout_seed(index)).collect(),
            batches,
            loss: self.loss(),
            checkpointing: self.checkpointing(),
            divide_by: 1.0,
            fitting: Arc::clone(&self.fitting),
        };
        step.divide_by = as_f64(step.labelled_tokens());
        step
    }

    /// Clips the gradients; their norm before. What is not finite ends the run here, before it changes
    /// anything.
    fn clip(&self, step: &Step, sum: &mut Pass) -> Result<f64> {
        let mut found = NotFinite {
            cross_entropy_sum: sum.cross_entropy,
            divergence_sum: sum.divergence,
            gradient_norm: None,
        };
        if !sum.loss.is_finite() {
            return Err(self.refused(step, &found));
        }
        let norm = clip_global_norm(&mut sum.gradients, self.inputs.config.clip_norm);
        if !norm.is_finite() {
            found.gradient_norm = Some(norm);
            return Err(self.refused(step, &found));
        }
        Ok(norm)
    }

    /// Moves what learns, and its average, along the gradients; the learning rate. From here on the step is
    /// taken.
    fn update(&mut self, gradients: Vec<Tensor<2>>) -> f64 {
        let learning_rate = self.schedule.at(self.progress.step);
        self.progress.step += 1;
        self.optimizer.step(learning_rate, &mut self.replicas.first.parameters_mut(), gradients);
        if let Some(average) = &mut self.average {
            let parameters = self.replicas.first.parameters_mut();
            average.add(self.progress.step, parameters.iter().map(|(_, parameter)| &**parameter));
        }
        let (step, last) = (self.progress.step, self.schedule.total_steps);
        let due = |evaluation: &EvaluationConfig| step.is_multiple_of(evaluation.every_steps) || step == last;
        self.progress.evaluation_due = self.inputs.config.evaluation.as_ref().is_some_and(due);
        learning_rate
    }

    /// Says what the step that was taken came to.
    fn tell(&mut self, metrics: &StepMetrics) -> Result<()> {
        let writing = Instant::now();
        self.tokens += metrics.tokens as u64;
        self.last_loss = Some(metrics.loss);
        self.curve.step(metrics, self.schedule.total_steps, self.tokens)?;
        lap(&mut self.seconds.write, writing);
        Ok(())
    }

    /// The loss of the next step.
    fn loss(&self) -> DistillLoss {
        let TrainConfig { loss, rows_per_chunk, .. } = self.inputs.config;
        let alpha = match self.inputs.objective {
            Objective::Supervised => 0.0,
            Objective::Distill | Objective::Pretrain => {
                loss.alpha.at(self.progress.step, self.schedule.total_steps)
            }
        };
        loss.at(alpha, *rows_per_chunk)
    }

    /// Streamed layers cannot stay for the backward pass.
    fn checkpointing(&self) -> Checkpointing {
        if self.replicas.first.is_streamed() {
            Checkpointing::Layer
        } else {
            self.inputs.config.checkpointing
        }
    }

    /// Different for every micro-batch of the run, and the same when it is run again.
    fn dropout_seed(&self, index: usize) -> u64 {
        let of_step = self.progress.step.wrapping_mul(self.inputs.config.accumulate_batches as u64);
        let number = of_step.wrapping_add(index as u64);
        self.inputs.config.seed ^ number.wrapping_mul(0x9E37_79B9_7F4A_7C15)
    }

    /// Keeps the step for inspection; the error that ends the run before the optimizer uses it.
    fn refused(&self, read: &Step, found: &NotFinite) -> Error {
        let (stage, step) = (self.inputs.stage, self.progress.step);
        let what = match found.gradient_norm {
            Some(norm) => format!("gradients, found a norm of {norm}"),
            None => format!(
                "loss, found a cross-entropy of {} and a divergence of {}",
                found.cross_entropy_sum, found.divergence_sum
            ),
        };
        let kept = match inspection::save(self.inputs, step, read, found) {
            Ok(kept) => {
                format!("the step's sequences and labels are in `{}`: look at them, or", kept.display())
            }
            Err(error) => format!("the step's sequences and labels could not be kept ({error});"),
        };
        anyhow!("{stage} step {step}: expected a finite {what}\nhint: {kept} {TRAIN_GENTLER}")
    }
}

#[expect(clippy::cast_precision_loss, reason = "token counts are far below 2^53")]
fn as_f64(tokens: usize) -> f64 {
    tokens as f64
}
