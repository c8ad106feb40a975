//! The state of a run: steps, evaluations, checkpoints and what it leaves behind.

use std::{
    fs::File,
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Instant,
};

use anyhow::{Context, Error, Result, anyhow, bail};
use burn::tensor::Tensor;
use fs_err as fs;
use serde::Serialize;
use softshard_labels::Provenance;
use softshard_losses::DistillLoss;
use softshard_model::{Decoder, Fitting};

use crate::{
    average::Average,
    batches::Batch,
    checkpoint::{self, AVERAGES, Best, Checkpoint, MOMENTS, Progress, TRAINABLE},
    config::{Checkpointing, EvaluationConfig, Export, Metric, Objective, TrainConfig},
    evaluation::HeldOutData,
    examples::Examples,
    gradients::Step,
    identity,
    inputs::TrainInputs,
    inspection::{self, NotFinite},
    metrics::{self, Metrics, StepMetrics},
    optimizer::{Optimizer, clip_global_norm},
    pass::{Breakdown, Pass, lap},
    replicas::Replicas,
    schedule::LearningRate,
};

/// What belongs to a tokenizer in a Hugging Face folder; copied beside a newly trained model.
const TOKENIZER_FILES: [&str; 5] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "generation_config.json",
];

/// The way out where numbers are not finite.
const TRAIN_GENTLER: &str =
    "train with a lower `learning_rate` into another output; checkpoints of earlier steps are as they were";

/// What a finished run did.
#[derive(Clone, Debug, Serialize)]
pub struct Summary {
    /// `adapter/` or `model/`.
    pub output: PathBuf,
    /// Optimizer steps of the whole run.
    pub steps: u64,
    /// Steps that it was planned to have: more, if it ended early.
    pub planned_steps: u64,
    /// Sequences in the data.
    pub sequences: usize,
    /// Parameters that were trained, and all.
    pub trained_parameters: usize,
    /// Parameters of the model, without the adapter.
    pub parameters: usize,
    /// Tokens that went through the model in this process, without padding.
    pub tokens: u64,
    /// Loss of the last step, nats per labelled token.
    pub last_loss: Option<f64>,
    /// The best evaluation on held-out data.
    pub best: Option<Best>,
    /// Step whose weights were written.
    pub exported_step: u64,
    /// Where the time went in this process.
    pub seconds: Breakdown,
}

/// A run in progress.
pub(crate) struct Trainer<'a> {
    inputs: &'a TrainInputs<'a>,
    pub(crate) replicas: Replicas,
    optimizer: Optimizer,
    average: Option<Average>,
    schedule: LearningRate,
    held_out: Option<HeldOutData>,
    pub(crate) progress: Progress,
    provenance: Provenance,
    metrics: Metrics,
    tokens: u64,
    last_loss: Option<f64>,
    pub(crate) seconds: Breakdown,
    last_saved: Option<u64>,
    fitting: Arc<Fitting>,
    /// Held as long as the run.
    _lock: File,
}

