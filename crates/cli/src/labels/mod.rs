//! `softshard labels`: what a team asks of a label dataset that it was given.

mod audit;
mod diff;
mod export;
mod import;
mod inspect;
mod merge;
mod page;
mod plan;
mod plot;
mod stats;
mod verify;

use anyhow::Result;
use clap::Subcommand;

use crate::{
    cluster::{self, Finalize},
    diff::Diff,
    session::Session,
};
use audit::Audit;
use export::Export;
use import::Import;
use inspect::Inspect;
use merge::Merge;
use plan::Plan;
use stats::Stats;
use verify::Dataset;

/// What can be done with labels that are there.
#[derive(Subcommand)]
pub(crate) enum Labels {
    /// Check everything: hashes, schema and every row; names shard, row and column of all that is wrong
    Verify(Dataset),
    /// Tokens, bytes per column, entropy, retained mass, and how good the teacher is
    Stats(Stats),
    /// One sequence, coloured by the teacher's confidence, and its alternatives
    Inspect(Inspect),
    /// Why two datasets are not interchangeable
    Diff(Diff),
    /// Before a long run: bytes, hours and retained mass of several selections, from a small sample
    Plan(Plan),
    /// Score random positions of finished labels again with the live teacher
    Audit(Audit),
    /// Finish labels that many workers made, or say which shards are missing; reads no teacher
    Finalize(Finalize),
    /// Join parts of one plan, or labels of different sequences that were made alike
    Merge(Merge),
    /// Make labels of what DistillKit, vLLM, OpenAI-compatible servers or others wrote
    Import(Box<Import>),
    /// Write labels for Hugging Face trainers, or as JSONL
    Export(Export),
}

/// Runs one of the commands.
///
/// # Errors
/// Bad data (exit code 3), which is also how `verify`, `diff` and `audit` end when they find something.
pub(crate) fn run(command: &Labels, session: &Session) -> Result<()> {
    match command {
        Labels::Verify(dataset) => verify::verify(dataset, session),
        Labels::Stats(dataset) => stats::stats(dataset, session.stop),
        Labels::Inspect(options) => inspect::inspect(options),
        Labels::Diff(options) => diff::diff(options, session.stop),
        Labels::Plan(options) => plan::plan(options, session),
        Labels::Audit(options) => audit::audit(options, session),
        Labels::Finalize(options) => cluster::finalize(options),
        Labels::Merge(options) => merge::merge(options, session),
        Labels::Import(options) => import::import(options, session),
        Labels::Export(options) => export::export(options, session),
    }
}
