//! The recipe sections `[data]` and `[tokenizer]`.

use std::collections::BTreeMap;
use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize};
use softshard_labels::Split;

use crate::template::{check_variable, is_date};
use crate::{Error, Value};

/// The recipe section `[data]`: which rows, how they become text, and how long a sequence may be.
///
/// ```
/// # use softshard_prepare::DataConfig;
/// let data: DataConfig = serde_json::from_value(serde_json::json!({
///     "instructions": "dolly.jsonl",
///     "template": "minillm",
///     "max_prompt_tokens": 512,
///     "max_tokens": 1024,
///     "split": { "valid_rows": 1000, "test_rows": 500, "seed": 10 },
/// })).unwrap();
/// data.validate().unwrap();
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DataConfig {
    /// Files of rows (one path or a list): JSONL, a JSON array or Parquet, packed with gzip or zstd or not, or a pipe. A
    /// row has `messages`, `conversations`, `prompt` and `completion`, `instruction` and `response`, or `input_ids`.
    #[serde(default, deserialize_with = "one_or_many", skip_serializing_if = "Vec::is_empty")]
    #[schemars(with = "OneOrMany")]
    pub instructions: Vec<PathBuf>,
    /// Plain text files (one path or a list) for pretraining, instead of `instructions`; or rows of `text`.
    #[serde(default, deserialize_with = "one_or_many", skip_serializing_if = "Vec::is_empty")]
    #[schemars(with = "OneOrMany")]
    pub text: Vec<PathBuf>,
    /// Columns that are left out. Without it a column that carries part of a conversation and is not used is an error.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ignore_columns: Vec<String>,
    /// What stands between two documents of a text file; `"\n\n"` for documents parted by blank lines.
    #[serde(default = "default_document_separator")]
    pub document_separator: String,
    /// How a row becomes a prompt; `minillm` unless given. Not for `text`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub template: Option<Template>,
    /// The day that a chat template's `strftime_now` takes for today, as `"2025-01-31"` or `"2025-01-31 12:00:00"`: without
    /// it a template that asks for the date is refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub template_date: Option<String>,
    /// More variables of the chat template, as in `{ enable_thinking = false }`. A row's own come first.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(with = "BTreeMap<String, serde_json::Value>")]
    pub template_variables: BTreeMap<String, Value>,
    /// A row whose prompt is longer is dropped and counted, never cut.
    #[serde(default = "default_max_prompt_tokens")]
    pub max_prompt_tokens: usize,
    /// A longer sequence is cut here (and then has no end-of-sequence token), and counted.
    #[serde(default = "default_max_tokens")]
    pub max_tokens: usize,
    /// Which tokens are labelled; `response` for instructions and `all` for `text` unless given. Rows of token ids
    /// bring a mask of their own, which counts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mask: Option<Mask>,
    /// When a sequence begins with the beginning-of-sequence token. Unless given: never for the templates `minillm`
    /// (as in MiniLLM) and `chat` (the template writes its own), and `as_tokenizer` for `none` and for `text`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bos: Option<Bos>,
    /// What to do with a row whose response is empty or blank.
    #[serde(default)]
    pub empty_responses: EmptyResponses,
    /// Which rows are held out.
    #[serde(default)]
    pub split: SplitConfig,
    /// Sequences in one output shard.
    #[serde(default = "default_sequences_per_shard")]
    pub sequences_per_shard: usize,
    /// Read only the first rows (or documents).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<usize>,
}

/// How a row becomes a prompt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Template {
    /// The Alpaca-style prompt of MiniLLM and of the paper (arXiv 2502.11306).
    MiniLlm,
    /// The chat template that comes with the tokenizer. An instruction becomes one message of the user, with the
    /// context after an empty line; of a conversation only the last answer is the response.
    Chat,
    /// Only the row's own text: the instruction and the context, each followed by a newline.
    None,
}

