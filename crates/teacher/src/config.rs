//! Recipe sections `[teacher]` and `[labels]`.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use softshard_labels::{LabelPlan, OptionalColumn, Selection, Split};
use softshard_model::{Bits, LoadOptions, Precision, Residency};

use crate::batch_size::BatchTokens;

/// Most entries of a position: more cost gigabytes for less than rounding loses.
const MAX_K: u32 = 4096;

/// The model that labels. Recipe section `[teacher]`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TeacherConfig {
    /// Hugging Face folder.
    pub model: PathBuf,
    /// PEFT adapter over it, for example from `softshard finetune`.
    pub adapter: Option<PathBuf>,
    /// Type of its weights and activations.
    #[serde(default)]
    pub precision: Precision,
    /// Where the weights of its layers are; `streamed` labels with a teacher larger than the memory.
    #[serde(default)]
    pub residency: Residency,
    /// Bits of the matrices of its layers, 8 or 4, if they are kept as codes: a little more than that many bits a weight, at
    /// the price of rounding.
    pub quantise: Option<Bits>,
    /// What its logits are multiplied by: below 1 the labels are those of a less confident teacher, above 1 of a more
    /// confident one.
    #[serde(default = "default_logit_scale")]
    pub logit_scale: f64,
    /// Fit the scale on the held-out tokens of `valid` instead.
    pub calibration: Option<Calibration>,
    /// Share of the labelled positions, chosen by the seed, whose most probable token changes places with a random one: how
    /// much does a student suffer from wrong labels?
    #[serde(default)]
    pub label_noise: f64,
    /// Tokens of one forward pass, padding included; `auto`: what fits in the free memory. Where it is not given: 8,192 on a GPU,
    /// and 1,024 on a CPU, whose cores are as fast with small batches and share them more evenly.
    pub max_tokens_per_batch: Option<BatchTokens>,
    /// Tokens that go through a layer before the next one is read, where layers are streamed: their states are in memory,
    /// and the cost of reading is spread over them. At most those of a shard.
    #[serde(default = "default_tokens_per_block")]
    pub tokens_per_block: usize,
    /// Rows of hidden states that meet the vocabulary at a time: bounds the logits in memory.
    #[serde(default = "default_rows_per_chunk")]
    pub rows_per_chunk: usize,
}

/// How a teacher is calibrated before it labels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Calibration {
    /// One temperature for all logits: the one with the least negative log-likelihood of held-out tokens (arXiv 1706.04599).
    Temperature,
}

/// What is kept of the teacher's distributions. Recipe section `[labels]`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LabelsConfig {
    /// Which tokens are kept at a position.
    #[serde(default = "default_selection")]
    pub selection: Selection,
    /// The sides of the split that are labelled, as `["train", "valid"]`; all that there are unless given. Without labels of
    /// `valid` a student is not judged by its distance to the teacher while it learns, and without those of `test` not at the end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub splits: Option<Vec<Split>>,
    /// Mantissa bits kept of `log_probs`; 23 is exact f32.
    #[serde(default = "default_mantissa_bits")]
    pub mantissa_bits: u32,
    /// Mantissa bits kept of the columns with one value per position; 23 is exact f32.
    #[serde(default = "default_position_mantissa_bits")]
    pub position_mantissa_bits: u32,
    /// Columns to leave out: `log_sum_exp` (temperatures other than 1 need it), `entropy` (drawn labels need it),
    /// `gold_log_prob` (judging the teacher needs it).
    #[serde(default)]
    pub omit: Vec<OptionalColumn>,
    /// Temperatures other than 1 whose partition, and the mass beyond the entries, are stored, so that a student may use them.
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
            splits: None,
            mantissa_bits: default_mantissa_bits(),
            position_mantissa_bits: default_position_mantissa_bits(),
            omit: Vec::new(),
            temperatures: Vec::new(),
            sequences_per_shard: default_sequences_per_shard(),
        }
    }
}

impl TeacherConfig {
    /// How its weights are brought into memory.
    pub(crate) fn load_options(&self) -> LoadOptions {
        LoadOptions { precision: self.precision, residency: self.residency, quantise: self.quantise }
    }

