//! Section `[output]`.

use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use softshard_teacher::Part;

use crate::metrics::Places;

/// Where everything is written. All but `dir` and `prometheus` are below `dir` unless absolute.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct OutputConfig {
    /// Folder of the run.
    pub(crate) dir: PathBuf,
    /// Sequence datasets `train/`, `valid/` and `test/`.
    #[serde(default = "default_sequences")]
    pub(crate) sequences: PathBuf,
    /// What `finetune` makes.
    #[serde(default = "default_teacher")]
    pub(crate) teacher: PathBuf,
    /// Label datasets `train/`, `valid/` and `test/`: a folder, or `s3://bucket/prefix` with the credentials of the usual `AWS_*`
    /// variables.
    #[serde(default = "default_labels")]
    pub(crate) labels: PathBuf,
    /// What `train-student` makes.
    #[serde(default = "default_student")]
    pub(crate) student: PathBuf,
    /// A folder for each model that is evaluated.
    #[serde(default = "default_evaluations")]
    pub(crate) evaluations: PathBuf,
    /// Text file for the textfile collector of Prometheus' node_exporter, `NAME.prom`, from the recipe's folder; kept up to
    /// date while labels are made and models are trained.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) prometheus: Option<PathBuf>,
}

impl OutputConfig {
    /// Where the metrics of labelling are written; every task has files of its own.
    pub(crate) fn labelling_metrics(&self, stage: &str, part: Option<Part>) -> Places {
        let task = part.map_or_else(String::new, |Part { task, of }| format!("-{task:05}-of-{of:05}"));
        let mut prometheus = self.prometheus.clone();
        if let Some(path) = prometheus.as_mut().filter(|_| !task.is_empty()) {
            let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            path.set_file_name(format!("{name}{task}.prom"));
        }
        let (folder, name) = (self.dir.join("metrics"), format!("{stage}{task}"));
        let (lines, tensorboard) =
            (Some(folder.join(format!("{name}.jsonl"))), folder.join("tensorboard").join(&name));
        Places { name, lines, tensorboard, prometheus }
    }

    /// Where those of a training into `output` are written, beside the lines that it writes itself.
    pub(crate) fn training_metrics(&self, output: &Path) -> Places {
        Places {
            name: output.file_name().unwrap_or_default().to_string_lossy().into_owned(),
            lines: None,
            tensorboard: output.join("tensorboard"),
            prometheus: self.prometheus.clone(),
        }
    }
}

fn default_sequences() -> PathBuf {
    "sequences".into()
}
fn default_teacher() -> PathBuf {
    "teacher".into()
}
fn default_labels() -> PathBuf {
    "labels".into()
}
fn default_student() -> PathBuf {
    "student".into()
}
fn default_evaluations() -> PathBuf {
    "evaluations".into()
}