/// Which tokens of a sequence are labelled. The first token never is: there is nothing before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Mask {
    /// The last answer, its reasoning and tool calls included, and the token that ends it.
    Response,
    /// Every answer of the assistant, each with the token that ends it. A turn that the row marks as trained is taken
    /// in, whoever speaks.
    AllResponses,
    /// What the chat template itself marks (`{% generation %}`): transformers' `return_assistant_tokens_mask`.
    Generation,
    /// Every token.
    All,
}

/// When a sequence begins with the beginning-of-sequence token. It never stands there twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Bos {
    /// Where the post-processor of `tokenizer.json` puts one.
    AsTokenizer,
    /// None is added; one that the chat template writes stays.
    Never,
    /// Also where the tokenizer puts none.
    Always,
}

/// What to do with a row whose response is empty or blank.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum EmptyResponses {
    /// Stop before anything is written, naming the first one: a student would learn to say nothing.
    #[default]
    Error,
    /// Drop and count them.
    Drop,
}

/// Which rows are held out: `valid` chooses (a teacher's temperature, the best step of a run and its end), and `test` is
/// reported. Sizes are given in rows or in fractions; without any, none are held out.
///
/// A row's place is a hash of the seed and of its prompt: it does not depend on the order of the rows (nor, by fractions, on
/// the other rows), and rows with the same prompt are never on two sides. `valid` has the rows with the smallest hashes and
/// `test` those with the largest, so neither depends on the size of the other.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SplitConfig {
    /// Fraction of the rows that choose, 0 to 1 (on average).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub valid_fraction: Option<f64>,
    /// Number of rows that choose, before rows are dropped. Rows that share the last prompt come along.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub valid_rows: Option<usize>,
    /// Fraction of the rows that are reported, 0 to 1 (on average).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub test_fraction: Option<f64>,
    /// Number of rows that are reported, before rows are dropped. Rows that share the last prompt come along.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub test_rows: Option<usize>,
    /// Another seed, another choice.
    #[serde(default)]
    pub seed: u64,
}

impl SplitConfig {
    /// Whether there are to be rows of this side.
    pub fn wants(&self, split: Split) -> bool {
        let of = |fraction: Option<f64>, rows: Option<usize>| {
            fraction.is_some_and(|fraction| fraction > 0.0) || rows.is_some_and(|rows| rows > 0)
        };
        match split {
            Split::Train => true,
            Split::Valid => of(self.valid_fraction, self.valid_rows),
            Split::Test => of(self.test_fraction, self.test_rows),
        }
    }

    fn validate(&self) -> Result<(), String> {
        let Self { valid_fraction, valid_rows, test_fraction, test_rows, seed: _ } = *self;
        let fractions = [("valid_fraction", valid_fraction), ("test_fraction", test_fraction)];
        let rows = [("valid_rows", valid_rows), ("test_rows", test_rows)];
        let fraction = fractions.iter().find(|(_, fraction)| fraction.is_some());
        let row = rows.iter().find(|(_, rows)| rows.is_some());
        if let (Some((fraction, _)), Some((rows, _))) = (fraction, row) {
            return Err(format!(
                "expected sizes of `split` in rows or in fractions, found `{fraction}` and `{rows}`"
            ));
        }
        for (key, fraction) in fractions {
            if let Some(fraction) = fraction.filter(|fraction| !(0.0..=1.0).contains(fraction)) {
                return Err(format!("expected `split.{key}` from 0 to 1, found {fraction}"));
            }
        }
        let held_out = valid_fraction.unwrap_or(0.0) + test_fraction.unwrap_or(0.0);
        if held_out >= 1.0 {
            return Err(format!(
                "expected fractions of `split` that leave rows to learn from, found {held_out}"
            ));
        }
        Ok(())
    }
}

/// The recipe section `[tokenizer]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TokenizerConfig {
    /// A Hugging Face model folder, or a `tokenizer.json` (its neighbours are read too).
    pub path: PathBuf,
    /// The older name of `data.bos`: true for `"always"`, false for `"never"`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub add_bos: Option<bool>,
    /// End every sequence with the end-of-sequence token. A chat template that closes the turn with a special
    /// token of its own needs none.
    #[serde(default = "default_add_eos")]
    pub add_eos: bool,
}

