//! Stage 1: a teacher reads every sequence once and writes what it thinks of each labelled token.
//!
//! [`run`] is the stage: plan the shards, and for each that is missing read its sequences, send them through the
//! decoder in batches of like length, select at the vocabulary, and commit. Interrupted at any moment, it goes on with
//! the shards that are missing.

mod config;
mod identity;
mod run;
mod writing;

pub use config::{LabelsConfig, TeacherConfig};
pub use run::{Breakdown, Summary, TeacherInputs, run};