impl<'a> Trainer<'a> {
    /// The state before the first step, or of the last checkpoint.
    pub(crate) fn start(
        inputs: &'a TrainInputs<'a>,
        lock: File,
        mut replicas: Replicas,
        examples: &Examples,
        held_out: Option<HeldOutData>,
        total_steps: u64,
    ) -> Result<Self> {
        let config = inputs.config;
        let judged_by = held_out.as_ref().map(|data| data.judged_by.clone()).unwrap_or_default();
        let parameters = replicas.first.parameters_mut();
        let average = |decay| Average::new(decay, parameters.iter().map(|(_, parameter)| &**parameter));
        let mut provenance = identity::of_run(inputs, examples)?;
        let last = checkpoint::load_last(&checkpoints(inputs), &provenance, &inputs.devices[0].0)?;
        identity::check_output(inputs, &provenance, last.is_some())?;
        if let Some(last) = &last {
            identity::resumed(&mut provenance, &last.state.run, inputs.stage);
        }
        let Progress { step, metrics_bytes, .. } =
            last.as_ref().map(|last| last.state.progress.clone()).unwrap_or_default();
        let mut trainer = Trainer {
            inputs,
            optimizer: Optimizer::new(config.optimizer, config.weight_decay, &parameters),
            average: config.ema_decay.map(average),
            schedule: LearningRate::of(config, total_steps),
            held_out,
            progress: Progress { judged_by, ..Progress::default() },
            provenance,
            metrics: Metrics::open(
                inputs.output,
                inputs.stage,
                &config.loss.divergence,
                step,
                metrics_bytes,
            )?,
            tokens: 0,
            last_loss: None,
            seconds: Breakdown::default(),
            last_saved: None,
            fitting: Arc::default(),
            replicas,
            _lock: lock,
        };
        if let Some(last) = last {
            trainer.restore(&last)?;
            tracing::info!(stage = inputs.stage, step, total_steps, "resumed from a checkpoint");
        }
        Ok(trainer)
    }

    fn restore(&mut self, last: &Checkpoint) -> Result<()> {
        let names = self.names();
        self.put_trained(last, TRAINABLE)?;
        last.fill(MOMENTS, self.optimizer.tensors_mut(&names))?;
        if let Some(average) = &mut self.average {
            last.fill(AVERAGES, names.into_iter().zip(&mut average.values))?;
        }
        self.progress = last.state.progress.clone();
        // A run that was killed may not have come to that.
        checkpoint::clean(&checkpoints(self.inputs))?;
        self.prune()?;
        self.optimizer.steps = self.progress.step;
        self.last_saved = Some(self.progress.step);
        let judged_by = self.held_out.as_ref().map_or(serde_json::Value::Null, |data| data.judged_by.clone());
        if let Some(best) = self.progress.best {
            let same = self.progress.judged_by == judged_by;
            if !same || !checkpoint::is_there(&checkpoints(self.inputs), best.step) {
                let why = if same { "its checkpoint is gone" } else { "it was judged by something else" };
                tracing::warn!(
                    stage = self.inputs.stage,
                    step = best.step,
                    "the best step is forgotten: {why}"
                );
                (self.progress.best, self.progress.evaluations_since_best) = (None, 0);
            }
        }
        self.progress.judged_by = judged_by;
        Ok(())
    }

    /// Sets what learns to the values of a checkpoint's file.
    fn put_trained(&mut self, from: &Checkpoint, file: &str) -> Result<()> {
        for (name, parameter) in self.replicas.first.parameters_mut() {
            *parameter = Tensor::from_inner(from.tensor(file, &name)?).require_grad();
        }
        Ok(())
    }

