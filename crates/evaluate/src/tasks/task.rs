//! A task with its rows: read, asked and scored.

use std::collections::HashMap;

use anyhow::Result;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use serde_json::json;
use softshard_labels::{Error, Provenance, file_blake3};
use softshard_model::{Decoder, DecoderConfig};
use softshard_prepare::{FileRow, Tokenizer, file_rows};

use super::{
    kind::Kind,
    question::Question,
    row::{ChoiceRequest, ChoiceRow, Target},
    scores::Scores,
    settings::TaskConfig,
};
use crate::{
    EvaluateInputs,
    choices::{Encoder, Likelihood, NoPair, Pair, score},
    partial::Parts,
    rows::{Document, refused},
    statistics::{BadValues, Documents, Interval, Resampling, estimate},
    subject::add_settings,
};

/// Digits of a row's key.
const KEY_DIGITS: usize = 32;

/// Scores of a task of choices.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ChoiceScores {
    /// Documents that its rows are of.
    pub documents: usize,
    /// Continuations that were scored.
    pub requests: usize,
    /// Of these, how many lost the beginning of their context to what the model sees.
    pub cut: usize,
    /// Means over its rows.
    pub metrics: Vec<Metric>,
}

/// A mean with what is known of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Metric {
    /// Its name.
    pub metric: String,
    /// The mean, 0 to 1.
    pub value: f64,
    /// Its standard error, by documents; none of fewer than two.
    pub standard_error: Option<f64>,
    /// Its 95 % interval, by documents: 10,000 draws with seed 0; none of fewer than two.
    pub interval: Option<Interval>,
}

/// A task with its questions.
pub(crate) struct Task {
    name: String,
    config: TaskConfig,
    kind: Kind,
    tokenizer: softshard_labels::Tokenizer,
    rows: Vec<Asked>,
}

/// A row with its question, in texts and in tokens.
struct Asked {
    doc: Document,
    question: Question,
    pairs: Vec<Pair>,
}

impl Task {
    /// Reads the rows and makes tokens of them.
    ///
    /// # Errors
    /// A file that cannot be read; a row that is none of the task, or too long for the model; too few shots; nothing to compare.
    pub(crate) fn open(
        (name, config): (&str, &TaskConfig),
        tokenizer: &Tokenizer,
        model: &DecoderConfig,
    ) -> Result<Self> {
        let kind = Kind::of(name, config).expect("the recipe was checked");
        let rows = file_rows(&config.file, config.limit)?;
        let shots = match &config.shots_file {
            Some(file) => Shots::read(&kind, file, config.shots)?,
            None => Shots::default(),
        };
        let encoder = Encoder::new(tokenizer, model)?;
        let ask = |row: &FileRow| ask(&kind, &shots, &encoder, row);
        let asked: Vec<Option<Asked>> = rows.par_iter().map(ask).collect::<Result<_>>()?;
        let found = asked.len();
        let rows: Vec<Asked> = asked.into_iter().flatten().collect();
        let place = || format!("task `{name}`, `{}`", config.file.display());
        if rows.is_empty() {
            return Err(Error::bad(
                place(),
                "rows with choices to compare",
                format_args!("none in {found} rows"),
            )
            .into());
        }
        if rows.len() < found {
            let why = "have no summaries of both kinds: they are left out";
            tracing::warn!("{}: {} of {found} rows {why}", place(), found - rows.len());
        }
        let (name, config, tokenizer) = (name.to_owned(), config.clone(), tokenizer.fingerprint().clone());
        Ok(Self { name, config, kind, tokenizer, rows })
    }

    /// Adds what the scores are made from besides the model.
    ///
    /// # Errors
    /// A file cannot be read.
    pub(crate) fn add_to(&self, this: &mut Provenance) -> Result<()> {
        this.input("rows", self.blake3());
        this.input("task.file", file_blake3(&self.config.file)?);
        if let Some(shots) = &self.config.shots_file {
            this.input("task.shots_file", file_blake3(shots)?);
        }
        this.tokenizer(&self.tokenizer);
        let TaskConfig { like, mapping, shots, limit, prompt, .. } = &self.config;
        let task = json!({
            "name": self.name, "like": like, "mapping": mapping, "shots": shots, "limit": limit, "prompt": prompt,
        });
        add_settings(this, json!({ "task": task }));
        Ok(())
    }

    /// BLAKE3 of what is asked: what two results must share to be compared.
    fn blake3(&self) -> String {
        let mut hasher = blake3::Hasher::new();
        for Asked { doc, question, .. } in &self.rows {
            let Question { contexts, continuations, choices, gold, document, description, .. } = question;
            let all = json!([doc.key, description, contexts, continuations, choices, gold, document]);
            hasher.update(all.to_string().as_bytes());
            hasher.update(b"\n");
        }
        hasher.finalize().to_hex().to_string()
    }

    /// Log-likelihoods of all choices and what they are worth.
    ///
    /// # Errors
    /// A log-likelihood that is not finite, a device without memory; a stop that was asked for.
    pub(crate) fn score(
        self,
        inputs: &EvaluateInputs,
        decoder: &Decoder,
        parts: &mut Parts,
    ) -> Result<(ChoiceScores, Vec<ChoiceRow>)> {
        let mut pairs = Vec::new();
        let mut asked = Vec::with_capacity(self.rows.len());
        for Asked { doc, question, pairs: own } in self.rows {
            asked.push((doc, question, own.len()));
            pairs.extend(own);
        }
        let likelihoods = score(inputs, decoder, (&self.name, &pairs), parts)?;
        let mut rest = likelihoods.as_slice();
        let mut rows = Vec::with_capacity(asked.len());
        for (doc_id, (doc, question, count)) in asked.into_iter().enumerate() {
            let (found, later) = rest.split_at(count);
            rest = later;
            rows.push(row(&self.kind, (doc_id, doc), question, found));
        }
        let cut = pairs.iter().filter(|pair| pair.is_cut).count();
        Ok((summary(&self.name, &rows, [pairs.len(), cut])?, rows))
    }
}

