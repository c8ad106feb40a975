//! The evaluation of one model: answers to held-out prompts, and probabilities of held-out responses.

use std::{path::Path, time::Instant};

use anyhow::Result;
use softshard_labels::{Error, Example, Progress, Provenance, Sequence, SequenceDataset, read_if_there};
use softshard_model::{Decoder, DecoderConfig, Fitting, LoadOptions};
use softshard_prepare::{Tokenizer, demo};

use crate::{
    AnswerScores, Breakdown, EvaluateConfig, EvaluateInputs, Evaluation,
    held_out::HeldOut,
    inputs::{check_stop, nothing_held_out, too_large},
    partial::{Header, Parts, Places},
    rows::{self, Arguments, Request, Row, Settings},
    statistics::number,
    subject::{Subject, add_held_out, check_results},
    tasks::{self, Task},
};

/// Prompts that are answered between two looks at the stop flag: they are a part, which is kept.
const ANSWERS_PER_STEP: usize = 64;

/// Evaluates a model in all tasks of the recipe and writes its scores, and those of each row: `<name>/<task>.json` and
/// `<name>/<task>.rows.jsonl`.
///
/// A task whose result is there and was made from the same is not done again. What is done of another one is kept beside its result,
/// part by part, and removed with the last of it: an evaluation that was stopped or killed goes on, and its result has the bytes that
/// it would have had. The model is loaded once, where anything is left to do.
///
/// # Errors
/// No trained model, no rows of a task, a missing or damaged dataset, another process that makes the same result, I/O. A stop that
/// was asked for is an [`std::io::ErrorKind::Interrupted`]; no result of the task under way is written then.
pub fn run(inputs: &EvaluateInputs) -> Result<Vec<Evaluation>> {
    let subject = Subject::chosen(inputs)?;
    let tokenizer = Tokenizer::load(&inputs.tokenizer.path)?;
    tokenizer.expect_ids_of_model(&subject.model)?;
    let works: Vec<Work> = inputs
        .config
        .tasks
        .iter()
        .map(|task| Work::open(task, inputs, &tokenizer, &subject.model))
        .collect::<Result<_>>()?;
    let load = inputs.config.load_options(inputs.student_load);
    let of_model = subject.provenance(inputs, &load)?;
    let folder = inputs.output.join(subject.result_name(inputs.config));
    check_results(&folder, &of_model, inputs.accept)?;
    let mut run = Run { inputs, subject: &subject, load, tokenizer, decoder: None };
    let mut evaluations = Vec::with_capacity(works.len());
    for (work, task) in works.into_iter().zip(&inputs.config.tasks) {
        let places = Places::of(&folder, task);
        let provenance = work.provenance(inputs, of_model.clone())?;
        let header = Header { provenance, max_tokens_per_batch: inputs.config.max_tokens_per_batch };
        let parts = Parts::open(&places, &header)?;
        if let Some(evaluation) = finished(&places, &header.provenance)? {
            tracing::info!("`{}`: made from the same, so it is not made again", places.result.display());
            parts.discard()?;
            evaluations.push(evaluation);
            continue;
        }
        evaluations.push(run.task(task, work, header.provenance, (parts, &places))?);
    }
    Ok(evaluations)
}

/// A result that is there with its rows and was made from just this.
fn finished(places: &Places, provenance: &Provenance) -> Result<Option<Evaluation>> {
    let Some(bytes) = read_if_there(&places.result)? else { return Ok(None) };
    // What is no result, or one of an earlier version, is made again.
    let found = serde_json::from_slice::<Evaluation>(&bytes).ok();
    let Some(rows) = read_if_there(&places.rows)? else { return Ok(None) };
    let lines = rows.iter().filter(|byte| **byte == b'\n').count();
    Ok(found.filter(|found| found.provenance == *provenance && found.rows == lines))
}

/// What is done for a task, with its rows.
enum Work {
    /// Questions with choices.
    Choices(Box<Task>),
    /// Likelihoods of held-out responses, and answers to their prompts.
    HeldOut(HeldOut, Vec<Question>),
}

