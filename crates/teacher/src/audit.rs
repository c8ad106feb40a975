//! Whether finished labels deviate from their teacher: random positions are scored again, live.

use std::{
    collections::BTreeMap,
    io,
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
};

use anyhow::Result;
use burn::tensor::Device;
use rand::{SeedableRng, seq::index};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;
use serde::Serialize;
use softshard_labels::{
    Error, LabelDataset, LabelPlan, Observer, Sequence, SequenceLabels, TeacherIdentity, differences,
};

use crate::{
    config::TeacherConfig,
    deviation::{Bits, Column, Deviation, deviations},
    labeller::{Batch, Labeller, Pace, progress},
    noise,
    rows::Wanted,
    teacher::Teacher,
};

/// A deviation of so many times the greatest one between two live labellings is still the teacher's: the labels may be of
/// another machine, whose sums have another order.
const CONTROL_FACTOR: f64 = 8.0;
/// Draws that may move at a position, and draws at all positions times [`CONTROL_FACTOR`], where the control's do not: one
/// that falls between two tokens may go to either.
const MOVED_DRAWS: f64 = 2.0;
const ALL_MOVED_DRAWS: f64 = 1.0;
/// The last bit of an f32 near 1: two labellings that agree by chance do not make a bound of 0.
const LAST_BIT: f64 = f32::EPSILON as f64;
/// The control's rows at a time, and the tokens that it pads with: other vectors are filled to other ends.
const CONTROL_ROWS: usize = 1;
const CONTROL_PADDING: usize = 13;

/// What an audit reads.
pub struct AuditInputs<'a> {
    /// Recipe section `[teacher]`.
    pub teacher: &'a TeacherConfig,
    /// The finished label dataset.
    pub labels: &'a Path,
    /// Labelled positions that are scored again; all, if there are fewer.
    pub positions: usize,
    /// Chooses the positions.
    pub seed: u64,
    /// Where the teacher runs.
    pub device: &'a Device,
    /// Batches that are computed at a time.
    pub workers: usize,
    /// Set to stop at the next step.
    pub stop: &'a AtomicBool,
    /// Sees how far it is.
    pub observer: &'a dyn Observer,
}

/// What an audit found.
#[derive(Clone, Debug, Serialize)]
pub struct Audit {
    /// Positions that were scored again.
    pub positions: u64,
    /// Labelled positions of the dataset.
    pub of_positions: u64,
    /// Their sequences.
    pub sequences: usize,
    /// Columns, as they lie in the shards.
    pub columns: Vec<ColumnAudit>,
}

/// How far a column is from the live teacher, in nats (draws for `sample_counts`), beyond what rounding explains.
#[derive(Clone, Debug, Serialize)]
pub struct ColumnAudit {
    /// Its name; `sample_counts (sum)` are the draws that moved at all positions together.
    pub column: String,
    /// The greatest deviation at a position, or their sum.
    pub largest: f64,
    /// 99 % of the positions deviate less.
    pub p99: f64,
    /// The same between two live labellings.
    pub control_largest: f64,
    /// The same between two live labellings.
    pub control_p99: f64,
    /// The greatest deviation that the control explains.
    pub bound: f64,
    /// Where the greatest deviation at a position is.
    pub worst: Place,
}

/// A value of a label dataset.
#[derive(Clone, Debug, Serialize)]
pub struct Place {
    /// Row over all shards.
    pub row: usize,
    /// Key of the sequence, hexadecimal.
    pub key: String,
    /// Where the example came from.
    pub source: Option<String>,
    /// The labelled position.
    pub position: i32,
    /// The entry, where the column has entries.
    pub token: Option<i32>,
    /// In the dataset.
    pub stored: f64,
    /// Of the live teacher.
    pub live: f64,
}

impl ColumnAudit {
    /// Whether the control explains the deviations.
    pub fn passed(&self) -> bool {
        self.largest <= self.bound
    }
}

