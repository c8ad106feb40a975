//! Answers and scores: ROUGE-L, exact faithfulness, likelihood, calibration, distance to the teacher.
//!
//! [`run`] evaluates one model, [`rows`] puts all evaluations of a run side by side.

pub mod porter;
pub mod rouge;

mod config;
mod run;
mod subject;
mod table;

pub use config::EvaluateConfig;
pub use run::{AnswerScores, Breakdown, EvaluateInputs, Evaluation, HeldOutScores, run};
pub use subject::made_from;
pub use table::{HEADER, all, rows};
