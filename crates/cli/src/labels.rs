//! `softshard labels`: what a team asks of a label dataset that it was given.

use std::sync::atomic::AtomicBool;

use anyhow::Result;
use serde::Serialize;
use softshard_labels::{
    Error, LabelDataset, LabelDiff, LabelStats, ReadLimits, Spread, verify as verify_labels,
};

use crate::{
    arguments::{Dataset, Diff, Labels},
    inspect::inspect,
    progress::{self, grouped},
    table::{aligned, bar},
};

/// Sequences that `diff` names.
const SHOWN: usize = 10;
/// Cells of the longest bar.
const BAR: u8 = 32;

/// Runs one of the commands.
///
/// # Errors
/// Bad data (exit code 3), which is also how `verify` and `diff` end when they find something.
pub(crate) fn run(command: &Labels, stop: &AtomicBool) -> Result<()> {
    match command {
        Labels::Verify(dataset) => verify(dataset, stop),
        Labels::Stats(dataset) => stats(dataset, stop),
        Labels::Inspect(options) => inspect(options),
        Labels::Diff(options) => diff(options, stop),
    }
}

fn print_json(value: &impl Serialize) -> Result<()> {
    progress::leave();
    println!("{}", serde_json::to_string_pretty(value)?);
    Ok(())
}

fn verify(Dataset { dir, json }: &Dataset, stop: &AtomicBool) -> Result<()> {
    let found = verify_labels(dir, &ReadLimits::default(), stop)?;
    progress::leave();
    if *json {
        print_json(&found)?;
    } else {
        for problem in &found.problems {
            println!("{problem}");
        }
    }
    if !found.problems.is_empty() {
        let place = format!("`{}`", dir.display());
        let count = match found.problems.len() {
            1 => "1 problem".to_owned(),
            count => format!("{} problems", number(count)),
        };
        let hint = "copy the shards that are named again, or write them again";
        return Err(Error::bad(place, "sound labels", count).hint(hint).into());
    }
    if !json {
        println!(
            "sound: {} shards, {} sequences, {} labelled tokens, {} bytes; every hash and every row is right",
            number(found.shards),
            count(found.rows),
            count(found.labelled_tokens),
            count(found.bytes)
        );
    }
    Ok(())
}

fn stats(Dataset { dir, json }: &Dataset, stop: &AtomicBool) -> Result<()> {
    let dataset = LabelDataset::open(dir)?;
    let stats = LabelStats::of(&dataset, stop)?;
    if *json {
        return print_json(&stats);
    }
    let per_token = |bytes: u64| float(bytes) / float(stats.labelled_tokens);
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
            row("bytes per labelled token", format!("{:.2}", per_token(stats.bytes))),
        ])
    );

    println!("\nColumns");
    let header = ["column", "bytes", "share", "per labelled token", "compressed to", ""].map(str::to_owned);
    let columns = stats.columns.iter().map(|column| {
        let share = float(column.bytes) / float(stats.bytes);
        vec![
            column.name.clone(),
            count(column.bytes),
            percent(share),
            format!("{:.2}", per_token(column.bytes)),
            percent(float(column.bytes) / float(column.uncompressed_bytes.max(1))),
            bar_column(share),
        ]
    });
    print!("{}", aligned(&[Vec::from(header)].into_iter().chain(columns).collect::<Vec<_>>()));

    println!("\nEntropy of the teacher, nats");
    print_spread(&stats.entropy_nats, |value| format!("{value:.2}"));
    println!("\nRetained mass");
    print_spread(&stats.retained_mass, |value| format!("{value:.4}"));
    println!("\nEntries per position");
    print_spread(&stats.entries_per_position, |value| format!("{value:.0}"));
    print_teacher(&stats);
    Ok(())
}

