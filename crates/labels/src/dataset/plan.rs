//! The plan of a label dataset: everything that decides what its files hold, fixed before work begins.

use std::collections::BTreeSet;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::shard::{ShardSchema, partition_column, tail_column};
use crate::values::{Error, LabelLimits, OptionalColumn, ReadLimits, Selection, Tokenizer, json};

/// What was done to the teacher's distributions on purpose, before anything was kept of them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Alteration {
    /// Logits were multiplied by it: below 1 the teacher is less sure, above 1 surer.
    #[schemars(extend("exclusiveMinimum" = 0))]
    pub logit_scale: f64,
    /// Whether the scale was fitted on held-out tokens, which makes it 1 / temperature.
    pub is_calibrated: bool,
    /// Share of the labelled positions whose most probable token was exchanged with a random one.
    #[schemars(range(min = 0, max = 1))]
    pub label_noise: f64,
}

/// Stands behind the `config_blake3` of a teacher whose `tail_log_mass` was computed of rounded or fitted numbers.
pub(crate) const APPROXIMATE_TAIL: &str = ", approximate tail";

/// The teacher that wrote the labels.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TeacherIdentity {
    /// BLAKE3 of the model's configuration, hexadecimal.
    pub config_blake3: String,
    /// BLAKE3 of the model's weights, hexadecimal.
    pub weights_blake3: String,
    /// BLAKE3 of the adapter, if one was used, hexadecimal.
    pub adapter_blake3: Option<String>,
    /// The type the forward pass was computed in, for example `f32`.
    pub dtype: String,
    /// Rows of the head: token ids of labels are below it.
    #[schemars(range(min = 1, max = i32::MAX))]
    pub vocab_size: u32,
    /// What was done to its distributions; nothing, where it is not there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub altered: Option<Alteration>,
}

impl TeacherIdentity {
    /// A teacher that labels of other programs name: nobody saw its files, so `unverified: NAME` stands where the hash of
    /// its weights would, and what wrote the labels where the hash of its configuration would.
    pub fn unverified(name: &str, origin: &str, vocab_size: u32) -> Self {
        Self {
            config_blake3: format!("unverified: {origin}"),
            weights_blake3: format!("unverified: {name}"),
            adapter_blake3: None,
            dtype: "unknown".to_owned(),
            vocab_size,
            altered: None,
        }
    }

    /// Whether its files were hashed.
    pub fn is_verified(&self) -> bool {
        !self.weights_blake3.starts_with("unverified: ")
    }

    /// Whether the mass that was cut off was computed of numbers that had been rounded or fitted before.
    pub fn has_approximate_tail(&self) -> bool {
        self.config_blake3.ends_with(APPROXIMATE_TAIL)
    }
}

/// Everything that decides what a label dataset holds: same plan, same bytes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LabelPlan {
    /// Always `softshard-labels-plan`.
    #[schemars(extend("const" = LabelPlan::FORMAT))]
    pub format: String,
    /// Version of the format: 2 where there are extra temperatures and exact entries, otherwise 1.
    #[schemars(range(min = LabelPlan::VERSION, max = LabelPlan::NEWEST_VERSION))]
    pub version: u32,
    /// BLAKE3 of the manifest of the sequence dataset, hexadecimal.
    pub sequences: String,
    /// Rows of the sequence dataset that each shard labels: `[start, end)`, ascending, none empty.
    #[schemars(length(min = 1))]
    pub shards: Vec<[u64; 2]>,
    /// The split the sequences come from, as `train`: a part of file names.
    #[schemars(regex(pattern = SPLIT))]
    pub split: String,
    /// The tokenizer of the sequences.
    pub tokenizer: Tokenizer,
    /// Name of the prompt template of the sequences.
    pub template: String,
    /// Who labels.
    pub teacher: TeacherIdentity,
    /// What is kept.
    pub selection: Selection,
    /// Mantissa bits kept of `log_probs`, 1..=23; 23 keeps every bit.
    #[schemars(range(min = 1, max = 23))]
    pub mantissa_bits: u32,
    /// Mantissa bits kept of the columns with one value per position, 1..=23. Where there are extra temperatures,
    /// `log_sum_exp` and the partitions keep every bit: they are subtracted from each other.
    #[schemars(range(min = 1, max = 23))]
    pub position_mantissa_bits: u32,
    /// Columns that are not there, ascending.
    #[schemars(extend("uniqueItems" = true))]
    pub omit: Vec<OptionalColumn>,
    /// Extra temperatures, ascending, none of them 1: one `log_partition_tX` column each, and in version 2 one
    /// `tail_log_mass_tX`.
    #[schemars(extend("items" = serde_json::json!({ "type": "number", "exclusiveMinimum": 0, "not": { "const": 1 } })))]
    pub temperatures: Vec<f32>,
    /// Seed of every random choice of the run.
    pub seed: u64,
    /// A row group is closed when it holds this many labelled tokens: 1..=65536.
    #[schemars(range(min = 1, max = 65536))]
    pub row_group_tokens: u32,
}

