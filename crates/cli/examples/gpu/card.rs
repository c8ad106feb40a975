//! What the device is, and what its matrix units reach in products of Burn's.

use std::process::Command;
use std::time::Instant;

use anyhow::Result;
use burn::tensor::{Device, Distribution, FloatDType, Tensor};
use serde_json::json;

use crate::Bench;
use crate::peers::{self, number};
use crate::table::{Outcome, Row, gib};

/// Left by this part for those that follow.
pub(crate) const MATRIX: &str = "matrix.json";
/// Of the largest result: it is rounded to bf16's 8 significant bits, the sums are of f32.
const PRODUCT: f32 = 1e-2;

pub(crate) fn run(bench: &Bench, device: &Device) -> Result<bool> {
    let fusion = if cfg!(feature = "fusion") { "on" } else { "off" };
    Row::new("device", name(bench)).ours(format!("kernel fusion {fusion}")).say(Outcome::Measured);
    let right = product_is_right(device)?;
    matrix_peak(bench, device)?;
    Ok(right)
}

/// As the driver's own tool says; the CPU's where there is none.
fn name(bench: &Bench) -> String {
    let index = bench.options.device.strip_prefix("cuda:").unwrap_or_default();
    if index.is_empty() {
        return format!("{}, a dry run", bench.options.device);
    }
    let asked = Command::new("nvidia-smi")
        .args(["--query-gpu=name,driver_version,memory.total", "--format=csv,noheader", "--id", index])
        .output();
    match asked {
        Ok(said) if said.status.success() => String::from_utf8_lossy(&said.stdout).trim().to_owned(),
        _ => format!("{} (nvidia-smi does not answer)", bench.options.device),
    }
}

/// A bf16 product against the same product in f32 on the CPU: before anything is timed.
fn product_is_right(device: &Device) -> Result<bool> {
    let size = 128;
    let random = |seed| {
        let cpu = Device::flex();
        cpu.seed(seed);
        Tensor::<2>::random([size, size], Distribution::Normal(0.0, 1.0), &cpu)
            .cast(FloatDType::BF16)
            .cast(FloatDType::F32)
    };
    let (a, b) = (random(1), random(2));
    let expected = a.clone().matmul(b.clone()).into_data().try_to_vec::<f32>()?;
    let there = |x: Tensor<2>| Tensor::<2>::from_data(x.into_data(), device).cast(FloatDType::BF16);
    let found = there(a).matmul(there(b)).cast(FloatDType::F32).into_data().try_to_vec::<f32>()?;
    let worst = crate::parity::worst(&expected, &found);
    let largest = expected.iter().fold(0.0f32, |largest, x| largest.max(x.abs()));
    Ok(Row::new("device", "bf16 product [128, 128]")
        .ours(format!("worst difference {worst:.1e} of {largest:.1}"))
        .against(format!("{:.1e}", PRODUCT * largest))
        .say(Outcome::of(worst <= PRODUCT * largest)))
}

/// Square bf16 products of random numbers: a product of zeros draws less power and is faster.
fn matrix_peak(bench: &Bench, device: &Device) -> Result<()> {
    let size = if bench.options.quick { 64 } else { 8192 };
    let random =
        || Tensor::<2>::random([size, size], Distribution::Normal(0.0, 1.0), device).cast(FloatDType::BF16);
    let (a, b) = (random(), random());
    device.sync()?;
    let once = || -> Result<f64> {
        let start = Instant::now();
        let product = a.clone().matmul(b.clone());
        device.sync()?;
        drop(product);
        Ok(start.elapsed().as_secs_f64())
    };
    let first = once()?;
    let mut best = f64::INFINITY;
    for _ in 0..30 {
        if bench.seconds_left() <= 0.0 && best.is_finite() {
            break;
        }
        best = best.min(once()?);
    }
    let flops = 2.0 * (size as f64).powi(3);
    std::fs::write(bench.result(MATRIX), json!({ "tflops": flops / best / 1e12 }).to_string())?;
    Row::new("device", format!("bf16 product [{size}, {size}], best of 30"))
        .ours(format!("{:.4} TFLOP/s; the first with choosing its kernel {first:.1} s", flops / best / 1e12))
        .say(Outcome::Measured);
    Ok(())
}

/// The most memory so far, of which Burn's allocator says what it holds: that does not shrink unless it is asked to.
pub(crate) fn memory(device: &Device) -> String {
    match softshard_model::peak_bytes(device) {
        Some(bytes) => gib(bytes),
        None => "memory not reported".to_owned(),
    }
}

/// The card's matrix peak in TFLOP/s: the better of our product and the peers'. 0 where nothing was measured.
pub(crate) fn matrix_peak_tflops(bench: &Bench) -> f64 {
    let own = bench.read(MATRIX).map_or(0.0, |own| number(&own, "tflops"));
    let theirs = |name: &&str| bench.read(name).map_or(0.0, |found| number(&found, "matrix_tflops"));
    peers::ALL.iter().map(theirs).fold(own, f64::max)
}

/// A share of the matrix peak, in words; without a peak there is none.
pub(crate) fn share_of_peak(flops: f64, seconds: f64, peak_tflops: f64) -> String {
    if peak_tflops > 0.0 {
        format!("{:.0} %", 100.0 * flops / seconds / 1e12 / peak_tflops)
    } else {
        "unknown part".to_owned()
    }
}
