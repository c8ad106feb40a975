//! The errors of this crate: each names the place, what was expected, what was found and, where known, a hint.

use std::borrow::Cow;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

/// Everything that can go wrong while writing or reading sequences and labels.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file operation failed; the message names the path.
    #[error("{0}")]
    Io(#[from] io::Error),

    /// A file, or labels given to a writer, are not what the format says.
    #[error("{0}")]
    Bad(Box<Bad>),

    /// The output folder belongs to another plan.
    #[error("`{}`: expected the plan of this run, found another plan:{}\nhint: choose another output folder, or \
             remove this one", path.display(), lines(differences))]
    OtherPlan {
        /// The plan that was found.
        path: PathBuf,
        /// One line for each key that differs: `key: expected …, found …`.
        differences: Vec<String>,
    },

    /// What is read was made from something else than the recipe says.
    #[error("{place}: expected what the recipe says, found otherwise:{}\nhint: {hint}", lines(differences))]
    OtherProvenance {
        /// What is read.
        place: String,
        /// One line for each value that differs: `name: expected …, found …`.
        differences: Vec<String>,
        /// What to do about it.
        hint: String,
    },

    /// The dataset cannot be finished yet.
    #[error("`{}`: expected {total} committed shards, found {}; missing {}\nhint: run the same command \
             again, it resumes with the missing shards", dir.display(), total - missing.len(), some_of(missing))]
    MissingShards {
        /// The label dataset.
        dir: PathBuf,
        /// Shards of the plan.
        total: usize,
        /// Indices without a valid commit.
        missing: Vec<usize>,
    },

    /// No labels are stored for this sequence.
    #[error("`{}`: expected labels of sequence {key}, found none\nhint: the labels were made from other sequences", dir.display())]
    UnknownSequence {
        /// The label dataset.
        dir: PathBuf,
        /// The key that was asked for.
        key: super::key::SequenceKey,
    },
}

/// What [`Error::Bad`] says: place, expected, found, hint.
#[derive(Debug)]
pub struct Bad {
    /// File, shard, row or field.
    pub place: String,
    /// What the format or the plan asks for.
    pub expected: String,
    /// What is there.
    pub found: String,
    /// What to do about it.
    pub hint: Option<Cow<'static, str>>,
}

/// The hint for a finished dataset that no longer is what it was.
pub(crate) const HINT_DAMAGED: &str = "the dataset is damaged: copy it again, or write it again";

impl Error {
    /// Bad or mismatched data at `place`: what was expected there, and what was found.
    pub fn bad(place: impl fmt::Display, expected: impl fmt::Display, found: impl fmt::Display) -> Self {
        let (place, expected, found) = (place.to_string(), expected.to_string(), found.to_string());
        Self::Bad(Box::new(Bad { place, expected, found, hint: None }))
    }

    /// The same error with a hint, where it carries one.
    #[must_use]
    pub fn hint(mut self, hint: &'static str) -> Self {
        if let Self::Bad(bad) = &mut self {
            bad.hint = Some(hint.into());
        }
        self
    }

    /// The same error with one more hint, where it carries any.
    #[must_use]
    pub(crate) fn also_hint(mut self, hint: &'static str) -> Self {
        if let Self::Bad(bad) = &mut self {
            bad.hint = Some(match bad.hint.take() {
                Some(first) => format!("{first}\nhint: {hint}").into(),
                None => hint.into(),
            });
        }
        self
    }

    /// The same error with `outer` before its place.
    pub(crate) fn within(mut self, outer: impl fmt::Display) -> Self {
        if let Self::Bad(bad) = &mut self {
            bad.place = format!("{outer} {}", bad.place);
        }
        self
    }

    /// Whether bad or mismatched data is the cause (exit code 3), not the machine (exit code 1).
    pub fn is_bad_data(&self) -> bool {
        matches!(
            self,
            Self::Bad(_)
                | Self::OtherPlan { .. }
                | Self::OtherProvenance { .. }
                | Self::UnknownSequence { .. }
        )
    }
}

impl Bad {
    /// The message alone.
    pub(crate) fn without_hint(&self) -> String {
        format!("{}: expected {}, found {}", self.place, self.expected, self.found)
    }
}

impl fmt::Display for Bad {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.without_hint())?;
        self.hint.as_ref().map_or(Ok(()), |hint| write!(f, "\nhint: {hint}"))
    }
}

/// A path as it stands in a message.
pub(crate) fn quoted(path: &Path) -> String {
    format!("`{}`", path.display())
}

fn lines(differences: &[String]) -> String {
    differences.iter().map(|line| format!("\n  {line}")).collect()
}

/// The first few of a list of indices.
pub(crate) fn some_of(indices: &[usize]) -> String {
    const SHOWN: usize = 8;
    let shown: Vec<String> = indices.iter().take(SHOWN).map(usize::to_string).collect();
    let more = indices.len().saturating_sub(SHOWN);
    if more == 0 { shown.join(", ") } else { format!("{} and {more} more", shown.join(", ")) }
}
