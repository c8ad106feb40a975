//! `softshard labels stats`.

use std::{path::PathBuf, sync::atomic::AtomicBool};

use anyhow::Result;
use clap::Args;
use softshard_labels::{LabelDataset, LabelStats, Spread};

use super::{
    page::{self, per_token},
    verify::Dataset,
};
use crate::{
    numbers::{count, float, number, percent},
    stdout::print_json,
    table::{aligned, bar},
};

/// Arguments of `labels stats`.
#[derive(Args)]
pub(crate) struct Stats {
    /// The dataset
    #[command(flatten)]
    dataset: Dataset,
    /// Write them as one page with plots, which needs no other file
    #[arg(long, value_name = "FILE")]
    pub(crate) html: Option<PathBuf>,
}

/// Cells of the longest bar.
const BAR: u8 = 32;

/// Prints sizes, histograms and how good the teacher is; writes them as a page where one is asked for.
pub(super) fn stats(options: &Stats, stop: &AtomicBool) -> Result<()> {
    let Dataset { dir, json } = &options.dataset;
    let dataset = LabelDataset::open(dir)?;
    let stats = LabelStats::of(&dataset, stop)?;
    if let Some(page) = &options.html {
        fs_err::write(page, page::of(&dataset, dir, &stats))?;
    }
    if *json {
        return print_json(&stats);
    }
    print_stats(&stats);
    if let Some(page) = &options.html {
        println!("\npage: {}", page.display());
    }
    Ok(())
}

fn print_stats(stats: &LabelStats) {
    let row = |name: &str, value: String| vec![name.to_owned(), value];
    print!(
        "{}",
        aligned(&[
            row("shards", number(stats.shards)),
            row("sequences", count(stats.sequences)),
            row("tokens", count(stats.input_tokens)),
            row("labelled tokens", count(stats.labelled_tokens)),
            row("entries", count(stats.entries)),
            row("bytes", count(stats.bytes)),
            row("bytes per labelled token", format!("{:.2}", per_token(stats, stats.bytes))),
        ])
    );

    println!("\nColumns");
    let header = ["column", "bytes", "share", "per labelled token", "compressed to", ""].map(str::to_owned);
    let columns = stats.columns.iter().map(|column| {
        let share = float(column.bytes) / float(stats.bytes.max(1));
        vec![
            column.name.clone(),
            count(column.bytes),
            percent(share),
            format!("{:.2}", per_token(stats, column.bytes)),
            percent(float(column.bytes) / float(column.uncompressed_bytes.max(1))),
            bar_column(share),
        ]
    });
    print!("{}", aligned(&[Vec::from(header)].into_iter().chain(columns).collect::<Vec<_>>()));

    if let Some(entropy) = &stats.entropy_nats {
        println!("\nEntropy of the teacher, nats");
        print_spread(entropy, |value| format!("{value:.2}"));
    }
    println!("\nRetained mass");
    print_spread(&stats.retained_mass, |value| format!("{value:.4}"));
    println!("\nEntries per position");
    print_spread(&stats.entries_per_position, |value| format!("{value:.0}"));
    print_teacher(stats);
}

fn print_teacher(stats: &LabelStats) {
    println!("\nTeacher against the gold tokens");
    let row = |name: &str, value: String| vec![name.to_owned(), value];
    let calibration = stats.teacher.calibration.as_ref();
    let mut rows = Vec::new();
    if let Some(calibration) = calibration {
        rows.push(row("top-1 accuracy", percent(calibration.top_1_accuracy)));
        rows.push(row("mean confidence", percent(calibration.confidence)));
        rows.push(row("calibration error (ECE, 15 bins)", percent(calibration.expected_error)));
    }
    rows.push(row("gold tokens among the entries", percent(stats.gold_kept)));
    if let Some(nats) = stats.teacher.gold_nll_nats {
        rows.push(row("negative log-likelihood, nats", format!("{nats:.4}")));
    }
    print!("{}", aligned(&rows));
    let Some(calibration) = calibration else { return };
    println!();
    let header = ["confidence", "positions", "mean", "right", ""].map(str::to_owned);
    let bins = calibration.bins.iter().filter(|bin| bin.count > 0).map(|bin| {
        vec![
            format!("{:.2}–{:.2}", bin.lower, bin.upper),
            count(bin.count),
            percent(bin.confidence),
            percent(bin.accuracy),
            bar_column(bin.accuracy),
        ]
    });
    print!("{}", aligned(&[Vec::from(header)].into_iter().chain(bins).collect::<Vec<_>>()));
}

/// Mean, percentiles and histogram.
fn print_spread(spread: &Spread, show: impl Fn(f64) -> String) {
    let percentiles: Vec<String> = spread
        .percentiles
        .iter()
        .filter(|(percent, _)| [1, 5, 50, 95, 99].contains(*percent))
        .map(|(percent, value)| format!("p{percent} {}", show(*value)))
        .collect();
    println!(
        "  mean {}, least {}, {}, most {}",
        show(spread.mean),
        show(spread.minimum),
        percentiles.join(", "),
        show(spread.maximum)
    );
    let positions: u64 = spread.histogram.iter().map(|bin| bin.count).sum();
    let longest = spread.histogram.iter().map(|bin| bin.count).max().unwrap_or(0).max(1);
    let bins = spread.histogram.iter().skip_while(|bin| bin.count == 0).map(|bin| {
        vec![
            format!("{}–{}", show(bin.lower), show(bin.upper)),
            count(bin.count),
            percent(float(bin.count) / float(positions.max(1))),
            bar_column(float(bin.count) / float(longest)),
        ]
    });
    print!("{}", aligned(&bins.collect::<Vec<_>>()));
}

/// A bar padded to its column, so that it starts where the others do.
fn bar_column(share: f64) -> String {
    format!("{:<width$}", bar(share, BAR), width = usize::from(BAR))
}
