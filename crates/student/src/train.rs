//! The training loop: one for distillation, fine-tuning and pretraining.

use std::{
    io::{self, Write},
    path::{Path, PathBuf},
    sync::{
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread,
    time::Instant,
};

use anyhow::{Context, Result, ensure};
use burn::tensor::{Device, Tensor};
use fs_err as fs;
use rayon::prelude::*;
use serde::Serialize;
use serde_json::json;
use softshard_labels::{Error, Tokenizer};
use softshard_losses::DistillLoss;
use softshard_model::{Decoder, DecoderConfig, Trainable};

use crate::{
    batches::{self, Batch},
    checkpoint,
    config::{Init, Objective, TrainConfig},
    examples::Examples,
    optimizer::{AdamW, Cosine, clip_global_norm},
};

/// Steps that the reader may be ahead of the device.
const PREFETCHED_STEPS: usize = 4;
/// What belongs to a tokenizer in a Hugging Face folder; copied beside a newly trained model.
const TOKENIZER_FILES: [&str; 5] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "generation_config.json",
];

/// What a run reads and where it writes.
pub struct TrainInputs<'a> {
    /// Recipe section.
    pub config: &'a TrainConfig,
    /// The section's objective, or the stage's own.
    pub objective: Objective,
    /// Name of the stage in logs and progress.
    pub stage: &'static str,
    /// Label dataset (`distill`) or sequence dataset (`supervised`).
    pub data: &'a Path,
    /// Folder with the tokenizer's files, copied beside a whole model.
    pub tokenizer_folder: &'a Path,
    /// Fingerprint of that tokenizer; data of another one is refused.
    pub tokenizer: &'a Tokenizer,
    /// Receives `adapter/` or `model/`, `checkpoints/` and `metrics.jsonl`.
    pub output: &'a Path,
    /// A device without autodiff; the loop adds it.
    pub device: &'a Device,
    /// Micro-batches of a step that are computed at a time: the cores of a CPU, 1 on a GPU.
    pub workers: usize,
    /// Set to stop at the next step with a checkpoint.
    pub stop: &'a AtomicBool,
}

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
    /// All parameters of the model, the adapter's included.
    pub parameters: usize,
    /// Tokens that went through the model in this process, without padding.
    pub tokens: u64,
    /// Loss of the last step, nats per labelled token.
    pub last_loss: Option<f64>,
    /// Where the time went in this process.
    pub seconds: Breakdown,
}

/// Seconds by part; `forward`, `head` and `backward` are summed over the workers.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Breakdown {
    /// Waiting for the reader.
    pub read: f64,
    /// Embedding and layers.
    pub forward: f64,
    /// Logits and loss, with the gradient of the hidden states.
    pub head: f64,
    /// Gradients of the layers.
    pub backward: f64,
    /// Clipping and the optimizer.
    pub update: f64,
    /// Checkpoints and metrics.
    pub write: f64,
    /// The loop, from its first step to its last.
    pub total: f64,
}

/// One line of metrics.jsonl; losses are nats per labelled token.
#[derive(Serialize)]
struct StepMetrics {
    step: u64,
    loss: f64,
    cross_entropy: f64,
    kl: f64,
    learning_rate: f64,
    gradient_norm: f64,
    tokens: usize,
    labelled_tokens: usize,
    tokens_per_second: f64,
}

