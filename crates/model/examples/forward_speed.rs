//! Tokens per second of a small decoder: forward, forward and backward, generation.
//!
//! `cargo run --example forward_speed [WIDTH LAYERS HEADS FEED_FORWARD VOCABULARY BATCH TOKENS]`

use std::path::Path;
use std::time::Instant;

use burn::tensor::{Device, Int, Tensor, TensorData};
use softshard_model::{Decoder, DecoderConfig, Trainable};

/// Each measurement is repeated for about this long.
const SECONDS: f64 = 3.0;

/// Processor seconds of this process, all threads: on a shared machine the figure to compare. Linux only.
fn cpu_seconds() -> Option<f64> {
    let text = std::fs::read_to_string("/proc/self/stat").ok()?;
    let mut fields = text.rsplit_once(')')?.1.split_whitespace().skip(11);
    let mut ticks = || fields.next()?.parse::<f64>().ok();
    Some((ticks()? + ticks()?) / 100.0)
}

fn measure(what: &str, tokens: usize, mut pass: impl FnMut()) {
    pass();
    let (start, cpu_start, mut passes) = (Instant::now(), cpu_seconds(), 0);
    while start.elapsed().as_secs_f64() < SECONDS {
        pass();
        passes += 1;
    }
    let done = f64::from(passes) * tokens as f64;
    let per_cpu = cpu_seconds().zip(cpu_start).map_or(f64::NAN, |(end, start)| done / (end - start));
    println!(
        "{what:44} {:8.0} tokens/s {per_cpu:8.0} tokens/s of a core",
        done / start.elapsed().as_secs_f64()
    );
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let given: Vec<usize> = std::env::args().skip(1).map(|text| text.parse()).collect::<Result<_, _>>()?;
    let [width, layers, heads, feed_forward, vocabulary, batch, tokens] = if given.is_empty() {
        [128, 4, 4, 352, 1024, 32, 96]
    } else {
        given.try_into().map_err(|_| "7 numbers")?
    };
    let config = serde_json::json!({
        "model_type": "llama", "vocab_size": vocabulary, "hidden_size": width, "intermediate_size": feed_forward,
        "num_hidden_layers": layers, "num_attention_heads": heads, "tie_word_embeddings": true,
    });
    let device = Device::flex();
    let mut decoder = Decoder::random(DecoderConfig::from_value(config, Path::new("example"))?, 1, &device);
    println!("{} parameters, B={batch} T={tokens}", decoder.parameter_count());

    let ids: Vec<i32> =
        (0..batch * tokens).map(|i| i32::try_from(i * 7919 % vocabulary)).collect::<Result<_, _>>()?;
    let input = Tensor::<2, Int>::from_data(TensorData::new(ids.clone(), [batch, tokens]), &device);
    let total = batch * tokens;
    measure("forward", total, || {
        decoder.hidden(input.clone()).expect("resident").sum().into_scalar::<f32>();
    });

    decoder.train(Trainable::Model);
    measure("forward and backward, all parameters", total, || {
        let gradients = decoder.hidden(input.clone()).expect("resident").square().mean().backward();
        decoder.head().grad(&gradients).expect("the embedding learns");
    });

    decoder.attach_lora(
        &softshard_model::LoraConfig {
            r: 8,
            alpha: 16.0,
            dropout: 0.0,
            target_modules: vec!["q_proj".into(), "v_proj".into()],
            rslora: false,
        },
        1,
    )?;
    decoder.train(Trainable::Adapter);
    measure("forward and backward, LoRA r=8 on q and v", total, || {
        decoder.hidden(input.clone()).expect("resident").square().mean().backward();
    });

    decoder.detach_lora();
    let prompts: Vec<Vec<i32>> = ids.chunks(tokens).map(<[i32]>::to_vec).collect();
    let new = 64;
    measure("generation, 64 new tokens a prompt", batch * new, || {
        decoder.generate(&prompts, new, &[]).expect("resident");
    });
    Ok(())
}
