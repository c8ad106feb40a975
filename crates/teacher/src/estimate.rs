//! What a labelling run will cost and keep, from a small sample, before it begins.

use std::{
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
    time::Instant,
};

use anyhow::Result;
use burn::tensor::Device;
use rand::{SeedableRng, seq::index};
use rand_chacha::ChaCha8Rng;
use serde::Serialize;
use softshard_labels::{
    LabelDataset, LabelPlan, LabelStats, LabelWriter, Observer, OptionalColumn, OwnTokenizer, Selection,
    Sequence, SequenceDataset, SequenceLabels, ShardRecord,
};
use softshard_model::DecoderConfig;

use crate::{
    config::{LabelsConfig, TeacherConfig},
    labeller::{Labeller, Pace, progress},
    plan::plan,
    rows::Wanted,
    run::{check_fit, check_lengths},
    teacher::Teacher,
};

/// Numbers of entries that are tried.
const KS: [u32; 4] = [16, 32, 64, 128];
/// Draws that are tried.
const DRAWS: u32 = 50;
/// Mass that the suggested number of entries retains.
const ENOUGH_MASS: f64 = 0.95;
/// A sample has at least so many labelled tokens, if there are so many.
const MIN_LABELLED_TOKENS: u64 = 2000;
/// Parts of the sample whose sizes are compared.
const PARTS: usize = 8;
/// 97.5 % quantiles of Student's t for 1, 2, … degrees of freedom: one fewer than parts.
const STUDENT_T: [f64; PARTS - 1] = [12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365];
/// Columns that the sequences have as well.
const OF_SEQUENCES: [&str; 4] = ["sequence_key", "source", "input_ids", "positions"];

/// What an estimate reads.
pub struct EstimateInputs<'a> {
    /// Recipe section `[teacher]`.
    pub teacher: &'a TeacherConfig,
    /// Recipe section `[labels]`.
    pub labels: &'a LabelsConfig,
    /// Sequence datasets of the splits that are labelled; the sample is drawn from the first.
    pub sequences: &'a [PathBuf],
    /// Sequences that a temperature is fitted on, where the recipe calibrates the teacher.
    pub held_out: Option<&'a Path>,
    /// The teacher's tokenizer; sequences of one with other ids are refused.
    pub tokenizer: &'a OwnTokenizer,
    /// Sequences of the sample; more where they have less than 2,000 labelled tokens.
    pub sample: usize,
    /// Where the teacher runs.
    pub device: &'a Device,
    /// Batches that are computed at a time.
    pub workers: usize,
    /// Set to stop at the next step.
    pub stop: &'a AtomicBool,
    /// Sees how far it is.
    pub observer: &'a dyn Observer,
}

/// What a labelling run will cost and keep.
#[derive(Clone, Debug, Serialize)]
pub struct Estimate {
    /// What was measured.
    pub sample: Size,
    /// What would be labelled.
    pub splits: Vec<Split>,
    /// Tokens that the teacher reads in a second here, with the recipe's selection.
    pub tokens_per_second: f64,
    /// Seconds to load the teacher.
    pub load_seconds: f64,
    /// Seconds of the whole run.
    pub total_seconds: f64,
    /// Mean entropy of the teacher's distributions, nats.
    pub entropy_nats: Option<f64>,
    /// What each selection keeps and costs; the recipe's own first.
    pub selections: Vec<SelectionEstimate>,
    /// The fewest most probable tokens of those tried that retain 95 % of the mass on average.
    pub enough: Option<u32>,
}

/// Sequences and their tokens.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Size {
    /// Sequences.
    pub sequences: u64,
    /// Their tokens.
    pub tokens: u64,
    /// Their labelled tokens.
    pub labelled_tokens: u64,
}

/// A split that would be labelled.
#[derive(Clone, Debug, Serialize)]
pub struct Split {
    /// Its name.
    pub name: String,
    /// What it holds.
    pub size: Size,
    /// Shards that the recipe cuts it into.
    pub shards: usize,
}

