//! What a reader is willing to decode: a small file can ask for gigabytes.

/// Limits that are checked before anything is decoded or allocated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReadLimits {
    /// Most rows of a row group.
    pub rows_per_group: usize,
    /// Most tokens of a sequence.
    pub sequence_tokens: usize,
    /// Most entries kept at a position.
    pub entries_per_position: usize,
    /// Most decoded bytes of a row group, and so of each of its pages.
    pub row_group_bytes: usize,
    /// Most bytes of a shard's footer.
    pub footer_bytes: usize,
    /// Most shards of a dataset.
    pub shards: usize,
    /// Whether files are mapped into memory. On a file system that is not known to be local they never are: there the row
    /// groups that are asked for are read and hashed, every time.
    pub memory_map: bool,
}

impl Default for ReadLimits {
    fn default() -> Self {
        Self {
            rows_per_group: 65_536,
            sequence_tokens: 1 << 20,
            entries_per_position: 65_536,
            row_group_bytes: 512 << 20,
            footer_bytes: 16 << 20,
            shards: 100_000,
            memory_map: true,
        }
    }
}
