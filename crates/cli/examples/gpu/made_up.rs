//! A model folder and sequences that are made up: shapes and lengths of real ones, numbers at random.
//!
//! Legend: V vocabulary, D model width.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use serde_json::{Map, Value, json};
use softshard_labels::{Sequence, SequenceWriter, SequencesInfo, Tokenizer};
use softshard_model::DecoderConfig;

use crate::Bench;
use crate::shapes::LARGE;
use crate::table::{Outcome, Row};

/// Bytes of a number in bf16.
const BYTES: usize = 2;
/// Random numbers that all matrices are filled with, over and over: a prime, so that no two rows are the same.
const DRAWN: usize = 1_048_573;
/// Standard deviation of the logits: freshly initialised ones are nearly equal, which no trained model's are.
const LOGIT_SPREAD: f64 = 3.0;

/// Writes a model of the large shape as a Hugging Face folder in bf16: what streams and what loads reads files.
pub(crate) fn weights(bench: &Bench) -> Result<bool> {
    let began = Instant::now();
    let config = LARGE.config(bench.options.quick);
    let folder = bench.model();
    let unfinished = folder.with_extension("writing");
    fs::create_dir_all(&unfinished)?;
    let bytes = write_weights(&config, &unfinished.join("model.safetensors"))
        .with_context(|| format!("random weights in `{}`", unfinished.display()))?;
    let mut named = config.clone();
    named["torch_dtype"] = json!("bfloat16");
    fs::write(unfinished.join("config.json"), named.to_string())?;
    fs::rename(&unfinished, &folder)?;
    let parameters = DecoderConfig::load(&folder)?.parameter_count();
    Ok(Row::new("weights", format!("{}, random, in bf16, as files", LARGE.name))
        .ours(format!(
            "{:.4} B parameters, {:.4} GB in {:.1} s",
            parameters as f64 / 1e9,
            bytes as f64 / 1e9,
            began.elapsed().as_secs_f64()
        ))
        .say(Outcome::Measured))
}

/// What the numbers of a tensor are.
#[derive(Clone, Copy)]
enum Numbers {
    /// Normal with this standard deviation.
    Normal(f64),
    All(f32),
}

/// Tensors of a Qwen2 as they stand in a file.
fn tensors(config: &Value) -> Vec<(String, Vec<usize>, Numbers)> {
    let size = |key: &str| usize::try_from(config[key].as_u64().unwrap_or(0)).unwrap_or(0);
    let (vocabulary, width, inside) = (size("vocab_size"), size("hidden_size"), size("intermediate_size"));
    let keys = width / size("num_attention_heads") * size("num_key_value_heads");
    let (matrix, one, zero) = (Numbers::Normal(0.02), Numbers::All(1.0), Numbers::All(0.0));
    let mut list = vec![("model.embed_tokens.weight".to_owned(), vec![vocabulary, width], matrix)];
    for layer in 0..size("num_hidden_layers") {
        let mut add = |name: &str, shape: Vec<usize>, numbers| {
            list.push((format!("model.layers.{layer}.{name}"), shape, numbers));
        };
        add("input_layernorm.weight", vec![width], one);
        for (name, rows) in [("q_proj", width), ("k_proj", keys), ("v_proj", keys)] {
            add(&format!("self_attn.{name}.weight"), vec![rows, width], matrix);
            add(&format!("self_attn.{name}.bias"), vec![rows], zero);
        }
        add("self_attn.o_proj.weight", vec![width, width], matrix);
        add("post_attention_layernorm.weight", vec![width], one);
        add("mlp.gate_proj.weight", vec![inside, width], matrix);
        add("mlp.up_proj.weight", vec![inside, width], matrix);
        add("mlp.down_proj.weight", vec![width, inside], matrix);
    }
    list.push(("model.norm.weight".to_owned(), vec![width], one));
    if !config["tie_word_embeddings"].as_bool().unwrap_or(false) {
        let spread = Numbers::Normal(LOGIT_SPREAD / (width as f64).sqrt());
        list.push(("lm_head.weight".to_owned(), vec![vocabulary, width], spread));
    }
    list
}

