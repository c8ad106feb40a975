//! The stage: open, check, step through the data, finish. One loop for distillation, fine-tuning and pretraining.

use std::{io, sync::atomic::Ordering, thread, time::Instant};

use anyhow::{Result, ensure};
use burn::tensor::Device;
use softshard_model::{Decoder, DecoderConfig, Trainable};

use crate::{
    config::{Init, TrainConfig},
    examples::Examples,
    inputs::TrainInputs,
    memory::MemoryPlan,
    pass::lap,
    replicas::Replicas,
    steps::{Steps, prefetch},
    trainer::{Summary, Trainer},
};

/// Trains, resuming from the last checkpoint of the same run if there is one, be it of another number of devices.
///
/// # Errors
/// Data of another tokenizer or over the model's context, a non-finite loss, damaged data, I/O. A stop that was asked
/// for is an [`io::ErrorKind::Interrupted`]: a checkpoint was written, run again to go on.
///
/// # Panics
/// There is no device.
pub fn run(inputs: &TrainInputs) -> Result<Summary> {
    let config = inputs.config;
    let examples = Examples::open(inputs.data, inputs.objective, &config.loss)?;
    let steps = Steps::new(config, &examples);
    tracing::info!(stage = inputs.stage, "memory: {}", MemoryPlan::over(inputs, &examples, &steps)?);
    let decoder = first_weights(config, &inputs.devices[0].0)?;
    examples.check_fit(inputs, &decoder)?;
    let copied = config.clone();
    let load = move |device: &Device| first_weights(&copied, device);
    let replicas = Replicas::new(decoder, inputs.devices, config.accumulate_batches, load);

    ensure!(
        steps.len() > 0,
        "{}: expected at least one step, found none, as no sequence is in any epoch\nhint: raise the weights of `mixture`",
        inputs.stage
    );
    let mut trainer = Trainer::start(inputs, replicas, &examples, steps.len())?;
    thread::scope(|scope| -> Result<()> {
        let vocabulary = trainer.replicas.first.config().vocab_size;
        let mut batches = prefetch(scope, &examples, &steps, trainer.progress.step, vocabulary);
        let began = Instant::now();
        loop {
            if !trainer.after_step()? {
                return interrupted(&mut trainer);
            }
            if trainer.out_of_patience() {
                break;
            }
            let waited = Instant::now();
            let Some(step) = batches.next() else { break };
            let waited = waited.elapsed().as_secs_f64();
            if inputs.stop.load(Ordering::Relaxed) {
                return interrupted(&mut trainer);
            }
            trainer.take_step(step?, waited)?;
        }
        lap(&mut trainer.seconds.total, began);
        Ok(())
    })?;
    trainer.finish(examples.len())
}

/// A checkpoint, and the error that says so.
fn interrupted(trainer: &mut Trainer) -> Result<()> {
    trainer.checkpoint()?;
    let (stage, step) = (trainer.stage(), trainer.progress.step);
    let said = format!("{stage} stopped after step {step} with a checkpoint\nhint: run again to go on");
    Err(io::Error::new(io::ErrorKind::Interrupted, said).into())
}

/// The model to train: all its weights, or adapters over frozen ones.
fn first_weights(config: &TrainConfig, device: &Device) -> Result<Decoder> {
    let mut decoder = match config.init {
        Init::Pretrained => Decoder::load_with(&config.model, device, &config.load_options())?,
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
