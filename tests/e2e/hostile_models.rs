//! Model and adapter folders that someone broke: each is refused with exit 3 and a message that names file, tensor, expected
//! and found, in little memory.

use std::{fs, io::Write, path::PathBuf, process::Command};

use serde_json::{Value, json};
use softshard_e2e::{Said, World, run};

/// Address space of a stage: less than what a bomb asks for.
const MEMORY_CAP: u64 = 1500 << 20;

const MODEL: &str = "run/teacher/model";
const WEIGHTS: &str = "run/teacher/model/model.safetensors";
const CONFIG: &str = "run/teacher/model/config.json";
const NORM: &str = "model.norm.weight";

/// Labels, under a cap of memory.
fn label(world: &World, overrides: &[&str]) -> Said {
    let command = world.stage("teacher-labels", overrides);
    let mut capped = Command::new("prlimit");
    run(capped.arg(format!("--as={MEMORY_CAP}")).arg(command.get_program()).args(command.get_args()))
}

/// Writes `bytes` in place of a file, labels, expects a refusal that says `parts`, and puts the file back.
fn refused(world: &World, path: &str, bytes: &[u8], parts: &[&str]) {
    let path = world.path(path);
    let before = fs::read(&path).expect("the file is there");
    fs::write(&path, bytes).expect("the file is broken");
    label(world, &[]).failed(3, parts);
    assert!(!world.path("run/labels/train/data").exists(), "{parts:?}: nothing is labelled");
    fs::write(&path, before).expect("the file is put back");
}

/// A safetensors file in its parts: its header and its bytes.
struct Weights {
    header: Value,
    data: Vec<u8>,
}

impl Weights {
    fn read(world: &World) -> Self {
        let bytes = fs::read(world.path(WEIGHTS)).expect("the weights are there");
        let length =
            usize::try_from(u64::from_le_bytes(bytes[..8].try_into().expect("8 bytes"))).expect("a length");
        let header = serde_json::from_slice(&bytes[8..8 + length]).expect("a header is JSON");
        Weights { header, data: bytes[8 + length..].to_vec() }
    }

    fn bytes(&self) -> Vec<u8> {
        file(self.header.to_string().as_bytes(), &self.data)
    }

    /// Where a tensor's bytes begin.
    fn begin(&self, name: &str) -> usize {
        usize::try_from(self.header[name]["data_offsets"][0].as_u64().expect("an offset")).expect("a place")
    }
}

fn file(header: &[u8], data: &[u8]) -> Vec<u8> {
    let length = u64::try_from(header.len()).expect("64 bits").to_le_bytes();
    [&length[..], header, data].concat()
}

/// Covers files that are cut, empty, junk, or contradict themselves.
#[test]
fn broken_weights_are_refused_by_file_and_tensor() {
    let world = World::small();
    label(&world, &["output.labels=good"]).succeeded();
    let whole = fs::read(world.path(WEIGHTS)).expect("the weights are there");
    for (cut, found) in [(1, "the file is cut short"), (whole.len() - 100, "what follows in the file")] {
        refused(&world, WEIGHTS, &whole[..whole.len() - cut], &["model.safetensors`", "expected", found]);
    }
    refused(&world, WEIGHTS, &[], &["model.safetensors`", "expected at least 8 bytes, found 0"]);
    refused(&world, WEIGHTS, &[whole.as_slice(), b"more"].concat(), &["they belong to no tensor"]);
    refused(
        &world,
        WEIGHTS,
        &[0xff; 64],
        &["header: expected at most 56 bytes, what follows in the file, found 1844"],
    );
    refused(&world, WEIGHTS, b"GGUF\x03\0\0\0\0\0\0\0", &["model.safetensors`", "found GGUF\nhint: "]);
    refused(&world, WEIGHTS, b"PK\x03\x04\0\0\0\0\0\0\0\0", &["found a PyTorch pickle\nhint: "]);

    let change = |parts: &[&str], change: &dyn Fn(&mut Weights)| {
        let mut weights = Weights::read(&world);
        change(&mut weights);
        refused(&world, WEIGHTS, &weights.bytes(), &[&["model.safetensors`"], parts].concat());
    };
    let norm = |key: &'static str, value: Value| {
        move |weights: &mut Weights| weights.header[NORM][key] = value.clone()
    };
    change(&["tensor `model.norm.weight`: expected to begin at", "an overlap"], &|weights| {
        let begin = weights.begin(NORM);
        weights.header[NORM]["data_offsets"] = json!([begin - 4, begin + 124]);
    });
    change(
        &["tensor `model.norm.weight`: expected 128 bytes for F32 of shape [32], found offsets 0 to 1"],
        &norm("data_offsets", json!([0, 1])),
    );
    change(
        &["tensor `model.norm.weight`: expected a size in bytes, found F32 of shape"],
        &norm("shape", json!([u64::MAX, 2])),
    );
    change(&["tensor `model.norm.weight`: expected 64 bytes for BF16"], &norm("dtype", json!("BF16")));
    change(&["tensor `model.norm.weight`: unknown variant `Q4`"], &norm("dtype", json!("Q4")));
    let put = |index: usize, value: f32| {
        move |weights: &mut Weights| {
            let at = weights.begin(NORM) + 4 * index;
            weights.data[at..at + 4].copy_from_slice(&value.to_le_bytes());
        }
    };
    change(&["tensor `model.norm.weight`: element 7 is NaN, expected a finite number"], &put(7, f32::NAN));
    change(
        &["tensor `model.norm.weight`: element 31 is -inf, expected a finite number"],
        &put(31, f32::NEG_INFINITY),
    );
    label(&world, &[]).succeeded();
}

