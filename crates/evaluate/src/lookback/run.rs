//! Reading judged answers with a model, and what comes of it.

use std::{
    io::{self, ErrorKind},
    ops::Range,
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
};

use anyhow::Result;
use burn::tensor::Device;
use serde::{Deserialize, Serialize};
use serde_json::json;
use softshard_labels::{Artefact, Error, Observer, Progress, Provenance};
use softshard_model::{Decoder, LoadOptions, adapter_blake3, config_blake3, device_kind, weights_blake3};
use softshard_prepare::Tokenizer;

use super::{
    Lookback, PromptTemplate,
    folds::{fit, folds, held_out},
    ratios::{Laid, mean, ratios},
    spans::{Spans, whole, windows},
};
use crate::{
    Copying, FLOORS, Judged, Judgement, copying,
    partial::{Header, Parts, Places},
    read_judged,
    statistics::{Auroc, BadValues, Documents, Estimate, Resampling, auroc, estimate, number},
};

/// Answers to one document that are read together.
const MOST_AT_ONCE: usize = 32;
/// A span or window counts as factual from here on.
const FACTUAL: f64 = 0.5;

/// A model, answers, and where the result goes.
pub struct Inputs<'a> {
    /// Hugging Face folder of the model, with its tokenizer.
    pub model: &'a Path,
    /// PEFT adapter over it.
    pub adapter: Option<&'a Path>,
    /// JSON lines: [`read_judged`] has their forms.
    pub data: &'a Path,
    /// Documents that are read, the first ones; all unless given.
    pub documents: Option<usize>,
    /// Receives the result, `NAME.json`, and beside it `NAME.rows.jsonl`.
    pub output: &'a Path,
    /// Names of differences that are taken.
    pub accept: &'a [String],
    /// Where the model runs.
    pub device: &'a Device,
    /// Set to stop: what was read is kept.
    pub stop: &'a AtomicBool,
    /// Sees how far it is.
    pub observer: &'a dyn Observer,
    /// How documents are drawn for intervals, and with the same seed into folds.
    pub resampling: Resampling,
}

/// How well factual spans or windows are told from others.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Detection {
    /// By what.
    pub by: String,
    /// Area under the ROC curve; a factual one should have the higher score.
    pub auroc: Auroc,
}

/// What was learnt, and how well it does on documents that it was not learnt from.
#[derive(Debug, Clone, Serialize)]
pub struct Trained {
    /// Documents.
    pub documents: usize,
    /// Answers that were read.
    pub answers: usize,
    /// Answers without a text or a judgement: left out.
    pub left_out: usize,
    /// Texts whose document was cut at its end, as the model's context is too short.
    pub cut: usize,
    /// By the classifiers, and by the plain mean of all ratios.
    pub detections: Vec<Detection>,
}

/// What a classifier says of answers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Scores {
    /// Documents.
    pub documents: usize,
    /// Answers that were read.
    pub answers: usize,
    /// Answers without a text: never taken for factual, and in no rate.
    pub empty: usize,
    /// Texts whose document was cut at its end.
    pub cut: usize,
    /// Share of answers that are taken for factual as a whole.
    pub answers_factual: Rate,
    /// Share of windows that are.
    pub windows_factual: Rate,
    /// How well judged ones are told apart; empty where people judged none, or all alike.
    pub detections: Vec<Detection>,
    /// Which model, which classifier, which answers.
    pub provenance: Provenance,
}

/// A share by document; none of fewer than two documents.
pub type Rate = Option<Estimate>;

/// A row of the result.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AnswerScore {
    /// The document.
    pub doc_id: String,
    /// The answer.
    pub answer: String,
    /// What people say of it.
    pub factual: Option<bool>,
    /// Probability of each span (before a classifier that learns from it, of one that does not).
    pub spans: Vec<f64>,
    /// Probability of each window.
    pub windows: Vec<f64>,
}

/// An answer that was read.
struct Read {
    judged: Judged,
    characters: Vec<Range<usize>>,
    ratios: Vec<Vec<f32>>,
}

impl Read {
    fn factual(&self) -> Option<bool> {
        self.judged.judgement.map(Judgement::is_factual)
    }

    /// One span that is scored by something else than features.
    fn as_a_whole(&self) -> Spans {
        Spans { features: vec![Vec::new()], factual: vec![self.factual()] }
    }
}

