//! The page of `softshard labels stats --html`: one file without scripts, which needs nothing beside it.

use std::{fmt::Write, path::Path};

use softshard_labels::{Calibration, LabelDataset, LabelPlan, LabelStats, OptionalColumn, Selection, Spread};

use super::plot::{Row, Spacing, bars, histogram, reliability};
use crate::{
    numbers::{count, float, number, percent},
    page::{self, escape, figure},
};

/// The page.
pub(super) fn of(dataset: &LabelDataset, name: &Path, stats: &LabelStats) -> String {
    let plan = &dataset.manifest().plan;
    let body = [
        key_figures(stats),
        column_bars(stats),
        plots(stats, plan),
        spreads(stats, plan),
        facts(dataset, stats),
    ];
    let foot = "<code>softshard labels verify</code> checks that the files are those of the manifest.";
    let name = escape(page::name_of(name));
    page::of("Teacher labels", &name, &escape(sentence(plan)), &body.concat(), foot)
}

/// What the labels are.
fn sentence(plan: &LabelPlan) -> String {
    format!(
        "At each labelled position {}, of a teacher with a vocabulary of {}.",
        kept(&plan.selection),
        count(plan.teacher.vocab_size.into())
    )
}

/// What a selection keeps, in a sentence.
fn kept(selection: &Selection) -> String {
    let of = |count: u32| crate::numbers::count(count.into());
    match *selection {
        Selection::TopK { k } => format!("the {} most probable tokens", of(k)),
        Selection::TopP { p, k } => {
            format!("the most probable tokens up to a mass of {p}, at most {}", of(k))
        }
        Selection::Sampled { draws } => format!("the tokens of {} draws, with their counts", of(draws)),
        Selection::TopKSampled { k, draws } => {
            format!("the {} most probable tokens and {} draws from the others", of(k), of(draws))
        }
    }
}

/// What `retained_mass` is the mass of.
fn retained(selection: &Selection) -> &'static str {
    match selection {
        Selection::TopK { .. } | Selection::TopP { .. } => "probability of the kept tokens",
        Selection::Sampled { .. } => "probability of the drawn tokens",
        Selection::TopKSampled { .. } => "probability of the exact tokens",
    }
}

/// The numbers that are asked for first.
fn key_figures(stats: &LabelStats) -> String {
    let mut figures = vec![
        ("labelled tokens", count(stats.labelled_tokens), ""),
        ("bytes per labelled token", format!("{:.1}", per_token(stats, stats.bytes)), ""),
    ];
    if let Some(entropy) = &stats.entropy_nats {
        figures.push(("mean entropy", format!("{:.2}", entropy.mean), "nats"));
    }
    figures.push(("mean retained mass", format!("{:.2}", 100.0 * stats.retained_mass.mean), "%"));
    if let Some(calibration) = &stats.teacher.calibration {
        figures.push(("teacher’s top-1 accuracy", format!("{:.1}", 100.0 * calibration.top_1_accuracy), "%"));
        figures.push(("calibration error (ECE)", format!("{:.2}", 100.0 * calibration.expected_error), "%"));
    }
    if let Some(nats) = stats.teacher.gold_nll_nats {
        figures.push(("negative log-likelihood", format!("{nats:.3}"), "nats"));
    }
    let figure = |(name, value, unit): &(&str, String, &str)| {
        format!("<div><dt>{name}</dt><dd>{value} <small>{unit}</small></dd></div>\n")
    };
    format!("<dl class=\"figures\">\n{}</dl>\n", figures.iter().map(figure).collect::<String>())
}

