//! What is kept of each held-out row: `<name>.rows.jsonl`, a line a row, in the form of lm-evaluation-harness's samples, so
//! that statistics are computed again and never guessed.

use std::path::Path;

use anyhow::Result;
use fs_err as fs;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use softshard_labels::Error;

use crate::{
    calibration::Positions,
    statistics::{BadValues, Documents},
};

/// A held-out row with its scores: those of likelihoods, and those of its answer where it was answered.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Row {
    /// Its number in the split, from 0.
    pub doc_id: usize,
    /// Which row it is.
    pub doc: Document,
    /// The reference answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    /// What the model was asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub arguments: Option<Arguments>,
    /// The answer as it was made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resps: Option<[[String; 1]; 1]>,
    /// The answer as it was scored.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub filtered_resps: Option<[String; 1]>,
    /// Names of the metrics that follow.
    pub metrics: Vec<String>,
    /// Mean negative log-likelihood of its labelled tokens, nats.
    pub nll: f64,
    /// Mean KL(teacher ‖ model), nats, where the teacher labelled the split.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kl_to_teacher: Option<f64>,
    /// F-measure of the answer, 0 to 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rouge_l: Option<f64>,
    /// 1 where the answer states facts of the row and nothing else; only of rows that carry their facts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub faithful: Option<u8>,
    /// Facts that the answer states.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stated_facts: Option<usize>,
    /// Of these, facts that the row supports.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub supported_facts: Option<usize>,
    /// Scores of its labelled tokens, one after the other.
    pub positions: PositionScores,
}

/// Which row it is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Document {
    /// Key of the sequence, hexadecimal: a hash of its token ids.
    pub key: String,
    /// The file and line that it was made of; sequences with the same one are of one document.
    pub source: Option<String>,
}

/// What a model was asked, as lm-evaluation-harness names it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Arguments {
    /// The only request.
    pub gen_args_0: Request,
}

/// A prompt and how it is answered.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Request {
    /// The prompt.
    pub arg_0: String,
    /// How it is answered.
    pub arg_1: Settings,
}

/// How prompts are answered.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// Texts at which an answer ends, besides the tokenizer's end tokens.
    pub until: Vec<String>,
    /// Most tokens of an answer.
    pub max_gen_toks: usize,
    /// Whether tokens are drawn; otherwise the most probable one is taken.
    pub do_sample: bool,
    /// What logits are divided by where tokens are drawn.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub temperature: Option<f64>,
    /// Probability of the tokens together that are drawn from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub top_p: Option<f64>,
    /// How many tokens are drawn from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub top_k: Option<usize>,
    /// Decides what is drawn.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seed: Option<u64>,
    /// Divides the logits of tokens that were there before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub repetition_penalty: Option<f64>,
}

/// Scores of the labelled tokens of a row, in their order.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PositionScores {
    /// Negative log-likelihood of the token that is there, nats.
    pub nll: Vec<f32>,
    /// Probability of the most probable token.
    pub confidence: Vec<f32>,
    /// 1 where the most probable token is the one that is there.
    pub correct: Vec<u8>,
}

impl Row {
    /// What its document is called: rows with the same name are drawn together.
    pub(crate) fn document(&self) -> &str {
        self.doc.source.as_deref().unwrap_or(&self.doc.key)
    }

    /// Writes down which metrics it has.
    pub(crate) fn name_metrics(&mut self) {
        let there = [
            ("nll", true),
            ("kl_to_teacher", self.kl_to_teacher.is_some()),
            ("rouge_l", self.rouge_l.is_some()),
            ("faithful", self.faithful.is_some()),
            ("stated_facts", self.stated_facts.is_some()),
            ("supported_facts", self.supported_facts.is_some()),
        ];
        self.metrics = there.iter().filter(|(_, there)| *there).map(|(name, _)| (*name).to_owned()).collect();
    }

    /// Why it is no row of these scores, if it is none.
    fn fault(&self, number: usize) -> Option<(&'static str, String)> {
        let PositionScores { nll, confidence, correct } = &self.positions;
        let lengths = [nll.len(), confidence.len(), correct.len()];
        if self.doc_id != number {
            return Some(("rows in their order", format!("doc_id {}", self.doc_id)));
        }
        if lengths.iter().any(|&length| length != lengths[0] || length == 0) {
            return Some(("as many scores of each kind, of one position or more", format!("{lengths:?}")));
        }
        if let Some(p) = confidence.iter().find(|p| !(0.0..=1.0).contains(*p)) {
            return Some(("confidences of 0 to 1", format!("{p}")));
        }
        let finite = [Some(self.nll), self.kl_to_teacher, self.rouge_l];
        let scores = finite.into_iter().flatten().chain(nll.iter().chain(confidence).copied().map(f64::from));
        let bad = scores.into_iter().find(|score| !score.is_finite());
        bad.map(|score| ("finite scores", format!("{score}")))
    }
}

/// The lines of a file of rows.
///
/// # Errors
/// A score that is not finite: it is no JSON, and no mean of it is one.
pub(crate) fn to_lines(rows: &[Row], place: &str) -> Result<Vec<u8>> {
    lines_without(rows, place, Row::fault)
}

