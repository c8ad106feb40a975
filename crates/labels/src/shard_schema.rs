//! The Parquet schemas of label and sequence shards.

use std::fmt::Write;
use std::sync::Arc;

use parquet::schema::parser::parse_message_type;
use parquet::schema::types::TypePtr;

use crate::plan::partition_column;
use crate::{LabelPlan, LabelsManifest, SequencesManifest};

/// Columns that both kinds of shards begin with.
const COMMON: &str = "required fixed_len_byte_array(16) sequence_key; optional binary source (STRING);";
/// Index of `source`, the only column that may be null.
pub(crate) const KEY: usize = 0;
pub(crate) const SOURCE: usize = 1;
pub(crate) const INPUT_IDS: usize = 2;
pub(crate) const POSITIONS: usize = 3;
pub(crate) const COUNTS: usize = 4;
pub(crate) const TOKEN_IDS: usize = 5;
pub(crate) const LOG_PROBS: usize = 6;
pub(crate) const LOG_SUM_EXP: usize = 7;
pub(crate) const TAIL_LOG_MASS: usize = 8;
pub(crate) const ENTROPY: usize = 9;
pub(crate) const GOLD_LOG_PROB: usize = 10;
/// First of the columns for extra temperatures.
pub(crate) const LOG_PARTITIONS: usize = 11;

/// What a shard must be: its columns, and the key-values that tie it to its dataset.
#[derive(Clone, Debug)]
pub(crate) struct ShardSchema {
    pub(crate) message: TypePtr,
    /// Key-values that are known before the first row, as `softshard.format`.
    pub(crate) key_values: Vec<(&'static str, String)>,
}

impl ShardSchema {
    /// Shards of a label dataset with this plan.
    pub(crate) fn labels(plan: &LabelPlan) -> Self {
        let mut columns = String::new();
        for name in ["input_ids", "positions", "counts", "token_ids"] {
            push_list(&mut columns, "int32", name);
        }
        for name in ["log_probs", "log_sum_exp", "tail_log_mass", "entropy", "gold_log_prob"] {
            push_list(&mut columns, "float", name);
        }
        for temperature in &plan.temperatures {
            push_list(&mut columns, "float", &partition_column(*temperature));
        }
        let mut schema = Self::new("labels", &columns, LabelsManifest::FORMAT, LabelsManifest::VERSION);
        schema.key_values.push(("softshard.plan_blake3", plan.blake3()));
        schema
    }

    /// Shards of a sequence dataset.
    pub(crate) fn sequences() -> Self {
        let mut columns = String::new();
        push_list(&mut columns, "int32", "input_ids");
        push_list(&mut columns, "int32", "positions");
        Self::new("sequences", &columns, SequencesManifest::FORMAT, SequencesManifest::VERSION)
    }

    fn new(name: &str, columns: &str, format: &str, version: u32) -> Self {
        let message = parse_message_type(&format!("message {name} {{ {COMMON} {columns} }}"))
            .expect("the text above is a schema: column names are letters, digits and underscores");
        let key_values =
            vec![("softshard.format", format.to_owned()), ("softshard.version", version.to_string())];
        Self { message: Arc::new(message), key_values }
    }
}

/// A required list of required elements, in the three levels that every reader knows.
fn push_list(columns: &mut String, element: &str, name: &str) {
    write!(
        columns,
        "required group {name} (LIST) {{ repeated group list {{ required {element} element; }} }} "
    )
    .expect("writing to a string cannot fail");
}
