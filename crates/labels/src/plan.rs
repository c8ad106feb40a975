//! The plan of a label dataset: everything that decides what its files hold, fixed before work begins.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::{Error, LabelLimits, Tokenizer, json};

/// Which entries of the teacher's distribution are kept at each position.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Selection {
    /// The `k` most probable tokens.
    TopK {
        /// Entries per position (the whole vocabulary where it is smaller).
        k: u32,
    },
    /// The smallest set of most probable tokens whose mass reaches `p`, at most `k` of them.
    TopP {
        /// Probability mass to reach, above 0 and at most 1.
        p: f64,
        /// Most entries per position.
        k: u32,
    },
}

/// The teacher that wrote the labels.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
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
    pub vocab_size: u32,
}

/// Everything that decides what a label dataset holds: same plan, same bytes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LabelPlan {
    /// Always [`LabelPlan::FORMAT`].
    pub format: String,
    /// Always [`LabelPlan::VERSION`].
    pub version: u32,
    /// BLAKE3 of the manifest of the sequence dataset, hexadecimal.
    pub sequences: String,
    /// Rows of the sequence dataset that each shard labels: `[start, end)`, ascending, none empty.
    pub shards: Vec<[u64; 2]>,
    /// The split the sequences come from, as `train`.
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
    pub mantissa_bits: u32,
    /// Extra temperatures, ascending, none of them 1: one `log_partition_tX` column each.
    pub temperatures: Vec<f32>,
    /// Seed of every random choice of the run.
    pub seed: u64,
    /// A row group is closed when it holds this many labelled tokens: 1..=65536.
    pub row_group_tokens: u32,
}

impl LabelPlan {
    /// Format name of a plan file.
    pub const FORMAT: &'static str = "softshard-labels-plan";
    /// Version of the plan file.
    pub const VERSION: u32 = 1;
    /// Mantissa bits kept by default: as f16, at a KL of about 1e-7 nats.
    pub const DEFAULT_MANTISSA_BITS: u32 = 10;
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

    /// BLAKE3 of the plan file, hexadecimal: what shards and commits refer to.
    pub fn blake3(&self) -> String {
        blake3::hash(&json::to_bytes(self)).to_hex().to_string()
    }

    /// What labels of this plan may hold.
    pub fn limits(&self) -> LabelLimits {
        let teacher = self.teacher.vocab_size;
        let (min, max) = match self.selection {
            Selection::TopK { k } => (k.min(teacher), k.min(teacher)),
            Selection::TopP { k, .. } => (1, k.min(teacher)),
        };
        LabelLimits {
            input_vocab_size: self.tokenizer.vocab_size,
            label_vocab_size: teacher,
            entries_per_position: [min, max],
            temperatures: self.temperatures.len(),
        }
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
        check(self.version == Self::VERSION, "version", "1", self.version.to_string())?;
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
        let (k, p) = match self.selection {
            Selection::TopK { k } => (k, 1.0),
            Selection::TopP { p, k } => (k, p),
        };
        check(k > 0, "selection.k", "at least 1", k.to_string())?;
        check(p > 0.0 && p <= 1.0, "selection.p", "above 0 and at most 1", p.to_string())?;
        check(
            (1..=23).contains(&self.mantissa_bits),
            "mantissa_bits",
            "1..=23",
            self.mantissa_bits.to_string(),
        )?;
        let group = self.row_group_tokens;
        check((1..=65536).contains(&group), "row_group_tokens", "1..=65536", group.to_string())?;
        self.validate_temperatures()
    }

    fn validate_temperatures(&self) -> Result<(), Error> {
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

/// Name of the column that holds the log-partition at a temperature: 2 → `log_partition_t2`, 1.5 → `log_partition_t1_5`.
///
/// A dot would split the name in the readers that take it for a path.
pub(crate) fn partition_column(temperature: f32) -> String {
    format!("log_partition_t{temperature}").replace('.', "_")
}
