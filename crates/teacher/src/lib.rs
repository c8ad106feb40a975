//! Stage 1: a teacher reads every sequence once and writes what it thinks of each labelled token.
//!
//! [`run()`] is the stage: plan the shards, give those that are missing to the devices, and for each read its sequences, send
//! them through the decoder in batches of like length, select at the vocabulary, and commit. Interrupted at any moment, it
//! goes on with the shards that are missing. A [`Part`] of the shards is what one of several processes labels.
//!
//! Before a long run [`estimate()`] says what it will cost and keep; [`audit()`] checks finished labels against the live
//! teacher.

mod audit;
mod batch_size;
mod calibration;
mod config;
mod deviation;
mod devices;
mod estimate;
mod labeller;
mod noise;
mod plan;
mod provenance;
mod rows;
mod run;
mod summary;
mod teacher;
mod watch;
mod writing;

pub use audit::{Audit, AuditInputs, ColumnAudit, Place, audit};
pub use batch_size::BatchTokens;
pub use config::{Calibration, LabelsConfig, TeacherConfig};
pub use estimate::{Estimate, EstimateInputs, SelectionEstimate, Size, Split, estimate};
pub use provenance::expected;
pub use run::{Part, TeacherInputs, run};
pub use summary::{Breakdown, Summary};
pub use teacher::Teacher;
