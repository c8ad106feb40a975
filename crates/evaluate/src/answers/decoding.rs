//! How answers are made, settled before any work starts, and the answers themselves.

use std::path::Path;

use anyhow::Result;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use softshard_labels::{Error, Provenance, read_if_there};
use softshard_model::{Answer, Decoder, Fitting, Generation, Prompt, Sampling};
use softshard_prepare::Tokenizer;

use super::config::{GenerationConfig, GenerationFile};
use crate::{EvaluateConfig, inputs::too_large, rows::Settings};

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
pub struct Given {
    /// As the model wrote it, with the text that ended it.
    pub raw: String,
    /// As it is scored; empty where it was not answered.
    pub text: String,
    /// Its tokens.
    pub tokens: usize,
    /// Whether it came to an end; otherwise it was cut.
    pub ended: bool,
}

impl Decoding {
    /// What the recipe and the model's folder say.
    ///
    /// # Errors
    /// The folder's file is no JSON object, or says what no answer can be made with.
    pub fn of(config: &EvaluateConfig, model: &Path, tokenizer: &Tokenizer) -> Result<Self> {
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
            let Value::Object(mut generation) = serde_json::to_value(self)? else {
                unreachable!("a struct is an object")
            };
            // By the names that they have in the recipe.
            for name in ["max_new_tokens", "stop_at_newline"] {
                settings.extend(generation.remove_entry(name));
            }
            settings.insert("generation".to_owned(), Value::Object(generation));
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
        let something_ends = self.stop_at_newline || !self.stop.is_empty();
        // Text that cannot be made is said when the answer is there.
        let ends =
            |ids: &[i32]| something_ends && tokenizer.decode(ids).is_ok_and(|text| self.end(&text).is_some());
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

fn drawing(own: &GenerationConfig, place: &Path, file: &Map<String, Value>) -> Result<Option<Drawing>> {
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

#[cfg(test)]
mod tests {
    use burn::tensor::Device;

    use super::*;

    fn golden() -> std::path::PathBuf {
        softshard_e2e::root().join("tests/peers/golden")
    }

    fn tokenizer() -> Tokenizer {
        Tokenizer::load(&golden().join("tokenizers/qwen-like")).expect("the tokenizer loads")
    }

    fn decoding(evaluate: Value, model: &Path) -> Result<Decoding, String> {
        let config: EvaluateConfig = serde_json::from_value(evaluate).expect("it parses");
        Decoding::of(&config, model, &tokenizer()).map_err(|error| error.to_string())
    }

    #[derive(Deserialize)]
    struct Case {
        prompt: Vec<i32>,
        stop: String,
        answer: Vec<i32>,
        text: String,
    }

    /// tests/peers/golden_generate.py: transformers' `stop_strings`.
    #[test]
    fn answers_end_at_a_text_as_those_of_transformers() {
        let text =
            fs_err::read_to_string(golden().join("generate.json")).expect("golden/generate.json is there");
        let mut all: Value = serde_json::from_str(&text).expect("it is JSON");
        let cases: Vec<Case> = serde_json::from_value(all["stop_strings"]["cases"].take()).expect("cases");
        let decoder = Decoder::load(&golden().join("tiny-llama"), &Device::flex()).expect("the model loads");
        let mut decoding = decoding(json!({ "max_new_tokens": 24 }), Path::new("none")).expect("settings");
        for case in cases {
            decoding.stop = vec!["not there".to_owned(), case.stop.clone()];
            let found = decoding.answers((&decoder, &tokenizer()), 0, &[&case.prompt], &Fitting::default());
            let found = &found.expect("an answer")[0];
            assert_eq!((&found.raw, found.tokens, found.ended), (&case.text, case.answer.len(), true));
            let before = case.text.split(&case.stop).next().expect("the first part");
            assert_eq!(found.text, before.trim());
        }
    }

    #[test]
    fn a_line_break_ends_an_answer_that_has_begun() {
        let mut decoding = decoding(json!({ "stop_at_newline": true }), Path::new("none")).expect("settings");
        let ends = |decoding: &Decoding, text: &str| decoding.end(text);
        assert_eq!(ends(&decoding, "\n \n"), None);
        assert_eq!(ends(&decoding, "\n one\ntwo"), Some(5));
        decoding.stop = vec!["\n".to_owned()];
        assert_eq!(ends(&decoding, "\n one\ntwo"), Some(0));
        decoding.stop = vec!["o".to_owned()];
        assert_eq!(ends(&decoding, "a\no"), Some(1));
    }

    #[test]
    fn a_models_own_settings_are_taken_or_left() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join(FILE);
        let own = json!({ "do_sample": true, "temperature": 0.7, "top_p": 0.8, "top_k": 20, "repetition_penalty": 1.05,
            "eos_token_id": [7, 9] });
        fs_err::write(&file, own.to_string()).expect("written");
        let of = |generation: Value| decoding(json!({ "generation": generation }), folder.path());
        let ids = tokenizer().stop_ids().to_vec();

        let left = of(json!({})).expect("settings");
        assert_eq!((left.repetition_penalty, &left.stop_ids, left.sampling), (1.0, &ids, None));
        assert_eq!(left.generation_config, OfTheModel::Left);
        let taken = of(json!({ "generation_config": "take" })).expect("settings");
        assert_eq!((taken.repetition_penalty, taken.sampling), (1.05, None));
        assert_eq!(taken.stop_ids, [ids.as_slice(), &[7, 9]].concat());
        assert_eq!(taken.generation_config, OfTheModel::Taken);
        let drawn = of(
            json!({ "generation_config": "take", "temperature": 1.0, "top_p": 0.9, "repetition_penalty": 1.0 }),
        );
        let drawn = drawn.expect("settings");
        let sampling = Drawing { temperature: 1.0, top_k: Some(20), top_p: 0.9, seed: 0 };
        assert_eq!((drawn.repetition_penalty, drawn.sampling), (1.0, Some(sampling)));

        for (bad, expected) in [
            (
                json!({ "repetition_penalty": 0 }),
                "`repetition_penalty`: expected a number that answers can be made with, found 0",
            ),
            (json!({ "repetition_penalty": "x" }), "found \"x\""),
            (
                json!({ "eos_token_id": [1, -1] }),
                "`eos_token_id`: expected an id or a list of ids, found [1,-1]",
            ),
        ] {
            fs_err::write(&file, bad.to_string()).expect("written");
            let error = of(json!({ "generation_config": "take" })).expect_err("refused");
            assert!(error.contains(expected), "{error}");
            assert!(of(json!({})).is_ok(), "what is left is not read");
        }
        fs_err::write(&file, "[").expect("written");
        assert!(
            of(json!({ "generation_config": "take" }))
                .expect_err("no JSON")
                .contains("expected a JSON object")
        );
        fs_err::remove_file(&file).expect("removed");
        let none = of(json!({ "generation_config": "take" })).expect("settings");
        assert_eq!(none.generation_config, OfTheModel::NotThere);
    }
}
