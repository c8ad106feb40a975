//! Results beside each other: the paired differences of their rows.

use std::{collections::BTreeMap, path::Path};

use anyhow::Result;
use serde::Serialize;
use serde_json::Value;
use softshard_labels::{Error, short};

use crate::{
    Evaluation, SummaryRow, answers,
    calibration::{DRAWS, Measure, MeasuredDifference, Positions, difference},
    partial::Places,
    rows::{self, Row},
    statistics::{
        self, BadValues, Better, Comparison, Documents, Interval, Part, Question, Resampling, TwoLevels,
        Word, holm, number, two_levels,
    },
    subject::{read_result, results_in},
    tasks::{self, ChoiceRow, Scores},
};

/// Differences below which two are equal, by metric.
pub type Margins = BTreeMap<String, f64>;

/// A result with its rows.
pub struct Scored {
    /// Its scores.
    pub evaluation: Evaluation,
    rows: Rows,
    place: String,
}

/// The rows of a result.
enum Rows {
    /// Held-out rows.
    HeldOut(Vec<Row>),
    /// Rows of a task of choices.
    Choices(Vec<ChoiceRow>),
    /// Summaries of documents.
    Summaries(Vec<SummaryRow>),
}

impl Rows {
    fn len(&self) -> usize {
        match self {
            Self::HeldOut(rows) => rows.len(),
            Self::Choices(rows) => rows.len(),
            Self::Summaries(rows) => rows.len(),
        }
    }

    /// Whether both are of the same rows, in the same order.
    fn has_docs_of(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::HeldOut(one), Self::HeldOut(other)) => {
                one.iter().map(|row| &row.doc).eq(other.iter().map(|row| &row.doc))
            }
            (Self::Choices(one), Self::Choices(other)) => {
                one.iter().map(|row| &row.doc).eq(other.iter().map(|row| &row.doc))
            }
            (Self::Summaries(one), Self::Summaries(other)) => {
                one.iter().map(|row| &row.doc).eq(other.iter().map(|row| &row.doc))
            }
            _ => false,
        }
    }

    /// How many documents they are of.
    fn documents(&self) -> usize {
        match self {
            Self::HeldOut(rows) => rows::documents(rows).count(),
            Self::Choices(rows) => tasks::documents(rows).count(),
            Self::Summaries(rows) => answers::documents(rows).count(),
        }
    }

    /// What each document adds to a mean, if the rows have it.
    fn parts(&self, metric: &str) -> Option<Vec<Part>> {
        match self {
            Self::HeldOut(rows) => {
                let (_, _, parts) = MEANS.iter().find(|(name, ..)| *name == metric)?;
                parts(rows)
            }
            Self::Choices(rows) => {
                let document = ChoiceRow::document;
                parts_of(rows, document, |row| row.weighted(metric))
            }
            Self::Summaries(rows) => {
                parts_of(rows, |row| row.doc.id.as_str(), |row| Some((row.score(metric)?, 1.0)))
            }
        }
    }
}

/// A candidate beside the baseline, in one task.
#[derive(Clone, Debug, Serialize)]
pub struct Compared {
    /// The task.
    pub task: String,
    /// Names of the baseline's results: one for each seed.
    pub baseline: Vec<String>,
    /// Names of the candidate's.
    pub candidate: Vec<String>,
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
    /// Its name, of [`metrics`].
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
    /// The p of a mean: by sign flips, or by Student's t over seeds; none of an error of calibration.
    pub p: Option<f64>,
    /// The same, adjusted over the table by Holm's method.
    pub p_holm: Option<f64>,
    /// The true difference that would be seen with 80 % power; of a mean.
    pub smallest_difference: Option<f64>,
    /// What else is known of a mean, where both have one seed.
    pub of_documents: Option<Comparison>,
    /// What else is known of a mean, where one has several seeds.
    pub of_seeds: Option<TwoLevels>,
}

