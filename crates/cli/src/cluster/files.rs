//! Which engine runs the jobs, and where their files are.

use std::path::{Path, PathBuf};

use anyhow::Result;
use clap::ValueEnum;
use fs_err as fs;
use serde::{Deserialize, Serialize};

use crate::recipe::Recipe;

/// What runs the tasks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Engine {
    /// A job array, and jobs that depend on it
    Slurm,
    /// Manifests of Indexed Jobs: written, not applied
    Kubernetes,
}

impl Engine {
    /// Folder of its files below `output.dir`.
    pub(super) fn folder(self) -> &'static str {
        match self {
            Self::Slurm => "slurm",
            Self::Kubernetes => "kubernetes",
        }
    }
}

/// Files of the jobs, beside the run: `<output.dir>/<engine>/<labels>…`.
pub(super) struct Files {
    folder: PathBuf,
    name: String,
}

impl Files {
    /// Of the labels of a recipe: those of another `output.labels` have other names.
    pub(super) fn of(recipe: &Recipe, engine: Engine) -> Self {
        let (dir, labels) = (&recipe.output.dir, &recipe.output.labels);
        let name = labels.file_name().map_or("labels".into(), |name| name.to_string_lossy());
        // Others may have the same last name.
        let is_own = labels.parent() == Some(dir);
        let name = if is_own { name.into_owned() } else { format!("{name}-{}", short_hash(labels)) };
        Files { folder: dir.join(engine.folder()), name }
    }

    /// `labels<suffix>`.
    pub(super) fn with(&self, suffix: &str) -> PathBuf {
        self.folder.join(format!("{}{suffix}", self.name))
    }

    /// The recipe that the jobs read.
    pub(super) fn recipe(&self) -> PathBuf {
        self.with(".recipe.toml")
    }

    /// Folder of what the jobs say.
    pub(super) fn logs(&self) -> PathBuf {
        self.folder.join("logs")
    }

    /// Name of the labels.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Options of the submission.
    pub(super) fn options(&self) -> PathBuf {
        self.with(".options.json")
    }
}

/// Gives a file this content all at once: jobs may be reading it. The same content is not written again.
pub(super) fn replace(path: &Path, text: &str) -> Result<()> {
    if fs::read_to_string(path).is_ok_and(|found| found == text) {
        return Ok(());
    }
    let beside = path.with_added_extension(std::process::id().to_string());
    fs::write(&beside, text)?;
    Ok(fs::rename(&beside, path)?)
}

/// A few letters that stand for a path in names.
pub(super) fn short_hash(path: &Path) -> String {
    blake3::hash(path.as_os_str().as_encoded_bytes()).to_hex()[..8].to_owned()
}
