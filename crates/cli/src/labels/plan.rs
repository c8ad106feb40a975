//! `softshard labels plan`: what a labelling run will cost and keep, before it begins.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use softshard_labels::Split;
use softshard_teacher::{Estimate, EstimateInputs, SelectionEstimate, estimate};

use crate::{
    device,
    devices::workers,
    numbers::{count, duration, grouped, number, percent, size},
    recipe::Recipe,
    session::Session,
    stage::{Stage, positive},
    stdout::print_json,
    table::aligned,
};

/// Arguments of `labels plan`.
#[derive(Args)]
pub(crate) struct Plan {
    /// The run
    #[command(flatten)]
    stage: Stage,
    /// Sequences of the sample; more where they have less than 2,000 labelled tokens
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = positive)]
    sample: usize,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Prints the estimate.
pub(super) fn plan(options: &Plan, session: &Session) -> Result<()> {
    let recipe = Recipe::load(&options.stage.recipe, &options.stage.overrides)?;
    let teacher = Recipe::section(recipe.teacher.as_ref(), "teacher", "labels plan")?;
    let device = device::open(&options.stage.device)?;
    let splits = recipe.labelled_splits().into_iter();
    let sequences: Vec<PathBuf> = splits.map(|split| recipe.sequences(split)).collect();
    let found = estimate(&EstimateInputs {
        teacher,
        labels: &recipe.labels,
        sequences: &sequences,
        held_out: Some(&recipe.sequences(Split::Valid)),
        tokenizer: &recipe.tokenizer_for(&teacher.model)?,
        sample: options.sample,
        device: &device,
        workers: workers(&device),
        stop: session.stop,
        observer: &session.observer(),
    })?;
    if options.json {
        return print_json(&found);
    }
    print_estimate(&found);
    Ok(())
}

fn print_estimate(found: &Estimate) {
    let sample = &found.sample;
    println!(
        "sample: {} sequences, {} tokens, {} of them labelled",
        count(sample.sequences),
        count(sample.tokens),
        count(sample.labelled_tokens)
    );
    if let Some(nats) = found.entropy_nats {
        println!("mean entropy of the teacher: {nats:.2} nats");
    }
    for split in &found.splits {
        println!(
            "{}: {} sequences, {} tokens, {} of them labelled, {} shards",
            split.name,
            count(split.size.sequences),
            count(split.size.tokens),
            count(split.size.labelled_tokens),
            number(split.shards)
        );
    }
    println!(
        "speed here: {} tokens/s; the whole run: {}",
        grouped(found.tokens_per_second),
        duration(found.total_seconds)
    );
    println!();
    let splits = found.splits.iter().map(|split| split.name.clone());
    let header =
        ["selection", "entries", "retained mass", "p5", "bytes per labelled token"].map(str::to_owned);
    let header = header.into_iter().chain(splits).chain(["in all".to_owned(), "±".to_owned()]);
    let rows = found.selections.iter().enumerate().map(|(index, one)| row(index == 0, one));
    print!("{}", aligned(&[header.collect()].into_iter().chain(rows).collect::<Vec<_>>()));
    println!("  * the recipe's");
    println!(
        "± is the 95 % interval of the bytes, from parts of the sample, and what row groups cost in so small a sample.\n\
         Retained mass is that of the exact entries, or of the drawn ones where none is exact. The speed is that of now."
    );
    match found.enough {
        Some(k) => {
            println!("suggestion: top_k with k = {k} is the smallest of these that keeps 95 % of the mass")
        }
        None => println!(
            "suggestion: none of these k keeps 95 % of the mass; top_k_sampled has no bias from what is cut"
        ),
    }
}

fn row(is_of_recipe: bool, one: &SelectionEstimate) -> Vec<String> {
    let name = one.selection.to_string();
    let total: u64 = one.bytes.iter().sum();
    let cells = [
        if is_of_recipe { format!("{name} *") } else { name },
        format!("{:.1}", one.entries),
        format!("{:.4}", one.retained_mass),
        format!("{:.4}", one.retained_mass_p5),
        format!("{:.1}", one.bytes_per_labelled_token),
    ];
    let sizes = one.bytes.iter().chain([&total]).map(|bytes| size(*bytes));
    cells.into_iter().chain(sizes).chain([one.relative_error.map_or("unknown".to_owned(), percent)]).collect()
}
