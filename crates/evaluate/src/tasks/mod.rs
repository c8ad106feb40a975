//! Tasks that are questions with choices: multiple choice, faithfulness and factuality by likelihood.
//!
//! A task is a file and a [`kind::Kind`]: how its rows become contexts and choices, and what is scored. Names of tasks and
//! their texts are those of lm-evaluation-harness 0.4.13.

mod columns;
mod factuality;
mod harness;
mod kind;
mod question;
mod row;
mod scores;
mod settings;
mod task;

pub use kind::TASKS;
pub use row::{ChoiceRequest, ChoiceRow, Target};
pub use scores::Scores;
pub use settings::{Mapping, TaskConfig, Texts};
pub use task::{ChoiceScores, Metric};

pub(crate) use kind::Kind;
pub(crate) use row::{read, to_lines};
pub(crate) use task::{Task, documents};
