//! Answers and scores: ROUGE-L, exact faithfulness, likelihood, calibration, distance to the teacher.
//!
//! [`run`] evaluates one model, [`by_rows`] puts the evaluations of the same rows side by side, and [`compare`] says of their
//! rows what differs. [`statistics`] and [`calibration`] are pure functions: intervals and tests by document, and whether a
//! model is as often right as it says.

pub mod calibration;
pub mod porter;
pub mod rouge;
pub mod statistics;

mod answers;
mod compare;
mod config;
mod held_out;
mod partial;
mod rows;
mod run;
mod subject;
mod table;

pub use answers::{
    Anchor, AnswerScores, Conventions, Copying, Decoding, Drawing, GenerationConfig, GenerationFile, Given,
    OfTheModel, Step, SummariesConfig, SummaryDocument, SummaryMeans, SummaryRow, SummaryScores,
    SummarySource, anchor, copying, sentences, summarise,
};
pub use compare::{Compared, Line, METRICS, Margins, Scored, compare};
pub use config::EvaluateConfig;
pub use rows::{Arguments, Document, PositionScores, Request, Row, Settings};
pub use run::{Breakdown, EvaluateInputs, Evaluation, HeldOutScores, run};
pub use subject::made_from;
pub use table::{HEADER, all, by_rows};