/// Reads judged answers with a model and learns to tell which of its spans are factual; writes the classifier, and the
/// probabilities that classifiers of other folds gave to each span.
///
/// # Errors
/// Fewer than two documents or `folds`, answers of one kind only, a text that does not fit, I/O; a stop that was asked for is
/// an [`ErrorKind::Interrupted`].
pub fn train(
    inputs: &Inputs,
    template: &str,
    (window, fold_count, c): (usize, usize, f64),
) -> Result<Trained> {
    let prompt = PromptTemplate::parse(template)?;
    let judged = read_judged(inputs.data, inputs.documents)?;
    let total = judged.len();
    let judged: Vec<Judged> =
        judged.into_iter().filter(|one| one.judgement.is_some() && !one.answer.trim().is_empty()).collect();
    let left_out = total - judged.len();
    let documents = documents_of(judged.iter());
    if documents.count() < fold_count.max(2) {
        let expected = format_args!("at least {} documents with judged answers", fold_count.max(2));
        return Err(Error::bad(format!("`{}`", inputs.data.display()), expected, documents.count()).into());
    }
    let names = names(&judged);
    let mut provenance = provenance(inputs)?;
    let recipe = json!({ "template": template, "window": window, "folds": fold_count, "c": c, "seed": inputs.resampling.seed });
    provenance.recipe.insert("lookback".to_owned(), recipe);
    let places = places(inputs.output);
    let header = Header { provenance, max_tokens_per_batch: 0 };
    let mut parts = Parts::open(&places, &header)?;
    let (read, shape, cut) = read_all(inputs, judged, &prompt, &mut parts)?;
    let whole: Vec<Spans> = read.iter().map(|one| whole(&one.judged, &one.ratios, &one.characters)).collect();
    let windowed: Vec<Spans> =
        read.iter().map(|one| windows(&one.judged, &one.ratios, &one.characters, window)).collect();

    let of_documents = folds(&names, fold_count, inputs.resampling.seed);
    let folds: Vec<usize> = documents.of_rows().iter().map(|&document| of_documents[document]).collect();
    let of_one_kind = |found: BadValues| {
        let place = format!("`{}`", inputs.data.display());
        let expected = format_args!("factual answers and others outside of each of {fold_count} folds");
        Error::bad(place, expected, format_args!("otherwise: {found}"))
            .hint("judge more, or take fewer folds")
    };
    let of_spans = held_out(&whole, &folds, fold_count, c).map_err(of_one_kind)?;
    let of_windows = held_out(&windowed, &folds, fold_count, c).map_err(of_one_kind)?;
    let plain: Vec<Vec<f64>> =
        whole.iter().map(|spans| spans.features.iter().map(|f| average(f)).collect()).collect();
    let mut detections = Vec::new();
    for (by, spans, scores) in [
        ("spans", &whole, &of_spans),
        ("mean ratio of spans", &whole, &plain),
        ("windows", &windowed, &of_windows),
    ] {
        detections.extend(detection(by, &read, spans, scores, &inputs.resampling)?);
    }
    let answers: Vec<Vec<f64>> = of_windows.iter().map(|windows| vec![average(windows)]).collect();
    let judgements: Vec<Spans> = read.iter().map(Read::as_a_whole).collect();
    detections.extend(detection(
        "answers, mean of windows",
        &read,
        &judgements,
        &answers,
        &inputs.resampling,
    )?);
    detections.extend(floors(&read, &judgements, &inputs.resampling)?);

    let found = Lookback {
        format: Lookback::FORMAT.to_owned(),
        version: Lookback::VERSION,
        template: template.to_owned(),
        window,
        c,
        layers: shape[0],
        heads: shape[1],
        spans: fit(&whole, c)?,
        windows: fit(&windowed, c)?,
        provenance: header.provenance,
    };
    let rows = rows(&read, &of_spans, &of_windows)?;
    parts.commit(&places, &serde_json::to_vec_pretty(&found)?, &rows)?;
    Ok(Trained { documents: documents.count(), answers: read.len(), left_out, cut, detections })
}

