//! The labels of one sequence.

use super::error::Error;
use super::key::SequenceKey;
use super::selection::OptionalColumn;
use super::validate::Validator;
use super::view::{LabelsView, PositionEntries};

/// The teacher's labels of one sequence of L tokens, N of them labelled, E entries kept in all.
///
/// The labels at position t describe the teacher's distribution of token t given the tokens before t.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SequenceLabels {
    /// Where the example came from.
    pub source: Option<String>,
    /// The whole sequence, L ids.
    pub input_ids: Vec<i32>,
    /// Labelled positions, ascending, each in 1..L; N of them.
    pub positions: Vec<i32>,
    /// Entries kept per position, N; they sum to E.
    pub counts: Vec<i32>,
    /// Token ids, E: per position first the exact ones by falling `log_probs`, then the drawn ones by falling
    /// `sample_counts`, ties by id; none twice.
    pub token_ids: Vec<i32>,
    /// Natural logarithm of the teacher's full-vocabulary probability at T=1, one for each exact entry; never
    /// renormalised. Empty for [`Selection::Sampled`](crate::Selection::Sampled).
    pub log_probs: Vec<f32>,
    /// How often an entry was drawn, one for each drawn entry. Empty for selections that do not draw.
    pub sample_counts: Vec<i32>,
    /// Of the raw logits over the full vocabulary, N: raw logit = log-probability + log-sum-exp. Empty if omitted.
    pub log_sum_exp: Vec<f32>,
    /// Logarithm of the probability beyond the exact entries, N (beyond the drawn ones where none is exact); −∞ where
    /// there is none.
    pub tail_log_mass: Vec<f32>,
    /// Entropy of the full distribution in nats, N. Empty if omitted.
    pub entropy: Vec<f32>,
    /// Log-probability of the token that is really there, N. Empty if omitted.
    pub gold_log_prob: Vec<f32>,
    /// For each extra temperature X of the plan: log Σ exp(z/X), N each.
    pub log_partitions: Vec<Vec<f32>>,
    /// For each extra temperature X of the plan: logarithm of the probability at X beyond the exact entries, N each; −∞ where there is
    /// none. Empty in labels of version 1.
    pub tail_log_masses: Vec<Vec<f32>>,
}

/// What labels of a plan may hold, see [`LabelPlan::limits`](crate::LabelPlan::limits).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LabelLimits {
    /// `input_ids` are below it.
    pub input_vocab_size: u32,
    /// `token_ids` are below it.
    pub label_vocab_size: u32,
    /// Fewest and most entries of a position.
    pub entries_per_position: [u32; 2],
    /// Entries of a position beyond this many are drawn; the ones before are exact.
    pub exact_entries: u32,
    /// Draws of a position, where the selection draws.
    pub draws: Option<u32>,
    /// Columns that are empty.
    pub omit: Vec<OptionalColumn>,
    /// Number of extra temperatures.
    pub temperatures: usize,
    /// Whether each of them has a tail.
    pub tails: bool,
}

impl LabelLimits {
    /// Whether labels have this column.
    pub(crate) fn has(&self, column: OptionalColumn) -> bool {
        !self.omit.contains(&column)
    }

    /// Number of extra temperatures that have a tail.
    pub(crate) fn tails(&self) -> usize {
        if self.tails { self.temperatures } else { 0 }
    }

    /// Exact entries among `count` of a position.
    pub(crate) fn exact(&self, count: usize) -> usize {
        usize::try_from(self.exact_entries).map_or(count, |exact| exact.min(count))
    }
}

impl SequenceLabels {
    /// The key of the sequence.
    pub fn key(&self) -> SequenceKey {
        SequenceKey::of(&self.input_ids)
    }

    /// The tokens that are really there, one per position.
    ///
    /// # Panics
    /// If a position is outside of the sequence, which [`SequenceLabels::validate`] refuses.
    pub fn gold(&self) -> Vec<i32> {
        super::sequence::tokens_at(&self.input_ids, &self.positions)
    }

    /// Entries of each position.
    ///
    /// # Panics
    /// If the lengths do not agree, which [`SequenceLabels::validate`] refuses.
    pub fn entries(&self) -> impl Iterator<Item = PositionEntries<'_>> {
        LabelsView::from(self).entries()
    }

    /// Memory of the values that a reader decodes.
    pub(crate) fn value_bytes(&self) -> usize {
        let ints = [&self.input_ids, &self.positions, &self.counts, &self.token_ids, &self.sample_counts]
            .map(Vec::len);
        let floats =
            [&self.log_probs, &self.log_sum_exp, &self.tail_log_mass, &self.entropy, &self.gold_log_prob];
        let floats =
            floats.into_iter().chain(&self.log_partitions).chain(&self.tail_log_masses).map(Vec::len);
        4 * ints.into_iter().chain(floats).sum::<usize>() + self.source.as_ref().map_or(0, String::len)
    }

    /// Checks all that a reader relies on: lengths, ranges, order, signs, no NaN.
    ///
    /// # Errors
    /// [`Error::Bad`] naming the first field and position that is wrong.
    pub fn validate(&self, limits: &LabelLimits) -> Result<(), Error> {
        Validator::new(limits).labels(&self.into())
    }

    /// Checks what only exact values can show: kept and cut mass add up to 1, and `gold_log_prob` is that of the
    /// token at its position. Drawn entries show nothing. The writer calls it before rounding; it finds labels that are off by one.
    ///
    /// # Errors
    /// [`Error::Bad`] naming the first position that is wrong.
    pub fn validate_exact(&self) -> Result<(), Error> {
        super::validate::exact(self)
    }
}
