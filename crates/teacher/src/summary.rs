//! What a run did, for those who started it.

use serde::Serialize;

/// What a finished run did in this process.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Summary {
    /// Shards of the dataset.
    pub shards: usize,
    /// Shards of this process's part: all of them, if it has no part.
    pub own_shards: usize,
    /// Shards that were labelled now; the others of the part were there.
    pub new_shards: usize,
    /// Sequences labelled now.
    pub sequences: u64,
    /// Their tokens.
    pub tokens: u64,
    /// Their labelled tokens.
    pub labelled_tokens: u64,
    /// Tokens that went through the teacher, padding included.
    pub padded_tokens: u64,
    /// Bytes of the shards that were written now.
    pub new_bytes: u64,
    /// Bytes of the whole dataset's shards; 0 where a part of it was labelled.
    pub bytes: u64,
    /// Labelled tokens of the whole dataset; 0 where a part of it was labelled.
    pub dataset_labelled_tokens: u64,
    /// Tokens, about, of the dataset's shards that nobody has committed yet.
    pub remaining_tokens: u64,
    /// Sum of the entropies of the distributions of the tokens labelled now, nats.
    pub entropy: f64,
    /// Sum of their masses that were kept.
    pub retained_mass: f64,
    /// Batches that did not fit in memory and were done again in halves.
    pub retries: u64,
    /// Devices that labelled.
    pub devices: usize,
    /// Where the time went.
    pub seconds: Breakdown,
}

/// Seconds by part; `forward` and `head` are summed over the devices, `read`, `write` and `commit` run beside them.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Breakdown {
    /// Hashing the teacher and loading it.
    pub load: f64,
    /// Reading sequences.
    pub read: f64,
    /// Embedding and layers.
    pub forward: f64,
    /// Logits and selection.
    pub head: f64,
    /// Checking, encoding and hashing shards.
    pub write: f64,
    /// Reading shards back and committing them.
    pub commit: f64,
    /// From the first sequence to the last commit.
    pub labelling: f64,
    /// Share of `labelling` in which the devices computed.
    pub busy_share: f64,
    /// The whole run.
    pub total: f64,
}
