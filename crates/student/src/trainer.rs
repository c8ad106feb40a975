//! The state of a run: steps, metrics, checkpoints and what it leaves behind.

use std::{
    path::{Path, PathBuf},
    time::Instant,
};

use anyhow::{Context, Result, ensure};
use burn::tensor::Tensor;
use fs_err as fs;
use serde::Serialize;
use serde_json::json;
use softshard_losses::DistillLoss;
use softshard_model::{Decoder, Precision};

use crate::{
    batches::Batch,
    checkpoint,
    config::{Checkpointing, Init, Objective, TrainConfig},
    examples::Examples,
    gradients::{self, StepTask},
    inputs::TrainInputs,
    metrics::{self, Metrics, Progress, StepMetrics},
    optimizer::{AdamW, Cosine, clip_global_norm},
    pass::{Breakdown, lap},
};

/// What belongs to a tokenizer in a Hugging Face folder; copied beside a newly trained model.
const TOKENIZER_FILES: [&str; 5] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "generation_config.json",
];

/// What a finished run did.
#[derive(Clone, Debug, Serialize)]
pub struct Summary {
    /// `adapter/` or `model/`.
    pub output: PathBuf,
    /// Optimizer steps of the whole run.
    pub steps: u64,
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
    /// Where the time went in this process.
    pub seconds: Breakdown,
}

/// A run in progress.
pub(crate) struct Trainer<'a> {
    inputs: &'a TrainInputs<'a>,
    pub(crate) decoder: &'a mut Decoder,
    optimizer: AdamW,
    schedule: Cosine,
    /// Steps taken.
    pub(crate) step: u64,
    identity: serde_json::Value,
    metrics: Metrics,
    tokens: u64,
    last_loss: Option<f64>,
    pub(crate) seconds: Breakdown,
    last_saved: Option<u64>,
}

impl<'a> Trainer<'a> {
    /// The state before the first step, or of the last checkpoint.
    pub(crate) fn start(
        inputs: &'a TrainInputs,
        decoder: &'a mut Decoder,
        examples: &Examples,
        total_steps: u64,
    ) -> Result<Self> {
        let config = inputs.config;
        fs::create_dir_all(inputs.output)?;
        let identity = identity(inputs, examples)?;
        let device = inputs.device.clone().autodiff();
        let optimizer = AdamW::new(
            config.weight_decay,
            decoder.parameters_mut().iter().map(|(_, parameter)| &**parameter),
        );
        let last = checkpoint::load_last(&checkpoints(inputs), &identity, &device)?;
        let (step, bytes) = last.as_ref().map_or((0, 0), |last| (last.state.step, last.state.metrics_bytes));
        let mut trainer = Trainer {
            inputs,
            optimizer,
            schedule: Cosine {
                peak: config.learning_rate,
                last: config.final_learning_rate,
                warmup_steps: config.warmup_steps,
                total_steps,
            },
            step: 0,
            metrics: Metrics::open(inputs.output, inputs.stage, &config.loss.divergence, step, bytes)?,
            tokens: 0,
            last_loss: None,
            seconds: Breakdown::default(),
            last_saved: None,
            decoder,
            identity,
        };
        if let Some(last) = last {
            trainer.restore(last)?;
            tracing::info!(
                stage = inputs.stage,
                step = trainer.step,
                total_steps,
                "resumed from a checkpoint"
            );
        }
        Ok(trainer)
    }

    fn restore(&mut self, last: checkpoint::Checkpoint) -> Result<()> {
        let missing = |name: &str| format!("checkpoint of step {} has no tensor `{name}`", last.state.step);
        for ((name, parameter), moments) in
            self.decoder.parameters_mut().into_iter().zip(&mut self.optimizer.moments)
        {
            let value = last.trainable.get(&name).with_context(|| missing(&name))?;
            *parameter = Tensor::from_inner(value.clone().inner()).require_grad();
            for (moment, part) in [(&mut moments.0, "first"), (&mut moments.1, "second")] {
                let key = format!("{name}.{part}");
                *moment = last.moments.get(&key).with_context(|| missing(&key))?.clone().inner();
            }
        }
        self.step = last.state.step;
        self.optimizer.steps = last.state.step;
        self.last_saved = Some(self.step);
        Ok(())
    }

