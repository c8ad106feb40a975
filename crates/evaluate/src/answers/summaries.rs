//! Summaries of documents: prompts, answers, and what these are worth beside the reference and the first sentences of the document.

use std::path::Path;

use anyhow::Result;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use softshard_labels::Error;
use softshard_model::{Decoder, Fitting};
use softshard_prepare::Tokenizer;

use super::config::SummariesConfig;
use super::decoding::{Decoding, Given};
use super::{ANSWERS_PER_STEP, Conventions, Copying, arguments, copying};
use crate::rouge::Rouges;
use crate::rows::{Arguments, lines_of, lines_without};
use crate::statistics::{Documents, number};

/// Sentences of an article that are its summary where nobody wrote one.
const LEAD: usize = 3;

/// A document to summarise.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SummarySource {
    /// What it is called.
    pub id: String,
    /// The text.
    pub document: String,
    /// Its reference, where there is one.
    pub summary: Option<String>,
}

/// An answer that no model gives, to be scored as one that a model gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Anchor {
    /// The reference.
    Gold,
    /// The first three sentences of the document.
    Lead,
}

/// What summaries are worth.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SummaryScores {
    /// The prompt, `{document}` standing for the document; none of an anchor.
    pub prompt: Option<String>,
    /// How the answers were made; none of an anchor.
    pub decoding: Option<Decoding>,
    /// Prompts that lost their beginning, as they were too long.
    pub shortened_prompts: usize,
    /// Means over the rows.
    pub means: SummaryMeans,
    /// The same of the reference as an answer; nothing in an anchor's own scores.
    pub gold: Option<SummaryMeans>,
    /// The same of the first three sentences of the document.
    pub lead_3: Option<SummaryMeans>,
}

/// Means of some answers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SummaryMeans {
    /// Documents.
    pub rows: usize,
    /// Those with an answer that says something.
    pub answered: usize,
    /// Answers that were cut before they ended.
    pub cut: usize,
    /// Mean words of those that say something, as ROUGE counts them.
    pub mean_words: Option<f64>,
    /// Mean tokens of all answers of a model.
    pub mean_tokens: Option<f64>,
    /// F-measures over all rows with a reference; an empty answer has 0.
    pub rouge: Option<Conventions>,
    /// Shares over the answers that have anything of the kind. Copying, not faithfulness.
    pub copying: Copying,
}

/// A summary with its scores, in the form of lm-evaluation-harness's samples.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SummaryRow {
    /// Number of the row, from 0.
    pub doc_id: usize,
    /// Which document it is.
    pub doc: SummaryDocument,
    /// The reference, where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    /// What a model was asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub arguments: Option<Arguments>,
    /// The answer as it was made.
    pub resps: [[String; 1]; 1],
    /// The answer as it was scored.
    pub filtered_resps: [String; 1],
    /// Names of the metrics that it has.
    pub metrics: Vec<String>,
    /// 1 where the answer says something.
    pub answered: u8,
    /// Its words, as ROUGE counts them.
    pub words: usize,
    /// Its tokens, if a model made it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokens: Option<usize>,
    /// 1 where it was cut before it ended.
    pub cut: u8,
    /// 1 where the prompt lost its beginning.
    pub shortened_prompt: u8,
    /// ROUGE-L against the reference as MiniLLM reports it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rouge_l: Option<f64>,
    /// All F-measures against the reference.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rouge: Option<Conventions>,
    /// Share of words that stand in the document.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub copied_unigrams: Option<f64>,
    /// The same of three words, one after the other.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub copied_trigrams: Option<f64>,
    /// The same of words that are not words of grammar.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub copied_content_words: Option<f64>,
    /// The same of names and numbers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub copied_names_and_numbers: Option<f64>,
}

/// Which document it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SummaryDocument {
    /// What it is called.
    pub id: String,
}

impl SummaryRow {
    /// Scores of which more is better; ROUGE as MiniLLM reports it. What is copied is no score.
    pub(crate) const SCORES: [&str; 5] = ["answered", "rouge1", "rouge2", "rouge_l", "rouge_lsum"];

