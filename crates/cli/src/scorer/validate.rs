//! `softshard scorer validate`: a scorer beside the judgement of people.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::Args;
use fs_err as fs;
use serde::{Deserialize, Serialize};
use softshard_evaluate::statistics::{Interval, Resampling};
use softshard_labels::{Error, Observer, Progress};
use softshard_scorers::{Agreement, Pair, Verdict};

use super::{Which, opened::Opened};
use crate::{session::Session, stage::positive, stdout::print_json, table::aligned};

/// Resamples of documents for an interval of the AUC.
const DRAWS: usize = 1_000;

/// Arguments of `scorer validate`.
#[derive(Args)]
pub(crate) struct Validate {
    /// The scorer
    #[command(flatten)]
    which: Which,
    /// JSONL: `document` and `summaries`, each with `summary` and a judgement, `consistent` or `consistency`
    #[arg(long, required = true, num_args = 1.., value_name = "FILE")]
    data: Vec<PathBuf>,
    /// What is judged faithful: at least this [default: the greatest judgement of the file]
    #[arg(long, value_name = "JUDGEMENT")]
    faithful: Option<f64>,
    /// Only the first documents of each file
    #[arg(long, value_name = "N", value_parser = positive)]
    documents: Option<usize>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// A line of judged summaries.
#[derive(Deserialize)]
struct Row {
    document: String,
    summaries: Vec<Judged>,
}

/// A summary that people judged: greater is more faithful.
#[derive(Deserialize)]
struct Judged {
    summary: String,
    #[serde(alias = "consistency")]
    consistent: f64,
}

/// How a scorer agrees with one file.
#[derive(Serialize)]
struct Found {
    data: String,
    documents: usize,
    answers: usize,
    /// Answers without a score, which are left out.
    empty: usize,
    too_long: usize,
    faithful_from: f64,
    faithful: usize,
    auc: Option<f64>,
    /// By document, 95 %.
    auc_interval: Option<Interval>,
    spearman: Option<f64>,
    kendall: Option<f64>,
}

/// Prints how well the scorer agrees with people.
///
/// # Errors
/// A file has no judged summaries.
pub(super) fn validate(options: &Validate, session: &Session) -> Result<()> {
    let read = |path: &PathBuf| rows(path, options.documents);
    let files = options.data.iter().map(read).collect::<Result<Vec<_>>>()?;
    let scorer = Opened::open(&options.which)?;
    let mut all = Vec::new();
    for (path, rows) in options.data.iter().zip(&files) {
        all.push(validated(&scorer, path, rows, options.faithful, session)?);
    }
    if options.json {
        return print_json(&BTreeMap::from([(scorer.kind().name(), all)]));
    }
    let header =
        ["data", "documents", "answers", "faithful", "AUC", "95 % by document", "Spearman", "Kendall"];
    let rows: Vec<Vec<String>> =
        [header.map(str::to_owned).to_vec()].into_iter().chain(all.iter().map(cells)).collect();
    println!("{} beside people", scorer.kind());
    print!("{}", aligned(&rows));
    for Found { data, empty, too_long, .. } in all.iter().filter(|one| one.empty + one.too_long > 0) {
        println!("{data}: left out, without a score: {empty} empty answers, {too_long} too long");
    }
    println!(
        "AUC: that of a faithful and an unfaithful answer the faithful one has the greater score; 0.5 is chance"
    );
    Ok(())
}

fn cells(found: &Found) -> Vec<String> {
    let digits = |value: Option<f64>| value.map_or("n/a".to_owned(), |value| format!("{value:.3}"));
    let interval = found
        .auc_interval
        .map_or("n/a".to_owned(), |Interval { lower, upper }| format!("[{lower:.3}, {upper:.3}]"));
    vec![
        found.data.clone(),
        found.documents.to_string(),
        found.answers.to_string(),
        found.faithful.to_string(),
        digits(found.auc),
        interval,
        digits(found.spearman),
        digits(found.kendall),
    ]
}

fn rows(path: &Path, most: Option<usize>) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    let lines = BufReader::new(fs::File::open(path)?).lines().take(most.unwrap_or(usize::MAX));
    for (index, line) in lines.enumerate() {
        let place = || format!("`{}` line {}", path.display(), index + 1);
        let line = line.with_context(place)?;
        let row: Row = serde_json::from_str(&line).map_err(|error| {
            Error::bad(
                place(),
                "a `document` and `summaries` with `summary` and `consistent` or `consistency`",
                error,
            )
        })?;
        rows.push(row);
    }
    if rows.iter().map(|row| row.summaries.len()).sum::<usize>() < 2 {
        return Err(
            Error::bad(format!("`{}`", path.display()), "two judged summaries at least", "fewer").into()
        );
    }
    Ok(rows)
}

