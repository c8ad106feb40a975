//! How answers are made, settled before any work starts, and the answers themselves.

use std::path::Path;

use anyhow::Result;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use softshard_labels::{Error, Provenance, read_if_there};
use softshard_model::{Answer, Decoder, Fitting, Generation, Prompt, Sampling};
use softshard_prepare::Tokenizer;

use super::config::{GenerationConfig, GenerationFile};
use crate::{EvaluateConfig, rows::Settings, run::too_large};

/// A model's own file of settings.
const FILE: &str = "generation_config.json";

/// How answers are made, as a result says it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Decoding {
    /// Tokens after which an answer is cut.
    pub max_new_tokens: usize,
    /// What tokens are drawn with; none where the most probable one is taken.
    pub sampling: Option<Drawing>,
    /// Divides the logits of tokens that were there before; 1 leaves them.
    pub repetition_penalty: f64,
    /// Ids that end an answer.
    pub stop_ids: Vec<i32>,
    /// Texts that end an answer, which is scored without them.
    pub stop: Vec<String>,
    /// Whether the first line break behind a text ends it too.
    pub stop_at_newline: bool,
    /// Longest prompt, if the recipe says it; a longer one loses its beginning.
    pub max_prompt_tokens: Option<usize>,
    /// Whether the model's `generation_config.json` was taken or left.
    pub generation_config: OfTheModel,
}

/// What tokens are drawn with.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Drawing {
    /// What logits are divided by.
    pub temperature: f64,
    /// Tokens that are drawn from; all unless given.
    pub top_k: Option<usize>,
    /// Probability that these tokens have together.
    pub top_p: f64,
    /// Decides what is drawn.
    pub seed: u64,
}

/// What became of a model's `generation_config.json`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OfTheModel {
    /// The recipe leaves it.
    Left,
    /// It counts where the recipe says nothing.
    Taken,
    /// The recipe takes it, and there is none.
    NotThere,
}

/// An answer that was made.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Given {
    /// As the model wrote it, with the text that ended it.
    pub(crate) raw: String,
    /// As it is scored; empty where it was not answered.
    pub(crate) text: String,
    /// Its tokens.
    pub(crate) tokens: usize,
    /// Whether it came to an end; otherwise it was cut.
    pub(crate) ended: bool,
}

impl Decoding {
    /// What the recipe and the model's folder say.
    ///
    /// # Errors
    /// The folder's file is no JSON object, or says what no answer can be made with.
    pub(crate) fn of(config: &EvaluateConfig, model: &Path, tokenizer: &Tokenizer) -> Result<Self> {
        let own = &config.generation;
        let place = model.join(FILE);
        let file = match own.generation_config {
            GenerationFile::Leave => None,
            GenerationFile::Take => read_if_there(&place)?.map(|bytes| parsed(&place, &bytes)).transpose()?,
        };
        let generation_config = match (own.generation_config, &file) {
            (GenerationFile::Leave, _) => OfTheModel::Left,
            (GenerationFile::Take, Some(_)) => OfTheModel::Taken,
            (GenerationFile::Take, None) => OfTheModel::NotThere,
        };
        let file = file.unwrap_or_default();
        let penalty = match own.repetition_penalty {
            Some(penalty) => Some(penalty),
            None => number(&place, &file, "repetition_penalty", |number| number > 0.0)?,
        };
        let mut stop_ids = tokenizer.stop_ids().to_vec();
        for id in end_tokens(&place, &file)? {
            if !stop_ids.contains(&id) {
                stop_ids.push(id);
            }
        }
        Ok(Self {
            max_new_tokens: config.max_new_tokens,
            sampling: drawing(own, &place, &file)?,
            repetition_penalty: penalty.unwrap_or(1.0),
            stop_ids,
            stop: own.stop.clone(),
            stop_at_newline: config.stop_at_newline,
            max_prompt_tokens: own.max_prompt_tokens,
            generation_config,
        })
    }

    /// Writes it down as a part of what a result is made from.
    ///
    /// # Errors
    /// It is no JSON, which cannot be.
    pub(crate) fn say(&self, provenance: &mut Provenance) -> Result<()> {
        if let Some(Value::Object(settings)) = provenance.recipe.get_mut("evaluate") {
            settings.insert("generation".to_owned(), serde_json::to_value(self)?);
        }
        Ok(())
    }

    /// As lm-evaluation-harness's samples have it.
    pub(crate) fn settings(&self) -> Settings {
        let newline = self.stop_at_newline.then(|| "\n".to_owned());
        Settings {
            until: self.stop.iter().cloned().chain(newline).collect(),
            max_gen_toks: self.max_new_tokens,
            do_sample: self.sampling.is_some(),
            temperature: self.sampling.map(|drawing| drawing.temperature),
            top_p: self.sampling.map(|drawing| drawing.top_p),
            top_k: self.sampling.and_then(|drawing| drawing.top_k),
            seed: self.sampling.map(|drawing| drawing.seed),
            repetition_penalty: (self.repetition_penalty != 1.0).then_some(self.repetition_penalty),
        }
    }