impl Audit {
    /// The column that is furthest beyond its bound, if one is.
    pub fn worst(&self) -> Option<&ColumnAudit> {
        let excess = |column: &ColumnAudit| column.largest / column.bound;
        let failed = self.columns.iter().filter(|column| !column.passed());
        failed.max_by(|a, b| excess(a).total_cmp(&excess(b)))
    }
}

/// Scores random positions of a finished dataset again and compares.
///
/// The control scores the same positions twice: in the recipe's batches, and each sequence alone or padded to a longer
/// one beside it, with other rows at a time. What differs there is the order of sums.
///
/// # Errors
/// Labels of another teacher, damaged labels, logits that are not finite. A stop that was asked for is an
/// [`io::ErrorKind::Interrupted`]. Labels that deviate are no error: see [`Audit::worst`].
pub fn audit(inputs: &AuditInputs) -> Result<Audit> {
    let dataset = LabelDataset::open(inputs.labels)?;
    let plan = &dataset.manifest().plan;
    let devices = [(inputs.device.clone(), inputs.workers)];
    let mut teacher = Teacher::new(inputs.teacher, &devices);
    check_teacher(inputs.labels, &plan.teacher, &teacher.identity(Some(&plan.teacher), None)?)?;
    let mut chosen = choose(&dataset, inputs.positions, inputs.seed);
    let mut stored = Vec::with_capacity(chosen.len());
    for (row, indices) in &mut chosen {
        let labels = dataset.read(*row)?;
        without_noise(plan, &labels, indices);
        stored.push(at(&labels, indices));
    }
    // Rows and what is stored of them.
    let has_any = |labels: &SequenceLabels| !labels.positions.is_empty();
    let mut is_left = stored.iter().map(has_any).collect::<Vec<_>>().into_iter();
    chosen.retain(|_| is_left.next() == Some(true));
    stored.retain(has_any);
    let sequences: Vec<Sequence> = stored.iter().map(sequence).collect();

    let labeller = &mut teacher.labellers()?[0];
    check_stop(inputs)?;
    let done = progress(inputs.observer, "audit", sequences.len());
    let live = score(labeller, plan, &sequences, done)?;
    check_stop(inputs)?;
    labeller.pace = Pace { max_tokens_per_batch: usize::MAX, rows_per_chunk: CONTROL_ROWS, ..labeller.pace };
    let done = progress(inputs.observer, "control", sequences.len() + sequences.len() / 2);
    let control = control(labeller, plan, &sequences, done)?;

    let rows: Vec<usize> = chosen.iter().map(|(row, _)| *row).collect();
    let columns = judge(plan, &rows, [&stored, &live, &control]);
    Ok(Audit {
        positions: sequences.iter().map(|sequence| sequence.positions.len() as u64).sum(),
        of_positions: dataset.manifest().labelled_tokens,
        sequences: sequences.len(),
        columns,
    })
}

fn check_teacher(labels: &Path, expected: &TeacherIdentity, found: &TeacherIdentity) -> Result<(), Error> {
    let differences = differences(expected, found);
    if differences.is_empty() {
        return Ok(());
    }
    let place = format!("the recipe's teacher, for labels `{}`", labels.display());
    let found = format!("another:\n  {}", differences.join("\n  "));
    Err(Error::bad(place, "the teacher of the labels", found)
        .hint("name the model and adapter that made the labels"))
}

/// Random labelled positions: rows, ascending, and indices of their positions.
fn choose(dataset: &LabelDataset, wanted: usize, seed: u64) -> Vec<(usize, Vec<usize>)> {
    let counts = (0..dataset.len()).map(|row| dataset.token_counts(row).1);
    let all: usize = counts.clone().sum();
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let mut drawn = index::sample(&mut random, all, wanted.min(all)).into_vec();
    drawn.sort_unstable();
    let (mut drawn, mut start) = (drawn.into_iter().peekable(), 0);
    let mut chosen = Vec::new();
    for (row, count) in counts.enumerate() {
        let within = std::iter::from_fn(|| drawn.next_if(|index| *index < start + count));
        let indices: Vec<usize> = within.map(|index| index - start).collect();
        start += count;
        if !indices.is_empty() {
            chosen.push((row, indices));
        }
    }
    chosen
}

