//! Results beside each other: the paired differences of their rows.

use std::{collections::BTreeMap, path::Path};

use anyhow::Result;
use fs_err as fs;
use serde::Serialize;
use serde_json::Value;
use softshard_labels::{Error, short};

use crate::{
    Evaluation,
    calibration::{DRAWS, Measure, MeasuredDifference, Positions, difference},
    partial::Places,
    rows::{self, Row},
    statistics::{
        self, BadValues, Better, Comparison, Documents, Interval, Part, Question, Resampling, Word, holm,
        number,
    },
};

/// Names of what is compared, in the order of the table.
pub const METRICS: [&str; 9] = [
    "rouge_l",
    "faithful",
    "supported_facts",
    "nll",
    "brier",
    "kl_to_teacher",
    "smooth_ece",
    "ece",
    "ece_equal_mass",
];

/// Differences below which two are equal, by metric.
pub type Margins = BTreeMap<String, f64>;

/// A result with its rows.
pub struct Scored {
    /// Its scores.
    pub evaluation: Evaluation,
    rows: Vec<Row>,
    place: String,
}

/// A candidate beside the baseline.
#[derive(Clone, Debug, Serialize)]
pub struct Compared {
    /// Name of the baseline.
    pub baseline: String,
    /// Name of the candidate.
    pub candidate: String,
    /// Which rows both are of.
    pub rows: String,
    /// Documents that they are of.
    pub documents: usize,
    /// A line for each metric that both have.
    pub metrics: Vec<Line>,
    /// Metrics of which nothing can be said, and why.
    pub not_available: Vec<String>,
}

/// A metric of two results.
#[derive(Clone, Debug, Serialize)]
pub struct Line {
    /// Its name, of [`METRICS`].
    pub metric: &'static str,
    /// Which values are better.
    pub better: Better,
    /// The baseline's.
    pub baseline: f64,
    /// The candidate's.
    pub candidate: f64,
    /// Candidate minus baseline.
    pub difference: f64,
    /// Its interval, by document.
    pub interval: Interval,
    /// What the difference is called.
    pub word: Word,
    /// What else is known of a mean; none of an error of calibration, which is no mean.
    pub mean: Option<Comparison>,
    /// The sign-flip p of a mean, adjusted over those of the table by Holm's method.
    pub p_holm: Option<f64>,
}

impl Scored {
    /// Opens a result by its JSON file; the rows are beside it.
    ///
    /// # Errors
    /// It cannot be read, says nothing of its rows, or has others beside it.
    pub fn open(result: &Path) -> Result<Self> {
        let place = format!("evaluation `{}`", result.display());
        let evaluation: Evaluation = serde_json::from_slice(&fs::read(result)?)
            .map_err(|error| Error::bad(&place, "the JSON of a result", error))?;
        let name = result.file_stem().unwrap_or_default().to_string_lossy();
        let places = Places::of(result.parent().unwrap_or(Path::new("")), &name);
        let scored = Self { rows: rows::read(&places.rows)?, evaluation, place };
        let (expected, found) = (scored.evaluation.rows, scored.rows.len());
        if expected != found {
            let place = format!("`{}`", places.rows.display());
            return Err(Error::bad(place, format_args!("{expected} rows, as its result has"), found).into());
        }
        Ok(scored)
    }

    fn settings(&self) -> BTreeMap<String, Value> {
        let settings = self.evaluation.provenance.as_ref().and_then(|one| one.recipe.get("evaluate"));
        let mut settings: BTreeMap<String, Value> = match settings {
            Some(Value::Object(settings)) => settings.clone().into_iter().collect(),
            _ => BTreeMap::new(),
        };
        settings.remove("subject");
        settings
    }

    /// Refuses what is of other rows, or answered otherwise.
    fn expect_same_rows(&self, other: &Self) -> Result<(), Error> {
        let hash = |one: &Self| {
            let blake3 = one.evaluation.provenance.as_ref().and_then(|one| one.inputs.get("rows").cloned());
            blake3.unwrap_or_else(|| "unknown".to_owned())
        };
        let described = |one: &Self| match one.evaluation.split {
            Some(split) => format!("rows {} of `{}`", short(&hash(one)), split.name()),
            None => "rows that an earlier version did not write down".to_owned(),
        };
        let keys = |one: &Self| one.rows.iter().map(|row| row.doc.clone()).collect::<Vec<_>>();
        if hash(self) != hash(other)
            || self.evaluation.split != other.evaluation.split
            || keys(self) != keys(other)
        {
            let expected = format!("{}, as {} has", described(self), self.place);
            let hint =
                "results are compared on the same rows: evaluate both on one split of the same sequences";
            return Err(Error::bad(&other.place, expected, described(other)).hint(hint));
        }
        let (expected, found) = (self.settings(), other.settings());
        for (key, value) in &expected {
            let there = found.get(key).unwrap_or(&Value::Null);
            if there != value {
                let expected = format!("`evaluate.{key}` of {value}, as {} has", self.place);
                let hint = "evaluate one of them again, with the settings of the other";
                return Err(Error::bad(&other.place, expected, there).hint(hint));
            }
        }
        Ok(())
    }
}

