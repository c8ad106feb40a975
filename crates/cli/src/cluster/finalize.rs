//! `softshard labels finalize`: the end of a run of many workers.

use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::Args;
use softshard_labels::{Error, LabelWriter, Output};

use super::work::{self, Split, some_of};
use crate::{numbers::grouped, recipe::Recipe, shell};

/// Arguments of `labels finalize`.
#[derive(Args)]
pub(crate) struct Finalize {
    /// The run's recipe (TOML)
    recipe: PathBuf,
    /// Override one value of the recipe by its path, such as output.labels=other
    #[arg(long = "set", value_name = "KEY=VALUE")]
    overrides: Vec<String>,
}

/// What came of the end.
pub(super) enum Finished {
    /// Every split is finished: a line for each.
    All(Vec<String>),
    /// Shards are missing, of any split.
    Missing(Vec<Split>),
}

/// Finishes the labels of every split, or says what is missing. Reads no teacher.
///
/// # Errors
/// Missing shards (exit code 1), an output that is no dataset, I/O.
pub(crate) fn finalize(options: &Finalize) -> Result<()> {
    let recipe = Recipe::load(&options.recipe, &options.overrides)?;
    let labels = work::labels(&recipe)?;
    let missing = match finish(&recipe, &labels)? {
        Finished::All(lines) => {
            lines.iter().for_each(|line| println!("{line}"));
            return Ok(());
        }
        Finished::Missing(missing) => missing,
    };
    let lacking: Vec<String> = missing
        .iter()
        .filter(|split| !split.missing.is_empty())
        .map(|split| {
            let output = labels.join(split.name);
            let (count, found) = (split.shards, split.shards - split.missing.len());
            let some = some_of(&split.missing);
            format!("labels `{}`: expected {count} committed shards, found {found}; missing {some}", output)
        })
        .collect();
    bail!(
        "{}\nhint: `softshard resume {} --engine slurm` (or kubernetes) submits the missing ones, `softshard teacher-labels` makes them here",
        lacking.join("\n"),
        shell::path(&options.recipe)
    )
}

/// Finishes every split that has all its shards. Finishing again changes nothing.
pub(super) fn finish(recipe: &Recipe, labels: &Output) -> Result<Finished> {
    let (mut lines, mut missing) = (Vec::new(), Vec::new());
    for split in work::survey(recipe, labels)? {
        if split.missing.len() == split.shards {
            missing.push(split); // perhaps without a plan
            continue;
        }
        let output = labels.join(split.name);
        match LabelWriter::open(&output)?.finish() {
            Ok(manifest) => lines.push(format!(
                "labels {}: {} shards, {} sequences, {} labelled tokens: {}",
                split.name,
                manifest.shards.len(),
                grouped(manifest.rows as f64),
                grouped(manifest.labelled_tokens as f64),
                output
            )),
            Err(Error::MissingShards { missing: shards, .. }) => {
                missing.push(Split { missing: shards, ..split });
            }
            Err(error) => return Err(error.into()),
        }
    }
    if missing.is_empty() {
        // Where every stage leaves it.
        recipe.write_beside_labels(labels)?;
        return Ok(Finished::All(lines));
    }
    Ok(Finished::Missing(missing))
}
