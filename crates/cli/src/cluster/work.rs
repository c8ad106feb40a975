//! What storage says of the labels of a recipe: it is the truth, a scheduler is not.

use std::fmt;

use anyhow::Result;
use softshard_labels::{Error, LabelPlan, LabelWriter, Output, SequenceDataset};
use softshard_share::Writers;
use softshard_teacher::Part;

use crate::recipe::{Recipe, RecipeError};

/// Shards of one split.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Split {
    /// As `train`.
    pub(super) name: &'static str,
    /// All of its plan.
    pub(super) shards: usize,
    /// Those that are not there, ascending.
    pub(super) missing: Vec<usize>,
}

impl fmt::Display for Split {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Split { name, shards, missing } = self;
        write!(to, "{name}: {} of {shards} shards are missing", missing.len())?;
        match missing.len() {
            0 => Ok(()),
            count if count == *shards => write!(to, ": all"),
            _ => write!(to, ": {}", some_of(missing)),
        }
    }
}

/// The splits that a recipe labels.
pub(super) fn splits(recipe: &Recipe) -> impl Iterator<Item = &'static str> {
    recipe.labelled_splits().into_iter().map(softshard_labels::Split::name)
}

/// Where the labels are, of all splits: where many may write.
pub(super) fn labels(recipe: &Recipe) -> Result<Output> {
    recipe.labels_output(Writers::Many)
}

/// Whether a worker has begun any split. Writes nothing.
pub(super) fn is_begun(recipe: &Recipe, labels: &Output) -> Result<bool> {
    for split in splits(recipe) {
        if LabelWriter::look(labels.join(split))?.is_some() {
            return Ok(true);
        }
    }
    Ok(false)
}

/// What is missing of labels that were begun.
type Missing = fn(&LabelWriter) -> Result<Vec<usize>, Error>;

/// Shards of every split, and which of them have no commit. Hashes nothing: workers and the finish do. An output that cannot be
/// written fails here.
pub(super) fn survey(recipe: &Recipe, labels: &Output) -> Result<Vec<Split>> {
    for split in splits(recipe) {
        LabelWriter::is_begun(labels.join(split))?;
    }
    look(recipe, labels)
}

/// The same of storage as it is: writes nothing.
pub(super) fn look(recipe: &Recipe, labels: &Output) -> Result<Vec<Split>> {
    survey_by(LabelWriter::uncommitted, recipe, labels)
}

/// The same with a look at every file: a shard that was damaged after its commit is missing too. Writes nothing.
pub(super) fn check(recipe: &Recipe, labels: &Output) -> Result<Vec<Split>> {
    survey_by(LabelWriter::missing, recipe, labels)
}

fn survey_by(missing: Missing, recipe: &Recipe, labels: &Output) -> Result<Vec<Split>> {
    splits(recipe).map(|name| survey_split(missing, recipe, labels, name)).collect()
}

fn survey_split(missing: Missing, recipe: &Recipe, labels: &Output, name: &'static str) -> Result<Split> {
    let output = labels.join(name);
    if let Some(writer) = LabelWriter::look(&output)? {
        return Ok(Split { name, shards: writer.plan().shards.len(), missing: missing(&writer)? });
    }
    let path = recipe.output.sequences.join(name);
    if !path.exists() {
        let message = format!(
            "sequences `{}`: expected a dataset, found none\nhint: `softshard prepare` makes it of the recipe's data",
            path.display()
        );
        return Err(RecipeError(message).into());
    }
    let rows = SequenceDataset::open(&path)?.manifest().rows;
    let shards = LabelPlan::ranges(rows, u64::try_from(recipe.labels.sequences_per_shard)?).len();
    Ok(Split { name, shards, missing: (0..shards).collect() })
}

/// Tasks, of `of`, that have a missing shard in any split.
pub(super) fn tasks_with_missing(splits: &[Split], of: usize) -> Vec<usize> {
    let has_some = |task: &usize| {
        splits.iter().any(|split| {
            let range = Part { task: *task, of }.shards(split.shards);
            split.missing.iter().any(|shard| range.contains(shard))
        })
    };
    (0..of).filter(has_some).collect()
}

/// The first few of some shards, for people.
pub(super) fn some_of(shards: &[usize]) -> String {
    const SHOWN: usize = 8;
    let shown: Vec<String> = shards.iter().take(SHOWN).map(ToString::to_string).collect();
    let more = match shards.len().saturating_sub(SHOWN) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    shown.join(", ") + &more
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tasks_are_those_of_the_missing_shards_of_any_split() {
        let split = |name, shards, missing: &[usize]| Split { name, shards, missing: missing.to_vec() };
        let splits = [split("train", 24, &[6, 7, 20]), split("valid", 3, &[0])];
        assert_eq!(tasks_with_missing(&splits, 24), [6, 7, 20]);
        assert_eq!(tasks_with_missing(&splits, 12), [3, 10]);
        assert_eq!(tasks_with_missing(&splits, 1), [0]);
        assert_eq!(tasks_with_missing(&[split("train", 24, &[])], 12), [0; 0]);
    }

    #[test]
    fn a_split_says_what_it_lacks() {
        let split = Split { name: "train", shards: 24, missing: (3..14).collect() };
        let expected = "train: 11 of 24 shards are missing: 3, 4, 5, 6, 7, 8, 9, 10 and 3 more";
        assert_eq!(split.to_string(), expected);
    }
}
