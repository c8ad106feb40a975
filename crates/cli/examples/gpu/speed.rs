//! Tokens per second of random models in bf16, beside `transformers` where it is there.
//!
//! Legend: B batch, T tokens, V vocabulary, D model width.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use burn::tensor::{Device, FloatDType, Int, Tensor, TensorData};
use serde_json::{Value, json};
use softshard_model::{Decoder, DecoderConfig, Precision};

use crate::shapes::{LARGE, SMALL, Shape, forward_flops};
use crate::table::{Outcome, Row};
use crate::{Bench, card};

/// Left by the peer for those that follow.
const PEER: &str = "transformers.json";
/// The exit code with which the peer says that something it needs is not there.
const ABSENT: i32 = 77;
/// Passes of one batch that are timed, at least and at most.
const PASSES: [usize; 2] = [3, 20];

/// Runs the peer's measurements.
pub(crate) fn transformers(bench: &Bench) -> Result<bool> {
    let quick = bench.options.quick;
    let jobs: Vec<Value> = [&SMALL, &LARGE]
        .into_iter()
        .flat_map(|shape| {
            shape.batches(quick).iter().map(move |batch| {
                json!({ "key": shape.key(*batch), "config": shape.config(quick), "batch": batch[0], "tokens": batch[1] })
            })
        })
        .collect();
    let list = bench.result("jobs.json");
    fs::write(&list, json!(jobs).to_string())?;
    let output = Command::new(&bench.options.python)
        .arg(&bench.options.peer)
        .arg(&list)
        .arg(bench.result(PEER))
        .args(["--device", &bench.options.device, "--seconds", &format!("{:.1}", bench.seconds_left())])
        .args(["--matrix", if quick { "64" } else { "8192" }])
        .output();
    let row = Row::new("transformers", "the same shapes, bf16, sdpa");
    let said = match output {
        Ok(said) => said,
        Err(error) => {
            row.ours(format!("`{}`: {error}", bench.options.python)).say(Outcome::Skipped);
            return Ok(true);
        }
    };
    let last = String::from_utf8_lossy(&said.stderr).lines().last().unwrap_or_default().to_owned();
    if said.status.code() == Some(ABSENT) {
        row.ours(last).say(Outcome::Skipped);
        return Ok(true);
    }
    ensure!(said.status.success(), "{}: {last}", bench.options.peer.display());
    let measured = read(&bench.result(PEER)).context("the peer wrote no result")?;
    row.ours(measured["versions"].as_str().unwrap_or_default())
        .against(format!("its own product: {:.4} TFLOP/s", number(&measured, "matrix_tflops")))
        .say(Outcome::Measured);
    Ok(true)
}

/// Measures one shape.
pub(crate) fn run(bench: &Bench, device: &Device, shape: &Shape) -> Result<bool> {
    let quick = bench.options.quick;
    let config = shape.config(quick);
    let start = Instant::now();
    let parsed = DecoderConfig::from_value(config.clone(), Path::new(shape.name))?;
    let decoder = Decoder::random_there(parsed, device, Precision::Bf16);
    device.sync()?;
    let [vocabulary, width] = decoder.head().dims();
    let tied = config["tie_word_embeddings"].as_bool().unwrap_or(false);
    let body = decoder.parameter_count() - vocabulary * width * if tied { 1 } else { 2 };
    Row::new(shape.name, "random weights in bf16")
        .ours(format!(
            "{:.4} B parameters in {:.1} s, {}",
            decoder.parameter_count() as f64 / 1e9,
            start.elapsed().as_secs_f64(),
            card::memory(device)
        ))
        .say(Outcome::Measured);
    let peer = read(&bench.result(PEER)).unwrap_or_default();
    let own = read(&bench.result(card::MATRIX)).unwrap_or_default();
    // The card's: the better of two programs.
    let peak = number(&own, "tflops").max(number(&peer, "matrix_tflops"));
    let mut finite = true;
    for &batch in shape.batches(quick) {
        let row = Row::new(shape.name, format!("forward B={} T={}", batch[0], batch[1]));
        if bench.seconds_left() <= 0.0 {
            row.ours("no time left").say(Outcome::Skipped);
            continue;
        }
        let measured = measure(bench, device, &decoder, batch)?;
        let tokens_per_second = (batch[0] * batch[1]) as f64 / measured.seconds;
        let share = 100.0 * forward_flops(&config, body, batch) / measured.seconds / 1e12 / peak;
        // Without a measured peak there is no share of it.
        let share = if peak > 0.0 { format!("{share:.0} %") } else { "unknown part".to_owned() };
        let row = row.ours(format!(
            "{tokens_per_second:.0} tokens/s, {share} of the matrix peak, {}; first pass {:.1} s",
            card::memory(device),
            measured.first
        ));
        let peers = &peer["results"][shape.key(batch)];
        let row = match peers["tokens_per_second"].as_f64() {
            Some(theirs) => row
                .against(format!("{theirs:.0} tokens/s, {:.1} GiB", number(peers, "gib")))
                .ratio(tokens_per_second / theirs),
            None => row.against(peers["problem"].as_str().unwrap_or_default()),
        };
        finite &= row.say(if measured.finite { Outcome::Measured } else { Outcome::Failed });
    }
    Ok(finite)
}

/// One batch's times.
struct Measured {
    /// With compiling and choosing kernels.
    first: f64,
    /// Median of the others.
    seconds: f64,
    finite: bool,
}

fn measure(
    bench: &Bench,
    device: &Device,
    decoder: &Decoder,
    [batch, tokens]: [usize; 2],
) -> Result<Measured> {
    let vocabulary = decoder.head().dims()[0];
    let ids: Vec<i32> =
        (0..batch * tokens).map(|i| i32::try_from(i * 7919 % vocabulary)).collect::<Result<_, _>>()?;
    let ids = Tensor::<2, Int>::from_data(TensorData::new(ids, [batch, tokens]), device);
    let pass = || -> Result<(f64, f32)> {
        let start = Instant::now();
        let hidden = decoder.hidden(ids.clone())?;
        device.sync()?;
        let seconds = start.elapsed().as_secs_f64();
        Ok((
            seconds,
            hidden.narrow(1, tokens - 1, 1).cast(FloatDType::F32).abs().mean().try_into_scalar::<f32>()?,
        ))
    };
    let (first, size) = pass()?;
    let mut times = Vec::new();
    while times.len() < PASSES[0] || (times.len() < PASSES[1] && bench.seconds_left() > 0.0) {
        times.push(pass()?.0);
    }
    times.sort_by(f64::total_cmp);
    Ok(Measured { first, seconds: times[times.len() / 2], finite: size.is_finite() })
}

fn read(path: &Path) -> Option<Value> {
    serde_json::from_str(&fs::read_to_string(path).ok()?).ok()
}

fn number(value: &Value, key: &str) -> f64 {
    value[key].as_f64().unwrap_or(0.0)
}
