//! Answers to prompts, and what they are worth.

mod config;
mod copying;
mod decoding;
mod summaries;

use anyhow::Result;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use softshard_labels::{Error, Example, Progress, Provenance, Sequence, SequenceDataset};
use softshard_model::{Decoder, Fitting};
use softshard_prepare::{FileRow, Tokenizer, demo, file_rows};

use crate::{
    EvaluateInputs,
    inputs::{check_stop, nothing_held_out},
    partial::Parts,
    rouge::{Rouge, Rouges},
    rows::{Arguments, Request, Row},
    statistics::number,
    subject::add_settings,
};
pub use config::{GenerationConfig, GenerationFile, SummariesConfig};
pub use copying::{Copying, FLOORS, Share, copying};
pub use decoding::{Decoding, Drawing, Given, OfTheModel};
pub use summaries::{
    Anchor, Step, SummaryDocument, SummaryMeans, SummaryRow, SummaryScores, SummarySource, anchor, summarise,
};
pub(crate) use summaries::{documents, read, to_lines};

/// Prompts that are answered between two looks at the stop flag: they are a part, which is kept.
const ANSWERS_PER_STEP: usize = 64;

/// Scores of answers to held-out prompts.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct AnswerScores {
    /// Prompts answered.
    pub answers: usize,
    /// Of them those that say something; results of earlier versions do not say, as with the next three.
    #[serde(default)]
    pub answered: Option<usize>,
    /// Of them those that were cut before they ended.
    #[serde(default)]
    pub cut: Option<usize>,
    /// Mean length of all of them.
    #[serde(default)]
    pub mean_tokens: Option<f64>,
    /// Mean F-measure, 0 to 1; an empty answer has 0.
    pub rouge_l: f64,
    /// Mean F-measures in MiniLLM's convention and in that of the paper's harness.
    #[serde(default)]
    pub rouge: Option<Conventions>,
    /// Share of answers that state facts of the article and nothing else, 0 to 1; only where rows carry their facts.
    pub faithful: Option<f64>,
    /// Share of stated facts that the article supports, 0 to 1; only where rows carry their facts.
    pub supported_facts: Option<f64>,
}

/// F-measures in two conventions, which give other numbers for the same texts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Conventions {
    /// With stems: as MiniLLM reports them.
    pub minillm: Rouges,
    /// Without stems, lines ending at `" . "`: as the paper's harness reports them.
    pub harness: Rouges,
}

impl Conventions {
    /// Those of an answer.
    pub(crate) fn of(reference: &str, answer: &str) -> Self {
        let (minillm, harness) =
            (Rouge::MINILLM.all(reference, answer), Rouge::HARNESS.all(reference, answer));
        Self { minillm, harness }
    }

    /// The mean of some, in their order; none of none.
    pub(crate) fn mean(all: &[Self]) -> Option<Self> {
        let rouges = |of: fn(&Self) -> &Rouges| {
            let mean = |part: fn(&Rouges) -> f64| {
                all.iter().map(|one| part(of(one))).sum::<f64>() / number(all.len())
            };
            Rouges {
                rouge1: mean(|of| of.rouge1),
                rouge2: mean(|of| of.rouge2),
                rouge_l: mean(|of| of.rouge_l),
                rouge_lsum: mean(|of| of.rouge_lsum),
            }
        };
        (!all.is_empty())
            .then(|| Self { minillm: rouges(|one| &one.minillm), harness: rouges(|one| &one.harness) })
    }
}

/// Documents to summarise, read before any model is.
pub(crate) struct Summaries {
    config: SummariesConfig,
    decoding: Decoding,
    sources: Vec<SummarySource>,
}

