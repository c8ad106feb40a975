//! `softshard scorer validate`: a scorer beside the judgement of people.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::Args;
use serde::Serialize;
use softshard_evaluate::statistics::{
    Auroc, BadValues, Documents, RankCorrelations, Resampling, auroc, rank_correlations,
};
use softshard_evaluate::{FLOORS, Judged, copying, read_judged};
use softshard_labels::{Error, Observer, Progress};
use softshard_scorers::{Pair, Verdict};

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
    /// JSON lines of documents with judged answers (docs/evaluation.md, "Judged answers")
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

/// How scores of one kind agree with one file.
#[derive(Serialize)]
struct Agreement {
    by: String,
    /// Answers that have such a score.
    answers: usize,
    /// With its interval by document; none where all are faithful, or none is.
    auc: Option<Auroc>,
    ranks: Option<RankCorrelations>,
}

/// What came of one file.
#[derive(Serialize)]
struct Found {
    data: String,
    documents: usize,
    /// Answers without a score, which are left out.
    empty: usize,
    too_long: usize,
    faithful_from: f64,
    faithful: usize,
    /// The scorer, and below it the floors: what of an answer is copied.
    agreement: Vec<Agreement>,
}

/// An answer with its score.
struct Scored<'a> {
    judged: &'a Judged,
    judgement: f64,
    score: f64,
}

/// Prints how well the scorer agrees with people.
///
/// # Errors
/// A file has no judged answers.
pub(super) fn validate(options: &Validate, session: &Session) -> Result<()> {
    let read = |path: &PathBuf| read_judged(path, options.documents);
    let files = options.data.iter().map(read).collect::<Result<Vec<_>>>()?;
    let scorer = Opened::open(&options.which)?;
    let mut all = Vec::new();
    for (path, judged) in options.data.iter().zip(&files) {
        all.push(validated(&scorer, path, judged, options.faithful, session)?);
    }
    if options.json {
        return print_json(&BTreeMap::from([(scorer.kind().name(), all)]));
    }
    let header = ["data", "by", "answers", "AUC", "95 % by document", "Spearman", "Kendall"];
    let rows: Vec<Vec<String>> =
        [header.map(str::to_owned).to_vec()].into_iter().chain(all.iter().flat_map(cells)).collect();
    println!("{} beside people", scorer.kind());
    print!("{}", aligned(&rows));
    for Found { data, documents, faithful_from, faithful, .. } in &all {
        println!(
            "{data}: {documents} documents, {faithful} answers faithful (judged at least {faithful_from})"
        );
    }
    for Found { data, empty, too_long, .. } in all.iter().filter(|one| one.empty + one.too_long > 0) {
        println!("{data}: left out, without a score: {empty} empty answers, {too_long} too long");
    }
    println!(
        "AUC: that of a faithful and an unfaithful answer the faithful one has the greater score; 0.5 is chance"
    );
    Ok(())
}

/// A row for each kind of scores.
fn cells(Found { data, agreement, .. }: &Found) -> Vec<Vec<String>> {
    let digits = |value: Option<f64>| value.map_or("n/a".to_owned(), |value| format!("{value:.3}"));
    let row = |Agreement { by, answers, auc, ranks }: &Agreement| {
        let interval = auc.as_ref().map_or("n/a".to_owned(), |auc| {
            format!("[{:.3}, {:.3}]", auc.interval.lower, auc.interval.upper)
        });
        vec![
            data.clone(),
            by.clone(),
            answers.to_string(),
            digits(auc.as_ref().map(|auc| auc.value)),
            interval,
            digits(ranks.map(|ranks| ranks.spearman)),
            digits(ranks.map(|ranks| ranks.kendall)),
        ]
    };
    agreement.iter().map(row).collect()
}

fn validated(
    scorer: &Opened,
    path: &Path,
    judged: &[Judged],
    faithful: Option<f64>,
    session: &Session,
) -> Result<Found> {
    let place = || format!("`{}`", path.display());
    let observer = session.observer();
    let (mut empty, mut too_long, mut done) = (0, 0, 0);
    let mut found: Vec<Scored<'_>> = Vec::new();
    for of_document in judged.chunk_by(|one, other| one.document == other.document) {
        let pairs: Vec<Pair<'_>> = of_document.iter().map(pair_of).collect();
        let verdicts = scorer
            .score(&pairs, session.stop)
            .with_context(|| format!("{} document `{}`", place(), of_document[0].id))?;
        for (verdict, judged) in verdicts.into_iter().zip(of_document) {
            let judgement = judged.judgement.ok_or_else(|| {
                let place = format!("{} document `{}`", place(), judged.id);
                Error::bad(place, "a judgement of each answer", "none")
            })?;
            match verdict {
                Verdict::Scored(score) => {
                    found.push(Scored { judged, judgement: judgement.value(), score: score.consistent });
                }
                Verdict::Empty => empty += 1,
                Verdict::TooLong => too_long += 1,
            }
        }
        done += of_document.len() as u64;
        let (total, unit) = (judged.len() as u64, "answers");
        observer.progress(&Progress { stage: "scorer validate", done, total, unit, ..Progress::default() });
    }
    drop(observer);
    if found.len() < 2 {
        return Err(Error::bad(place(), "two judged answers with a score at least", found.len()).into());
    }
    let largest = || found.iter().map(|one| one.judgement).fold(f64::NEG_INFINITY, f64::max);
    let faithful_from = faithful.unwrap_or_else(largest);
    let mut agreement = vec![agreement(scorer.kind().name(), &found, faithful_from, |one| Some(one.score))?];
    for (name, share) in FLOORS {
        let copied = |one: &Scored<'_>| share(&copying(&one.judged.document, &one.judged.answer));
        agreement.push(self::agreement(name, &found, faithful_from, copied)?);
    }
    Ok(Found {
        data: path.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned()),
        documents: Documents::of(&judged.iter().map(|one| &*one.id).collect::<Vec<_>>()).count(),
        empty,
        too_long,
        faithful_from,
        faithful: found.iter().filter(|one| one.judgement >= faithful_from).count(),
        agreement,
    })
}

fn pair_of(judged: &Judged) -> Pair<'_> {
    Pair { document: &judged.document, answer: &judged.answer, question: None }
}

/// Of the answers that have a score of this kind.
fn agreement(
    by: &str,
    found: &[Scored<'_>],
    faithful: f64,
    score: impl Fn(&Scored<'_>) -> Option<f64>,
) -> Result<Agreement> {
    let with_score = found.iter().filter_map(|one| Some((one, score(one)?)));
    let (ones, scores): (Vec<&Scored<'_>>, Vec<f64>) = with_score.unzip();
    let judgements: Vec<f64> = ones.iter().map(|one| one.judgement).collect();
    let positive: Vec<bool> = judgements.iter().map(|judgement| *judgement >= faithful).collect();
    let documents = Documents::of(&ones.iter().map(|one| &*one.judged.id).collect::<Vec<_>>());
    let resampling = Resampling { draws: DRAWS, ..Resampling::default() };
    let auc = match auroc(&scores, &positive, &documents, &resampling) {
        Ok(auc) => Some(auc),
        // All are of one sort, or of one document; or most resamples are.
        Err(BadValues::TooFew { .. } | BadValues::Value { what: "resample", .. }) => None,
        Err(error) => return Err(error.into()),
    };
    Ok(Agreement {
        by: by.to_owned(),
        answers: scores.len(),
        auc,
        ranks: rank_correlations(&scores, &judgements)?,
    })
}
