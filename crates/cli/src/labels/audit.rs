//! `softshard labels audit`: random positions scored again by the live teacher.

use std::path::{Path, PathBuf};

use anyhow::Result;
use clap::Args;
use serde::Serialize;
use softshard_labels::Error;
use softshard_teacher::{AuditInputs, ColumnAudit, audit as audit_labels};

use crate::{
    device,
    devices::workers,
    numbers::{count, number},
    recipe::{Recipe, RecipeError},
    session::Session,
    stage::{Stage, positive},
    stdout::print_json,
    table::aligned,
};

/// Arguments of `labels audit`.
#[derive(Args)]
pub(crate) struct Audit {
    /// The run
    #[command(flatten)]
    stage: Stage,
    /// Folder of the labels [default: the recipe's, of every split]
    #[arg(long, value_name = "DIR")]
    labels: Option<PathBuf>,
    /// Labelled positions of each dataset that are scored again
    #[arg(long, value_name = "N", default_value_t = 200, value_parser = positive)]
    positions: usize,
    /// Chooses the positions
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// What was found in one dataset.
#[derive(Serialize)]
struct Found {
    labels: PathBuf,
    #[serde(flatten)]
    audit: softshard_teacher::Audit,
}

/// Prints how far the labels are from the teacher, and fails where that is too far.
pub(super) fn audit(options: &Audit, session: &Session) -> Result<()> {
    let recipe = Recipe::load(&options.stage.recipe, &options.stage.overrides)?;
    let teacher = Recipe::section(recipe.teacher.as_ref(), "teacher", "labels audit")?;
    let device = device::open(&options.stage.device)?;
    let mut all = Vec::new();
    for labels in datasets(options, &recipe)? {
        let audit = audit_labels(&AuditInputs {
            teacher,
            labels: &labels,
            positions: options.positions,
            seed: options.seed,
            device: &device,
            workers: workers(&device),
            stop: session.stop,
            observer: &session.observer(),
        })?;
        let found = Found { labels, audit };
        if !options.json {
            print_audit(&found);
        }
        all.push(found);
    }
    if options.json {
        print_json(&all)?;
    }
    for Found { labels, audit } in &all {
        if let Some(worst) = audit.worst() {
            return Err(deviates(labels, worst).into());
        }
    }
    Ok(())
}

/// The dataset that was named, or those of the recipe.
fn datasets(options: &Audit, recipe: &Recipe) -> Result<Vec<PathBuf>, RecipeError> {
    if let Some(labels) = &options.labels {
        return Ok(vec![labels.clone()]);
    }
    let labels = recipe.labels_folder("labels audit")?;
    Ok(recipe.labelled_splits().into_iter().map(|split| labels.join(split.name())).collect())
}

fn print_audit(Found { labels, audit }: &Found) {
    println!("{}", labels.display());
    println!(
        "scored again: {} of {} labelled positions, in {} sequences",
        count(audit.positions),
        count(audit.of_positions),
        number(audit.sequences)
    );
    let header = ["column", "largest", "p99", "control's largest", "control's p99", "bound", ""];
    let rows = audit.columns.iter().map(|column| {
        let ColumnAudit { largest, p99, control_largest, control_p99, bound, .. } = column;
        let numbers = [largest, p99, control_largest, control_p99, bound].map(|value| nats(*value));
        let verdict = if column.passed() { "" } else { "← beyond" };
        [column.column.clone()].into_iter().chain(numbers).chain([verdict.to_owned()]).collect()
    });
    print!("{}", aligned(&[header.map(str::to_owned).to_vec()].into_iter().chain(rows).collect::<Vec<_>>()));
    println!(
        "Deviations from the live teacher at a position beyond rounding, in nats (sample_counts: draws that moved there; their sum is\n\
         over all positions). The control is the live teacher twice, in the recipe's batches and in others; the bound is 8 times the\n\
         largest there, and at least 8 times the last bit of an f32 as large as the values (2 draws at a position, 8 in all)."
    );
    match audit.worst() {
        None => println!("no deviation beyond the bound at these {} positions", count(audit.positions)),
        Some(column) => println!("furthest beyond its bound: {}", place(column)),
    }
}

fn nats(value: f64) -> String {
    match value {
        0.0 => "0".to_owned(),
        value if value >= 0.01 => format!("{value:.3}"),
        value => format!("{value:.1e}"),
    }
}

/// Where the greatest deviation of a column is.
fn place(column: &ColumnAudit) -> String {
    let worst = &column.worst;
    let source = worst.source.as_ref().map(|source| format!(" ({source})")).unwrap_or_default();
    let token = worst.token.map(|token| format!(" token {token}")).unwrap_or_default();
    format!(
        "row {} sequence {}{source} position {} {}{token}",
        worst.row, worst.key, worst.position, column.column
    )
}

fn deviates(labels: &Path, column: &ColumnAudit) -> Error {
    let place = format!("labels `{}` {}", labels.display(), place(column));
    let expected = format!("{} of the live teacher", column.worst.live);
    let found = format!(
        "{}; the column's deviation is {}, the bound {}",
        column.worst.stored,
        nats(column.largest),
        nats(column.bound)
    );
    Error::bad(place, expected, found).hint(
        "this teacher gives other labels for these sequences: write them again, or find out who changed them",
    )
}