/// Compares a candidate with a baseline, metric by metric, on the same rows.
///
/// # Errors
/// Other rows or settings, fewer than two documents, a margin of a metric that there is not.
pub fn compare(
    baseline: &Scored,
    candidate: &Scored,
    resampling: &Resampling,
    margins: &Margins,
) -> Result<Compared> {
    baseline.expect_same_rows(candidate)?;
    if let Some(unknown) = margins.keys().find(|name| !METRICS.contains(&name.as_str())) {
        let expected = format!("one of {}", METRICS.join(", "));
        return Err(Error::bad("margin", expected, format_args!("`{unknown}`")).into());
    }
    let question = |metric: &str, better| Question {
        resampling: *resampling,
        better,
        margin: margins.get(metric).copied(),
    };
    let place = format!("{} beside {}", candidate.place, baseline.place);
    let refused = |error| rows::refused(&place, error);
    let documents = rows::documents(&baseline.rows).count();
    let (mut lines, mut not_available) = (Vec::new(), Vec::new());
    for (metric, better, parts) in MEANS {
        let (Some(from), Some(to)) = (parts(&baseline.rows), parts(&candidate.rows)) else { continue };
        match statistics::compare(&from, &to, &question(metric, better)) {
            Ok(found) => lines.push(Line::of_mean(metric, better, found)),
            // As of facts, where hardly an answer states any.
            Err(error @ BadValues::TooFew { .. }) if documents > 1 => {
                not_available.push(format!("{metric}: {error} that have it"));
            }
            Err(error) => return Err(refused(error).into()),
        }
    }
    let (from, to) = (rows::positions(&baseline.rows), rows::positions(&candidate.rows));
    let (from, to) = (from.map_err(refused)?, to.map_err(refused)?);
    lines.extend(of_positions(&from, &to, question).map_err(refused)?);
    let p_values: Vec<f64> =
        lines.iter().filter_map(|line| line.mean.as_ref()).map(|mean| mean.sign_flip.p).collect();
    let mut adjusted = holm(&p_values).map_err(refused)?.into_iter();
    for line in lines.iter_mut().filter(|line| line.mean.is_some()) {
        line.p_holm = adjusted.next();
    }
    lines.sort_by_key(|line| METRICS.iter().position(|metric| *metric == line.metric));
    Ok(Compared {
        baseline: baseline.evaluation.name.clone(),
        candidate: candidate.evaluation.name.clone(),
        rows: baseline.evaluation.described_rows(),
        documents,
        metrics: lines,
        not_available,
    })
}

impl Line {
    /// Whether more is better.
    pub fn is_better_higher(&self) -> bool {
        self.better == Better::Higher
    }

    fn of_mean(metric: &'static str, better: Better, mean: Comparison) -> Self {
        let Comparison { baseline, candidate, difference, interval, word, .. } = mean;
        let p_holm = None;
        Self { metric, better, baseline, candidate, difference, interval, word, mean: Some(mean), p_holm }
    }
}

type Parts = fn(&[Row]) -> Option<Vec<Part>>;

/// What is a mean over rows or over what is in them.
const MEANS: [(&str, Better, Parts); 4] = [
    ("rouge_l", Better::Higher, |rows| parts(rows, |row| Some((row.rouge_l?, 1.0)))),
    ("faithful", Better::Higher, |rows| parts(rows, |row| Some((f64::from(row.faithful?), 1.0)))),
    ("supported_facts", Better::Higher, |rows| {
        parts(rows, |row| Some((number(row.supported_facts?), number(row.stated_facts?))))
    }),
    ("kl_to_teacher", Better::Lower, |rows| {
        parts(rows, |row| {
            let tokens = number(row.positions.nll.len());
            Some((row.kl_to_teacher? * tokens, tokens))
        })
    }),
];

/// Sums and weights by document of the rows that have a score; none where no row has.
fn parts(rows: &[Row], score: impl Fn(&Row) -> Option<(f64, f64)>) -> Option<Vec<Part>> {
    let scored: Vec<(&Row, (f64, f64))> = rows.iter().filter_map(|row| Some((row, score(row)?))).collect();
    if scored.is_empty() {
        return None;
    }
    let names: Vec<&str> = scored.iter().map(|(row, _)| row.document()).collect();
    let (sums, weights): (Vec<f64>, Vec<f64>) = scored.iter().map(|(_, score)| *score).unzip();
    let documents = Documents::of(&names);
    Some(documents.weighted_parts(&sums, &weights).expect("rows are finite, as their reader has checked"))
}

/// What is measured of all positions.
fn of_positions(
    from: &Positions,
    to: &Positions,
    question: impl Fn(&str, Better) -> Question,
) -> Result<Vec<Line>, BadValues> {
    let better = Better::Lower;
    let mean = |metric: &'static str, from: Vec<Part>, to: Vec<Part>| {
        Ok(Line::of_mean(metric, better, statistics::compare(&from, &to, &question(metric, better))?))
    };
    let mut lines = vec![
        mean("nll", from.nll_parts()?, to.nll_parts()?)?,
        mean("brier", from.brier_parts()?, to.brier_parts()?)?,
    ];
    let measures =
        [("smooth_ece", Measure::Smooth), ("ece", Measure::Ece), ("ece_equal_mass", Measure::EceEqualMass)];
    for (metric, measure) in measures {
        let Question { resampling, margin, .. } = question(metric, better);
        let draws = resampling.draws.min(DRAWS);
        let MeasuredDifference { baseline, candidate, difference } =
            difference(from, to, measure, &Resampling { draws, ..resampling })?;
        let (difference, interval) = (difference.value, difference.interval);
        let word = statistics::word(&interval, better, margin)?;
        let (mean, p_holm) = (None, None);
        lines.push(Line { metric, better, baseline, candidate, difference, interval, word, mean, p_holm });
    }
    Ok(lines)
}
