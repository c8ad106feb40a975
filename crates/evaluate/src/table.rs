//! Evaluations as a table for people.

use std::{
    fmt::{self, Display, Formatter},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use fs_err as fs;
use softshard_labels::Error;

use crate::Evaluation;

/// What the columns of [`rows`] are.
pub const HEADER: [&str; 8] =
    ["model", "parameters", "ROUGE-L", "faithful", "facts right", "NLL", "ECE", "KL to teacher"];

/// All evaluations in `folder`, one line each, by name.
///
/// # Errors
/// No evaluation in the folder, or one that cannot be read.
pub fn table(folder: &Path) -> Result<String> {
    let rows = rows(folder)?;
    if rows.is_empty() {
        let place = format!("`{}`", folder.display());
        return Err(Error::bad(place, "evaluations", "none").hint("run `softshard evaluate` first").into());
    }
    Ok(aligned(&[vec![HEADER.map(str::to_owned)], rows].concat()))
}

/// The cells of all evaluations in `folder`, by name; none where there is no such folder.
///
/// # Errors
/// An evaluation that cannot be read.
pub fn rows(folder: &Path) -> Result<Vec<[String; 8]>> {
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
    let row = |path: PathBuf| -> Result<[String; 8]> {
        let evaluation: Evaluation = serde_json::from_slice(&fs::read(&path)?)
            .with_context(|| format!("evaluation `{}`", path.display()))?;
        Ok(cells(&evaluation))
    };
    files.into_iter().map(row).collect()
}

fn cells(evaluation: &Evaluation) -> [String; 8] {
    let percent =
        |share: Option<f64>| share.map_or("-".to_owned(), |share| format!("{:.1} %", 100.0 * share));
    let answers = evaluation.answers.as_ref();
    let held_out = &evaluation.held_out;
    [
        evaluation.name.clone(),
        evaluation.parameters.to_string(),
        percent(answers.map(|answers| answers.rouge_l)),
        percent(answers.and_then(|answers| answers.faithful)),
        percent(answers.and_then(|answers| answers.supported_facts)),
        format!("{:.4}", held_out.nll),
        percent(Some(held_out.ece)),
        held_out.kl_to_teacher.map_or("-".to_owned(), |kl| format!("{kl:.4}")),
    ]
}

/// Columns padded to their widest cell, the first to the left and numbers to the right.
fn aligned(rows: &[[String; 8]]) -> String {
    let widths: [usize; 8] =
        std::array::from_fn(|column| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0));
    let line = |row: &[String; 8]| {
        let cells = row.iter().zip(widths).enumerate();
        let cells =
            cells.map(
                |(column, (cell, width))| {
                    if column == 0 { format!("{cell:<width$}") } else { format!("{cell:>width$}") }
                },
            );
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    let mut lines: Vec<String> = rows.iter().map(line).collect();
    let rule = widths.iter().sum::<usize>() + 2 * (widths.len() - 1);
    lines.insert(1, "─".repeat(rule));
    lines.join("\n")
}

impl Display for Evaluation {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(&aligned(&[HEADER.map(str::to_owned), cells(self)]))?;
        let crate::Breakdown { load, held_out, answers } = &self.seconds;
        write!(f, "\n  seconds: load {load:.1}, held-out {held_out:.1}, answers {answers:.1}")
    }
}
