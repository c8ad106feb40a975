//! How many rows of logits a second the selection labels: `cargo run --example select_speed [k]`.

use std::time::Instant;

use rayon::prelude::*;
use softshard_losses::{Keep, select};

/// Standard normal logits times 3, from a fixed seed: top-64 mass near that of a small language model.
fn logits(count: usize) -> Vec<f32> {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut uniform = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1 << 24) as f32
    };
    (0..count).map(|_| 3.0 * ((0..12).map(|_| uniform()).sum::<f32>() - 6.0)).collect()
}

fn main() {
    const ROWS: usize = 64;
    let k = std::env::args().nth(1).map_or(64, |k| k.parse().expect("k is a number"));
    for vocabulary in [32_000, 151_936] {
        let values = logits(ROWS * vocabulary);
        for threads in [1, 2] {
            let pool =
                rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a pool of threads");
            let label = || {
                values
                    .par_chunks(vocabulary)
                    .map(|row| {
                        select(row, 0, Keep::TopK { k }, 0.0, &[]).expect("finite logits").token_ids.len()
                    })
                    .sum::<usize>()
            };
            let fastest = (0..20)
                .map(|_| {
                    let began = Instant::now();
                    assert_eq!(pool.install(label), ROWS * k);
                    began.elapsed().as_secs_f64()
                })
                .fold(f64::INFINITY, f64::min);
            println!(
                "[{ROWS}, {vocabulary}] k {k} threads {threads}: {:.0} rows/s, {:.3} ms a row",
                ROWS as f64 / fastest,
                fastest * 1e3 / ROWS as f64
            );
        }
    }
}
