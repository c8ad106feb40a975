//! Why there are no labels.

use std::fmt;

/// Why rows have no labels.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HeadError {
    /// A row of logits that describes no distribution: it holds a NaN or +inf, or nothing but -inf.
    NonFinite {
        /// Index of the first such row among those of the call.
        row: usize,
    },
    /// The device failed, in the words of its runtime; it may be out of memory.
    Device(String),
}

impl fmt::Display for HeadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NonFinite { row } => write!(
                f,
                "logits of row {row}: expected finite numbers (or -inf), found NaN, +inf or only -inf"
            ),
            Self::Device(reason) => write!(f, "the device failed at the head: {reason}"),
        }
    }
}

impl std::error::Error for HeadError {}
