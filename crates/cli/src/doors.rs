//! What a stage reads against what its recipe says: a difference that changes numbers is refused by name, or taken by name.

use std::path::Path;

use anyhow::Result;
use clap::Args;
use softshard_labels::{
    Difference, Door, LabelDataset, LabelsManifest, Provenance, SequenceDataset, SequencesManifest, short,
};
use softshard_prepare::provenance;
use softshard_student::Mixed;

use crate::recipe::{Recipe, remote_labels};

/// What a stage that reads takes on the command line.
#[derive(Args)]
pub(crate) struct Accept {
    /// Take a difference between the recipe and what is read, by its name or its beginning, such as data.template; what is made
    /// says so
    #[arg(long = "accept", value_name = "NAME")]
    pub(crate) names: Vec<String>,
}

/// Compares sequences of the recipe's output with what its `[data]` and `[tokenizer]` say now. Gives what the user takes.
///
/// # Errors
/// Names every difference that is not taken.
pub(crate) fn sequences(recipe: &Recipe, folder: &Path, accept: &Accept) -> Result<Vec<Difference>> {
    if !folder.exists() {
        return Ok(Vec::new()); // who reads them says so better
    }
    let (manifest, _) = SequenceDataset::manifest_of(folder)?;
    let expected = provenance::expected(&recipe.data, &recipe.tokenizer)?;
    let Some(found) = of_sequences(manifest, &expected) else {
        tracing::warn!("`{}` does not say what it was made from: nothing is compared", folder.display());
        return Ok(Vec::new());
    };
    let place = format!("sequences `{}`", folder.display());
    let hint = "run `softshard prepare` again, or let the recipe say what they were made from";
    let accepted = expected.check(&found, &Door { place: &place, hint, accept: &accept.names })?;
    say(&place, &accepted);
    Ok(accepted)
}

/// What sequences say of themselves; those of version 1 say no more than their template and the seed of their split, and those that
/// another program wrote may say nothing.
fn of_sequences(manifest: SequencesManifest, expected: &Provenance) -> Option<Provenance> {
    let Some(found) = manifest.provenance else {
        let mut found = Provenance { inputs: [].into(), ..expected.clone() };
        let data = found.recipe.get_mut("data")?;
        data["split"]["seed"] = manifest.info.seed.into();
        if data.get("template").is_some() {
            data["template"] = manifest.info.template.into();
        }
        return Some(found);
    };
    (!found.recipe.is_empty()).then(|| provenance::completed(found))
}

/// Compares every label dataset that a stage reads with the recipe: its own with `[teacher]`, `[labels]` and its sequences; of others
/// it is said that they are not the recipe's. Gives what the user takes, and what is foreign.
///
/// # Errors
/// Names every difference that is not taken.
pub(crate) fn labels(recipe: &Recipe, data: &[Mixed], accept: &Accept) -> Result<Vec<Difference>> {
    let mut accepted = Vec::new();
    for Mixed { labels: folder, .. } in data {
        if !folder.exists() {
            continue; // who reads them says so better
        }
        let (manifest, _) = LabelsManifest::load(folder)?;
        let found = Provenance::from(&manifest.plan);
        if let Some(beside) = folder.parent().map(Provenance::read).transpose()?.flatten() {
            accepted.extend(beside.accepted); // whoever made them took that
        }
        if is_own(recipe, folder) {
            accepted.extend(own_labels(recipe, folder, &manifest, &found, accept)?);
        } else {
            accepted.push(foreign(folder, &found));
        }
    }
    Ok(accepted)
}

/// Whether a recipe makes these labels: they lie where it writes them, and it has a teacher to write them.
fn is_own(recipe: &Recipe, folder: &Path) -> bool {
    let place = &recipe.output.labels;
    let is_below =
        !remote_labels(place) && place.starts_with(&recipe.output.dir) && folder.starts_with(place);
    is_below && recipe.teacher.is_some()
}

fn foreign(folder: &Path, found: &Provenance) -> Difference {
    let weights = found.inputs.get("teacher.weights").map_or("unknown weights", |blake3| short(blake3));
    let selection = &found.recipe["labels"]["selection"];
    let said = format!("those of teacher {weights}, {selection}");
    tracing::warn!(
        "`{}`: labels that this recipe does not make: {said}; the run keeps that",
        folder.display()
    );
    Difference::of("labels.foreign", "labels that the recipe makes", said)
}

fn own_labels(
    recipe: &Recipe,
    folder: &Path,
    manifest: &LabelsManifest,
    found: &Provenance,
    accept: &Accept,
) -> Result<Vec<Difference>> {
    let plan = &manifest.plan;
    let mut differences = Vec::new();
    if let Some(teacher) = &recipe.teacher {
        differences = softshard_teacher::expected(teacher, &recipe.labels, plan)?.differences(found);
    }
    let sequences = recipe.output.sequences.join(&plan.split);
    if sequences.exists() {
        let (_, blake3) = SequenceDataset::manifest_of(&sequences)?;
        if blake3 != plan.sequences && !are_of(folder, &sequences)? {
            let found = short(&plan.sequences);
            differences.push(Difference::of("labels.sequences", short(&blake3), found));
        }
    }
    let place = format!("labels `{}`", folder.display());
    let hint = "label again (into another `output.labels`), or let [teacher] and [labels] say what they were made with";
    let accepted = Door { place: &place, hint, accept: &accept.names }.pass(differences)?;
    say(&place, &accepted);
    Ok(accepted)
}

/// Whether labels are of exactly these sequences though not of this manifest: prepared again with the same rows, merged, imported.
fn are_of(labels: &Path, sequences: &Path) -> Result<bool> {
    let (labels, sequences) = (LabelDataset::open(labels)?, SequenceDataset::open(sequences)?);
    if labels.len() != sequences.len() {
        return Ok(false);
    }
    const ROWS: usize = 4096;
    for first in (0..sequences.len()).step_by(ROWS) {
        for sequence in sequences.read_range(first..(first + ROWS).min(sequences.len()))? {
            let Some(row) = labels.find(&sequence.key()) else { return Ok(false) };
            let same = labels.token_counts(row).1 == sequence.positions.len()
                && labels.read(row)?.positions == sequence.positions;
            if !same {
                return Ok(false);
            }
        }
    }
    Ok(true)
}

fn say(place: &str, accepted: &[Difference]) {
    for difference in accepted {
        tracing::warn!("{place}: {difference}; accepted, and kept in what is made");
    }
}
