//! What makes a shard part of its dataset.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::shard::ShardRecord;
use crate::values::json;

/// Folder of the commits in a dataset.
pub(crate) const COMMITS: &str = "_softshard/commits";

/// Name of a shard's commit.
pub(crate) fn commit_file(shard: usize) -> String {
    format!("{shard:05}.json")
}

/// `_softshard/commits/00017.json`: shard 17 is there.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct CommitFile {
    /// Always `softshard-labels-commit`.
    #[schemars(extend("const" = CommitFile::FORMAT))]
    format: String,
    /// Version of the format.
    #[schemars(extend("const" = CommitFile::VERSION))]
    version: u32,
    /// BLAKE3 of `_softshard/plan.json`, hexadecimal.
    #[schemars(regex(pattern = "^[0-9a-f]{64}$"))]
    pub(crate) plan_blake3: String,
    /// Index of the shard.
    pub(crate) shard: usize,
    /// The file that is the shard from now on.
    pub(crate) record: ShardRecord,
    /// BLAKE3 of `record` as JSON: the manifest takes over what the record says.
    #[schemars(regex(pattern = "^[0-9a-f]{64}$"))]
    pub(crate) record_blake3: String,
    /// Names the attempt that won; the only thing that differs between two runs of one plan.
    attempt: String,
}

impl CommitFile {
    pub(crate) const FORMAT: &'static str = "softshard-labels-commit";
    pub(crate) const VERSION: u32 = 1;

    /// What stands in a commit to show that its record is whole.
    pub(crate) fn hash_of(record: &ShardRecord) -> String {
        blake3::hash(&json::to_bytes(record)).to_hex().to_string()
    }

    /// The commit of a shard by one attempt.
    pub(crate) fn new(plan_blake3: &str, shard: usize, record: ShardRecord, attempt: &str) -> Self {
        Self {
            format: Self::FORMAT.to_owned(),
            version: Self::VERSION,
            plan_blake3: plan_blake3.to_owned(),
            shard,
            record_blake3: Self::hash_of(&record),
            record,
            attempt: attempt.to_owned(),
        }
    }
}
