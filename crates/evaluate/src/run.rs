//! The evaluation of one model: answers to held-out prompts, and probabilities of held-out responses.

use std::{
    io,
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
    time::Instant,
};

use anyhow::Result;
use burn::tensor::Device;
use serde::{Deserialize, Serialize};
use softshard_labels::{Difference, Error, Observer, Provenance, Split};
use softshard_model::{Decoder, LoadOptions, OutOfMemory};
use softshard_prepare::{Tokenizer, TokenizerConfig};

use crate::{
    EvaluateConfig,
    answers::{self, AnswerScores, Decoding},
    calibration::Report,
    held_out::HeldOut,
    partial::{Header, Parts, Places},
    rows::{self, Row},
    subject::{Subject, check_result},
};

/// What an evaluation reads and where it writes.
pub struct EvaluateInputs<'a> {
    /// Recipe section `[evaluate]`.
    pub config: &'a EvaluateConfig,
    /// Recipe section `[tokenizer]`.
    pub tokenizer: &'a TokenizerConfig,
    /// Base model of the student's adapter.
    pub student_base: Option<&'a Path>,
    /// How that base was in memory when the student learnt.
    pub student_load: LoadOptions,
    /// What `train-student` made: holds `adapter/` or `model/`.
    pub student: &'a Path,
    /// Sequences of the split that is evaluated, with their examples: prompts, references and facts.
    pub sequences: &'a Path,
    /// The teacher's labels of that split, where it was labelled.
    pub labels: &'a Path,
    /// Names of differences that are taken.
    pub accept: &'a [String],
    /// Differences that were taken before: kept in the result.
    pub accepted: &'a [Difference],
    /// Receives `<name>.json` and `<name>.rows.jsonl`.
    pub output: &'a Path,
    /// Where the model runs.
    pub device: &'a Device,
    /// Set to stop.
    pub stop: &'a AtomicBool,
    /// Sees how far it is.
    pub observer: &'a dyn Observer,
}

/// The scores of one model.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Evaluation {
    /// Name of the result.
    pub name: String,
    /// Parameters of the model.
    pub parameters: usize,
    /// What its numbers were computed in, such as `f32` or `bf16, layers in 4 bits`.
    #[serde(default)]
    pub dtype: String,
    /// Which rows were scored; results of earlier versions do not say, and are of `valid`.
    #[serde(default)]
    pub split: Option<Split>,
    /// How many.
    #[serde(default)]
    pub rows: usize,
    /// Scores of greedy answers; none for plain text, which has no prompts.
    pub answers: Option<AnswerScores>,
    /// Scores of held-out responses, teacher-forced.
    pub held_out: HeldOutScores,
    /// Where the time went. It is not written: the same inputs give the same bytes.
    #[serde(skip)]
    pub seconds: Breakdown,
    /// Which model, which rows, which settings; results of earlier versions do not say.
    #[serde(default)]
    pub provenance: Option<Provenance>,
}

/// Seconds by part.
#[derive(Clone, Debug, Default)]
pub struct Breakdown {
    /// Loading the model.
    pub load: f64,
    /// Scoring held-out responses.
    pub held_out: f64,
    /// Answering held-out prompts and scoring the answers.
    pub answers: f64,
}

/// Scores of the labelled tokens of held-out sequences.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct HeldOutScores {
    /// Labelled tokens.
    pub tokens: usize,
    /// Mean negative log-likelihood of the gold tokens, nats.
    pub nll: f64,
    /// Expected calibration error of the most probable token, 15 bins of equal width, 0 to 1.
    pub ece: f64,
    /// Calibration with intervals by document, of 1,000 draws with seed 0; none of fewer than two documents, and in results
    /// of earlier versions.
    #[serde(default)]
    pub calibration: Option<Report>,
    /// Mean KL(teacher ‖ model), nats; only where the teacher labelled the split. From top-k labels it has one event for
    /// all that was cut, which makes it a lower bound; from drawn ones it is an unbiased estimate.
    pub kl_to_teacher: Option<f64>,
}