    /// One of them, if the row has it.
    pub(crate) fn score(&self, name: &str) -> Option<f64> {
        let rouge = |of: fn(&Rouges) -> f64| self.rouge.as_ref().map(|both| of(&both.minillm));
        match name {
            "answered" => Some(f64::from(self.answered)),
            "rouge1" => rouge(|of| of.rouge1),
            "rouge2" => rouge(|of| of.rouge2),
            "rouge_l" => rouge(|of| of.rouge_l),
            "rouge_lsum" => rouge(|of| of.rouge_lsum),
            _ => None,
        }
    }

    /// What is wrong with a row at this place: what was expected, and what was found.
    fn fault(&self, number: usize) -> Option<(&'static str, String)> {
        if self.doc_id != number {
            return Some(("the number of its row", format!("`doc_id` {}", self.doc_id)));
        }
        let scores = Self::SCORES.iter().filter_map(|name| Some((name, self.score(name)?)));
        let mut bad = scores.filter(|(_, score)| !(0.0..=1.0).contains(score));
        bad.next().map(|(name, score)| ("scores from 0 to 1", format!("`{name}` {score}")))
    }
}

/// The lines of a file of rows.
///
/// # Errors
/// A score that is none.
pub(crate) fn to_lines(rows: &[SummaryRow], place: &str) -> Result<Vec<u8>> {
    lines_without(rows, place, SummaryRow::fault)
}

/// Reads a file of rows.
///
/// # Errors
/// It is not there, or a line is no row.
pub(crate) fn read(path: &Path) -> Result<Vec<SummaryRow>> {
    lines_of(path, SummaryRow::fault)
}

/// Which document each row is of.
pub(crate) fn documents(rows: &[SummaryRow]) -> Documents {
    Documents::of(&rows.iter().map(|row| row.doc.id.as_str()).collect::<Vec<_>>())
}

impl SummarySource {
    /// A row of a file, of which this is the number, from 0.
    ///
    /// # Errors
    /// There is no document in it, or something that is no text.
    pub fn of(
        place: &str,
        number: usize,
        row: &Map<String, Value>,
        config: &SummariesConfig,
    ) -> Result<Self, Error> {
        let text = |key: &str| match row.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(text)) => Ok(Some(text.clone())),
            Some(_) => Err(Error::bad(format_args!("{place}: `{key}`"), "a text", "something else")),
        };
        let document = text(&config.document)?.filter(|text| !text.trim().is_empty());
        let document = document.ok_or_else(|| {
            let expected = format_args!("a text in `{}`", config.document);
            let hint = "`evaluate.summaries.document` names the column of the document";
            Error::bad(place, expected, "none").hint(hint)
        })?;
        let id = match row.get(&config.id) {
            Some(Value::String(id)) => id.clone(),
            Some(Value::Number(id)) => id.to_string(),
            _ => number.to_string(),
        };
        let summary = text(&config.summary)?.filter(|text| !text.trim().is_empty());
        Ok(Self { id, document, summary })
    }
}

/// A prompt as the model gets it.
struct Asked {
    text: String,
    ids: Vec<i32>,
    /// Whether its beginning is gone.
    shortened: bool,
}

/// Makes some answers, or gives those that were kept of an earlier run; told how many documents are done with them.
pub type Step<'a> = &'a mut dyn FnMut(usize, &dyn Fn() -> Result<Vec<Given>>) -> Result<Vec<Given>>;

