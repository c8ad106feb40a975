//! The Parquet schemas of label and sequence shards.

use std::fmt::Write;
use std::ops::Range;
use std::sync::Arc;

use parquet::schema::parser::parse_message_type;
use parquet::schema::types::TypePtr;

use crate::values::{LabelLimits, OptionalColumn};

/// Format name of the shards of labels, and of their manifest.
pub(crate) const LABELS: &str = "softshard-labels";
/// The same of sequences.
pub(crate) const SEQUENCES: &str = "softshard-sequences";
/// Key-value with the hashes of the row groups.
pub(crate) const ROW_GROUP_HASHES: &str = "softshard.row_group_blake3";
/// Columns that both kinds of shards begin with.
const COMMON: &str = "required fixed_len_byte_array(16) sequence_key; optional binary source (STRING);";
pub(crate) const KEY: usize = 0;
/// May be null.
pub(crate) const SOURCE: usize = 1;
pub(crate) const INPUT_IDS: usize = 2;
pub(crate) const POSITIONS: usize = 3;
/// In shards of sequences alone, from version 2 on; may be null.
pub(crate) const EXAMPLE: usize = 4;
pub(crate) const COUNTS: usize = 4;
pub(crate) const TOKEN_IDS: usize = 5;
/// Where the other columns of a label shard are: they follow in this order, if the plan has them.
#[derive(Clone, Debug)]
pub(crate) struct LabelColumns {
    pub(crate) log_probs: Option<usize>,
    pub(crate) sample_counts: Option<usize>,
    pub(crate) log_sum_exp: Option<usize>,
    pub(crate) tail_log_mass: Option<usize>,
    pub(crate) entropy: Option<usize>,
    pub(crate) gold_log_prob: Option<usize>,
    /// One for each extra temperature.
    pub(crate) log_partitions: Range<usize>,
    /// The same, if they have tails.
    pub(crate) tail_log_masses: Range<usize>,
}

impl LabelColumns {
    pub(crate) fn of(limits: &LabelLimits) -> Self {
        let mut next = TOKEN_IDS + 1;
        let mut place = |is_there: bool| {
            let place = is_there.then_some(next);
            next += usize::from(is_there);
            place
        };
        Self {
            log_probs: place(limits.exact_entries > 0),
            sample_counts: place(limits.draws.is_some()),
            log_sum_exp: place(limits.has(OptionalColumn::LogSumExp)),
            tail_log_mass: place(true),
            entropy: place(limits.has(OptionalColumn::Entropy)),
            gold_log_prob: place(limits.has(OptionalColumn::GoldLogProb)),
            log_partitions: next..next + limits.temperatures,
            tail_log_masses: next + limits.temperatures..next + limits.temperatures + limits.tails(),
        }
    }
}

/// What a shard must be: its columns, and the key-values that tie it to its dataset.
#[derive(Clone, Debug)]
pub(crate) struct ShardSchema {
    pub(crate) message: TypePtr,
    /// Key-values that are known before the first row, as `softshard.format`.
    pub(crate) key_values: Vec<(&'static str, String)>,
}

impl ShardSchema {
    /// Shards of a label dataset whose plan has this version and hash, and these extra temperatures.
    pub(crate) fn labels(
        limits: &LabelLimits,
        temperatures: &[f32],
        version: u32,
        plan_blake3: String,
    ) -> Self {
        let mut columns = String::new();
        for (name, element) in label_columns(limits, temperatures) {
            push_list(&mut columns, element, &name);
        }
        let mut schema = Self::new("labels", &columns, LABELS, version);
        schema.key_values.push(("softshard.plan_blake3", plan_blake3));
        schema
    }

    /// Shards of a sequence dataset of a version that this program reads.
    pub(crate) fn sequences(version: u32) -> Self {
        let mut columns = String::new();
        push_list(&mut columns, "int32", "input_ids");
        push_list(&mut columns, "int32", "positions");
        if version > 1 {
            columns += "optional binary example (STRING);";
        }
        Self::new("sequences", &columns, SEQUENCES, version)
    }

    fn new(name: &str, columns: &str, format: &str, version: u32) -> Self {
        let message = parse_message_type(&format!("message {name} {{ {COMMON} {columns} }}"))
            .expect("the text above is a schema: column names are letters, digits and underscores");
        let key_values =
            vec![("softshard.format", format.to_owned()), ("softshard.version", version.to_string())];
        Self { message: Arc::new(message), key_values }
    }
}

/// Lists of a label shard, with the types of their elements.
fn label_columns(limits: &LabelLimits, temperatures: &[f32]) -> Vec<(String, &'static str)> {
    let columns = LabelColumns::of(limits);
    let always = ["input_ids", "positions", "counts", "token_ids"].map(|name| (name, "int32"));
    let others = [
        (columns.log_probs, "log_probs", "float"),
        (columns.sample_counts, "sample_counts", "int32"),
        (columns.log_sum_exp, "log_sum_exp", "float"),
        (columns.tail_log_mass, "tail_log_mass", "float"),
        (columns.entropy, "entropy", "float"),
        (columns.gold_log_prob, "gold_log_prob", "float"),
    ];
    let others = others.into_iter().filter_map(|(place, name, element)| place.map(|_| (name, element)));
    let named = always.into_iter().chain(others).map(|(name, element)| (name.to_owned(), element));
    let partitions = temperatures.iter().map(|temperature| partition_column(*temperature));
    let tails = temperatures.iter().take(limits.tails()).map(|temperature| tail_column(*temperature));
    named.chain(partitions.chain(tails).map(|name| (name, "float"))).collect()
}

/// A required list of required elements, in the three levels that every reader knows.
fn push_list(columns: &mut String, element: &str, name: &str) {
    write!(
        columns,
        "required group {name} (LIST) {{ repeated group list {{ required {element} element; }} }} "
    )
    .expect("writing to a string cannot fail");
}

/// Name of the column that holds the log-partition at a temperature: 2 → `log_partition_t2`, 1.5 → `log_partition_t1_5`.
///
/// A dot would split the name in the readers that take it for a path.
pub(crate) fn partition_column(temperature: f32) -> String {
    format!("log_partition_t{temperature}").replace('.', "_")
}

/// Name of the column that holds the log of the mass beyond the exact entries at a temperature, as `tail_log_mass_t1_5`.
pub(crate) fn tail_column(temperature: f32) -> String {
    format!("tail_log_mass_t{temperature}").replace('.', "_")
}
