//! Scores of documents to means, differences, and what may be said of them.
//!
//! All are pure functions. The unit is the document: its rows (questions about it, its tokens) are not
//! independent, so they are added up to a [`Part`] first, and whole documents are drawn, flipped and counted.
//! docs/evaluation.md has the formulas with their sources, and what they can and cannot say.
//!
//! ```
//! use softshard_evaluate::statistics::{Documents, Question, Word, compare};
//!
//! let documents = Documents::of(&["a", "a", "b", "c", "d", "e"]); // two rows of the first one
//! let base = documents.parts(&[0.1, 0.2, 0.3, 0.2, 0.4, 0.1])?;
//! let student = documents.parts(&[0.3, 0.5, 0.4, 0.5, 0.6, 0.2])?;
//! let found = compare(&base, &student, &Question::default())?;
//! assert_eq!((found.documents, found.word), (5, Word::Win));
//! # Ok::<(), softshard_evaluate::statistics::BadValues>(())
//! ```

mod bootstrap;
mod compare;
mod distributions;
mod levels;
mod p_values;
mod parts;
mod ranking;
mod shares;

#[cfg(test)]
mod coverage;
#[cfg(test)]
pub(crate) mod golden;

pub use bootstrap::{Interval, Resampling};
pub use compare::{Better, Comparison, POWER, Question, Word, compare, smallest_difference, word};
pub use levels::{TwoLevels, two_levels};
pub use p_values::{SignFlip, holm, mcnemar, sign_flip};
pub use parts::{Documents, Estimate, Part, estimate, mean, standard_error};
pub use ranking::{Auroc, RankCorrelations, auroc, rank_correlations};
pub use shares::wilson;

/// Why numbers are refused: nothing is ever computed from some of them.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum BadValues {
    /// Nothing can be said of so few.
    #[error("expected at least {expected} {what}, found {found}")]
    TooFew {
        /// What is counted.
        what: &'static str,
        /// How many there must be.
        expected: usize,
        /// How many there are.
        found: usize,
    },
    /// Not a number, infinite, or out of range.
    #[error("{what} {index}: expected {expected}, found {found}")]
    Value {
        /// What the value is.
        what: &'static str,
        /// Its place in the list.
        index: usize,
        /// What it may be.
        expected: &'static str,
        /// What it is.
        found: f64,
    },
    /// Lists that should go side by side.
    #[error("{what}: expected {expected}, as many as beside them, found {found}")]
    Lengths {
        /// What is listed.
        what: &'static str,
        /// The length of the other list.
        expected: usize,
        /// The length of this one.
        found: usize,
    },
}

/// Lists that go side by side have one length.
pub(crate) fn same_length(what: &'static str, expected: usize, found: usize) -> Result<(), BadValues> {
    if expected == found { Ok(()) } else { Err(BadValues::Lengths { what, expected, found }) }
}

/// All values are as they should be.
pub(crate) fn all(
    what: &'static str,
    expected: &'static str,
    values: &[f64],
    good: impl Fn(f64) -> bool,
) -> Result<(), BadValues> {
    match values.iter().position(|&value| !good(value)) {
        None => Ok(()),
        Some(index) => Err(BadValues::Value { what, index, expected, found: values[index] }),
    }
}

/// A count as a number to compute with.
#[expect(clippy::cast_precision_loss, reason = "counts are far below 2^53")]
pub(crate) fn number(count: usize) -> f64 {
    count as f64
}
