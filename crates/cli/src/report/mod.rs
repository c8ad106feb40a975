//! `softshard report`: evaluations side by side, and a page with the curves of all trainings.

mod curve;
mod page;
mod training;

use anyhow::Result;
use fs_err as fs;
use softshard_labels::Error;

use crate::{arguments::Report, recipe::Recipe};

/// Prints the table of evaluations; writes the page where one is asked for.
pub(crate) fn report(options: &Report) -> Result<()> {
    let recipe = Recipe::load(&options.recipe, &options.overrides)?;
    let output = &recipe.output;
    let Some(file) = &options.html else {
        println!("{}", softshard_evaluate::table(&output.evaluations)?);
        return Ok(());
    };
    let evaluations = softshard_evaluate::rows(&output.evaluations)?;
    let trainings = training::all(&output.dir, &[&output.teacher, &output.student])?;
    if trainings.is_empty() && evaluations.is_empty() {
        let place = format!("`{}`", output.dir.display());
        let hint = "run `softshard train-student` or `softshard evaluate` first";
        return Err(Error::bad(place, "trainings or evaluations", "none").hint(hint).into());
    }
    fs::write(file, page::of(&output.dir, &trainings, &evaluations))?;
    if !evaluations.is_empty() {
        println!("{}\n", softshard_evaluate::table(&output.evaluations)?);
    }
    let names: Vec<&str> = trainings.iter().map(|training| training.name.as_str()).collect();
    if !names.is_empty() {
        println!("curves: {}", names.join(", "));
    }
    println!("page: {}", file.display());
    Ok(())
}
