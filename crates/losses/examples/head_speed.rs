//! What the teacher's head costs, from hidden states to labels: `cargo run --example head_speed [rows D V k chunk]`.
//!
//! Memory is the most that the process had, before and after: what labels need does not grow with the rows.

use std::time::Instant;

use burn::tensor::{Device, Distribution, Tensor};
use softshard_losses::{HeadOptions, Keep, label_rows};

/// MiB, of Linux.
fn most_memory() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let kilobytes =
        |line: &str| line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB")?.trim().parse::<f64>().ok();
    status.lines().find_map(kilobytes).unwrap_or(f64::NAN) / 1024.0
}

fn main() {
    let sizes: Vec<usize> =
        std::env::args().skip(1).map(|size| size.parse().expect("sizes are numbers")).collect();
    let [rows, width, vocabulary, k, chunk] = sizes.try_into().unwrap_or([2048, 896, 152_064, 64, 256]);
    let device = Device::flex();
    let random =
        |shape: [usize; 2], scale: f64| Tensor::<2>::random(shape, Distribution::Normal(0.0, scale), &device);
    let hidden = random([rows, width], 1.0);
    let head = random([vocabulary, width], 3.0 / (width as f64).sqrt());
    let gold = vec![1; rows];
    let before = most_memory();

    let options =
        HeadOptions { keep: Keep::TopK { k }, logit_scale: 1.0, temperatures: &[], rows_per_chunk: chunk };
    let began = Instant::now();
    let labels =
        label_rows(hidden.clone(), head.clone(), &gold, &[], &options).expect("finite hidden states");
    let all = began.elapsed().as_secs_f64();
    assert_eq!(labels.len(), rows);
    let after = most_memory();

    let began = Instant::now();
    for start in (0..rows).step_by(chunk) {
        let hidden = hidden.clone().narrow(0, start, chunk.min(rows - start));
        drop(hidden.matmul(head.clone().transpose()));
    }
    let product = began.elapsed().as_secs_f64();
    println!(
        "[{rows}, {width}] x [{vocabulary}, {width}], k {k}, chunks of {chunk}: {:.0} rows/s, the product alone {:.0}; \
         {before:.0} MiB before, {after:.0} after",
        rows as f64 / all,
        rows as f64 / product
    );
}
