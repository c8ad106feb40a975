//! The labelling loop.

use std::{
    io,
    path::Path,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread,
    time::Instant,
};

use anyhow::{Result, anyhow};
use burn::tensor::Device;
use serde::Serialize;
use softshard_labels::{Error, LabelWriter, Output, SequenceDataset, SequenceLabels, Tokenizer};
use softshard_model::DecoderConfig;

use crate::{
    config::{LabelsConfig, TeacherConfig},
    identity,
    labeller::{Batch, Labeller, Pace, Wanted, load, place},
    writing::write_shards,
};

/// What a labelling run reads and where it writes.
pub struct TeacherInputs<'a> {
    /// Recipe section `[teacher]`.
    pub teacher: &'a TeacherConfig,
    /// Recipe section `[labels]`.
    pub labels: &'a LabelsConfig,
    /// Sequence dataset of one split.
    pub sequences: &'a Path,
    /// Fingerprint of the teacher's tokenizer; sequences of another one are refused.
    pub tokenizer: &'a Tokenizer,
    /// Receives the label dataset.
    pub output: &'a Output,
    /// Where the teacher runs.
    pub device: &'a Device,
    /// Batches that are computed at a time: the cores of a CPU, 1 on a GPU.
    pub workers: usize,
    /// Set to stop at the next shard boundary.
    pub stop: &'a AtomicBool,
}

/// What a finished run did in this process.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Summary {
    /// Shards of the dataset.
    pub shards: usize,
    /// Shards that were labelled now; the others were there.
    pub new_shards: usize,
    /// Sequences labelled now.
    pub sequences: u64,
    /// Their tokens.
    pub tokens: u64,
    /// Their labelled tokens.
    pub labelled_tokens: u64,
    /// Tokens that went through the teacher, padding included.
    pub padded_tokens: u64,
    /// Bytes of the whole dataset's shards.
    pub bytes: u64,
    /// Labelled tokens of the whole dataset.
    pub dataset_labelled_tokens: u64,
    /// Where the time went.
    pub seconds: Breakdown,
}

/// Seconds by part; `forward` and `head` are summed over the workers, `write` and `commit` run beside them.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Breakdown {
    /// Hashing the teacher and loading it.
    pub load: f64,
    /// Reading sequences.
    pub read: f64,
    /// Embedding and layers.
    pub forward: f64,
    /// Logits and selection.
    pub head: f64,
    /// Checking, encoding and hashing shards.
    pub write: f64,
    /// Reading shards back and committing them.
    pub commit: f64,
    /// The whole run.
    pub total: f64,
}

impl Summary {
    /// Counts a batch that was labelled.
    fn add(&mut self, batch: &Batch) {
        self.seconds.forward += batch.forward_seconds;
        self.seconds.head += batch.head_seconds;
        self.sequences += batch.sequences;
        self.padded_tokens += batch.padded_tokens;
        self.tokens += batch.tokens;
        self.labelled_tokens += batch.labelled_tokens;
    }
}

fn progress(stage: &str, summary: &Summary, total: u64) {
    tracing::info!(
        target: "softshard::progress",
        stage,
        done = summary.sequences,
        total,
        unit = "sequences",
        tokens = summary.tokens,
    );
}

