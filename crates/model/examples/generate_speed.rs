//! Tokens per second of answers: `generate_speed FOLDER BATCHxPROMPTxNEW... [bf16]`.
//!
//! Greedy, with no end token, so that every answer has its length. One JSON line for each shape, as `tests/peers/bench_generate.py`
//! measures transformers: `next` is the speed of all tokens of the answers but the first, `all` counts the time of the prompts too.

use std::path::Path;
use std::time::Instant;

use burn::tensor::{Device, Tensor};
use softshard_model::{Decoder, LoadOptions, Precision, peak_bytes};

/// Times that each shape is measured; the fastest counts.
const ROUNDS: usize = 2;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    softshard_model::keep_freed_memory();
    let mut arguments: Vec<String> = std::env::args().skip(1).collect();
    let half = arguments.last().is_some_and(|last| last == "bf16");
    arguments.truncate(arguments.len() - usize::from(half));
    let [folder, shapes @ ..] = &arguments[..] else { return Err("expected a model folder".into()) };
    let precision = if half { Precision::Bf16 } else { Precision::F32 };
    let options = LoadOptions { precision, ..LoadOptions::default() };
    let decoder = Decoder::load_with(Path::new(folder), &Device::flex(), &options)?;
    let vocabulary = decoder.config().vocab_size;
    let logits =
        |hidden: Tensor<2>, head: &Tensor<2>| softshard_products::few_rows_matmul(hidden, head.clone());
    for shape in shapes {
        let sizes: Vec<usize> = shape.split('x').map(str::parse).collect::<Result<_, _>>()?;
        let &[batch, prompt, new] = &sizes[..] else { return Err("expected BATCHxPROMPTxNEW".into()) };
        let ids: Vec<i32> =
            (0..batch * prompt).map(|i| i32::try_from(i * 7919 % vocabulary)).collect::<Result<_, _>>()?;
        let prompts: Vec<Vec<i32>> = ids.chunks(prompt).map(<[i32]>::to_vec).collect();
        let seconds = |new: usize| -> Result<f64, Box<dyn std::error::Error>> {
            let began = Instant::now();
            let answers = decoder.generate(&prompts, new, &[], logits)?;
            assert!(answers.iter().all(|answer| answer.len() == new));
            Ok(began.elapsed().as_secs_f64())
        };
        let (mut first, mut all) = (f64::INFINITY, f64::INFINITY);
        for _ in 0..ROUNDS {
            first = first.min(seconds(1)?);
            all = all.min(seconds(new)?);
        }
        println!(
            "{}",
            serde_json::json!({
                "shape": shape,
                "next": (batch * (new - 1)) as f64 / (all - first),
                "all": (batch * new) as f64 / all,
                "peak_rss_mib": peak_bytes(decoder.device()).map(|bytes| bytes >> 20),
            })
        );
    }
    Ok(())
}
