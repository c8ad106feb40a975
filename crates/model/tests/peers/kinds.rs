//! Adapters of every kind that PEFT writes, of `tests/peers/adapters.py`: with them a model has PEFT's logits, merged
//! PEFT's weights; and what differs only in names and settings computes the same, or is refused by name.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::atomic::AtomicBool;

use burn::tensor::Device;
use serde::Deserialize;
use serde_json::{Value, json};
use softshard_model::{
    Bits, Decoder, DecoderConfig, Error, LoadOptions, MergeInputs, Merged, Precision, Residency, merge,
};

use crate::golden::{assert_close, batch, differences, load, logits, path, tensors};

/// f32 sums of a few products, relative to the largest number that was looked at.
const WEIGHTS: f32 = 2e-6;
/// Root mean square of what 8 bits round, of logits with a spread of 3.5.
const EIGHT_BITS: f32 = 0.25;
/// The same of activations in bf16: a little more than transformers' own bf16 is from its f32.
const BF16: f32 = 0.12;

#[derive(Deserialize)]
struct Expected {
    input_ids: Vec<i32>,
    adapters: BTreeMap<String, Facts>,
}

#[derive(Deserialize)]
struct Facts {
    base: String,
    mergeable: bool,
    /// Of the merged model; absent where PEFT merges into another model than it computes.
    tied: Option<bool>,
}

fn expected() -> (Expected, BTreeMap<String, Vec<f32>>) {
    let text = fs::read(path("adapters.expected.json")).expect("golden values");
    (serde_json::from_slice(&text).expect("JSON"), tensors("adapters.expected.safetensors"))
}

fn logits_with(decoder: &Decoder, ids: &[i32]) -> Vec<f32> {
    logits(decoder, decoder.hidden(batch(&[ids.to_vec()], ids.len(), |_| 0))).concat()
}

fn merged(base: &Path, adapter: &Path, output: &Path) -> Result<Merged, Error> {
    let stop = AtomicBool::new(false);
    let inputs =
        MergeInputs { base, adapter, output, precision: Some(Precision::F32), provenance: None, stop: &stop };
    merge(&inputs, &|_, _| ())
}

#[test]
fn logits_are_those_of_peft_wherever_the_weights_are() {
    let (expected, golden) = expected();
    assert!(expected.adapters.len() >= 30);
    for (name, facts) in &expected.adapters {
        let with = |options: LoadOptions| {
            let base = path(&facts.base);
            let mut decoder = Decoder::load_with(&base, &Device::flex(), &options).expect("a base");
            let adapter = path(&format!("adapters/{name}"));
            decoder.load_adapter(&adapter).unwrap_or_else(|error| panic!("{name}: {error}"));
            decoder.set_activations(options.precision);
            logits_with(&decoder, &expected.input_ids)
        };
        let resident = with(LoadOptions::default());
        let golden = &golden[&format!("{name}/logits")];
        assert_close(name, &resident, golden);
        let streamed = with(LoadOptions { residency: Residency::Streamed, ..LoadOptions::default() });
        assert_eq!(streamed, resident, "{name}, streamed");
        let eight = with(LoadOptions { quantise: Some(Bits::Eight), ..LoadOptions::default() });
        let (_, rounded) = differences(&eight, golden);
        println!("{name}: 8 bits move logits by {rounded:.3}");
        assert!(rounded > 0.0 && rounded < EIGHT_BITS, "{name}, 8 bits: {rounded}");
        let bf16 = with(LoadOptions { precision: Precision::Bf16, ..LoadOptions::default() });
        let (_, rounded) = differences(&bf16, golden);
        println!("{name}: bf16 moves logits by {rounded:.3}");
        assert!(rounded > 0.0 && rounded < BF16, "{name}, bf16: {rounded}");
    }
}

