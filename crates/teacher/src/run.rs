//! The labelling loop.

use std::{
    io, iter,
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
use rayon::prelude::*;
use serde::Serialize;
use softshard_labels::{
    Error, LabelWriter, OptionalColumn, Selection, Sequence, SequenceDataset, SequenceLabels, Tokenizer,
};
use softshard_losses::{HeadLabels, Keep, label_rows};
use softshard_model::{Decoder, DecoderConfig, batches_by_length};

use crate::{
    config::{LabelsConfig, TeacherConfig},
    identity,
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
    pub output: &'a Path,
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

/// Labels every shard that is not committed yet, then finishes the dataset.
///
/// # Errors
/// An output of another plan, sequences of another tokenizer or over the teacher's context, logits that are not finite
/// (the sequence is named), I/O. A stop that was asked for is an [`io::ErrorKind::Interrupted`].
pub fn run(inputs: &TeacherInputs) -> Result<Summary> {
    let began = Instant::now();
    let sequences = SequenceDataset::open(inputs.sequences)?;
    let config = DecoderConfig::load(&inputs.teacher.model)?;
    check_fit(inputs, &sequences, &config)?;
    let loaded = if LabelWriter::is_begun(inputs.output)? {
        None
    } else {
        check_lengths(inputs, &sequences, &config)?;
        Some(load(inputs)?)
    };
    let plan = identity::plan(inputs.teacher, inputs.labels, &sequences, &config)?;
    let writer = LabelWriter::create_or_resume(inputs.output, plan)?;

    let missing = writer.missing()?;
    let mut summary =
        Summary { shards: writer.plan().shards.len(), new_shards: missing.len(), ..Summary::default() };
    if !missing.is_empty() {
        let decoder = loaded.map_or_else(|| load(inputs), Ok)?;
        let sequences_to_label =
            missing.iter().map(|&shard| writer.plan().shards[shard]).map(|[first, end]| end - first).sum();
        let (keep, seed) = (keep(inputs.labels)?, writer.plan().seed);
        let labeller = Labeller { inputs, decoder, keep, seed, sequences_to_label };
        summary.seconds.load = began.elapsed().as_secs_f64();
        label(&labeller, inputs, &sequences, &writer, &missing, &mut summary)?;
    }
    let manifest = writer.finish()?;
    summary.bytes = manifest.shards.iter().map(|shard| shard.bytes).sum();
    summary.dataset_labelled_tokens = manifest.shards.iter().map(|shard| shard.labelled_tokens).sum();
    summary.seconds.total = began.elapsed().as_secs_f64();
    Ok(summary)
}

fn load(inputs: &TeacherInputs) -> Result<Decoder> {
    let mut decoder = Decoder::load(&inputs.teacher.model, inputs.device)?;
    if let Some(adapter) = &inputs.teacher.adapter {
        decoder.load_adapter(adapter)?;
    }
    Ok(decoder)
}

fn keep(labels: &LabelsConfig) -> Result<Keep> {
    Ok(match labels.selection {
        Selection::TopK { k } => Keep::TopK { k: usize::try_from(k)? },
        Selection::TopP { p, k } => Keep::TopP { p, k: usize::try_from(k)? },
        Selection::Sampled { draws } => Keep::Sampled { draws },
        Selection::TopKSampled { k, draws } => Keep::TopKSampled { k: usize::try_from(k)?, draws },
    })
}

fn check_fit(
    inputs: &TeacherInputs,
    sequences: &SequenceDataset,
    config: &DecoderConfig,
) -> Result<(), Error> {
    let found = &sequences.manifest().info.tokenizer;
    inputs.tokenizer.expect_same(found, format_args!("sequences `{}`", inputs.sequences.display()))?;
    inputs.tokenizer.expect_fits(&inputs.teacher.model, config.vocab_size)
}

/// Refuses a sequence over the teacher's context before any work.
fn check_lengths(inputs: &TeacherInputs, sequences: &SequenceDataset, config: &DecoderConfig) -> Result<()> {
    let limit = config.max_position_embeddings;
    for first in (0..sequences.len()).step_by(inputs.labels.sequences_per_shard) {
        let end = (first + inputs.labels.sequences_per_shard).min(sequences.len());
        if let Some(long) = sequences.read_range(first..end)?.iter().find(|one| one.input_ids.len() > limit) {
            let expected = format!("at most the {limit} positions of the teacher");
            let hint = "set `data.max_tokens` and prepare again";
            return Err(Error::bad(place(long), expected, long.input_ids.len()).hint(hint).into());
        }
    }
    Ok(())
}

/// How errors name a sequence.
fn place(sequence: &Sequence) -> String {
    format!("sequence {} from `{}`", sequence.key(), sequence.source.as_deref().unwrap_or("unknown"))
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
                let rows = labeller.label(&read, summary)?;
                if sender.send((shard, rows)).is_err() {
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

/// The loaded teacher and what it is asked for.
struct Labeller<'a> {
    inputs: &'a TeacherInputs<'a>,
    decoder: Decoder,
    keep: Keep,
    /// Of the draws.
    seed: u64,
    /// Sequences of all missing shards.
    sequences_to_label: u64,
}

impl Labeller<'_> {
    /// Labels of `sequences`, in their order.
    fn label(&self, sequences: &[Sequence], summary: &mut Summary) -> Result<Vec<SequenceLabels>> {
        let lengths: Vec<usize> = sequences.iter().map(|sequence| sequence.input_ids.len()).collect();
        let batches = batches_by_length(&lengths, self.inputs.teacher.max_tokens_per_batch);
        let summary = Mutex::new(summary);
        let label = |batch: &Vec<usize>| {
            let members: Vec<&Sequence> = batch.iter().map(|&index| &sequences[index]).collect();
            self.label_batch(&members, &summary)
        };
        let done: Vec<Result<Vec<SequenceLabels>>> = if self.inputs.workers > 1 {
            batches.par_iter().map(label).collect()
        } else {
            batches.iter().map(label).collect()
        };
        let mut labelled: Vec<Option<SequenceLabels>> =
            iter::repeat_with(|| None).take(sequences.len()).collect();
        for (batch, rows) in batches.iter().zip(done) {
            for (&index, row) in batch.iter().zip(rows?) {
                labelled[index] = Some(row);
            }
        }
        Ok(labelled.into_iter().flatten().collect())
    }

    /// One forward pass, longest sequence first.
    fn label_batch(&self, batch: &[&Sequence], summary: &Mutex<&mut Summary>) -> Result<Vec<SequenceLabels>> {
        let began = Instant::now();
        let width = batch[0].input_ids.len();
        let ids: Vec<&[i32]> = batch.iter().map(|sequence| sequence.input_ids.as_slice()).collect();
        let positions: Vec<&[i32]> = batch.iter().map(|sequence| sequence.positions.as_slice()).collect();
        let gold: Vec<i32> = batch.iter().flat_map(|sequence| sequence.gold()).collect();
        let uniforms = self.uniforms(batch);
        let hidden = self.decoder.hidden_before(&ids, &positions);
        let forward = began.elapsed().as_secs_f64();

        let began = Instant::now();
        let labels = label_rows(
            hidden,
            self.decoder.head(),
            &gold,
            self.keep,
            &uniforms,
            &self.inputs.labels.temperatures,
            self.inputs.teacher.rows_per_chunk,
        )
        .map_err(|error| not_finite(batch, error.row))?;

        let mut summary = summary.lock().unwrap_or_else(PoisonError::into_inner);
        summary.seconds.forward += forward;
        summary.seconds.head += began.elapsed().as_secs_f64();
        summary.sequences += batch.len() as u64;
        summary.padded_tokens += (batch.len() * width) as u64;
        summary.tokens += batch.iter().map(|sequence| sequence.input_ids.len() as u64).sum::<u64>();
        summary.labelled_tokens += gold.len() as u64;
        self.progress(&summary);
        Ok(split(batch, labels, &self.inputs.labels.omit))
    }

    /// Where the draws of each position begin.
    fn uniforms(&self, batch: &[&Sequence]) -> Vec<f64> {
        if self.keep.draws().is_none() {
            return Vec::new();
        }
        let of = |sequence: &&Sequence| {
            let key = sequence.key();
            sequence.positions.iter().map(|position| key.uniform(self.seed, *position)).collect::<Vec<_>>()
        };
        batch.iter().flat_map(of).collect()
    }

    fn progress(&self, summary: &Summary) {
        tracing::info!(
            target: "softshard::progress",
            stage = "teacher-labels",
            done = summary.sequences,
            total = self.sequences_to_label,
            unit = "sequences",
            tokens = summary.tokens,
        );
    }
}

/// Names the sequence and position that a row of a batch stands for.
fn not_finite(batch: &[&Sequence], row: usize) -> Error {
    let mut positions =
        batch.iter().flat_map(|sequence| sequence.positions.iter().map(move |position| (sequence, position)));
    let place = positions
        .nth(row)
        .map_or_else(|| format!("row {row}"), |(sequence, at)| format!("{} position {at}", place(sequence)));
    Error::bad(place, "finite logits of the teacher", "NaN or infinity")
        .hint("check the teacher's weights; finished shards are intact")
}

/// Cuts the labels of a batch into those of its sequences, without the columns that are left out.
fn split(batch: &[&Sequence], labels: HeadLabels, omit: &[OptionalColumn]) -> Vec<SequenceLabels> {
    let exact_entries =
        if labels.sample_counts.is_empty() { usize::MAX } else { labels.log_probs.len() / labels.len() };
    let has = |column| !omit.contains(&column);
    let entries = |count: &i32| usize::try_from(*count).expect("counts are not negative");
    let mut counts = labels.counts.iter().copied();
    let mut token_ids = labels.token_ids.into_iter();
    let mut log_probs = labels.log_probs.into_iter();
    let mut sample_counts = labels.sample_counts.into_iter();
    let mut row = 0;
    let split = |sequence: &&Sequence| {
        let rows = row..row + sequence.positions.len();
        row = rows.end;
        let counts: Vec<i32> = counts.by_ref().take(rows.len()).collect();
        let kept: usize = counts.iter().map(entries).sum();
        let exact: usize = counts.iter().map(|count| entries(count).min(exact_entries)).sum();
        let floats = |column: &[f32]| column[rows.clone()].to_vec();
        let optional = |name, column: &[f32]| if has(name) { floats(column) } else { Vec::new() };
        SequenceLabels {
            source: sequence.source.clone(),
            input_ids: sequence.input_ids.clone(),
            positions: sequence.positions.clone(),
            token_ids: token_ids.by_ref().take(kept).collect(),
            log_probs: log_probs.by_ref().take(exact).collect(),
            sample_counts: sample_counts.by_ref().take(kept - exact).collect(),
            counts,
            log_sum_exp: optional(OptionalColumn::LogSumExp, &labels.log_sum_exp),
            tail_log_mass: floats(&labels.tail_log_mass),
            entropy: optional(OptionalColumn::Entropy, &labels.entropy),
            gold_log_prob: optional(OptionalColumn::GoldLogProb, &labels.gold_log_prob),
            log_partitions: labels.log_partitions.iter().map(|column| floats(column)).collect(),
        }
    };
    batch.iter().map(split).collect()
}