impl DataConfig {
    /// The rows of one file, of which nothing is made.
    pub(crate) fn of_file(file: PathBuf, limit: Option<usize>) -> Self {
        Self {
            instructions: vec![file],
            text: Vec::new(),
            ignore_columns: Vec::new(),
            document_separator: default_document_separator(),
            template: None,
            template_date: None,
            template_variables: BTreeMap::new(),
            max_prompt_tokens: default_max_prompt_tokens(),
            max_tokens: default_max_tokens(),
            mask: None,
            bos: None,
            empty_responses: EmptyResponses::default(),
            split: SplitConfig::default(),
            sequences_per_shard: default_sequences_per_shard(),
            limit,
        }
    }

    /// The template in force; `None` for text corpora.
    pub fn template(&self) -> Option<Template> {
        if self.is_text() { None } else { Some(self.template.unwrap_or(Template::MiniLlm)) }
    }

    /// The mask in force.
    pub fn mask(&self) -> Mask {
        self.mask.unwrap_or(if self.is_text() { Mask::All } else { Mask::Response })
    }

    /// When sequences begin with the beginning-of-sequence token; `None` where the recipe says nothing.
    ///
    /// # Errors
    /// [`Error::Config`] where `data.bos` and `tokenizer.add_bos` are both given.
    pub(crate) fn bos(&self, tokenizer: &TokenizerConfig) -> Result<Option<Bos>, Error> {
        match (self.bos, tokenizer.add_bos) {
            (Some(_), Some(_)) => Err(Error::Config(
                "[data]: expected one of `data.bos` and `tokenizer.add_bos`, its older name, found both"
                    .into(),
            )),
            (bos, None) => Ok(bos),
            (None, Some(true)) => Ok(Some(Bos::Always)),
            (None, Some(false)) => Ok(Some(Bos::Never)),
        }
    }

    /// The template's name as it stands in the manifest.
    pub fn template_name(&self) -> &'static str {
        match self.template() {
            None => "text",
            Some(Template::MiniLlm) => "minillm",
            Some(Template::Chat) => "chat",
            Some(Template::None) => "none",
        }
    }

    /// The files, in order.
    pub(crate) fn files(&self) -> &[PathBuf] {
        if self.is_text() { &self.text } else { &self.instructions }
    }

    pub(crate) fn is_text(&self) -> bool {
        !self.text.is_empty()
    }

    /// Checks the values against each other.
    ///
    /// # Errors
    /// [`Error::Config`], naming the field.
    pub fn validate(&self) -> Result<(), Error> {
        let refuse = |problem: String| Err(Error::Config(format!("[data]: {problem}")));
        if self.instructions.is_empty() == self.text.is_empty() {
            return refuse("expected either `instructions` or `text`".into());
        }
        if self.is_text() && self.template.is_some() {
            return refuse("`template` is for `instructions`; a `text` corpus has none".into());
        }
        self.validate_template()?;
        if self.is_text() && self.mask() != Mask::All {
            return refuse("this `mask` is for `instructions`; a `text` corpus has no responses".into());
        }
        if self.mask() == Mask::Generation && self.template() != Some(Template::Chat) {
            return refuse(
                "`mask = \"generation\"` is what a chat template marks: set `template = \"chat\"`".into(),
            );
        }
        if self.is_text() && self.document_separator.is_empty() {
            return refuse("`document_separator` is empty".into());
        }
        if self.max_tokens < 2 || i32::try_from(self.max_tokens).is_err() {
            return refuse(format!(
                "expected `max_tokens` from 2 to {}, found {}",
                i32::MAX,
                self.max_tokens
            ));
        }
        if !self.is_text() && self.max_prompt_tokens >= self.max_tokens {
            return refuse(format!(
                "expected `max_prompt_tokens` below `max_tokens` = {}, found {}",
                self.max_tokens, self.max_prompt_tokens
            ));
        }
        if self.sequences_per_shard == 0 {
            return refuse("`sequences_per_shard` is 0".into());
        }
        self.split.validate().or_else(refuse)
    }
}

