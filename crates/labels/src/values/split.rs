//! The parts that rows are in.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A part of the rows of a corpus. Rows with the same prompt are in one of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Split {
    /// Rows to learn from.
    Train,
    /// Held-out rows that choose: the temperature of a teacher, the best step of a run, and when it ends.
    Valid,
    /// Held-out rows that nothing is chosen by: what is reported is of them.
    Test,
}

impl Split {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Train, Self::Valid, Self::Test];

    /// `train`, `valid` or `test`: the folder's name and the manifest's.
    pub fn name(self) -> &'static str {
        match self {
            Self::Train => "train",
            Self::Valid => "valid",
            Self::Test => "test",
        }
    }
}
