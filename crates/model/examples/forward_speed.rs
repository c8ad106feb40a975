//! Tokens per second of a small decoder: forward, forward and backward, generation.
//!
//! `forward_speed [WIDTH LAYERS HEADS FEED_FORWARD VOCABULARY BATCH TOKENS]`: a random model.
//!
//! `forward_speed FOLDER BATCHxTOKENS...`: the model of a folder, forward only, as `tests/peers/bench_forward.py` measures
//! transformers. One JSON line for each shape and part.

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

/// Of a folder's model: passes, of which the fastest counts, and positions of every row that get logits.
const PASSES: usize = 2;
const LAST: usize = 64;

/// Ids that differ from their neighbours, `[batch, tokens]`.
fn some_ids([batch, tokens]: [usize; 2], vocabulary: usize) -> Result<Vec<i32>, std::num::TryFromIntError> {
    (0..batch * tokens).map(|i| i32::try_from(i * 7919 % vocabulary)).collect()
}

fn input(ids: Vec<i32>, shape: [usize; 2]) -> Tensor<2, Int> {
    Tensor::from_data(TensorData::new(ids, shape), &Device::flex())
}

/// `body` stops at the hidden states, `head` goes on to the logits of the last positions of every row.
fn measure_folder(folder: &Path, shapes: &[String]) -> Result<(), Box<dyn std::error::Error>> {
    let decoder = Decoder::load(folder, &Device::flex())?;
    let forward = |ids: Tensor<2, Int>, head: bool| {
        let mut values = decoder.hidden(ids).expect("resident");
        if head {
            let [batch, tokens, width] = values.dims();
            let last = LAST.min(tokens);
            let rows = values.narrow(1, tokens - last, last).reshape([batch * last, width]);
            values = rows.matmul(decoder.head().transpose()).unsqueeze();
        }
        // Waits for the values without a pass over all of them.
        values.slice([0..1, 0..1, 0..1]).into_scalar::<f32>();
    };
    forward(input(vec![0; LAST], [1, LAST]), true);
    for shape in shapes {
        let (batch, tokens) = shape.split_once('x').ok_or("expected BATCHxTOKENS")?;
        let size = [batch.parse()?, tokens.parse()?];
        let ids = input(some_ids(size, decoder.config().vocab_size)?, size);
        for (what, head) in [("body", false), ("head", true)] {
            let mut seconds = f64::INFINITY;
            for _ in 0..PASSES {
                let start = Instant::now();
                forward(ids.clone(), head);
                seconds = seconds.min(start.elapsed().as_secs_f64());
            }
            let speed = (size[0] * size[1]) as f64 / seconds;
            println!("{}", serde_json::json!({ "shape": shape, "what": what, "tokens_per_second": speed }));
        }
    }
    Ok(())
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    softshard_model::keep_freed_memory();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let Some((folder, shapes)) = arguments.split_first().filter(|(first, _)| Path::new(first).is_dir()) {
        return measure_folder(Path::new(folder), shapes);
    }
    measure_random(&arguments)
}

fn measure_random(arguments: &[String]) -> Result<(), Box<dyn std::error::Error>> {
    let given: Vec<usize> = arguments.iter().map(|text| text.parse()).collect::<Result<_, _>>()?;
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

    let ids = some_ids([batch, tokens], vocabulary)?;
    let input = input(ids.clone(), [batch, tokens]);
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
        let product = |hidden: Tensor<2>, head: &Tensor<2>| hidden.matmul(head.clone().transpose());
        decoder.generate(&prompts, new, &[], product).expect("resident");
    });
    Ok(())
}
