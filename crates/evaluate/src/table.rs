//! Evaluations as rows of a table for people.

use std::path::Path;

use anyhow::Result;
use fs_err as fs;
use softshard_labels::{Error, short};

use crate::{
    Evaluation, SummaryMeans, SummaryScores,
    statistics::{Interval, number},
    subject::{read_result, results_in},
    tasks::{ChoiceScores, Metric},
};

/// Evaluations of the same rows, with what these are: no others are to be compared.
pub fn by_rows(evaluations: Vec<Evaluation>) -> Vec<(String, Vec<Evaluation>)> {
    let mut groups: Vec<(String, Vec<Evaluation>)> = Vec::new();
    for evaluation in evaluations {
        let rows = evaluation.described_rows();
        match groups.iter_mut().find(|(known, _)| *known == rows) {
            Some((_, group)) => group.push(evaluation),
            None => groups.push((rows, vec![evaluation])),
        }
    }
    groups
}

/// All evaluations in `folder`, by name and task; none where there is no such folder.
///
/// # Errors
/// An evaluation that cannot be read, or lies where earlier versions wrote it.
pub fn all(folder: &Path) -> Result<Vec<Evaluation>> {
    if let Some(file) = results_in(folder)?.first() {
        let place = format!("`{}`", folder.display());
        let found = format!("`{}`", file.file_name().unwrap_or_default().to_string_lossy());
        let hint = "earlier versions wrote it there: evaluate again, and remove it";
        return Err(Error::bad(place, "a folder for each name of a result", found).hint(hint).into());
    }
    let mut folders = Vec::new();
    if folder.exists() {
        for entry in fs::read_dir(folder)? {
            folders.push(entry?.path());
        }
    }
    folders.retain(|path| path.is_dir());
    folders.sort();
    let mut evaluations = Vec::new();
    for path in folders {
        for result in results_in(&path)? {
            evaluations.push(read_result(&result)?);
        }
    }
    Ok(evaluations)
}

impl Evaluation {
    /// `test: 300 sequences (0123456789ab), 200 answered`, or the rows of another task.
    pub fn described_rows(&self) -> String {
        let blake3 = self.provenance.inputs.get("rows").map_or("unknown", |blake3| short(blake3));
        let (name, rows) = (self.split.map_or(&*self.task, |split| split.name()), self.rows);
        if let Some(ChoiceScores { documents, requests, .. }) = &self.choices {
            return format!("{name}: {rows} rows ({blake3}) of {documents} documents, {requests} choices");
        }
        if self.summaries.is_some() {
            return format!("{name}: {rows} documents ({blake3})");
        }
        let answered = self.answers.as_ref().map_or(0, |answers| answers.answers);
        format!("{name}: {rows} sequences ({blake3}), {answered} answered")
    }

    /// What the columns of [`Evaluation::cells`] are.
    pub fn header(&self) -> Vec<String> {
        if let Some(choices) = &self.choices {
            let metrics = choices.metrics.iter().map(|metric| &*metric.metric);
            return ["model", "parameters"].into_iter().chain(metrics).map(str::to_owned).collect();
        }
        if self.summaries.is_some() {
            let header = ["model", "parameters", "ROUGE-1", "ROUGE-2", "ROUGE-L", "answered", "words"];
            let copied = ["copied words", "copied trigrams", "copied names"];
            return header.into_iter().chain(copied).map(str::to_owned).collect();
        }
        let header =
            ["model", "parameters", "ROUGE-L", "faithful", "facts right", "NLL", "ECE", "KL to teacher"];
        header.map(str::to_owned).to_vec()
    }

    /// Rows that stand beside those of models, in the same columns: what the reference, and the first sentences of the document,
    /// are worth as answers.
    pub fn anchors(&self) -> Vec<Vec<String>> {
        let Some(SummaryScores { gold, lead_3, .. }) = &self.summaries else { return Vec::new() };
        let anchor = |(name, means): (&str, &SummaryMeans)| {
            let own = [name.to_owned(), "-".to_owned()];
            own.into_iter().chain(of_summaries(means)).collect()
        };
        let there = [("gold reference", gold), ("lead-3", lead_3)];
        there.into_iter().filter_map(|(name, means)| Some((name, means.as_ref()?))).map(anchor).collect()
    }

    /// What is said of it in the columns of [`Evaluation::header`].
    pub fn cells(&self) -> Vec<String> {
        let own = [self.name.clone(), self.parameters.to_string()];
        if let Some(choices) = &self.choices {
            return own.into_iter().chain(choices.metrics.iter().map(with_interval)).collect();
        }
        if let Some(scores) = &self.summaries {
            return own.into_iter().chain(of_summaries(&scores.means)).collect();
        }
        let nats = |nats: Option<f64>| nats.map_or("-".to_owned(), |nats| format!("{nats:.4}"));
        let answers = self.answers.as_ref();
        let held_out = self.held_out.as_ref();
        let scores = [
            percent(answers.map(|answers| answers.rouge_l)),
            percent(answers.and_then(|answers| answers.faithful)),
            percent(answers.and_then(|answers| answers.supported_facts)),
            nats(held_out.map(|held_out| held_out.nll)),
            percent(held_out.map(|held_out| held_out.ece)),
            nats(held_out.and_then(|held_out| held_out.kl_to_teacher)),
        ];
        own.into_iter().chain(scores).collect()
    }
}

/// `71.3 %`, or a dash for what is not there.
fn percent(share: Option<f64>) -> String {
    share.map_or("-".to_owned(), |share| format!("{:.1} %", 100.0 * share))
}

/// ROUGE in MiniLLM's convention, how many answers there are and how long, and what of them is copied.
fn of_summaries(means: &SummaryMeans) -> Vec<String> {
    let rouge = means.rouge.map(|both| both.minillm);
    let answered = (means.rows > 0).then(|| number(means.answered) / number(means.rows));
    let words = means.mean_words.map_or("-".to_owned(), |words| format!("{words:.1}"));
    vec![
        percent(rouge.map(|rouge| rouge.rouge1)),
        percent(rouge.map(|rouge| rouge.rouge2)),
        percent(rouge.map(|rouge| rouge.rouge_l)),
        percent(answered),
        words,
        percent(means.copying.unigrams),
        percent(means.copying.trigrams),
        percent(means.copying.names_and_numbers),
    ]
}

/// `71.3 % [65.6, 76.9]`; without an interval where fewer than two documents give none.
fn with_interval(Metric { value, interval, .. }: &Metric) -> String {
    let interval = interval.map_or("n/a".to_owned(), |Interval { lower, upper }| {
        format!("[{:.1}, {:.1}]", 100.0 * lower, 100.0 * upper)
    });
    format!("{:.1} % {interval}", 100.0 * value)
}