impl Scored {
    /// Opens the results of one name by their folder, one a task; or one of them by its JSON file. Rows are beside them.
    ///
    /// # Errors
    /// There is none; one cannot be read, says nothing of its rows, or has others beside it.
    pub fn open(place: &Path) -> Result<Vec<Self>> {
        let files = if place.is_dir() { results_in(place)? } else { vec![place.to_owned()] };
        if files.is_empty() {
            let hint = "name a result: evaluations/NAME, or evaluations/NAME/TASK.json";
            let place = format!("`{}`", place.display());
            return Err(Error::bad(place, "the JSON of results", "none").hint(hint).into());
        }
        files.iter().map(|file| Self::open_task(file)).collect()
    }

    fn open_task(result: &Path) -> Result<Self> {
        let place = format!("evaluation `{}`", result.display());
        let evaluation = read_result(result)?;
        let name = result.file_stem().unwrap_or_default().to_string_lossy();
        let places = Places::of(result.parent().unwrap_or(Path::new("")), &name);
        let rows = match (&evaluation.choices, &evaluation.summaries) {
            (Some(_), _) => Rows::Choices(tasks::read(&places.rows)?),
            (None, Some(_)) => Rows::Summaries(answers::read(&places.rows)?),
            (None, None) => Rows::HeldOut(rows::read(&places.rows)?),
        };
        let scored = Self { rows, evaluation, place };
        let (expected, found) = (scored.evaluation.rows, scored.rows.len());
        if expected != found {
            let place = format!("`{}`", places.rows.display());
            return Err(Error::bad(place, format_args!("{expected} rows, as its result has"), found).into());
        }
        Ok(scored)
    }

    fn settings(&self) -> BTreeMap<String, Value> {
        let settings = self.evaluation.provenance.recipe.get("evaluate");
        let mut settings: BTreeMap<String, Value> = match settings {
            Some(Value::Object(settings)) => settings.clone().into_iter().collect(),
            _ => BTreeMap::new(),
        };
        settings.remove("subject");
        settings
    }

    /// Refuses what is of other rows, or answered otherwise.
    fn expect_same_rows(&self, other: &Self) -> Result<(), Error> {
        let hash = |one: &Self| one.evaluation.provenance.inputs.get("rows").cloned().unwrap_or_default();
        let described = |one: &Self| {
            let of = one.evaluation.split.map_or(&*one.evaluation.task, |split| split.name());
            format!("rows {} of `{of}`", short(&hash(one)))
        };
        if hash(self) != hash(other)
            || self.evaluation.split != other.evaluation.split
            || !self.rows.has_docs_of(&other.rows)
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

/// Compares a candidate with a baseline in every task that both have, metric by metric, on the same rows. Each is the results
/// of one recipe: one, or those of several seeds, of which only means are compared, over seeds and documents.
///
/// # Errors
/// No task that all have; other rows or settings, fewer than two documents, a margin of a metric that there is not.
pub fn compare(
    baseline: &[Vec<Scored>],
    candidate: &[Vec<Scored>],
    resampling: &Resampling,
    margins: &Margins,
) -> Result<Vec<Compared>> {
    let known = metrics();
    if let Some(unknown) = margins.keys().find(|name| !known.contains(&name.as_str())) {
        let expected = format!("one of {}", known.join(", "));
        return Err(Error::bad("margin", expected, format_args!("`{unknown}`")).into());
    }
    let tasks = |one: &[Vec<Scored>]| -> Vec<String> {
        one.iter().flatten().map(|one| one.evaluation.task.clone()).collect()
    };
    let mut compared = Vec::new();
    for first in baseline.iter().take(1).flatten() {
        let task = &first.evaluation.task;
        if let (Some(from), Some(to)) = (of_task(task, baseline), of_task(task, candidate)) {
            compared.push(compare_task(&from, &to, resampling, margins)?);
        }
    }
    if compared.is_empty() {
        let place = candidate.iter().flatten().next().map_or("results", |one| &*one.place);
        let expected = format!("a task that all have, of {}", tasks(baseline).join(", "));
        return Err(Error::bad(place, expected, tasks(candidate).join(", ")).into());
    }
    Ok(compared)
}

/// The results of a task, if all seeds have it.
fn of_task<'a>(task: &str, seeds: &'a [Vec<Scored>]) -> Option<Vec<&'a Scored>> {
    seeds.iter().map(|tasks| tasks.iter().find(|one| one.evaluation.task == task)).collect()
}