    /// Answers to prompts, of which the first has this number among all.
    ///
    /// # Errors
    /// The device has no memory for one; weights cannot be read; logits are not finite.
    pub(crate) fn answers(
        &self,
        (decoder, tokenizer): (&Decoder, &Tokenizer),
        first: usize,
        prompts: &[&[i32]],
        fitting: &Fitting,
    ) -> Result<Vec<Given>> {
        let number = |index: usize| u64::try_from(first + index).expect("a number fits 64 bits");
        let prompt = |(index, ids): (usize, &&[i32])| Prompt { ids: ids.to_vec(), number: number(index) };
        let prompts: Vec<Prompt> = prompts.iter().enumerate().map(prompt).collect();
        let generation = self.generation();
        // Text that cannot be made is said when the answer is there.
        let ends = |ids: &[i32]| tokenizer.decode(ids).is_ok_and(|text| self.end(&text).is_some());
        let answer = |prompts: &[Prompt]| -> Result<_> {
            Ok(decoder.answer(prompts, &generation, &ends, softshard_losses::next_logits)?)
        };
        let tokens_of = |prompts: &[Prompt]| prompts.iter().map(|prompt| prompt.ids.len()).sum();
        let longest = prompts.iter().map(|prompt| prompt.ids.len()).max().unwrap_or(0);
        let answers = fitting.each(&prompts, &tokens_of, decoder.device(), &answer);
        let answers = answers.map_err(|error| too_large("prompt", longest, error))?;
        answers.into_iter().flatten().map(|answer| self.given(tokenizer, &answer)).collect()
    }

    fn given(&self, tokenizer: &Tokenizer, answer: &Answer) -> Result<Given> {
        let raw = tokenizer.decode(&answer.ids)?;
        let text = raw[..self.end(&raw).unwrap_or(raw.len())].trim().to_owned();
        Ok(Given { raw, text, tokens: answer.ids.len(), ended: answer.ended })
    }

    /// Where a text ends, if something ends it.
    fn end(&self, text: &str) -> Option<usize> {
        let blank = text.len() - text.trim_start().len();
        let line = if self.stop_at_newline { text[blank..].find('\n').map(|end| blank + end) } else { None };
        self.stop.iter().filter_map(|stop| text.find(stop)).chain(line).min()
    }

    fn generation(&self) -> Generation {
        let sampling = |drawing: Drawing| {
            let Drawing { temperature, top_k, top_p, seed } = drawing;
            Sampling { temperature, top_k, top_p, seed }
        };
        Generation {
            max_new_tokens: self.max_new_tokens,
            stop_ids: self.stop_ids.clone(),
            repetition_penalty: self.repetition_penalty,
            sampling: self.sampling.map(sampling),
        }
    }
}

fn parsed(place: &Path, bytes: &[u8]) -> Result<Map<String, Value>> {
    let object = serde_json::from_slice(bytes);
    Ok(object.map_err(|error| Error::bad(shown(place), "a JSON object", error))?)
}

fn drawing(
    own: &GenerationConfig,
    place: &Path,
    file: &Map<String, Value>,
) -> Result<Option<Drawing>> {
    let Some(temperature) = own.temperature else { return Ok(None) };
    let top_p = match own.top_p {
        Some(top_p) => Some(top_p),
        None => number(place, file, "top_p", |number| number > 0.0 && number <= 1.0)?,
    };
    let top_k = match own.top_k {
        Some(top_k) => Some(top_k),
        None => number(place, file, "top_k", |number| number >= 0.0 && number.fract() == 0.0)?
            .map(|number| number as usize)
            // All of them, in transformers' words.
            .filter(|&number| number > 0),
    };
    Ok(Some(Drawing { temperature, top_k, top_p: top_p.unwrap_or(1.0), seed: own.seed }))
}

/// A number of a model's file.
fn number(
    place: &Path,
    file: &Map<String, Value>,
    key: &str,
    good: impl Fn(f64) -> bool,
) -> Result<Option<f64>> {
    let value = match file.get(key) {
        None | Some(Value::Null) => return Ok(None),
        Some(value) => value,
    };
    match value.as_f64().filter(|number| number.is_finite() && good(*number)) {
        Some(number) => Ok(Some(number)),
        None => Err(refused(place, key, "a number that answers can be made with", value)),
    }
}

/// The ids that end an answer: a number or a list of them.
fn end_tokens(place: &Path, file: &Map<String, Value>) -> Result<Vec<i32>> {
    const KEY: &str = "eos_token_id";
    let id = |value: &Value| value.as_i64().and_then(|id| i32::try_from(id).ok()).filter(|id| *id >= 0);
    let ids = match file.get(KEY) {
        None | Some(Value::Null) => Some(Vec::new()),
        Some(Value::Array(values)) => values.iter().map(id).collect(),
        Some(value) => id(value).map(|id| vec![id]),
    };
    ids.ok_or_else(|| refused(place, KEY, "an id or a list of ids", &json!(file.get(KEY))))
}

fn refused(place: &Path, key: &str, expected: &str, found: &Value) -> anyhow::Error {
    let hint = "set `evaluate.generation.generation_config = \"leave\"`, or mend the file";
    Error::bad(format_args!("{}: `{key}`", shown(place)), expected, found).hint(hint).into()
}

fn shown(place: &Path) -> String {
    format!("`{}`", place.display())
}
