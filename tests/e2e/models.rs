//! What the files of a model mean, by the binary: heads, rotary angles and windows. That they mean what they mean to transformers is
//! tested in crates/model/tests/peers; here it is that all stages do it, say it, and refuse the rest.

use std::fs;

use serde_json::{Value, json};
use softshard_e2e::{World, run, softshard};

const MODEL: &str = "run/teacher/model";

/// Writes `changes` into the teacher's config.json; `null` takes a key out.
fn configure(world: &World, changes: &Value) {
    let path = world.path(MODEL).join("config.json");
    let text = fs::read_to_string(&path).expect("a configuration");
    let mut config: Value = serde_json::from_str(&text).expect("JSON");
    let keys = config.as_object_mut().expect("an object");
    for (key, value) in changes.as_object().expect("an object") {
        if value.is_null() {
            keys.remove(key);
        } else {
            keys.insert(key.clone(), value.clone());
        }
    }
    fs::write(path, config.to_string()).expect("a file");
}

/// Adds a head to the teacher's weights: the embedding, its numbers times `factor`.
fn add_head(world: &World, factor: f32) {
    let path = world.path(MODEL).join("model.safetensors");
    let bytes = fs::read(&path).expect("weights");
    let length =
        usize::try_from(u64::from_le_bytes(bytes[..8].try_into().expect("8 bytes"))).expect("a length");
    let mut header: Value = serde_json::from_slice(&bytes[8..8 + length]).expect("a header is JSON");
    let data = &bytes[8 + length..];
    let mut head = header["model.embed_tokens.weight"].clone();
    let offset = |index: usize| {
        usize::try_from(head["data_offsets"][index].as_u64().expect("an offset")).expect("a place")
    };
    let words = data[offset(0)..offset(1)].as_chunks::<4>().0.iter();
    let scaled: Vec<u8> = words.flat_map(|word| (f32::from_le_bytes(*word) * factor).to_le_bytes()).collect();
    head["data_offsets"] = json!([data.len(), data.len() + scaled.len()]);
    header["lm_head.weight"] = head;
    let header = header.to_string();
    let length = u64::try_from(header.len()).expect("64 bits").to_le_bytes();
    fs::write(path, [&length[..], header.as_bytes(), data, &scaled].concat()).expect("a file");
}

fn label(world: &World, name: &str) -> String {
    world.run("teacher-labels", &[&format!("output.labels={name}")]).succeeded().stderr
}

/// How many sequences of two datasets have equal labels, and how many other ones.
fn compared(world: &World, left: &str, right: &str) -> (u64, usize) {
    let place = |name: &str| world.path(&format!("run/{name}/train")).display().to_string();
    let said = softshard(&["labels", "diff", &place(left), &place(right), "--json"]);
    let found: Value = serde_json::from_str(&said.stdout).expect("JSON");
    (found["equal"].as_u64().expect("a count"), found["different"].as_array().expect("a list").len())
}

fn inspected(world: &World) -> Value {
    let said =
        softshard(&["model", "inspect", "--json", &world.path(MODEL).display().to_string()]).succeeded();
    serde_json::from_str::<Value>(&said.stdout).expect("JSON")[0].take()
}

#[test]
fn a_stored_head_counts_where_it_differs_from_the_embedding() {
    let world = World::small();
    label(&world, "tied");
    let tied = inspected(&world);
    let weights = world.path(MODEL).join("model.safetensors");
    let before = fs::read(&weights).expect("weights");
    add_head(&world, 1.0);
    assert!(!label(&world, "equal").contains("tie_word_embeddings"));
    assert_eq!(compared(&world, "tied", "equal"), (12, 0));
    assert_eq!(inspected(&world), tied);

    fs::write(&weights, before).expect("the file is put back");
    add_head(&world, 2.0);
    let said = label(&world, "different");
    let remark = "`tie_word_embeddings` is true, but the weights have a `lm_head` that is not the embedding: it is the head";
    assert!(said.contains(remark), "{said}");
    assert_eq!(compared(&world, "tied", "different"), (0, 12));
    let untied = inspected(&world);
    assert_eq!((&untied["tied"], &untied["remarks"]), (&json!(false), &json!([remark])));
    let count = |of: &Value| of["parameters"].as_u64().expect("a count");
    assert_eq!(count(&untied), count(&tied) + 400 * 32);

    // Said plainly it is the same model; learnt as a whole, and merged, it stays one with two matrices.
    let whole = ["finetune.model=run/teacher/model", "finetune.init=pretrained", "output.teacher=whole"];
    configure(&world, &json!({ "tie_word_embeddings": false }));
    label(&world, "plain");
    assert_eq!(compared(&world, "different", "plain"), (12, 0));
    configure(&world, &json!({ "tie_word_embeddings": true }));
    world.run("finetune", &whole).succeeded();
    let text = fs::read_to_string(world.path("run/whole/model/config.json")).expect("a configuration");
    let saved: Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!(saved["tie_word_embeddings"], json!(false));
}

