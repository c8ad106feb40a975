//! `softshard scorer score`: lines of documents and answers to lines of scores.

use std::io::{BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::Args;
use fs_err as fs;
use serde::{Deserialize, Serialize};
use softshard_labels::{Error, Observer, Progress};
use softshard_scorers::{Pair, Span, Verdict};

use super::{Which, identity::Identity, opened::Opened};
use crate::session::Session;

/// Pairs that are scored, written and synced at a time.
const AT_ONCE: usize = 64;

/// Arguments of `scorer score`.
#[derive(Args)]
pub(crate) struct Score {
    /// The scorer
    #[command(flatten)]
    which: Which,
    /// JSONL with the texts `document` and `answer`, for lettuce-detect also `question`; other keys do not matter
    #[arg(long, value_name = "FILE")]
    input: PathBuf,
    /// JSONL to write, one line for each of the input; beside it FILE.made-from.json
    #[arg(long, value_name = "FILE")]
    output: PathBuf,
}

/// A line of the input.
#[derive(Deserialize)]
struct Row {
    document: String,
    answer: String,
    question: Option<String>,
}

/// A line of the output.
#[derive(Debug, Serialize, Deserialize)]
struct Scored {
    /// Of the input, from 1.
    line: usize,
    /// From 0 to 1; null where there is no score, which is not faithful.
    consistent: Option<f64>,
    /// Why there is none: `empty` or `too_long`.
    #[serde(skip_serializing_if = "Option::is_none")]
    why: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    spans: Vec<OutSpan>,
    chunks: usize,
    cut: bool,
}

/// As [`Span`].
#[derive(Debug, Serialize, Deserialize)]
struct OutSpan {
    start: usize,
    end: usize,
    confidence: f64,
}

impl Scored {
    fn new(line: usize, verdict: Verdict) -> Self {
        let none = |why: &str| Self {
            line,
            consistent: None,
            why: Some(why.to_owned()),
            spans: Vec::new(),
            chunks: 0,
            cut: false,
        };
        match verdict {
            Verdict::Empty => none("empty"),
            Verdict::TooLong => none("too_long"),
            Verdict::Scored(score) => {
                let span = |Span { start, end, confidence }| OutSpan { start, end, confidence };
                let spans = score.spans.into_iter().map(span).collect();
                let (consistent, why) = (Some(score.consistent), None);
                Self { line, consistent, why, spans, chunks: score.chunks, cut: score.cut }
            }
        }
    }
}

/// Scores what is not scored yet, and says what came out.
///
/// # Errors
/// A line is none of a document and an answer; scores that are there are of something else.
pub(super) fn score(options: &Score, session: &Session) -> Result<()> {
    let Score { which, input, output } = options;
    let rows = rows(input)?;
    let scorer = Opened::open(which)?;
    Identity::of(&scorer, input)?.check(output)?;
    let mut file = fs::OpenOptions::new().read(true).write(true).create(true).truncate(false).open(output)?;
    let mut all = whole_lines(&mut file, output, rows.len())?;
    let observer = session.observer();
    let (total, unit) = (rows.len() as u64, "answers");
    for block in rows[all.len()..].chunks(AT_ONCE) {
        let pairs: Vec<Pair<'_>> = block.iter().map(as_pair).collect();
        let first = all.len() + 1;
        let verdicts = scorer
            .score(&pairs, session.stop)
            .with_context(|| format!("`{}` from line {first}", input.display()))?;
        let mut lines = Vec::new();
        for verdict in verdicts {
            let scored = Scored::new(all.len() + 1, verdict);
            serde_json::to_writer(&mut lines, &scored)?;
            lines.push(b'\n');
            all.push(scored);
        }
        file.write_all(&lines)?;
        file.sync_data()?;
        let done = all.len() as u64;
        observer.progress(&Progress { stage: "scorer score", done, total, unit, ..Progress::default() });
    }
    drop(observer);
    summary(&all, scorer.kind().name());
    println!("scores: {}", output.display());
    Ok(())
}

fn as_pair(row: &Row) -> Pair<'_> {
    Pair { document: &row.document, answer: &row.answer, question: row.question.as_deref() }
}

/// All lines, before anything is computed.
fn rows(input: &Path) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for (index, line) in BufReader::new(fs::File::open(input)?).lines().enumerate() {
        let place = || format!("`{}` line {}", input.display(), index + 1);
        let line = line.with_context(place)?;
        let row: Row = serde_json::from_str(&line)
            .map_err(|error| Error::bad(place(), "texts `document` and `answer`", error))?;
        if row.document.trim().is_empty() {
            return Err(Error::bad(place(), "a text `document`", "an empty one").into());
        }
        rows.push(row);
    }
    if rows.is_empty() {
        return Err(Error::bad(format!("`{}`", input.display()), "lines", "none").into());
    }
    Ok(rows)
}

/// The lines that are there; what a crash tore is cut off.
fn whole_lines(file: &mut fs::File, path: &Path, most: usize) -> Result<Vec<Scored>> {
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    let whole = bytes.iter().rposition(|&byte| byte == b'\n').map_or(0, |last| last + 1);
    let mut found = Vec::new();
    for (index, line) in bytes[..whole].split_inclusive(|&byte| byte == b'\n').enumerate() {
        let place = format!("`{}` line {}", path.display(), index + 1);
        let scored: Scored =
            serde_json::from_slice(line).map_err(|error| Error::bad(&place, "a line of scores", error))?;
        if scored.line != index + 1 || index >= most {
            let expected = format!("the score of line {} of {most}", index + 1);
            let found = format!("that of line {}", scored.line);
            return Err(Error::bad(&place, expected, found)
                .hint("name another output, or remove this one")
                .into());
        }
        found.push(scored);
    }
    let end = u64::try_from(whole).unwrap_or(u64::MAX);
    file.set_len(end)?;
    file.seek(SeekFrom::Start(end))?;
    Ok(found)
}

fn summary(all: &[Scored], kind: &str) {
    let scores: Vec<f64> = all.iter().filter_map(|scored| scored.consistent).collect();
    let count = |is: &dyn Fn(&Scored) -> bool| all.iter().filter(|scored| is(scored)).count();
    let why = |word: &'static str| count(&|scored| scored.why.as_deref() == Some(word));
    if scores.is_empty() {
        println!("{kind}: no answer has a score");
    } else {
        let mean = scores.iter().sum::<f64>() / scores.len() as f64;
        let over = scores.iter().filter(|score| **score > 0.5).count();
        println!("{kind}: {} scores, mean {mean:.4}, {over} above 0.5", scores.len());
    }
    println!("without a score, and not faithful: {} empty, {} too long", why("empty"), why("too_long"));
    println!(
        "documents: {} in several chunks, {} with a text of which the end was cut off",
        count(&|scored| scored.chunks > 1),
        count(&|scored| scored.cut)
    );
}
