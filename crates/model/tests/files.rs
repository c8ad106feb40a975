//! Model folders as others lay them out, and as nobody should.

use std::collections::BTreeMap;
use std::path::Path;

use burn::tensor::{Device, Int, Tensor, TensorData};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde_json::{Value, json};
use softshard_model::{Decoder, DecoderConfig, Error};

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

fn config() -> Value {
    json!({
        "model_type": "llama", "vocab_size": 61, "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "initializer_range": 0.3,
        "tie_word_embeddings": true,
    })
}

/// A tensor as a file has it.
#[derive(Clone)]
struct Stored {
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

type Tensors = BTreeMap<String, Stored>;

fn saved(folder: &Path) -> (Decoder, Tensors) {
    let config = DecoderConfig::from_value(config(), Path::new("config.json")).unwrap();
    let decoder = Decoder::random(config, 3, &Device::flex());
    decoder.save(folder).unwrap();
    let bytes = std::fs::read(folder.join(SINGLE)).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let stored = tensors.tensors().into_iter().map(|(name, view)| {
        let stored =
            Stored { dtype: view.dtype(), shape: view.shape().to_vec(), bytes: view.data().to_vec() };
        (name, stored)
    });
    (decoder, stored.collect())
}

fn write(path: &Path, tensors: &Tensors) {
    let views = tensors.iter().map(|(name, stored)| {
        let view = TensorView::new(stored.dtype, stored.shape.clone(), &stored.bytes).unwrap();
        (name, view)
    });
    std::fs::write(path, safetensors::serialize(views, None).unwrap()).unwrap();
}

fn load(folder: &Path) -> Result<Decoder, Error> {
    Decoder::load(folder, &Device::flex())
}

fn hidden(decoder: &Decoder) -> Vec<f32> {
    let ids = TensorData::new(vec![1, 9, 60, 0, 33], [1, 5]);
    decoder.hidden(Tensor::<2, Int>::from_data(ids, &Device::flex())).unwrap().try_into_vec_as().unwrap()
}

/// What is wrong with a folder's tensors, line by line.
fn problems(folder: &Path) -> Vec<String> {
    match load(folder) {
        Err(Error::Tensors { problems, .. }) => problems,
        other => panic!("{other:?}"),
    }
}

#[test]
fn names_of_a_base_model_and_its_buffers_are_accepted() {
    let folder = tempfile::tempdir().unwrap();
    let (decoder, tensors) = saved(folder.path());
    let mut bare: Tensors = tensors
        .iter()
        .map(|(name, stored)| (name.strip_prefix("model.").unwrap().to_owned(), stored.clone()))
        .collect();
    let buffer = Stored { dtype: Dtype::I64, shape: vec![2], bytes: vec![0; 16] };
    bare.insert("layers.0.self_attn.rotary_emb.inv_freq".into(), buffer.clone());
    bare.insert("layers.0.attention.bias".into(), buffer.clone());
    bare.insert("lm_head.weight".into(), bare["embed_tokens.weight"].clone());
    write(&folder.path().join(SINGLE), &bare);
    assert_eq!(hidden(&load(folder.path()).unwrap()), hidden(&decoder));

    // Some names with the prefix, some without: that is no base model.
    let mut mixed = bare.clone();
    mixed.insert("model.norm.weight".into(), mixed["norm.weight"].clone());
    mixed.remove("lm_head.weight"); // the embedding's, if that is not there
    write(&folder.path().join(SINGLE), &mixed);
    let problems = problems(folder.path());
    let missing = "`model.embed_tokens.weight`: expected shape [61, 24], found no such tensor";
    assert!(problems.contains(&missing.to_owned()), "{problems:?}");
    assert!(problems.iter().any(|line| line.starts_with("`norm.weight`: expected no such tensor")));
}

#[test]
fn fused_tensors_are_said_to_be() {
    let folder = tempfile::tempdir().unwrap();
    let (_, mut tensors) = saved(folder.path());
    for layer in 0..2 {
        for (module, whole, parts) in [
            ("self_attn", "qkv_proj", &["q_proj", "k_proj", "v_proj"][..]),
            ("mlp", "gate_up_proj", &["gate_proj", "up_proj"]),
        ] {
            let name = |part: &str| format!("model.layers.{layer}.{module}.{part}.weight");
            let bytes: Vec<u8> =
                parts.iter().flat_map(|part| tensors.remove(&name(part)).unwrap().bytes).collect();
            let shape = vec![bytes.len() / 4 / 24, 24];
            tensors.insert(name(whole), Stored { dtype: Dtype::F32, shape, bytes });
        }
    }
    write(&folder.path().join(SINGLE), &tensors);
    let expected = [
        "`model.layers.0.self_attn.qkv_proj.weight`: expected q_proj, k_proj, v_proj on their own, found them fused in shape [64, 24]",
        "`model.layers.1.self_attn.qkv_proj.weight`: expected q_proj, k_proj, v_proj on their own, found them fused in shape [64, 24]",
        "`model.layers.0.mlp.gate_up_proj.weight`: expected gate_proj, up_proj on their own, found them fused in shape [80, 24]",
        "`model.layers.1.mlp.gate_up_proj.weight`: expected gate_proj, up_proj on their own, found them fused in shape [80, 24]",
    ];
    assert_eq!(problems(folder.path()), expected);
    let message = load(folder.path()).unwrap_err().to_string();
    assert!(message.contains("in shape [64, 24] (and so in 1 other layers)"), "{message}");
}

#[test]
fn formats_that_weights_do_not_have_and_duplicates_are_reported_together() {
    let folder = tempfile::tempdir().unwrap();
    let (_, mut tensors) = saved(folder.path());
    std::fs::remove_file(folder.path().join(SINGLE)).unwrap();
    let norm = tensors.get_mut("model.norm.weight").unwrap();
    *norm = Stored { dtype: Dtype::I8, shape: vec![24], bytes: vec![1; 24] };
    write(&folder.path().join("one.safetensors"), &tensors);
    let up = "model.layers.1.mlp.up_proj.weight";
    tensors.retain(|name, _| name == up);
    write(&folder.path().join("two.safetensors"), &tensors);
    let index = json!({ "weight_map": {
        "model.norm.weight": "one.safetensors", up: "two.safetensors", "model.absent": "two.safetensors",
    } });
    std::fs::write(folder.path().join(INDEX), index.to_string()).unwrap();
    let found = problems(folder.path());
    let [one, two] = ["one", "two"].map(|name| folder.path().join(name).display().to_string());
    let expected = [
        format!("`{up}`: expected once, found in `{one}.safetensors` and `{two}.safetensors`"),
        format!("`model.absent`: expected in `{two}.safetensors` as the index says, found no such tensor"),
        "`model.norm.weight`: expected F32, BF16 or F16, found I8".to_owned(),
    ];
    assert_eq!(found, expected);
}

#[test]
fn an_index_that_is_none_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    saved(folder.path());
    std::fs::rename(folder.path().join(SINGLE), folder.path().join("one.safetensors")).unwrap();
    let long = format!("{{\"weight_map\":{{\"a\":{}}}}}", "[".repeat(3000));
    let cases = [
        ("{}", "missing field `weight_map`"),
        (r#"{"weight_map":[]}"#, "invalid type"),
        (r#"{"weight_map":{}}"#, "expected at least one tensor, found none"),
        (
            r#"{"weight_map":{"a":"no.safetensors"}}"#,
            "tensor `a`: expected a file `no.safetensors` beside the index, found none",
        ),
        (r#"{"weight_map":{"a":7}}"#, "invalid type: integer `7`"),
        (&long, "invalid type"),
    ];
    for (text, expected) in cases {
        std::fs::write(folder.path().join(INDEX), text).unwrap();
        let error = load(folder.path()).unwrap_err();
        assert!(matches!(error, Error::Config { .. }), "{error}");
        let message = error.to_string();
        assert!(message.contains(expected) && message.contains(INDEX), "{message}");
    }
    let file = std::fs::File::create(folder.path().join(INDEX)).unwrap();
    file.set_len(64 << 30).unwrap();
    let message = load(folder.path()).unwrap_err().to_string();
    assert!(message.contains("expected at most 33554432 bytes, found 68719476736"), "{message}");
}