fn print_teacher(stats: &LabelStats) {
    println!("\nTeacher against the gold tokens");
    let teacher = &stats.teacher;
    let row = |name: &str, value: String| vec![name.to_owned(), value];
    print!(
        "{}",
        aligned(&[
            row("top-1 accuracy", percent(teacher.top_1_accuracy)),
            row("mean confidence", percent(teacher.confidence)),
            row("calibration error (ECE, 15 bins)", percent(teacher.expected_calibration_error)),
            row("gold tokens among the entries", percent(stats.gold_kept)),
            row("negative log-likelihood, nats", format!("{:.4}", teacher.gold_nll_nats)),
        ])
    );
    println!();
    let header = ["confidence", "positions", "mean", "right", ""].map(str::to_owned);
    let bins = teacher.calibration.iter().filter(|bin| bin.count > 0).map(|bin| {
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

fn diff(options: &Diff, stop: &AtomicBool) -> Result<()> {
    let (left, right) = (LabelDataset::open(&options.left)?, LabelDataset::open(&options.right)?);
    let found = LabelDiff::of(&left, &right, stop)?;
    if options.json {
        print_json(&found)?;
    } else {
        print_diff(&found);
    }
    if found.interchangeable() {
        return Ok(());
    }
    let place = format!("`{}`", options.right.display());
    let expected = format!("labels that can stand for `{}`", options.left.display());
    let keys = found.plan.iter().filter(|key| !key.layout_only).count();
    let alone = found.only_left.len() + found.only_right.len();
    let summary = format!(
        "plan keys that differ: {}, sequences that differ: {}, on one side alone: {}",
        number(keys),
        number(found.different.len()),
        number(alone)
    );
    Err(Error::bad(place, expected, summary).into())
}

fn print_diff(found: &LabelDiff) {
    if !found.plan.is_empty() {
        println!("Plan");
    }
    for key in &found.plan {
        let note = if key.layout_only { "  (layout only)" } else { "" };
        println!("  {}{note}\n    left   {}\n    right  {}", key.key, key.left, key.right);
    }
    println!("Sequences");
    let row = |name: &str, value: usize| vec![name.to_owned(), number(value)];
    print!(
        "{}",
        aligned(&[
            row("left", found.sequences[0]),
            row("right", found.sequences[1]),
            row("equal", found.equal),
            row("different", found.different.len()),
            row("on the left alone", found.only_left.len()),
            row("on the right alone", found.only_right.len()),
        ])
    );
    for (side, keys) in [("left", &found.only_left), ("right", &found.only_right)] {
        for key in keys.iter().take(SHOWN) {
            println!("  {side} alone: {key}");
        }
    }
    if found.different.is_empty() {
        println!("{}", if found.interchangeable() { "interchangeable" } else { "not interchangeable" });
        return;
    }
    let mut worst: Vec<_> = found.different.iter().collect();
    worst.sort_by(|a, b| b.max_log_prob.total_cmp(&a.max_log_prob));
    println!("The greatest differences, nats");
    let header = [
        "sequence",
        "left row",
        "right row",
        "max |Δ log_prob|",
        "max |Δ gold|",
        "other tokens at",
        "columns",
    ];
    let rows = worst.iter().take(SHOWN).map(|sequence| {
        vec![
            sequence.key.clone(),
            sequence.rows[0].to_string(),
            sequence.rows[1].to_string(),
            format!("{:.6}", sequence.max_log_prob),
            format!("{:.6}", sequence.max_gold_log_prob),
            number(sequence.positions_with_other_tokens),
            sequence.columns.join(" "),
        ]
    });
    let rows = [header.map(str::to_owned).to_vec()].into_iter().chain(rows);
    print!("{}", aligned(&rows.collect::<Vec<_>>()));
    println!("not interchangeable");
}

/// A bar padded to its column, so that it starts where the others do.
fn bar_column(share: f64) -> String {
    format!("{:<width$}", bar(share, BAR), width = usize::from(BAR))
}

fn percent(share: f64) -> String {
    format!("{:.2} %", 100.0 * share)
}

fn number(count: usize) -> String {
    self::count(u64::try_from(count).expect("a count fits 64 bits"))
}

fn count(count: u64) -> String {
    grouped(float(count))
}

#[expect(clippy::cast_precision_loss, reason = "for people")]
fn float(count: u64) -> f64 {
    count as f64
}