/// Solved examples.
#[derive(Default)]
struct Shots {
    /// Of each subject, or of none, what stands before a question.
    texts: HashMap<Option<String>, String>,
    count: usize,
}

impl Shots {
    fn read(kind: &Kind, file: &std::path::Path, count: usize) -> Result<Self> {
        let mut solved: HashMap<Option<String>, Vec<String>> = HashMap::new();
        for row in file_rows(file, None)? {
            let Some(question) = kind.question(&row)? else { continue };
            let of_subject = solved.entry(question.subject.clone()).or_default();
            if of_subject.len() < count {
                of_subject.push(question.solved());
            }
        }
        solved.retain(|_, of_subject| of_subject.len() == count);
        let texts = solved.into_iter().map(|(subject, solved)| (subject, solved.concat())).collect();
        Ok(Self { texts, count })
    }

    /// What stands before a question of a row.
    fn before(&self, row: &FileRow, question: &Question) -> Result<&str> {
        if self.count == 0 {
            return Ok("");
        }
        let found = self.texts.get(&question.subject).ok_or_else(|| {
            let subject = question.subject.as_ref().map(|subject| format!(" of subject `{subject}`"));
            let problem =
                format!("expected {} shots{}, found fewer", self.count, subject.unwrap_or_default());
            row.error(problem, "`shots_file` needs as many rows, of each subject if there are any")
        })?;
        Ok(found)
    }
}

/// A row with its question in tokens; none where there is nothing to compare.
fn ask(kind: &Kind, shots: &Shots, encoder: &Encoder, row: &FileRow) -> Result<Option<Asked>> {
    let Some(mut question) = kind.question(row)? else { return Ok(None) };
    question.description.push_str(shots.before(row, &question)?);
    let encode = |(choice, continuation): (usize, &String)| -> Result<Pair> {
        let context = [&question.description, question.context(choice)].concat();
        let pair = match kind {
            Kind::Factor => encoder.last_tokens(&context, continuation),
            _ => encoder.pair(&context, continuation),
        };
        pair.map_err(|error| match error {
            NoPair::Texts(problem, hint) => row.error(problem, hint).into(),
            NoPair::Tokenizer(error) => error.into(),
        })
    };
    let pairs = question.continuations.iter().enumerate().map(encode).collect::<Result<_>>()?;
    let json = serde_json::to_string(&row.columns).expect("values are JSON");
    let key = blake3::hash(json.as_bytes()).to_hex()[..KEY_DIGITS].to_owned();
    Ok(Some(Asked { doc: Document { key, source: Some(row.source()) }, question, pairs }))
}

fn row(kind: &Kind, (doc_id, doc): (usize, Document), question: Question, found: &[Likelihood]) -> ChoiceRow {
    let request = |(index, continuation): (usize, &String)| {
        let arg_0 = [&question.description, question.context(index)].concat();
        (format!("gen_args_{index}"), ChoiceRequest { arg_0, arg_1: continuation.clone() })
    };
    let scores = Scores::of(kind, &question, found);
    let (right, choices) = (question.gold.len(), question.choices.len());
    let answers: Vec<(f64, bool)> = found.iter().map(|one| (one.log_prob, one.is_greedy)).collect();
    let has = |name: &&&str| scores.get(name).is_some();
    ChoiceRow {
        doc_id,
        doc,
        document: question.document.clone(),
        arguments: question.continuations.iter().enumerate().map(request).collect(),
        resps: answers.iter().map(|&answer| [answer]).collect(),
        filtered_resps: answers,
        tokens: found.iter().map(|one| one.tokens).collect(),
        pairs: matches!(kind, Kind::Fib(_)).then(|| right * (choices - right)),
        metrics: Scores::NAMES.iter().filter(has).map(|&name| name.to_owned()).collect(),
        target: match question.gold[..] {
            [one] => Target::One(one),
            _ => Target::Several(question.gold),
        },
        scores,
    }
}

/// Means over all rows, with intervals by document.
fn summary(name: &str, rows: &[ChoiceRow], [requests, cut]: [usize; 2]) -> Result<ChoiceScores> {
    let documents = documents(rows);
    let mut metrics = Vec::new();
    for metric in Scores::NAMES {
        let weighted: Option<Vec<(f64, f64)>> = rows.iter().map(|row| row.weighted(metric)).collect();
        let Some(weighted) = weighted else { continue };
        let (sums, weights): (Vec<f64>, Vec<f64>) = weighted.into_iter().unzip();
        let refused = |error| refused(&format!("task `{name}` {metric}"), error);
        let parts = documents.weighted_parts(&sums, &weights).map_err(refused)?;
        let value = sums.iter().sum::<f64>() / weights.iter().sum::<f64>();
        let (standard_error, interval) = match estimate(&parts, &Resampling::default()) {
            Ok(found) => (Some(found.standard_error), Some(found.interval)),
            Err(BadValues::TooFew { .. }) => (None, None),
            Err(error) => return Err(refused(error).into()),
        };
        metrics.push(Metric { metric: metric.to_owned(), value, standard_error, interval });
    }
    Ok(ChoiceScores { documents: documents.count(), requests, cut, metrics })
}

/// Which document each row is of.
pub(crate) fn documents(rows: &[ChoiceRow]) -> Documents {
    let names: Vec<&str> = rows.iter().map(ChoiceRow::document).collect();
    Documents::of(&names)
}