fn column_bars(stats: &LabelStats) -> String {
    let rows = stats.columns.iter().map(|column| {
        let bytes = per_token(stats, column.bytes);
        let compressed = float(column.bytes) / float(column.uncompressed_bytes.max(1));
        // Of footers there is no other size.
        let compressed = if column.name.starts_with('(') {
            "–".to_owned()
        } else {
            format!("{:.0} %", 100.0 * compressed)
        };
        let numbers = [
            format!("{bytes:.2}"),
            format!("{:.1} %", 100.0 * float(column.bytes) / float(stats.bytes.max(1))),
            compressed,
        ];
        Row { name: column.name.clone(), value: bytes, numbers }
    });
    let caption = format!(
        "{} bytes in {}: {:.2} for each of {} labelled tokens. “Of plain” compares with the same values neither \
         encoded nor compressed.",
        count(stats.bytes),
        plural(stats.shards, "file"),
        per_token(stats, stats.bytes),
        count(stats.labelled_tokens)
    );
    let svg = bars(&rows.collect::<Vec<_>>(), ["bytes", "share", "of plain"], "bytes per labelled token");
    format!("<h2>Size</h2>\n{}", figure(" class=\"wide\"", "Columns", &caption, &svg))
}

fn plots(stats: &LabelStats, plan: &LabelPlan) -> String {
    let mut left = String::new();
    if let Some(entropy) = &stats.entropy_nats {
        let svg =
            histogram(&entropy.histogram, &Spacing::ToScale, Some(entropy.mean), "entropy, nats", |nats| {
                format!("{nats:.2}")
            });
        let caption = "Of the teacher’s full distribution at each labelled position.";
        left += &figure("", "Entropy", caption, &svg);
    }
    let seen = stats.retained_mass.histogram.iter().position(|bin| bin.count > 0).unwrap_or(0);
    let svg = histogram(
        &stats.retained_mass.histogram[seen..],
        &Spacing::Equal,
        None,
        retained(&plan.selection),
        |mass| mass.to_string(),
    );
    let caption = format!(
        "The {}, from the exact tail. The ranges are not equally wide; numbers over the bars are percent of positions.",
        retained(&plan.selection)
    );
    left += &figure("", "Retained mass", &caption, &svg);
    let (entries, mut right) = (entries(stats), String::new());
    match &stats.teacher.calibration {
        Some(calibration) => {
            left += &entries;
            right += &calibration_figure(calibration);
        }
        None => right += &entries,
    }
    format!(
        "<h2>Distributions</h2>\n<div class=\"plots\">\n<div>\n{left}</div>\n<div>\n{right}</div>\n</div>\n"
    )
}

/// Entries per position, as a sentence where all have as many.
fn entries(stats: &LabelStats) -> String {
    let spread = &stats.entries_per_position;
    if spread.minimum >= spread.maximum {
        let caption =
            format!("Each of the {} positions has {:.0}.", count(stats.labelled_tokens), spread.maximum);
        return figure("", "Entries per position", &caption, "");
    }
    let svg = histogram(&spread.histogram, &Spacing::ToScale, Some(spread.mean), "entries", whole_or_tenths);
    let caption = format!("{} entries in all.", count(stats.entries));
    figure("", "Entries per position", &caption, &svg)
}

/// `8`, `9.6`.
fn whole_or_tenths(value: f64) -> String {
    if value.fract() > 0.0 { format!("{value:.1}") } else { format!("{value:.0}") }
}

fn calibration_figure(calibration: &Calibration) -> String {
    let caption = format!(
        "The teacher’s most probable token against the token that is there, in 15 bins of equal width. Dots stand at \
         the mean confidence of a bin; whiskers are 95 % intervals (Wilson); on the dashed line confidence is right. \
         Right {}, mean confidence {}, expected calibration error {}.",
        percent(calibration.top_1_accuracy),
        percent(calibration.confidence),
        percent(calibration.expected_error)
    );
    figure("", "Reliability", &caption, &reliability(&calibration.bins))
}