/// Trains, resuming from the last checkpoint of the same run if there is one.
///
/// # Errors
/// Data of another tokenizer or over the model's context, a non-finite loss, damaged data, I/O. A stop that was asked
/// for is an [`io::ErrorKind::Interrupted`]: a checkpoint was written, run again to go on.
pub fn run(inputs: &TrainInputs) -> Result<Summary> {
    let config = inputs.config;
    let examples = Examples::open(inputs.data, inputs.objective, config.loss.temperature)?;
    let mut decoder = first_weights(config, &inputs.device.clone().autodiff())?;
    check_fit(&examples, inputs, &decoder)?;

    let steps = Steps::new(config, &examples);
    let began = Instant::now();
    let mut trainer = Trainer::start(inputs, &mut decoder, &examples, steps.len())?;
    thread::scope(|scope| -> Result<()> {
        let vocabulary = trainer.decoder.config().vocab_size;
        let batches = prefetch(scope, &examples, &steps, trainer.step, vocabulary);
        loop {
            let waited = Instant::now();
            let Ok(step) = batches.recv() else { return Ok(()) };
            trainer.seconds.read += waited.elapsed().as_secs_f64();
            if inputs.stop.load(Ordering::Relaxed) {
                trainer.checkpoint()?;
                let place = format!("{} stopped after step {} with a checkpoint", inputs.stage, trainer.step);
                return Err(io::Error::new(
                    io::ErrorKind::Interrupted,
                    format!("{place}\nhint: run again to go on"),
                )
                .into());
            }
            trainer.take_step(&step?)?;
        }
    })?;
    lap(&mut trainer.seconds.total, began);
    trainer.finish(examples.token_counts().len())
}

/// The model to train: all its weights, or adapters over frozen ones.
fn first_weights(config: &TrainConfig, device: &Device) -> Result<Decoder> {
    let mut decoder = match config.init {
        Init::Pretrained => Decoder::load(&config.model, device)?,
        Init::Random => Decoder::random(DecoderConfig::load(&config.model)?, config.seed, device),
    };
    match &config.lora {
        Some(lora) => {
            decoder.attach_lora(lora, config.seed)?;
            decoder.train(Trainable::Adapter);
        }
        None => decoder.train(Trainable::Model),
    }
    Ok(decoder)
}

/// Refuses data that this model cannot read.
fn check_fit(examples: &Examples, inputs: &TrainInputs, decoder: &Decoder) -> Result<(), Error> {
    let (data, model) = (format!("`{}`", inputs.data.display()), &inputs.config.model);
    inputs.tokenizer.expect_same(examples.tokenizer(), &data)?;
    inputs.tokenizer.expect_fits(model, decoder.config().vocab_size)?;
    let (longest, limit) = (examples.longest(), decoder.config().max_position_embeddings);
    if longest > limit {
        let expected = format!("sequences of at most the {limit} positions of model `{}`", model.display());
        return Err(Error::bad(data, expected, longest).hint("set `data.max_tokens` and prepare again"));
    }
    Ok(())
}

/// Every step of the run as the micro-batches it sums over.
struct Steps(Vec<Vec<Vec<usize>>>);

impl Steps {
    fn new(config: &TrainConfig, examples: &Examples) -> Self {
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

    fn len(&self) -> u64 {
        self.0.len() as u64
    }
}

/// Reads and collates the steps from `first` on, on a thread of its own.
fn prefetch<'scope>(
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
            let read_one = |&index: &usize| {
                let mut example = examples.read(index)?;
                example.targets.fold_ids_from(vocabulary);
                Ok(example)
            };
            let read = |batch: &Vec<usize>| -> Result<Batch> {
                Ok(Batch::new(batch.iter().map(read_one).collect::<Result<Vec<_>>>()?))
            };
            if sender.send(step.iter().map(read).collect()).is_err() {
                return; // the loop ended early
            }
        }
    });
    receiver
}

/// What forward and backward over some micro-batches gave.
#[derive(Default)]
struct Pass {
    cross_entropy: f64,
    kl: f64,
    /// In the order of the parameters.
    gradients: Vec<Tensor<2>>,
    seconds: Breakdown,
}

impl Pass {
    fn add(&mut self, other: Pass) {
        self.cross_entropy += other.cross_entropy;
        self.kl += other.kl;
        self.gradients = if self.gradients.is_empty() {
            other.gradients
        } else {
            let mine = std::mem::take(&mut self.gradients);
            mine.into_iter().zip(other.gradients).map(|(sum, gradient)| sum + gradient).collect()
        };
        self.seconds.add(&other.seconds);
    }
}

impl Breakdown {
    /// Adds the parts that workers measure.
    fn add(&mut self, other: &Breakdown) {
        self.forward += other.forward;
        self.head += other.head;
        self.backward += other.backward;
    }
}

