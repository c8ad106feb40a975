//! Labels without owning them: what is checked, and what a decoded row group gives.

use super::labels::SequenceLabels;

/// Labels of one sequence, borrowed: see [`SequenceLabels`] for the fields.
#[derive(Clone, Debug, PartialEq)]
pub struct LabelsView<'a> {
    /// The whole sequence.
    pub input_ids: &'a [i32],
    /// Labelled positions.
    pub positions: &'a [i32],
    /// Entries kept per position.
    pub counts: &'a [i32],
    /// Token ids, position after position.
    pub token_ids: &'a [i32],
    /// Log-probabilities of the exact entries.
    pub log_probs: &'a [f32],
    /// Counts of the drawn entries.
    pub sample_counts: &'a [i32],
    /// Of the raw logits.
    pub log_sum_exp: &'a [f32],
    /// Logarithm of the probability that was cut off.
    pub tail_log_mass: &'a [f32],
    /// In nats.
    pub entropy: &'a [f32],
    /// Of the token that is really there.
    pub gold_log_prob: &'a [f32],
    /// One for each extra temperature.
    pub log_partitions: Vec<&'a [f32]>,
    /// One for each extra temperature, if they have tails.
    pub tail_log_masses: Vec<&'a [f32]>,
}

/// Entries of one position.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PositionEntries<'a> {
    /// The labelled position.
    pub position: i32,
    /// Token ids: first the exact ones, then the drawn ones.
    pub token_ids: &'a [i32],
    /// Log-probabilities of the exact ones.
    pub log_probs: &'a [f32],
    /// Counts of the drawn ones.
    pub sample_counts: &'a [i32],
}

impl<'a> LabelsView<'a> {
    /// Entries of each position.
    ///
    /// # Panics
    /// If the lengths do not agree, which no reader lets through.
    pub fn entries(&self) -> impl Iterator<Item = PositionEntries<'a>> + use<'a> {
        let (mut token_ids, mut log_probs, mut sample_counts) =
            (self.token_ids, self.log_probs, self.sample_counts);
        // Where entries are drawn, every position has the same number of exact ones.
        let exact =
            if sample_counts.is_empty() { usize::MAX } else { log_probs.len() / self.positions.len() };
        self.positions.iter().zip(self.counts).map(move |(&position, &count)| {
            let count = usize::try_from(count).expect("counts are not negative");
            let exact = exact.min(count);
            PositionEntries {
                position,
                token_ids: take(&mut token_ids, count),
                log_probs: take(&mut log_probs, exact),
                sample_counts: take(&mut sample_counts, count - exact),
            }
        })
    }

    /// A copy of the row, with where the example came from.
    pub(crate) fn to_labels(&self, source: Option<String>) -> SequenceLabels {
        SequenceLabels {
            source,
            input_ids: self.input_ids.to_vec(),
            positions: self.positions.to_vec(),
            counts: self.counts.to_vec(),
            token_ids: self.token_ids.to_vec(),
            log_probs: self.log_probs.to_vec(),
            sample_counts: self.sample_counts.to_vec(),
            log_sum_exp: self.log_sum_exp.to_vec(),
            tail_log_mass: self.tail_log_mass.to_vec(),
            entropy: self.entropy.to_vec(),
            gold_log_prob: self.gold_log_prob.to_vec(),
            log_partitions: self.log_partitions.iter().map(|column| column.to_vec()).collect(),
            tail_log_masses: self.tail_log_masses.iter().map(|column| column.to_vec()).collect(),
        }
    }
}

/// Splits the first values off.
fn take<'a, T>(values: &mut &'a [T], count: usize) -> &'a [T] {
    let (first, rest) = values.split_at(count);
    *values = rest;
    first
}

impl<'a> From<&'a SequenceLabels> for LabelsView<'a> {
    fn from(labels: &'a SequenceLabels) -> Self {
        Self {
            input_ids: &labels.input_ids,
            positions: &labels.positions,
            counts: &labels.counts,
            token_ids: &labels.token_ids,
            log_probs: &labels.log_probs,
            sample_counts: &labels.sample_counts,
            log_sum_exp: &labels.log_sum_exp,
            tail_log_mass: &labels.tail_log_mass,
            entropy: &labels.entropy,
            gold_log_prob: &labels.gold_log_prob,
            log_partitions: labels.log_partitions.iter().map(Vec::as_slice).collect(),
            tail_log_masses: labels.tail_log_masses.iter().map(Vec::as_slice).collect(),
        }
    }
}
