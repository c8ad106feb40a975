//! `softshard labels diff`.

use std::sync::atomic::AtomicBool;

use anyhow::Result;
use softshard_labels::{Error, LabelDataset, LabelDiff};

use crate::{
    diff::{Diff, of_plans},
    numbers::number,
    stdout::print_json,
    table::aligned,
};

/// Sequences that are named.
const SHOWN: usize = 10;

/// Prints why two datasets are not interchangeable.
pub(super) fn diff(options: &Diff, stop: &AtomicBool) -> Result<()> {
    let (left, right) = (LabelDataset::open(&options.left)?, LabelDataset::open(&options.right)?);
    let found = LabelDiff::of(&left, &right, stop)?;
    if options.json {
        print_json(&found)?;
    } else {
        print_made_from(&left, &right);
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

/// What the labels were made from otherwise, in words.
fn print_made_from(left: &LabelDataset, right: &LabelDataset) {
    let lines = of_plans(left.manifest(), right.manifest());
    if !lines.is_empty() {
        println!("Made from");
    }
    lines.iter().for_each(|line| println!("  {line}"));
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
