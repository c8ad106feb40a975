//! The label and sequence formats of softshard: schema, writer, mapped reader, manifest, commit, verify.
//!
//! Sequences are token ids with a loss mask. Labels say what a teacher thinks of each masked position: its most probable
//! tokens with exact full-vocabulary log-probabilities, the mass that was cut off, log-sum-exp and entropy. Both are
//! folders of Parquet files with a manifest that is written last; docs/label-format.md describes them byte by byte.
//!
//! Writing: [`SequenceWriter`], and [`LabelWriter`], which many processes may use on one folder and which resumes after
//! any crash to the same bytes. Reading: [`SequenceDataset`], and [`LabelDataset`], which verifies every file before it
//! trusts it and finds labels by [`SequenceKey`]. This crate needs no tensor library: it is what another team depends
//! on to read our labels.
//!
//! ```
//! use std::collections::BTreeMap;
//! use softshard_labels::{
//!     LabelDataset, LabelPlan, LabelWriter, Selection, SequenceLabels, TeacherIdentity, Tokenizer,
//! };
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let folder = tempfile::tempdir()?;
//! let plan = LabelPlan {
//!     format: LabelPlan::FORMAT.to_owned(),
//!     version: LabelPlan::VERSION,
//!     sequences: "the hash of the sequence manifest".to_owned(),
//!     shards: LabelPlan::ranges(1, 1000),
//!     split: "train".to_owned(),
//!     tokenizer: Tokenizer {
//!         vocabulary_blake3: "its hash".to_owned(),
//!         vocab_size: 4,
//!         special_ids: BTreeMap::new(),
//!         normalizer_blake3: "its hash".to_owned(),
//!         chat_template_blake3: None,
//!         merges_blake3: None,
//!     },
//!     template: "alpaca".to_owned(),
//!     teacher: TeacherIdentity {
//!         config_blake3: "its hash".to_owned(),
//!         weights_blake3: "its hash".to_owned(),
//!         adapter_blake3: None,
//!         dtype: "f32".to_owned(),
//!         vocab_size: 4,
//!         altered: None,
//!     },
//!     selection: Selection::TopK { k: 2 },
//!     mantissa_bits: LabelPlan::DEFAULT_MANTISSA_BITS,
//!     position_mantissa_bits: LabelPlan::DEFAULT_POSITION_MANTISSA_BITS,
//!     omit: vec![],
//!     temperatures: vec![],
//!     seed: 0,
//!     row_group_tokens: LabelPlan::DEFAULT_ROW_GROUP_TOKENS,
//! };
//!
//! // The teacher gives the tokens 0..4 the probabilities 1/2, 1/4, 1/8, 1/8 at position 1, where token 1 stands.
//! let labels = SequenceLabels {
//!     source: None,
//!     input_ids: vec![3, 1],
//!     positions: vec![1],
//!     counts: vec![2],
//!     token_ids: vec![0, 1],
//!     log_probs: vec![0.5f32.ln(), 0.25f32.ln()],
//!     sample_counts: vec![],
//!     log_sum_exp: vec![0.0],
//!     tail_log_mass: vec![0.25f32.ln()],
//!     entropy: vec![1.75 * 2f32.ln()],
//!     gold_log_prob: vec![0.25f32.ln()],
//!     log_partitions: vec![],
//!     tail_log_masses: vec![],
//! };
//! let key = labels.key();
//!
//! let writer = LabelWriter::create_or_resume(&folder, plan)?;
//! for index in writer.missing()? {
//!     let mut shard = writer.shard(index)?;
//!     shard.push(labels.clone())?;
//!     shard.commit()?;
//! }
//! writer.finish()?;
//!
//! let dataset = LabelDataset::open(&folder)?;
//! assert_eq!(dataset.token_counts(0), (2, 1));
//! assert_eq!(dataset.get(&key)?.token_ids, [0, 1]);
//! # Ok(())
//! # }
//! ```

mod dataset;
mod export;
mod host;
mod import;
mod judge;
mod merge;
mod observer;
mod parquet;
mod shard;
mod values;

/// What the labels of other programs are described with.
pub mod foreign {
    pub use crate::import::{Function, ResidualBin, Resolve, Term, TermType};
}

pub use dataset::{
    Alteration, Artefact, Commit, Difference, Door, LabelDataset, LabelPlan, LabelWriter, LabelsManifest,
    Output, Provenance, Schema, SequenceDataset, SequenceWriter, SequencesInfo, SequencesManifest,
    ShardWriter, Store, TeacherIdentity, WrittenShard, file_blake3, short,
};
pub use export::{export_hf, export_jsonl, write_jsonl};
pub use host::{never_map, read_if_there};
pub use import::{
    BadRows, ColumnMap, DistillKitConfig, DroppedRows, ImportSource, ImportTarget, Imported, PositionRule,
    import, import_jsonl,
};
pub use judge::{
    Bin, Calibration, CalibrationBin, ColumnSize, KeyDifference, LabelDiff, LabelStats, Problem,
    SequenceDifference, Spread, TeacherScores, Verification, verify,
};
pub use merge::{Merged, merge};
pub use observer::{Metrics, Observer, Progress, Scalar};
pub use shard::{LabelGroup, ShardRecord};
pub use values::{
    Bad, Error, Example, LabelLimits, LabelsView, OptionalColumn, OwnTokenizer, PositionEntries, ReadLimits,
    Selection, Sequence, SequenceKey, SequenceLabels, Split, Tokenizer, differences, visible, visible_line,
};
