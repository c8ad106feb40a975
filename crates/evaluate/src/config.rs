//! Recipe section `[evaluate]`.

use std::{collections::BTreeMap, path::PathBuf};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use softshard_labels::Split;
use softshard_model::{Bits, LoadOptions, Precision, Residency};

use crate::{
    answers::{GenerationConfig, SummariesConfig},
    rouge::Rouge,
    tasks::{Kind, TaskConfig},
};

/// The task that every recipe has: its held-out rows.
pub const HELD_OUT: &str = "held_out";
/// The task of `[evaluate.summaries]`.
pub const SUMMARIES: &str = "summaries";

/// What is evaluated, and how answers are made and scored. Recipe section `[evaluate]`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct EvaluateConfig {
    /// What the model is asked: `held_out`, the held-out rows; `summaries`, documents of `[evaluate.summaries]`; and tasks that
    /// have a section `[evaluate.task.NAME]`.
    #[serde(default = "default_tasks")]
    pub tasks: Vec<String>,
    /// Where the rows of other tasks are.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub task: BTreeMap<String, TaskConfig>,
    /// Documents to summarise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub summaries: Option<SummariesConfig>,
    /// Name of the results, the folder `evaluations/<name>`; the student's folder gives it unless it is set, with `-valid` where
    /// those rows are scored.
    pub name: Option<String>,
    /// Hugging Face folder to evaluate instead of what `train-student` made.
    pub model: Option<PathBuf>,
    /// PEFT adapter over `model`.
    pub adapter: Option<PathBuf>,
    /// Type of its weights and activations. This and the next two are the student's own unless given: an adapter is scored
    /// over the base that it learnt on. With `model` they are those of a plain f32 model.
    pub precision: Option<Precision>,
    /// Where the weights of its layers are; streamed ones are read for every token of an answer.
    pub residency: Option<Residency>,
    /// Bits of the matrices of its layers, 8 or 4, if they are kept as codes: a little more than that many bits a weight, at
    /// the price of rounding.
    pub quantise: Option<Bits>,
    /// The held-out rows that are scored: `test`, by which nothing was chosen, or `valid` where this says so.
    #[serde(default = "default_split")]
    #[schemars(extend("enum" = ["valid", "test"]))]
    pub split: Split,
    /// Held-out rows that are answered, the first of the split; all unless given.
    pub max_answers: Option<usize>,
    /// Longest answer.
    #[serde(default = "default_max_new_tokens")]
    pub max_new_tokens: usize,
    /// An answer ends at its first newline, as in the paper's harness.
    #[serde(default)]
    pub stop_at_newline: bool,
    /// How answers are made: the most probable tokens unless given.
    #[serde(default)]
    pub generation: GenerationConfig,
    /// Which ROUGE is reported first; MiniLLM's ROUGE-L unless given.
    #[serde(default = "default_rouge")]
    pub rouge: Rouge,
    /// Tokens of one forward pass over held-out sequences, padding included.
    #[serde(default = "default_max_tokens_per_batch")]
    pub max_tokens_per_batch: usize,
}

impl Default for EvaluateConfig {
    fn default() -> Self {
        EvaluateConfig {
            tasks: default_tasks(),
            task: BTreeMap::new(),
            summaries: None,
            name: None,
            model: None,
            adapter: None,
            precision: None,
            residency: None,
            quantise: None,
            split: default_split(),
            max_answers: None,
            max_new_tokens: default_max_new_tokens(),
            stop_at_newline: false,
            generation: GenerationConfig::default(),
            rouge: default_rouge(),
            max_tokens_per_batch: default_max_tokens_per_batch(),
        }
    }
}

impl EvaluateConfig {
    /// How the model's weights are brought into memory, where the student's were brought there as `student` says.
    pub(crate) fn load_options(&self, student: LoadOptions) -> LoadOptions {
        let unsaid = if self.model.is_some() { LoadOptions::default() } else { student };
        LoadOptions {
            precision: self.precision.unwrap_or(unsaid.precision),
            residency: self.residency.unwrap_or(unsaid.residency),
            quantise: self.quantise.or(unsaid.quantise),
        }
    }

    /// Refuses values that no evaluation can use.
    ///
    /// # Errors
    /// A sentence naming the key, what was expected and what was found.
    pub fn check(&self) -> Result<(), String> {
        self.load_options(LoadOptions::default()).check("evaluate")?;
        self.generation.check()?;
        let counts = [
            ("max_answers", self.max_answers.unwrap_or(1)),
            ("max_new_tokens", self.max_new_tokens),
            ("max_tokens_per_batch", self.max_tokens_per_batch),
        ];
        if let Some((key, _)) = counts.iter().find(|(_, value)| *value == 0) {
            return Err(format!("`evaluate.{key}`: expected at least 1, found 0"));
        }
        self.check_tasks()?;
        if self.split == Split::Train {
            return Err("`evaluate.split`: expected \"test\" or \"valid\", found \"train\"".to_owned());
        }
        if self.name.as_deref().is_some_and(|name| name.is_empty() || name.contains('/')) {
            return Err(format!("`evaluate.name`: expected a plain name, found {:?}", self.name));
        }
        if self.adapter.is_some() && self.model.is_none() {
            return Err("`evaluate.adapter`: expected `evaluate.model` beside it, found none".to_owned());
        }
        Ok(())
    }

    /// Whether the held-out rows of the recipe are scored.
    pub fn scores_held_out(&self) -> bool {
        self.tasks.iter().any(|task| task == HELD_OUT)
    }

    fn check_tasks(&self) -> Result<(), String> {
        if self.tasks.is_empty() {
            return Err(format!(
                "`evaluate.tasks`: expected names of tasks, such as \"{HELD_OUT}\", found none"
            ));
        }
        for (index, task) in self.tasks.iter().enumerate() {
            if self.tasks[..index].contains(task) {
                return Err(format!("`evaluate.tasks`: expected each task once, found \"{task}\" twice"));
            }
            let (is_there, section) = match task.as_str() {
                HELD_OUT => continue,
                SUMMARIES => (self.summaries.is_some(), "evaluate.summaries".to_owned()),
                other => (self.task.contains_key(other), format!("evaluate.task.{other}")),
            };
            if !is_there {
                return Err(format!(
                    "`evaluate.tasks`: expected \"{HELD_OUT}\", or a task with a section [{section}], found \"{task}\""
                ));
            }
        }
        self.summaries.as_ref().map_or(Ok(()), SummariesConfig::check)?;
        for (name, task) in &self.task {
            let is_plain = |letter: char| letter.is_ascii_alphanumeric() || "_-.".contains(letter);
            let is_taken = name == HELD_OUT || name == SUMMARIES;
            if is_taken || name.is_empty() || name.starts_with('.') || !name.chars().all(is_plain) {
                let expected = "expected a name of letters, digits, `_`, `-` and `.`";
                return Err(format!(
                    "`evaluate.task`: {expected}, other than \"{HELD_OUT}\" and \"{SUMMARIES}\", found {name:?}"
                ));
            }
            task.check(name)?;
            Kind::of(name, task)?;
        }
        Ok(())
    }
}

fn default_tasks() -> Vec<String> {
    vec![HELD_OUT.to_owned()]
}
fn default_split() -> Split {
    Split::Test
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
