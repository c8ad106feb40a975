//! Labels to and from other programs.

mod columns;
mod completions;
mod distillkit;
mod import;
mod jsonl;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use serde_json::{Value, json};
use softshard_labels::{
    BadRows, ColumnMap, Error, ImportSource, ImportTarget, Imported, PositionRule, TeacherIdentity,
    Tokenizer, import,
};

use crate::common::tokenizer;

static GO: AtomicBool = AtomicBool::new(false);
/// A sum of six products in single precision, of which the greatest are about 100.
const FITTED: f64 = 3e-5;

pub(super) fn target(vocab_size: u32) -> ImportTarget {
    ImportTarget {
        tokenizer: Tokenizer { vocab_size, ..tokenizer() },
        template: "alpaca".to_owned(),
        split: "train".to_owned(),
        teacher: TeacherIdentity::unverified("some/teacher", "test", vocab_size),
        top_p: None,
        approximate_tail: false,
        mantissa_bits: 23,
        sequences_per_shard: 2,
        bad_rows: BadRows::Refuse,
    }
}

pub(super) fn columns(pairs: &[(&str, &str)], rule: PositionRule) -> ColumnMap {
    let pairs = pairs.iter().map(|(key, column)| ((*key).to_owned(), (*column).to_owned()));
    ColumnMap::new(pairs, rule, false).unwrap()
}

#[track_caller]
pub(super) fn refused(result: Result<Imported, Error>, parts: &[&str]) {
    let error = result.unwrap_err();
    assert!(error.is_bad_data(), "{error}");
    let said = error.to_string();
    parts.iter().for_each(|part| assert!(said.contains(part), "expected {part:?} in: {said}"));
}

pub(super) fn golden(case: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/distillkit").join(case)
}

/// Rows of a server that answered with `k` entries and, where it is not among them, the token itself.
pub(super) fn completions(folder: &Path, lines: &[Value]) -> [PathBuf; 1] {
    let file = folder.join("responses.jsonl");
    fs::write(&file, lines.iter().map(|line| format!("{line}\n")).collect::<String>()).unwrap();
    [file]
}

pub(super) fn read(files: &[PathBuf], top_k: u32, out: &Path) -> Result<Imported, Error> {
    read_into(files, top_k, out, &target(97))
}

pub(super) fn read_into(
    files: &[PathBuf],
    top_k: u32,
    out: &Path,
    target: &ImportTarget,
) -> Result<Imported, Error> {
    let resolve = |text: &str, _: &[&str]| match text {
        " the" => Ok(11),
        " a" => Ok(12),
        "é" => Err("2 tokens, among them 5 and 6".to_owned()),
        _ => Err("no token".to_owned()),
    };
    import(out, &ImportSource::Completions { files, top_k, resolve: &resolve }, target, &GO, &())
}

/// `prompt_logprobs` of vLLM: the token of position 2 is not among the two most probable.
pub(super) fn vllm() -> Value {
    json!({"id": "cmpl-1", "object": "text_completion", "choices": [{
    "index": 0, "text": "", "prompt_token_ids": [3, 11, 12], "logprobs": null,
    "prompt_logprobs": [
        null,
        {"11": {"logprob": -0.5, "rank": 1, "decoded_token": " the"}, "7": {"logprob": -1.5, "rank": 2, "decoded_token": "x"}},
        {"12": {"logprob": -4.0, "rank": 9, "decoded_token": " a"}, "8": {"logprob": -0.25, "rank": 1, "decoded_token": "y"},
         "7": {"logprob": -2.5, "rank": 2, "decoded_token": "x"}}
    ]}]})
}
