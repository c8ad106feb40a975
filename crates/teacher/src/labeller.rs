//! The teacher at work: sequences to labels, in batches of like length.

use std::{
    iter,
    sync::{Mutex, PoisonError},
    time::Instant,
};

use anyhow::Result;
use burn::tensor::{Device, Tensor};
use rayon::prelude::*;
use softshard_labels::{Error, LabelPlan, OptionalColumn, Selection, Sequence, SequenceLabels};
use softshard_losses::{HeadError, HeadLabels, HeadOptions, Keep, label_rows};
use softshard_model::{Decoder, batches_by_length};

use crate::config::TeacherConfig;

/// Loads the teacher with its adapter.
pub(crate) fn load(teacher: &TeacherConfig, device: &Device) -> Result<Decoder> {
    let mut decoder = Decoder::load_with(&teacher.model, device, &teacher.load_options())?;
    if let Some(adapter) = &teacher.adapter {
        decoder.load_adapter(adapter)?;
    }
    Ok(decoder)
}

/// How much is computed at a time. Labels are the same for any pace but for rounding errors.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pace {
    /// Batches at a time.
    pub(crate) workers: usize,
    /// Tokens of a batch, padding included.
    pub(crate) max_tokens_per_batch: usize,
    /// Tokens whose states are in memory at a time where layers are streamed.
    pub(crate) tokens_per_block: usize,
    /// Rows that meet the vocabulary at a time.
    pub(crate) rows_per_chunk: usize,
}

impl Pace {
    /// As the recipe says.
    pub(crate) fn of(teacher: &TeacherConfig, workers: usize) -> Self {
        let TeacherConfig { max_tokens_per_batch, tokens_per_block, rows_per_chunk, .. } = *teacher;
        Self { workers, max_tokens_per_batch, tokens_per_block, rows_per_chunk }
    }
}

/// What is kept of the teacher's distributions.
pub(crate) struct Wanted<'a> {
    keep: Keep,
    /// Of the draws.
    seed: u64,
    temperatures: &'a [f32],
    omit: &'a [OptionalColumn],
}

impl<'a> Wanted<'a> {
    /// What labels of the plan hold.
    pub(crate) fn of(plan: &'a LabelPlan) -> Result<Self> {
        let keep = match plan.selection {
            Selection::TopK { k } => Keep::TopK { k: usize::try_from(k)? },
            Selection::TopP { p, k } => Keep::TopP { p, k: usize::try_from(k)? },
            Selection::Sampled { draws } => Keep::Sampled { draws },
            Selection::TopKSampled { k, draws } => Keep::TopKSampled { k: usize::try_from(k)?, draws },
        };
        Ok(Self { keep, seed: plan.seed, temperatures: &plan.temperatures, omit: &plan.omit })
    }
}

/// A batch that was labelled.
pub(crate) struct Batch {
    pub(crate) sequences: u64,
    pub(crate) tokens: u64,
    pub(crate) padded_tokens: u64,
    pub(crate) labelled_tokens: u64,
    pub(crate) forward_seconds: f64,
    pub(crate) head_seconds: f64,
}

/// Says how many of `total` sequences are done after each batch.
pub(crate) fn progress(stage: &'static str, total: usize) -> impl Fn(Batch) + Sync {
    let done = Mutex::new((0, 0));
    move |batch| {
        let mut done = done.lock().unwrap_or_else(PoisonError::into_inner);
        *done = (done.0 + batch.sequences, done.1 + batch.tokens);
        tracing::info!(
            target: "softshard::progress",
            stage,
            done = done.0,
            total = total as u64,
            unit = "sequences",
            tokens = done.1,
        );
    }
}

/// A loaded teacher.
pub(crate) struct Labeller {
    pub(crate) decoder: Decoder,
    pub(crate) pace: Pace,
}

impl Labeller {
    /// Labels of `sequences`, in their order, for each of `wanted`; one forward pass serves all of them.
    pub(crate) fn label(
        &self,
        sequences: &[Sequence],
        wanted: &[Wanted],
        done: impl Fn(Batch) + Sync,
    ) -> Result<Vec<Vec<SequenceLabels>>> {
        let lengths: Vec<usize> = sequences.iter().map(|sequence| sequence.input_ids.len()).collect();
        let batches = batches_by_length(&lengths, self.pace.max_tokens_per_batch);
        let members: Vec<Vec<&Sequence>> =
            batches.iter().map(|batch| batch.iter().map(|&index| &sequences[index]).collect()).collect();
        let label = |block: &[Vec<&Sequence>]| self.label_block(block, wanted, &done);
        // Streamed weights are read once for a block of batches; resident ones serve one batch at a time on each worker.
        let labelled = if self.decoder.is_streamed() {
            self.blocks(&members).into_iter().map(label).collect::<Result<Vec<_>>>()?
        } else if self.pace.workers > 1 {
            members.par_chunks(1).map(label).collect::<Result<Vec<_>>>()?
        } else {
            members.chunks(1).map(label).collect::<Result<Vec<_>>>()?
        };
        let labelled = labelled.into_iter().flatten();
        let empty = || iter::repeat_with(|| None).take(sequences.len()).collect();
        let mut all: Vec<Vec<Option<SequenceLabels>>> = wanted.iter().map(|_| empty()).collect();
        for (batch, labelled) in batches.iter().zip(labelled) {
            for (into, rows) in all.iter_mut().zip(labelled) {
                batch.iter().zip(rows).for_each(|(&index, row)| into[index] = Some(row));
            }
        }
        Ok(all.into_iter().map(|rows| rows.into_iter().flatten().collect()).collect())
    }

