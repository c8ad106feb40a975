//! `softshard labels merge`.

use std::{path::PathBuf, sync::atomic::AtomicBool};

use anyhow::Result;
use clap::Args;

use crate::{
    numbers::{count, number},
    progress,
};

/// Arguments of `labels merge`.
#[derive(Args)]
pub(crate) struct Merge {
    /// Folders of one plan, finished or not; or finished labels of different sequences, made alike
    #[arg(required = true)]
    pub(crate) inputs: Vec<PathBuf>,
    /// Folder that receives the merged labels; a merge that was interrupted or lacked shards goes on here
    #[arg(short, long, value_name = "DIR")]
    pub(crate) output: PathBuf,
}

/// Merges and says what was done.
pub(super) fn merge(options: &Merge, stop: &AtomicBool) -> Result<()> {
    let merged = softshard_labels::merge(&options.output, &options.inputs, stop)?;
    progress::leave();
    for conflict in &merged.conflicts {
        println!("{conflict}");
    }
    let manifest = &merged.manifest;
    println!(
        "merged: {} shards ({} there before), {} sequences, {} labelled tokens",
        number(manifest.shards.len()),
        number(manifest.shards.len() - merged.copied),
        count(manifest.rows),
        count(manifest.labelled_tokens)
    );
    println!("labels: {}", options.output.display());
    Ok(())
}
