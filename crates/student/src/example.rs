//! One sequence to learn from.

use softshard_losses::Targets;

/// One sequence with what its loss compares with.
pub(crate) struct Example {
    /// The whole sequence, L tokens.
    pub(crate) input_ids: Vec<i32>,
    /// Scored positions, ascending, each in 1..L.
    pub(crate) positions: Vec<i32>,
    /// One row per position.
    pub(crate) targets: Targets,
}
