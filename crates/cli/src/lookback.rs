//! `softshard lookback`: whether a model looks at the document while it writes.

use std::path::{Path, PathBuf};

use anyhow::Result;
use clap::{Args, Subcommand};
use fs_err as fs;
use softshard_evaluate::{
    lookback::{Detection, Inputs, PromptTemplate, Rate, Scores, Trained, score, train},
    statistics::Resampling,
};
use softshard_labels::Error;

use crate::{
    device, doors::Accept, numbers::grouped, recipe::local, session::Session, stage::positive,
    stdout::print_json, table::ruled,
};

/// What can be done with a model's attention.
#[derive(Subcommand)]
pub(crate) enum Lookback {
    /// Learn from answers that people judged how a model's attention tells the factual ones, and how well that works
    Train(Train),
    /// Factual rate: how much of its answers a model's classifier takes for factual
    Score(Score),
}

/// What both read.
#[derive(Args)]
struct Reads {
    /// Model folder, with its tokenizer
    #[arg(long, value_name = "FOLDER", value_parser = local)]
    model: PathBuf,
    /// PEFT adapter over it
    #[arg(long, value_name = "FOLDER", value_parser = local)]
    adapter: Option<PathBuf>,
    /// JSON lines of documents with answers (docs/evaluation.md, "Factual rate")
    #[arg(long, value_name = "FILE", value_parser = local)]
    data: PathBuf,
    /// Read the first N documents only
    #[arg(long, value_name = "N", value_parser = positive)]
    documents: Option<usize>,
    /// Result to write, NAME.json; NAME.rows.jsonl beside it has a line for each answer
    #[arg(long, value_name = "FILE", value_parser = result)]
    output: PathBuf,
    /// How often documents are drawn for an interval
    #[arg(long, default_value_t = Resampling::default().draws, value_name = "N")]
    draws: usize,
    /// Seed of the draws, and of the folds
    #[arg(long, default_value_t = Resampling::default().seed, value_name = "N")]
    seed: u64,
    /// Where tensors live: cpu, or cuda:0
    #[arg(long, default_value = "cpu")]
    device: String,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// What is taken though it differs
    #[command(flatten)]
    accept: Accept,
}

/// Arguments of `lookback train`.
#[derive(Args)]
pub(crate) struct Train {
    /// What is read
    #[command(flatten)]
    reads: Reads,
    /// A prompt with `{document}` in it and `{answer}` at its end
    #[arg(long, default_value = PromptTemplate::DEFAULT, value_parser = template)]
    template: String,
    /// Tokens of a window
    #[arg(long, default_value_t = 8, value_name = "N", value_parser = positive)]
    window: usize,
    /// Parts of the documents: each is judged by what learnt from the others
    #[arg(long, default_value_t = 5, value_name = "N", value_parser = folds)]
    folds: usize,
    /// Inverse strength of the penalty of the weights
    #[arg(long, default_value_t = 1.0, value_parser = penalty)]
    c: f64,
}

/// Arguments of `lookback score`.
#[derive(Args)]
pub(crate) struct Score {
    /// What `lookback train` wrote for this model
    #[arg(value_name = "CLASSIFIER", value_parser = local)]
    classifier: PathBuf,
    /// What is read
    #[command(flatten)]
    reads: Reads,
}

fn folds(text: &str) -> Result<usize, String> {
    positive(text).ok().filter(|count| *count > 1).ok_or_else(|| "expected a whole number above 1".to_owned())
}

fn result(text: &str) -> Result<PathBuf, String> {
    let path = local(text)?;
    if path.extension().is_some_and(|extension| extension == "json") {
        return Ok(path);
    }
    Err("expected a name that ends in `.json`".to_owned())
}

fn template(text: &str) -> Result<String, String> {
    PromptTemplate::parse(text).map(|_| text.to_owned()).map_err(|error| error.to_string())
}

fn penalty(text: &str) -> Result<f64, String> {
    let number = text.parse().ok().filter(|c: &f64| c.is_finite() && *c > 0.0);
    number.ok_or_else(|| "expected a number above 0".to_owned())
}

