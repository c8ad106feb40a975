//! Factual rate: whether a model looks at the document while it writes (Lookback Lens, arXiv 2407.07071).
//!
//! While a token of an answer is written, each head of each layer gives some of its attention to the document and some to
//! what came later. A logistic regression of these shares says how probable it is that what is written is supported. It knows
//! the heads of one model only, so it is trained for each: [`train`] reads answers that people judged and says how well it
//! tells them apart, [`score`] says how much of a model's answers it takes for factual.

mod classifier;
mod folds;
mod logistic;
mod ratios;
mod run;
mod spans;

pub use classifier::Lookback;
pub use logistic::LogisticRegression;
pub use ratios::PromptTemplate;
pub use run::{AnswerScore, Detection, Inputs, Rate, Scores, Trained, score, train};
