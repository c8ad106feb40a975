//! Recipe sections `[evaluate.generation]` and `[evaluate.summaries]`.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How answers are made. Recipe section `[evaluate.generation]`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct GenerationConfig {
    /// Tokens are drawn, at this temperature; the most probable one is taken unless given.
    pub temperature: Option<f64>,
    /// Only the most probable tokens are drawn from that together have this probability.
    pub top_p: Option<f64>,
    /// Only this many of the most probable tokens are drawn from.
    pub top_k: Option<usize>,
    /// Decides what is drawn.
    #[serde(default)]
    pub seed: u64,
    /// Divides the logits of tokens that were there before; 1 leaves them.
    pub repetition_penalty: Option<f64>,
    /// Texts at which an answer ends; it is scored without them.
    #[serde(default)]
    pub stop: Vec<String>,
    /// Whether the model's `generation_config.json` counts, where this section says nothing.
    #[serde(default)]
    pub generation_config: GenerationFile,
    /// A longer prompt loses its beginning; unless given it may be as long as the model's positions have room for.
    pub max_prompt_tokens: Option<usize>,
}

/// What of a model's `generation_config.json` counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum GenerationFile {
    /// Nothing: all models are asked in the same way. (Its end tokens are the tokenizer's, if it is beside that.)
    #[default]
    Leave,
    /// `repetition_penalty` and `eos_token_id`, and where `temperature` is given `top_p` and `top_k`. It never decides that
    /// tokens are drawn.
    Take,
}

/// Summaries of documents. Recipe section `[evaluate.summaries]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SummariesConfig {
    /// Rows with a document and a summary: JSONL or Parquet.
    pub file: PathBuf,
    /// `cnn_dm` and `xsum` are the paper's; any other is a text with `{document}` in it.
    pub prompt: String,
    /// Column of the document.
    #[serde(default = "default_document")]
    pub document: String,
    /// Column of the reference.
    #[serde(default = "default_summary")]
    pub summary: String,
    /// Column that names the document; rows are named by their number where there is none.
    #[serde(default = "default_id")]
    pub id: String,
    /// Rows that are answered, the first of the file; all unless given.
    pub limit: Option<usize>,
}

impl GenerationConfig {
    /// Refuses values that no answer can be made with.
    ///
    /// # Errors
    /// A sentence naming the key, what was expected and what was found.
    pub(crate) fn check(&self) -> Result<(), String> {
        let key = |name: &str| format!("`evaluate.generation.{name}`");
        let positive = [("temperature", self.temperature), ("repetition_penalty", self.repetition_penalty)];
        for (name, value) in positive {
            if let Some(value) = value.filter(|value| !(*value > 0.0 && value.is_finite())) {
                let hint = if name == "temperature" {
                    "\nhint: leave it out for the most probable tokens"
                } else {
                    ""
                };
                return Err(format!("{}: expected a positive number, found {value}{hint}", key(name)));
            }
        }
        if let Some(top_p) = self.top_p.filter(|top_p| !(*top_p > 0.0 && *top_p <= 1.0)) {
            return Err(format!("{}: expected a number above 0 and at most 1, found {top_p}", key("top_p")));
        }
        for (name, value) in [("top_k", self.top_k), ("max_prompt_tokens", self.max_prompt_tokens)] {
            if value == Some(0) {
                return Err(format!("{}: expected at least 1, found 0", key(name)));
            }
        }
        if self.temperature.is_none() && (self.top_p.is_some() || self.top_k.is_some()) {
            let expected = "`evaluate.generation.temperature` beside `top_p` and `top_k`, found none";
            return Err(format!(
                "{}: expected {expected}",
                if self.top_p.is_some() { key("top_p") } else { key("top_k") }
            ));
        }
        if self.stop.iter().any(String::is_empty) {
            return Err(format!("{}: expected texts, found an empty one", key("stop")));
        }
        Ok(())
    }
}

impl SummariesConfig {
    /// The paper's prompt for CNN/DM.
    const CNN_DM: &str = "Article: {document}\nSummarize the article. Summary:";
    /// The paper's prompt for XSUM.
    const XSUM: &str = "Article: {document}\nSummarize the article in one sentence. Summary:";

    /// The text around a document: before and behind it.
    ///
    /// # Errors
    /// A sentence naming the key, what was expected and what was found.
    pub(crate) fn around(&self) -> Result<(&str, &str), String> {
        let text = match self.prompt.as_str() {
            "cnn_dm" => Self::CNN_DM,
            "xsum" => Self::XSUM,
            own => own,
        };
        text.split_once("{document}").ok_or_else(|| {
            let expected = "\"cnn_dm\", \"xsum\", or a text with `{document}` in it";
            format!("`evaluate.summaries.prompt`: expected {expected}, found {:?}", self.prompt)
        })
    }

    /// Refuses values that no task can be made of.
    ///
    /// # Errors
    /// A sentence naming the key, what was expected and what was found.
    pub fn check(&self) -> Result<(), String> {
        self.around()?;
        match self.limit {
            Some(0) => Err("`evaluate.summaries.limit`: expected at least 1, found 0".to_owned()),
            _ => Ok(()),
        }
    }
}

fn default_document() -> String {
    "document".to_owned()
}
fn default_summary() -> String {
    "summary".to_owned()
}
fn default_id() -> String {
    "id".to_owned()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn values_that_no_answer_can_be_made_with_are_refused() {
        let message = |value: serde_json::Value| {
            let config: GenerationConfig = serde_json::from_value(value).expect("it parses");
            config.check().err().unwrap_or_default()
        };
        assert_eq!(message(json!({})), "");
        assert_eq!(message(json!({ "temperature": 0.7, "top_p": 1.0, "top_k": 1, "stop": ["\n"] })), "");
        for (value, expected) in [
            (
                json!({ "temperature": 0.0 }),
                "`evaluate.generation.temperature`: expected a positive number, found 0",
            ),
            (json!({ "repetition_penalty": -1.0 }), "expected a positive number, found -1"),
            (json!({ "temperature": 1.0, "top_p": 1.5 }), "above 0 and at most 1, found 1.5"),
            (
                json!({ "temperature": 1.0, "top_k": 0 }),
                "`evaluate.generation.top_k`: expected at least 1, found 0",
            ),
            (
                json!({ "top_p": 0.9 }),
                "`evaluate.generation.top_p`: expected `evaluate.generation.temperature` beside",
            ),
            (json!({ "stop": ["a", ""] }), "`evaluate.generation.stop`: expected texts, found an empty one"),
        ] {
            let found = message(value);
            assert!(found.contains(expected), "{found}");
        }
    }

    #[test]
    fn prompts_are_the_papers_or_the_users() {
        let config = |prompt: &str| -> SummariesConfig {
            serde_json::from_value(json!({ "file": "x.jsonl", "prompt": prompt })).expect("it parses")
        };
        assert_eq!(
            config("xsum").around(),
            Ok(("Article: ", "\nSummarize the article in one sentence. Summary:"))
        );
        assert_eq!(config("cnn_dm").around(), Ok(("Article: ", "\nSummarize the article. Summary:")));
        assert_eq!(config("{document} TL;DR").around(), Ok(("", " TL;DR")));
        let error = config("Summarise.").check().unwrap_err();
        assert!(error.contains("a text with `{document}` in it, found \"Summarise.\""), "{error}");
    }
}
