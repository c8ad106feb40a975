//! What can go wrong between a data file and a sequence shard.

use std::borrow::Cow;
use std::path::{Path, PathBuf};

/// An error of this crate. Each message names the place, what was expected and what was found.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A row of a data file cannot be used. Nothing has been written when this is returned by [`crate::run`].
    #[error("data `{}` {unit} {line}: {problem}\nhint: {hint}", path.display())]
    Row {
        /// The data file.
        path: PathBuf,
        /// `line` in text, `row` in arrays and tables.
        unit: &'static str,
        /// Its number, from 1.
        line: u64,
        /// What was expected and what was found.
        problem: String,
        /// What to do about it.
        hint: Cow<'static, str>,
    },
    /// A data file cannot be read, or is not what it was when it was checked.
    #[error("data `{}`: {problem}\nhint: {hint}", path.display())]
    File {
        /// The data file.
        path: PathBuf,
        /// What was expected and what was found.
        problem: String,
        /// What to do about it.
        hint: &'static str,
    },
    /// The `[data]` or `[tokenizer]` section of the recipe contradicts itself.
    #[error("recipe {0}")]
    Config(String),
    /// The tokenizer folder or file cannot be used.
    #[error("tokenizer `{}`: {problem}", path.display())]
    Tokenizer {
        /// The file or folder.
        path: PathBuf,
        /// What was expected and what was found.
        problem: String,
    },
    /// The model's chat template cannot be used, whatever the row.
    #[error("chat template: {0}")]
    ChatTemplate(String),
    /// Every row was dropped. Nothing has been written.
    #[error(
        "expected at least one sequence, found none:\n{0}\nhint: look at what was dropped, and at the limits of the recipe section [data]"
    )]
    NothingLeft(Box<crate::Summary>),
    /// Every sequence was held out. No dataset has been written, and those of an earlier run are as they were.
    #[error(
        "expected at least one sequence to learn from, found all of them held out:\n{0}\nhint: lower `data.split`, \
         or add rows"
    )]
    AllHeldOut(Box<crate::Summary>),
    /// `data.split` asks for as many rows as there are, or more. Nothing has been written.
    #[error(
        "`data.split`: expected rows to learn from, found all of them held out: {wanted} of {rows} rows\n\
         hint: lower `valid_rows` and `test_rows`, or add rows"
    )]
    TooFewRows {
        /// Rows that the recipe holds out.
        wanted: usize,
        /// Rows that there are.
        rows: usize,
    },
    /// A side of the split that the recipe asks for has no sequence. No dataset has been written, and those of an earlier run are
    /// as they were.
    #[error(
        "`data.split`: expected sequences in `{split}`, found none:\n{summary}\nhint: hold more rows out, or none"
    )]
    NothingHeldOut {
        /// `valid` or `test`.
        split: &'static str,
        /// What there was.
        summary: Box<crate::Summary>,
    },
    /// The sequence datasets cannot be written.
    #[error(transparent)]
    Sequences(#[from] softshard_labels::Error),
    /// Reading or writing failed; the message names the path.
    #[error(transparent)]
    Io(#[from] std::io::Error),
    /// The stop flag was set: run the same command again.
    #[error("interrupted before the sequences were complete; run the same command again")]
    Interrupted,
}

impl Error {
    pub(crate) fn file(path: &Path, problem: impl Into<String>, hint: &'static str) -> Self {
        Self::File { path: path.to_owned(), problem: problem.into(), hint }
    }

    pub(crate) fn tokenizer(path: &Path, problem: impl std::fmt::Display) -> Self {
        Self::Tokenizer { path: path.to_owned(), problem: problem.to_string() }
    }

    /// Whether the input data is at fault, rather than the recipe or the machine (exit code 3).
    pub fn is_bad_data(&self) -> bool {
        match self {
            Self::Row { .. }
            | Self::File { .. }
            | Self::Tokenizer { .. }
            | Self::ChatTemplate(_)
            | Self::NothingLeft(_)
            | Self::AllHeldOut(_)
            | Self::TooFewRows { .. }
            | Self::NothingHeldOut { .. } => true,
            Self::Sequences(error) => error.is_bad_data(),
            Self::Config(_) | Self::Io(_) | Self::Interrupted => false,
        }
    }
}