/// Compares in one task.
fn compare_task(
    baseline: &[&Scored],
    candidate: &[&Scored],
    resampling: &Resampling,
    margins: &Margins,
) -> Result<Compared> {
    let first = baseline[0];
    baseline.iter().chain(candidate).try_for_each(|one| first.expect_same_rows(one))?;
    let question = |metric: &str, better| Question {
        resampling: *resampling,
        better,
        margin: margins.get(metric).copied(),
    };
    let place = format!("{} beside {}", candidate[0].place, first.place);
    let refused = |error| rows::refused(&place, error);
    let documents = first.rows.documents();
    let (mut lines, mut not_available) = (Vec::new(), Vec::new());
    for (metric, better) in means() {
        let of =
            |seeds: &[&Scored]| seeds.iter().map(|one| one.rows.parts(metric)).collect::<Option<Vec<_>>>();
        let (Some(from), Some(to)) = (of(baseline), of(candidate)) else { continue };
        match Line::of_mean(metric, &from, &to, &question(metric, better)) {
            Ok(line) => lines.push(line),
            // As of facts, where hardly an answer states any.
            Err(error @ BadValues::TooFew { .. }) if documents > 1 => {
                not_available.push(format!("{metric}: {error} that have it"));
            }
            Err(error) => return Err(refused(error).into()),
        }
    }
    if let ([from], [to]) = (baseline, candidate) {
        if let (Rows::HeldOut(from), Rows::HeldOut(to)) = (&from.rows, &to.rows) {
            let of = |rows: &[Row]| rows::positions(rows).map_err(refused);
            lines.extend(of_positions(&of(from)?, &of(to)?, question).map_err(refused)?);
        }
    } else if matches!(first.rows, Rows::HeldOut(_)) {
        not_available.push("smooth_ece, ece, ece_equal_mass: of one seed each only".to_owned());
    }
    let p_values: Vec<f64> = lines.iter().filter_map(|line| line.p).collect();
    let mut adjusted = holm(&p_values).map_err(refused)?.into_iter();
    for line in lines.iter_mut().filter(|line| line.p.is_some()) {
        line.p_holm = adjusted.next();
    }
    let order = metrics();
    lines.sort_by_key(|line| order.iter().position(|metric| *metric == line.metric));
    let names = |seeds: &[&Scored]| seeds.iter().map(|one| one.evaluation.name.clone()).collect();
    let (baseline, candidate, rows) = (names(baseline), names(candidate), first.evaluation.described_rows());
    let task = first.evaluation.task.clone();
    Ok(Compared { task, baseline, candidate, rows, documents, metrics: lines, not_available })
}

impl Line {
    /// Whether more is better.
    pub fn is_better_higher(&self) -> bool {
        self.better == Better::Higher
    }

    /// A mean, of each seed by document.
    fn of_mean(
        metric: &'static str,
        from: &[Vec<Part>],
        to: &[Vec<Part>],
        question: &Question,
    ) -> Result<Self, BadValues> {
        let better = question.better;
        if let ([from], [to]) = (from, to) {
            let found = statistics::compare(from, to, question)?;
            let (p, smallest_difference) = (Some(found.sign_flip.p), found.smallest_difference);
            let Comparison { baseline, candidate, difference, interval, word, .. } = found;
            let line = Self::of_measure(metric, better, [baseline, candidate, difference], interval, word);
            return Ok(Self { p, smallest_difference, of_documents: Some(found), ..line });
        }
        let found = two_levels(from, to, question.resampling.level)?;
        let word = statistics::word(&found.interval, better, question.margin)?;
        let values = [found.baseline, found.candidate, found.difference];
        let (p, smallest_difference) = (found.p, found.smallest_difference);
        let line = Self::of_measure(metric, better, values, found.interval, word);
        Ok(Self { p, smallest_difference, of_seeds: Some(found), ..line })
    }

    fn of_measure(
        metric: &'static str,
        better: Better,
        [baseline, candidate, difference]: [f64; 3],
        interval: Interval,
        word: Word,
    ) -> Self {
        let (p, p_holm, smallest_difference, of_documents, of_seeds) = (None, None, None, None, None);
        Self {
            metric,
            better,
            baseline,
            candidate,
            difference,
            interval,
            word,
            p,
            p_holm,
            smallest_difference,
            of_documents,
            of_seeds,
        }
    }
}