#[test]
fn merged_weights_are_those_of_peft() {
    let (expected, golden) = expected();
    let folder = tempfile::tempdir().expect("a folder");
    for (name, facts) in &expected.adapters {
        let (base, output) = (path(&facts.base), folder.path().join(name));
        let done = merged(&base, &path(&format!("adapters/{name}")), &output);
        if !facts.mergeable {
            let message = done.expect_err("PEFT cannot merge it").to_string();
            assert!(
                message.contains("lora_B.bias`: expected a bias of `model.layers.0.self_attn"),
                "{message}"
            );
            assert!(!output.exists());
            continue;
        }
        let done = done.unwrap_or_else(|error| panic!("{name}: {error}"));
        let found = Decoder::load(&output, &Device::flex()).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_close(name, &logits_with(&found, &expected.input_ids), &golden[&format!("{name}/logits")]);
        let config = DecoderConfig::load(&output).expect("a config");
        let Some(tied) = facts.tied else {
            assert!(done.untied && !config.tie_word_embeddings, "{name}");
            continue;
        };
        assert_eq!(config.tie_word_embeddings, tied, "{name}");
        let [before, after] =
            [&base, &output].map(|folder| tensors(&folder.join("model.safetensors").to_string_lossy()));
        let prefix = format!("{name}/merged/");
        let changed = golden.iter().filter_map(|(key, values)| Some((key.strip_prefix(&prefix)?, values)));
        let changed: BTreeMap<&str, &Vec<f32>> = changed.collect();
        assert!(!changed.is_empty(), "{name}");
        for (tensor, after) in &after {
            let Some(expected) = changed.get(tensor.as_str()) else {
                let twin = if tensor == "lm_head.weight" && !before.contains_key(tensor) {
                    "model.embed_tokens.weight"
                } else {
                    tensor
                };
                assert!(*after == before[twin], "{name}: `{tensor}` changed");
                continue;
            };
            let count = expected.len();
            let sampled: Vec<f32> = (0..count).map(|index| after[index * after.len() / count]).collect();
            let (largest, _) = differences(&sampled, expected);
            let most = after.iter().fold(0f32, |most, value| most.max(value.abs()));
            assert!(largest <= WEIGHTS * most, "{name}: `{tensor}` differs by {largest}, of {most}");
        }
        // A head that stays tied is not written.
        let written = changed.keys().filter(|tensor| after.contains_key(**tensor)).count();
        let unwritten: Vec<_> = changed.keys().filter(|tensor| !after.contains_key(**tensor)).collect();
        assert!(unwritten.iter().all(|tensor| tied && **tensor == "lm_head.weight"), "{name}: {unwritten:?}");
        assert!(done.changed >= written, "{name}");
    }
}

/// A copy of a golden adapter whose settings are changed, and whose tensors have other names.
fn changed(name: &str, folder: &Path, settings: &[(&str, Value)], renamed: impl Fn(&str) -> Option<String>) {
    let from = path(&format!("adapters/{name}"));
    let text = fs::read(from.join("adapter_config.json")).expect("settings");
    let mut keys: Value = serde_json::from_slice(&text).expect("JSON");
    for (key, value) in settings {
        keys[*key] = value.clone();
    }
    fs::write(folder.join("adapter_config.json"), keys.to_string()).expect("it is written");
    let bytes = fs::read(from.join("adapter_model.safetensors")).expect("tensors");
    let stored = safetensors::SafeTensors::deserialize(&bytes).expect("safetensors");
    let views = stored.iter().filter_map(|(name, view)| Some((renamed(name)?, view)));
    let views: Vec<_> = views.collect();
    fs::write(folder.join("adapter_model.safetensors"), safetensors::serialize(views, None).expect("bytes"))
        .expect("it is written");
}

fn keep(name: &str) -> Option<String> {
    Some(name.to_owned())
}

#[test]
fn names_of_a_whole_state_are_read_as_peft_reads_them() {
    let (expected, golden) = expected();
    let with_name = |name: &str| {
        let name = match name.strip_suffix("lora_magnitude_vector") {
            Some(module) => format!("{module}lora_magnitude_vector.default.weight"),
            None => name.replace(".weight", ".default.weight"),
        };
        Some(name)
    };
    for (name, also) in [("regex", "base_model.model.lm_head.weight"), ("dora", "-")] {
        let folder = tempfile::tempdir().expect("a folder");
        changed(name, folder.path(), &[], with_name);
        let mut decoder = load(&expected.adapters[name].base);
        decoder.load_adapter(folder.path()).unwrap_or_else(|error| panic!("{name} {also}: {error}"));
        assert_close(name, &logits_with(&decoder, &expected.input_ids), &golden[&format!("{name}/logits")]);
    }
}