/// Reads answers with a model and says how many of them its classifier takes for factual.
///
/// # Errors
/// A classifier of another model, no answers, a text that does not fit, I/O; a stop that was asked for is an
/// [`ErrorKind::Interrupted`].
pub fn score(inputs: &Inputs, classifier: &Path) -> Result<Scores> {
    let lookback = Lookback::read(classifier)?;
    let prompt = PromptTemplate::parse(&lookback.template)?;
    let judged = read_judged(inputs.data, inputs.documents)?;
    let total = judged.len();
    let judged: Vec<Judged> = judged.into_iter().filter(|one| !one.answer.trim().is_empty()).collect();
    let empty = total - judged.len();
    let mut provenance = provenance(inputs)?;
    let place = format!("`{}`", classifier.display());
    provenance.accept(lookback.check_model(&place, &provenance, inputs.accept)?);
    provenance.input("lookback", blake3::hash(&fs_err::read(classifier)?).to_hex().to_string());
    let places = places(inputs.output);
    let header = Header { provenance, max_tokens_per_batch: 0 };
    let mut parts = Parts::open(&places, &header)?;
    let (read, shape, cut) = read_all(inputs, judged, &prompt, &mut parts)?;
    if shape != [lookback.layers, lookback.heads] && !read.is_empty() {
        let [layers, heads] = shape;
        let expected = format_args!("{} layers with {} heads", lookback.layers, lookback.heads);
        return Err(Error::bad(place, expected, format_args!("{layers} with {heads}")).into());
    }

    let windowed: Vec<Spans> =
        read.iter().map(|one| windows(&one.judged, &one.ratios, &one.characters, lookback.window)).collect();
    let of_answers: Vec<Vec<f64>> =
        read.iter().map(|one| vec![lookback.spans.probability(&mean(&one.ratios))]).collect();
    let probabilities =
        |spans: &Spans| spans.features.iter().map(|row| lookback.windows.probability(row)).collect();
    let of_windows: Vec<Vec<f64>> = windowed.iter().map(probabilities).collect();
    let judgements: Vec<Spans> = read.iter().map(Read::as_a_whole).collect();
    let mut detections = Vec::new();
    for (by, spans, scores) in [("answers", &judgements, &of_answers), ("windows", &windowed, &of_windows)] {
        detections.extend(detection(by, &read, spans, scores, &inputs.resampling)?);
    }
    detections.extend(floors(&read, &judgements, &inputs.resampling)?);
    let rate = |scores: &[Vec<f64>]| rate(&read, scores, &inputs.resampling);
    let found = Scores {
        documents: documents_of(read.iter().map(|one| &one.judged)).count(),
        answers: read.len(),
        empty,
        cut,
        answers_factual: rate(&of_answers)?,
        windows_factual: rate(&of_windows)?,
        detections,
        provenance: header.provenance,
    };
    let rows = rows(&read, &of_answers, &of_windows)?;
    parts.commit(&places, &serde_json::to_vec_pretty(&found)?, &rows)?;
    Ok(found)
}

/// What decides what is read.
fn provenance(inputs: &Inputs) -> Result<Provenance> {
    let mut this = Provenance::new(Artefact::Evaluation);
    this.input("model.config", config_blake3(inputs.model)?);
    this.input("model.weights", weights_blake3(inputs.model)?);
    let adapter = inputs.adapter.map(adapter_blake3).transpose()?;
    this.input("adapter", adapter.as_deref().unwrap_or(Provenance::NONE));
    this.input("data", blake3::hash(&fs_err::read(inputs.data)?).to_hex().to_string());
    this.recipe.insert("documents".to_owned(), json!(inputs.documents));
    this.dtype = Some(LoadOptions::default().dtype());
    this.devices = [device_kind(inputs.device)].into();
    Ok(this)
}

/// `folder/NAME.json` and what stands beside it.
fn places(output: &Path) -> Places {
    let name = output.file_stem().unwrap_or_default().to_string_lossy();
    Places::of(output.parent().unwrap_or(Path::new("")), &name)
}

/// The ratios of all answers, those that were kept and those that are made now; layers and heads; texts that were cut.
fn read_all(
    inputs: &Inputs,
    judged: Vec<Judged>,
    prompt: &PromptTemplate,
    parts: &mut Parts,
) -> Result<(Vec<Read>, [usize; 2], usize)> {
    let tokenizer = Tokenizer::load(inputs.model)?;
    let mut decoder = Decoder::load_with(inputs.model, inputs.device, &LoadOptions::default())?;
    if let Some(adapter) = inputs.adapter {
        decoder.load_adapter(adapter)?;
    }
    tokenizer.fingerprint().expect_fits(inputs.model, decoder.config().vocab_size)?;
    let config = decoder.config();
    let (limit, shape) = (config.context(), [config.num_hidden_layers, config.num_attention_heads]);
    let total = judged.len() as u64;
    let (mut read, mut cut, mut tokens) = (Vec::with_capacity(judged.len()), 0, 0);
    let mut rest = judged.into_iter().peekable();
    while let Some(first) = rest.next() {
        if inputs.stop.load(Ordering::Relaxed) {
            return Err(io::Error::new(ErrorKind::Interrupted, "lookback stopped\nhint: run again").into());
        }
        let mut group = vec![Laid::new(&first, prompt, &tokenizer, limit)?];
        let mut answers = vec![first];
        while let Some(next) = rest.peek() {
            let laid = Laid::new(next, prompt, &tokenizer, limit)?;
            if group.len() == MOST_AT_ONCE || laid.before() != group[0].before() {
                break;
            }
            group.push(laid);
            answers.extend(rest.next());
        }
        let found = parts.next(|| ratios(&group, &decoder))?;
        for ((judged, laid), ratios) in answers.into_iter().zip(group).zip(found) {
            if ratios.iter().flatten().any(|ratio| !ratio.is_finite()) {
                let place = format!("answer to document `{}`", judged.id);
                return Err(Error::bad(place, "finite attention", "NaN").into());
            }
            cut += usize::from(laid.cut > 0);
            tokens += laid.ids.len() as u64;
            read.push(Read { judged, characters: laid.characters, ratios });
        }
        let progress = Progress { stage: "lookback", total, unit: "answers", ..Progress::default() };
        inputs.observer.progress(&Progress { done: read.len() as u64, tokens: Some(tokens), ..progress });
    }
    Ok((read, shape, cut))
}