/// Trains or scores, and says what came out.
///
/// # Errors
/// Whatever stopped it.
pub(crate) fn run(command: &Lookback, session: &Session) -> Result<()> {
    let (Lookback::Train(Train { reads, .. }) | Lookback::Score(Score { reads, .. })) = command;
    let device = device::open(&reads.device)?;
    let observer = session.observer();
    let inputs = Inputs {
        model: &reads.model,
        adapter: reads.adapter.as_deref(),
        data: &reads.data,
        documents: reads.documents,
        output: &reads.output,
        accept: &reads.accept.names,
        device: &device,
        stop: session.stop,
        observer: &observer,
        resampling: Resampling { draws: reads.draws, seed: reads.seed, ..Resampling::default() },
    };
    match command {
        Lookback::Train(Train { template, window, folds, c, .. }) => {
            let found = train(&inputs, template, (*window, *folds, *c))?;
            drop(observer);
            if reads.json { print_json(&found) } else { say_trained(&found, *folds, reads) }
        }
        Lookback::Score(Score { classifier, .. }) => {
            if same_file(classifier, &reads.output) {
                let place = format!("`--output {}`", reads.output.display());
                return Err(Error::bad(place, "another file than the classifier", "the classifier").into());
            }
            let found = score(&inputs, classifier)?;
            drop(observer);
            if reads.json { print_json(&found) } else { say_scores(&found, reads) }
        }
    }
}

fn same_file(one: &Path, other: &Path) -> bool {
    matches!((fs::canonicalize(one), fs::canonicalize(other)), (Ok(one), Ok(other)) if one == other)
}

fn count(count: usize) -> String {
    grouped(count as f64)
}

fn say_trained(found: &Trained, folds: usize, reads: &Reads) -> Result<()> {
    let Trained { documents, answers, left_out, cut, detections } = found;
    println!("{} answers to {} documents, {folds} folds by document", count(*answers), count(*documents));
    if *left_out > 0 {
        println!("  left out: {} answers without a text or a judgement", count(*left_out));
    }
    say_cut(*cut);
    say_detections(detections);
    println!("classifier: {}", reads.output.display());
    Ok(())
}

fn say_scores(found: &Scores, reads: &Reads) -> Result<()> {
    let Scores { documents, answers, empty, cut, answers_factual, windows_factual, detections, .. } = found;
    println!("{} answers to {} documents", count(*answers), count(*documents));
    if *empty > 0 {
        println!("  empty: {} answers, in no rate", count(*empty));
    }
    say_cut(*cut);
    let row = |name: &str, rate: &Rate| match rate {
        Some(rate) => vec![
            name.to_owned(),
            format!("{:.1} %", rate.value * 100.0),
            format!("[{:.1}, {:.1}]", rate.interval.lower * 100.0, rate.interval.upper * 100.0),
        ],
        None => vec![name.to_owned(), "n/a".to_owned(), "fewer than two documents".to_owned()],
    };
    let header = ["factual rate", "", "95 % interval"].map(str::to_owned).to_vec();
    println!("{}", ruled(&[header, row("answers", answers_factual), row("windows", windows_factual)]));
    say_detections(detections);
    println!("scores: {}", reads.output.display());
    Ok(())
}

fn say_cut(cut: usize) {
    if cut > 0 {
        println!(
            "  {} texts are longer than the model's context: the end of the document is left out",
            count(cut)
        );
    }
}

fn say_detections(detections: &[Detection]) {
    if detections.is_empty() {
        println!("no AUROC: people judged none, or all alike");
        return;
    }
    let header = ["told apart by", "AUROC", "95 % interval", "factual", "not"].map(str::to_owned).to_vec();
    let row = |Detection { by, auroc }: &Detection| {
        let (lower, upper) = (auroc.interval.lower, auroc.interval.upper);
        vec![
            by.clone(),
            format!("{:.3}", auroc.value),
            format!("[{lower:.3}, {upper:.3}]"),
            count(auroc.positive),
            count(auroc.negative),
        ]
    };
    let rows: Vec<Vec<String>> = [header].into_iter().chain(detections.iter().map(row)).collect();
    println!("{}", ruled(&rows));
}