/// Every field of PEFT's configuration that changes what is computed in a way that is not done here.
#[test]
fn fields_that_are_not_computed_are_refused_by_name() {
    let tokens = json!([1, 2]);
    let cases = [
        ("peft_type", json!("IA3"), "peft_type \"IA3\""),
        ("task_type", json!("SEQ_CLS"), "task_type \"SEQ_CLS\""),
        ("bias", json!("some"), "bias \"some\""),
        ("init_lora_weights", json!("pissa"), "path_initial_model_for_weight_conversion"),
        ("init_lora_weights", json!("pissa_niter_4"), "init_lora_weights \"pissa_niter_4\""),
        ("init_lora_weights", json!("olora"), "init_lora_weights \"olora\""),
        ("init_lora_weights", json!("corda"), "init_lora_weights \"corda\""),
        ("init_lora_weights", json!("loftq"), "init_lora_weights \"loftq\""),
        ("init_lora_weights", json!("lora_ga"), "init_lora_weights \"lora_ga\""),
        ("alora_invocation_tokens", tokens.clone(), "alora_invocation_tokens [1,2]"),
        ("arrow_config", json!({}), "arrow_config {}"),
        ("kasa_config", json!({}), "kasa_config {}"),
        ("layer_replication", json!([[0, 2], [1, 2]]), "layer_replication"),
        ("megatron_config", json!({ "a": 1 }), "megatron_config"),
        ("monteclora_config", json!({}), "monteclora_config"),
        ("target_parameters", json!(["mlp.up_proj.weight"]), "target_parameters"),
        ("trainable_token_indices", tokens, "trainable_token_indices"),
        ("use_bdlora", json!({}), "use_bdlora {}"),
        ("use_qalora", json!(true), "use_qalora true"),
        ("velora_config", json!({}), "velora_config {}"),
        (
            "use_tomorrow",
            json!(true),
            "use_tomorrow true is not supported\nhint: PEFT 0.21 has no such field",
        ),
        ("r", json!(0), "`r`: expected 1 to 65536, found 0"),
        ("rank_pattern", json!({ "q_proj": 0 }), "`rank_pattern`: expected 1 to 65536, found 0"),
        ("rank_pattern", json!({ "q_proj": 3 }), "lora_A.weight`: expected shape [3, 32], found [2, 32]"),
        (
            "alpha_pattern",
            json!({ "(?!a).*": 3 }),
            "`alpha_pattern`: expected regular expressions without look-around",
        ),
        ("lora_bias", json!(true), "lora_B.bias`: expected shape [40], found no such tensor"),
        ("use_dora", json!(true), "lora_magnitude_vector`: expected shape [40], found no such tensor"),
        (
            "modules_to_save",
            json!(["embed_tokens"]),
            "embed_tokens.weight`: expected shape [80, 32], found no such tensor",
        ),
        ("modules_to_save", json!(["self_attn"]), "leave `model.layers.0.self_attn.q_proj` out"),
        ("exclude_modules", json!(["v_proj"]), "leave `model.layers.0.self_attn.v_proj` out"),
        (
            "layers_to_transform",
            json!([0]),
            "`layers_to_transform`: expected none where `target_modules` is one string",
        ),
        (
            "target_modules",
            json!(["q_proj"]),
            "v_proj.lora_A.weight`: expected no such tensor, as the modules",
        ),
    ];
    let folder = tempfile::tempdir().expect("a folder");
    for (field, value, expected) in cases {
        changed("regex", folder.path(), &[(field, value)], keep);
        let output = folder.path().join("merged");
        let by_merge = merged(&path("tiny-qwen3"), folder.path(), &output).expect_err("it is refused");
        let message = load("tiny-qwen3").load_adapter(folder.path()).expect_err("it is refused").to_string();
        assert!(message.contains(expected), "{field}: {message}");
        assert_eq!(message, by_merge.to_string());
        assert!(!output.exists());
    }
}

