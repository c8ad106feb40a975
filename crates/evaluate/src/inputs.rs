//! What an evaluation reads, and how its parts fail alike.

use std::{
    io,
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
};

use anyhow::Result;
use burn::tensor::Device;
use softshard_labels::{Difference, Error, Observer, Split};
use softshard_model::{LoadOptions, OutOfMemory};
use softshard_prepare::TokenizerConfig;

use crate::EvaluateConfig;

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
    /// Receives `<name>/<task>.json` and `<name>/<task>.rows.jsonl`.
    pub output: &'a Path,
    /// Where the model runs.
    pub device: &'a Device,
    /// Set to stop.
    pub stop: &'a AtomicBool,
    /// Sees how far it is.
    pub observer: &'a dyn Observer,
}

/// What is said where a split has no rows.
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

/// Ends the work where a stop was asked for.
pub(crate) fn check_stop(inputs: &EvaluateInputs) -> Result<()> {
    if inputs.stop.load(Ordering::Relaxed) {
        return Err(io::Error::new(io::ErrorKind::Interrupted, "evaluate stopped\nhint: run again").into());
    }
    Ok(())
}