/// What a selection keeps and costs.
#[derive(Clone, Debug, Serialize)]
pub struct SelectionEstimate {
    /// What is kept.
    pub selection: Selection,
    /// Mean probability of the exact entries, or of the drawn ones where none is exact.
    pub retained_mass: f64,
    /// The same at the position that 5 % of all are below.
    pub retained_mass_p5: f64,
    /// Mean entries of a position.
    pub entries: f64,
    /// Bytes of each split, in their order, whole files.
    pub bytes: Vec<u64>,
    /// Bytes of all splits for each labelled token.
    pub bytes_per_labelled_token: f64,
    /// The bytes are right to this share: the 95 % interval of the bytes per label, from up to eight parts of the sample, and
    /// what row groups cost in the sample, as larger ones may cost more or less. Unknown where the sample is one sequence of
    /// several.
    pub relative_error: Option<f64>,
}

/// Labels a sample, writes it as each selection would, and extrapolates.
///
/// # Errors
/// Sequences of another tokenizer or over the teacher's context, logits that are not finite, a temporary folder that
/// cannot be written. A stop that was asked for is an [`std::io::ErrorKind::Interrupted`].
pub fn estimate(inputs: &EstimateInputs) -> Result<Estimate> {
    let began = Instant::now();
    let config = DecoderConfig::load(&inputs.teacher.model)?;
    let datasets = inputs.sequences.iter().map(SequenceDataset::open).collect::<Result<Vec<_>, _>>()?;
    for (path, sequences) in inputs.sequences.iter().zip(&datasets) {
        check_fit(&inputs.teacher.model, &config, inputs.tokenizer, (path, sequences))?;
        check_lengths(sequences, &config, inputs.labels.sequences_per_shard)?;
    }
    let sample = sample(&datasets[0], inputs.sample)?;
    let devices = [(inputs.device.clone(), inputs.workers)];
    let mut teacher = Teacher::new(inputs.teacher, &devices);
    let plan = plan(teacher.identity(None, inputs.held_out)?, inputs.labels, &datasets[0])?;
    let labeller = &mut teacher.labellers()?[0];
    let of_recipe = labeller.pace;
    labeller.pace = small_pace(of_recipe, &sample);
    let load_seconds = began.elapsed().as_secs_f64();

    let plans = candidates(&plan);
    let tokens_per_second = tokens_per_second(inputs, labeller, &sample, &plans[0])?;
    labeller.pace = of_recipe;
    let wanted = plans.iter().map(Wanted::of).collect::<Result<Vec<_>>>()?;
    let labelled = labeller.label(&sample, &wanted, progress(inputs.observer, "plan", sample.len()))?;
    let splits: Vec<Split> = datasets.iter().map(|dataset| split(dataset, inputs.labels)).collect();
    let mut measured = Vec::with_capacity(plans.len());
    for (plan, labels) in plans.iter().zip(labelled) {
        measured.push(Measured::of(plan, &labels, inputs)?);
    }
    let of_sequences =
        |dataset: &SequenceDataset| dataset.manifest().shards.iter().map(|shard| shard.bytes).sum();
    let of_sequences: Vec<u64> = datasets.iter().map(of_sequences).collect();
    let all_tokens: u64 = splits.iter().map(|split| split.size.tokens).sum();
    let selections: Vec<SelectionEstimate> = plans
        .iter()
        .zip(&measured)
        .map(|(plan, measured)| measured.extrapolate(plan, &splits, &of_sequences, inputs.labels))
        .collect();
    let enough = |one: &&SelectionEstimate| one.retained_mass >= ENOUGH_MASS;
    let exact = |one: &SelectionEstimate| match one.selection {
        Selection::TopK { k } => Some(k),
        _ => None,
    };
    Ok(Estimate {
        sample: size(&sample),
        splits,
        tokens_per_second,
        load_seconds,
        total_seconds: load_seconds + float(all_tokens) / tokens_per_second,
        entropy_nats: measured.iter().find_map(|measured| Some(measured.stats.entropy_nats.as_ref()?.mean)),
        enough: selections.iter().filter(enough).filter_map(exact).min(),
        selections,
    })
}

