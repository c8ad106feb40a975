//! Whether a finished dataset is sound, what it holds, and how two differ.

mod diff;
mod stats;
mod verify;

pub use diff::{KeyDifference, LabelDiff, SequenceDifference};
pub use stats::{Bin, Calibration, CalibrationBin, ColumnSize, LabelStats, Spread, TeacherScores};
pub use verify::{Problem, Verification, verify};
