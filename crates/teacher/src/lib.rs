//! Stage 1: a teacher reads every sequence once and writes what it thinks of each labelled token.
//!
//! [`run`] is the stage: plan the shards, and for each that is missing read its sequences, send them through the
//! decoder in batches of like length, select at the vocabulary, and commit. Interrupted at any moment, it goes on with
//! the shards that are missing.
//!
//! Before a long run [`estimate()`] says what it will cost and keep; [`audit()`] checks finished labels against the live
//! teacher.

mod audit;
mod config;
mod deviation;
mod estimate;
mod identity;
mod labeller;
mod run;
mod writing;

pub use audit::{Audit, AuditInputs, ColumnAudit, Place, audit};
pub use config::{LabelsConfig, TeacherConfig};
pub use estimate::{Estimate, EstimateInputs, SelectionEstimate, Size, Split, estimate};
pub use run::{Breakdown, Summary, TeacherInputs, run};