/// Leaves positions out whose label is wrong on purpose: of two tokens that are nearly as probable another one may be exchanged in
/// each pass.
fn without_noise(plan: &LabelPlan, labels: &SequenceLabels, indices: &mut Vec<usize>) {
    let Some(altered) = &plan.teacher.altered else { return };
    let key = labels.key();
    indices.retain(|index| !noise::hits(&key, plan.seed, altered.label_noise, labels.positions[*index]));
}

/// Labels of some of their positions.
fn at(labels: &SequenceLabels, indices: &[usize]) -> SequenceLabels {
    let entries: Vec<_> = labels.entries().collect();
    let entries = || indices.iter().map(|index| &entries[*index]);
    let pick = |column: &[f32]| match column {
        [] => Vec::new(), // left out
        column => indices.iter().map(|index| column[*index]).collect(),
    };
    SequenceLabels {
        source: labels.source.clone(),
        input_ids: labels.input_ids.clone(),
        positions: entries().map(|here| here.position).collect(),
        counts: indices.iter().map(|index| labels.counts[*index]).collect(),
        token_ids: entries().flat_map(|here| here.token_ids).copied().collect(),
        log_probs: entries().flat_map(|here| here.log_probs).copied().collect(),
        sample_counts: entries().flat_map(|here| here.sample_counts).copied().collect(),
        log_sum_exp: pick(&labels.log_sum_exp),
        tail_log_mass: pick(&labels.tail_log_mass),
        entropy: pick(&labels.entropy),
        gold_log_prob: pick(&labels.gold_log_prob),
        log_partitions: labels.log_partitions.iter().map(|column| pick(column)).collect(),
        tail_log_masses: labels.tail_log_masses.iter().map(|column| pick(column)).collect(),
    }
}

fn sequence(labels: &SequenceLabels) -> Sequence {
    let SequenceLabels { source, input_ids, positions, .. } = labels;
    Sequence { source: source.clone(), input_ids: input_ids.clone(), positions: positions.clone() }
}

/// Labels of the live teacher.
fn score(
    labeller: &Labeller,
    plan: &LabelPlan,
    sequences: &[Sequence],
    done: impl Fn(&Batch) + Sync,
) -> Result<Vec<SequenceLabels>> {
    let labels = labeller.label(sequences, &[Wanted::of(plan)?], done)?;
    Ok(labels.into_iter().flatten().collect())
}

/// Labels of the live teacher, of each second sequence alone and of the others padded to a longer one beside them.
fn control(
    labeller: &Labeller,
    plan: &LabelPlan,
    sequences: &[Sequence],
    done: impl Fn(&Batch) + Sync,
) -> Result<Vec<SequenceLabels>> {
    let wanted = [Wanted::of(plan)?];
    let most = labeller.decoder.config().context();
    let score = |(index, sequence): (usize, &Sequence)| -> Result<Option<SequenceLabels>> {
        let pair = [longer(sequence, most), sequence.clone()];
        let batch = if index.is_multiple_of(2) { &pair[1..] } else { &pair[..] };
        let mut labels = labeller.label(batch, &wanted, &done)?;
        Ok(labels.pop().and_then(|mut labels| labels.pop()))
    };
    let labels: Vec<Option<SequenceLabels>> = if labeller.pace.workers > 1 && !labeller.decoder.is_streamed()
    {
        sequences.par_iter().enumerate().map(score).collect::<Result<_>>()?
    } else {
        sequences.iter().enumerate().map(score).collect::<Result<_>>()?
    };
    Ok(labels.into_iter().flatten().collect())
}

/// A sequence with some of its tokens once more, up to `most` tokens.
fn longer(sequence: &Sequence, most: usize) -> Sequence {
    let ids = &sequence.input_ids;
    let input_ids = ids.iter().chain(ids.iter().cycle().take(CONTROL_PADDING)).copied();
    let input_ids: Vec<i32> = input_ids.take(most.max(ids.len())).collect();
    Sequence { source: None, input_ids, positions: vec![1] }
}