/// The lines of a file of rows, none of which may have a fault at its place.
///
/// # Errors
/// One has.
pub(crate) fn lines_without<R: Serialize>(
    rows: &[R],
    place: &str,
    fault: impl Fn(&R, usize) -> Option<(&'static str, String)>,
) -> Result<Vec<u8>> {
    let mut lines = Vec::new();
    for (number, row) in rows.iter().enumerate() {
        if let Some((expected, found)) = fault(row, number) {
            return Err(Error::bad(format_args!("{place} row {number}"), expected, found).into());
        }
        serde_json::to_writer(&mut lines, row)?;
        lines.push(b'\n');
    }
    Ok(lines)
}

/// Reads a file of rows.
///
/// # Errors
/// It is not there, or a line is no row.
pub(crate) fn read(path: &Path) -> Result<Vec<Row>> {
    lines_of(path, Row::fault)
}

/// Reads a file of rows, none of which may have a fault at its place.
///
/// # Errors
/// It is not there, or a line is no row.
pub(crate) fn lines_of<R: DeserializeOwned>(
    path: &Path,
    fault: impl Fn(&R, usize) -> Option<(&'static str, String)>,
) -> Result<Vec<R>> {
    let place = |number: usize| format!("`{}` line {}", path.display(), number + 1);
    if !path.exists() {
        let hint = "evaluate again";
        return Err(Error::bad(format_args!("`{}`", path.display()), "rows of the result", "no file")
            .hint(hint)
            .into());
    }
    let text = fs::read_to_string(path)?;
    let row = |(number, line): (usize, &str)| -> Result<R, Error> {
        let row: R = serde_json::from_str(line)
            .map_err(|error| Error::bad(place(number), "a row of an evaluation", error))?;
        match fault(&row, number) {
            None => Ok(row),
            Some((expected, found)) => Err(Error::bad(place(number), expected, found)),
        }
    };
    Ok(text.lines().enumerate().map(row).collect::<Result<_, _>>()?)
}

/// Says where numbers are that are refused.
pub(crate) fn refused(place: &str, error: BadValues) -> Error {
    match error {
        BadValues::TooFew { what, expected, found } => {
            Error::bad(place, format_args!("at least {expected} {what}"), found)
        }
        BadValues::Value { what, index, expected, found } => {
            Error::bad(format_args!("{place} {what} {index}"), expected, found)
        }
        BadValues::Lengths { what, expected, found } => Error::bad(
            format_args!("{place} {what}"),
            format_args!("{expected}, as many as beside them"),
            found,
        ),
    }
}

/// Which document each row is of.
pub(crate) fn documents(rows: &[Row]) -> Documents {
    let names: Vec<&str> = rows.iter().map(Row::document).collect();
    Documents::of(&names)
}

/// All labelled tokens of the rows, by document.
///
/// # Errors
/// A score that is none.
pub(crate) fn positions(rows: &[Row]) -> Result<Positions, BadValues> {
    let scores = || rows.iter().flat_map(|row| row.positions.nll.iter().map(move |_| row.document()));
    let names: Vec<&str> = scores().collect();
    let wide = |of: fn(&PositionScores) -> &[f32]| -> Vec<f64> {
        rows.iter().flat_map(|row| of(&row.positions)).copied().map(f64::from).collect()
    };
    let correct: Vec<bool> =
        rows.iter().flat_map(|row| &row.positions.correct).map(|&one| one == 1).collect();
    let (confidences, nll) = (wide(|scores| &scores.confidence), wide(|scores| &scores.nll));
    Positions::new(&Documents::of(&names), &confidences, &correct, &nll)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(doc_id: usize) -> Row {
        let positions =
            PositionScores { nll: vec![0.5, 1.5], confidence: vec![0.7, 0.4], correct: vec![1, 0] };
        let doc = Document { key: format!("{doc_id:032x}"), source: None };
        let mut row = Row { doc_id, doc, nll: 1.0, rouge_l: Some(0.25), positions, ..Row::default() };
        row.name_metrics();
        row
    }

    #[test]
    fn what_is_written_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("student.rows.jsonl");
        let rows = [row(0), row(1)];
        fs::write(&path, to_lines(&rows, "student").unwrap()).unwrap();
        assert_eq!(read(&path).unwrap(), rows);
        assert_eq!(rows[0].metrics, ["nll", "rouge_l"]);
        assert_eq!((documents(&rows).count(), positions(&rows).is_ok()), (2, true));
    }

    #[test]
    fn what_is_no_row_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("student.rows.jsonl");
        let message = |text: String| {
            fs::write(&path, text).unwrap();
            read(&path).unwrap_err().to_string()
        };
        let line = |row: &Row| serde_json::to_string(row).unwrap() + "\n";
        assert!(message(line(&row(1))).contains("line 1: expected rows in their order, found doc_id 1"));
        let mut short = row(0);
        short.positions.correct.pop();
        assert!(message(line(&short)).contains("expected as many scores of each kind"));
        assert!(message(line(&row(0)) + "{\"doc_id\":1").contains("line 2: expected a row of an evaluation"));
        fs::remove_file(&path).unwrap();
        assert!(read(&path).unwrap_err().to_string().contains("expected rows of the result, found no file"));
        let mut nan = row(0);
        nan.positions.nll[1] = f32::NAN;
        let found = to_lines(&[nan], "student").unwrap_err().to_string();
        assert_eq!(found, "student row 0: expected finite scores, found NaN");
    }
}