type Parts = fn(&[Row]) -> Option<Vec<Part>>;

/// What is a mean over rows or over what is in them.
const MEANS: [(&str, Better, Parts); 6] = [
    ("rouge_l", Better::Higher, |rows| parts(rows, |row| Some((row.rouge_l?, 1.0)))),
    ("faithful", Better::Higher, |rows| parts(rows, |row| Some((f64::from(row.faithful?), 1.0)))),
    ("supported_facts", Better::Higher, |rows| {
        parts(rows, |row| Some((number(row.supported_facts?), number(row.stated_facts?))))
    }),
    ("nll", Better::Lower, |rows| of_all_positions(rows, Positions::nll_parts)),
    ("brier", Better::Lower, |rows| of_all_positions(rows, Positions::brier_parts)),
    ("kl_to_teacher", Better::Lower, |rows| {
        parts(rows, |row| {
            let tokens = number(row.positions.nll.len());
            Some((row.kl_to_teacher? * tokens, tokens))
        })
    }),
];

/// Errors of calibration, which are no means.
const ERRORS: [(&str, Measure); 3] =
    [("smooth_ece", Measure::Smooth), ("ece", Measure::Ece), ("ece_equal_mass", Measure::EceEqualMass)];

/// Means over rows: of summaries, of held-out rows, of choices.
fn means() -> impl Iterator<Item = (&'static str, Better)> {
    let higher = |metric| (metric, Better::Higher);
    // ROUGE-L is a mean of both.
    let of_held_out = MEANS.iter().filter(|(metric, ..)| !SummaryRow::SCORES.contains(metric));
    let of_held_out = of_held_out.map(|(metric, better, _)| (*metric, *better));
    SummaryRow::SCORES.into_iter().map(higher).chain(of_held_out).chain(Scores::NAMES.into_iter().map(higher))
}

/// Names of what is compared, in the order of the table.
pub fn metrics() -> Vec<&'static str> {
    means().map(|(metric, _)| metric).chain(ERRORS.map(|(metric, _)| metric)).collect()
}

fn parts(rows: &[Row], score: impl Fn(&Row) -> Option<(f64, f64)>) -> Option<Vec<Part>> {
    parts_of(rows, Row::document, score)
}

/// Sums and weights by document of the rows that have a score; none where no row has.
fn parts_of<R>(
    rows: &[R],
    document: impl Fn(&R) -> &str,
    score: impl Fn(&R) -> Option<(f64, f64)>,
) -> Option<Vec<Part>> {
    let scored: Vec<(&R, (f64, f64))> = rows.iter().filter_map(|row| Some((row, score(row)?))).collect();
    if scored.is_empty() {
        return None;
    }
    let names: Vec<&str> = scored.iter().map(|(row, _)| document(row)).collect();
    let (sums, weights): (Vec<f64>, Vec<f64>) = scored.iter().map(|(_, score)| *score).unzip();
    let documents = Documents::of(&names);
    Some(documents.weighted_parts(&sums, &weights).expect("rows are finite, as their reader has checked"))
}

/// Sums over labelled tokens, by document.
fn of_all_positions(
    rows: &[Row],
    parts: fn(&Positions) -> Result<Vec<Part>, BadValues>,
) -> Option<Vec<Part>> {
    let checked = "rows are finite, as their reader has checked";
    Some(parts(&rows::positions(rows).expect(checked)).expect(checked))
}

/// Errors of calibration of all positions.
fn of_positions(
    from: &Positions,
    to: &Positions,
    question: impl Fn(&str, Better) -> Question,
) -> Result<Vec<Line>, BadValues> {
    let better = Better::Lower;
    let line = |(metric, measure)| {
        let Question { resampling, margin, .. } = question(metric, better);
        let draws = resampling.draws.min(DRAWS);
        let MeasuredDifference { baseline, candidate, difference } =
            difference(from, to, measure, &Resampling { draws, ..resampling })?;
        let word = statistics::word(&difference.interval, better, margin)?;
        let values = [baseline, candidate, difference.value];
        Ok(Line::of_measure(metric, better, values, difference.interval, word))
    };
    ERRORS.into_iter().map(line).collect()
}
