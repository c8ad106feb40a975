//! Recipe sections `[teacher]` and `[labels]`.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use softshard_labels::Selection;

/// Most entries of a position: more cost gigabytes for less than rounding loses.
const MAX_K: u32 = 4096;

/// The model that labels. Recipe section `[teacher]`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TeacherConfig {
    /// Hugging Face folder.
    pub model: PathBuf,
    /// PEFT adapter over it, for example from `softshard finetune`.
    pub adapter: Option<PathBuf>,
    /// Tokens of one forward pass, padding included.
    #[serde(default = "default_max_tokens_per_batch")]
    pub max_tokens_per_batch: usize,
    /// Rows of hidden states that meet the vocabulary at a time: bounds the logits in memory.
    #[serde(default = "default_rows_per_chunk")]
    pub rows_per_chunk: usize,
}

/// What is kept of the teacher's distributions. Recipe section `[labels]`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LabelsConfig {
    /// Which tokens are kept at a position.
    #[serde(default = "default_selection")]
    pub selection: Selection,
    /// Mantissa bits kept of `log_probs`; 23 is exact f32.
    #[serde(default = "default_mantissa_bits")]
    pub mantissa_bits: u32,
    /// Temperatures other than 1 whose partition is stored, so that a student may use them.
    #[serde(default)]
    pub temperatures: Vec<f32>,
    /// Sequences of one shard; a crash loses the one in work and the one being written.
    #[serde(default = "default_sequences_per_shard")]
    pub sequences_per_shard: usize,
}

impl Default for LabelsConfig {
    fn default() -> Self {
        LabelsConfig {
            selection: default_selection(),
            mantissa_bits: default_mantissa_bits(),
            temperatures: Vec::new(),
            sequences_per_shard: default_sequences_per_shard(),
        }
    }
}

impl TeacherConfig {
    /// Refuses values that no run can use.
    ///
    /// # Errors
    /// A sentence naming the key, what was expected and what was found.
    pub fn check(&self) -> Result<(), String> {
        for (key, value) in
            [("max_tokens_per_batch", self.max_tokens_per_batch), ("rows_per_chunk", self.rows_per_chunk)]
        {
            if value == 0 {
                return Err(format!("`teacher.{key}`: expected at least 1, found 0"));
            }
        }
        Ok(())
    }
}

impl LabelsConfig {
    /// Refuses values that no run can use.
    ///
    /// # Errors
    /// A sentence naming the key, what was expected and what was found.
    pub fn check(&self) -> Result<(), String> {
        match self.selection {
            Selection::TopK { k: 0 } | Selection::TopP { k: 0, .. } => {
                return Err("`labels.selection.k`: expected at least 1, found 0".to_owned());
            }
            Selection::TopP { p, .. } if !(p > 0.0 && p <= 1.0) => {
                return Err(format!(
                    "`labels.selection.p`: expected a mass above 0 and at most 1, found {p}"
                ));
            }
            Selection::TopK { .. } | Selection::TopP { .. } => {}
        }
        let (Selection::TopK { k } | Selection::TopP { k, .. }) = self.selection;
        if k > MAX_K {
            return Err(format!("`labels.selection.k`: expected at most {MAX_K}, found {k}"));
        }
        if !(1..=23).contains(&self.mantissa_bits) {
            return Err(format!("`labels.mantissa_bits`: expected 1 to 23, found {}", self.mantissa_bits));
        }
        for &temperature in &self.temperatures {
            #[expect(clippy::float_cmp, reason = "1 is written, not computed")]
            if !(temperature.is_finite() && temperature > 0.0) || temperature == 1.0 {
                return Err(format!(
                    "`labels.temperatures`: expected numbers above 0 other than 1, found {temperature}"
                ));
            }
        }
        if !self.temperatures.is_sorted_by(|one, next| one < next) {
            return Err(format!(
                "`labels.temperatures`: expected ascending numbers, found {:?}",
                self.temperatures
            ));
        }
        if self.sequences_per_shard == 0 {
            return Err("`labels.sequences_per_shard`: expected at least 1, found 0".to_owned());
        }
        Ok(())
    }
}

fn default_max_tokens_per_batch() -> usize {
    8192
}
fn default_rows_per_chunk() -> usize {
    256
}
fn default_selection() -> Selection {
    Selection::TopK { k: 64 }
}
fn default_mantissa_bits() -> u32 {
    10
}
fn default_sequences_per_shard() -> usize {
    1000
}