/// Labels every shard that is not committed yet, then finishes the dataset.
///
/// # Errors
/// An output of another plan, sequences of another tokenizer or over the teacher's context, logits that are not finite
/// (the sequence is named), I/O. A stop that was asked for is an [`io::ErrorKind::Interrupted`].
pub fn run(inputs: &TeacherInputs) -> Result<Summary> {
    let began = Instant::now();
    let sequences = SequenceDataset::open(inputs.sequences)?;
    let config = DecoderConfig::load(&inputs.teacher.model)?;
    check_fit(&inputs.teacher.model, &config, inputs.tokenizer, (inputs.sequences, &sequences))?;
    let loaded = if LabelWriter::is_begun(inputs.output)? {
        None
    } else {
        check_lengths(&sequences, &config, inputs.labels.sequences_per_shard)?;
        Some(load(inputs.teacher, inputs.device)?)
    };
    let plan = identity::plan(identity::of(inputs.teacher)?, inputs.labels, &sequences)?;
    let writer = LabelWriter::create_or_resume(inputs.output, plan)?;

    let missing = writer.missing()?;
    let mut summary =
        Summary { shards: writer.plan().shards.len(), new_shards: missing.len(), ..Summary::default() };
    if !missing.is_empty() {
        let decoder = loaded.map_or_else(|| load(inputs.teacher, inputs.device), Ok)?;
        let labeller = Labeller { decoder, pace: Pace::of(inputs.teacher, inputs.workers) };
        summary.seconds.load = began.elapsed().as_secs_f64();
        label(&labeller, inputs, &sequences, &writer, &missing, &mut summary)?;
    }
    let manifest = writer.finish()?;
    summary.bytes = manifest.shards.iter().map(|shard| shard.bytes).sum();
    summary.dataset_labelled_tokens = manifest.shards.iter().map(|shard| shard.labelled_tokens).sum();
    summary.seconds.total = began.elapsed().as_secs_f64();
    Ok(summary)
}

/// Refuses sequences of another tokenizer, and a tokenizer that is too large for the model.
pub(crate) fn check_fit(
    model: &Path,
    config: &DecoderConfig,
    tokenizer: &Tokenizer,
    (path, sequences): (&Path, &SequenceDataset),
) -> Result<(), Error> {
    let found = &sequences.manifest().info.tokenizer;
    tokenizer.expect_same(found, format_args!("sequences `{}`", path.display()))?;
    tokenizer.expect_fits(model, config.vocab_size)
}

/// Refuses a sequence over the teacher's context before any work; reads some rows at a time.
pub(crate) fn check_lengths(sequences: &SequenceDataset, config: &DecoderConfig, rows: usize) -> Result<()> {
    let limit = config.max_position_embeddings;
    for first in (0..sequences.len()).step_by(rows) {
        let end = (first + rows).min(sequences.len());
        if let Some(long) = sequences.read_range(first..end)?.iter().find(|one| one.input_ids.len() > limit) {
            let expected = format!("at most the {limit} positions of the teacher");
            let hint = "set `data.max_tokens` and prepare again";
            return Err(Error::bad(place(long), expected, long.input_ids.len()).hint(hint).into());
        }
    }
    Ok(())
}

/// Labels the `missing` shards here while other threads write the ones before.
fn label(
    labeller: &Labeller,
    inputs: &TeacherInputs,
    sequences: &SequenceDataset,
    writer: &LabelWriter,
    missing: &[usize],
    summary: &mut Summary,
) -> Result<()> {
    let to_label =
        missing.iter().map(|&shard| writer.plan().shards[shard]).map(|[first, end]| end - first).sum();
    let wanted = [Wanted::of(writer.plan())?];
    thread::scope(|scope| {
        let (sender, receiver) = mpsc::sync_channel::<(usize, Vec<SequenceLabels>)>(0);
        let writing = scope.spawn(move || write_shards(writer, receiver));
        let labelled = (|| -> Result<()> {
            for &shard in missing {
                if inputs.stop.load(Ordering::Relaxed) {
                    let message = "teacher-labels stopped at a shard boundary\nhint: run again to go on";
                    return Err(io::Error::new(io::ErrorKind::Interrupted, message).into());
                }
                let began = Instant::now();
                let [first, end] = writer.plan().shards[shard];
                let read = sequences.read_range(usize::try_from(first)?..usize::try_from(end)?)?;
                summary.seconds.read += began.elapsed().as_secs_f64();
                let shared = Mutex::new(&mut *summary);
                let rows = labeller.label(&read, &wanted, |batch| {
                    let mut summary = shared.lock().unwrap_or_else(PoisonError::into_inner);
                    summary.add(&batch);
                    progress("teacher-labels", &summary, to_label);
                })?;
                if rows.into_iter().any(|rows| sender.send((shard, rows)).is_err()) {
                    break; // the writer failed: its error is returned below
                }
            }
            Ok(())
        })();
        drop(sender);
        let written = writing.join().map_err(|_| anyhow!("the thread that writes shards panicked"))??;
        (summary.seconds.write, summary.seconds.commit) = (written.write, written.commit);
        labelled
    })
}
