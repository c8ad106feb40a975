//! Heads that are tied by config.json and stored all the same: the stored one counts where it differs, as in transformers.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use burn::tensor::Device;
use safetensors::{Dtype, SafeTensors, serialize, tensor::TensorView};
use serde_json::{Value, json};
use softshard_model::{Bits, Decoder, DecoderConfig, LoadOptions, Precision, Residency, Trainable};

use crate::golden::{assert_close, batch, logits, path, tensors as tensors_of};
use crate::positions::Positions;

/// A tensor on its way to a file.
#[derive(Clone)]
struct Stored {
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

type Tensors = BTreeMap<String, Stored>;

/// Config and tensors of a golden model, tied, without a head of its own.
fn tied(base: &str) -> (Value, Tensors) {
    let text = fs::read(path(&format!("{base}/config.json"))).expect("golden configuration");
    let mut config: Value = serde_json::from_slice(&text).expect("JSON");
    config["tie_word_embeddings"] = true.into();
    let bytes = fs::read(path(&format!("{base}/model.safetensors"))).expect("golden weights");
    let file = SafeTensors::deserialize(&bytes).expect("safetensors");
    let stored = |(name, view): (&str, TensorView<'_>)| {
        let stored =
            Stored { dtype: view.dtype(), shape: view.shape().to_vec(), bytes: view.data().to_vec() };
        (name.to_owned(), stored)
    };
    let mut tensors: Tensors = file.iter().map(stored).collect();
    tensors.remove("embed_out.weight");
    (config, tensors)
}

fn write(path: &Path, tensors: &Tensors) {
    let mut views = Vec::new();
    for (name, Stored { dtype, shape, bytes }) in tensors {
        views.push((name.clone(), TensorView::new(*dtype, shape.clone(), bytes).expect("a tensor")));
    }
    fs::write(path, serialize(views, None).expect("safetensors")).expect("a file");
}

/// `head_files` of `tests/peers/golden_positions.py`.
fn with_head(tensors: &mut Tensors, base: &str, kind: &str) {
    let embedding = match base {
        "tiny-gpt2" => "transformer.wte.weight",
        "tiny-neox" => "gpt_neox.embed_in.weight",
        "tiny-opt-post-norm" => "model.decoder.embed_tokens.weight",
        _ => "model.embed_tokens.weight",
    };
    let is_own = base == "tiny-neox" && kind != "different-lm-head";
    let head = if is_own { "embed_out.weight" } else { "lm_head.weight" };
    let table = tensors[embedding].clone();
    let mut moved_up = table.clone();
    moved_up.bytes.rotate_left(table.bytes.len() / table.shape[0]);
    let stored = match kind {
        "equal" | "rounded" => table.clone(),
        "moved" => tensors.remove(embedding).expect("it was there"),
        _ => moved_up,
    };
    tensors.insert(head.to_owned(), stored);
    if kind == "rounded" {
        let wide = |half: &[u8; 2]| {
            let value = f32::from_bits(u32::from(u16::from_le_bytes(*half)) << 16);
            (value * (1.0 + f32::powi(2.0, -12))).to_le_bytes()
        };
        let bytes = table.bytes.as_chunks::<2>().0.iter().flat_map(wide).collect();
        tensors.insert(embedding.to_owned(), Stored { dtype: Dtype::F32, bytes, ..table });
    }
}

fn folder_of(base: &str, kind: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    let (config, mut tensors) = tied(base);
    with_head(&mut tensors, base, kind);
    write(&folder.path().join("model.safetensors"), &tensors);
    fs::write(folder.path().join("config.json"), config.to_string()).expect("a file");
    folder
}

fn load(folder: &Path) -> Decoder {
    Decoder::load(folder, &Device::flex()).expect("the model loads")
}

fn all_logits(decoder: &Decoder, ids: &[i32]) -> Vec<f32> {
    logits(decoder, decoder.hidden(batch(&[ids.to_vec()], ids.len(), |_| 0))).concat()
}

#[test]
fn a_stored_head_counts_where_it_differs() {
    let ids = &Positions::golden().sequences[0];
    let golden = tensors_of("heads.expected.safetensors");
    assert_eq!(golden.len(), 9);
    for (name, expected) in &golden {
        let (base, kind) = name.split_once('.').expect("a model and a kind");
        let folder = folder_of(base, kind);
        let decoder = load(folder.path());
        assert_close(name, &all_logits(&decoder, ids), expected);
        let config = decoder.config();
        assert_eq!(config.tie_word_embeddings, ["equal", "moved"].contains(&kind), "{name}");
        assert_eq!(config.remarks.is_empty(), config.tie_word_embeddings, "{name}: {:?}", config.remarks);
        // Written by us it is the same model, and says what it is.
        decoder.save(folder.path()).expect("the model is saved");
        let text = fs::read(folder.path().join("config.json")).expect("a file");
        let saved: Value = serde_json::from_slice(&text).expect("JSON");
        assert_eq!(saved["tie_word_embeddings"], json!(config.tie_word_embeddings), "{name}");
        assert!(all_logits(&load(folder.path()), ids) == all_logits(&decoder, ids), "{name}: saved");
    }
}

#[test]
fn memory_and_parameters_count_the_head_that_is_there() {
    let sizes = |kind| {
        let folder = folder_of("tiny-llama3", kind);
        let config = DecoderConfig::load(folder.path()).expect("a configuration");
        let loaded = load(folder.path());
        assert_eq!(loaded.parameter_count(), config.parameter_count());
        let mut trained = loaded.clone();
        trained.train(Trainable::Model);
        assert_eq!(trained.trainable_count(), config.parameter_count(), "{kind}");
        [
            config.parameter_count() as u64,
            config.resident_bytes(Precision::F32, None),
            config.resident_bytes(Precision::Bf16, Some(Bits::Four)),
            config.streamed_bytes(Precision::F32),
        ]
    };
    let [different, equal, moved] = ["different", "equal", "moved"].map(sizes);
    let numbers = 80 * 32;
    assert_eq!(equal, moved);
    assert_eq!(
        different,
        [equal[0] + numbers, equal[1] + 4 * numbers, equal[2] + 2 * numbers, equal[3] + 4 * numbers]
    );
}

#[test]
fn a_head_in_another_shard_counts() {
    let ids = &Positions::golden().sequences[0];
    let folder = tempfile::tempdir().expect("a folder");
    let (config, mut tensors) = tied("tiny-llama3");
    with_head(&mut tensors, "tiny-llama3", "different");
    let head = tensors.remove_entry("lm_head.weight").expect("it is there");
    let mut map = serde_json::Map::new();
    for (file, tensors) in [("a.safetensors", &tensors), ("b.safetensors", &Tensors::from([head]))] {
        write(&folder.path().join(file), tensors);
        map.extend(tensors.keys().map(|name| (name.clone(), file.into())));
    }
    let index = json!({ "metadata": {}, "weight_map": map });
    fs::write(folder.path().join("model.safetensors.index.json"), index.to_string()).expect("a file");
    fs::write(folder.path().join("config.json"), config.to_string()).expect("a file");
    let expected = &tensors_of("heads.expected.safetensors")["tiny-llama3.different"];
    let decoder = load(folder.path());
    assert_close("another shard", &all_logits(&decoder, ids), expected);
    let options = LoadOptions { residency: Residency::Streamed, ..LoadOptions::default() };
    let streamed = Decoder::load_with(folder.path(), &Device::flex(), &options).expect("the model loads");
    assert!(all_logits(&streamed, ids) == all_logits(&decoder, ids));
}

#[test]
fn heads_that_cannot_be_meant_are_refused_by_name() {
    let message = |change: &dyn Fn(&mut Value, &mut Tensors)| {
        let folder = tempfile::tempdir().expect("a folder");
        let (mut config, mut tensors) = tied("tiny-llama3");
        change(&mut config, &mut tensors);
        write(&folder.path().join("model.safetensors"), &tensors);
        fs::write(folder.path().join("config.json"), config.to_string()).expect("a file");
        Decoder::load(folder.path(), &Device::flex()).expect_err("it is refused").to_string()
    };
    // transformers would draw a head at random.
    let untied = message(&|config, _| config["tie_word_embeddings"] = false.into());
    assert!(untied.contains("`lm_head.weight`: expected shape [80, 32], found no such tensor"), "{untied}");
    let shorter = message(&|_, tensors| {
        let table = tensors["model.embed_tokens.weight"].clone();
        let bytes = table.bytes[..64].to_vec();
        tensors.insert("lm_head.weight".into(), Stored { shape: vec![1, 32], bytes, ..table });
    });
    assert!(shorter.contains("`lm_head.weight`: expected shape [80, 32], found [1, 32]"), "{shorter}");
    let whole = message(&|_, tensors| {
        let table = tensors["model.embed_tokens.weight"].clone();
        tensors.insert("lm_head.weight".into(), Stored { dtype: Dtype::I16, ..table });
    });
    assert!(whole.contains("`lm_head.weight`: expected F32, BF16 or F16, found I16"), "{whole}");
    let neither = message(&|_, tensors| drop(tensors.remove("model.embed_tokens.weight")));
    assert!(
        neither.contains("`model.embed_tokens.weight`: expected shape [80, 32], found no such"),
        "{neither}"
    );
}