struct Trainer<'a> {
    inputs: &'a TrainInputs<'a>,
    decoder: &'a mut Decoder,
    optimizer: AdamW,
    schedule: Cosine,
    loss: DistillLoss,
    /// Steps taken.
    step: u64,
    identity: serde_json::Value,
    metrics: fs::File,
    metrics_bytes: u64,
    tokens: u64,
    last_loss: Option<f64>,
    seconds: Breakdown,
    last_saved: Option<u64>,
}

impl<'a> Trainer<'a> {
    /// The state before the first step, or of the last checkpoint.
    fn start(
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
        let alpha = if inputs.objective == Objective::Distill { config.loss.alpha } else { 0.0 };
        let mut trainer = Trainer {
            inputs,
            optimizer,
            schedule: Cosine {
                peak: config.learning_rate,
                last: config.final_learning_rate,
                warmup_steps: config.warmup_steps,
                total_steps,
            },
            loss: DistillLoss {
                alpha,
                temperature: config.loss.temperature,
                normalise: config.loss.normalise,
                rows_per_chunk: config.rows_per_chunk,
            },
            step: 0,
            metrics: fs::OpenOptions::new()
                .create(true)
                .append(true)
                .open(inputs.output.join("metrics.jsonl"))?,
            metrics_bytes: 0,
            tokens: 0,
            last_loss: None,
            seconds: Breakdown::default(),
            last_saved: None,
            decoder,
            identity,
        };
        if let Some(last) = checkpoint::load_last(&trainer.checkpoints(), &trainer.identity, &device)? {
            trainer.restore(last)?;
            tracing::info!(
                stage = inputs.stage,
                step = trainer.step,
                total_steps,
                "resumed from a checkpoint"
            );
        }
        // Lines of steps after the checkpoint belong to an attempt that was cut off.
        trainer.metrics.set_len(trainer.metrics_bytes)?;
        Ok(trainer)
    }

    fn checkpoints(&self) -> PathBuf {
        self.inputs.output.join("checkpoints")
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
        self.metrics_bytes = last.state.metrics_bytes;
        self.last_saved = Some(self.step);
        Ok(())
    }

    /// Forward and backward over every micro-batch, then one update.
    fn take_step(&mut self, batches: &[Batch]) -> Result<()> {
        let began = Instant::now();
        let labelled: usize = batches.iter().map(|batch| batch.targets.len()).sum();
        let backward = |(index, batch)| self.backward(index, batch, labelled);
        let passes: Vec<Result<Pass>> = if self.inputs.workers > 1 {
            batches.par_iter().enumerate().map(backward).collect()
        } else {
            batches.iter().enumerate().map(backward).collect()
        };
        // In the order of the micro-batches, so that the sums do not depend on which was faster.
        let mut sum = Pass::default();
        for pass in passes {
            sum.add(pass?);
        }
        self.seconds.add(&sum.seconds);
        let updating = Instant::now();
        let gradient_norm = self.update(sum.gradients)?;
        lap(&mut self.seconds.update, updating);

        let tokens = batches.iter().map(Batch::tokens).sum::<usize>();
        let (cross_entropy, kl) = (sum.cross_entropy / as_f64(labelled), sum.kl / as_f64(labelled));
        let (cross_entropy_weight, kl_weight) = self.loss.weights();
        let metrics = StepMetrics {
            step: self.step,
            loss: cross_entropy_weight * cross_entropy + kl_weight * self.loss.temperature.powi(2) * kl,
            cross_entropy,
            kl,
            learning_rate: self.schedule.at(self.step),
            gradient_norm,
            tokens,
            labelled_tokens: labelled,
            tokens_per_second: as_f64(tokens) / began.elapsed().as_secs_f64(),
        };
        self.step += 1;
        self.tokens += tokens as u64;
        self.last_loss = Some(metrics.loss);
        self.report(&metrics)
    }