/// Evaluates a model and writes its scores, and those of each row.
///
/// What is done is kept beside the result, part by part, and removed with the last of it: an evaluation that was stopped or
/// killed goes on, and its result has the bytes that it would have had.
///
/// # Errors
/// No trained model, no rows of the split, a missing or damaged dataset, another process that makes the same result, I/O. A
/// stop that was asked for is an [`io::ErrorKind::Interrupted`]; no result is written then.
pub fn run(inputs: &EvaluateInputs) -> Result<Evaluation> {
    let began = Instant::now();
    let mut seconds = Breakdown::default();
    let subject = Subject::chosen(inputs)?;
    let name = subject.result_name(inputs.config);
    let tokenizer = Tokenizer::load(&inputs.tokenizer.path)?;
    tokenizer.expect_ids_of_model(&subject.model)?;
    let questions = answers::questions(inputs)?;
    let held_out = HeldOut::open(inputs, &tokenizer.own())?;
    let load = inputs.config.load_options(inputs.student_load);
    let mut provenance = subject.provenance(inputs, &load)?;
    provenance.input("rows", held_out.blake3());
    let decoding = Decoding::of(inputs.config, &subject.model, &tokenizer)?;
    decoding.say(&mut provenance)?;
    let places = Places::of(inputs.output, &name);
    check_result(&places.result, &provenance, inputs.accept)?;
    let max_tokens_per_batch = inputs.config.max_tokens_per_batch;
    let header = Header { provenance, max_tokens_per_batch };
    let mut parts = Parts::open(&places, &header)?;

    let mut decoder = Decoder::load_with(&subject.model, inputs.device, &load)?;
    if let Some(adapter) = &subject.adapter {
        decoder.load_adapter(adapter)?;
    }
    tokenizer.fingerprint().expect_fits(&subject.model, decoder.config().vocab_size)?;
    seconds.load = began.elapsed().as_secs_f64();
    let began = Instant::now();
    let (split, rows) = (Some(inputs.config.split), held_out.rows.len());
    let (held_out, mut scored) = held_out.score(inputs, &decoder, &mut parts)?;
    seconds.held_out = began.elapsed().as_secs_f64();
    let began = Instant::now();
    let answers = match &questions[..] {
        [] => None,
        questions => {
            let places = (&mut parts, &mut scored[..]);
            Some(answers::score(inputs, (&decoder, &tokenizer), &decoding, questions, places)?)
        }
    };
    seconds.answers = began.elapsed().as_secs_f64();
    let (parameters, dtype, provenance) = (decoder.parameter_count(), load.dtype(), Some(header.provenance));
    let evaluation =
        Evaluation { name, parameters, dtype, split, rows, answers, held_out, seconds, provenance };
    scored.iter_mut().for_each(Row::name_metrics);
    let lines = rows::to_lines(&scored, &format!("evaluation `{}`", evaluation.name))?;
    parts.commit(&places, &serde_json::to_vec_pretty(&evaluation)?, &lines)?;
    Ok(evaluation)
}

pub(crate) fn nothing_held_out(inputs: &EvaluateInputs) -> Error {
    let hint = match inputs.config.split {
        Split::Valid => "set `data.split.valid_rows` and prepare again",
        _ => {
            "set `data.split.test_rows` and prepare again, or score the rows that choose, with `evaluate.split=valid`"
        }
    };
    let (place, name) = (format!("`{}`", inputs.sequences.display()), inputs.config.split.name());
    Error::bad(place, format_args!("held-out sequences, of the split `{name}`"), "none").hint(hint)
}

/// What a device without memory for one of these is told; other errors stay as they are.
pub(crate) fn too_large(what: &str, tokens: usize, error: anyhow::Error) -> anyhow::Error {
    let error = match error.downcast::<OutOfMemory>() {
        Ok(error) => error,
        Err(error) => return error,
    };
    let message = format!(
        "the device is out of memory with one {what} at a time (of at most {tokens} tokens): {error}\n\
         hint: `precision = \"bf16\"`, `residency = \"streamed\"` or `quantise` in [evaluate] take less, and so do shorter sequences \
         (`data.max_tokens`, `data.max_prompt_tokens`, `evaluate.max_new_tokens`)"
    );
    io::Error::new(io::ErrorKind::OutOfMemory, message).into()
}

pub(crate) fn check_stop(inputs: &EvaluateInputs) -> Result<()> {
    if inputs.stop.load(Ordering::Relaxed) {
        return Err(io::Error::new(io::ErrorKind::Interrupted, "evaluate stopped\nhint: run again").into());
    }
    Ok(())
}
