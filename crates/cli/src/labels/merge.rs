//! `softshard labels merge`.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;

use crate::{
    numbers::{count, number},
    session::Session,
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
pub(super) fn merge(options: &Merge, session: &Session) -> Result<()> {
    let Merge { inputs, output } = options;
    let merged = softshard_labels::merge(output, inputs, session.stop, &session.observer())?;
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
    println!("labels: {}", output.display());
    Ok(())
}
