//! `softshard labels`: what a team asks of a label dataset that it was given.

mod audit;
mod diff;
pub(crate) mod export;
pub(crate) mod import;
pub(crate) mod merge;
mod page;
pub(crate) mod plan;
mod plot;
mod stats;
mod verify;

use std::sync::atomic::AtomicBool;

use anyhow::Result;
use serde::Serialize;
use softshard_labels::LabelStats;

use crate::{
    arguments::Labels,
    inspect::inspect,
    progress::{self, grouped},
};

/// Runs one of the commands.
///
/// # Errors
/// Bad data (exit code 3), which is also how `verify`, `diff` and `audit` end when they find something.
pub(crate) fn run(command: &Labels, stop: &AtomicBool) -> Result<()> {
    match command {
        Labels::Verify(dataset) => verify::verify(dataset, stop),
        Labels::Stats(dataset) => stats::stats(dataset, stop),
        Labels::Inspect(options) => inspect(options),
        Labels::Diff(options) => diff::diff(options, stop),
        Labels::Plan(options) => plan::plan(options, stop),
        Labels::Audit(options) => audit::audit(options, stop),
        Labels::Finalize(options) => crate::cluster::finalize(options),
        Labels::Merge(options) => merge::merge(options, stop),
        Labels::Import(options) => import::import(options, stop),
        Labels::Export(options) => export::export(options, stop),
    }
}

pub(crate) fn print_json(value: &impl Serialize) -> Result<()> {
    progress::leave();
    println!("{}", serde_json::to_string_pretty(value)?);
    Ok(())
}

fn per_token(stats: &LabelStats, bytes: u64) -> f64 {
    float(bytes) / float(stats.labelled_tokens.max(1))
}

pub(crate) fn percent(share: f64) -> String {
    format!("{:.2} %", 100.0 * share)
}

pub(crate) fn number(count: usize) -> String {
    self::count(u64::try_from(count).expect("a count fits 64 bits"))
}

pub(crate) fn count(count: u64) -> String {
    grouped(float(count))
}

#[expect(clippy::cast_precision_loss, reason = "for people")]
pub(crate) fn float(count: u64) -> f64 {
    count as f64
}
