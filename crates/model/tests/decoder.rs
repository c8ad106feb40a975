//! Tiny random decoders: files, LoRA, generation, gradients.

use std::path::Path;

use burn::tensor::{Device, Int, Tensor, TensorData};
use serde_json::{Value, json};
use softshard_model::{Decoder, DecoderConfig, Error, LoraConfig, Trainable, config_blake3, weights_blake3};

/// A central difference in 32 bits: its rounding error is about 1e-7 / step, its truncation error about step².
const FINITE_DIFFERENCE: f32 = 2e-3;
/// The same sums in another order.
const SUM_ORDER: f32 = 1e-5;

fn llama() -> Value {
    json!({
        "model_type": "llama", "vocab_size": 61, "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "initializer_range": 0.3,
        "tie_word_embeddings": false, "bos_token_id": 1, "eos_token_id": [2, 3], "a_key_of_tomorrow": { "x": 1 },
    })
}

fn qwen2() -> Value {
    let mut value = llama();
    value["model_type"] = "qwen2".into();
    value["tie_word_embeddings"] = true.into();
    value
}

fn random(config: Value, seed: u64) -> Decoder {
    Decoder::random(
        DecoderConfig::from_value(config, Path::new("config.json")).unwrap(),
        seed,
        &Device::flex(),
    )
}

fn lora() -> LoraConfig {
    let target_modules = vec!["q_proj".into(), "v_proj".into(), "down_proj".into()];
    LoraConfig { r: 3, alpha: 6.0, dropout: 0.0, target_modules, rslora: false }
}

/// A LoRA whose B is not zero, so that it changes the model.
fn with_lora(mut decoder: Decoder, config: &LoraConfig) -> Decoder {
    decoder.attach_lora(config, 5).unwrap();
    decoder.train(Trainable::Adapter);
    for (index, (_, tensor)) in decoder.parameters_mut().into_iter().enumerate() {
        let [rows, columns] = tensor.dims();
        let values: Vec<f32> =
            (0..rows * columns).map(|i| ((i * 37 + index * 11) % 17) as f32 / 17.0 - 0.5).collect();
        let values = Tensor::from_data(TensorData::new(values, [rows, columns]), &Device::flex());
        *tensor = values.autodiff().require_grad();
    }
    decoder
}

fn ids(rows: &[&[i32]]) -> Tensor<2, Int> {
    let data = TensorData::new(rows.concat(), [rows.len(), rows[0].len()]);
    Tensor::from_data(data, &Device::flex())
}

fn logits(decoder: &Decoder, tokens: &[i32]) -> Vec<f32> {
    let hidden =
        decoder.hidden(ids(&[tokens])).unwrap().reshape([tokens.len(), decoder.config().hidden_size]);
    hidden.matmul(decoder.head().transpose()).try_into_vec_as::<f32>().unwrap()
}

