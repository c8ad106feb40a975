//! The student's step by the loop of `train-student`: LoRA over a frozen base in bf16, with labels that this card made.

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use anyhow::{Context, Result, anyhow, ensure};
use burn::tensor::Device;
use serde_json::{Value, json};
use softshard_model::DecoderConfig;
use softshard_student::{Mixed, Objective, TrainConfig, TrainInputs};

use crate::flops::Flops;
use crate::peers::{self, Peer, gib, number};
use crate::table::{self, Outcome, Row};
use crate::{Bench, card, made_up, shapes};

/// The label dataset that labelling leaves.
pub(crate) const LABELS: &str = "labels-student";
/// Micro-batches that differ.
const BATCHES: usize = 4;
/// Steps before the clock runs.
const WARM: usize = 2;
/// What is aimed at: tokens/s and memory of *best*, and bytes of a streamed base.
const SPEED: f64 = 1.0;
const MEMORY: f64 = 0.5;
const STREAMED_BYTES: f64 = 8e9;
const NAME: &str = "student";
const STREAMED: &str = "streamed, layers computed again";

/// `[sequences, tokens]` of a step.
fn batch(quick: bool) -> [usize; 2] {
    if quick { [8, 16] } else { [8, 1024] }
}

/// Tokens and labelled tokens of the sequences: all of them but the first, which nothing predicts.
pub(crate) fn lengths(quick: bool) -> Vec<[usize; 2]> {
    let [sequences, tokens] = batch(quick);
    vec![[tokens, tokens - 1]; sequences * BATCHES]
}

/// Runs PEFT's usual and best ways.
pub(crate) fn peers(bench: &Bench) -> Result<bool> {
    let quick = bench.options.quick;
    let [sequences, tokens] = batch(quick);
    let jobs = json!({ "config": shapes::LARGE.config(quick), "sequences": sequences, "tokens": tokens });
    let peer = Peer { script: "peft_student.py", jobs, result: peers::STUDENT };
    let row = Row::new("student, PEFT", format!("the same shape, {sequences} x {tokens} tokens, bf16, sdpa"));
    let Some(found) = peer.run(bench, row)? else { return Ok(true) };
    for way in found["results"].as_object().into_iter().flatten() {
        let text = match way.1["problem"].as_str() {
            Some(problem) => problem.to_owned(),
            None => described(way.1),
        };
        Row::new("student, PEFT", way.0).against(text).say(Outcome::Measured);
    }
    Ok(true)
}

fn described(one: &Value) -> String {
    format!("{:.0} tokens/s, {}", number(one, "tokens_per_second"), gib(one))
}

/// A way to hold the base and what the backward pass needs.
pub(crate) struct Variant {
    name: &'static str,
    /// Beside the shared keys of the recipe's section.
    keys: fn() -> Value,
    /// The peer's ways that do the same, without and with Liger's kernels.
    peers: &'static [&'static str],
    steps: usize,
}

/// Least memory first: what the allocator holds is then the most that this one needed.
pub(crate) const RESIDENT: &[Variant] = &[
    Variant {
        name: "bf16, layers computed again",
        keys: || json!({ "checkpointing": "layer" }),
        peers: &["best, checkpointing", "best, checkpointing, Liger"],
        steps: WARM + 5,
    },
    Variant {
        name: "bf16, all kept",
        keys: || json!({ "checkpointing": "none" }),
        peers: &["best", "best, Liger"],
        steps: WARM + 5,
    },
];

/// As above, for bases that take less.
pub(crate) const SMALL: &[Variant] = &[
    Variant {
        name: STREAMED,
        keys: || json!({ "residency": "streamed", "checkpointing": "layer" }),
        peers: &[],
        steps: WARM + 2,
    },
    Variant {
        name: "4 bits, layers computed again",
        keys: || json!({ "quantise": 4, "checkpointing": "layer" }),
        peers: &[],
        steps: WARM + 3,
    },
    Variant {
        name: "8 bits, layers computed again",
        keys: || json!({ "quantise": 8, "checkpointing": "layer" }),
        peers: &[],
        steps: WARM + 3,
    },
];

/// Trains a few steps in every way.
pub(crate) fn run(bench: &Bench, device: &Device, variants: &[Variant]) -> Result<bool> {
    let model = bench.model();
    if !(model.exists() && bench.result(LABELS).join("manifest.json").exists()) {
        return Ok(Row::new(NAME, "the part")
            .ours("no weights, or no labels, were made")
            .say(Outcome::Failed));
    }
    let [sequences, tokens] = batch(bench.options.quick);
    let config = DecoderConfig::load(&model)?;
    let flops = Flops::forward(&config, &vec![[tokens, tokens - 1]; sequences]).step();
    let peer = bench.read(peers::STUDENT).unwrap_or_default();
    let mut well = true;
    for variant in variants {
        let what = format!("{}, {sequences} x {tokens} tokens", variant.name);
        if bench.seconds_left() <= 0.0 {
            well &= Row::new(NAME, what).ours("no time left").say(Outcome::Skipped);
            continue;
        }
        let trained = catch_unwind(AssertUnwindSafe(|| train(bench, device, variant)));
        let trained = trained.unwrap_or_else(|panic| {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no message");
            Err(anyhow!("it panicked: {text}"))
        });
        well &= match trained {
            Ok(trained) => {
                report(bench, &what, variant, &trained, &peer, flops / (sequences * tokens) as f64)
            }
            Err(error) => Row::new(NAME, what).ours(format!("{error:#}")).say(Outcome::Failed),
        };
        device.memory_cleanup();
    }
    Ok(well)
}