/// The documents, in the order of their first answers.
fn names(judged: &[Judged]) -> Vec<String> {
    let mut seen = std::collections::HashSet::new();
    judged.iter().filter(|one| seen.insert(&one.id)).map(|one| one.id.clone()).collect()
}

fn documents_of<'a>(judged: impl Iterator<Item = &'a Judged>) -> Documents {
    Documents::of(&judged.map(|one| &*one.id).collect::<Vec<_>>())
}

fn average(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / number(values.len())
}

/// How well judged spans are told apart; none where all of them are alike.
fn detection(
    by: &str,
    read: &[Read],
    spans: &[Spans],
    scores: &[Vec<f64>],
    resampling: &Resampling,
) -> Result<Option<Detection>> {
    let (mut values, mut factual, mut documents) = (Vec::new(), Vec::new(), Vec::new());
    for ((one, spans), scores) in read.iter().zip(spans).zip(scores) {
        for (score, judgement) in scores.iter().zip(&spans.factual) {
            if let Some(judgement) = judgement {
                values.push(*score);
                factual.push(*judgement);
                documents.push(&*one.judged.id);
            }
        }
    }
    let documents = Documents::of(&documents);
    let both = factual.contains(&true) && factual.contains(&false);
    if !both || documents.count() < 2 {
        return Ok(None);
    }
    let auroc = auroc(&values, &factual, &documents, resampling)?;
    Ok(Some(Detection { by: by.to_owned(), auroc }))
}

/// The share of scores that are taken for factual, by document.
fn rate(read: &[Read], scores: &[Vec<f64>], resampling: &Resampling) -> Result<Rate> {
    let documents = documents_of(read.iter().map(|one| &one.judged));
    if documents.count() < 2 {
        return Ok(None);
    }
    let factual: Vec<f64> =
        scores.iter().map(|of| number(of.iter().filter(|&&score| score >= FACTUAL).count())).collect();
    let counts: Vec<f64> = scores.iter().map(|of| number(of.len())).collect();
    Ok(Some(estimate(&documents.weighted_parts(&factual, &counts)?, resampling)?))
}

/// How well answers are told apart by what of them stands in their documents: the floor of any judge.
fn floors(read: &[Read], judgements: &[Spans], resampling: &Resampling) -> Result<Vec<Detection>> {
    let copied: Vec<Copying> =
        read.iter().map(|one| copying(&one.judged.document, &one.judged.answer)).collect();
    let mut found = Vec::new();
    for (name, share) in FLOORS {
        let by = &format!("answers, {name}");
        // An answer that is too short to have any is copied as far as anybody can say.
        let scores: Vec<Vec<f64>> = copied.iter().map(|one| vec![share(one).unwrap_or(1.0)]).collect();
        found.extend(detection(by, read, judgements, &scores, resampling)?);
    }
    Ok(found)
}

fn rows(read: &[Read], spans: &[Vec<f64>], windows: &[Vec<f64>]) -> Result<Vec<u8>> {
    let mut lines = Vec::new();
    for ((one, spans), windows) in read.iter().zip(spans).zip(windows) {
        let Judged { id, answer, .. } = &one.judged;
        let row = AnswerScore {
            doc_id: id.clone(),
            answer: answer.clone(),
            factual: one.factual(),
            spans: spans.clone(),
            windows: windows.clone(),
        };
        serde_json::to_writer(&mut lines, &row)?;
        lines.push(b'\n');
    }
    Ok(lines)
}