impl Summaries {
    /// The rows of the file.
    ///
    /// # Errors
    /// It cannot be read, has no rows, or has one without a document.
    pub(crate) fn open(config: &SummariesConfig, decoding: Decoding) -> Result<Self> {
        let rows = file_rows(&config.file, config.limit)?;
        if rows.is_empty() {
            let place = format!("task `summaries`, `{}`", config.file.display());
            return Err(Error::bad(place, "rows with a document", "none").into());
        }
        let source = |(number, row): (usize, &FileRow)| -> Result<SummarySource> {
            let Value::Object(columns) = serde_json::to_value(&row.columns)? else {
                unreachable!("a row is an object")
            };
            Ok(SummarySource::of(&format!("`{}`", row.source()), number, &columns, config)?)
        };
        let sources = rows.iter().enumerate().map(source).collect::<Result<_>>()?;
        Ok(Self { config: config.clone(), decoding, sources })
    }

    /// Adds what the scores are made from besides the model and its tokenizer.
    pub(crate) fn add_to(&self, this: &mut Provenance) -> Result<()> {
        let mut hasher = blake3::Hasher::new();
        for SummarySource { id, document, summary } in &self.sources {
            hasher.update(json!([id, document, summary]).to_string().as_bytes());
            hasher.update(b"\n");
        }
        this.input("rows", hasher.finalize().to_hex().to_string());
        let SummariesConfig { prompt, limit, .. } = &self.config;
        add_settings(this, json!({ "summaries": { "prompt": prompt, "limit": limit } }));
        self.decoding.say(this)
    }

    /// Summaries and what they are worth.
    ///
    /// # Errors
    /// Those of [`summarise`]; a stop that was asked for.
    pub(crate) fn score(
        &self,
        inputs: &EvaluateInputs,
        model: (&Decoder, &Tokenizer),
        parts: &mut Parts,
    ) -> Result<(SummaryScores, Vec<SummaryRow>)> {
        summarise(model, (&self.config, &self.decoding), &self.sources, &mut |done, make| {
            check_stop(inputs)?;
            let answers = parts.next(make)?;
            say_progress(inputs, done, self.sources.len());
            Ok(answers)
        })
    }
}

/// Answers to the held-out prompts and what they are worth; each stands in its row then.
pub(crate) fn score(
    inputs: &EvaluateInputs,
    (decoder, tokenizer): (&Decoder, &Tokenizer),
    decoding: &Decoding,
    examples: &[Question],
    (parts, rows): (&mut Parts, &mut [Row]),
) -> Result<AnswerScores> {
    let fitting = Fitting::default();
    let (mut tokens, mut answered, mut cut, mut rouges) = (0, 0, 0, Vec::with_capacity(examples.len()));
    let (mut rouge_sum, mut faithful, mut stated, mut supported, mut judged) = (0.0, 0, 0, 0, 0);
    for (step, chunk) in examples.chunks(ANSWERS_PER_STEP).enumerate() {
        check_stop(inputs)?;
        check_positions(decoder, chunk)?;
        let first = step * ANSWERS_PER_STEP;
        let prompts: Vec<&[i32]> = chunk.iter().map(|example| example.prompt_ids.as_slice()).collect();
        let answers = parts.next(|| decoding.answers((decoder, tokenizer), first, &prompts, &fitting))?;
        for (example, given) in chunk.iter().zip(answers) {
            let reference = &example.example.reference;
            let rouge_l = inputs.config.rouge.score(reference, &given.text).f_measure;
            let faithfulness = faithfulness(&example.example, &given.text);
            tokens += given.tokens;
            answered += usize::from(!given.text.is_empty());
            cut += usize::from(!given.ended);
            rouges.push(Conventions::of(reference, &given.text));
            rouge_sum += rouge_l;
            if let Some(found) = &faithfulness {
                judged += 1;
                faithful += usize::from(found.faithful);
                stated += found.stated;
                supported += found.supported;
            }
            let row = &mut rows[example.row];
            row.target = Some(reference.clone());
            row.arguments = Some(arguments(decoding, tokenizer.decode_all(&example.prompt_ids)?));
            row.resps = Some([[given.raw]]);
            row.filtered_resps = Some([given.text]);
            row.rouge_l = Some(rouge_l);
            row.faithful = faithfulness.as_ref().map(|found| u8::from(found.faithful));
            row.stated_facts = faithfulness.as_ref().map(|found| found.stated);
            row.supported_facts = faithfulness.as_ref().map(|found| found.supported);
        }
        say_progress(inputs, first + chunk.len(), examples.len());
    }
    // Where nothing was judged, or no fact stated, there is no share.
    let share = |part: usize, whole: usize| (whole > 0).then(|| number(part) / number(whole));
    Ok(AnswerScores {
        answers: examples.len(),
        answered: Some(answered),
        cut: Some(cut),
        mean_tokens: share(tokens, examples.len()),
        rouge_l: rouge_sum / number(examples.len()),
        rouge: Conventions::mean(&rouges),
        faithful: share(faithful, judged),
        supported_facts: share(supported, stated),
    })
}