    /// Refuses values that no run can use.
    ///
    /// # Errors
    /// A sentence naming the key, what was expected and what was found.
    pub fn check(&self) -> Result<(), String> {
        self.load_options().check("teacher")?;
        for (key, value) in
            [("rows_per_chunk", self.rows_per_chunk), ("tokens_per_block", self.tokens_per_block)]
        {
            if value == 0 {
                return Err(format!("`teacher.{key}`: expected at least 1, found 0"));
            }
        }
        let scale = self.logit_scale;
        #[expect(clippy::cast_possible_truncation, reason = "logits are f32")]
        let in_use = scale as f32;
        if !(in_use.is_finite() && in_use > 0.0) {
            return Err(format!(
                "`teacher.logit_scale`: expected a number above 0 that f32 holds, found {scale}"
            ));
        }
        #[expect(clippy::float_cmp, reason = "1 is written, not computed")]
        if self.calibration.is_some() && scale != 1.0 {
            let hint = "hint: a calibration finds the scale; choose one of the two";
            return Err(format!(
                "`teacher.logit_scale`: expected 1 beside `calibration`, found {scale}\n{hint}"
            ));
        }
        if !(0.0..=1.0).contains(&self.label_noise) {
            return Err(format!("`teacher.label_noise`: expected 0 to 1, found {}", self.label_noise));
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
        self.check_selection()?;
        if let Some(splits) = &self.splits
            && (splits.is_empty() || !splits.is_sorted_by(|one, next| one < next))
        {
            let found: Vec<&str> = splits.iter().map(|split| split.name()).collect();
            let expected = "some of train, valid, test in this order, each once";
            return Err(format!("`labels.splits`: expected {expected}, found {found:?}"));
        }
        for (key, bits) in
            [("mantissa_bits", self.mantissa_bits), ("position_mantissa_bits", self.position_mantissa_bits)]
        {
            if !(1..=23).contains(&bits) {
                return Err(format!("`labels.{key}`: expected 1 to 23, found {bits}"));
            }
        }
        if !self.omit.is_sorted_by(|one, next| one < next) {
            let expected = "log_sum_exp, entropy, gold_log_prob in this order, each once";
            let found: Vec<&str> = self.omit.iter().map(|column| column.name()).collect();
            return Err(format!("`labels.omit`: expected {expected}, found {found:?}"));
        }
        if self.omit.contains(&OptionalColumn::LogSumExp) && !self.temperatures.is_empty() {
            return Err("`labels.omit`: expected no log_sum_exp, as `labels.temperatures` need it".to_owned());
        }
        if self.omit.contains(&OptionalColumn::Entropy) && self.selection.draws().is_some() {
            return Err("`labels.omit`: expected no entropy, as drawn labels need it".to_owned());
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

    fn check_selection(&self) -> Result<(), String> {
        let draws = |draws: u32| match draws {
            1..=Selection::MAX_DRAWS => Ok(()),
            _ => {
                let most = Selection::MAX_DRAWS;
                Err(format!("`labels.selection.draws`: expected 1 to {most}, found {draws}"))
            }
        };
        let exact = |k: u32| match k {
            1..=MAX_K => Ok(()),
            _ => Err(format!("`labels.selection.k`: expected 1 to {MAX_K}, found {k}")),
        };
        match self.selection {
            Selection::TopK { k } => exact(k),
            Selection::TopP { p, k } if p > 0.0 && p <= 1.0 => exact(k),
            Selection::TopP { p, .. } => {
                Err(format!("`labels.selection.p`: expected a mass above 0 and at most 1, found {p}"))
            }
            Selection::Sampled { draws: count } => draws(count),
            Selection::TopKSampled { k, draws: count } => exact(k).and_then(|()| draws(count)),
        }
    }
}

fn default_logit_scale() -> f64 {
    1.0
}
fn default_tokens_per_block() -> usize {
    65_536
}
fn default_rows_per_chunk() -> usize {
    256
}
fn default_selection() -> Selection {
    Selection::TopK { k: 64 }
}
fn default_mantissa_bits() -> u32 {
    LabelPlan::DEFAULT_MANTISSA_BITS
}
fn default_position_mantissa_bits() -> u32 {
    LabelPlan::DEFAULT_POSITION_MANTISSA_BITS
}
fn default_sequences_per_shard() -> usize {
    1000
}
