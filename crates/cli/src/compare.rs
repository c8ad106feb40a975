//! `softshard compare`: results on the same rows, each beside the first, with what may be said of their differences.

use std::{path::PathBuf, sync::Arc};

use anyhow::Result;
use clap::Args;
use softshard_evaluate::{
    Compared, Line, Margins, Scored, metrics,
    statistics::{Interval, Resampling, Word},
};
use softshard_labels::visible_line;

use crate::{recipe::local, stdout::print_json, table::ruled};

/// Arguments of `compare`.
#[derive(Args)]
pub(crate) struct Compare {
    /// The result that the others are compared with: its folder, evaluations/NAME, or the JSON of one task in it; of several
    /// seeds a,b,c
    #[arg(value_parser = seeds)]
    baseline: Seeds,
    /// Other results of the same rows
    #[arg(value_parser = seeds, required = true)]
    candidates: Vec<Seeds>,
    /// A difference below which two are equal, in units of the metric, as rouge_l=0.01; for each metric one
    #[arg(long = "margin", value_name = "METRIC=DIFFERENCE", value_parser = margin)]
    margins: Vec<(String, f64)>,
    /// How often documents are drawn for an interval
    #[arg(long, default_value_t = Resampling::default().draws, value_name = "N")]
    draws: usize,
    /// Seed of the draws
    #[arg(long, default_value_t = Resampling::default().seed, value_name = "N")]
    seed: u64,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Results of one recipe, one of each seed.
type Seeds = Arc<[PathBuf]>;

fn seeds(text: &str) -> Result<Seeds, String> {
    text.split(',').map(local).collect()
}

fn margin(text: &str) -> Result<(String, f64), String> {
    let expected = || format!("expected METRIC=DIFFERENCE, METRIC one of {}", metrics().join(", "));
    let (metric, value) = text.split_once('=').ok_or_else(expected)?;
    if !metrics().contains(&metric) {
        return Err(expected());
    }
    match value.parse::<f64>() {
        Ok(value) if value.is_finite() && value > 0.0 => Ok((metric.to_owned(), value)),
        _ => Err(format!("expected a number above 0, found {value:?}")),
    }
}

/// Prints a table for each result that is compared with the first, and each task that both have.
///
/// # Errors
/// A result that cannot be read, or is of other rows or settings; fewer than two documents.
pub(crate) fn compare(options: &Compare) -> Result<()> {
    let margins: Margins = options.margins.iter().cloned().collect();
    let resampling = Resampling { draws: options.draws, seed: options.seed, ..Resampling::default() };
    let open = |seeds: &Seeds| seeds.iter().map(|result| Scored::open(result)).collect::<Result<Vec<_>>>();
    let baseline = open(&options.baseline)?;
    let against =
        |candidate: &Seeds| softshard_evaluate::compare(&baseline, &open(candidate)?, &resampling, &margins);
    let found = options.candidates.iter().map(against).collect::<Result<Vec<Vec<Compared>>>>()?.concat();
    if options.json {
        return print_json(&found);
    }
    for (index, compared) in found.iter().enumerate() {
        if index > 0 {
            println!();
        }
        say(compared);
    }
    Ok(())
}

fn say(compared: &Compared) {
    let Compared { baseline, candidate, rows, documents, metrics, not_available, .. } = compared;
    let line =
        format!("{} beside {}, {rows}, {documents} documents", candidate.join(", "), baseline.join(", "));
    println!("{}", visible_line(&line));
    let column = |names: &[String]| match names {
        [one] => one.clone(),
        [first, others @ ..] => format!("{first} +{}", others.len()),
        [] => String::new(),
    };
    let (baseline, candidate) = (&*column(baseline), &*column(candidate));
    let header = ["", baseline, candidate, "difference", "95 % interval", "p", "", "would see"];
    let header = header.map(str::to_owned).to_vec();
    let rows: Vec<Vec<String>> = [header].into_iter().chain(metrics.iter().map(cells)).collect();
    println!("{}", ruled(&rows));
    not_available.iter().for_each(|why| println!("n/a {why}"));
    let better: Vec<&str> =
        metrics.iter().filter(|line| line.is_better_higher()).map(|line| line.metric).collect();
    let better = if better.is_empty() {
        String::new()
    } else {
        format!("; higher is better for {}", better.join(", "))
    };
    println!(
        "p: of no difference, adjusted over the table (Holm). would see: the difference seen 80 times in 100{better}"
    );
}

fn cells(line: &Line) -> Vec<String> {
    let digits = |value: f64| format!("{value:.4}");
    let signed = |value: f64| format!("{value:+.4}");
    let Interval { lower, upper } = line.interval;
    let word = match line.word {
        Word::Win => "win",
        Word::Loss => "loss",
        Word::Tie => "tie",
        Word::Equal => "equal",
    };
    let smallest = line.smallest_difference;
    vec![
        line.metric.to_owned(),
        digits(line.baseline),
        digits(line.candidate),
        signed(line.difference),
        format!("[{}, {}]", signed(lower), signed(upper)),
        line.p_holm.map_or("-".to_owned(), digits),
        word.to_owned(),
        smallest.map_or("-".to_owned(), digits),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn margins_name_a_metric_and_a_number() {
        assert_eq!(margin("rouge_l=0.01"), Ok(("rouge_l".to_owned(), 0.01)));
        for bad in ["rouge_l", "rouge_l=0", "rouge_l=NaN", "rouge_l=-1", "rouge_l=x"] {
            assert!(margin(bad).is_err(), "{bad}");
        }
        let found = margin("rouge=0.1").unwrap_err();
        assert!(found.contains("METRIC one of answered, rouge1"), "{found}");
    }
}