/// Sequences drawn with the seed of the sequences: as many as wanted, and more until they have enough labelled tokens.
fn sample(sequences: &SequenceDataset, wanted: usize) -> Result<Vec<Sequence>> {
    let mut random = ChaCha8Rng::seed_from_u64(sequences.manifest().info.seed);
    // Each sequence has a labelled token at least.
    let most = sequences.len().min(wanted.max(usize::try_from(MIN_LABELLED_TOKENS)?));
    let (mut sample, mut labelled) = (Vec::new(), 0);
    for row in index::sample(&mut random, sequences.len(), most) {
        if sample.len() >= wanted && labelled >= MIN_LABELLED_TOKENS {
            break;
        }
        let mut read = sequences.read_range(row..row + 1)?;
        labelled += read.iter().map(|sequence| sequence.positions.len() as u64).sum::<u64>();
        sample.append(&mut read);
    }
    Ok(sample)
}

/// The recipe's pace, in batches small enough that a small sample has work for every worker.
fn small_pace(pace: Pace, sample: &[Sequence]) -> Pace {
    if pace.workers == 1 {
        return pace;
    }
    let tokens: usize = sample.iter().map(|sequence| sequence.input_ids.len()).sum();
    let share = tokens / (2 * pace.workers);
    Pace { max_tokens_per_batch: pace.max_tokens_per_batch.min(share.max(1)), ..pace }
}

/// The plan itself, then with other selections.
fn candidates(plan: &LabelPlan) -> Vec<LabelPlan> {
    let vocabulary = plan.teacher.vocab_size;
    let top = KS.iter().filter(|k| **k < vocabulary).map(|k| Selection::TopK { k: *k });
    let drawn = [Selection::Sampled { draws: DRAWS }, Selection::TopKSampled { k: KS[0], draws: DRAWS }];
    let fits =
        |selection: &Selection| !matches!(selection, Selection::TopKSampled { k, .. } if *k >= vocabulary);
    let others = top.chain(drawn).filter(fits).filter(|selection| *selection != plan.selection);
    let others = others.map(|selection| {
        let mut omit = plan.omit.clone();
        if selection.draws().is_some() {
            omit.retain(|column| *column != OptionalColumn::Entropy); // drawn labels need it
        }
        let version = LabelPlan::version_of(&selection, &plan.temperatures);
        LabelPlan { version, selection, omit, ..plan.clone() }
    });
    [plan.clone()].into_iter().chain(others).collect()
}

/// Times a pass over the sample, after one over its shortest sequence: threads and memory are there then.
fn tokens_per_second(
    inputs: &EstimateInputs,
    labeller: &Labeller,
    sample: &[Sequence],
    plan: &LabelPlan,
) -> Result<f64> {
    let wanted = [Wanted::of(plan)?];
    if let Some(shortest) = sample.iter().min_by_key(|sequence| sequence.input_ids.len()) {
        labeller.label(std::slice::from_ref(shortest), &wanted, |_| ())?;
    }
    stopped(inputs)?;
    let began = Instant::now();
    labeller.label(sample, &wanted, progress(inputs.observer, "plan", sample.len()))?;
    let seconds = began.elapsed().as_secs_f64();
    stopped(inputs)?;
    Ok(float(size(sample).tokens) / seconds)
}

fn stopped(inputs: &EstimateInputs) -> Result<()> {
    if inputs.stop.load(Ordering::Relaxed) {
        return Err(
            std::io::Error::new(std::io::ErrorKind::Interrupted, "interrupted while estimating").into()
        );
    }
    Ok(())
}

fn split(dataset: &SequenceDataset, labels: &LabelsConfig) -> Split {
    let manifest = dataset.manifest();
    let [sequences, tokens, labelled_tokens] =
        [manifest.rows, manifest.input_tokens, manifest.labelled_tokens];
    Split {
        name: manifest.info.split.clone(),
        size: Size { sequences, tokens, labelled_tokens },
        shards: dataset.len().div_ceil(labels.sequences_per_shard),
    }
}