/// What has no effect on what a stored adapter computes is read as PEFT reads it.
#[test]
fn fields_without_effect_are_taken() {
    let (expected, golden) = expected();
    let folder = tempfile::tempdir().expect("a folder");
    for (field, value) in [
        ("eva_config", json!({ "rho": 2.0 })),
        ("corda_config", json!({})),
        ("runtime_config", json!({ "ephemeral_gpu_offload": true })),
        ("auto_mapping", json!({ "base_model_class": "Qwen3ForCausalLM" })),
        ("fan_in_fan_out", json!(true)),
        ("ensure_weight_tying", json!(true)),
        ("use_tomorrow", json!(null)),
        ("merge_weights", json!(false)),
        ("task_type", json!(null)),
        ("target_modules", json!(["q_proj", "v_proj", "k_proj"])), // a warning: `k_proj` stays as it is
        ("target_modules", json!(null)),
        ("modules_to_save", json!(["classifier", "score"])),
    ] {
        changed("regex", folder.path(), &[(field, value)], keep);
        let mut decoder = load("tiny-qwen3");
        decoder.load_adapter(folder.path()).unwrap_or_else(|error| panic!("{field}: {error}"));
        assert_close(field, &logits_with(&decoder, &expected.input_ids), &golden["regex/logits"]);
    }
}

#[test]
fn tensors_that_fit_nothing_are_refused_by_name() {
    let first = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight";
    let cases: [(&str, &str, &str, &str); 9] = [
        (
            "regex",
            first,
            "base_model.model._orig_mod.model.layers.0.self_attn.q_proj.lora_A.weight",
            "wrapped model",
        ),
        (
            "regex",
            first,
            "model.layers.0.self_attn.q_proj.lora_A.weight",
            "names begin with `base_model.model.`",
        ),
        (
            "regex",
            first,
            "base_model.model.model.layers.0.self_attn.q_proj.lora_A.other.weight",
            "lora_A.weight`: expected shape [2, 32], found no",
        ),
        (
            "regex",
            first,
            "base_model.model.model.layers.9.self_attn.q_proj.lora_A.weight",
            "layers.9.self_attn.q_proj.lora_A.weight`: expected no such tensor",
        ),
        (
            "regex",
            first,
            "base_model.model.model.layers.0.self_attn.q_proj.base_layer.weight",
            "base_layer.weight`: expected shape [40, 32], found [2, 32]",
        ),
        (
            "regex",
            first,
            "base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta",
            "trainable tokens are not supported",
        ),
        (
            "biases-of-targets",
            "base_model.model.transformer.h.0.attn.c_attn.base_layer.bias",
            "base_model.model.transformer.h.0.attn.c_attn.bias",
            "PEFT 0.21 has it under `base_layer`",
        ),
        (
            "saved",
            "base_model.model.lm_head.weight",
            "base_model.model.lm_head.modules_to_save.default.weight",
            "save the adapter with `save_pretrained`",
        ),
        (
            "saved",
            "base_model.model.lm_head.weight",
            "base_model.model.score.weight",
            "score.weight`: expected no such tensor",
        ),
    ];
    let (expected, _) = expected();
    let folder = tempfile::tempdir().expect("a folder");
    for (adapter, from, to, said) in cases {
        let renamed = |name: &str| Some(if name == from { to.to_owned() } else { name.to_owned() });
        changed(adapter, folder.path(), &[], renamed);
        let mut decoder = load(&expected.adapters[adapter].base);
        let message = decoder.load_adapter(folder.path()).expect_err("it is refused").to_string();
        assert!(message.contains(said) && message.contains("the adapter was made for"), "{to}: {message}");
        assert!(decoder.lora().is_none());
    }
    // Settings that keep tensors from being read are said as well.
    for (adapter, field, said) in [
        ("dora", "use_dora", "it is DoRA's, and `use_dora` is false"),
        ("lora-bias", "lora_bias", "(`lora_bias` is false)"),
    ] {
        changed(adapter, folder.path(), &[(field, json!(false))], keep);
        let mut decoder = load(&expected.adapters[adapter].base);
        let message = decoder.load_adapter(folder.path()).expect_err("it is refused").to_string();
        assert!(message.contains(said), "{message}");
    }
    let nothing: [(&str, Value); 0] = [];
    changed("regex", folder.path(), &nothing, |_| None);
    let message = load("tiny-qwen3").load_adapter(folder.path()).expect_err("it is refused").to_string();
    assert!(message.contains("expected at least one tensor, found none"), "{message}");
    fs::rename(folder.path().join("adapter_model.safetensors"), folder.path().join("adapter_model.bin"))
        .expect("it is renamed");
    let message = load("tiny-qwen3").load_adapter(folder.path()).expect_err("it is refused").to_string();
    assert!(message.contains("no adapter_model.safetensors, but adapter_model.bin, a pickle"), "{message}");
}

