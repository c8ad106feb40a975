//! Milliseconds a row to select from logits, and to make all of a row's labels, as one line of JSON:
//! `cargo run --example select_speed -- LOGITS V k THREADS`, where LOGITS are rows of V little-endian f32.
//!
//! `tests/peers/bench_head.py` calls it and measures numpy and torch on the same rows.

use std::time::Instant;

use rayon::prelude::*;
use softshard_losses::{Keep, select, top_k};

const USAGE: &str = "usage: select_speed LOGITS V k THREADS";

fn fastest(mut run: impl FnMut() -> f64) -> (f64, f64) {
    let mut best = f64::INFINITY;
    let mut sum = run();
    let began = Instant::now();
    while began.elapsed().as_secs_f64() < 0.6 {
        let began = Instant::now();
        sum = run();
        best = best.min(began.elapsed().as_secs_f64());
    }
    (best, sum)
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [path, numbers @ ..] = arguments.as_slice() else { panic!("{USAGE}") };
    let numbers: Vec<usize> = numbers.iter().map(|number| number.parse().expect(USAGE)).collect();
    let [vocabulary, k, threads] = numbers.try_into().expect(USAGE);
    let bytes = std::fs::read(path).expect("the logits can be read");
    let logits: Vec<f32> = bytes.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
    let rows = logits.len() / vocabulary;
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a pool of threads");
    let sum_of = |row: &[f32], ids: Vec<i32>| {
        let logit = |id| f64::from(row[usize::try_from(id).expect("an id is not negative")]);
        ids.into_iter().map(logit).sum::<f64>()
    };

    let alone = || logits.par_chunks_exact(vocabulary).map(|row| sum_of(row, top_k(row, k))).sum::<f64>();
    let (alone, sum) = fastest(|| pool.install(alone));
    let label = |row: &[f32]| select(row, 0, Keep::TopK { k }, 0.0, &[]).expect("finite logits");
    let all =
        || logits.par_chunks_exact(vocabulary).map(|row| sum_of(row, label(row).token_ids)).sum::<f64>();
    let (all, labelled_sum) = fastest(|| pool.install(all));
    assert!((sum - labelled_sum).abs() < 1e-6 * sum.abs(), "both keep the same tokens");
    let milliseconds = |seconds: f64| seconds * 1e3 / rows as f64;
    println!(
        "{{\"top_k_ms\": {:.5}, \"all_ms\": {:.5}, \"sum\": {sum}}}",
        milliseconds(alone),
        milliseconds(all)
    );
}