/// Summaries of all documents by a model, and what they are worth.
///
/// `step` calls what it is given, or has its answers from before: so a caller stops, keeps and shows what is done.
///
/// # Errors
/// Those of `step`; the model has no positions for a prompt and its answer, or no memory; weights cannot be read; logits are not
/// finite.
pub fn summarise(
    (decoder, tokenizer): (&Decoder, &Tokenizer),
    (config, decoding): (&SummariesConfig, &Decoding),
    sources: &[SummarySource],
    step: Step<'_>,
) -> Result<(SummaryScores, Vec<SummaryRow>)> {
    let (before, behind) = config.around().map_err(|problem| Error::bad("recipe", "a prompt", problem))?;
    let limit = longest_prompt(decoder, decoding)?;
    let fitting = Fitting::default();
    let mut rows = Vec::with_capacity(sources.len());
    for chunk in sources.chunks(ANSWERS_PER_STEP) {
        let first = rows.len();
        let asked: Vec<Asked> = chunk
            .iter()
            .map(|source| asked(tokenizer, format!("{before}{}{behind}", source.document), limit))
            .collect::<Result<_>>()?;
        let prompts: Vec<&[i32]> = asked.iter().map(|asked| asked.ids.as_slice()).collect();
        let make = || decoding.answers((decoder, tokenizer), first, &prompts, &fitting);
        let answers = step(first + chunk.len(), &make)?;
        for ((source, asked), given) in chunk.iter().zip(asked).zip(answers) {
            let mut row = row(rows.len(), source, given);
            row.shortened_prompt = u8::from(asked.shortened);
            row.arguments = Some(arguments(decoding, asked.text));
            rows.push(row);
        }
    }
    let of_anchor = |one: Anchor| anchor(one, sources).0.means;
    let has_gold = sources.iter().any(|source| source.summary.is_some());
    let scores = SummaryScores {
        prompt: Some(format!("{before}{{document}}{behind}")),
        decoding: Some(decoding.clone()),
        shortened_prompts: rows.iter().map(|row| usize::from(row.shortened_prompt)).sum(),
        means: means(&rows),
        gold: has_gold.then(|| of_anchor(Anchor::Gold)),
        lead_3: Some(of_anchor(Anchor::Lead)),
    };
    Ok((scores, rows))
}

/// What an anchor is worth, of the documents that have it.
pub fn anchor(anchor: Anchor, sources: &[SummarySource]) -> (SummaryScores, Vec<SummaryRow>) {
    let answer = |source: &SummarySource| match anchor {
        Anchor::Gold => source.summary.clone(),
        Anchor::Lead => {
            // A line ends a sentence.
            let all = source.document.lines().flat_map(softshard_scorers::sentences);
            Some(all.take(LEAD).collect::<Vec<_>>().join(" "))
        }
    };
    let row = |(number, source): (usize, &SummarySource)| {
        let text = answer(source)?.trim().to_owned();
        let mut row = row(number, source, Given { raw: text.clone(), text, tokens: 0, ended: true });
        row.tokens = None;
        Some(row)
    };
    let rows: Vec<SummaryRow> = sources.iter().enumerate().filter_map(row).collect();
    let means = means(&rows);
    let scores =
        SummaryScores { prompt: None, decoding: None, shortened_prompts: 0, means, gold: None, lead_3: None };
    (scores, rows)
}

/// Most tokens of a prompt.
fn longest_prompt(decoder: &Decoder, decoding: &Decoding) -> Result<usize> {
    let positions = decoder.config().context();
    let room = positions.saturating_sub(decoding.max_new_tokens);
    if room == 0 {
        let expected = format_args!("room for a prompt in the model's {positions} positions");
        let found = format_args!("answers of {} tokens", decoding.max_new_tokens);
        let hint = "set `evaluate.max_new_tokens` to less";
        return Err(Error::bad("`evaluate.max_new_tokens`", expected, found).hint(hint).into());
    }
    Ok(decoding.max_prompt_tokens.map_or(room, |most| most.min(room)))
}

/// The ids of a prompt, the last `limit` of them: what comes behind the document stays.
fn asked(tokenizer: &Tokenizer, text: String, limit: usize) -> Result<Asked> {
    let mut ids = tokenizer.encode(&text)?;
    if let Some(bos) = tokenizer.bos().filter(|bos| tokenizer.adds_bos() && ids.first() != Some(bos)) {
        ids.insert(0, bos);
    }
    let shortened = ids.len() > limit;
    if shortened {
        ids.drain(..ids.len() - limit);
    }
    Ok(Asked { text, ids, shortened })
}

