//! A folder of shards: plan, commits and manifest, and those who write and read it.

mod card;
mod commit;
mod job;
mod jsonl;
mod label_dataset;
mod label_shard;
mod label_writer;
mod manifest;
mod output;
mod plan;
mod provenance;
mod schemas;
mod sequence_dataset;
mod sequence_writer;
mod store;

pub use job::Commit;
pub use label_dataset::LabelDataset;
pub use label_shard::{ShardWriter, WrittenShard};
pub use label_writer::LabelWriter;
pub use manifest::{LabelsManifest, SequencesInfo, SequencesManifest};
pub use output::Output;
pub use plan::{Alteration, LabelPlan, TeacherIdentity};
pub use provenance::{Artefact, Difference, Door, Provenance, file_blake3, short};
pub use schemas::Schema;
pub use sequence_dataset::SequenceDataset;
pub use sequence_writer::SequenceWriter;
pub use store::Store;

pub(crate) use job::committed_records;
pub(crate) use jsonl::{Line, manifest_beside};
pub(crate) use manifest::{
    check_manifest, check_sizes, folder_problems, load_labels, load_labels_file, read_manifest,
};
pub(crate) use plan::APPROXIMATE_TAIL;
