//! Labels without owning them: what is checked, decoded or not.

use crate::SequenceLabels;

/// Labels of one sequence, borrowed: see [`SequenceLabels`] for the fields.
#[derive(Debug)]
pub(crate) struct LabelsView<'a> {
    pub(crate) input_ids: &'a [i32],
    pub(crate) positions: &'a [i32],
    pub(crate) counts: &'a [i32],
    pub(crate) token_ids: &'a [i32],
    pub(crate) log_probs: &'a [f32],
    pub(crate) log_sum_exp: &'a [f32],
    pub(crate) tail_log_mass: &'a [f32],
    pub(crate) entropy: &'a [f32],
    pub(crate) gold_log_prob: &'a [f32],
    pub(crate) log_partitions: Vec<&'a [f32]>,
}

impl<'a> From<&'a SequenceLabels> for LabelsView<'a> {
    fn from(labels: &'a SequenceLabels) -> Self {
        Self {
            input_ids: &labels.input_ids,
            positions: &labels.positions,
            counts: &labels.counts,
            token_ids: &labels.token_ids,
            log_probs: &labels.log_probs,
            log_sum_exp: &labels.log_sum_exp,
            tail_log_mass: &labels.tail_log_mass,
            entropy: &labels.entropy,
            gold_log_prob: &labels.gold_log_prob,
            log_partitions: labels.log_partitions.iter().map(Vec::as_slice).collect(),
        }
    }
}
