//! The head's kernel against the CPU, and how fast it reads logits.
//!
//! Legend: N rows, D model width, V vocabulary.

use std::time::Instant;

use anyhow::Result;
use burn::tensor::{DType, Device, Distribution, Tensor, TensorData};
use softshard_losses::{HeadLabels, HeadOptions, Keep, label_logits, label_rows};

use crate::Bench;
use crate::table::{Outcome, Row};

/// Sums of the kernel are f32, those of the CPU f64.
const LOG: f32 = 2e-5;
/// Runs that are timed.
const RUNS: usize = 10;

pub(crate) fn run(bench: &Bench, device: &Device) -> Result<bool> {
    let mut all_well = true;
    // With a bar from the maxima of the units, and without; one width that vectors do not divide.
    for (vocabulary, k) in [(1000, 16), (4097, 64), (4096, 300)] {
        for dtype in [DType::F32, DType::BF16, DType::F16] {
            all_well &= agrees(device, vocabulary, k, dtype)?;
        }
    }
    let [rows, width, vocabulary] = if bench.options.quick { [32, 64, 1000] } else { [1024, 3584, 152_064] };
    speed(device, rows, width, vocabulary)?;
    Ok(all_well)
}

fn options(keep: Keep) -> HeadOptions<'static> {
    HeadOptions { keep, logit_scale: 1.0, temperatures: &[2.0], rows_per_chunk: 256 }
}

/// Of logits with many ties, the same tokens, and their numbers.
fn agrees(device: &Device, vocabulary: usize, k: usize, dtype: DType) -> Result<bool> {
    const ROWS: usize = 40;
    let number = |i: usize| ((i * 2_654_435_761) % 1_000_003 % 257) as f32 / 16.0 - 8.0;
    let logits = TensorData::new((0..ROWS * vocabulary).map(number).collect::<Vec<_>>(), [ROWS, vocabulary]);
    let gold = vec![3; ROWS];
    let uniforms: Vec<f64> = (0..ROWS).map(|row| (row as f64 + 0.3) / ROWS as f64).collect();
    let label = |device: &Device, keep| {
        let logits = Tensor::<2>::from_data(logits.clone().convert_dtype(dtype), (device, dtype));
        label_logits(logits, &gold, &uniforms, &options(keep))
    };
    let exact = [Keep::TopK { k }, Keep::TopP { p: 0.5, k }];
    let mut same = true;
    let mut worst = 0.0_f32;
    for keep in exact {
        let (expected, found) = (label(&Device::flex(), keep)?, label(device, keep)?);
        same &= expected.token_ids == found.token_ids && expected.counts == found.counts;
        worst = worst.max(largest_difference(&expected, &found));
    }
    // One draw in many may end at the border of two tokens, where sums of f32 and of f64 disagree.
    let keep = Keep::TopKSampled { k, draws: 32 };
    let (expected, found) = (label(&Device::flex(), keep)?, label(device, keep)?);
    let drawn = |labels: &HeadLabels| labels.sample_counts.iter().sum::<i32>();
    same &= drawn(&expected) == drawn(&found);
    worst = worst.max(largest_difference(&expected, &found));
    let tokens = if same { "the same tokens" } else { "other tokens" };
    Ok(Row::new("head", format!("labels of [{ROWS}, {vocabulary}] {dtype:?} logits, k {k}"))
        .ours(format!("{tokens}, numbers within {worst:.1e}"))
        .against(format!("{LOG:.0e}"))
        .say(Outcome::of(same && worst <= LOG)))
}

/// Of the columns with one number a row, relative above 1; infinite where only one of two is.
fn largest_difference(expected: &HeadLabels, found: &HeadLabels) -> f32 {
    let columns = [
        (&expected.log_sum_exp, &found.log_sum_exp),
        (&expected.tail_log_mass, &found.tail_log_mass),
        (&expected.entropy, &found.entropy),
        (&expected.gold_log_prob, &found.gold_log_prob),
        (&expected.log_partitions[0], &found.log_partitions[0]),
    ];
    let difference = |(expected, found): (&f32, &f32)| {
        if expected == found { 0.0 } else { (expected - found).abs() / expected.abs().max(1.0) }
    };
    let pairs = columns.into_iter().flat_map(|(expected, found)| expected.iter().zip(found));
    pairs.map(difference).fold(0.0, |largest, one| if one > largest || one.is_nan() { one } else { largest })
}

/// Labels of bf16 logits that are there, and of hidden states, beside what Burn needs to read, or to make, the same logits.
fn speed(device: &Device, rows: usize, width: usize, vocabulary: usize) -> Result<()> {
    let random = |shape: [usize; 2], scale: f64| {
        Tensor::<2>::random(shape, Distribution::Normal(0.0, scale), (device, DType::BF16))
    };
    let (hidden, head) =
        (random([rows, width], 1.0), random([vocabulary, width], 3.0 / (width as f64).sqrt()));
    let gold = vec![1; rows];
    let options = HeadOptions { temperatures: &[], ..options(Keep::TopK { k: 64 }) };
    let logits = hidden.clone().matmul(head.clone().transpose());
    let bytes = 2.0 * (rows * vocabulary) as f64;

    let labelled = fastest(device, || {
        label_logits(logits.clone(), &gold, &[], &options)?;
        Ok(())
    })?;
    // Read once and written once.
    let scaled = fastest(device, || {
        drop(logits.clone().mul_scalar(0.5));
        Ok(())
    })?;
    let (ours, peak) = (bytes / labelled / 1e9, 2.0 * bytes / scaled / 1e9);
    Row::new("head", format!("labels of [{rows}, {vocabulary}] BF16 logits, k 64"))
        .ours(format!("{:.0} rows/s, {ours:.0} GB/s of logits", rows as f64 / labelled))
        .against(format!("{peak:.0} GB/s, Burn's scaling of them"))
        .ratio(ours / peak)
        .say(Outcome::Measured);

    let all = fastest(device, || {
        label_rows(hidden.clone(), head.clone(), &gold, &[], &options)?;
        Ok(())
    })?;
    let product = fastest(device, || {
        drop(softshard_losses::logits(hidden.clone(), &head));
        Ok(())
    })?;
    Row::new("head", format!("labels of [{rows}, {width}] hidden states, V {vocabulary}, k 64"))
        .ours(format!("{:.0} rows/s", rows as f64 / all))
        .against(format!("{:.0} rows/s, the product alone", rows as f64 / product))
        .ratio(product / all)
        .say(Outcome::Measured);
    Ok(())
}

/// Seconds, without the first run, which compiles kernels.
fn fastest(device: &Device, run: impl Fn() -> Result<()>) -> Result<f64> {
    let once = || -> Result<f64> {
        let start = Instant::now();
        run()?;
        device.sync()?;
        Ok(start.elapsed().as_secs_f64())
    };
    once()?;
    let mut best = f64::INFINITY;
    for _ in 0..RUNS {
        best = best.min(once()?);
    }
    Ok(best)
}