fn row(number: usize, source: &SummarySource, given: Given) -> SummaryRow {
    let copied = copying(&source.document, &given.text);
    let rouge = source.summary.as_ref().map(|reference| Conventions::of(reference, &given.text));
    let there = [
        ("rouge_l", rouge.is_some()),
        ("copied_unigrams", copied.unigrams.is_some()),
        ("copied_trigrams", copied.trigrams.is_some()),
        ("copied_content_words", copied.content_words.is_some()),
        ("copied_names_and_numbers", copied.names_and_numbers.is_some()),
    ];
    SummaryRow {
        doc_id: number,
        doc: SummaryDocument { id: source.id.clone() },
        target: source.summary.clone(),
        arguments: None,
        metrics: there.iter().filter(|(_, there)| *there).map(|(name, _)| (*name).to_owned()).collect(),
        answered: u8::from(!given.text.is_empty()),
        words: crate::rouge::words(&given.text).len(),
        tokens: Some(given.tokens),
        cut: u8::from(!given.ended),
        shortened_prompt: 0,
        rouge_l: rouge.map(|rouge| rouge.minillm.rouge_l),
        rouge,
        copied_unigrams: copied.unigrams,
        copied_trigrams: copied.trigrams,
        copied_content_words: copied.content_words,
        copied_names_and_numbers: copied.names_and_numbers,
        resps: [[given.raw]],
        filtered_resps: [given.text],
    }
}

fn means(rows: &[SummaryRow]) -> SummaryMeans {
    let rouges: Vec<Conventions> = rows.iter().filter_map(|row| row.rouge).collect();
    let answered = || rows.iter().filter(|row| row.answered == 1);
    SummaryMeans {
        rows: rows.len(),
        answered: answered().count(),
        cut: rows.iter().map(|row| usize::from(row.cut)).sum(),
        mean_words: mean(answered().map(|row| Some(number(row.words)))),
        mean_tokens: mean(rows.iter().map(|row| row.tokens.map(number))),
        rouge: Conventions::mean(&rouges),
        copying: Copying {
            unigrams: mean(rows.iter().map(|row| row.copied_unigrams)),
            trigrams: mean(rows.iter().map(|row| row.copied_trigrams)),
            content_words: mean(rows.iter().map(|row| row.copied_content_words)),
            names_and_numbers: mean(rows.iter().map(|row| row.copied_names_and_numbers)),
        },
    }
}