impl LabelPlan {
    /// Format name of a plan file.
    pub const FORMAT: &'static str = "softshard-labels-plan";
    /// Version of plans, and of their datasets, that have nothing of a later version.
    pub const VERSION: u32 = 1;
    /// The newest version that is read and written: of labels whose extra temperatures have tails.
    pub const NEWEST_VERSION: u32 = 2;
    /// Mantissa bits kept by default: as bf16, at a KL below 1e-5 nats.
    pub const DEFAULT_MANTISSA_BITS: u32 = 7;
    /// Mantissa bits of the columns with one value per position by default: as f16.
    pub const DEFAULT_POSITION_MANTISSA_BITS: u32 = 10;
    /// Labelled tokens per row group by default.
    pub const DEFAULT_ROW_GROUP_TOKENS: u32 = 12_288;

    /// Cuts `rows` sequences into ranges of at most `rows_per_shard` for [`LabelPlan::shards`].
    ///
    /// # Panics
    /// If `rows_per_shard` is 0.
    pub fn ranges(rows: u64, rows_per_shard: u64) -> Vec<[u64; 2]> {
        assert!(rows_per_shard > 0, "a shard holds at least one row");
        let count = rows.div_ceil(rows_per_shard);
        (0..count).map(|i| [i * rows_per_shard, rows.min((i + 1) * rows_per_shard)]).collect()
    }

    /// The version of labels with this selection and these extra temperatures: 2 where there are temperatures and exact entries,
    /// beyond which there is a mass at each temperature; otherwise 1, which other software reads as well.
    pub fn version_of(selection: &Selection, temperatures: &[f32]) -> u32 {
        if selection.is_exact() && !temperatures.is_empty() { Self::NEWEST_VERSION } else { Self::VERSION }
    }

    /// Whether labels say what mass lies beyond their entries at the extra temperatures. Of those that do not, a difference of
    /// rounded numbers does, which is noise below a temperature of 1.
    pub fn has_tails(&self) -> bool {
        self.version >= Self::NEWEST_VERSION
    }

    /// BLAKE3 of the plan file, hexadecimal: what shards and commits refer to.
    pub fn blake3(&self) -> String {
        blake3::hash(&json::to_bytes(self)).to_hex().to_string()
    }

    /// What labels of this plan may hold.
    pub fn limits(&self) -> LabelLimits {
        let teacher = self.teacher.vocab_size;
        let entries_per_position = match self.selection {
            Selection::TopK { k } => [k.min(teacher), k.min(teacher)],
            Selection::TopP { k, .. } => [1, k.min(teacher)],
            Selection::Sampled { draws } => [1, draws.min(teacher)],
            Selection::TopKSampled { k, draws } => [k, k.saturating_add(draws).min(teacher)],
        };
        LabelLimits {
            input_vocab_size: self.tokenizer.vocab_size,
            label_vocab_size: teacher,
            entries_per_position,
            exact_entries: self.selection.most_exact(),
            draws: self.selection.draws(),
            omit: self.omit.clone(),
            temperatures: self.temperatures.len(),
            tails: self.has_tails(),
        }
    }

