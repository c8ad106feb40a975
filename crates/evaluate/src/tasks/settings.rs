//! Recipe sections `[evaluate.task.NAME]`.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Where the rows of a task are, and what is made of them. Recipe section `[evaluate.task.NAME]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TaskConfig {
    /// Its rows: JSONL, a JSON array or Parquet, packed with gzip or zstd or not, with the columns that the task has on the Hub.
    pub file: PathBuf,
    /// The known task whose rows these are, where `NAME` is another: two files of one kind.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub like: Option<String>,
    /// How the rows of a task of your own become questions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mapping: Option<Mapping>,
    /// Solved examples before each question, the first of `shots_file`; of `mmlu` the first of the row's subject.
    #[serde(default)]
    pub shots: usize,
    /// Their rows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shots_file: Option<PathBuf>,
    /// Score only the first rows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<usize>,
    /// Of `fib`, what stands before a summary, with `{document}` in it. Unless given it is the paper's prompt for XSUM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompt: Option<String>,
}

/// How a row becomes a context, its choices and the one that is right. Names of columns may lead into them, as `choices.text`; in
/// texts columns stand in braces, as `Question: {question}`, and `{{` and `}}` are braces.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Mapping {
    /// What the model reads: a text with columns.
    pub context: String,
    /// What may follow: the name of a column with a list of texts, or a list of texts with columns.
    pub choices: Texts,
    /// The column that says which choice is right: its number from 0, or its label as text.
    pub gold: String,
    /// The labels, like `choices`; without it they are the choices themselves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub labels: Option<Texts>,
    /// Between context and choice; a space unless given.
    #[serde(default = "default_delimiter")]
    pub delimiter: String,
    /// A column: rows with the same value are of one document. Without it each row is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub document: Option<String>,
}

/// Texts of a row.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum Texts {
    /// A column that lists them.
    Column(String),
    /// Each a text with columns.
    Each(Vec<String>),
}

pub(crate) fn default_delimiter() -> String {
    " ".to_owned()
}

impl TaskConfig {
    /// Refuses what no task can use.
    ///
    /// # Errors
    /// A sentence naming the key, what was expected and what was found.
    pub(crate) fn check(&self, name: &str) -> Result<(), String> {
        let place = format!("`evaluate.task.{name}");
        if self.limit == Some(0) {
            return Err(format!("{place}.limit`: expected at least 1, found 0"));
        }
        if (self.shots > 0) != self.shots_file.is_some() {
            let found = if self.shots > 0 { "no file" } else { "a file for no shots" };
            return Err(format!(
                "{place}.shots_file`: expected a file where `shots` is above 0, found {found}"
            ));
        }
        if let Some(mapping) = &self.mapping {
            if self.like.is_some() {
                return Err(format!("{place}.mapping`: expected `mapping` or `like`, found both"));
            }
            if let Texts::Each(choices) = &mapping.choices
                && choices.len() < 2
            {
                let found = choices.len();
                return Err(format!("{place}.mapping.choices`: expected two texts or more, found {found}"));
            }
        }
        Ok(())
    }
}
