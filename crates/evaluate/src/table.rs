//! Evaluations as rows of a table for people.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use fs_err as fs;
use softshard_labels::short;

use crate::Evaluation;

/// What the columns of [`Evaluation::cells`] are.
pub const HEADER: [&str; 8] =
    ["model", "parameters", "ROUGE-L", "faithful", "facts right", "NLL", "ECE", "KL to teacher"];

/// Evaluations of the same rows, with what these are: no others are to be compared.
pub fn by_rows(evaluations: Vec<Evaluation>) -> Vec<(String, Vec<Evaluation>)> {
    let mut groups: Vec<(String, Vec<Evaluation>)> = Vec::new();
    for evaluation in evaluations {
        let rows = evaluation.described_rows();
        match groups.iter_mut().find(|(known, _)| *known == rows) {
            Some((_, group)) => group.push(evaluation),
            None => groups.push((rows, vec![evaluation])),
        }
    }
    groups
}

/// All evaluations in `folder`, by name; none where there is no such folder.
///
/// # Errors
/// An evaluation that cannot be read.
pub fn all(folder: &Path) -> Result<Vec<Evaluation>> {
    let mut files = Vec::new();
    if folder.exists() {
        for entry in fs::read_dir(folder)? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == "json") {
                files.push(path);
            }
        }
    }
    files.sort();
    let read = |path: PathBuf| -> Result<Evaluation> {
        serde_json::from_slice(&fs::read(&path)?).with_context(|| format!("evaluation `{}`", path.display()))
    };
    files.into_iter().map(read).collect()
}

impl Evaluation {
    /// `test: 300 sequences (0123456789ab), 200 answered`.
    pub fn described_rows(&self) -> String {
        let blake3 = self.provenance.as_ref().and_then(|one| one.inputs.get("rows"));
        let (Some(split), Some(blake3)) = (self.split, blake3) else {
            return "rows that an earlier version did not write down".to_owned();
        };
        let (name, rows, blake3) = (split.name(), self.rows, short(blake3));
        let answered = self.answers.as_ref().map_or(0, |answers| answers.answers);
        format!("{name}: {rows} sequences ({blake3}), {answered} answered")
    }

    /// What is said of it in the columns of [`HEADER`].
    pub fn cells(&self) -> [String; 8] {
        let percent =
            |share: Option<f64>| share.map_or("-".to_owned(), |share| format!("{:.1} %", 100.0 * share));
        let answers = self.answers.as_ref();
        let held_out = &self.held_out;
        [
            self.name.clone(),
            self.parameters.to_string(),
            percent(answers.map(|answers| answers.rouge_l)),
            percent(answers.and_then(|answers| answers.faithful)),
            percent(answers.and_then(|answers| answers.supported_facts)),
            format!("{:.4}", held_out.nll),
            percent(Some(held_out.ece)),
            held_out.kl_to_teacher.map_or("-".to_owned(), |kl| format!("{kl:.4}")),
        ]
    }
}
