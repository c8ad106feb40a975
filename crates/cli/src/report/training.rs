//! What trainings left in their metrics.jsonl.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use anyhow::Result;
use fs_err as fs;
use serde::Deserialize;
use serde_json::Value;
use softshard_labels::Error;

/// Folders below the output that may hold a training: `student/`, `sweep/alpha-0.1/`.
const DEPTH: usize = 3;

/// The curves of one training.
#[derive(Debug, Default)]
pub(super) struct Training {
    /// Its folder below the output.
    pub(super) name: String,
    /// By split and scalar, steps and values.
    series: BTreeMap<(String, String), Vec<(f64, f64)>>,
}

#[derive(Deserialize)]
struct Line {
    /// Not said by runs from before there were evaluations.
    #[serde(default = "train")]
    split: String,
    step: u32,
    #[serde(flatten)]
    scalars: BTreeMap<String, Value>,
}

fn train() -> String {
    "train".to_owned()
}

impl Training {
    /// Values of a scalar of the steps.
    pub(super) fn steps(&self, scalar: &str) -> &[(f64, f64)] {
        self.series("train", scalar)
    }

    /// Values of a scalar on held-out data.
    pub(super) fn held_out(&self, scalar: &str) -> &[(f64, f64)] {
        self.series("valid", scalar)
    }

    fn series(&self, split: &str, scalar: &str) -> &[(f64, f64)] {
        self.series.get(&(split.to_owned(), scalar.to_owned())).map_or(&[], Vec::as_slice)
    }

    /// Reads the file; what follows its last whole line is still being written.
    fn read(name: String, path: &Path) -> Result<Self> {
        let mut training = Training { name, ..Training::default() };
        let text = fs::read_to_string(path)?;
        let whole = text.rfind('\n').map_or(0, |end| end + 1);
        for (index, line) in text[..whole].lines().enumerate() {
            let Line { split, step, scalars } = serde_json::from_str(line).map_err(|error| {
                let place = format!("`{}` line {}", path.display(), index + 1);
                Error::bad(place, "the metrics of a step", error)
            })?;
            for (scalar, value) in scalars {
                // A number that is not finite is `null`, and no point of a curve.
                if let Some(value) = value.as_f64() {
                    let series = training.series.entry((split.clone(), scalar)).or_default();
                    series.push((f64::from(step), value));
                }
            }
        }
        Ok(training)
    }
}

/// All trainings below `output`, and those in `named` folders, wherever these are; by name.
///
/// # Errors
/// A file that cannot be read, or holds something else.
pub(super) fn all(output: &Path, named: &[&Path]) -> Result<Vec<Training>> {
    let mut folders = Vec::new();
    collect(output, DEPTH, &mut folders)?;
    folders.extend(named.iter().filter(|folder| has_metrics(folder)).map(|folder| folder.to_path_buf()));
    folders.sort();
    folders.dedup();
    let mut trainings = Vec::new();
    for folder in folders {
        let name = match folder.strip_prefix(output) {
            Ok(below) if below.as_os_str().is_empty() => ".".to_owned(),
            Ok(below) => below.to_string_lossy().into_owned(),
            Err(_) => crate::page::name_of(&folder),
        };
        let training = Training::read(name, &folder.join("metrics.jsonl"))?;
        if !training.steps("loss").is_empty() {
            trainings.push(training);
        }
    }
    Ok(trainings)
}

fn has_metrics(folder: &Path) -> bool {
    folder.join("metrics.jsonl").is_file()
}

fn collect(folder: &Path, depth: usize, found: &mut Vec<PathBuf>) -> Result<()> {
    if has_metrics(folder) {
        found.push(folder.to_owned());
        return Ok(()); // what is below it is the training's own
    }
    if depth > 0 && folder.is_dir() {
        for entry in fs::read_dir(folder)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                collect(&entry.path(), depth - 1, found)?;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trainings_are_found_by_their_metrics() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let write = |name: &str, text: &str| {
            let path = folder.path().join(name);
            fs::create_dir_all(&path).expect("a folder is made");
            fs::write(path.join("metrics.jsonl"), text).expect("written");
        };
        let step = r#"{"split":"train","step":1,"loss":2.5}"#;
        let torn = format!("{step}\n{{\"split\":\"valid\",\"step\":1,\"nll\":null,\"ece\":0.5}}\n{{\"split");
        write("out/student", &torn);
        write("out/sweep/alpha-1", &format!("{step}\n"));
        write("out/empty", "");
        write("elsewhere/teacher", &format!("{step}\n"));
        let (output, teacher) = (folder.path().join("out"), folder.path().join("elsewhere/teacher"));
        let trainings = all(&output, &[&teacher, &output.join("student")]).expect("readable");
        let names: Vec<&str> = trainings.iter().map(|training| training.name.as_str()).collect();
        assert!(names[0].ends_with("elsewhere/teacher"), "{names:?}");
        assert_eq!(names[1..], ["student", "sweep/alpha-1"]);
        let student = &trainings[1];
        assert_eq!((student.steps("loss"), student.held_out("ece")), (&[(1.0, 2.5)][..], &[(1.0, 0.5)][..]));
        assert!(student.held_out("nll").is_empty() && student.steps("kl").is_empty());
        write("out/student", "{\"step\":1,\"loss\":2.5}\n");
        let before = all(&output, &[]).expect("lines from before there were evaluations");
        assert_eq!(before[0].steps("loss"), [(1.0, 2.5)]);
        write("out/student", "{\"split\":\"train\"}\n");
        let error = all(&output, &[]).expect_err("no line of metrics").to_string();
        assert!(
            error.contains("metrics.jsonl` line 1: expected the metrics of a step, found missing field"),
            "{error}"
        );
    }
}
