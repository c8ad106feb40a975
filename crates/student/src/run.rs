//! The stage: open, check, step through the data, finish. One loop for distillation, fine-tuning and pretraining.

use std::{
    fs::{File, TryLockError},
    io,
    path::Path,
    sync::atomic::Ordering,
    thread,
    time::Instant,
};

use anyhow::{Result, bail, ensure};
use burn::tensor::Device;
use fs_err as fs;
use softshard_model::{Decoder, DecoderConfig, Trainable};

use crate::{
    config::{Init, TrainConfig},
    evaluation::HeldOutData,
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
    let shape = DecoderConfig::load(&config.model)?;
    examples.check_fit(inputs, &shape)?;
    examples.warn_of_test("the model learns from");
    let held_out = config.evaluation.as_ref().map(|held_out| HeldOutData::open(inputs, held_out, &shape));
    let held_out = held_out.transpose()?;
    let steps = Steps::new(config, &examples);
    ensure!(
        steps.len() > 0,
        "{}: expected at least one step, found none, as no sequence is in any epoch\nhint: raise the weights of `mixture`",
        inputs.stage
    );
    let plan = MemoryPlan::over(inputs, &shape, &examples, held_out.as_ref(), &steps)?;
    tracing::info!(stage = inputs.stage, "memory: {plan}");
    let lock = lock(inputs.output)?;

    let decoder = first_weights(config, &inputs.devices[0].0)?;
    let copied = config.clone();
    let load = move |device: &Device| first_weights(&copied, device);
    let replicas = Replicas::new(decoder, inputs.devices, config.accumulate_batches, load);

    let mut trainer = Trainer::start(inputs, lock, replicas, &examples, held_out, steps.len())?;
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
    match (&config.adapter, &config.lora) {
        (Some(adapter), _) => decoder.load_adapter(adapter)?,
        (None, Some(lora)) => decoder.attach_lora(lora, config.seed)?,
        (None, None) => {}
    }
    decoder.train(if config.trains_adapter() { Trainable::Adapter } else { Trainable::Model });
    Ok(decoder)
}

/// The folder of a run, which has it alone: two would write over each other. Before weights are read, as nothing is computed that
/// cannot be written.
fn lock(output: &Path) -> Result<File> {
    fs::create_dir_all(output)?;
    let file = fs::File::create(output.join(".lock"))?.into_file();
    match file.try_lock() {
        Err(TryLockError::WouldBlock) => bail!(
            "`{}`: expected no other run there, found one at work\nhint: wait for its end, or name another output",
            output.display()
        ),
        Err(TryLockError::Error(error)) => {
            tracing::warn!("`{}` cannot be locked against another run: {error}", output.display());
        }
        Ok(()) => {}
    }
    Ok(file)
}
