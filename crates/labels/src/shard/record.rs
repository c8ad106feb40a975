//! What manifests and commits say of a data file, and what its name says.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::writer::WrittenFile;
use crate::values::Error;

/// One data file, as manifests and commits describe it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ShardRecord {
    /// Plain name of the file, below `data/`: kind, index, number of shards, beginning of its BLAKE3.
    #[schemars(regex(pattern = r"^(labels|sequences)-[0-9]{5,}-of-[0-9]{5,}-[0-9a-f]{12}\.parquet$"))]
    pub file: String,
    /// Sequences.
    pub rows: u64,
    /// Tokens of the sequences.
    pub input_tokens: u64,
    /// Labelled positions.
    pub labelled_tokens: u64,
    /// Size of the file.
    pub bytes: u64,
    /// BLAKE3 of the file, hexadecimal.
    #[schemars(regex(pattern = "^[0-9a-f]{64}$"))]
    pub blake3: String,
    /// SHA-256 of the file, hexadecimal: what object stores and hubs list.
    #[schemars(regex(pattern = "^[0-9a-f]{64}$"))]
    pub sha256: String,
}

impl ShardRecord {
    /// The record of a written file: shard `index` of `count`.
    pub(crate) fn of(
        file: &WrittenFile,
        stem: &str,
        (index, count): (usize, usize),
        totals: &Totals,
    ) -> Self {
        Self {
            file: file_name(stem, index, count, &file.blake3),
            rows: totals.rows,
            input_tokens: totals.input_tokens,
            labelled_tokens: totals.labelled_tokens,
            bytes: file.bytes,
            blake3: file.blake3.clone(),
            sha256: file.sha256.clone(),
        }
    }
}

/// What was written into a shard.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Totals {
    pub(crate) rows: u64,
    pub(crate) input_tokens: u64,
    pub(crate) labelled_tokens: u64,
}

impl Totals {
    /// Counts one more.
    pub(crate) fn add(&mut self, input_ids: &[i32], positions: &[i32]) {
        let count = |ids: &[i32]| u64::try_from(ids.len()).expect("a length fits 64 bits");
        self.rows += 1;
        self.input_tokens += count(input_ids);
        self.labelled_tokens += count(positions);
    }
}

/// Sums of rows, input tokens and labelled tokens; `None` if a sum overflows.
pub(crate) fn totals(shards: &[ShardRecord]) -> Option<[u64; 3]> {
    shards.iter().try_fold([0u64; 3], |[rows, input, labelled], shard| {
        Some([
            rows.checked_add(shard.rows)?,
            input.checked_add(shard.input_tokens)?,
            labelled.checked_add(shard.labelled_tokens)?,
        ])
    })
}

/// Name of a data file: `labels-00017-of-00128-<12 hex>.parquet`.
pub(crate) fn file_name(stem: &str, index: usize, count: usize, blake3_hex: &str) -> String {
    format!("{stem}-{index:05}-of-{count:05}-{}.parquet", &blake3_hex[..12])
}

/// Whether `name` is one that [`file_name`] could have made for this stem.
pub(crate) fn is_data_file(stem: &str, name: &str) -> bool {
    name.strip_prefix(stem).is_some_and(|rest| rest.starts_with('-')) && name.ends_with(".parquet")
}

/// Checks that a shard's hashes are hashes, and that its name is the one that its place and hash give.
pub(crate) fn check_record(
    manifest: &str,
    stem: &str,
    (index, count): (usize, usize),
    shard: &ShardRecord,
) -> Result<(), Error> {
    let place = format!("{manifest} shard {index}");
    for (field, hash) in [("blake3", &shard.blake3), ("sha256", &shard.sha256)] {
        if hash.len() != 64 || !hash.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')) {
            let expected = format!("{field} as 64 hexadecimal digits");
            return Err(Error::bad(place, expected, format_args!("{hash:?}")));
        }
    }
    let name = file_name(stem, index, count, &shard.blake3);
    if shard.file != name {
        return Err(Error::bad(place, format_args!("file {name:?}"), format_args!("{:?}", shard.file)));
    }
    Ok(())
}
