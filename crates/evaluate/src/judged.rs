//! Answers to documents, with what people say of them.

use std::{
    io::{BufRead, BufReader},
    ops::Range,
    path::Path,
};

use anyhow::Result;
use fs_err as fs;
use serde::Deserialize;
use softshard_labels::Error;

/// Keys of a row that a reader may expect in an error.
const FORMS: &str = "`document` with `answer`, with `summaries`, or with `faithful` and `unfaithful`";

/// An answer to a document.
#[derive(Debug, Clone, PartialEq)]
pub struct Judged {
    /// Which document it is of: its `id`, or the number of its line.
    pub id: String,
    /// The text that the answer is about.
    pub document: String,
    /// The answer.
    pub answer: String,
    /// What people say of it, more being better; none where nobody was asked.
    pub judgement: Option<Judgement>,
    /// Parts of the answer that are not supported, in characters; none where only the whole was judged.
    pub unsupported: Vec<Range<usize>>,
}

/// Whether people found an answer supported by its document.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Judgement {
    /// All of it, or not.
    Factual(bool),
    /// The mean of people's marks from 1 to 5, 5 where nobody found anything unsupported (SummEval).
    Mark(f64),
}

impl Judgement {
    /// All of it is supported.
    pub fn is_factual(self) -> bool {
        match self {
            Self::Factual(factual) => factual,
            Self::Mark(mark) => mark >= 5.0,
        }
    }

    /// As a number: 0 or 1, or the mark.
    pub fn value(self) -> f64 {
        match self {
            Self::Factual(factual) => f64::from(u8::from(factual)),
            Self::Mark(mark) => mark,
        }
    }
}

/// A line of a file. Other keys are left alone.
#[derive(Deserialize)]
struct Line {
    id: Option<serde_json::Value>,
    document: String,
    #[serde(flatten)]
    one: Answer,
    #[serde(default)]
    summaries: Vec<Answer>,
    faithful: Option<String>,
    #[serde(default)]
    unfaithful: Vec<Answer>,
}

#[derive(Deserialize)]
struct Answer {
    #[serde(alias = "summary", alias = "text")]
    answer: Option<String>,
    #[serde(alias = "factual", alias = "label")]
    consistent: Option<Flag>,
    consistency: Option<f64>,
    spans: Option<Vec<[usize; 2]>>,
}

#[derive(Deserialize, Clone, Copy)]
#[serde(untagged)]
enum Flag {
    Is(bool),
    Number(f64),
}

/// Reads JSON lines, the first `documents` of them where that is given. A row is a document with an answer
/// (`answer`, `summary` or `text`; `consistent`, `factual` or `label` with true, false, 1 or 0; `spans` of characters that
/// are not supported), with a list `summaries` of such answers (as FIB and SummEval are often kept; `consistency` from 1 to
/// 5 is factual at 5), or with a `faithful` text and `unfaithful` ones.
///
/// # Errors
/// The file cannot be read; a line is none of these; a judgement that is none; a span outside of its answer.
pub fn read_judged(path: &Path, documents: Option<usize>) -> Result<Vec<Judged>> {
    let mut found = Vec::new();
    let lines = BufReader::new(fs::File::open(path)?).lines();
    for (number, line) in (1_usize..).zip(lines).take(documents.unwrap_or(usize::MAX)) {
        let line = line?;
        if line.trim().is_empty() {
            continue;
        }
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let place = format!("`{name}` line {number}");
        let refused = |found: String| {
            let hint = "docs/evaluation.md, \"Judged answers\", has the forms";
            Error::bad(&place, FORMS, found).hint(hint)
        };
        let line: Line = serde_json::from_str(&line).map_err(|error| refused(error.to_string()))?;
        let before = found.len();
        line.answers(number, &mut found).map_err(refused)?;
        if found.len() == before {
            return Err(refused("no answer".to_owned()).into());
        }
    }
    if found.is_empty() {
        return Err(Error::bad(format!("`{}`", path.display()), "judged answers", "none").into());
    }
    Ok(found)
}

impl Line {
    fn answers(self, number: usize, found: &mut Vec<Judged>) -> Result<(), String> {
        let Self { id, document, one, summaries, faithful, unfaithful } = self;
        let id = match id {
            Some(serde_json::Value::String(id)) => id,
            Some(id) => id.to_string(),
            None => number.to_string(),
        };
        let mut push = |answer: &str, judgement, unsupported: Vec<_>| {
            let (id, document, answer) = (id.clone(), document.clone(), answer.to_owned());
            found.push(Judged { id, document, answer, judgement, unsupported });
        };
        if let Some(text) = &faithful {
            push(text, Some(Judgement::Factual(true)), Vec::new());
        }
        for answer in &unfaithful {
            let text = answer.answer.as_deref().ok_or("an unfaithful one without a text")?;
            push(text, Some(Judgement::Factual(false)), Vec::new());
        }
        let with_text = one.answer.is_some().then_some(&one);
        for answer in with_text.into_iter().chain(&summaries) {
            let text = answer.answer.as_deref().ok_or("a summary without a text")?;
            let unsupported = answer.unsupported(text)?;
            push(text, answer.judgement(&unsupported)?, unsupported);
        }
        Ok(())
    }
}