/// The mean of what is there; none of nothing.
fn mean(values: impl Iterator<Item = Option<f64>>) -> Option<f64> {
    let there: Vec<f64> = values.flatten().collect();
    (!there.is_empty()).then(|| there.iter().sum::<f64>() / number(there.len()))
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;
    use serde_json::json;

    use super::*;
    use crate::EvaluateConfig;

    fn config() -> SummariesConfig {
        serde_json::from_value(json!({ "file": "rows.jsonl", "prompt": "xsum" })).expect("it parses")
    }

    fn source(row: Value) -> Result<SummarySource, String> {
        let Value::Object(row) = row else { panic!("an object") };
        SummarySource::of("`rows.jsonl` line 1", 0, &row, &config()).map_err(|error| error.to_string())
    }

    #[test]
    fn rows_have_a_document_and_may_have_a_reference() {
        let found =
            source(json!({ "id": 7, "document": "A text.", "summary": "Text.", "also_in_fib": true }));
        let whole =
            SummarySource { id: "7".into(), document: "A text.".into(), summary: Some("Text.".into()) };
        assert_eq!(found, Ok(whole));
        let found = source(json!({ "document": "A text.", "summary": " " })).expect("a document is enough");
        assert_eq!((found.id.as_str(), found.summary), ("0", None));
        for row in [json!({ "article": "A text." }), json!({ "document": "\n" }), json!({ "document": null })]
        {
            let error = source(row).unwrap_err();
            assert!(
                error.starts_with("`rows.jsonl` line 1: expected a text in `document`, found none"),
                "{error}"
            );
        }
        let error = source(json!({ "document": "A text.", "summary": ["a"] })).unwrap_err();
        assert!(error.contains("`summary`: expected a text, found something else"), "{error}");
    }

    #[test]
    fn documents_are_summarised_the_same_in_one_run_and_with_parts_of_an_earlier_one() {
        let golden = softshard_e2e::root().join("tests/peers/golden");
        let decoder = Decoder::load(&golden.join("tiny-llama"), &Device::flex()).expect("the model loads");
        let tokenizer = Tokenizer::load(&golden.join("tokenizers/qwen-like")).expect("the tokenizer loads");
        let evaluate: EvaluateConfig = serde_json::from_value(json!({
            "max_new_tokens": 12, "generation": { "temperature": 0.8, "top_k": 40, "seed": 3, "max_prompt_tokens": 30 },
        }))
        .expect("it parses");
        let decoding = Decoding::of(&evaluate, &golden.join("tiny-llama"), &tokenizer).expect("settings");
        let own: SummariesConfig =
            serde_json::from_value(json!({ "file": "x", "prompt": "{document}" })).expect("it parses");
        let source = |number: usize| SummarySource {
            id: number.to_string(),
            document: "xqz".repeat(1 + number % 7 * 3),
            summary: number.is_multiple_of(2).then(|| "xqz q".to_owned()),
        };
        let sources: Vec<_> = (0..ANSWERS_PER_STEP + 9).map(source).collect();
        let models = (&decoder, &tokenizer);
        let (mut kept, mut done) = (Vec::new(), Vec::new());
        let (scores, rows) = summarise(models, (&own, &decoding), &sources, &mut |count, make| {
            done.push(count);
            kept.push(make()?);
            Ok(kept[kept.len() - 1].clone())
        })
        .expect("summaries");
        assert_eq!((rows.len(), done), (sources.len(), vec![ANSWERS_PER_STEP, sources.len()]));
        assert!(
            scores.shortened_prompts > 0
                && scores.gold.is_some_and(|gold| gold.rows == sources.len().div_ceil(2))
        );
        let mut step = 0;
        let again = summarise(models, (&own, &decoding), &sources, &mut |_, make| {
            step += 1;
            if step == 1 { Ok(kept[0].clone()) } else { make() }
        });
        assert!(again.expect("summaries") == (scores, rows.clone()));
        // A row by itself, with its number, is answered as among the others.
        let alone = decoding.answers(
            models,
            70,
            &[&asked(&tokenizer, sources[70].document.clone(), 30).expect("ids").ids],
            &Fitting::default(),
        );
        assert_eq!(alone.expect("an answer")[0].text, rows[70].filtered_resps[0]);
        let error = summarise(
            models,
            (&own, &Decoding { max_new_tokens: 64, ..decoding }),
            &sources,
            &mut |_, make| make(),
        );
        let error = error.expect_err("the model has 64 positions").to_string();
        assert!(error.contains("expected room for a prompt in the model's 64 positions"), "{error}");
    }

    #[test]
    fn anchors_are_scored_as_answers_are() {
        let document = "Anna opened the door. It was dark. Nobody was there. She left.";
        let sources = [
            SummarySource {
                id: "a".into(),
                document: document.into(),
                summary: Some("Anna found nobody.".into()),
            },
            SummarySource { id: "b".into(), document: "One line".into(), summary: None },
        ];
        let (gold, rows) = anchor(Anchor::Gold, &sources);
        assert_eq!((gold.means.rows, gold.means.answered, rows.len()), (1, 1, 1));
        let rouge = gold.means.rouge.expect("there is a reference");
        assert!((rouge.minillm.rouge_l - 1.0).abs() < 1e-12 && (rouge.harness.rouge2 - 1.0).abs() < 1e-12);
        let (lead, rows) = anchor(Anchor::Lead, &sources);
        assert_eq!(rows[0].filtered_resps, ["Anna opened the door. It was dark. Nobody was there."]);
        assert_eq!(rows[1].filtered_resps, ["One line"]);
        assert_eq!((lead.means.copying.unigrams, lead.means.mean_tokens), (Some(1.0), None));
        assert!(rows[1].rouge.is_none() && rows[1].metrics.iter().all(|name| name != "rouge_l"));
    }

    #[test]
    fn an_empty_answer_is_counted_and_copies_nothing() {
        let source =
            SummarySource { id: "a".into(), document: "A text.".into(), summary: Some("A text.".into()) };
        let empty =
            row(0, &source, Given { raw: "\nA text.".into(), text: String::new(), tokens: 3, ended: true });
        let full =
            row(1, &source, Given { raw: "A text.".into(), text: "A text.".into(), tokens: 2, ended: false });
        assert_eq!((empty.answered, empty.copied_unigrams), (0, None));
        let means = means(&[empty, full]);
        assert_eq!((means.rows, means.answered, means.cut), (2, 1, 1));
        assert_eq!((means.mean_words, means.mean_tokens), (Some(2.0), Some(2.5)));
        assert_eq!(means.rouge.map(|rouge| rouge.minillm.rouge1), Some(0.5));
        assert_eq!(means.copying.unigrams, Some(1.0));
    }
}