#[test]
fn positions_are_read_in_both_styles_and_go_by_the_length_of_each_text() {
    let world = World::small();
    label(&world, "plain");
    let older = json!({ "type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64 });
    let mut newer = older.clone();
    newer["rope_theta"] = json!(10_000.0);
    newer["rope_type"] = newer["type"].take();
    newer.as_object_mut().expect("an object").remove("type");
    configure(&world, &json!({ "rope_scaling": older }));
    label(&world, "older");
    assert_eq!(inspected(&world)["positions"], "rope 10,000, yarn ×4 from 64, cos and sin ×1.139");
    configure(&world, &json!({ "rope_scaling": null, "rope_theta": null, "rope_parameters": newer }));
    label(&world, "newer");
    assert_eq!(compared(&world, "older", "newer"), (12, 0));
    assert_eq!(compared(&world, "plain", "older"), (0, 12));

    configure(&world, &json!({ "rope_scaling": { "rope_type": "linear", "factor": 2.0 } }));
    let said = label(&world, "both");
    assert!(said.contains("`rope_parameters` is not used beside `rope_scaling`"), "{said}");
    configure(&world, &json!({ "rope_parameters": null }));
    label(&world, "scaling");
    assert_eq!(compared(&world, "both", "scaling"), (12, 0));

    // Of 250 tokens where the file says 64: each text by itself is what the live teacher says in other batches.
    let dynamic = json!({ "type": "dynamic", "factor": 4.0 });
    configure(&world, &json!({ "rope_scaling": dynamic, "max_position_embeddings": 64 }));
    label(&world, "dynamic");
    let mut audit = softshard_e2e::command(&["labels", "audit"]);
    audit.arg(world.path("recipe.toml")).args(["--set", "output.labels=dynamic"]);
    run(&mut audit).succeeded();
    let context = inspected(&world)["context"].clone();
    assert_eq!(context, json!(256));
}

#[test]
fn windows_are_those_of_the_layers_that_have_them() {
    let world = World::small();
    let shape = json!({ "model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"], "max_position_embeddings": 256 });
    let path = world.path("shape/config.json");
    let mut config: Value =
        serde_json::from_str(&fs::read_to_string(&path).expect("a configuration")).expect("JSON");
    config.as_object_mut().expect("an object").extend(shape.as_object().expect("an object").clone());
    fs::write(path, config.to_string()).expect("a file");
    fs::remove_dir_all(world.path("run/teacher")).expect("the Llama is not needed");
    world.run("finetune", &["finetune.max_steps=2"]).succeeded();
    label(&world, "full");
    let windows =
        |layers: u64| json!({ "use_sliding_window": true, "sliding_window": 8, "max_window_layers": layers });
    configure(&world, &windows(2));
    let said = label(&world, "none");
    assert!(said.contains("`use_sliding_window` is true, but no layer has a window"), "{said}");
    assert_eq!(compared(&world, "full", "none"), (12, 0));
    configure(&world, &windows(1));
    label(&world, "one");
    assert_eq!(compared(&world, "full", "one"), (0, 12));
    let found = inspected(&world);
    assert_eq!((&found["sliding_window"], &found["layers_with_window"]), (&json!(8), &json!(1)));
    configure(
        &world,
        &json!({ "layer_types": ["full_attention", "sliding_attention"], "max_window_layers": 2 }),
    );
    label(&world, "types");
    assert_eq!(compared(&world, "one", "types"), (12, 0));
    // A student with such layers learns, and its answers are made.
    let student = ["student.model=run/teacher/model", "output.labels=types", "student.epochs=1"];
    world.run("train-student", &student).succeeded();
}

#[test]
fn what_is_not_computed_is_refused_by_name() {
    let world = World::small();
    let path = world.path(MODEL).join("config.json");
    let before = fs::read(&path).expect("a configuration");
    let yarn = json!({ "type": "yarn", "factor": 4.0, "angle_of_tomorrow": 2 });
    let cases = [
        (json!({ "rope_scaling": yarn }), "`rope_scaling.angle_of_tomorrow` is not supported"),
        (json!({ "rope_scaling": { "type": "yarn" } }), "`factor`: expected a number, found nothing"),
        (json!({ "rope_scaling": { "type": "su" } }), "rope_scaling of type \"su\" is not supported"),
        (
            json!({ "rope_parameters": { "full_attention": { "rope_type": "default" } } }),
            "`rope_parameters.full_attention`",
        ),
        (json!({ "rope_interleaved": true }), "`rope_interleaved` is not supported"),
        (json!({ "no_rope_layers": [1, 0] }), "`no_rope_layers` is not supported"),
        (
            json!({ "rope_scaling": { "type": "linear", "factor": 2.0 }, "partial_rotary_factor": 0.5 }),
            "`partial_rotary_factor` 0.5 with rope_scaling of type \"linear\" is not supported",
        ),
        (
            json!({ "rope_scaling": { "type": "longrope", "short_factor": [1.0], "long_factor": [2.0] } }),
            "`short_factor`: expected 4 numbers, one a pair of a head, found 1",
        ),
        (json!({ "per_layer_config": [{}, {}] }), "per_layer_config is not supported"),
        (
            json!({ "model_type": "qwen3", "layer_types": ["full_attention", "linear_attention"] }),
            "`layer_types` \"linear_attention\" for layer 1 is not supported",
        ),
        (
            json!({ "model_type": "qwen3", "layer_types": ["full_attention", "sliding_attention"] }),
            "expected \"full_attention\" where `use_sliding_window` is false, found \"sliding_attention\" for layer 1",
        ),
    ];
    for (changes, expected) in cases {
        configure(&world, &changes);
        world.run("teacher-labels", &[]).failed(3, &[expected, "config.json"]);
        assert!(!world.path("run/labels/train/data").exists(), "{expected}: nothing is labelled");
        fs::write(&path, &before).expect("the file is put back");
    }
}
