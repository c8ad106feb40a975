//! Evaluations as rows of a table for people.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use fs_err as fs;

use crate::Evaluation;

/// What the columns of [`rows`] are.
pub const HEADER: [&str; 8] =
    ["model", "parameters", "ROUGE-L", "faithful", "facts right", "NLL", "ECE", "KL to teacher"];

/// The cells of all evaluations in `folder`, by name; none where there is no such folder.
///
/// # Errors
/// An evaluation that cannot be read.
pub fn rows(folder: &Path) -> Result<Vec<[String; 8]>> {
    Ok(all(folder)?.iter().map(Evaluation::cells).collect())
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