fn far_apart(left: &[f32], right: &[f32]) -> f32 {
    assert_eq!(left.len(), right.len());
    left.iter().zip(right).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

const TOKENS: [i32; 9] = [1, 9, 60, 0, 33, 12, 12, 7, 5];

#[test]
fn a_saved_model_computes_the_same_and_keeps_unknown_keys() {
    for config in [llama(), qwen2()] {
        let folder = tempfile::tempdir().unwrap();
        let decoder = random(config, 3);
        decoder.save(folder.path()).unwrap();
        let loaded = Decoder::load(folder.path(), &Device::flex()).unwrap();
        assert_eq!(logits(&decoder, &TOKENS), logits(&loaded, &TOKENS));
        assert_eq!(loaded.config().to_value()["a_key_of_tomorrow"], json!({ "x": 1 }));
        assert_eq!(loaded.config().eos_token_ids, [2, 3]);
        let digests = (weights_blake3(folder.path()).unwrap(), config_blake3(folder.path()).unwrap());
        loaded.save(folder.path()).unwrap();
        assert_eq!(digests, (weights_blake3(folder.path()).unwrap(), config_blake3(folder.path()).unwrap()));
    }
}

#[test]
fn the_seed_decides_a_random_model() {
    let [one, same, other] = [3, 3, 4].map(|seed| logits(&random(llama(), seed), &TOKENS));
    assert_eq!(one, same);
    assert_ne!(one, other);
}

#[test]
fn what_follows_a_token_does_not_change_it() {
    let decoder = random(llama(), 1);
    let whole = logits(&decoder, &TOKENS);
    let prefix = logits(&decoder, &TOKENS[..4]);
    assert!(far_apart(&prefix, &whole[..prefix.len()]) < SUM_ORDER);
}

/// `hidden · headᵀ`, of numbers that are f32 already.
fn product(hidden: Tensor<2>, head: &Tensor<2>) -> Tensor<2> {
    hidden.matmul(head.clone().transpose())
}

/// Greedy decoding without a cache and without neighbours.
fn slow_generate(decoder: &Decoder, prompt: &[i32], new: usize, stop: &[i32]) -> Vec<i32> {
    let mut tokens = prompt.to_vec();
    for _ in 0..new {
        let logits = logits(decoder, &tokens);
        let last = &logits[logits.len() - decoder.config().vocab_size..];
        let best = (0..last.len()).max_by(|&a, &b| last[a].total_cmp(&last[b]).then(b.cmp(&a))).unwrap();
        let best = i32::try_from(best).unwrap();
        if stop.contains(&best) {
            break;
        }
        tokens.push(best);
    }
    tokens[prompt.len()..].to_vec()
}

#[test]
fn batched_generation_equals_one_prompt_at_a_time_without_a_cache() {
    for decoder in [random(llama(), 8), random(qwen2(), 9), with_lora(random(llama(), 10), &lora())] {
        let decoder = decoder.frozen();
        let prompts = [vec![5], TOKENS.to_vec(), vec![], vec![7, 7, 8], vec![4, 20], vec![50; 30], vec![1]];
        // Stop ids that some of the answers meet early.
        let stop: Vec<i32> = (0..61).step_by(7).collect();
        for stop in [&[][..], &stop] {
            let found = decoder.generate(&prompts, 24, stop, product).unwrap();
            for (prompt, found) in prompts.iter().zip(&found) {
                let expected =
                    if prompt.is_empty() { vec![] } else { slow_generate(&decoder, prompt, 24, stop) };
                assert_eq!(found, &expected, "{prompt:?}");
            }
        }
        assert!(decoder.generate(&prompts, 0, &[], product).unwrap().iter().all(Vec::is_empty));
    }
}

/// A scalar with a gradient everywhere.
fn objective(decoder: &Decoder) -> Tensor<1> {
    let hidden = decoder.hidden(ids(&[&TOKENS[..5], &TOKENS[4..]])).unwrap();
    let weights: Vec<f32> = (0..2 * 5 * 24).map(|i| ((i * 29) % 13) as f32 / 13.0 - 0.4).collect();
    (hidden * Tensor::from_data(TensorData::new(weights, [2, 5, 24]), &Device::flex())).mean()
}

fn check_gradients(decoder: &Decoder) {
    let mut decoder = decoder.clone();
    let gradients = objective(&decoder).backward();
    let found: Vec<Vec<f32>> = decoder
        .parameters_mut()
        .into_iter()
        .map(|(name, tensor)| {
            tensor.grad(&gradients).unwrap_or_else(|| panic!("{name}")).try_into_vec_as().unwrap()
        })
        .collect();
    let step = 4e-3;
    for (index, gradient) in found.iter().enumerate() {
        let largest = gradient.iter().fold(0.0f32, |most, value| most.max(value.abs()));
        assert!(largest > 0.0, "parameter {index} has no gradient");
        for element in (0..gradient.len()).step_by(gradient.len() / 5 + 1) {
            let mut value = |shift: f32| {
                let (_, tensor) = decoder.parameters_mut().swap_remove(index);
                let (kept, [rows, columns]) = (tensor.clone(), tensor.dims());
                let mut values = tensor.to_data_as::<f32>().try_into_vec::<f32>().unwrap();
                values[element] += shift;
                let changed = TensorData::new(values, [rows, columns]);
                *tensor = Tensor::from_data(changed, &Device::flex()).autodiff().require_grad();
                let value = objective(&decoder).into_scalar::<f32>();
                *decoder.parameters_mut().swap_remove(index).1 = kept;
                value
            };
            let difference = (value(step) - value(-step)) / (2.0 * step);
            let error = (difference - gradient[element]).abs();
            assert!(
                error < FINITE_DIFFERENCE,
                "parameter {index} element {element}: {difference} {}",
                gradient[element]
            );
        }
    }
}

#[test]
fn gradients_equal_finite_differences() {
    let mut decoder = random(qwen2(), 6);
    decoder.train(Trainable::Model);
    assert_eq!(decoder.trainable_count(), decoder.parameter_count());
    check_gradients(&decoder);
    check_gradients(&with_lora(random(llama(), 6), &lora()));
}

#[test]
fn a_frozen_model_leaves_no_graph() {
    let mut decoder = with_lora(random(llama(), 6), &lora());
    assert!(decoder.hidden(ids(&[&TOKENS])).unwrap().is_tracked());
    assert!(!decoder.head().is_tracked());
    assert!(!decoder.frozen().hidden(ids(&[&TOKENS])).unwrap().is_tracked());
    decoder.train(Trainable::Nothing);
    assert!(decoder.parameters_mut().is_empty() && !decoder.hidden(ids(&[&TOKENS])).unwrap().is_tracked());
}

#[test]
fn an_adapter_survives_its_files() {
    let folder = tempfile::tempdir().unwrap();
    let base = random(llama(), 2);
    let config = LoraConfig { rslora: true, ..lora() };
    let decoder = with_lora(base.clone(), &config);
    decoder.save_adapter(folder.path(), "models/base").unwrap();
    let mut loaded = base.clone();
    loaded.load_adapter(folder.path()).unwrap();
    assert_eq!(loaded.lora(), Some(&base.config().lora_shape(&config).unwrap()));
    let expected = logits(&decoder.frozen(), &TOKENS);
    assert_eq!(expected, logits(&loaded, &TOKENS));
    assert!(far_apart(&expected, &logits(&base, &TOKENS)) > 0.1);
    loaded.detach_lora();
    assert_eq!(logits(&loaded, &TOKENS), logits(&base, &TOKENS));
}

#[test]
fn a_new_adapter_changes_nothing_and_its_seed_decides_it() {
    let base = random(llama(), 2);
    let mut decoder = base.clone();
    let everything = LoraConfig { target_modules: vec!["all-linear".into()], ..lora() };
    decoder.attach_lora(&everything, 1).unwrap();
    assert_eq!(logits(&decoder, &TOKENS), logits(&base, &TOKENS));
    decoder.train(Trainable::Adapter);
    let names: Vec<String> = decoder.parameters_mut().into_iter().map(|(name, _)| name).collect();
    assert_eq!(names[0], "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight");
    assert_eq!(names.len(), 2 * 7 * 2);
    let drawn = |seed| {
        let mut decoder = base.clone();
        decoder.attach_lora(&everything, seed).unwrap();
        decoder.train(Trainable::Adapter);
        decoder.parameters_mut().swap_remove(0).1.to_data_as::<f32>().try_into_vec::<f32>().unwrap()
    };
    assert_eq!(drawn(1), drawn(1));
    assert_ne!(drawn(1), drawn(2));
    assert!(drawn(1).iter().all(|value| value.abs() <= 24f32.powf(-0.5)));
}

#[test]
fn dropout_is_drawn_from_its_seed_and_absent_otherwise() {
    let mut decoder = with_lora(random(llama(), 2), &LoraConfig { dropout: 0.3, ..lora() });
    let without = logits(&decoder, &TOKENS);
    let mut with = |seed| {
        decoder.set_dropout_seed(Some(seed));
        logits(&decoder, &TOKENS)
    };
    let (one, same, other) = (with(1), with(1), with(2));
    assert_eq!(one, same);
    assert_ne!(one, other);
    assert_ne!(one, without);
    assert!(far_apart(&logits(&decoder.frozen(), &TOKENS), &without) < SUM_ORDER);
}

#[test]
fn an_adapter_of_another_model_is_refused_by_names_and_shapes() {
    let folder = tempfile::tempdir().unwrap();
    with_lora(random(llama(), 2), &lora()).save_adapter(folder.path(), "models/small").unwrap();
    let mut wider = llama();
    wider["hidden_size"] = 32.into();
    wider["num_hidden_layers"] = 1.into();
    let mut other = random(wider, 2);
    let message = other.load_adapter(folder.path()).unwrap_err().to_string();
    assert!(message.contains("the adapter was made for `models/small`"), "{message}");
    assert!(
        message.contains("layers.0.self_attn.q_proj.lora_A.weight`: expected shape [3, 32], found [3, 24]"),
        "{message}"
    );
    assert!(
        message.contains("layers.1.self_attn.q_proj.lora_A.weight`: expected no such tensor"),
        "{message}"
    );
    assert!(other.lora().is_none());
}

#[test]
fn lora_settings_are_checked() {
    let mut decoder = random(llama(), 2);
    let bad = [
        (LoraConfig { r: 0, ..lora() }, "`r`"),
        (LoraConfig { dropout: 1.0, ..lora() }, "`dropout`"),
        (LoraConfig { target_modules: vec!["c_attn".into()], ..lora() }, "found `c_attn`"),
        (LoraConfig { target_modules: vec!["proj".into()], ..lora() }, "found `proj`"),
        (LoraConfig { target_modules: vec![], ..lora() }, "found none"),
    ];
    for (config, expected) in bad {
        let message = decoder.attach_lora(&config, 0).unwrap_err().to_string();
        assert!(message.contains(expected), "{message}");
    }
}

#[test]
fn tensors_that_do_not_fit_are_reported_together() {
    let folder = tempfile::tempdir().unwrap();
    random(llama(), 2).save(folder.path()).unwrap();
    let mut config = llama();
    config["tie_word_embeddings"] = true.into(); // the stored head counts all the same
    config["intermediate_size"] = 41.into();
    config["attention_bias"] = true.into();
    config["num_hidden_layers"] = 1.into();
    std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    let error = Decoder::load(folder.path(), &Device::flex()).unwrap_err();
    let Error::Tensors { problems, .. } = &error else { panic!("{error}") };
    let problems = problems.join("\n");
    for expected in [
        "`model.layers.0.self_attn.q_proj.bias`: expected shape [32], found no such tensor",
        "`model.layers.0.mlp.down_proj.weight`: expected shape [24, 41], found [24, 40]",
        "`model.layers.1.mlp.up_proj.weight`: expected no such tensor, found shape [40, 24]",
    ] {
        assert!(problems.contains(expected), "{problems}");
    }
    assert!(!problems.contains("lm_head"), "{problems}");
    assert!(error.to_string().ends_with(" more"), "{error}");
}

#[test]
fn files_that_are_missing_torn_or_not_numbers_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let load = || Decoder::load(folder.path(), &Device::flex()).unwrap_err().to_string();
    assert!(load().contains("no config.json\nhint: "));
    std::fs::write(folder.path().join("config.json"), llama().to_string()).unwrap();
    assert!(load().contains("no model.safetensors"));
    std::fs::write(folder.path().join("pytorch_model.bin"), "").unwrap();
    assert!(load().contains("PyTorch pickles only"));
    std::fs::write(folder.path().join("model.Q4_K.gguf"), "").unwrap();
    assert!(load().contains("GGUF only"));

    let weights = folder.path().join("model.safetensors");
    random(llama(), 2).save(folder.path()).unwrap();
    let whole = std::fs::read(&weights).unwrap();
    for bytes in [&whole[..whole.len() - 1], &whole[..100], &[], &[255; 64]] {
        std::fs::write(&weights, bytes).unwrap();
        assert!(load().contains("model.safetensors`: not a whole safetensors file"), "{}", load());
    }
    let mut broken = whole.clone();
    let last = broken.len() - 4;
    broken[last..].copy_from_slice(&f32::NAN.to_le_bytes());
    std::fs::write(&weights, broken).unwrap();
    let message = load();
    assert!(
        message.contains("tensor `") && message.contains("is NaN, expected a finite number"),
        "{message}"
    );
}

