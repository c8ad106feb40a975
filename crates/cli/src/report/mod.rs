//! `softshard report`: evaluations side by side, and a page with the curves of all trainings.

mod curve;
mod page;
mod training;

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use fs_err as fs;
use softshard_evaluate::Evaluation;
use softshard_labels::Error;

use crate::{recipe::Recipe, table::ruled};

/// Arguments of `report`.
#[derive(Args)]
pub(crate) struct Report {
    /// The run's recipe (TOML)
    recipe: PathBuf,
    /// Override one value of the recipe by its path, such as output.dir=other
    #[arg(long = "set", value_name = "KEY=VALUE")]
    overrides: Vec<String>,
    /// Write tables and the curves of all trainings as one page, which needs no other file
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
}

/// Prints the table of evaluations; writes the page where one is asked for.
pub(crate) fn report(options: &Report) -> Result<()> {
    let recipe = Recipe::load(&options.recipe, &options.overrides)?;
    let output = &recipe.output;
    let evaluations = softshard_evaluate::all(&output.evaluations)?;
    let made_from = softshard_evaluate::made_from(&evaluations);
    let of_rows = |(rows, group): (String, Vec<Evaluation>)| Compared {
        rows,
        header: group.first().map(Evaluation::header).unwrap_or_default(),
        // What is no model stands on top.
        evaluations: (group.first().into_iter().flat_map(Evaluation::anchors))
            .chain(group.iter().map(Evaluation::cells))
            .collect(),
    };
    let compared: Vec<Compared> = softshard_evaluate::by_rows(evaluations).into_iter().map(of_rows).collect();
    let Some(file) = &options.html else {
        if compared.is_empty() {
            let place = format!("`{}`", output.evaluations.display());
            let hint = "run `softshard evaluate` first";
            return Err(Error::bad(place, "evaluations", "none").hint(hint).into());
        }
        say(&compared, &made_from);
        return Ok(());
    };
    let trainings = training::all(&output.dir, &[&output.teacher, &output.student])?;
    if trainings.is_empty() && compared.is_empty() {
        let place = format!("`{}`", output.dir.display());
        let hint = "run `softshard train-student` or `softshard evaluate` first";
        return Err(Error::bad(place, "trainings or evaluations", "none").hint(hint).into());
    }
    fs::write(file, page::of(&output.dir, &trainings, (&compared, &made_from)))?;
    say(&compared, &made_from);
    let names: Vec<&str> = trainings.iter().map(|training| training.name.as_str()).collect();
    if !names.is_empty() {
        println!("curves: {}", names.join(", "));
    }
    println!("page: {}", file.display());
    Ok(())
}

/// Evaluations of the same rows.
struct Compared {
    /// What these are.
    rows: String,
    /// What is said of them.
    header: Vec<String>,
    /// The cells of each evaluation.
    evaluations: Vec<Vec<String>>,
}

/// A table for each choice of rows, and what the results are of.
fn say(compared: &[Compared], made_from: &[String]) {
    for Compared { rows, header, evaluations } in compared {
        println!("{rows}\n{}\n", side_by_side(header, evaluations));
    }
    made_from.iter().for_each(|line| println!("{line}"));
}

/// A table of evaluations.
pub(crate) fn side_by_side(header: &[String], evaluations: &[Vec<String>]) -> String {
    let rows: Vec<Vec<String>> =
        [header].into_iter().chain(evaluations.iter().map(Vec::as_slice)).map(<[String]>::to_vec).collect();
    ruled(&rows)
}
