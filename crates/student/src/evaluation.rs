//! How good the student is on held-out data, during a run.

use std::{
    io,
    sync::atomic::{AtomicBool, Ordering},
};

use anyhow::Result;
use rayon::prelude::*;
use serde_json::{Value, json};
use softshard_labels::Error;
use softshard_losses::{DistillLoss, calibration::Calibration};
use softshard_model::{Arrangement, Decoder, DecoderConfig, Fitting, OutOfMemory, batches_by_length};

use crate::{
    batches::Batch,
    config::{EvaluationConfig, Metric, Mixed, Objective},
    examples::Examples,
    inputs::TrainInputs,
    loss_config::{Alpha, LossConfig},
    metrics::HeldOut,
};

/// Held-out data, opened once.
pub(crate) struct HeldOutData {
    examples: Examples,
    batches: Vec<Vec<u32>>,
    loss: DistillLoss,
    has_teacher: bool,
    workers: usize,
    /// What fitted in the memory of the device so far.
    fitting: Fitting,
    /// What makes an evaluation comparable with another one.
    pub(crate) judged_by: Value,
}

impl HeldOutData {
    /// Opens the data and checks that this model can read it.
    ///
    /// # Errors
    /// Data that is missing, damaged, empty, of another tokenizer or over the model's context, or without what `best_by` needs.
    pub(crate) fn open(
        inputs: &TrainInputs,
        config: &EvaluationConfig,
        shape: &DecoderConfig,
    ) -> Result<Self> {
        let data = match &config.data {
            Some(folder) => vec![Mixed::once(folder.clone())],
            None => {
                let mut beside: Vec<_> =
                    inputs.data.iter().map(|mixed| mixed.labels.with_file_name("valid")).collect();
                beside.sort();
                beside.dedup();
                beside.into_iter().map(Mixed::once).collect()
            }
        };
        let alpha =
            Alpha::Constant(if inputs.objective.reads_labels(&inputs.config.loss) { 1.0 } else { 0.0 });
        let examples =
            Examples::open(&data, inputs.objective, &LossConfig { alpha, ..LossConfig::default() })?;
        examples.check_fit(inputs, shape)?;
        examples.warn_of_test("the best step is chosen by");
        let place = || {
            let folders = data.iter().map(|mixed| format!("`{}`", mixed.labels.display()));
            folders.collect::<Vec<_>>().join(", ")
        };
        let has_teacher = inputs.objective != Objective::Supervised && examples.has_teacher();
        if config.best_by == Metric::Kl && !has_teacher {
            let found = "\"kl\", and data without a teacher";
            return Err(Error::bad("`evaluation.best_by`", "\"nll\" or \"ece\"", found).into());
        }
        let all: Vec<u32> = examples.rows().collect();
        let some = if config.max_sequences > 0 { config.max_sequences.min(all.len()) } else { all.len() };
        // Spread over all of it: of a mixture each dataset has its share.
        let rows: Vec<u32> = (0..some).map(|index| all[index * all.len() / some]).collect();
        let lengths: Vec<usize> = rows.iter().map(|&row| examples.length(row)).collect();
        if lengths.is_empty() {
            let hint = "set `data.split.valid_rows` and prepare again, or remove `evaluation`";
            return Err(Error::bad(place(), "held-out sequences", "none").hint(hint).into());
        }
        // No gradient is kept: batches of the training's size are small enough.
        let batches = batches_by_length(&lengths, inputs.config.max_tokens_per_batch).into_iter();
        let batches = batches.map(|batch| batch.into_iter().map(|at| rows[at]).collect()).collect();
        let loss = DistillLoss::forward_kl(1.0, inputs.config.rows_per_chunk);
        // As many at a time as in training: memory is planned for those.
        let workers = inputs.workers().min(inputs.config.accumulate_batches);
        let judged_by = json!({ "best_by": config.best_by, "sequences": some, "data": examples.identity() });
        let fitting = Fitting::default();
        Ok(HeldOutData { examples, batches, loss, has_teacher, workers, fitting, judged_by })
    }

    /// What it holds in memory besides batches.
    pub(crate) fn bytes_in_memory(&self) -> u64 {
        self.examples.bytes_in_memory()
    }

    /// Looks at all of it after `step` steps, summed in the order of the batches; nothing if it was told to stop meanwhile.
    ///
    /// # Errors
    /// Data or streamed weights that cannot be read; a device without memory for one sequence.
    pub(crate) fn look(&self, decoder: &Decoder, step: u64, stop: &AtomicBool) -> Result<Option<HeldOut>> {
        let decoder = decoder.frozen();
        let vocabulary = decoder.config().vocab_size;
        let look = |batch: &[u32]| -> Result<_> {
            let batch = Batch::read(&self.examples, batch, Arrangement::Ragged, vocabulary)?;
            let (sequences, positions) = batch.rows();
            let hidden = decoder.hidden_before(&sequences, &positions, batch.arrangement)?;
            let taught = batch.targets.alpha_factors.iter().filter(|&&factor| factor > 0.0).count();
            Ok((self.loss.evaluate(hidden, decoder.head(), &batch.targets), taught))
        };
        let tokens = |batch: &[u32]| batch.iter().map(|&row| self.examples.length(row)).sum();
        let look = |batch: &Vec<u32>| {
            let found = self.fitting.each(batch, &tokens, decoder.device(), &look);
            found.map_err(|error| match error.downcast::<OutOfMemory>() {
                Ok(error) => too_large(tokens(&batch[..1]), &error),
                Err(error) => error,
            })
        };
        let (mut cross_entropy, mut kl, mut taught) = (0.0, 0.0, 0);
        let (mut confidences, mut correct) = (Vec::new(), Vec::new());
        let workers = if decoder.is_streamed() { 1 } else { self.workers };
        for group in self.batches.chunks(workers) {
            if stop.load(Ordering::Relaxed) {
                return Ok(None);
            }
            let found: Vec<_> = match group {
                [alone] => vec![look(alone)?],
                group => group.par_iter().map(look).collect::<Result<_>>()?,
            };
            for (found, rows) in found.into_iter().flatten() {
                taught += rows;
                cross_entropy += found.cross_entropy_sum;
                kl += found.kl_sum;
                confidences.extend(found.confidences);
                correct.extend(found.correct);
            }
        }
        #[expect(clippy::cast_precision_loss, reason = "token counts are far below 2^53")]
        let mean = |sum: f64, tokens: usize| sum / tokens.max(1) as f64;
        let Calibration { ece, accuracy, .. } = Calibration::of(&confidences, &correct);
        // Of the tokens that the teacher labelled.
        let kl = self.has_teacher.then(|| mean(kl, taught));
        let sequences = self.batches.iter().map(Vec::len).sum();
        let nll = mean(cross_entropy, confidences.len());
        Ok(Some(HeldOut { step, nll, kl, ece, accuracy, sequences }))
    }
}

/// One sequence, at most as long as the longest of its batch, is too large.
fn too_large(longest: usize, error: &OutOfMemory) -> anyhow::Error {
    let message = format!(
        "the device is out of memory with one held-out sequence at a time (of at most {longest} tokens): {error}\n\
         hint: `residency = \"streamed\"`, `quantise` or a smaller `rows_per_chunk` take less, and so do shorter sequences \
         (`data.max_tokens`); checkpoints are as they were"
    );
    io::Error::new(io::ErrorKind::OutOfMemory, message).into()
}