    /// Neighbouring batches whose states fit in memory together.
    fn blocks<'a, 'b>(&self, batches: &'a [Vec<&'b Sequence>]) -> Vec<&'a [Vec<&'b Sequence>]> {
        let padded = |batch: &Vec<&Sequence>| batch.len() * batch[0].input_ids.len();
        let mut blocks = Vec::new();
        let mut first = 0;
        let mut tokens = 0;
        for (index, batch) in batches.iter().enumerate() {
            if index > first && tokens + padded(batch) > self.pace.tokens_per_block {
                blocks.push(&batches[first..index]);
                (first, tokens) = (index, 0);
            }
            tokens += padded(batch);
        }
        if first < batches.len() {
            blocks.push(&batches[first..]);
        }
        blocks
    }

    /// All batches of a block go through a layer before the next one; each is longest sequence first.
    fn label_block(
        &self,
        block: &[Vec<&Sequence>],
        wanted: &[Wanted],
        done: &(impl Fn(Batch) + Sync),
    ) -> Result<Vec<Vec<Vec<SequenceLabels>>>> {
        let began = Instant::now();
        let inputs: Vec<(Vec<_>, Vec<_>)> = (block.iter())
            .map(|batch| batch.iter().map(|one| (one.input_ids.as_slice(), one.positions.as_slice())).unzip())
            .collect();
        let in_parallel = block.len() > 1 && self.pace.workers > 1;
        let hidden = self.decoder.hidden_before_each(&inputs, in_parallel)?;
        let all: usize = block.iter().map(Vec::len).sum();
        let seconds = began.elapsed().as_secs_f64();
        let select = |(batch, hidden): (&Vec<&Sequence>, Tensor<2>)| {
            let share = seconds * batch.len() as f64 / all as f64;
            self.select_batch(batch, &hidden, wanted, share, done)
        };
        if in_parallel {
            block.par_iter().zip(hidden).map(select).collect()
        } else {
            block.iter().zip(hidden).map(select).collect()
        }
    }

    /// Labels of a batch from the hidden states before its labelled tokens, `[N, D]`.
    fn select_batch(
        &self,
        batch: &[&Sequence],
        hidden: &Tensor<2>,
        wanted: &[Wanted],
        forward_seconds: f64,
        done: impl Fn(Batch),
    ) -> Result<Vec<Vec<SequenceLabels>>> {
        let began = Instant::now();
        let width = batch[0].input_ids.len();
        let gold: Vec<i32> = batch.iter().flat_map(|sequence| sequence.gold()).collect();
        let select = |wanted: &Wanted| -> Result<Vec<SequenceLabels>> {
            let options = HeadOptions {
                keep: wanted.keep,
                logit_scale: 1.0,
                temperatures: wanted.temperatures,
                rows_per_chunk: self.pace.rows_per_chunk,
            };
            let uniforms = uniforms(batch, wanted);
            let labels = label_rows(hidden.clone(), self.decoder.head(), &gold, &uniforms, &options);
            let labels = labels.map_err(|error| match error {
                HeadError::NonFinite { row } => anyhow::Error::new(not_finite(batch, row)),
                error @ HeadError::Device(_) => error.into(),
            })?;
            Ok(split(batch, labels, wanted))
        };
        let labels = wanted.iter().map(select).collect::<Result<_>>()?;
        done(Batch {
            sequences: batch.len() as u64,
            tokens: batch.iter().map(|sequence| sequence.input_ids.len() as u64).sum(),
            padded_tokens: (batch.len() * width) as u64,
            labelled_tokens: gold.len() as u64,
            forward_seconds,
            head_seconds: began.elapsed().as_secs_f64(),
        });
        Ok(labels)
    }
}

/// Where the draws of each position begin.
fn uniforms(batch: &[&Sequence], wanted: &Wanted) -> Vec<f64> {
    if wanted.keep.draws().is_none() {
        return Vec::new();
    }
    let of = |sequence: &&Sequence| {
        let key = sequence.key();
        sequence.positions.iter().map(|position| key.uniform(wanted.seed, *position)).collect::<Vec<_>>()
    };
    batch.iter().flat_map(of).collect()
}

/// How errors name a sequence.
pub(crate) fn place(sequence: &Sequence) -> String {
    format!("sequence {} from `{}`", sequence.key(), sequence.source.as_deref().unwrap_or("unknown"))
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
fn split(batch: &[&Sequence], labels: HeadLabels, wanted: &Wanted) -> Vec<SequenceLabels> {
    let has = |column| !wanted.omit.contains(&column);
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
        let exact: usize = counts.iter().map(|count| entries(count).min(wanted.keep.exact())).sum();
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