/// What is written after training has the ranks and scales of what was read, whatever its patterns are.
#[test]
fn an_adapter_that_is_written_again_has_its_ranks_and_scales() {
    let (expected, golden) = expected();
    for name in ["patterns", "patterns-rslora", "look-ahead", "one-layer", "exclude-regex"] {
        let folder = tempfile::tempdir().expect("a folder");
        let mut decoder = load(&expected.adapters[name].base);
        decoder.load_adapter(&path(&format!("adapters/{name}"))).expect("an adapter");
        decoder.save_adapter(folder.path(), "models/other").expect("it is written");
        let mut again = load(&expected.adapters[name].base);
        again.load_adapter(folder.path()).expect("our own adapter");
        assert_eq!(again.lora(), decoder.lora());
        assert_close(name, &logits_with(&again, &expected.input_ids), &golden[&format!("{name}/logits")]);
        let [before, after] = [path(&format!("adapters/{name}")), folder.path().to_owned()].map(|folder| {
            let text = fs::read(folder.join("adapter_config.json")).expect("settings");
            serde_json::from_slice::<Value>(&text).expect("JSON")
        });
        assert_eq!(after["base_model_name_or_path"], "models/other");
        for field in
            ["rank_pattern", "alpha_pattern", "target_modules", "layers_to_transform", "exclude_modules"]
        {
            assert_eq!(before[field], after[field], "{name} {field}");
        }
    }
    // In this order the first pattern is for all, behind the other in the order of names.
    let folder = tempfile::tempdir().expect("a folder");
    changed("regex", folder.path(), &[], keep);
    let file = folder.path().join("adapter_config.json");
    let text = fs::read_to_string(&file).expect("settings");
    let text = text.replace("\"alpha_pattern\":{}", r#""alpha_pattern":{"v_proj":6,".*_proj":12}"#);
    fs::write(&file, &text).expect("it is written");
    let mut decoder = load("tiny-qwen3");
    decoder.load_adapter(folder.path()).expect("an adapter");
    let scale = |decoder: &Decoder, module: &str| decoder.lora().expect("it has one").maps[module].scale;
    assert!((scale(&decoder, "model.layers.0.self_attn.v_proj") - 3.0).abs() < 1e-9, "{text}");
    decoder.save_adapter(folder.path(), "models/other").expect("it is written");
    let mut again = load("tiny-qwen3");
    again.load_adapter(folder.path()).expect("our own adapter");
    assert_eq!(again.lora(), decoder.lora());
}

/// Training goes on only where factors of linear maps are all that there is.
#[test]
fn what_cannot_learn_is_refused_by_name() {
    let (expected, _) = expected();
    let cases = [
        ("dora", "a magnitude of DoRA"),
        ("tables", "factors of an embedding or of the head"),
        ("head-tied", "factors of an embedding or of the head"),
        ("saved", "a whole tensor"),
        ("biases", "a whole tensor"),
        ("lora-bias", "a bias of B (`lora_bias`)"),
        ("mica", "\"mica\", whose B never learns"),
    ];
    for (name, said) in cases {
        let base = &expected.adapters[name].base;
        let adapter = path(&format!("adapters/{name}"));
        let config = DecoderConfig::load(&path(base)).expect("a config");
        let message = config.adapter_shape(&adapter).expect_err("it cannot learn").to_string();
        assert!(
            message.contains(said) && message.contains("hint: merge it with `softshard merge`"),
            "{message}"
        );
        let mut decoder = load(base);
        decoder.load_adapter(&adapter).expect("it computes");
        assert!(decoder.save_adapter(&adapter.join("never"), "x").is_err());
        assert!(decoder.load_adapter(&adapter).is_err(), "the base's weights are gone");
    }
    let config = DecoderConfig::load(&path("tiny-qwen3")).expect("a config");
    let shape = config.adapter_shape(&path("adapters/patterns")).expect("it learns");
    let ranks: Vec<usize> = shape.maps.values().map(|map| map.r).collect();
    assert_eq!(ranks, [1, 2, 3, 1, 2, 4]);
    let numbers: usize = [(1, 48 + 32), (2, 32 + 40), (3, 32 + 20), (1, 48 + 32), (2, 32 + 40), (4, 32 + 20)]
        .iter()
        .map(|(rank, sum)| rank * sum)
        .sum();
    assert_eq!(config.lora_parameter_count(&shape), u64::try_from(numbers).expect("small"));
}
