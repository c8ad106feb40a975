//! What can be wrong with a model folder or an adapter folder.

use std::path::{Path, PathBuf};

/// Problems of the same kind that one message lists before it only counts the rest.
const LISTED: usize = 12;

/// A model or an adapter that cannot be read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The folder lacks something that a model or an adapter has.
    #[error("{kind} folder `{}`: {found}\nhint: {hint}", folder.display())]
    Folder {
        /// `model` or `adapter`.
        kind: &'static str,
        /// The folder that was opened.
        folder: PathBuf,
        /// What was found instead.
        found: String,
        /// What to do about it.
        hint: &'static str,
    },
    /// A JSON file does not parse, or a value in it is missing or out of range.
    #[error("`{}`: {problem}", file.display())]
    Config {
        /// The JSON file.
        file: PathBuf,
        /// Key, expected and found.
        problem: String,
    },
    /// The configuration asks for something this crate does not do.
    #[error("`{}`: {what} is not supported\nhint: {hint}", file.display())]
    Unsupported {
        /// The JSON file.
        file: PathBuf,
        /// The setting, by its name in the file.
        what: String,
        /// What is supported.
        hint: &'static str,
    },
    /// A safetensors file is torn, or its header contradicts its length.
    #[error("`{}`: not a whole safetensors file: {source}\nhint: copy or download it again", file.display())]
    Safetensors {
        /// The weights file.
        file: PathBuf,
        /// What the parser says.
        source: safetensors::SafeTensorError,
    },
    /// The tensors in the files are not those that the configuration describes; all differences together.
    #[error("`{}`: tensors do not match {against}:{}", folder.display(), list(problems))]
    Tensors {
        /// The folder that was opened.
        folder: PathBuf,
        /// What the tensors were compared with.
        against: String,
        /// One line for each missing, unused or wrongly shaped tensor.
        problems: Vec<String>,
    },
    /// A weight is NaN or infinite.
    #[error("`{}`: tensor `{tensor}`: element {index} is {value}, expected a finite number", file.display())]
    NonFinite {
        /// The weights file.
        file: PathBuf,
        /// The tensor's name.
        tensor: String,
        /// Flat index of the first such element.
        index: usize,
        /// The element.
        value: f32,
    },
    /// LoRA settings that fit no part of the model.
    #[error("lora: {0}")]
    Lora(String),
    /// Weights cannot be where they were asked to be.
    #[error("{0}")]
    Residency(String),
    /// The file system refused; the message names the path.
    #[error(transparent)]
    Io(#[from] std::io::Error),
}

impl Error {
    pub(crate) fn config(file: &Path, problem: impl Into<String>) -> Self {
        Self::Config { file: file.to_owned(), problem: problem.into() }
    }
}

fn list(problems: &[String]) -> String {
    let mut text: String = problems.iter().take(LISTED).map(|problem| format!("\n  {problem}")).collect();
    if problems.len() > LISTED {
        text += &format!("\n  and {} more", problems.len() - LISTED);
    }
    text
}
