//! An adapter merged into its base: the same model in fewer files.

use std::cell::RefCell;
use std::path::Path;
use std::sync::atomic::AtomicBool;

use burn::tensor::{Device, Int, Tensor, TensorData, bf16};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde_json::{Value, json};
use softshard_model::{
    Decoder, DecoderConfig, Error, LoraConfig, MergeInputs, Merged, Precision, Trainable, merge,
};

/// The same sums in another order.
const SUM_ORDER: f32 = 1e-5;
/// Eight significant bits, halved by rounding to the nearest.
const BF16: f32 = 1.0 / 256.0;

fn config() -> Value {
    json!({
        "model_type": "qwen2", "vocab_size": 61, "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "initializer_range": 0.3,
        "tie_word_embeddings": true, "torch_dtype": "float32", "a_key_of_tomorrow": 1,
    })
}

fn random(config: Value) -> Decoder {
    let config = DecoderConfig::from_value(config, Path::new("config.json")).unwrap();
    Decoder::random(config, 3, &Device::flex())
}

/// A base, an adapter that changes it, and the decoder that has both.
fn saved(folder: &Path, targets: &[&str]) -> Decoder {
    saved_of(config(), folder, targets)
}

fn saved_of(config: Value, folder: &Path, targets: &[&str]) -> Decoder {
    let mut decoder = random(config);
    decoder.save(&folder.join("base")).unwrap();
    let target_modules = targets.iter().map(|&name| name.to_owned()).collect();
    decoder
        .attach_lora(&LoraConfig { r: 3, alpha: 4.0, dropout: 0.0, target_modules, rslora: true }, 5)
        .unwrap();
    decoder.train(Trainable::Adapter);
    for (_, tensor) in decoder.parameters_mut() {
        let [rows, columns] = tensor.dims();
        let values: Vec<f32> = (0..rows * columns).map(|i| ((i * 37) % 17) as f32 / 34.0 - 0.25).collect();
        let values = Tensor::from_data(TensorData::new(values, [rows, columns]), &Device::flex());
        *tensor = values.autodiff().require_grad();
    }
    decoder.save_adapter(&folder.join("adapter"), "models/small").unwrap();
    decoder.frozen()
}

fn merged(folder: &Path, precision: Option<Precision>) -> Result<Merged, Error> {
    let told = RefCell::new(Vec::new());
    let inputs = MergeInputs {
        base: &folder.join("base"),
        adapter: &folder.join("adapter"),
        output: &folder.join("merged"),
        precision,
        provenance: None,
        stop: &AtomicBool::new(false),
    };
    let merged = merge(&inputs, &|done, total| told.borrow_mut().push((done, total)))?;
    let all: Vec<_> = (1..=merged.tensors).map(|done| (done, merged.tensors)).collect();
    assert_eq!(told.into_inner(), all, "every tensor is told");
    Ok(merged)
}

fn logits(decoder: &Decoder) -> Vec<f32> {
    let ids = Tensor::<2, Int>::from_data(TensorData::new(vec![1, 9, 60, 0, 33], [1, 5]), &Device::flex());
    let hidden = decoder.hidden(ids).unwrap();
    let [_, tokens, width] = hidden.dims();
    let hidden = hidden.reshape([tokens, width]);
    hidden.matmul(decoder.head().transpose()).try_into_vec_as::<f32>().unwrap()
}

fn load(folder: &Path) -> Decoder {
    Decoder::load(folder, &Device::flex()).unwrap()
}

fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap();
    let mut names: Vec<String> =
        entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