    /// Forward and backward over every micro-batch, then one update; the loop `waited` so many seconds for them.
    pub(crate) fn take_step(&mut self, batches: &[Batch], waited: f64) -> Result<()> {
        let began = Instant::now();
        let labelled: usize = batches.iter().map(|batch| batch.targets.len()).sum();
        let loss = self.loss();
        let task = StepTask {
            loss: &loss,
            checkpointing: self.checkpointing(),
            dropout_seeds: &|index| self.dropout_seed(index),
            divide_by: as_f64(labelled),
        };
        let sum = gradients::of_step(self.decoder, batches, &task, self.inputs.workers)?;
        let place = format!("{} step {}", self.inputs.stage, self.step);
        ensure!(
            sum.cross_entropy.is_finite() && sum.kl.is_finite(),
            "{place}: expected a finite loss, found cross-entropy {} and KL {}\nhint: lower `learning_rate`, or check the \
             labels; the last checkpoint is intact",
            sum.cross_entropy,
            sum.kl
        );
        self.seconds.add(&sum.seconds);
        let updating = Instant::now();
        let gradient_norm = self.update(sum.gradients)?;
        lap(&mut self.seconds.update, updating);

        let tokens = batches.iter().map(Batch::tokens).sum::<usize>();
        let (cross_entropy, kl) = (sum.cross_entropy / as_f64(labelled), sum.kl / as_f64(labelled));
        let (cross_entropy_weight, kl_weight) = loss.weights();
        let seconds = waited + began.elapsed().as_secs_f64();
        self.seconds.read += waited;
        let metrics = StepMetrics {
            step: self.step + 1,
            loss: cross_entropy_weight * cross_entropy + kl_weight * loss.temperature.powi(2) * kl,
            cross_entropy,
            divergence: (loss.alpha > 0.0).then_some(kl),
            alpha: loss.alpha,
            learning_rate: self.schedule.at(self.step),
            gradient_norm,
            tokens,
            labelled_tokens: labelled,
            tokens_per_second: as_f64(tokens) / seconds,
            stall_share: waited / seconds,
            memory_bytes: metrics::used_bytes(),
        };
        self.step += 1;
        self.tokens += tokens as u64;
        self.last_loss = Some(metrics.loss);
        self.report(&metrics)
    }

    /// The loss of the next step.
    fn loss(&self) -> DistillLoss {
        let TrainConfig { loss, rows_per_chunk, .. } = self.inputs.config;
        let alpha = match self.inputs.objective {
            Objective::Supervised => 0.0,
            Objective::Distill | Objective::Pretrain => loss.alpha.at(self.step, self.schedule.total_steps),
        };
        DistillLoss {
            alpha,
            temperature: loss.temperature,
            normalise: loss.normalise,
            rows_per_chunk: *rows_per_chunk,
        }
    }

    /// Streamed layers cannot stay for the backward pass.
    fn checkpointing(&self) -> Checkpointing {
        if self.decoder.is_streamed() { Checkpointing::Layer } else { self.inputs.config.checkpointing }
    }

    /// Different for every micro-batch of the run, and the same when it is run again.
    fn dropout_seed(&self, index: usize) -> u64 {
        let number = self.step * self.inputs.config.accumulate_batches as u64 + index as u64;
        self.inputs.config.seed ^ number.wrapping_mul(0x9E37_79B9_7F4A_7C15)
    }

    /// Clips, steps the optimizer and returns the gradients' norm.
    fn update(&mut self, mut gradients: Vec<Tensor<2>>) -> Result<f64> {
        let learning_rate = self.schedule.at(self.step);
        let norm = clip_global_norm(&mut gradients, self.inputs.config.clip_norm);
        ensure!(norm.is_finite(), "{} step {}: the gradients are not finite", self.inputs.stage, self.step);
        self.optimizer.step(learning_rate, &mut self.decoder.parameters_mut(), gradients);
        Ok(norm)
    }

