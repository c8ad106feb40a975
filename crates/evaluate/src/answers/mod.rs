//! Answers to held-out prompts, and what they are worth.

use anyhow::Result;
use serde::{Deserialize, Serialize};
use softshard_labels::{Error, Example, Progress, Sequence, SequenceDataset};
use softshard_model::{Decoder, Fitting};
use softshard_prepare::{Tokenizer, demo};

use crate::{
    EvaluateConfig,
    partial::Parts,
    rows::{Arguments, Request, Row, Settings},
    run::{EvaluateInputs, check_stop, nothing_held_out, too_large},
    statistics::number,
};

/// Prompts that are answered between two looks at the stop flag: they are a part, which is kept.
const ANSWERS_PER_STEP: usize = 64;

/// Scores of greedy answers to held-out prompts.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct AnswerScores {
    /// Prompts answered.
    pub answers: usize,
    /// Mean F-measure, 0 to 1.
    pub rouge_l: f64,
    /// Share of answers that state facts of the article and nothing else, 0 to 1; only where rows carry their facts.
    pub faithful: Option<f64>,
    /// Share of stated facts that the article supports, 0 to 1; only where rows carry their facts.
    pub supported_facts: Option<f64>,
}

/// Greedy answers to the held-out prompts and what they are worth; each stands in its row then.
pub(crate) fn score(
    inputs: &EvaluateInputs,
    decoder: &Decoder,
    tokenizer: &Tokenizer,
    examples: &[Question],
    (parts, rows): (&mut Parts, &mut [Row]),
) -> Result<AnswerScores> {
    let fitting = Fitting::default();
    let (mut rouge_sum, mut faithful, mut stated, mut supported, mut judged) = (0.0, 0, 0, 0, 0);
    for (step, chunk) in examples.chunks(ANSWERS_PER_STEP).enumerate() {
        check_stop(inputs)?;
        let texts = parts.next(|| answer(inputs.config, decoder, tokenizer, chunk, &fitting))?;
        for (example, text) in chunk.iter().zip(texts) {
            let rouge_l = inputs.config.rouge.score(&example.example.reference, &text).f_measure;
            let faithfulness = faithfulness(&example.example, &text);
            rouge_sum += rouge_l;
            if let Some(found) = &faithfulness {
                judged += 1;
                faithful += usize::from(found.faithful);
                stated += found.stated;
                supported += found.supported;
            }
            let row = &mut rows[example.row];
            row.target = Some(example.example.reference.clone());
            row.arguments = Some(arguments(inputs.config, tokenizer.decode_all(&example.prompt_ids)?));
            row.resps = Some([[text.clone()]]);
            row.filtered_resps = Some([text]);
            row.rouge_l = Some(rouge_l);
            row.faithful = faithfulness.as_ref().map(|found| u8::from(found.faithful));
            row.stated_facts = faithfulness.as_ref().map(|found| found.stated);
            row.supported_facts = faithfulness.as_ref().map(|found| found.supported);
        }
        let (done, total) = (step * ANSWERS_PER_STEP + chunk.len(), examples.len() as u64);
        let progress = Progress { stage: "answers", total, unit: "answers", ..Progress::default() };
        inputs.observer.progress(&Progress { done: done as u64, ..progress });
    }
    // Where nothing was judged, or no fact stated, there is no share.
    let share = |part: usize, whole: usize| (whole > 0).then(|| number(part) / number(whole));
    Ok(AnswerScores {
        answers: examples.len(),
        rouge_l: rouge_sum / number(examples.len()),
        faithful: share(faithful, judged),
        supported_facts: share(supported, stated),
    })
}

fn arguments(config: &EvaluateConfig, prompt: String) -> Arguments {
    let until = if config.stop_at_newline { vec!["\n".to_owned()] } else { Vec::new() };
    let settings = Settings { until, max_gen_toks: config.max_new_tokens, do_sample: false };
    Arguments { gen_args_0: Request { arg_0: prompt, arg_1: settings } }
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

fn answer(
    config: &EvaluateConfig,
    decoder: &Decoder,
    tokenizer: &Tokenizer,
    examples: &[Question],
    fitting: &Fitting,
) -> Result<Vec<String>> {
    let limit = decoder.config().context();
    if let Some(long) = examples.iter().find(|example| example.prompt_ids.len() > limit) {
        let place = format!("prompt from `{}`", long.source);
        let expected = format_args!("at most the model's {limit} positions");
        let hint = "set `data.max_prompt_tokens`";
        return Err(Error::bad(place, expected, long.prompt_ids.len()).hint(hint).into());
    }
    let prompts: Vec<Vec<i32>> = examples.iter().map(|example| example.prompt_ids.clone()).collect();
    let tokens_of = |prompts: &[Vec<i32>]| prompts.iter().map(Vec::len).sum();
    let generate = |prompts: &[Vec<i32>]| -> Result<_> {
        Ok(decoder.generate(
            prompts,
            config.max_new_tokens,
            tokenizer.stop_ids(),
            softshard_losses::logits,
        )?)
    };
    let longest = prompts.iter().map(Vec::len).max().unwrap_or(0);
    let answers = fitting.each(&prompts, &tokens_of, decoder.device(), &generate);
    let answers = answers.map_err(|error| too_large("prompt", longest, error))?;
    let mut texts = Vec::with_capacity(prompts.len());
    for ids in answers.into_iter().flatten() {
        let text = tokenizer.decode(&ids)?;
        let text = text.trim();
        let end = if config.stop_at_newline { text.find('\n') } else { None };
        texts.push(text[..end.unwrap_or(text.len())].to_owned());
    }
    Ok(texts)
}

/// How an answer agrees with the facts of its row, where the row has any of the demo's kind.
fn faithfulness(example: &Example, answer: &str) -> Option<demo::Faithfulness> {
    let facts: demo::Facts = serde_json::from_value(example.facts.clone()?).ok()?;
    Some(demo::faithfulness(&facts, answer))
}
