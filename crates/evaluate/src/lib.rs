//! Answers and scores: ROUGE-L, exact faithfulness, likelihood, calibration, distance to the teacher.
//!
//! [`run`] evaluates one model, [`by_rows`] puts the evaluations of the same rows side by side, and [`compare`] says of their
//! rows what differs. [`statistics`] and [`calibration`] are pure functions: intervals and tests by document, and whether a
//! model is as often right as it says.

pub mod calibration;
pub mod lookback;
pub mod porter;
pub mod rouge;
pub mod statistics;

mod answers;
mod choices;
mod compare;
mod config;
mod held_out;
mod inputs;
mod judged;
mod partial;
mod result;
mod rows;
mod run;
mod subject;
mod table;
mod tasks;

pub use answers::{
    Anchor, AnswerScores, Conventions, Copying, Decoding, Drawing, FLOORS, GenerationConfig, GenerationFile,
    Given, OfTheModel, Share, Step, SummariesConfig, SummaryDocument, SummaryMeans, SummaryRow,
    SummaryScores, SummarySource, anchor, copying, summarise,
};
pub use compare::{Compared, Line, Margins, Scored, compare, metrics};
pub use config::{EvaluateConfig, HELD_OUT, SUMMARIES};
pub use inputs::EvaluateInputs;
pub use judged::{Judged, Judgement, read_judged};
pub use result::{Breakdown, Evaluation, HeldOutScores};
pub use rows::{Arguments, Document, PositionScores, Request, Row, Settings};
pub use run::run;
pub use subject::made_from;
pub use table::{all, by_rows};
pub use tasks::{
    ChoiceRequest, ChoiceRow, ChoiceScores, Mapping, Metric, Scores, TASKS, Target, TaskConfig, Texts,
};