    /// metrics.jsonl, progress, and a checkpoint when one is due.
    fn report(&mut self, metrics: &StepMetrics) -> Result<()> {
        let began = Instant::now();
        let progress = Progress { total_steps: self.schedule.total_steps, tokens: self.tokens };
        self.metrics.step(metrics, &progress)?;
        let every = self.inputs.config.checkpoint_every_steps;
        if every > 0 && self.step.is_multiple_of(every) {
            self.checkpoint()?;
        }
        lap(&mut self.seconds.write, began);
        Ok(())
    }

    pub(crate) fn checkpoint(&mut self) -> Result<()> {
        if self.last_saved == Some(self.step) {
            return Ok(());
        }
        let metrics_bytes = self.metrics.sync(self.step)?;
        let named: Vec<_> =
            self.decoder.parameters_mut().into_iter().map(|(name, value)| (name, value.clone())).collect();
        let moments: Vec<_> = named
            .iter()
            .zip(&self.optimizer.moments)
            .flat_map(|((name, _), (first, second))| {
                [(format!("{name}.first"), first.clone()), (format!("{name}.second"), second.clone())]
            })
            .collect();
        let trainable: Vec<_> = named.into_iter().map(|(name, value)| (name, value.inner())).collect();
        checkpoint::save(
            &checkpoints(self.inputs),
            self.step,
            metrics_bytes,
            self.identity.clone(),
            &trainable,
            &moments,
        )?;
        self.last_saved = Some(self.step);
        Ok(())
    }

    /// The last checkpoint, then the adapter or the model.
    pub(crate) fn finish(mut self, sequences: usize) -> Result<Summary> {
        let began = Instant::now();
        self.checkpoint()?;
        self.decoder.set_dropout_seed(None);
        let output = if self.inputs.config.lora.is_some() {
            let output = self.inputs.output.join("adapter");
            self.decoder.save_adapter(&output, &self.inputs.config.model.to_string_lossy())?;
            output
        } else {
            let output = self.inputs.output.join("model");
            self.decoder.save(&output)?;
            copy_tokenizer(self.inputs.tokenizer_folder, &output)?;
            output
        };
        lap(&mut self.seconds.write, began);
        Ok(Summary {
            output,
            steps: self.step,
            sequences,
            trained_parameters: self.decoder.trainable_count(),
            parameters: self.decoder.parameter_count(),
            tokens: self.tokens,
            last_loss: self.last_loss,
            seconds: self.seconds,
        })
    }
}

fn checkpoints(inputs: &TrainInputs) -> PathBuf {
    inputs.output.join("checkpoints")
}

#[expect(clippy::cast_precision_loss, reason = "token counts are far below 2^53")]
fn as_f64(tokens: usize) -> f64 {
    tokens as f64
}

/// Everything that decides the numbers of a run, but not where its files lie, nor what is in memory meanwhile.
fn identity(inputs: &TrainInputs, examples: &Examples) -> Result<serde_json::Value> {
    let config = inputs.config;
    let mut recipe = serde_json::to_value(config)?;
    if let Some(map) = recipe.as_object_mut() {
        for key in ["model", "checkpoint_every_steps", "residency", "checkpointing"] {
            map.remove(key);
        }
        // What is not said is as it was before there were such keys.
        if config.precision == Precision::F32 {
            map.remove("precision");
        }
        if config.quantise.is_none() {
            map.remove("quantise");
        }
    }
    let weights = match config.init {
        Init::Pretrained => softshard_model::weights_blake3(&config.model)?,
        Init::Random => softshard_model::config_blake3(&config.model)?,
    };
    Ok(
        json!({ "config": recipe, "objective": inputs.objective, "data_manifest_blake3": examples.manifest_blake3(), "model_blake3": weights }),
    )
}

fn copy_tokenizer(from: &Path, to: &Path) -> Result<()> {
    for name in TOKENIZER_FILES {
        if from.join(name).exists() {
            fs::copy(from.join(name), to.join(name))?;
        }
    }
    Ok(())
}
