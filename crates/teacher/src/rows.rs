//! Between the rows of a batch and the labels of its sequences.

use anyhow::Result;
use softshard_labels::{Error, LabelPlan, OptionalColumn, Selection, Sequence, SequenceLabels};
use softshard_losses::{HeadLabels, Keep};

/// What is kept of the teacher's distributions.
pub(crate) struct Wanted<'a> {
    pub(crate) keep: Keep,
    /// Of the draws and of the noise.
    pub(crate) seed: u64,
    pub(crate) logit_scale: f32,
    /// Share of the positions whose most probable token is exchanged with a random one below `vocab_size`.
    pub(crate) noise: f64,
    pub(crate) vocab_size: u32,
    pub(crate) temperatures: &'a [f32],
    /// Whether labels have the tails at these: those of plans that were begun before do not.
    tails: bool,
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
        let altered = plan.teacher.altered.as_ref();
        Ok(Self {
            keep,
            seed: plan.seed,
            #[expect(clippy::cast_possible_truncation, reason = "logits are f32")]
            logit_scale: altered.map_or(1.0, |altered| altered.logit_scale as f32),
            noise: altered.map_or(0.0, |altered| altered.label_noise),
            vocab_size: plan.tokenizer.vocab_size.min(plan.teacher.vocab_size),
            temperatures: &plan.temperatures,
            tails: plan.has_tails(),
            omit: &plan.omit,
        })
    }
}

#[cfg(test)]
impl Wanted<'static> {
    pub(crate) fn for_test(keep: Keep, noise: f64, vocab_size: u32) -> Self {
        Self {
            keep,
            seed: 3,
            logit_scale: 1.0,
            noise,
            vocab_size,
            temperatures: &[],
            tails: false,
            omit: &[],
        }
    }
}

/// Where the draws of each position begin.
pub(crate) fn uniforms(batch: &[&Sequence], wanted: &Wanted) -> Vec<f64> {
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
pub(crate) fn not_finite(batch: &[&Sequence], row: usize) -> Error {
    let mut positions =
        batch.iter().flat_map(|sequence| sequence.positions.iter().map(move |position| (sequence, position)));
    let place = positions
        .nth(row)
        .map_or_else(|| format!("row {row}"), |(sequence, at)| format!("{} position {at}", place(sequence)));
    Error::bad(place, "finite logits of the teacher", "NaN or infinity")
        .hint("check the teacher's weights; finished shards are intact")
}

/// Cuts the labels of a batch into those of its sequences, without the columns that are left out.
pub(crate) fn split(batch: &[&Sequence], labels: HeadLabels, wanted: &Wanted) -> Vec<SequenceLabels> {
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
            tail_log_masses: labels
                .tail_log_masses
                .iter()
                .filter(|_| wanted.tails)
                .map(|column| floats(column))
                .collect(),
        }
    };
    batch.iter().map(split).collect()
}
