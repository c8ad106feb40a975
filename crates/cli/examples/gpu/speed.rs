//! Tokens per second of random models in bf16, beside `transformers` where it is there.
//!
//! Legend: B batch, T tokens.

use std::path::Path;
use std::time::Instant;

use anyhow::Result;
use burn::tensor::{Device, FloatDType, Int, Tensor, TensorData};
use serde_json::{Value, json};
use softshard_model::{Decoder, DecoderConfig, Precision};

use crate::flops::Flops;
use crate::peers::{self, Peer, gib};
use crate::shapes::{LARGE, SMALL, Shape};
use crate::table::{Outcome, Row};
use crate::{Bench, card};

/// Passes of one batch that are timed, at least and at most.
const PASSES: [usize; 2] = [3, 20];

/// Runs the peer's measurements.
pub(crate) fn peers(bench: &Bench) -> Result<bool> {
    let quick = bench.options.quick;
    let jobs: Vec<Value> = [&SMALL, &LARGE]
        .into_iter()
        .flat_map(|shape| {
            shape.batches(quick).iter().map(move |batch| {
                json!({ "key": shape.key(*batch), "config": shape.config(quick), "batch": batch[0], "tokens": batch[1] })
            })
        })
        .collect();
    let peer = Peer { script: "transformers_forward.py", jobs: json!(jobs), result: peers::FORWARD };
    peer.run(bench, Row::new("transformers", "the same shapes, bf16, sdpa"))?;
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
    Row::new(shape.name, "random weights in bf16")
        .ours(format!(
            "{:.4} B parameters in {:.1} s, {}",
            decoder.parameter_count() as f64 / 1e9,
            start.elapsed().as_secs_f64(),
            card::memory(device)
        ))
        .say(Outcome::Measured);
    let peer = bench.read(peers::FORWARD).unwrap_or_default();
    let peak = card::matrix_peak_tflops(bench);
    let mut finite = true;
    for &batch in shape.batches(quick) {
        let row = Row::new(shape.name, format!("forward B={} T={}", batch[0], batch[1]));
        if bench.seconds_left() <= 0.0 {
            row.ours("no time left").say(Outcome::Skipped);
            continue;
        }
        let measured = measure(bench, device, &decoder, batch)?;
        let tokens_per_second = (batch[0] * batch[1]) as f64 / measured.seconds;
        let flops = Flops::forward(decoder.config(), &vec![[batch[1], 0]; batch[0]]).body();
        let share = card::share_of_peak(flops, measured.seconds, peak);
        let row = row.ours(format!(
            "{tokens_per_second:.0} tokens/s, {share} of the matrix peak, {}; first pass {:.1} s",
            card::memory(device),
            measured.first
        ));
        let peers = &peer["results"][shape.key(batch)];
        let row = match peers["tokens_per_second"].as_f64() {
            Some(theirs) => {
                row.against(format!("{theirs:.0} tokens/s, {}", gib(peers))).ratio(tokens_per_second / theirs)
            }
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