/// What some steps showed.
struct Trained {
    tokens_per_second: f64,
    /// Opening, hashing and loading.
    start_seconds: f64,
    first_step_seconds: f64,
    losses: [f64; 2],
    /// The most that there were, where the device says.
    bytes: Option<u64>,
}

fn train(bench: &Bench, device: &Device, variant: &Variant) -> Result<Trained> {
    let [sequences, tokens] = batch(bench.options.quick);
    let mut keys = json!({
        "model": bench.model(), "precision": "bf16", "max_steps": variant.steps, "epochs": 1000,
        "max_tokens_per_batch": sequences * tokens, "checkpoint_every_steps": 0, "rows_per_chunk": 1024, "learning_rate": 1e-4,
        "lora": { "r": 8, "alpha": 32.0, "dropout": 0.1, "target_modules": ["q_proj", "v_proj"] },
    });
    let own = (variant.keys)();
    for (key, value) in own.as_object().into_iter().flatten() {
        keys[key] = value.clone();
    }
    let config: TrainConfig = serde_json::from_value(keys)?;
    config.check("student").map_err(|problem| anyhow!(problem))?;
    let vocabulary = DecoderConfig::load(&config.model)?.vocab_size;
    let output = bench.result(&format!("student {}", variant.name));
    device.memory_cleanup();
    let began = Instant::now();
    let summary = softshard_student::run(&TrainInputs {
        config: &config,
        objective: Objective::Distill,
        stage: "train-student",
        data: &[Mixed { labels: bench.result(LABELS), weight: 1.0 }],
        template: "none",
        tokenizer_folder: &config.model,
        tokenizer: &made_up::tokenizer(vocabulary)?.into(),
        accepted: &[],
        output: &output,
        devices: &[(device.clone(), 1)],
        stop: &AtomicBool::new(false),
        observer: &(),
    })?;
    device.sync()?;
    let bytes = softshard_model::peak_bytes(device);
    let took = began.elapsed().as_secs_f64();
    let lines = fs::read_to_string(output.join("metrics.jsonl"))?;
    let mut lines: Vec<Value> = lines.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
    lines.retain(|line| line["split"] == "train");
    ensure!(lines.len() == variant.steps, "expected {} steps, found {}", variant.steps, lines.len());
    let seconds = |line: &Value| number(line, "tokens") / number(line, "tokens_per_second");
    let timed = &lines[WARM..];
    let first = lines.first().context("steps")?;
    Ok(Trained {
        tokens_per_second: timed.iter().map(|line| number(line, "tokens")).sum::<f64>()
            / timed.iter().map(seconds).sum::<f64>(),
        start_seconds: took - summary.seconds.total,
        first_step_seconds: seconds(first),
        losses: [first, &lines[lines.len() - 1]].map(|line| line["loss"].as_f64().unwrap_or(f64::NAN)),
        bytes,
    })
}

/// The rows of one way.
fn report(
    bench: &Bench,
    what: &str,
    variant: &Variant,
    trained: &Trained,
    peer: &Value,
    flops_per_token: f64,
) -> bool {
    let Trained { tokens_per_second, start_seconds, first_step_seconds, losses, bytes } = trained;
    let peak = card::matrix_peak_tflops(bench);
    let share = card::share_of_peak(flops_per_token * tokens_per_second, 1.0, peak);
    let finite = losses.iter().all(|loss| loss.is_finite());
    let memory = bytes.map_or("memory not reported".to_owned(), table::gib);
    let ours = format!(
        "{tokens_per_second:.0} tokens/s, {share} of the matrix peak, {memory}; loss {:.4} to {:.4}; begun in {start_seconds:.1} s, first step {first_step_seconds:.1} s",
        losses[0], losses[1]
    );
    if !finite {
        return Row::new(NAME, what).ours(ours).against("a finite loss").say(Outcome::Failed);
    }
    let theirs: Vec<(&str, &Value)> = (variant.peers.iter())
        .map(|way| (*way, &peer["results"][*way]))
        .filter(|(_, one)| one["tokens_per_second"].is_f64())
        .collect();
    if theirs.is_empty() {
        Row::new(NAME, what).ours(&ours).say(Outcome::Measured);
    }
    for (way, one) in theirs {
        let ratio = tokens_per_second / number(one, "tokens_per_second");
        Row::new(NAME, what)
            .ours(&ours)
            .against(format!("{way}: {}", described(one)))
            .ratio(ratio)
            .say(Outcome::Aim(ratio >= SPEED));
        if let Some(bytes) = bytes {
            let ratio = *bytes as f64 / number(one, "bytes");
            Row::new(NAME, format!("its memory, {}", variant.name))
                .ours(&memory)
                .against(format!("{way}: {}, aim: half", gib(one)))
                .ratio(ratio)
                .say(Outcome::Aim(ratio <= MEMORY));
        }
    }
    if let (true, Some(bytes)) = (variant.name == STREAMED, bytes) {
        Row::new(NAME, "its memory, streamed")
            .ours(format!("{:.2} GB", *bytes as f64 / 1e9))
            .against(format!("aim: under {:.0} GB", STREAMED_BYTES / 1e9))
            .ratio(*bytes as f64 / STREAMED_BYTES)
            .say(Outcome::Aim((*bytes as f64) < STREAMED_BYTES));
    }
    true
}
