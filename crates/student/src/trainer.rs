//! The state of a run, and its checkpoints.

mod finish;
mod held_out;
mod step;

use std::{fs::File, path::PathBuf, sync::Arc, time::Instant};

use anyhow::{Context, Result};
use burn::tensor::Tensor;
use softshard_labels::Provenance;
use softshard_model::{Decoder, Fitting};

pub use finish::Summary;

use crate::{
    average::Average,
    checkpoint::{self, AVERAGES, Checkpoint, MOMENTS, Progress, TRAINABLE},
    evaluation::HeldOutData,
    examples::Examples,
    identity,
    inputs::TrainInputs,
    metrics::Curve,
    optimizer::Optimizer,
    pass::{Breakdown, lap},
    replicas::Replicas,
    schedule::LearningRate,
};

/// The way out where numbers are not finite.
const TRAIN_GENTLER: &str =
    "train with a lower `learning_rate` into another output; checkpoints of earlier steps are as they were";

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
    curve: Curve<'a>,
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
            curve: Curve::open(inputs.output, inputs.stage, inputs.observer, step, metrics_bytes)?,
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

    /// What is due after the last step: an evaluation, a checkpoint. Whether it is done: it may be told to
    /// stop meanwhile.
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
        self.progress.metrics_bytes = self.curve.sync(self.progress.step)?;
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
}

fn checkpoints(inputs: &TrainInputs) -> PathBuf {
    inputs.output.join("checkpoints")
}