#[test]
fn shards_are_read_through_their_index_and_only_from_the_folder() {
    let folder = tempfile::tempdir().unwrap();
    let decoder = random(llama(), 2);
    decoder.save(folder.path()).unwrap();
    std::fs::rename(
        folder.path().join("model.safetensors"),
        folder.path().join("model-00001-of-00001.safetensors"),
    )
    .unwrap();
    let index = |file: &str| {
        let text = json!({ "weight_map": { "model.norm.weight": file } }).to_string();
        std::fs::write(folder.path().join("model.safetensors.index.json"), text).unwrap();
    };
    index("model-00001-of-00001.safetensors");
    let loaded = Decoder::load(folder.path(), &Device::flex()).unwrap();
    assert_eq!(logits(&decoder, &TOKENS), logits(&loaded, &TOKENS));
    weights_blake3(folder.path()).unwrap();
    for outside in ["../model.safetensors", "/etc/passwd", "a/b.safetensors", ".."] {
        index(outside);
        let message = Decoder::load(folder.path(), &Device::flex()).unwrap_err().to_string();
        assert!(message.contains("expected a file name"), "{message}");
    }
}

#[test]
fn what_is_not_supported_is_refused_by_name() {
    let cases = [
        ("model_type", json!("bert"), "model_type \"bert\" is not supported"),
        ("hidden_act", json!("xielu"), "hidden_act \"xielu\" is not supported"),
        ("quantization_config", json!({}), "quantization_config is not supported"),
        ("rope_scaling", json!({ "type": "axial" }), "rope_scaling of type \"axial\" is not supported"),
        ("rope_scaling", json!({ "type": "yarn" }), "`factor`: expected a number, found nothing"),
        ("rope_parameters", json!({ "rope_type": "llama3" }), "`factor`: expected a number, found nothing"),
        ("rope_scaling", json!({ "type": "linear", "factor": -1.0 }), "expected a positive number, found -1"),
        ("num_key_value_heads", json!(3), "expected a divisor of 4 query heads, found 3"),
        ("head_dim", json!(7), "rotary width of a head: expected an even number up to 7, found 7"),
        ("hidden_size", json!(0), "`hidden_size`: expected 1 to"),
        ("num_hidden_layers", json!(1e12 as u64), "`num_hidden_layers`: expected 1 to"),
        ("vocab_size", json!("many"), "`vocab_size`: expected a whole number, found \"many\""),
    ];
    for (key, value, expected) in cases {
        let mut config = llama();
        config[key] = value;
        let message = DecoderConfig::from_value(config, Path::new("config.json")).unwrap_err().to_string();
        assert!(message.contains(expected), "{key}: {message}");
    }
    let mut newer = llama();
    newer["rope_parameters"] = json!({ "rope_type": "default", "rope_theta": 5e5 });
    assert_eq!(
        DecoderConfig::from_value(newer, Path::new("config.json")).unwrap().positions,
        softshard_model::Positions::Rotary {
            theta: 5e5,
            width: 8,
            scaling: softshard_model::RopeScaling::None,
            attention_factor: 1.0
        }
    );
}
