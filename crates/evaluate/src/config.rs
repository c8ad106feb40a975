//! Recipe section `[evaluate]`.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::rouge::Rouge;

/// What is evaluated, and how answers are made and scored. Recipe section `[evaluate]`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EvaluateConfig {
    /// Name of the result: `evaluations/<name>.json`.
    #[serde(default = "default_name")]
    pub name: String,
    /// Hugging Face folder to evaluate instead of what `train-student` made.
    pub model: Option<PathBuf>,
    /// PEFT adapter over `model`.
    pub adapter: Option<PathBuf>,
    /// Held-out rows that are answered, the first of the split; all unless given.
    pub max_answers: Option<usize>,
    /// Longest answer.
    #[serde(default = "default_max_new_tokens")]
    pub max_new_tokens: usize,
    /// An answer ends at its first newline, as in the paper's harness.
    #[serde(default)]
    pub stop_at_newline: bool,
    /// Which ROUGE-L is reported; MiniLLM's unless given.
    #[serde(default = "default_rouge")]
    pub rouge: Rouge,
    /// Tokens of one forward pass over held-out sequences, padding included.
    #[serde(default = "default_max_tokens_per_batch")]
    pub max_tokens_per_batch: usize,
}

impl Default for EvaluateConfig {
    fn default() -> Self {
        EvaluateConfig {
            name: default_name(),
            model: None,
            adapter: None,
            max_answers: None,
            max_new_tokens: default_max_new_tokens(),
            stop_at_newline: false,
            rouge: default_rouge(),
            max_tokens_per_batch: default_max_tokens_per_batch(),
        }
    }
}

fn default_name() -> String {
    "student".to_owned()
}
fn default_max_new_tokens() -> usize {
    256
}
fn default_rouge() -> Rouge {
    Rouge::MINILLM
}
fn default_max_tokens_per_batch() -> usize {
    8192
}
