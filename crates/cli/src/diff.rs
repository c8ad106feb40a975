//! `softshard diff`: in words, why two runs, models, datasets or results are not the same.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use clap::Args;
use fs_err as fs;
use serde::{Deserialize, Serialize};
use softshard_labels::{
    Artefact, Difference, Error, LabelsManifest, Provenance, SequenceDataset, SequencesManifest, short,
};

use crate::{recipe::local, stdout::print_json};

/// Arguments of `diff` and `labels diff`.
#[derive(Args)]
pub(crate) struct Diff {
    /// A run, adapter, model or dataset, or the JSON of a result; for `labels diff` a folder of labels
    #[arg(value_parser = local)]
    pub(crate) left: PathBuf,
    /// Another one
    #[arg(value_parser = local)]
    pub(crate) right: PathBuf,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// What differs, and what differs in what both were made from.
#[derive(Serialize)]
struct Found {
    /// Of these two: `expected` is the left one.
    differences: Vec<Difference>,
    /// Of what each of them was made from, by name.
    from: Vec<(String, Found)>,
}

/// Prints what two artefacts were made from otherwise.
///
/// # Errors
/// They differ, or one does not say what it was made from.
pub(crate) fn diff(options: &Diff) -> Result<()> {
    let Diff { left, right, json } = options;
    let (one, other) = (provenance_of(left)?, provenance_of(right)?);
    if one.kind != other.kind {
        let place = format!("`{}`", right.display());
        let expected = format!("{} as `{}` is", kind(one.kind), left.display());
        return Err(Error::bad(place, expected, kind(other.kind)).into());
    }
    let found = compare(&one, &other);
    if *json {
        print_json(&found)?;
    } else {
        println!("left   {}\nright  {}", left.display(), right.display());
        for line in lines(&found, kind(one.kind)) {
            println!("{line}");
        }
    }
    if found.is_nothing() {
        return Ok(());
    }
    let place = format!("`{}`", right.display());
    let expected = format!("what `{}` was made from", left.display());
    Err(Error::bad(place, expected, "something else").into())
}

/// In words, a line each, why labels of two plans are not the same.
pub(crate) fn of_plans(left: &LabelsManifest, right: &LabelsManifest) -> Vec<String> {
    let found = compare(&Provenance::from(&left.plan), &Provenance::from(&right.plan));
    found.differences.iter().map(in_words).collect()
}

impl Found {
    fn is_nothing(&self) -> bool {
        self.differences.is_empty() && self.from.is_empty()
    }
}

fn compare(left: &Provenance, right: &Provenance) -> Found {
    let mut differences = left.differences(right);
    let names: BTreeSet<&String> = left.inputs.keys().chain(right.inputs.keys()).collect();
    for name in names {
        // What both have was compared above.
        let [one, other] = [left, right].map(|side| side.inputs.get(name).map(|blake3| short(blake3)));
        if one.is_none() != other.is_none() {
            let [one, other] = [one, other].map(|blake3| blake3.unwrap_or(Provenance::NONE));
            differences.push(Difference::of(name, one, other));
        }
    }
    if left.softshard != right.softshard {
        differences.push(Difference::of("softshard", &left.softshard, &right.softshard));
    }
    if left.devices != right.devices {
        let [one, other] = [left, right].map(|side| joined(side.devices.iter()));
        differences.push(Difference::of("devices", one, other));
    }
    if left.accepted != right.accepted {
        let [one, other] = [left, right].map(|side| joined(side.accepted.iter().map(|one| &one.name)));
        differences.push(Difference::of("accepted", one, other));
    }
    let both = left.from.iter().filter_map(|(name, one)| Some((name.clone(), one, right.from.get(name)?)));
    let from = both.map(|(name, one, other)| (name, compare(one, other)));
    Found { differences, from: from.filter(|(_, found)| !found.is_nothing()).collect() }
}

fn joined<'a>(names: impl Iterator<Item = &'a String>) -> String {
    let names: Vec<&str> = names.map(String::as_str).collect();
    if names.is_empty() { "nothing".to_owned() } else { names.join(", ") }
}

fn lines(found: &Found, what: &str) -> Vec<String> {
    if found.is_nothing() {
        return vec!["made from the same".to_owned()];
    }
    let mut lines = Vec::new();
    if !found.differences.is_empty() {
        lines.push(format!("{what}:"));
        lines.extend(found.differences.iter().map(|difference| format!("  {}", in_words(difference))));
    }
    for (name, found) in &found.from {
        lines.extend(self::lines(found, &format!("{what}, {}", source(name))));
    }
    lines
}