/// Covers weights that are not those of the configuration, and configurations that nobody computes.
#[test]
fn models_that_do_not_fit_or_are_not_supported_are_refused_by_name() {
    let world = World::small();
    let good: Value = serde_json::from_slice(&fs::read(world.path(CONFIG)).expect("a config")).expect("JSON");
    let config = |key: &str, value: Value, parts: &[&str]| {
        let mut keys = good.clone();
        keys[key] = value;
        refused(&world, CONFIG, keys.to_string().as_bytes(), parts);
    };
    config(
        "intermediate_size",
        json!(65),
        &[
            "tensors do not match config.json",
            "`model.layers.0.mlp.down_proj.weight`: expected shape [32, 65], found [32, 64] (and so in 1 other layers)",
            "`model.layers.0.mlp.up_proj.weight`: expected shape [65, 32], found [64, 32]",
        ],
    );
    config(
        "num_hidden_layers",
        json!(3),
        &["`model.layers.2.mlp.up_proj.weight`: expected shape [64, 32], found no such tensor"],
    );
    config(
        "num_hidden_layers",
        json!(1),
        &["`model.layers.1.mlp.up_proj.weight`: expected no such tensor, found shape [64, 32]"],
    );
    config(
        "tie_word_embeddings",
        json!(false),
        &["`lm_head.weight`: expected shape [400, 32], found no such tensor"],
    );
    config("num_hidden_layers", json!(1u64 << 40), &["config.json`: `num_hidden_layers`: expected 1 to"]);
    config("hidden_size", json!(1u64 << 40), &["config.json`: `hidden_size`: expected 1 to"]);
    config("hidden_act", json!("swishglu9"), &["config.json`: hidden_act \"swishglu9\" is not supported"]);
    config(
        "model_type",
        json!("mamba"),
        &["config.json`: model_type \"mamba\" is not supported\nhint: supported: "],
    );
    refused(&world, CONFIG, b"{", &["config.json`: EOF"]);
    refused(&world, CONFIG, b"[]", &["config.json`: ", "expected"]);

    let mut renamed = Weights::read(&world);
    let header = renamed.header.as_object_mut().expect("an object");
    let name = |part: &str| format!("model.layers.0.self_attn.{part}.weight");
    for (part, other) in
        [("q_proj", name("qkv_proj")), ("k_proj", "k.moved".into()), ("v_proj", "v.moved".into())]
    {
        let entry = header.remove(&name(part)).expect("a tensor");
        header.insert(other, entry);
    }
    refused(
        &world,
        WEIGHTS,
        &renamed.bytes(),
        &[
            "`model.layers.0.self_attn.qkv_proj.weight`: expected q_proj, k_proj, v_proj on their own, found them fused in shape",
            "`k.moved`: expected no such tensor",
        ],
    );
}