/// A safetensors file; returns its bytes. Nothing is synced: it does not outlive the program.
fn write_weights(config: &Value, path: &Path) -> Result<u64> {
    let tensors = tensors(config);
    let mut header = Map::new();
    let mut end = 0;
    for (name, shape, _) in &tensors {
        let start = end;
        end += shape.iter().product::<usize>() * BYTES;
        let entry = json!({ "dtype": "BF16", "shape": shape, "data_offsets": [start, end] });
        ensure!(header.insert(name.clone(), entry).is_none(), "`{name}` stands there twice");
    }
    let header = Value::Object(header).to_string();
    let mut file = BufWriter::with_capacity(1 << 22, File::create(path)?);
    file.write_all(&u64::try_from(header.len())?.to_le_bytes())?;
    file.write_all(header.as_bytes())?;
    let normal: Vec<f32> = normal();
    let scaled = |scale: f64| -> Vec<u8> {
        normal.iter().flat_map(|x| bf16(x * scale as f32).to_le_bytes()).collect()
    };
    // The head has a deviation of its own.
    let (mut drawn, mut of) = (Vec::new(), f64::NAN);
    for (index, (_, shape, numbers)) in tensors.iter().enumerate() {
        let mut left = shape.iter().product::<usize>() * BYTES;
        match *numbers {
            Numbers::All(value) => file.write_all(&bf16(value).to_le_bytes().repeat(left / BYTES))?,
            Numbers::Normal(deviation) => {
                if deviation.to_bits() != of.to_bits() {
                    (drawn, of) = (scaled(deviation), deviation);
                }
                let mut from = index * 7919 * BYTES % drawn.len();
                while left > 0 {
                    let length = left.min(drawn.len() - from);
                    file.write_all(&drawn[from..from + length])?;
                    (left, from) = (left - length, 0);
                }
            }
        }
    }
    file.flush()?;
    Ok(fs::metadata(path)?.len())
}

/// Sums of twelve uniform numbers have nearly a standard normal distribution.
fn normal() -> Vec<f32> {
    let mut state = 10_u64;
    let mut uniform = || {
        // Splitmix64.
        state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (state ^ (state >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (mixed >> 40) as f32 / (1 << 24) as f32
    };
    (0..DRAWN).map(|_| (0..12).map(|_| uniform()).sum::<f32>() - 6.0).collect()
}

/// The upper half of an f32, rounded.
fn bf16(value: f32) -> u16 {
    u16::try_from((value.to_bits() + 0x8000) >> 16).expect("half of 32 bits")
}

/// Tokens and labelled tokens of each sequence of a sample of Dolly, in the order of the sample.
pub(crate) fn dolly(bench: &Bench) -> Result<Vec<[usize; 2]>> {
    let path = bench.options.peers.join("dolly_lengths.csv");
    let text = fs::read_to_string(&path).with_context(|| format!("lengths: `{}`", path.display()))?;
    let parse = |(number, line): (usize, &str)| -> Result<[usize; 2]> {
        let place =
            || format!("`{}` line {}: expected two numbers, found `{line}`", path.display(), number + 2);
        let (tokens, labelled) = line.split_once(',').with_context(place)?;
        Ok([tokens.parse().with_context(place)?, labelled.parse().with_context(place)?])
    };
    let mut lengths = text.lines().skip(1).enumerate().map(parse).collect::<Result<Vec<_>>>()?;
    if bench.options.quick {
        lengths.truncate(24);
    }
    Ok(lengths)
}

/// Writes sequences of these lengths whose last tokens are labelled, as an answer's are.
pub(crate) fn write_sequences(folder: &Path, lengths: &[[usize; 2]], vocabulary: usize) -> Result<()> {
    let info = SequencesInfo {
        tokenizer: tokenizer(vocabulary)?,
        template: "none".to_owned(),
        split: "train".to_owned(),
        seed: 10,
    };
    let mut writer = SequenceWriter::create(folder, info, 1 << 12)?;
    for (index, &[tokens, labelled]) in lengths.iter().enumerate() {
        // Each begins elsewhere: sequences have keys.
        let id = |token: usize| i32::try_from((token * 7919 + index * 104_729 + index) % vocabulary);
        let positions = (tokens - labelled.min(tokens - 1)..tokens).map(i32::try_from);
        writer.push(Sequence {
            source: None,
            input_ids: (0..tokens).map(id).collect::<Result<_, _>>()?,
            positions: positions.collect::<Result<_, _>>()?,
        })?;
    }
    writer.finish()?;
    Ok(())
}

/// The fingerprint of a tokenizer that does not exist.
pub(crate) fn tokenizer(vocabulary: usize) -> Result<Tokenizer> {
    Ok(Tokenizer {
        vocabulary_blake3: "0".repeat(64),
        vocab_size: u32::try_from(vocabulary)?,
        special_ids: std::collections::BTreeMap::new(),
        normalizer_blake3: "0".repeat(64),
        chat_template_blake3: None,
        merges_blake3: None,
    })
}