/// `the teacher's weights are others: 0123… on the left, 4567… on the right`.
fn in_words(difference: &Difference) -> String {
    let Difference { name, expected: left, found: right } = difference;
    let (what, are) = match &**name {
        "model.config" => ("the base model's config.json", "is another"),
        "model.weights" => ("the base model's weights", "are others"),
        "adapter" => ("the adapter", "is another"),
        "teacher.config" => ("the teacher's config.json", "is another"),
        "teacher.weights" => ("the teacher's weights", "are others"),
        "teacher.adapter" => ("the teacher's adapter", "is another"),
        "tokenizer.vocabulary" => ("the tokenizer's vocabulary", "is another"),
        "tokenizer.normalizer" => ("the tokenizer's normaliser", "is another"),
        "tokenizer.merges" => ("the tokenizer's way to split words", "is another"),
        "tokenizer.chat_template" => ("the tokenizer's chat template", "is another"),
        "sequences" => ("the sequences", "are others"),
        "rows" => ("the rows that were scored (results of other rows are not to be compared)", "are others"),
        "labels" => ("the labels", "are others"),
        "dtype" => ("the type that it was computed in", "is another"),
        "devices" => ("the kind of device", "is another"),
        "softshard" => ("the version of softshard", "is another"),
        "accepted" => ("what somebody accepted", "is something else"),
        "data" => ("the data that was learnt from", "is another"),
        name => match name.strip_prefix("data.").and_then(|rest| rest.rsplit('.').next()) {
            Some(index) if index.parse::<usize>().is_ok() => {
                let what = format!("number {index} of the data (`{name}`)");
                return format!("{what} is another: {left} on the left, {right} on the right");
            }
            _ => return format!("`{name}` is {left} on the left and {right} on the right"),
        },
    };
    format!("{what} {are}: {left} on the left, {right} on the right")
}

fn source(name: &str) -> &'static str {
    match name {
        "run" => "its training",
        "labels" => "its labels",
        "sequences" => "its sequences",
        "base" => "its base model",
        _ => "the data that it learnt from",
    }
}

fn kind(kind: Artefact) -> &'static str {
    match kind {
        Artefact::Sequences => "sequences",
        Artefact::Labels => "labels",
        Artefact::Run => "a run",
        Artefact::Evaluation => "a result",
    }
}

/// What is at a path, by what it says of itself.
fn provenance_of(path: &Path) -> Result<Provenance> {
    let place = format!("`{}`", path.display());
    let found = if path.is_dir() { of_folder(path)? } else { of_file(path)? };
    let hint = "name a run, an adapter or a model that `softshard` trained, a dataset, or `evaluations/NAME/TASK.json`";
    Ok(found.ok_or_else(|| Error::bad(place, "what says what it was made from", "nothing").hint(hint))?)
}

fn of_folder(path: &Path) -> Result<Option<Provenance>> {
    for folder in [path.to_owned(), path.join("adapter"), path.join("model")] {
        if let Some(found) = Provenance::read(&folder)? {
            return Ok(Some(found));
        }
    }
    for folder in [path.to_owned(), path.join("train")] {
        if folder.join("manifest.json").exists() {
            return Ok(of_dataset(&folder)?);
        }
    }
    let mut checkpoints = Vec::new();
    if path.join("checkpoints").is_dir() {
        for entry in fs::read_dir(path.join("checkpoints"))? {
            checkpoints.push(entry?.path().join("state.json"));
        }
    }
    checkpoints.retain(|state| state.exists());
    checkpoints.sort();
    let Some(last) = checkpoints.pop() else { return Ok(None) };
    #[derive(Deserialize)]
    struct State {
        run: Provenance,
    }
    let place = || format!("checkpoint `{}`: expected what its run was made from", last.display());
    Ok(Some(serde_json::from_slice::<State>(&fs::read(&last)?).with_context(place)?.run))
}

fn of_dataset(folder: &Path) -> Result<Option<Provenance>, Error> {
    #[derive(Deserialize)]
    struct Head {
        format: String,
    }
    let head = fs::read(folder.join("manifest.json"))?;
    match serde_json::from_slice(&head) {
        Ok(Head { format }) if format == SequencesManifest::FORMAT => {
            Ok(SequenceDataset::manifest_of(folder)?.0.provenance)
        }
        _ => Ok(Some(Provenance::from(&LabelsManifest::load(folder)?.0.plan))),
    }
}

fn of_file(path: &Path) -> Result<Option<Provenance>> {
    let place = || format!("`{}`: expected the JSON of a result", path.display());
    let result: softshard_evaluate::Evaluation =
        serde_json::from_slice(&fs::read(path)?).with_context(place)?;
    Ok(Some(result.provenance))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn differences_are_said_in_words_down_to_what_things_were_made_from() {
        let labels = |k: u32| {
            let mut labels = Provenance::new(Artefact::Labels);
            labels.recipe.insert("labels".to_owned(), json!({ "k": k }));
            labels
        };
        let run = |data: &str, k: u32| {
            let mut run = Provenance::new(Artefact::Run);
            run.input("data", data.repeat(64));
            run.recipe.insert("student".to_owned(), json!({ "loss": { "alpha": k } }));
            run.from.insert("data".to_owned(), labels(k));
            run
        };
        let same = compare(&run("a", 1), &run("a", 1));
        assert_eq!(lines(&same, "a run"), ["made from the same"]);
        let found = compare(&run("a", 1), &run("b", 2));
        assert_eq!(
            lines(&found, "a run"),
            [
                "a run:",
                "  the data that was learnt from is another: aaaaaaaaaaaa on the left, bbbbbbbbbbbb on the right",
                "  `student.loss.alpha` is 1 on the left and 2 on the right",
                "a run, the data that it learnt from:",
                "  `labels.k` is 1 on the left and 2 on the right",
            ]
        );
        let mut more = run("a", 1);
        more.input("data.instructions.1", "c".repeat(64));
        more.devices.insert("cuda".to_owned());
        let found = compare(&run("a", 1), &more);
        assert_eq!(
            lines(&found, "a run"),
            [
                "a run:",
                "  number 1 of the data (`data.instructions.1`) is another: none on the left, cccccccccccc on the right",
                "  the kind of device is another: nothing on the left, cuda on the right",
            ]
        );
    }
}