/// Covers folders without safetensors, and indices that lie.
#[test]
fn other_formats_and_lying_indices_are_refused() {
    let world = World::small();
    let [weights, away] = [WEIGHTS, "run/teacher/model/one.safetensors"].map(|path| world.path(path));
    fs::rename(&weights, &away).expect("the weights are moved");
    let beside = |name: &str| world.path(MODEL).join(name);
    label(&world, &[]).failed(3, &["no model.safetensors and no model.safetensors.index.json\nhint: "]);
    fs::write(beside("pytorch_model.bin"), "").expect("a file");
    label(&world, &[]).failed(3, &[MODEL, "weights as PyTorch pickles only\nhint: "]);
    fs::write(beside("model.Q4_K_M.gguf"), "").expect("a file");
    label(&world, &[]).failed(3, &[MODEL, "weights in GGUF only\nhint: "]);
    let index = |map: Value, parts: &[&str]| {
        let text = json!({ "weight_map": map }).to_string();
        fs::write(beside("model.safetensors.index.json"), text).expect("an index");
        label(&world, &[]).failed(3, parts);
    };
    let name = "model.safetensors.index.json`";
    index(
        json!({ NORM: "two.safetensors" }),
        &[name, "tensor `model.norm.weight`: expected a file `two.safetensors`"],
    );
    index(
        json!({ NORM: "../one.safetensors" }),
        &[name, "expected a file name, found \"../one.safetensors\""],
    );
    index(
        json!({ "model.absent": "one.safetensors" }),
        &["`model.absent`: expected in", "one.safetensors` as the index says"],
    );
    index(json!({}), &[name, "expected at least one tensor, found none"]);
    let text = json!({ "weight_map": { NORM: "one.safetensors" } }).to_string();
    fs::write(beside("model.safetensors.index.json"), text).expect("an index");
    label(&world, &[]).succeeded();
}