/// Puts the base's tensors into two files with an index, in bf16, with a buffer of integers that nobody reads.
fn shard_in_bf16(base: &Path) {
    let bytes = std::fs::read(base.join("model.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let mut stored: Vec<(String, Dtype, Vec<usize>, Vec<u8>)> = tensors
        .tensors()
        .into_iter()
        .map(|(name, view)| {
            let floats = view.data().as_chunks().0.iter().map(|four| f32::from_le_bytes(*four));
            let bytes = floats.flat_map(|value| bf16::from_f32(value).to_le_bytes()).collect();
            (name, Dtype::BF16, view.shape().to_vec(), bytes)
        })
        .collect();
    stored.push(("model.layers.0.attn.bias".into(), Dtype::I64, vec![2], vec![9; 16]));
    let mut map = serde_json::Map::new();
    for part in 0..2 {
        let file = format!("model-0000{}-of-00002.safetensors", part + 1);
        let views = stored.iter().enumerate().filter(|(index, _)| index % 2 == part).map(|(_, tensor)| {
            let (name, dtype, shape, bytes) = tensor;
            map.insert(name.clone(), json!(file));
            (name, TensorView::new(*dtype, shape.clone(), bytes).unwrap())
        });
        let views: Vec<_> = views.collect();
        let metadata = std::collections::HashMap::from([("format".to_owned(), "pt".to_owned())]);
        std::fs::write(base.join(&file), safetensors::serialize(views, Some(metadata)).unwrap()).unwrap();
    }
    let index = json!({ "metadata": { "total_size": 1 }, "weight_map": map });
    std::fs::write(base.join("model.safetensors.index.json"), index.to_string()).unwrap();
    std::fs::remove_file(base.join("model.safetensors")).unwrap();
}

#[test]
fn a_merged_model_computes_what_base_and_adapter_do() {
    for targets in [&["all-linear"][..], &["q_proj", "down_proj"]] {
        let folder = tempfile::tempdir().unwrap();
        let expected = logits(&saved(folder.path(), targets));
        let base = folder.path().join("base");
        std::fs::write(base.join("tokenizer.json"), "{}").unwrap();
        std::fs::write(base.join("pytorch_model.bin"), "not copied").unwrap();
        let found = merged(folder.path(), None).unwrap();
        assert_eq!(found.changed, 2 * if targets.len() == 1 { 7 } else { 2 });
        assert_eq!(found.made_for, "models/small");
        let output = folder.path().join("merged");
        assert_eq!(names(&output), ["config.json", "model.safetensors", "tokenizer.json"]);
        let [before, after] =
            [&base, &output].map(|folder| std::fs::read(folder.join("config.json")).unwrap());
        assert_eq!(before, after);
        let worst =
            logits(&load(&output)).iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(worst < SUM_ORDER, "{worst}");
        let base = logits(&load(&base));
        assert!(base.iter().zip(&expected).any(|(a, b)| (a - b).abs() > 0.1), "the adapter does something");
    }
}

/// Families whose files are laid out otherwise: fused and transposed maps, an embedding narrower than the model.
#[test]
fn a_merged_model_of_another_family_does_so_too() {
    let families = [
        json!({ "model_type": "gpt2", "vocab_size": 61, "n_embd": 24, "n_layer": 2, "n_head": 4, "n_positions": 64,
            "initializer_range": 0.3 }),
        json!({ "model_type": "gpt_neox", "vocab_size": 61, "hidden_size": 32, "intermediate_size": 40,
            "num_hidden_layers": 2, "num_attention_heads": 4, "rotary_pct": 0.25, "initializer_range": 0.3 }),
        json!({ "model_type": "opt", "vocab_size": 61, "hidden_size": 24, "ffn_dim": 40, "num_hidden_layers": 2,
            "num_attention_heads": 4, "init_std": 0.3, "max_position_embeddings": 64, "word_embed_proj_dim": 16,
            "do_layer_norm_before": false }),
    ];
    for config in families {
        let folder = tempfile::tempdir().unwrap();
        let expected = logits(&saved_of(config.clone(), folder.path(), &["all-linear"]));
        let found = merged(folder.path(), None).unwrap();
        let maps = if config["model_type"] == "opt" { 2 * 6 + 2 } else { 2 * 4 };
        assert_eq!(found.changed, maps, "{config}");
        let found = logits(&load(&folder.path().join("merged")));
        let worst = found.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(worst < SUM_ORDER, "{worst} {config}");
    }
}

/// PEFT writes "all-linear" as the whole names of the modules that it found.
#[test]
fn targets_may_be_whole_names() {
    let folder = tempfile::tempdir().unwrap();
    let expected = logits(&saved(folder.path(), &["model.layers.1.self_attn.q_proj", "up_proj"]));
    assert_eq!(merged(folder.path(), None).unwrap().changed, 3);
    let mut base = load(&folder.path().join("base"));
    base.load_adapter(&folder.path().join("adapter")).unwrap();
    assert_eq!(logits(&base), expected);
}

#[test]
fn files_and_number_formats_stay_and_so_does_what_is_not_merged() {
    let folder = tempfile::tempdir().unwrap();
    saved(folder.path(), &["k_proj"]);
    let (base, output) = (folder.path().join("base"), folder.path().join("merged"));
    shard_in_bf16(&base);
    let found = merged(folder.path(), None).unwrap();
    assert_eq!((found.changed, found.tensors), (2, 1 + 2 * 12 + 1 + 1));
    assert_eq!(names(&output), names(&base));
    let mut exact = load(&base);
    exact.load_adapter(&folder.path().join("adapter")).unwrap();
    let mut changed = 0;
    for name in names(&base).iter().filter(|name| name.ends_with(".safetensors")) {
        let [before, after] = [&base, &output].map(|folder| std::fs::read(folder.join(name)).unwrap());
        let [before, after] = [&before, &after].map(|bytes| SafeTensors::deserialize(bytes).unwrap());
        assert_eq!(before.len(), after.len());
        for (name, before) in before.tensors() {
            let after = after.tensor(&name).unwrap();
            assert_eq!((before.dtype(), before.shape()), (after.dtype(), after.shape()));
            changed += usize::from(before.data() != after.data());
            assert!(before.data() == after.data() || name.ends_with("k_proj.weight"), "{name}");
        }
    }
    assert_eq!(changed, 2);
    let index = "model.safetensors.index.json";
    assert_eq!(std::fs::read(base.join(index)).unwrap(), std::fs::read(output.join(index)).unwrap());
    let close = logits(&load(&output));
    let exact = logits(&exact);
    let largest = exact.iter().fold(0f32, |most, value| most.max(value.abs()));
    assert!(close.iter().zip(&exact).all(|(a, b)| (a - b).abs() < 4.0 * BF16 * largest));
}

/// Adds tensors to the adapter, and says so in its settings.
fn with_whole(adapter: &Path, modules: &[&str], whole: &[(&str, Vec<usize>, Vec<f32>)]) {
    let settings = adapter.join("adapter_config.json");
    let mut keys: Value = serde_json::from_slice(&std::fs::read(&settings).unwrap()).unwrap();
    keys["modules_to_save"] = json!(modules);
    std::fs::write(&settings, keys.to_string()).unwrap();
    let file = adapter.join("adapter_model.safetensors");
    let bytes = std::fs::read(&file).unwrap();
    let stored = SafeTensors::deserialize(&bytes).unwrap();
    let mut views: Vec<_> = stored.iter().map(|(name, view)| (name.to_owned(), view)).collect();
    let numbers: Vec<Vec<u8>> = (whole.iter())
        .map(|(_, _, values)| values.iter().flat_map(|value| value.to_le_bytes()).collect())
        .collect();
    for ((name, shape, _), bytes) in whole.iter().zip(&numbers) {
        let view = TensorView::new(Dtype::F32, shape.clone(), bytes).unwrap();
        views.push((format!("base_model.model.{name}"), view));
    }
    std::fs::write(file, safetensors::serialize(views, None).unwrap()).unwrap();
}

/// A base that ties its head, in several files: the head that the adapter brings goes to one of them, the index and
/// `config.json` say so.
#[test]
fn a_head_that_is_tied_no_longer_is_written() {
    let folder = tempfile::tempdir().unwrap();
    saved(folder.path(), &["k_proj"]);
    let (base, output) = (folder.path().join("base"), folder.path().join("merged"));
    shard_in_bf16(&base);
    let head: Vec<f32> = (0..61 * 24).map(|index| ((index * 31) % 19) as f32 / 16.0 - 0.5).collect();
    with_whole(
        &folder.path().join("adapter"),
        &["lm_head"],
        &[("lm_head.weight", vec![61, 24], head.clone())],
    );
    let mut adapted = load(&base);
    adapted.load_adapter(&folder.path().join("adapter")).unwrap();
    let found = merged(folder.path(), None).unwrap();
    assert_eq!((found.changed, found.tensors, found.untied), (3, 1 + 2 * 12 + 1 + 1 + 1, true));
    assert_eq!(names(&output), names(&base));
    let merged_model = load(&output);
    assert!(!merged_model.config().tie_word_embeddings);
    let written = merged_model.head().try_into_vec_as::<f32>().unwrap();
    assert_eq!(written, head, "sixteenths are whole in bf16");
    let read = |file: &Path| -> Value { serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap() };
    let index = read(&output.join("model.safetensors.index.json"));
    assert_eq!(index["weight_map"]["lm_head.weight"], index["weight_map"]["model.embed_tokens.weight"]);
    assert_eq!(index["metadata"]["total_size"], json!(2 * merged_model.parameter_count() + 16));
    let (before, after) = (read(&base.join("config.json")), read(&output.join("config.json")));
    assert_eq!((&after["tie_word_embeddings"], &after["a_key_of_tomorrow"]), (&json!(false), &json!(1)));
    assert_eq!(after["torch_dtype"], before["torch_dtype"]);
    let (close, exact) = (logits(&merged_model), logits(&adapted));
    let largest = exact.iter().fold(0f32, |most, value| most.max(value.abs()));
    assert!(close.iter().zip(&exact).all(|(a, b)| (a - b).abs() < 4.0 * BF16 * largest));

    // Files of a model without its head cannot hold one.
    std::fs::remove_dir_all(&output).unwrap();
    let tensors = base.join("model-00001-of-00002.safetensors");
    let other = base.join("model-00002-of-00002.safetensors");
    std::fs::remove_file(base.join("model.safetensors.index.json")).unwrap();
    let all = [&tensors, &other].map(|file| std::fs::read(file).unwrap());
    let views = all.iter().flat_map(|bytes| {
        let stored = SafeTensors::deserialize(bytes).unwrap();
        let short = |name: &str| name.strip_prefix("model.").unwrap_or(name).to_owned();
        stored.iter().map(|(name, view)| (short(name), view)).collect::<Vec<_>>()
    });
    std::fs::write(base.join("model.safetensors"), safetensors::serialize(views, None).unwrap()).unwrap();
    [tensors, other].iter().for_each(|file| std::fs::remove_file(file).unwrap());
    let message = merged(folder.path(), None).unwrap_err().to_string();
    assert!(
        message.contains("`embed_tokens.weight`: expected `model.embed_tokens.weight` beside a head"),
        "{message}"
    );
    assert!(!output.exists());
}

#[test]
fn another_number_format_is_written_into_files_index_and_config() {
    let folder = tempfile::tempdir().unwrap();
    let expected = logits(&saved(folder.path(), &["all-linear"]));
    let output = folder.path().join("merged");
    merged(folder.path(), Some(Precision::Bf16)).unwrap();
    let bytes = std::fs::read(output.join("model.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    assert!(tensors.tensors().iter().all(|(_, view)| view.dtype() == Dtype::BF16));
    let config: Value = serde_json::from_slice(&std::fs::read(output.join("config.json")).unwrap()).unwrap();
    assert_eq!((&config["torch_dtype"], &config["a_key_of_tomorrow"]), (&json!("bfloat16"), &json!(1)));
    let largest = expected.iter().fold(0f32, |most, value| most.max(value.abs()));
    let found = logits(&load(&output));
    assert!(found.iter().zip(&expected).all(|(a, b)| (a - b).abs() < 4.0 * BF16 * largest));

    std::fs::remove_dir_all(&output).unwrap();
    shard_in_bf16(&folder.path().join("base"));
    let found = merged(folder.path(), Some(Precision::F32)).unwrap();
    let text = std::fs::read(output.join("model.safetensors.index.json")).unwrap();
    let index: Value = serde_json::from_slice(&text).unwrap();
    let data = 4 * load(&output).parameter_count() + 16;
    assert_eq!(index["metadata"]["total_size"], json!(data));
    assert!(found.bytes > u64::try_from(data).unwrap());
}

/// What is refused leaves nothing behind.
#[test]
fn what_does_not_fit_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    saved(folder.path(), &["q_proj", "v_proj"]);
    let refused = |expected: &str| {
        let before = names(folder.path());
        let message = merged(folder.path(), None).unwrap_err().to_string();
        assert!(message.contains(expected), "{message}");
        assert_eq!(names(folder.path()), before);
    };
    let settings = folder.path().join("adapter/adapter_config.json");
    let good = std::fs::read_to_string(&settings).unwrap();
    let with = |key: &str, value: Value| {
        let mut keys: Value = serde_json::from_str(&good).unwrap();
        keys[key] = value;
        std::fs::write(&settings, keys.to_string()).unwrap();
    };
    with("r", json!(5));
    refused("layers.0.self_attn.q_proj.lora_A.weight`: expected shape [5, 24], found [3, 24]");
    with("target_modules", json!(["q_proj"]));
    refused("layers.0.self_attn.v_proj.lora_A.weight`: expected no such tensor");
    with("use_dora", json!(true));
    refused("q_proj.lora_magnitude_vector`: expected shape [32], found no such tensor");
    with("use_bdlora", json!({}));
    refused("use_bdlora {} is not supported");
    std::fs::write(&settings, &good).unwrap();

    std::fs::create_dir(folder.path().join("merged")).unwrap();
    std::fs::write(folder.path().join("merged/notes"), "mine").unwrap();
    refused("it is not empty\nhint: name a folder that is not there yet");
    std::fs::remove_file(folder.path().join("merged/notes")).unwrap();
    merged(folder.path(), None).unwrap();
    std::fs::remove_dir_all(folder.path().join("merged")).unwrap();

    let mut wider = config();
    wider["hidden_size"] = 32.into();
    random(wider).save(&folder.path().join("base")).unwrap();
    refused("q_proj.lora_A.weight`: expected shape [3, 32], found [3, 24]");
    random(config()).save(&folder.path().join("base")).unwrap();
    let weights = folder.path().join("base/model.safetensors");
    let mut bytes = std::fs::read(&weights).unwrap();
    let place = SafeTensors::read_metadata(&bytes).map(|(header, metadata)| {
        let info = metadata.info("model.layers.1.self_attn.v_proj.weight").unwrap();
        8 + header + info.data_offsets.0 + 4 * 100
    });
    bytes[place.unwrap()..][..4].copy_from_slice(&f32::INFINITY.to_le_bytes());
    std::fs::write(&weights, bytes).unwrap();
    refused("tensor `model.layers.1.self_attn.v_proj.weight`: element 100 is inf, expected a finite number");
}

#[test]
fn a_merge_that_is_stopped_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    saved(folder.path(), &["q_proj"]);
    let (base, adapter) = (folder.path().join("base"), folder.path().join("adapter"));
    let output = folder.path().join("merged");
    let stop = AtomicBool::new(true);
    let inputs = MergeInputs {
        base: &base,
        adapter: &adapter,
        output: &output,
        precision: None,
        provenance: None,
        stop: &stop,
    };
    let error = merge(&inputs, &|_, _| ()).unwrap_err();
    assert!(matches!(&error, Error::Io(error) if error.kind() == std::io::ErrorKind::Interrupted), "{error}");
    assert_eq!(names(folder.path()), ["adapter", "base"]);
}