fn check_stop(inputs: &AuditInputs) -> io::Result<()> {
    if inputs.stop.load(Ordering::Relaxed) {
        return Err(io::Error::new(io::ErrorKind::Interrupted, "interrupted while auditing"));
    }
    Ok(())
}

/// All deviations of one column, with the sequence that each is of.
type Found = BTreeMap<Column, Vec<(usize, Deviation)>>;

fn judge(
    plan: &LabelPlan,
    rows: &[usize],
    [stored, live, control]: [&[SequenceLabels]; 3],
) -> Vec<ColumnAudit> {
    let all = |left: &[SequenceLabels], bits: Bits| {
        let mut found = Found::new();
        for (sequence, (left, live)) in left.iter().zip(live).enumerate() {
            for one in deviations(left, live, &plan.selection, bits) {
                found.entry(one.column).or_default().push((sequence, one));
                if one.column == Column::SampleCounts {
                    // Many small moves tell as well as a large one.
                    found.entry(Column::AllSampleCounts).or_default().push((sequence, one));
                }
            }
        }
        found
    };
    let (found, control) = (all(stored, Bits::of(plan)), all(control, Bits::ALL));
    let ascending = |column: Column| {
        let mut all: Vec<f64> =
            control.get(&column).into_iter().flatten().map(|(_, one)| one.deviation).collect();
        all.sort_by(f64::total_cmp);
        all
    };
    let size = |column: Column| {
        let sizes = found.get(&column).into_iter().flatten().map(|(_, one)| one.live.abs());
        sizes.filter(|size| size.is_finite()).fold(1.0, f64::max)
    };
    let bound = |column: Column| {
        // Tokens change places as far from the cut as their log-probabilities move.
        let values = if column == Column::TokenIds { Column::LogProbs } else { column };
        let control = f64::max(largest(column, &ascending(column)), largest(values, &ascending(values)));
        match column {
            Column::SampleCounts => (CONTROL_FACTOR * control).max(MOVED_DRAWS),
            Column::AllSampleCounts => CONTROL_FACTOR * control.max(ALL_MOVED_DRAWS),
            _ => CONTROL_FACTOR * control.max(LAST_BIT * size(values)),
        }
    };
    let bounds: BTreeMap<Column, f64> = found.keys().map(|column| (*column, bound(*column))).collect();
    let column = |(column, mut found): (Column, Vec<(usize, Deviation)>)| {
        let of_control = ascending(column);
        found.sort_by(|(_, a), (_, b)| a.deviation.total_cmp(&b.deviation));
        let (sequence, worst) = *found.last()?;
        let sorted: Vec<f64> = found.into_iter().map(|(_, one)| one.deviation).collect();
        Some(ColumnAudit {
            column: column.name(plan),
            largest: largest(column, &sorted),
            p99: percentile_99(&sorted),
            control_largest: largest(column, &of_control),
            control_p99: percentile_99(&of_control),
            bound: bounds[&column],
            worst: place(rows[sequence], &live[sequence], &worst),
        })
    };
    found.into_iter().filter_map(column).collect()
}

/// Of ascending deviations.
fn largest(column: Column, sorted: &[f64]) -> f64 {
    match column {
        Column::AllSampleCounts => sorted.iter().sum(),
        _ => sorted.last().copied().unwrap_or(0.0),
    }
}

fn place(row: usize, labels: &SequenceLabels, worst: &Deviation) -> Place {
    Place {
        row,
        key: labels.key().to_string(),
        source: labels.source.clone(),
        position: labels.positions[worst.index],
        token: worst.token,
        stored: worst.stored,
        live: worst.live,
    }
}

/// Of ascending values.
fn percentile_99(sorted: &[f64]) -> f64 {
    let index = (sorted.len() * 99).div_ceil(100).saturating_sub(1);
    sorted.get(index).copied().unwrap_or(0.0)
}