impl Work {
    fn open(task: &str, inputs: &EvaluateInputs, tokenizer: &Tokenizer, model: &Path) -> Result<Self> {
        if let Some(config) = inputs.config.task.get(task) {
            let task = Task::open((task, config), tokenizer, &DecoderConfig::load(model)?)?;
            return Ok(Self::Choices(Box::new(task)));
        }
        let questions = questions(inputs)?;
        Ok(Self::HeldOut(HeldOut::open(inputs, &tokenizer.own())?, questions))
    }

    /// What the task's result is made from, besides the model.
    fn provenance(&self, inputs: &EvaluateInputs, mut this: Provenance) -> Result<Provenance> {
        match self {
            Self::Choices(task) => task.add_to(&mut this)?,
            Self::HeldOut(held_out, _) => {
                add_held_out(inputs, &mut this)?;
                this.input("rows", held_out.blake3());
            }
        }
        Ok(this)
    }
}

/// A model that is evaluated.
struct Run<'a> {
    inputs: &'a EvaluateInputs<'a>,
    subject: &'a Subject,
    load: LoadOptions,
    tokenizer: Tokenizer,
    /// Loaded with the first task that needs it.
    decoder: Option<Decoder>,
}

impl Run<'_> {
    /// Does one task, and writes its result.
    fn task(
        &mut self,
        task: &str,
        work: Work,
        provenance: Provenance,
        (mut parts, places): (Parts, &Places),
    ) -> Result<Evaluation> {
        let mut seconds = Breakdown::default();
        let began = Instant::now();
        if self.decoder.is_none() {
            self.decoder = Some(self.load_model()?);
            seconds.load = began.elapsed().as_secs_f64();
        }
        let (inputs, decoder) = (self.inputs, self.decoder.as_ref().expect("it was loaded"));
        let mut evaluation = Evaluation {
            name: self.subject.result_name(inputs.config),
            task: task.to_owned(),
            parameters: decoder.parameter_count(),
            dtype: self.load.dtype(),
            split: None,
            rows: 0,
            answers: None,
            held_out: None,
            choices: None,
            seconds: None,
            provenance,
        };
        let place = format!("evaluation `{}` of `{task}`", evaluation.name);
        let lines = match work {
            Work::Choices(task) => {
                let began = Instant::now();
                let (scores, rows) = task.score(inputs, decoder, &mut parts)?;
                seconds.choices = began.elapsed().as_secs_f64();
                evaluation.rows = rows.len();
                evaluation.choices = Some(scores);
                tasks::to_lines(&rows, &place)?
            }
            Work::HeldOut(held_out, questions) => {
                let began = Instant::now();
                let (scores, mut rows) = held_out.score(inputs, decoder, &mut parts)?;
                seconds.held_out = began.elapsed().as_secs_f64();
                let began = Instant::now();
                if !questions.is_empty() {
                    let scored = (&mut parts, &mut rows[..]);
                    evaluation.answers =
                        Some(score_answers(inputs, decoder, &self.tokenizer, &questions, scored)?);
                }
                seconds.answers = began.elapsed().as_secs_f64();
                (evaluation.split, evaluation.rows) = (Some(inputs.config.split), rows.len());
                evaluation.held_out = Some(scores);
                rows.iter_mut().for_each(Row::name_metrics);
                rows::to_lines(&rows, &place)?
            }
        };
        parts.commit(places, &serde_json::to_vec_pretty(&evaluation)?, &lines)?;
        evaluation.seconds = Some(seconds);
        Ok(evaluation)
    }

    fn load_model(&self) -> Result<Decoder> {
        let Self { inputs, subject, load, tokenizer, .. } = self;
        let mut decoder = Decoder::load_with(&subject.model, inputs.device, load)?;
        if let Some(adapter) = &subject.adapter {
            decoder.load_adapter(adapter)?;
        }
        tokenizer.fingerprint().expect_fits(&subject.model, decoder.config().vocab_size)?;
        Ok(decoder)
    }
}

/// Greedy answers to the held-out prompts and what they are worth; each stands in its row then.
fn score_answers(
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
struct Question {
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
fn questions(inputs: &EvaluateInputs) -> Result<Vec<Question>> {
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