    /// One micro-batch, its gradients divided by the `labelled` tokens of the whole step.
    fn backward(&self, index: usize, batch: &Batch, labelled: usize) -> Result<Pass> {
        let mut pass = Pass::default();
        let began = Instant::now();
        // Leaves of its own, so that micro-batches share no graph and can run at the same time.
        let mut decoder = self.decoder.clone();
        for (_, parameter) in decoder.parameters_mut() {
            *parameter = Tensor::from_inner(parameter.clone().inner()).require_grad();
        }
        let number = self.step * self.inputs.config.accumulate_batches as u64 + index as u64;
        decoder.set_dropout_seed(Some(self.inputs.config.seed ^ number.wrapping_mul(0x9E37_79B9_7F4A_7C15)));
        let sequences: Vec<&[i32]> = batch.input_ids.iter().map(Vec::as_slice).collect();
        let positions: Vec<&[i32]> = batch.positions.iter().map(Vec::as_slice).collect();
        let hidden = decoder.hidden_before(&sequences, &positions);
        let began = lap(&mut pass.seconds.forward, began);

        let value = self.loss.compute(hidden, decoder.head(), &batch.targets, as_f64(labelled));
        ensure!(
            value.cross_entropy_sum.is_finite() && value.kl_sum.is_finite(),
            "{} step {}: expected a finite loss, found cross-entropy {} and KL {}\nhint: lower `learning_rate`, or check the labels; the last checkpoint is intact",
            self.inputs.stage,
            self.step,
            value.cross_entropy_sum,
            value.kl_sum
        );
        (pass.cross_entropy, pass.kl) = (value.cross_entropy_sum, value.kl_sum);
        let began = lap(&mut pass.seconds.head, began);

        let found = value.loss.backward();
        let gradient = |(_, parameter): (String, &mut Tensor<2>)| {
            parameter.grad(&found).unwrap_or_else(|| parameter.clone().inner().zeros_like())
        };
        pass.gradients = decoder.parameters_mut().into_iter().map(gradient).collect();
        lap(&mut pass.seconds.backward, began);
        Ok(pass)
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
        let mut line = serde_json::to_vec(metrics)?;
        line.push(b'\n');
        self.metrics.write_all(&line)?;
        self.metrics_bytes += line.len() as u64;
        tracing::info!(
            target: "softshard::progress",
            stage = self.inputs.stage,
            done = self.step,
            total = self.schedule.total_steps,
            unit = "steps",
            tokens = self.tokens,
            loss = metrics.loss,
            cross_entropy = metrics.cross_entropy,
            kl = metrics.kl,
        );
        let every = self.inputs.config.checkpoint_every_steps;
        if every > 0 && self.step.is_multiple_of(every) {
            self.checkpoint()?;
        }
        lap(&mut self.seconds.write, began);
        Ok(())
    }

    fn checkpoint(&mut self) -> Result<()> {
        if self.last_saved == Some(self.step) {
            return Ok(());
        }
        self.metrics.sync_all()?;
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
            &self.checkpoints(),
            self.step,
            self.metrics_bytes,
            self.identity.clone(),
            &trainable,
            &moments,
        )?;
        self.last_saved = Some(self.step);
        Ok(())
    }

    /// The last checkpoint, then the adapter or the model.
    fn finish(mut self, sequences: usize) -> Result<Summary> {
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

#[expect(clippy::cast_precision_loss, reason = "token counts are far below 2^53")]
fn as_f64(tokens: usize) -> f64 {
    tokens as f64
}

/// Adds the time since `began` to `part` and starts the next lap.
fn lap(part: &mut f64, began: Instant) -> Instant {
    let now = Instant::now();
    *part += now.duration_since(began).as_secs_f64();
    now
}

/// Everything that decides the numbers of a run, but not where its files lie.
fn identity(inputs: &TrainInputs, examples: &Examples) -> Result<serde_json::Value> {
    let config = inputs.config;
    let mut recipe = serde_json::to_value(config)?;
    if let Some(map) = recipe.as_object_mut() {
        map.remove("model");
        map.remove("checkpoint_every_steps");
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