/// Covers small or sparse files that ask for more memory than there is.
#[test]
fn bombs_are_refused_under_a_memory_cap() {
    let world = World::small();
    let repeated = |start: &str, piece: &str, times: usize, end: &str| {
        [start.as_bytes(), &piece.as_bytes().repeat(times), end.as_bytes()].concat()
    };
    let mut many = br#"{"__metadata__":{"#.to_vec();
    (0..6_000_000).for_each(|key| write!(many, "\"{key}\":\"\",").expect("memory"));
    let mut tensors = b"{".to_vec();
    (0..1_000_000).for_each(|key| {
        write!(tensors, r#""{key}":{{"dtype":"F32","shape":[0],"data_offsets":[0,0]}},"#).expect("memory");
    });
    let bombs = [
        (repeated("", "[", 90 << 20, ""), "header: "),
        (repeated(r#"{"a":"#, r#"{"a":"#, 15 << 20, ""), "header: "),
        (
            repeated(r#"{"a":{"dtype":"F32","shape":["#, "0,", 45 << 20, "0]}}"),
            "expected at most 8 dimensions, found more",
        ),
        (repeated(r#"{""#, "n", 90 << 20, r#"":0}"#), "names of at most 1024 bytes, found 94371840"),
        (repeated(r#"{"a":{"dtype":""#, "F", 90 << 20, r#""}}"#), "tensor `a`: unknown variant"),
        (many, "expected at most 65536 entries, found more"),
        (tensors, "expected at most 262144 tensors, found more"),
    ];
    for (header, expected) in bombs {
        let said = {
            let path = world.path(WEIGHTS);
            let before = fs::read(&path).expect("the file is there");
            fs::write(&path, file(&header, &[])).expect("the bomb is written");
            let said = label(&world, &[]).failed(3, &["model.safetensors`", expected]);
            fs::write(&path, before).expect("the file is put back");
            said
        };
        assert!(said.stderr.len() < 10_000, "{expected}: a message of {} bytes", said.stderr.len());
    }
    // A terabyte of zeros that takes no room on the disk, said to be one tensor.
    let header = json!({ "w": { "dtype": "F32", "shape": [1u64 << 38], "data_offsets": [0, 1u64 << 40] } })
        .to_string();
    let path = world.path(WEIGHTS);
    fs::write(&path, file(header.as_bytes(), &[])).expect("the bomb is written");
    let sparse = fs::File::options().write(true).open(&path).expect("the file is there");
    sparse
        .set_len(8 + u64::try_from(header.len()).expect("64 bits") + (1 << 40))
        .expect("a file with a hole");
    label(&world, &[]).failed(3, &["`w`: expected no such tensor, found shape [274877906944]"]);
}

/// An adapter of the world's teacher, with rank 4 on two maps of each layer.
fn adapter(world: &World) -> PathBuf {
    world.run("teacher-labels", &[]).succeeded();
    world.run("train-student", &["student.max_steps=1", "student.model=run/teacher/model"]).succeeded();
    fs::remove_dir_all(world.path("run/labels")).expect("the labels are removed");
    world.path("run/student/adapter")
}

/// Covers adapters of another base, whose rank is another than their tensors', and what `merge` makes of them.
#[test]
fn adapters_that_do_not_fit_are_refused_by_tensor_and_base() {
    let world = World::small();
    let adapter = adapter(&world);
    let settings = adapter.join("adapter_config.json");
    let good: Value = serde_json::from_slice(&fs::read(&settings).expect("a config")).expect("JSON");
    let base = good["base_model_name_or_path"].as_str().expect("a name").to_owned();
    let with = |key: &str, value: Value| {
        let mut keys = good.clone();
        keys[key] = value;
        fs::write(&settings, keys.to_string()).expect("the config is written");
    };
    let [model, folder, output] = [MODEL, "run/student/adapter", "merged"].map(|path| world.path(path));
    let merge = || {
        let mut command = softshard_e2e::command(&["merge"]);
        run(command.args([&model, &folder, &output]))
    };
    let refused = |parts: &[&str]| {
        label(&world, &["teacher.adapter=run/student/adapter"]).failed(3, parts);
        merge().failed(3, parts);
        assert!(!output.exists(), "nothing is merged");
    };
    let first = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight`: expected shape";
    let made_for = format!("the adapter was made for `{base}`");
    with("r", json!(8));
    refused(&[
        "run/student/adapter`: tensors do not match this model",
        &made_for,
        first,
        "[8, 32], found [4, 32]",
    ]);
    with("target_modules", json!(["q_proj"]));
    refused(&[
        "v_proj.lora_A.weight`: expected no such tensor, as the modules that adapter_config.json names leave",
    ]);
    with("target_modules", json!(["query_key_value"]));
    refused(&[
        "q_proj.lora_A.weight`: expected no such tensor",
        "leave `model.layers.0.self_attn.q_proj` out",
    ]);
    with("peft_type", json!("IA3"));
    refused(&["adapter_config.json`: peft_type \"IA3\" is not supported"]);
    with("r", json!(4));
    let said = merge().succeeded();
    assert!(said.stdout.contains("an adapter of rank 4, scale 2, into 4 of 20 tensors"), "{}", said.stdout);
    merge().failed(3, &["merged`: it is not empty"]);
    // The merged folder is a model like any other.
    label(&world, &["teacher.model=merged"]).succeeded();
    fs::remove_dir_all(world.path("run/labels")).expect("the labels are removed");
    fs::remove_dir_all(&output).expect("the merged model is removed");

    // The same shape but for the width.
    let shape = world.path("shape/config.json");
    let text =
        fs::read_to_string(&shape).expect("a config").replace("\"hidden_size\": 32", "\"hidden_size\": 48");
    fs::write(&shape, text).expect("the config is written");
    world.run("finetune", &["finetune.max_steps=1", "output.teacher=../wide"]).succeeded();
    label(&world, &["teacher.model=wide/model", "teacher.adapter=run/student/adapter"])
        .failed(3, &[&made_for, first, "[4, 48], found [4, 32]"]);
    for missing in ["adapter_model.safetensors", "adapter_config.json"] {
        fs::remove_file(adapter.join(missing)).expect("it is removed");
        refused(&["adapter folder", &format!("no {missing}\nhint: ")]);
    }
}

/// A safetensors file of zeros that takes no room on the disk.
fn hollow(path: PathBuf, dtype: &str, width: usize, tensors: &[(String, Vec<usize>)]) {
    let mut end = 0;
    let entries = tensors.iter().map(|(name, shape)| {
        let begin = end;
        end += width * shape.iter().product::<usize>();
        (name.clone(), json!({ "dtype": dtype, "shape": shape, "data_offsets": [begin, end] }))
    });
    let header = Value::Object(entries.collect()).to_string();
    fs::write(&path, file(header.as_bytes(), &[])).expect("a header is written");
    let hollow = fs::File::options().write(true).open(&path).expect("the file is there");
    hollow.set_len(u64::try_from(8 + header.len() + end).expect("64 bits")).expect("a file with a hole");
}

/// Covers a model of 200 MB in an address space of 128 MB, which holds the program as well.
#[test]
fn a_model_larger_than_the_memory_is_merged() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let [base, adapter, output] = ["base", "adapter", "output"].map(|name| folder.path().join(name));
    fs::create_dir(&base).expect("a folder is made");
    fs::create_dir(&adapter).expect("a folder is made");
    let (width, inner, layers) = (1024, 4096, 6);
    let config = json!({
        "model_type": "llama", "vocab_size": 100, "hidden_size": width, "intermediate_size": inner,
        "num_hidden_layers": layers, "num_attention_heads": 8, "tie_word_embeddings": true,
    });
    fs::write(base.join("config.json"), config.to_string()).expect("a config is written");
    let settings = json!({ "peft_type": "LORA", "r": 8, "lora_alpha": 16, "target_modules": ["up_proj"] });
    fs::write(adapter.join("adapter_config.json"), settings.to_string()).expect("a config is written");
    let mut tensors = vec![
        ("model.embed_tokens.weight".to_owned(), vec![100, width]),
        ("model.norm.weight".to_owned(), vec![width]),
    ];
    let mut factors = Vec::new();
    for layer in 0..layers {
        let name = |part: &str| format!("model.layers.{layer}.{part}.weight");
        let maps = ["q_proj", "k_proj", "v_proj", "o_proj"];
        tensors.extend(maps.map(|part| (name(&format!("self_attn.{part}")), vec![width, width])));
        tensors.extend(["gate", "up"].map(|part| (name(&format!("mlp.{part}_proj")), vec![inner, width])));
        tensors.push((name("mlp.down_proj"), vec![width, inner]));
        let norms = ["input_layernorm", "post_attention_layernorm"];
        tensors.extend(norms.map(|part| (name(part), vec![width])));
        let factor =
            |letter: &str| format!("base_model.model.model.layers.{layer}.mlp.up_proj.lora_{letter}.weight");
        factors.extend([(factor("A"), vec![8, width]), (factor("B"), vec![inner, 8])]);
    }
    hollow(base.join("model.safetensors"), "BF16", 2, &tensors);
    hollow(adapter.join("adapter_model.safetensors"), "F32", 4, &factors);
    let size = fs::metadata(base.join("model.safetensors")).expect("the model is there").len();
    assert!(size > 200_000_000, "{size}");
    let mut capped = Command::new("prlimit");
    let cap = format!("--as={}", 128 << 20);
    // Stacks of threads count as well.
    capped.env("RAYON_NUM_THREADS", "2");
    run(capped.arg(cap).arg(softshard_e2e::binary()).arg("merge").args([&base, &adapter, &output]))
        .succeeded();
    assert!(fs::metadata(output.join("model.safetensors")).expect("a merged model").len() >= size - 8);
}

/// What is wrong with the recipe is not blamed on the data.
#[test]
fn a_recipe_with_unknown_keys_is_bad_usage() {
    let world = World::new();
    world.run("teacher-labels", &["teacher.weights=\"x\""]).failed(2, &["unknown field `weights`"]);
    softshard_e2e::softshard(&["merge", "a", "b"]).failed(2, &["<OUT>"]);
    softshard_e2e::softshard(&["merge", "a", "b", "c", "--dtype", "f8"]).failed(2, &["keep, f32, bf16"]);
}
