//! Answers and scores: ROUGE-L, exact faithfulness, likelihood, calibration, distance to the teacher.
//!
//! [`run`] evaluates one model, [`by_rows`] puts the evaluations of the same rows side by side.

pub mod porter;
pub mod rouge;

mod config;
mod partial;
mod run;
mod subject;
mod table;

pub use config::EvaluateConfig;
pub use run::{AnswerScores, Breakdown, EvaluateInputs, Evaluation, HeldOutScores, run};
pub use subject::made_from;
pub use table::{HEADER, all, by_rows};
