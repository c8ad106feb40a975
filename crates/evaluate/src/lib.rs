//! Answers and scores: ROUGE-L, exact faithfulness, likelihood, calibration, distance to the teacher.
//!
//! [`run`] evaluates one model, [`rows`] puts all evaluations of a run side by side. [`statistics`] and [`calibration`] are
//! pure functions: intervals and tests by document, and whether a model is as often right as it says.

pub mod calibration;
pub mod porter;
pub mod rouge;
pub mod statistics;

mod config;
mod run;
mod subject;
mod table;

pub use config::EvaluateConfig;
pub use run::{AnswerScores, Breakdown, EvaluateInputs, Evaluation, HeldOutScores, run};
pub use subject::made_from;
pub use table::{HEADER, all, rows};