/// A sample as it was written.
struct Measured {
    stats: LabelStats,
    /// Columns that the sequences have as well, for each token.
    common_per_token: f64,
    /// All other columns and the footers: for each row group, and for each labelled token.
    per_row_group: f64,
    per_label: f64,
    /// The 95 % interval of `per_label`, as a share of it; of one part nobody knows.
    spread: Option<f64>,
}

impl Measured {
    /// Writes the sample as the recipe would, and in parts.
    fn of(plan: &LabelPlan, labels: &[SequenceLabels], inputs: &EstimateInputs) -> Result<Self> {
        let rows = labels.len() as u64;
        let shards = LabelPlan::ranges(rows, inputs.labels.sequences_per_shard as u64);
        let (dataset, _folder) = write(plan, shards, labels)?;
        let stats = LabelStats::of(&dataset, inputs.stop)?;
        let (parts, _folder) = write(plan, LabelPlan::ranges(rows, rows.div_ceil(PARTS as u64)), labels)?;
        let of_parts = LabelStats::of(&parts, inputs.stop)?;

        let [groups, more_groups] = [&dataset, &parts].map(|dataset| float(dataset.groups() as u64));
        let [other, more] = [&stats, &of_parts].map(|stats| float(stats.bytes - common(stats)));
        // Where the parts are as large as the recipe's shards, they do not show what a row group costs.
        let per_row_group = if more_groups >= 2.0 * groups {
            ((more - other) / (more_groups - groups)).max(0.0)
        } else {
            float(footers(&stats)) / groups
        };
        let per_label = (other - per_row_group * groups) / float(stats.labelled_tokens);
        let per_token = float(common(&of_parts)) / float(of_parts.input_tokens);
        let rate = |shard: &ShardRecord| {
            (float(shard.bytes) - per_row_group - per_token * float(shard.input_tokens))
                / float(shard.labelled_tokens)
        };
        let rates: Vec<f64> = parts.manifest().shards.iter().map(rate).collect();
        Ok(Self {
            common_per_token: float(common(&stats)) / float(stats.input_tokens),
            per_row_group,
            per_label,
            spread: half_interval(&rates).map(|half| half / per_label),
            stats,
        })
    }

    /// Scales the sample to all splits.
    ///
    /// The columns that the sequences have as well are as large as there, unless shards are no larger than the sample, which
    /// then shows what cutting costs.
    fn extrapolate(
        &self,
        plan: &LabelPlan,
        splits: &[Split],
        of_sequences: &[u64],
        labels: &LabelsConfig,
    ) -> SelectionEstimate {
        let shards_are_small = labels.sequences_per_shard as u64 <= self.stats.sequences;
        let bytes = |(split, of_sequences): (&Split, &u64)| {
            let common = if shards_are_small {
                self.common_per_token * float(split.size.tokens)
            } else {
                float(*of_sequences)
            };
            let others = self.per_row_group * row_groups(plan, split)
                + self.per_label * float(split.size.labelled_tokens);
            (common + others).round()
        };
        let bytes: Vec<f64> = splits.iter().zip(of_sequences).map(bytes).collect();
        let sum = |of: fn(&Size) -> u64| float(splits.iter().map(|split| of(&split.size)).sum());
        let (sequences, labelled) = (sum(|size| size.sequences), sum(|size| size.labelled_tokens));
        let all: f64 = bytes.iter().sum();
        // What was measured needs no extrapolation.
        let left = 1.0 - (float(self.stats.sequences) / sequences).min(1.0);
        let scaled = self.per_label * labelled / all;
        let sampled_groups =
            self.per_row_group * row_groups(plan, &Split::of(&self.stats)) / float(self.stats.bytes);
        SelectionEstimate {
            selection: plan.selection.clone(),
            retained_mass: self.stats.retained_mass.mean,
            retained_mass_p5: self.stats.retained_mass.percentiles.get(&5).copied().unwrap_or(0.0),
            entries: self.stats.entries_per_position.mean,
            bytes_per_labelled_token: all / labelled,
            bytes: bytes.into_iter().map(whole).collect(),
            relative_error: if left > 0.0 {
                self.spread.map(|spread| left.sqrt() * scaled * spread + left * sampled_groups)
            } else {
                Some(0.0)
            },
        }
    }
}