    /// The stage's name.
    pub(crate) fn stage(&self) -> &'static str {
        self.inputs.stage
    }

    /// Of what learns, in order.
    fn names(&mut self) -> Vec<String> {
        self.replicas.first.parameters_mut().into_iter().map(|(name, _)| name).collect()
    }

    /// Forward and backward over every micro-batch, and one update; the loop `waited` so many seconds for them.
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

    /// Clips the gradients; their norm before. What is not finite ends the run here, before it changes anything.
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

    /// Moves what learns, and its average, along the gradients; the learning rate. From here on the step is taken.
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

    /// Writes a line about the step that was taken.
    fn tell(&mut self, metrics: &StepMetrics) -> Result<()> {
        let writing = Instant::now();
        self.tokens += metrics.tokens as u64;
        self.last_loss = Some(metrics.loss);
        let progress = metrics::Progress { total_steps: self.schedule.total_steps, tokens: self.tokens };
        self.metrics.step(metrics, &progress)?;
        lap(&mut self.seconds.write, writing);
        Ok(())
    }

    /// What is due after the last step: an evaluation, a checkpoint. Whether it is done: it may be told to stop meanwhile.
    pub(crate) fn after_step(&mut self) -> Result<bool> {
        let mut improved = false;
        if self.progress.evaluation_due {
            let Some(better) = self.evaluate()? else { return Ok(false) };
            improved = better;
        }
        let (every, step) = (self.inputs.config.checkpoint_every_steps, self.progress.step);
        if improved || (every > 0 && step > 0 && step.is_multiple_of(every)) {
            let began = Instant::now();
            self.checkpoint()?;
            lap(&mut self.seconds.write, began);
        }
        Ok(true)
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

    /// Looks at held-out data; says whether it was never better, or nothing if it was told to stop.
    fn evaluate(&mut self) -> Result<Option<bool>> {
        let (Some(config), Some(held_out)) = (&self.inputs.config.evaluation, &self.held_out) else {
            return Ok(Some(false));
        };
        let (began, step) = (Instant::now(), self.progress.step);
        let Some(found) = held_out.look(&self.exported(), step, self.inputs.stop)? else { return Ok(None) };
        if !found.nll.is_finite() {
            let (stage, nll) = (self.inputs.stage, found.nll);
            let best = self
                .progress
                .best
                .map(|best| format!("the checkpoint of the best step so far, {}, is kept; ", best.step));
            bail!(
                "{stage} step {step}: expected a finite NLL on held-out data, found {nll}\nhint: {}{TRAIN_GENTLER}",
                best.unwrap_or_default()
            );
        }
        self.metrics.evaluation(&found)?;
        // What a checkpoint of this step has is no longer all.
        (self.progress.evaluation_due, self.last_saved) = (false, None);
        let value = match config.best_by {
            Metric::Nll => Some(found.nll),
            Metric::Kl => found.kl,
            Metric::Ece => Some(found.ece),
        };
        let best = self.progress.best;
        // A value that is not finite is never the best one.
        let better = |value: &f64| value.is_finite() && best.is_none_or(|best| *value < best.value);
        let improved = value.filter(better);
        match improved {
            Some(value) => {
                self.progress.best = Some(Best { step, value });
                self.progress.evaluations_since_best = 0;
            }
            None => self.progress.evaluations_since_best += 1,
        }
        lap(&mut self.seconds.evaluate, began);
        Ok(Some(improved.is_some()))
    }

    /// Whether held-out data has not become better for as long as the recipe's patience.
    pub(crate) fn out_of_patience(&self) -> bool {
        let patience = self.inputs.config.evaluation.as_ref().map_or(0, |evaluation| evaluation.patience);
        patience > 0 && self.progress.evaluations_since_best >= patience
    }

    /// The model that is evaluated and written: of the averages, if there are.
    fn exported(&self) -> Decoder {
        let mut decoder = self.replicas.first.clone();
        if let Some(average) = &self.average {
            for ((_, parameter), value) in decoder.parameters_mut().into_iter().zip(&average.values) {
                *parameter = value.clone();
            }
        }
        decoder.frozen()
    }

    pub(crate) fn checkpoint(&mut self) -> Result<()> {
        if self.last_saved == Some(self.progress.step) {
            return Ok(());
        }
        self.progress.metrics_bytes = self.metrics.sync(self.progress.step)?;
        let names = self.names();
        let parameters = self.replicas.first.parameters_mut().into_iter();
        let trainable = parameters.map(|(name, value)| (name, value.clone().inner())).collect();
        let mut files = vec![(TRAINABLE, trainable), (MOMENTS, self.optimizer.tensors(&names))];
        if let Some(average) = &self.average {
            files.push((AVERAGES, names.into_iter().zip(average.values.iter().cloned()).collect()));
        }
        let (stage, step) = (self.inputs.stage, self.progress.step);
        let run = serde_json::to_value(&self.provenance)?;
        checkpoint::save(&checkpoints(self.inputs), &self.progress, run, &files).with_context(|| {
            format!(
                "{stage} step {step}: no checkpoint could be written; those of earlier steps are as they were"
            )
        })?;
        self.last_saved = Some(step);
        checkpoint::discard_later(&checkpoints(self.inputs), step)?;
        self.prune()
    }

    /// Removes the checkpoints that need not be kept.
    fn prune(&self) -> Result<()> {
        let Progress { step, best, .. } = self.progress;
        checkpoint::prune(&checkpoints(self.inputs), step, best, self.inputs.config.keep_checkpoints)
    }

    /// The last checkpoint, then the adapter or the model.
    pub(crate) fn finish(mut self, sequences: usize) -> Result<Summary> {
        let began = Instant::now();
        self.checkpoint()?;
        let exported_step = self.exported_step();
        if exported_step != self.progress.step {
            let first = &self.inputs.devices[0].0;
            let best = checkpoint::load_step(&checkpoints(self.inputs), exported_step, first)?;
            self.put_trained(&best, if best.has_averages() { AVERAGES } else { TRAINABLE })?;
            self.average = None;
        }
        let trained_parameters = self.replicas.first.trainable_count();
        let decoder = self.exported();
        let output = self.inputs.output.join(identity::exported_name(self.inputs.config));
        if self.inputs.config.trains_adapter() {
            decoder.save_adapter(&output, &identity::base_name(&self.inputs.config.model))?;
        } else {
            decoder.save(&output)?;
            copy_tokenizer(self.inputs.tokenizer_folder, &output)?;
        }
        identity::exported(self.provenance, self.inputs.config, exported_step)?.write(&output)?;
        lap(&mut self.seconds.write, began);
        Ok(Summary {
            output,
            steps: self.progress.step,
            planned_steps: self.schedule.total_steps,
            sequences,
            trained_parameters,
            parameters: decoder.parameter_count(),
            tokens: self.tokens,
            last_loss: self.last_loss,
            best: self.progress.best,
            exported_step,
            seconds: self.seconds,
        })
    }

    /// The step whose weights are written.
    fn exported_step(&self) -> u64 {
        match (&self.inputs.config.evaluation, self.progress.best) {
            (Some(evaluation), Some(best)) if evaluation.export == Export::Best => best.step,
            _ => self.progress.step,
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "token counts are far below 2^53")]
fn as_f64(tokens: usize) -> f64 {
    tokens as f64
}

fn checkpoints(inputs: &TrainInputs) -> PathBuf {
    inputs.output.join("checkpoints")
}

/// Copies what is in the files and not their modes, to others beside that take their names: read-only ones, of a model cache or of
/// an earlier run, do not stand in the way.
fn copy_tokenizer(from: &Path, to: &Path) -> Result<()> {
    for name in TOKENIZER_FILES {
        if from.join(name).exists() {
            let beside = to.join(format!("{name}.tmp"));
            remove_if_there(&beside)?;
            fs::write(&beside, fs::read(from.join(name))?)?;
            fs::rename(&beside, to.join(name))?;
        }
    }
    Ok(())
}

fn remove_if_there(file: &Path) -> io::Result<()> {
    match fs::remove_file(file) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    /// As an earlier version left them, with the mode of a cache; also for a user who may write everything the mode is looked at.
    #[test]
    fn read_only_tokenizer_files_are_copied_again() {
        let (from, to) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
        for (folder, text) in [(from.path(), "new"), (to.path(), "old")] {
            for name in ["tokenizer.json", "tokenizer.json.tmp"] {
                fs::write(folder.join(name), text).expect("a file");
                fs::set_permissions(folder.join(name), PermissionsExt::from_mode(0o444)).expect("a mode");
            }
        }
        for _ in 0..2 {
            copy_tokenizer(from.path(), to.path()).expect("copied");
            let copy = to.path().join("tokenizer.json");
            assert_eq!(fs::read_to_string(&copy).expect("a copy"), "new");
            assert_ne!(
                fs::metadata(&copy).expect("a copy").permissions().mode() & 0o200,
                0,
                "its owner may write it"
            );
            assert!(!to.path().join("tokenizer.json.tmp").exists());
        }
    }
}