fn say_progress(inputs: &EvaluateInputs, done: usize, total: usize) {
    let (done, total) = (done as u64, total as u64);
    inputs.observer.progress(&Progress {
        stage: "answers",
        done,
        total,
        unit: "answers",
        ..Progress::default()
    });
}

fn arguments(decoding: &Decoding, prompt: String) -> Arguments {
    Arguments { gen_args_0: Request { arg_0: prompt, arg_1: decoding.settings() } }
}

/// A held-out row whose prompt is answered.
pub(crate) struct Question {
    /// Its number among all rows of the split.
    row: usize,
    source: String,
    prompt_ids: Vec<i32>,
    example: Example,
}

/// The held-out rows to answer, from their sequences and from nowhere else; none of a corpus of documents.
///
/// # Errors
/// Sequences of version 1, which do not have their rows.
pub(crate) fn questions(inputs: &EvaluateInputs) -> Result<Vec<Question>> {
    let place = format!("`{}`", inputs.sequences.display());
    if !inputs.sequences.exists() {
        if !inputs.labels.exists() {
            return Err(nothing_held_out(inputs).into());
        }
        tracing::warn!("{place}: there are no held-out sequences, so no prompts: answers are not scored");
        return Ok(Vec::new());
    }
    let dataset = SequenceDataset::open(inputs.sequences)?;
    let info = &dataset.manifest().info;
    if dataset.manifest().version == 1 && info.template != "text" {
        let expected = "held-out sequences with their prompts and references, version 2";
        let hint = "run `softshard prepare` again: labels of the same rows stay good";
        return Err(Error::bad(place, expected, "version 1, which has none").hint(hint).into());
    }
    let question = |(row, (sequence, example)): (usize, (Sequence, Option<Example>))| {
        let example = example?;
        let prompt_ids = example.prompt(&sequence).to_vec();
        Some(Question { row, source: sequence.source.unwrap_or_default(), prompt_ids, example })
    };
    let mut questions: Vec<_> =
        dataset.read_examples(0..dataset.len())?.into_iter().enumerate().filter_map(question).collect();
    questions.truncate(inputs.config.max_answers.unwrap_or(usize::MAX));
    if questions.is_empty() && info.template != "text" {
        tracing::warn!("{place}: no sequence has its row, so no prompts: answers are not scored");
    }
    Ok(questions)
}

/// Held-out prompts are those of the training, and none is cut.
fn check_positions(decoder: &Decoder, examples: &[Question]) -> Result<()> {
    let limit = decoder.config().context();
    match examples.iter().find(|example| example.prompt_ids.len() > limit) {
        None => Ok(()),
        Some(long) => {
            let place = format!("prompt from `{}`", long.source);
            let expected = format_args!("at most the model's {limit} positions");
            let hint = "set `data.max_prompt_tokens`";
            Err(Error::bad(place, expected, long.prompt_ids.len()).hint(hint).into())
        }
    }
}

/// How an answer agrees with the facts of its row, where the row has any of the demo's kind.
fn faithfulness(example: &Example, answer: &str) -> Option<demo::Faithfulness> {
    let facts: demo::Facts = serde_json::from_value(example.facts.clone()?).ok()?;
    Some(demo::faithfulness(&facts, answer))
}