impl DataConfig {
    fn validate_template(&self) -> Result<(), Error> {
        let refuse = |problem: String| Err(Error::Config(format!("[data]: {problem}")));
        let is_chat = self.template() == Some(Template::Chat);
        if !is_chat && (self.template_date.is_some() || !self.template_variables.is_empty()) {
            return refuse("`template_date` and `template_variables` are for `template = \"chat\"`".into());
        }
        if let Some(date) = self.template_date.as_ref().filter(|date| !is_date(date)) {
            return refuse(format!("expected `template_date` as in \"2025-01-31\", found {date:?}"));
        }
        for name in self.template_variables.keys() {
            if let Err(problem) = check_variable(name) {
                return refuse(format!("`template_variables`: {problem}"));
            }
        }
        Ok(())
    }
}

fn default_document_separator() -> String {
    "<|endoftext|>".into()
}

fn default_max_prompt_tokens() -> usize {
    512
}

fn default_max_tokens() -> usize {
    1024
}

fn default_sequences_per_shard() -> usize {
    4096
}

fn default_add_eos() -> bool {
    true
}

/// A path or a list of paths.
#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(untagged, expecting = "expected a path or a list of paths")]
#[schemars(inline)]
enum OneOrMany {
    One(PathBuf),
    Many(Vec<PathBuf>),
}

impl Default for OneOrMany {
    fn default() -> Self {
        Self::Many(Vec::new())
    }
}

fn one_or_many<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<PathBuf>, D::Error> {
    Ok(match OneOrMany::deserialize(deserializer)? {
        OneOrMany::One(path) => vec![path],
        OneOrMany::Many(paths) => paths,
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn problem(value: serde_json::Value) -> String {
        match serde_json::from_value::<DataConfig>(value) {
            Ok(config) => config.validate().unwrap_err().to_string(),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn a_recipe_survives_the_round_trip() {
        let data: DataConfig = serde_json::from_value(json!({ "text": ["a.txt"], "mask": "all" })).unwrap();
        data.validate().unwrap();
        assert_eq!((data.mask(), data.template_name()), (Mask::All, "text"));
        let again: DataConfig = serde_json::from_value(serde_json::to_value(&data).unwrap()).unwrap();
        assert_eq!(data, again);
    }

    #[test]
    fn contradictions_are_refused_by_field() {
        let cases = [
            (json!({}), "recipe [data]: expected either `instructions` or `text`"),
            (
                json!({"instructions": "a", "text": "b"}),
                "recipe [data]: expected either `instructions` or `text`",
            ),
            (json!({"instructions": "a", "max_token": 3}), "unknown field `max_token`"),
            (json!({"instructions": "a", "template": "alpaca"}), "unknown variant `alpaca`"),
            (json!({"text": "a", "template": "chat"}), "a `text` corpus has none"),
            (json!({"text": "a", "mask": "response"}), "a `text` corpus has no responses"),
            (json!({"text": "a", "mask": "all_responses"}), "a `text` corpus has no responses"),
            (json!({"instructions": "a", "mask": "generation"}), "set `template = \"chat\"`"),
            (json!({"instructions": "a", "max_tokens": 64}), "below `max_tokens` = 64, found 512"),
            (json!({"instructions": "a", "split": {"valid_fraction": 1.5}}), "from 0 to 1, found 1.5"),
            (
                json!({"instructions": "a", "split": {"valid_fraction": 0.5, "test_rows": 3}}),
                "in rows or in fractions, found `valid_fraction` and `test_rows`",
            ),
            (
                json!({"instructions": "a", "split": {"valid_fraction": 0.5, "test_fraction": 0.5}}),
                "that leave rows to learn from, found 1",
            ),
            (json!({"instructions": "a", "split": {"rows": 3}}), "unknown field `rows`"),
            (json!({"instructions": 3}), "expected a path or a list of paths"),
        ];
        for (value, expected) in cases {
            let found = problem(value);
            assert!(found.contains(expected), "expected `{expected}`, found `{found}`");
        }
    }
}