impl Split {
    /// A sample as a split of its own.
    fn of(stats: &LabelStats) -> Self {
        let (sequences, tokens, labelled_tokens) =
            (stats.sequences, stats.input_tokens, stats.labelled_tokens);
        Self { name: String::new(), size: Size { sequences, tokens, labelled_tokens }, shards: stats.shards }
    }
}

/// Half the 95 % interval of the mean of two values or more, at most [`PARTS`].
fn half_interval(values: &[f64]) -> Option<f64> {
    let quantile = STUDENT_T.get(values.len().checked_sub(2)?)?;
    let count = float(values.len() as u64);
    let mean = values.iter().sum::<f64>() / count;
    let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
    Some(quantile * (squares / (count - 1.0) / count).sqrt())
}

/// Bytes of the columns that the sequences have as well.
fn common(stats: &LabelStats) -> u64 {
    let common = stats.columns.iter().filter(|column| OF_SEQUENCES.contains(&column.name.as_str()));
    common.map(|column| column.bytes).sum()
}

/// Row groups of a split: each shard has one at least.
fn row_groups(plan: &LabelPlan, split: &Split) -> f64 {
    let per_shard = float(split.size.labelled_tokens) / float(split.shards as u64);
    float(split.shards as u64) * (per_shard / f64::from(plan.row_group_tokens)).ceil()
}

/// What is no column.
fn footers(stats: &LabelStats) -> u64 {
    stats.columns.iter().filter(|column| column.name.starts_with('(')).map(|column| column.bytes).sum()
}

/// Writes labels to a temporary folder, which lives as long as what is given with the dataset.
fn write(
    plan: &LabelPlan,
    shards: Vec<[u64; 2]>,
    labels: &[SequenceLabels],
) -> Result<(LabelDataset, tempfile::TempDir)> {
    let folder = tempfile::tempdir()?;
    write_to(folder.path(), &LabelPlan { shards, ..plan.clone() }, labels)?;
    Ok((LabelDataset::open(folder.path())?, folder))
}

fn write_to(folder: &Path, plan: &LabelPlan, labels: &[SequenceLabels]) -> Result<()> {
    let writer = LabelWriter::create_or_resume(folder, plan.clone())?;
    for (index, &[start, end]) in plan.shards.iter().enumerate() {
        let mut shard = writer.shard(index)?;
        for row in &labels[usize::try_from(start)?..usize::try_from(end)?] {
            shard.push(row.clone())?;
        }
        shard.commit()?;
    }
    writer.finish()?;
    Ok(())
}

fn size(sequences: &[Sequence]) -> Size {
    Size {
        sequences: sequences.len() as u64,
        tokens: sequences.iter().map(|sequence| sequence.input_ids.len() as u64).sum(),
        labelled_tokens: sequences.iter().map(|sequence| sequence.positions.len() as u64).sum(),
    }
}

#[expect(clippy::cast_precision_loss, reason = "counts stay below 2^53")]
fn float(count: u64) -> f64 {
    count as f64
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "bytes are small, from 0")]
fn whole(value: f64) -> u64 {
    value as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interval_is_as_wide_as_its_values_are_few() {
        assert_eq!(half_interval(&[3.0]), None);
        // The standard error of 1 and 3 is 1.
        assert!((half_interval(&[1.0, 3.0]).unwrap() - 12.706).abs() < 1e-12);
        let eight = [1.0, 3.0, 1.0, 3.0, 1.0, 3.0, 1.0, 3.0];
        assert!((half_interval(&eight).unwrap() - 2.365 / 7f64.sqrt()).abs() < 1e-12);
        for parts in 2..=PARTS {
            assert!(half_interval(&vec![2.0; parts]).is_some(), "{parts}");
        }
    }
}