    /// Schema of the shards.
    pub(crate) fn shard_schema(&self) -> ShardSchema {
        ShardSchema::labels(&self.limits(), &self.temperatures, self.version, self.blake3())
    }

    /// One line for each key in which `other` (found) differs from this plan (expected).
    pub fn differences(&self, other: &Self) -> Vec<String> {
        json::differences(self, other)
    }

    /// Checks every field that has a range.
    ///
    /// # Errors
    /// [`Error::Bad`] naming the first field that is out of range.
    pub fn validate(&self) -> Result<(), Error> {
        let check = |holds: bool, field: &str, expected: &str, found: String| {
            if holds { Ok(()) } else { Err(Error::bad(format_args!("plan: {field}"), expected, found)) }
        };
        check(self.format == Self::FORMAT, "format", Self::FORMAT, self.format.clone())?;
        let newest = Self::version_of(&self.selection, &self.temperatures);
        let expected = if newest == Self::VERSION { "1" } else { "1 or 2" };
        check(
            (Self::VERSION..=newest).contains(&self.version),
            "version",
            expected,
            self.version.to_string(),
        )?;
        check(!self.shards.is_empty(), "shards", "at least one shard", "none".to_owned())?;
        let mut end = self.shards.first().map_or(0, |range| range[0]);
        for range in &self.shards {
            let follows = range[0] == end && range[1] > range[0];
            check(follows, "shards", &format!("a range that starts at row {end}"), format!("{range:?}"))?;
            end = range[1];
        }
        let ids = 1..=i32::MAX.unsigned_abs();
        for (field, size) in [
            ("tokenizer.vocab_size", self.tokenizer.vocab_size),
            ("teacher.vocab_size", self.teacher.vocab_size),
        ] {
            check(ids.contains(&size), field, "1..=2147483647", size.to_string())?;
        }
        check_split(&self.split).map_err(|error| error.within("plan:"))?;
        if let Some(Alteration { logit_scale, label_noise, .. }) = self.teacher.altered {
            let in_f32 = logit_scale as f32;
            let is_scale = in_f32.is_finite() && in_f32 > 0.0;
            let expected = "a number above 0 that f32 holds";
            check(is_scale, "teacher.altered.logit_scale", expected, logit_scale.to_string())?;
            let is_share = (0.0..=1.0).contains(&label_noise);
            check(is_share, "teacher.altered.label_noise", "0 to 1", label_noise.to_string())?;
        }
        self.validate_selection()?;
        let [_, most] = self.limits().entries_per_position;
        let readable = ReadLimits::default().entries_per_position;
        let is_readable = usize::try_from(most).is_ok_and(|most| most <= readable);
        check(
            is_readable,
            "selection",
            &format!("at most {readable} entries per position"),
            most.to_string(),
        )?;
        for (field, bits) in
            [("mantissa_bits", self.mantissa_bits), ("position_mantissa_bits", self.position_mantissa_bits)]
        {
            check((1..=23).contains(&bits), field, "1..=23", bits.to_string())?;
        }
        let group = self.row_group_tokens;
        check((1..=65536).contains(&group), "row_group_tokens", "1..=65536", group.to_string())?;
        self.validate_omit()?;
        self.validate_temperatures()
    }

