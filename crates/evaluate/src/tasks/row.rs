//! What is kept of each row of a task: `<task>.rows.jsonl`, a line a row, in the form of lm-evaluation-harness's samples.

use std::{collections::BTreeMap, path::Path};

use anyhow::Result;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::scores::Scores;
use crate::rows::{Document, lines_of, lines_without};

/// A row of a task with the log-likelihoods of its choices and its scores.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ChoiceRow {
    /// Its number among the rows that are scored, from 0.
    pub doc_id: usize,
    /// Which row it is: a hash of its columns, hexadecimal, file and line.
    pub doc: Document,
    /// What its document is called, where several rows are of one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub document: Option<String>,
    /// The choice that is right, or those that are.
    pub target: Target,
    /// What was asked: `gen_args_0` and so on.
    pub arguments: BTreeMap<String, ChoiceRequest>,
    /// Log-likelihood of each continuation, nats, and whether each of its tokens is the most probable.
    pub resps: Vec<[(f64, bool); 1]>,
    /// The same.
    pub filtered_resps: Vec<(f64, bool)>,
    /// Tokens of each continuation.
    pub tokens: Vec<usize>,
    /// Pairs of a faithful and an unfaithful summary, of `fib`: the row weighs as much.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pairs: Option<usize>,
    /// Names of the metrics that follow.
    pub metrics: Vec<String>,
    /// The metrics.
    #[serde(flatten)]
    pub scores: Scores,
}

/// Which choices are right.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum Target {
    /// One.
    One(usize),
    /// Several.
    Several(Vec<usize>),
}

/// A context and what was scored behind it, as lm-evaluation-harness names them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ChoiceRequest {
    /// The context.
    pub arg_0: String,
    /// The continuation.
    pub arg_1: String,
}

impl ChoiceRow {
    /// What its document is called: rows with the same name are drawn together.
    pub(crate) fn document(&self) -> &str {
        self.document.as_deref().or(self.doc.source.as_deref()).unwrap_or(&self.doc.key)
    }

    /// Sum and weight of a metric, if it has it.
    pub(crate) fn weighted(&self, metric: &str) -> Option<(f64, f64)> {
        let weight = crate::statistics::number(self.pairs.unwrap_or(1));
        self.scores.get(metric).map(|score| (score * weight, weight))
    }

    /// Why it is no row of these scores, if it is none.
    fn fault(&self, number: usize) -> Option<(&'static str, String)> {
        let lengths = [self.arguments.len(), self.resps.len(), self.filtered_resps.len(), self.tokens.len()];
        if self.doc_id != number {
            return Some(("rows in their order", format!("doc_id {}", self.doc_id)));
        }
        if lengths.iter().any(|&length| length != lengths[0] || length == 0) {
            return Some(("as many answers as requests, one or more", format!("{lengths:?}")));
        }
        let scores = Scores::NAMES.iter().filter_map(|name| self.scores.get(name));
        if let Some(score) = scores.clone().find(|score| !(0.0..=1.0).contains(score)) {
            return Some(("scores of 0 to 1", format!("{score}")));
        }
        let bad = self.filtered_resps.iter().find(|(log_prob, _)| !log_prob.is_finite());
        bad.map(|(log_prob, _)| ("finite log-likelihoods", format!("{log_prob}")))
    }
}

/// The lines of a file of rows.
///
/// # Errors
/// A score that is none.
pub(crate) fn to_lines(rows: &[ChoiceRow], place: &str) -> Result<Vec<u8>> {
    lines_without(rows, place, ChoiceRow::fault)
}

/// Reads a file of rows.
///
/// # Errors
/// It is not there, or a line is no row.
pub(crate) fn read(path: &Path) -> Result<Vec<ChoiceRow>> {
    lines_of(path, ChoiceRow::fault)
}
