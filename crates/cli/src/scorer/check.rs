//! `softshard scorer check`: the scores that were published.

use anyhow::Result;
use clap::Args;
use serde::Serialize;
use serde_json::{Value, json};
use softshard_labels::Error;
use softshard_scorers::{Expected, Pair, Published, Span, Verdict, published};

use super::{Which, opened::Opened};
use crate::{session::Session, stdout::print_json, table::aligned};

/// Spans of an answer that are shown before the rest is counted.
const SHOWN: usize = 3;

/// Arguments of `scorer check`.
#[derive(Args)]
pub(crate) struct Check {
    /// The scorer
    #[command(flatten)]
    which: Which,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// One published score beside what came out.
#[derive(Serialize)]
struct Line {
    source: &'static str,
    document: &'static str,
    answer: &'static str,
    published: Value,
    found: Value,
    pass: bool,
}

/// Prints each published score beside the scorer's.
///
/// # Errors
/// One differs.
pub(super) fn check(options: &Check, session: &Session) -> Result<()> {
    let scorer = Opened::open(&options.which)?;
    let kind = scorer.kind();
    let vectors = published(kind);
    let pairs: Vec<Pair<'_>> = vectors.iter().map(|one| one.pair).collect();
    let verdicts = scorer.score(&pairs, session.stop)?;
    let lines: Vec<Line> = vectors.iter().zip(&verdicts).map(|(one, verdict)| line(one, verdict)).collect();
    let failed = lines.iter().filter(|line| !line.pass).count();
    let word = match (lines.len(), failed) {
        (0, _) => "nothing to compare",
        (_, 0) => "pass",
        _ => "fail",
    };
    if options.json {
        print_json(&json!({ "kind": kind.name(), "verdict": word, "published": lines }))?;
    } else {
        print_lines(&lines, kind.name());
        println!("{word}");
    }
    if failed == 0 {
        return Ok(());
    }
    let place = format!("scorer `{}`", scorer.folder.display());
    let expected = format!("the {} scores that were published of {kind}", lines.len());
    Err(Error::bad(place, expected, format!("{failed} others"))
        .hint("these are other weights, another tokenizer, or a copy that is damaged; another size of the same scorer has other scores")
        .into())
}

fn line(one: &Published, verdict: &Verdict) -> Line {
    let published = match one.expected {
        Expected::Consistent(value) => json!(value),
        Expected::Span(start, end, confidence) => json!([Span { start, end, confidence }]),
    };
    let found = match (verdict, one.expected) {
        (Verdict::Scored(score), Expected::Consistent(_)) => json!(score.consistent),
        (Verdict::Scored(score), Expected::Span(..)) => json!(score.spans),
        (Verdict::Empty | Verdict::TooLong, _) => Value::Null,
    };
    let Pair { document, answer, .. } = one.pair;
    Line { source: one.source, document, answer, published, found, pass: one.agrees(verdict) }
}

fn print_lines(lines: &[Line], kind: &str) {
    let Some(first) = lines.first() else {
        println!(
            "{kind}: no published scores are known; the weights load, `softshard scorer validate` says what they are worth"
        );
        return;
    };
    println!("{kind}: {}", first.source);
    let header = ["answer", "published", "found", ""].map(str::to_owned).to_vec();
    let row = |line: &Line| {
        let word = if line.pass { "pass" } else { "fail" };
        vec![line.answer.to_owned(), in_words(&line.published), in_words(&line.found), word.to_owned()]
    };
    print!("{}", aligned(&[header].into_iter().chain(lines.iter().map(row)).collect::<Vec<_>>()));
}

fn in_words(value: &Value) -> String {
    let digits = |value: &Value| value.as_f64().map_or("none".to_owned(), |value| format!("{value:.4}"));
    let Some(spans) = value.as_array() else { return digits(value) };
    let span = |span: &Value| format!("{}..{} {}", span["start"], span["end"], digits(&span["confidence"]));
    let first: Vec<String> = spans.iter().take(SHOWN).map(span).collect();
    match spans.len().saturating_sub(SHOWN) {
        0 if spans.is_empty() => "no span".to_owned(),
        0 => first.join(", "),
        more => format!("{} and {more} more", first.join(", ")),
    }
}