    fn validate_selection(&self) -> Result<(), Error> {
        let check = |holds: bool, field: &str, expected: &str, found: String| {
            if holds {
                Ok(())
            } else {
                Err(Error::bad(format_args!("plan: selection.{field}"), expected, found))
            }
        };
        match self.selection {
            Selection::TopK { k } => check(k > 0, "k", "at least 1", k.to_string()),
            Selection::TopP { p, k } => {
                check(k > 0, "k", "at least 1", k.to_string())?;
                check(p > 0.0 && p <= 1.0, "p", "above 0 and at most 1", p.to_string())
            }
            Selection::Sampled { draws } => Self::validate_draws(draws),
            Selection::TopKSampled { k, draws } => {
                let below = format!("at least 1 and below the vocabulary of {}", self.teacher.vocab_size);
                check((1..self.teacher.vocab_size).contains(&k), "k", &below, k.to_string())?;
                Self::validate_draws(draws)
            }
        }
    }

    fn validate_draws(draws: u32) -> Result<(), Error> {
        if (1..=Selection::MAX_DRAWS).contains(&draws) {
            return Ok(());
        }
        Err(Error::bad("plan: selection.draws", format_args!("1..={}", Selection::MAX_DRAWS), draws))
    }

    fn validate_omit(&self) -> Result<(), Error> {
        let found = format!("{:?}", self.omit.iter().map(|column| column.name()).collect::<Vec<_>>());
        if !self.omit.is_sorted_by(|one, next| one < next) {
            return Err(Error::bad("plan: omit", "columns in their order, each once", found));
        }
        let needed = |column: OptionalColumn, is_needed: bool, why: &str| {
            if is_needed && self.omit.contains(&column) {
                return Err(Error::bad("plan: omit", format_args!("no {}, as {why}", column.name()), &found));
            }
            Ok(())
        };
        let why = "other temperatures need it";
        needed(OptionalColumn::LogSumExp, !self.temperatures.is_empty(), why)?;
        let why = "a divergence from draws is measured against it";
        needed(OptionalColumn::Entropy, self.selection.draws().is_some(), why)
    }

    /// Names of the columns with the partitions of the extra temperatures, in their order.
    pub fn partition_columns(&self) -> Vec<String> {
        self.temperatures.iter().map(|temperature| partition_column(*temperature)).collect()
    }

    /// Names of the columns with the tails of the extra temperatures, in their order; none in version 1.
    pub fn tail_columns(&self) -> Vec<String> {
        let with_tails = self.temperatures.iter().filter(|_| self.has_tails());
        with_tails.map(|temperature| tail_column(*temperature)).collect()
    }

    fn validate_temperatures(&self) -> Result<(), Error> {
        // Each is a column.
        const MOST: usize = 1000;
        if self.temperatures.len() > MOST {
            let expected = format!("at most {MOST}");
            return Err(Error::bad("plan: temperatures", expected, self.temperatures.len()));
        }
        let ascending = self.temperatures.windows(2).all(|pair| pair[0] < pair[1]);
        let useful = self.temperatures.iter().all(|t| t.is_finite() && *t > 0.0 && *t != 1.0);
        let names: BTreeSet<String> = self.temperatures.iter().map(|t| partition_column(*t)).collect();
        if ascending && useful && names.len() == self.temperatures.len() {
            return Ok(());
        }
        let expected = "positive, ascending temperatures other than 1";
        Err(Error::bad("plan: temperatures", expected, format_args!("{:?}", self.temperatures)))
    }
}

/// What the name of a split looks like.
pub(crate) const SPLIT: &str = "^[A-Za-z0-9_-][A-Za-z0-9_.-]{0,199}$";

/// Refuses names of splits that would be more than a name in the file names they become part of.
pub(crate) fn check_split(split: &str) -> Result<(), Error> {
    let is_good = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-');
    if (1..=200).contains(&split.len()) && split.bytes().all(is_good) && !split.starts_with('.') {
        return Ok(());
    }
    let shown: String = split.chars().take(40).collect();
    let expected = "1 to 200 letters, digits, `_`, `-` and `.`, not a dot first";
    Err(Error::bad("split", expected, format_args!("{shown:?}")))
}
