//! What can be wrong with a model folder or an adapter folder.

use std::collections::HashMap;
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
    #[error("`{}`: not a whole safetensors file: {problem}\nhint: {hint}", file.display())]
    Safetensors {
        /// The weights file.
        file: PathBuf,
        /// Place, expected and found.
        problem: String,
        /// What to do about it.
        hint: &'static str,
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
    /// A weight is a number, but too large for the format that it is to have.
    #[error(
        "`{}`: tensor `{tensor}`: element {index} is {value}, which {dtype} cannot hold\nhint: use 32-bit floats",
        file.display()
    )]
    TooLarge {
        /// The weights file.
        file: PathBuf,
        /// The tensor's name.
        tensor: String,
        /// Flat index of the first such element.
        index: usize,
        /// The element.
        value: f32,
        /// The number format.
        dtype: String,
    },
    /// LoRA settings that fit no part of the model.
    #[error("lora: {0}")]
    Lora(String),
    /// Weights cannot be where they were asked to be.
    #[error("{0}")]
    Residency(String),
    /// The device failed at what it was asked for.
    #[error("device: {0}")]
    Device(String),
    /// The file system refused; the message names the path.
    #[error(transparent)]
    Io(#[from] std::io::Error),
}

impl Error {
    pub(crate) fn config(file: &Path, problem: impl Into<String>) -> Self {
        Self::Config { file: file.to_owned(), problem: clipped(problem.into()) }
    }
}

/// Parsers repeat what they found, and a hostile file can be long.
pub(crate) fn clipped(mut text: String) -> String {
    const MOST_BYTES: usize = 1024;
    if text.len() > MOST_BYTES {
        text.truncate(text.floor_char_boundary(MOST_BYTES));
        text += "...";
    }
    text
}

/// Lines that differ only in the layer are one, so that every kind of problem is seen.
fn list(problems: &[String]) -> String {
    let mut kinds: Vec<(&String, usize)> = Vec::new();
    let mut places = HashMap::new();
    for problem in problems {
        let place = *places.entry(without_layer(problem)).or_insert(kinds.len());
        match kinds.get_mut(place) {
            Some((_, others)) => *others += 1,
            None => kinds.push((problem, 0)),
        }
    }
    let mut text = String::new();
    for (problem, others) in kinds.iter().take(LISTED) {
        text += &format!("\n  {problem}");
        if *others > 0 {
            text += &format!(" (and so in {others} other layers)");
        }
    }
    let rest: usize = kinds.iter().skip(LISTED).map(|(_, others)| 1 + others).sum();
    if rest > 0 {
        text += &format!("\n  and {rest} more");
    }
    text
}

/// A line with the numbers between dots taken out of its names.
fn without_layer(problem: &str) -> String {
    let is_number = |part: &&str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    problem.split('.').filter(|part| !is_number(part)).collect::<Vec<_>>().join(".")
}
