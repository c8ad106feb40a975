//! The scores of a model, as they are written.

use serde::{Deserialize, Serialize};
use softshard_labels::{Provenance, Split};

use crate::{
    answers::{AnswerScores, SummaryScores},
    calibration::Report,
    tasks::ChoiceScores,
};

/// The scores of one model in one task.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Evaluation {
    /// Name of the result.
    pub name: String,
    /// What it was asked: `held_out`, or the name of another task.
    pub task: String,
    /// Parameters of the model.
    pub parameters: usize,
    /// What its numbers were computed in, such as `f32` or `bf16, layers in 4 bits`.
    pub dtype: String,
    /// Of held-out rows, which were scored.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub split: Option<Split>,
    /// How many rows.
    pub rows: usize,
    /// Scores of answers to held-out prompts; none for plain text, which has no prompts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answers: Option<AnswerScores>,
    /// Scores of held-out responses, teacher-forced.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub held_out: Option<HeldOutScores>,
    /// Scores of a task of choices.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub choices: Option<ChoiceScores>,
    /// Scores of summaries.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub summaries: Option<SummaryScores>,
    /// Where the time went; none of a result that was there already. It is not written: the same inputs give the same bytes.
    #[serde(skip)]
    pub seconds: Option<Breakdown>,
    /// Which model, which rows, which settings.
    pub provenance: Provenance,
}

/// Seconds by part.
#[derive(Clone, Debug, Default)]
pub struct Breakdown {
    /// Loading the model, if it was loaded for this task.
    pub load: f64,
    /// Scoring held-out responses.
    pub held_out: f64,
    /// Answering prompts and scoring the answers.
    pub answers: f64,
    /// Scoring the choices of a task.
    pub choices: f64,
}

/// Scores of the labelled tokens of held-out sequences.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct HeldOutScores {
    /// Labelled tokens.
    pub tokens: usize,
    /// Mean negative log-likelihood of the gold tokens, nats.
    pub nll: f64,
    /// Expected calibration error of the most probable token, 15 bins of equal width, 0 to 1.
    pub ece: f64,
    /// Calibration with intervals by document, of 1,000 draws with seed 0; none of fewer than two documents, and in results
    /// of earlier versions.
    #[serde(default)]
    pub calibration: Option<Report>,
    /// Mean KL(teacher ‖ model), nats; only where the teacher labelled the split. From top-k labels it has one event for
    /// all that was cut, which makes it a lower bound; from drawn ones it is an unbiased estimate.
    pub kl_to_teacher: Option<f64>,
}