impl Answer {
    fn judgement(&self, unsupported: &[Range<usize>]) -> Result<Option<Judgement>, String> {
        match (self.consistent, self.consistency) {
            (Some(Flag::Is(factual)), _) => Ok(Some(Judgement::Factual(factual))),
            (Some(Flag::Number(1.0)), _) => Ok(Some(Judgement::Factual(true))),
            (Some(Flag::Number(0.0)), _) => Ok(Some(Judgement::Factual(false))),
            (Some(Flag::Number(other)), _) => Err(format!("a judgement of {other}, neither 0 nor 1")),
            (None, Some(mark)) if (1.0..=5.0).contains(&mark) => Ok(Some(Judgement::Mark(mark))),
            (None, Some(mark)) => Err(format!("a consistency of {mark}, not from 1 to 5")),
            (None, None) => Ok(self.spans.is_some().then_some(Judgement::Factual(unsupported.is_empty()))),
        }
    }

    /// In order, without empty ones.
    fn unsupported(&self, text: &str) -> Result<Vec<Range<usize>>, String> {
        let characters = text.chars().count();
        let mut spans = Vec::new();
        for &[start, end] in self.spans.iter().flatten() {
            if start > end || end > characters {
                return Err(format!("the span [{start}, {end}] of an answer of {characters} characters"));
            }
            if start < end {
                spans.push(start..end);
            }
        }
        spans.sort_by_key(|span| span.start);
        Ok(spans)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(lines: &str) -> Result<Vec<Judged>, String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("judged.jsonl");
        fs::write(&path, lines).unwrap();
        read_judged(&path, None).map_err(|error| error.to_string())
    }

    #[test]
    fn the_usual_forms_are_read() {
        let found = read(concat!(
            r#"{"document": "d", "answer": "as", "factual": true}"#,
            "\n\n",
            r#"{"id": 7, "document": "e", "summaries": [{"summary": "x", "consistent": 0}, {"summary": "y", "consistency": 5.0}, {"summary": "z", "consistency": 4.67}]}"#,
            "\n",
            r#"{"id": "i", "document": "f", "faithful": "yes", "unfaithful": [{"text": "no", "model": "m"}]}"#,
            "\n",
            r#"{"document": "g", "answer": "ünsure", "spans": [[4, 6], [0, 2]]}"#,
            "\n",
            r#"{"document": "h", "text": "nobody was asked"}"#,
            "\n",
        ))
        .unwrap();
        let factual = |one: &Judged| one.judgement.map(Judgement::is_factual);
        let said: Vec<_> = found.iter().map(|one| (&*one.id, &*one.answer, factual(one))).collect();
        let expected = [
            ("1", "as", Some(true)),
            ("7", "x", Some(false)),
            ("7", "y", Some(true)),
            ("7", "z", Some(false)),
            ("i", "yes", Some(true)),
            ("i", "no", Some(false)),
            ("5", "ünsure", Some(false)),
            ("6", "nobody was asked", None),
        ];
        assert_eq!(said, expected.map(|(id, answer, factual)| (id, answer, factual)));
        assert_eq!(found[6].unsupported, [0..2, 4..6]);
        assert_eq!(found[3].judgement.map(Judgement::value), Some(4.67));
    }

    #[test]
    fn what_is_no_judged_answer_is_refused_by_line() {
        for (line, part) in [
            (r#"{"document": "d"}"#, "line 1: expected `document` with `answer`"),
            (r#"{"answer": "d"}"#, "missing field `document`"),
            (r#"{"document": "d", "answer": "a", "label": 2}"#, "a judgement of 2, neither 0 nor 1"),
            (
                r#"{"document": "d", "summaries": [{"summary": "a", "consistency": 0}]}"#,
                "a consistency of 0, not from 1 to 5",
            ),
            (
                r#"{"document": "d", "answer": "ab", "spans": [[1, 3]]}"#,
                "the span [1, 3] of an answer of 2 characters",
            ),
            (r#"{"document": "d", "summaries": [{}]}"#, "a summary without a text"),
            ("\n", "expected judged answers, found none"),
        ] {
            let message = read(line).unwrap_err();
            assert!(message.contains(part), "expected {part:?} in {message:?}");
        }
    }
}
