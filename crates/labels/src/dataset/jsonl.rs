//! A label dataset as lines of JSON, one for each sequence: what an export writes, and an import reads.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::plan::LabelPlan;
use crate::host::with_suffix;
use crate::values::{Error, LabelsView, SequenceKey, SequenceLabels};

/// One line. Keys that a dataset does not have are not there; numbers read back to the same bits.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Line {
    sequence_key: String,
    source: Option<String>,
    input_ids: Vec<i32>,
    positions: Vec<i32>,
    /// A list for each position.
    token_ids: Vec<Vec<i32>>,
    /// A list for each position: one value for each of its exact entries.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    log_probs: Vec<Vec<f32>>,
    /// A list for each position: one value for each of its drawn entries.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    sample_counts: Vec<Vec<i32>>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    log_sum_exp: Vec<f32>,
    /// `null` where nothing was cut off: JSON has no infinity.
    tail_log_mass: Vec<Option<f32>>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    entropy: Vec<f32>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    gold_log_prob: Vec<f32>,
    /// A list for each extra temperature of the plan.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    log_partitions: Vec<Vec<f32>>,
    /// A list for each extra temperature of the plan, in labels of version 2; `null` as above.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    tail_log_masses: Vec<Vec<Option<f32>>>,
}

impl Line {
    /// A row, as its plan says.
    pub(crate) fn new(
        key: SequenceKey,
        source: Option<&str>,
        labels: &LabelsView<'_>,
        plan: &LabelPlan,
    ) -> Self {
        let (mut token_ids, mut log_probs, mut sample_counts) = (Vec::new(), Vec::new(), Vec::new());
        for entries in labels.entries() {
            token_ids.push(entries.token_ids.to_vec());
            if plan.selection.is_exact() {
                log_probs.push(entries.log_probs.to_vec());
            }
            if plan.selection.draws().is_some() {
                sample_counts.push(entries.sample_counts.to_vec());
            }
        }
        Self {
            sequence_key: key.to_string(),
            source: source.map(str::to_owned),
            input_ids: labels.input_ids.to_vec(),
            positions: labels.positions.to_vec(),
            token_ids,
            log_probs,
            sample_counts,
            log_sum_exp: labels.log_sum_exp.to_vec(),
            tail_log_mass: or_null(labels.tail_log_mass),
            entropy: labels.entropy.to_vec(),
            gold_log_prob: labels.gold_log_prob.to_vec(),
            log_partitions: labels.log_partitions.iter().map(|column| column.to_vec()).collect(),
            tail_log_masses: labels.tail_log_masses.iter().map(|column| or_null(column)).collect(),
        }
    }

    /// The labels, whose lengths nobody looked at but those of the lists in lists.
    pub(crate) fn into_labels(self, plan: &LabelPlan) -> Result<SequenceLabels, Error> {
        let key = SequenceKey::of(&self.input_ids).to_string();
        if self.sequence_key != key {
            let expected = format!("{key}, as of input_ids");
            return Err(Error::bad("sequence_key", expected, format_args!("{:?}", self.sequence_key)));
        }
        let limits = plan.limits();
        let positions = self.token_ids.len();
        let mut counts = Vec::with_capacity(positions);
        for (index, ids) in self.token_ids.iter().enumerate() {
            let exact = limits.exact(ids.len());
            let drawn = ids.len() - exact;
            for (name, lists, expected, length) in [
                ("log_probs", self.log_probs.len(), exact, self.log_probs.get(index).map_or(0, Vec::len)),
                (
                    "sample_counts",
                    self.sample_counts.len(),
                    drawn,
                    self.sample_counts.get(index).map_or(0, Vec::len),
                ),
            ] {
                if length != expected || (lists != positions && lists != 0) {
                    let place = format!("{name}[{index}]");
                    return Err(Error::bad(place, format_args!("{expected} values"), length));
                }
            }
            counts
                .push(i32::try_from(ids.len()).map_err(|_| Error::bad("token_ids", "fewer ids", ids.len()))?);
        }
        Ok(SequenceLabels {
            source: self.source,
            input_ids: self.input_ids,
            positions: self.positions,
            counts,
            token_ids: self.token_ids.concat(),
            log_probs: self.log_probs.concat(),
            sample_counts: self.sample_counts.concat(),
            log_sum_exp: self.log_sum_exp,
            tail_log_mass: or_infinite(self.tail_log_mass),
            entropy: self.entropy,
            gold_log_prob: self.gold_log_prob,
            log_partitions: self.log_partitions,
            tail_log_masses: self.tail_log_masses.into_iter().map(or_infinite).collect(),
        })
    }
}

/// Logarithms of masses, `None` for one of no mass.
fn or_null(masses: &[f32]) -> Vec<Option<f32>> {
    masses.iter().map(|mass| mass.is_finite().then_some(*mass)).collect()
}

fn or_infinite(masses: Vec<Option<f32>>) -> Vec<f32> {
    masses.into_iter().map(|mass| mass.unwrap_or(f32::NEG_INFINITY)).collect()
}

/// The manifest that an export puts beside its JSONL file, and an import takes the plan from.
pub(crate) fn manifest_beside(jsonl: &Path) -> PathBuf {
    with_suffix(jsonl, ".manifest.json")
}
