//! The evaluation of one model: answers to held-out prompts, and probabilities of held-out responses.

use std::{path::Path, time::Instant};

use anyhow::Result;
use softshard_labels::{Provenance, read_if_there};
use softshard_model::{Decoder, DecoderConfig, LoadOptions};
use softshard_prepare::Tokenizer;

use crate::{
    Breakdown, EvaluateInputs, Evaluation, SUMMARIES,
    answers::{self, Decoding, Question, Summaries},
    held_out::HeldOut,
    partial::{Header, Parts, Places},
    rows::{self, Row},
    subject::{Subject, add_held_out, check_results},
    tasks::{self, Task},
};

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
        let provenance = work.provenance(inputs, &run.tokenizer, of_model.clone())?;
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
    /// Documents to summarise.
    Summaries(Summaries),
    /// Likelihoods of held-out responses, and answers to their prompts.
    HeldOut(HeldOut, Vec<Question>, Decoding),
}

impl Work {
    fn open(task: &str, inputs: &EvaluateInputs, tokenizer: &Tokenizer, model: &Path) -> Result<Self> {
        if let Some(config) = inputs.config.task.get(task) {
            let task = Task::open((task, config), tokenizer, &DecoderConfig::load(model)?)?;
            return Ok(Self::Choices(Box::new(task)));
        }
        let decoding = Decoding::of(inputs.config, model, tokenizer)?;
        if let Some(config) = inputs.config.summaries.as_ref().filter(|_| task == SUMMARIES) {
            return Ok(Self::Summaries(Summaries::open(config, decoding)?));
        }
        let questions = answers::questions(inputs)?;
        Ok(Self::HeldOut(HeldOut::open(inputs, &tokenizer.own())?, questions, decoding))
    }

    /// What the task's result is made from, besides the model.
    fn provenance(
        &self,
        inputs: &EvaluateInputs,
        tokenizer: &Tokenizer,
        mut this: Provenance,
    ) -> Result<Provenance> {
        match self {
            Self::Choices(task) => task.add_to(&mut this)?,
            Self::Summaries(summaries) => {
                summaries.add_to(&mut this)?;
                this.tokenizer(tokenizer.fingerprint());
            }
            Self::HeldOut(held_out, _, decoding) => {
                add_held_out(inputs, &mut this)?;
                decoding.say(&mut this)?;
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
            summaries: None,
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
            Work::Summaries(summaries) => {
                let began = Instant::now();
                let (scores, rows) = summaries.score(inputs, (decoder, &self.tokenizer), &mut parts)?;
                seconds.answers = began.elapsed().as_secs_f64();
                evaluation.rows = rows.len();
                evaluation.summaries = Some(scores);
                answers::to_lines(&rows, &place)?
            }
            Work::HeldOut(held_out, questions, decoding) => {
                let began = Instant::now();
                let (scores, mut rows) = held_out.score(inputs, decoder, &mut parts)?;
                seconds.held_out = began.elapsed().as_secs_f64();
                let began = Instant::now();
                if !questions.is_empty() {
                    let scored = (&mut parts, &mut rows[..]);
                    let model = (decoder, &self.tokenizer);
                    evaluation.answers = Some(answers::score(inputs, model, &decoding, &questions, scored)?);
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