fn validated(
    scorer: &Opened,
    path: &Path,
    rows: &[Row],
    faithful: Option<f64>,
    session: &Session,
) -> Result<Found> {
    let observer = session.observer();
    let (mut empty, mut too_long) = (0, 0);
    // Score and judgement of the answers of each document.
    let mut found: Vec<Vec<(f64, f64)>> = Vec::new();
    for (index, row) in rows.iter().enumerate() {
        let answers = row.summaries.iter().map(|judged| judged.summary.as_str());
        let pairs: Vec<Pair<'_>> =
            answers.map(|answer| Pair { document: &row.document, answer, question: None }).collect();
        let judgements = row.summaries.iter().map(|judged| judged.consistent);
        let verdicts = scorer
            .score(&pairs, session.stop)
            .with_context(|| format!("`{}` line {}", path.display(), index + 1))?;
        let mut own = Vec::new();
        for (verdict, judgement) in verdicts.into_iter().zip(judgements) {
            match verdict {
                Verdict::Scored(score) => own.push((score.consistent, judgement)),
                Verdict::Empty => empty += 1,
                Verdict::TooLong => too_long += 1,
            }
        }
        found.push(own);
        let (done, total) = (index as u64 + 1, rows.len() as u64);
        observer.progress(&Progress {
            stage: "scorer validate",
            done,
            total,
            unit: "documents",
            ..Progress::default()
        });
    }
    drop(observer);
    let (scores, judgements): (Vec<f64>, Vec<f64>) = found.iter().flatten().copied().unzip();
    let faithful_from =
        faithful.unwrap_or_else(|| judgements.iter().copied().fold(f64::NEG_INFINITY, f64::max));
    let agreement = Agreement::of(&scores, &judgements, faithful_from)
        .with_context(|| format!("`{}`", path.display()))?;
    let auc_interval = agreement.auc.and_then(|_| interval(&found, faithful_from));
    Ok(Found {
        data: path.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned()),
        documents: rows.len(),
        answers: scores.len(),
        empty,
        too_long,
        faithful_from,
        faithful: judgements.iter().filter(|judgement| **judgement >= faithful_from).count(),
        auc: agreement.auc,
        auc_interval,
        spearman: agreement.spearman,
        kendall: agreement.kendall,
    })
}

/// Of the AUC, by drawing documents; none where too few of them have both sorts of answers.
fn interval(found: &[Vec<(f64, f64)>], faithful: f64) -> Option<Interval> {
    let resampling = Resampling { draws: DRAWS, ..Resampling::default() };
    let auc = |drawn: &[usize]| {
        let (scores, judgements): (Vec<f64>, Vec<f64>) =
            drawn.iter().flat_map(|&document| &found[document]).copied().unzip();
        softshard_scorers::auc(&scores, &judgements, faithful).unwrap_or(f64::NAN)
    };
    let replicates = resampling.replicates(found.len(), auc).ok()?;
    Some(resampling.percentile(replicates, found.len()))
}