/// Means and percentiles.
fn spreads(stats: &LabelStats, plan: &LabelPlan) -> String {
    let retained = format!("{} (retained mass)", retained(&plan.selection));
    let retained = retained[..1].to_uppercase() + &retained[1..];
    let mut rows = String::new();
    let mut row = |name: &str, spread: &Spread, digits: usize| {
        let values = [spread.minimum].into_iter().chain(spread.percentiles.values().copied());
        let cells: String =
            values.chain([spread.maximum]).map(|value| format!("<td>{value:.digits$}</td>")).collect();
        let mean = format!("<td>{:.*}</td>", digits.max(1), spread.mean);
        writeln!(rows, "<tr><th>{name}</th>{mean}{cells}</tr>").expect("a text takes everything");
    };
    if let Some(entropy) = &stats.entropy_nats {
        row("Entropy, nats", entropy, 3);
    }
    row(&retained, &stats.retained_mass, 4);
    row("Entries per position", &stats.entries_per_position, 0);
    let percentiles: String =
        stats.retained_mass.percentiles.keys().map(|percent| format!("<th>{percent} %</th>")).collect();
    format!(
        "<h2>Percentiles</h2>\n<div class=\"scroll\">\n<table class=\"numbers\">\n\
         <thead><tr><th>over the labelled positions</th><th>mean</th><th>least</th>{percentiles}<th>most</th></tr></thead>\n\
         <tbody>\n{rows}</tbody>\n</table>\n</div>\n"
    )
}

/// What the labels depend on, and what names them.
fn facts(dataset: &LabelDataset, stats: &LabelStats) -> String {
    let (manifest, plan) = (dataset.manifest(), &dataset.manifest().plan);
    let hash = |hash: &str| format!("<code>{}</code>", escape(hash));
    let temperatures = plan.temperatures.iter().map(f32::to_string).collect::<Vec<_>>().join(", ");
    let mut rows = vec![
        ("Manifest (BLAKE3)", hash(dataset.manifest_blake3())),
        ("Plan (BLAKE3)", hash(&manifest.plan_blake3)),
        ("Selection", escape(plan.selection.to_string())),
        ("Mantissa bits", mantissa_bits(plan)),
        ("Temperatures", if temperatures.is_empty() { "1".to_owned() } else { format!("1, {temperatures}") }),
        ("Teacher’s weights", hash(&plan.teacher.weights_blake3)),
        ("Teacher’s configuration", hash(&plan.teacher.config_blake3)),
    ];
    if !plan.omit.is_empty() {
        let name = |column: &OptionalColumn| format!("<code>{}</code>", column.name());
        rows.push(("Columns left out", plan.omit.iter().map(name).collect::<Vec<_>>().join(", ")));
    }
    rows.extend(plan.teacher.adapter_blake3.as_ref().map(|adapter| ("Teacher’s adapter", hash(adapter))));
    rows.extend([
        (
            "Teacher computed in",
            format!(
                "{}, vocabulary of {}",
                escape(&plan.teacher.dtype),
                count(plan.teacher.vocab_size.into())
            ),
        ),
        ("Tokenizer’s vocabulary", hash(&plan.tokenizer.vocabulary_blake3)),
        ("Prompt template", escape(&plan.template)),
        ("Split", escape(&plan.split)),
        ("Seed", plan.seed.to_string()),
        (
            "Sequences",
            format!(
                "{} with {} tokens, in {}",
                count(stats.sequences),
                count(stats.input_tokens),
                plural(stats.shards, "shard")
            ),
        ),
        ("Sequences’ manifest", hash(&plan.sequences)),
        ("Gold tokens among the entries", percent(stats.gold_kept)),
    ]);
    let row = |(name, value): &(&str, String)| format!("<tr><th>{name}</th><td>{value}</td></tr>\n");
    let rows: String = rows.iter().map(row).collect();
    format!("<h2>Plan</h2>\n<table class=\"facts\">\n<tbody>\n{rows}</tbody>\n</table>\n")
}

fn mantissa_bits(plan: &LabelPlan) -> String {
    let per_position = format!("{} of values per position", plan.position_mantissa_bits);
    if plan.selection.is_exact() {
        return format!("{} of <code>log_probs</code>, {per_position}", plan.mantissa_bits);
    }
    per_position
}

fn plural(count: usize, noun: &str) -> String {
    format!("{} {noun}{}", number(count), if count == 1 { "" } else { "s" })
}

/// Bytes for each labelled token.
pub(super) fn per_token(stats: &LabelStats, bytes: u64) -> f64 {
    float(bytes) / float(stats.labelled_tokens.max(1))
}
