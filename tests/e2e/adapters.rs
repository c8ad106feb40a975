//! Adapters as PEFT writes them, given to every stage that takes one; and training that goes on from one.

use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    process::Child,
    thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use softshard_e2e::{Said, World, run, softshard};

const TRAINED: &str = "run/student/adapter";
const PREFIX: &str = "base_model.model.";

/// Tensors in 32-bit floats: shapes and numbers by name.
type Tensors = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

fn read(path: &Path) -> Tensors {
    let bytes = fs::read(path).expect("a safetensors file");
    let length =
        usize::try_from(u64::from_le_bytes(bytes[..8].try_into().expect("eight bytes"))).expect("a length");
    let header: BTreeMap<String, Value> = serde_json::from_slice(&bytes[8..8 + length]).expect("a header");
    let tensors = header.into_iter().filter(|(name, _)| name != "__metadata__").map(|(name, entry)| {
        let numbers =
            |key: &str| -> Vec<usize> { serde_json::from_value(entry[key].clone()).expect("numbers") };
        let (shape, place) = (numbers("shape"), numbers("data_offsets"));
        let data = &bytes[8 + length..][place[0]..place[1]];
        (name, (shape, data.as_chunks().0.iter().map(|four| f32::from_le_bytes(*four)).collect()))
    });
    tensors.collect()
}

fn write(path: &Path, tensors: &Tensors) {
    let mut data = Vec::new();
    let entries = tensors.iter().map(|(name, (shape, values))| {
        let begin = data.len();
        data.extend(values.iter().flat_map(|value| value.to_le_bytes()));
        (name.clone(), json!({ "dtype": "F32", "shape": shape, "data_offsets": [begin, data.len()] }))
    });
    let header = Value::Object(entries.collect()).to_string();
    fs::write(path, [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &data].concat())
        .expect("it is written");
}

/// A copy of the trained adapter below `name`, with other settings and tensors.
fn adapter(world: &World, name: &str, settings: Value, change: impl FnOnce(&mut Tensors)) {
    let (from, to) = (world.path(TRAINED), world.path(name));
    fs::create_dir_all(&to).expect("a folder is made");
    let mut keys: Value =
        serde_json::from_slice(&fs::read(from.join("adapter_config.json")).expect("settings")).expect("JSON");
    for (key, value) in settings.as_object().expect("an object") {
        keys[key] = value.clone();
    }
    fs::write(to.join("adapter_config.json"), keys.to_string()).expect("settings are written");
    let mut tensors = read(&from.join("adapter_model.safetensors"));
    change(&mut tensors);
    write(&to.join("adapter_model.safetensors"), &tensors);
}

/// One step of a student that starts as the teacher: an adapter of rank 4 on two maps of each layer.
fn trained(world: &World) {
    let overrides = ["student.max_steps=2", "student.model=run/teacher/model", "student.learning_rate=0.05"];
    world.run("teacher-labels", &[]).succeeded();
    world.run("train-student", &overrides).succeeded();
    fs::remove_dir_all(world.path("run/labels")).expect("the labels are removed");
}

fn merge(world: &World, adapter: &str, output: &str) -> Said {
    let [base, adapter, output] = ["run/teacher/model", adapter, output].map(|path| world.path(path));
    run(softshard_e2e::command(&["merge"]).args([base, adapter, output]))
}

/// The mean probability of the tokens that a dataset labels, in nats, in many digits.
fn gold(world: &World, labels: &str) -> f64 {
    let path = world.path(&format!("run/{labels}/train"));
    let said = softshard(&["labels", "stats", path.to_str().expect("ASCII"), "--json"]).succeeded();
    let stats: Value = serde_json::from_str(&said.stdout).expect("JSON");
    find(&stats, "gold_nll_nats").expect("the mean over gold tokens")
}

/// The first number under a key, wherever it is.
fn find(value: &Value, key: &str) -> Option<f64> {
    match value {
        Value::Object(map) => {
            map.get(key).and_then(Value::as_f64).or_else(|| map.values().find_map(|value| find(value, key)))
        }
        Value::Array(list) => list.iter().find_map(|value| find(value, key)),
        _ => None,
    }
}

/// Covers settings that PEFT's adapters have and tensors that say the same, whole tensors and DoRA: a teacher with
/// the adapter gives the labels of the merged model, and `merge` says what it did.
#[test]
fn an_adapter_of_any_kind_labels_as_the_merged_model_does() {
    let world = World::small();
    trained(&world);
    let model = read(&world.path("run/teacher/model/model.safetensors"));
    let all = |_: &mut Tensors| {};
    adapter(&world, "a/regex", json!({ "target_modules": r".*\.self_attn\.(q_proj|v_proj)" }), all);
    adapter(&world, "a/unused", json!({ "target_modules": ["q_proj", "v_proj", "W_pack"] }), all);
    adapter(&world, "a/layer", json!({ "layers_to_transform": [1] }), |tensors| {
        tensors.retain(|name, _| name.contains("layers.1."));
    });
    adapter(&world, "a/pattern", json!({ "rank_pattern": { "v_proj": 2 } }), |tensors| {
        for (name, (shape, values)) in tensors.iter_mut().filter(|(name, _)| name.contains("v_proj")) {
            let columns = shape[1];
            if name.contains("lora_A") {
                (shape[0], *values) = (2, values[..2 * columns].to_vec());
            } else {
                (shape[1], *values) =
                    (2, values.chunks(columns).flat_map(|row| &row[..2]).copied().collect());
            }
        }
    });
    let saved = json!({ "modules_to_save": ["embed_tokens", "lm_head", "norm"] });
    adapter(&world, "a/saved", saved, |tensors| {
        let altered = |name: &str, part: f32| {
            let (shape, values) = &model[name];
            let values =
                values.iter().enumerate().map(|(index, value)| value * (1.0 + (index % 7) as f32 * part));
            (shape.clone(), values.collect())
        };
        for name in model
            .keys()
            .filter(|name| ["embed_tokens.weight", "norm.weight"].iter().any(|end| name.ends_with(end)))
        {
            tensors.insert(format!("{PREFIX}{name}"), altered(name, 0.05));
        }
        // The base ties its head; now it has one of its own.
        tensors.insert(format!("{PREFIX}lm_head.weight"), altered("model.embed_tokens.weight", 0.1));
    });
    adapter(&world, "a/dora", json!({ "use_dora": true }), |tensors| {
        let maps: Vec<String> = tensors.keys().filter(|name| name.contains("lora_B")).cloned().collect();
        for name in maps {
            let rows = tensors[&name].0[0];
            let magnitude = (0..rows).map(|row| 0.5 + (row % 5) as f32 / 5.0).collect();
            tensors.insert(name.replace("lora_B.weight", "lora_magnitude_vector"), (vec![rows], magnitude));
        }
    });
    let mut seen = BTreeMap::new();
    for (name, words) in [
        ("regex", "an adapter of rank 4, scale 2, into 4 of"),
        ("unused", "an adapter of rank 4, scale 2, into 4 of"),
        ("layer", "an adapter of rank 4, scale 2, into 2 of"),
        ("pattern", "an adapter of ranks 2 to 4, scales 2 to 4, into 4 of"),
        ("saved", "an adapter of rank 4, scale 2, into "),
        ("dora", "an adapter of rank 4, scale 2, into 4 of"),
    ] {
        let [folder, merged] = [format!("a/{name}"), format!("merged-{name}")];
        let said = merge(&world, &folder, &merged).succeeded();
        assert!(said.stdout.contains(words), "{name}: {}", said.stdout);
        let label = |how: &[&str], labels: &str| {
            let output = format!("output.labels={labels}");
            world.run("teacher-labels", &[how, &["labels.mantissa_bits=23", &output]].concat()).succeeded();
            gold(&world, labels)
        };
        let with = label(&[&format!("teacher.adapter={folder}")], &format!("with-{name}"));
        let without = label(&[&format!("teacher.model={merged}")], &format!("without-{name}"));
        assert!((with - without).abs() < 1e-4, "{name}: {with} and {without}");
        seen.insert(name, with);
    }
    assert!((seen["regex"] - seen["unused"]).abs() < 1e-9, "{seen:?}");
    for (one, other) in [("regex", "layer"), ("regex", "pattern"), ("regex", "saved"), ("regex", "dora")] {
        assert!((seen[one] - seen[other]).abs() > 1e-3, "{seen:?}");
    }
    // Where layers are read at every pass, and where they are codes.
    let streamed = [
        "teacher.adapter=a/dora",
        "teacher.residency=streamed",
        "labels.mantissa_bits=23",
        "output.labels=streamed",
    ];
    world.run("teacher-labels", &streamed).succeeded();
    assert!((gold(&world, "streamed") - seen["dora"]).abs() < 1e-9);
    let codes =
        ["teacher.adapter=a/saved", "teacher.quantise=8", "labels.mantissa_bits=23", "output.labels=codes"];
    world.run("teacher-labels", &codes).succeeded();
    assert!((gold(&world, "codes") - seen["saved"]).abs() < 0.1);

    adapter(&world, "a/unknown", json!({ "use_qalora": true }), all);
    world
        .run("teacher-labels", &["teacher.adapter=a/unknown", "output.labels=unknown"])
        .failed(3, &["a/unknown/adapter_config.json`: use_qalora true is not supported", "hint:"]);
    assert!(!world.path("run/unknown/train/data").exists(), "nothing is labelled");
}

/// The recipe without its section `lora`.
fn without_lora(world: &World) {
    let text = fs::read_to_string(world.path("recipe.toml")).expect("a recipe");
    let lines: Vec<&str> = text.lines().filter(|line| !line.starts_with("lora =")).collect();
    fs::write(world.path("recipe.toml"), lines.join("\n")).expect("the recipe is written");
}

/// All data in one micro-batch: every step is over the same tokens.
const ONE_BATCH: [&str; 4] = [
    "student.max_tokens_per_batch=100000",
    "student.accumulate_batches=1",
    "student.schedule=constant",
    "student.epochs=9",
];
const PLAIN: &str = r#"student.lora={ r = 4, alpha = 8.0, dropout = 0.0, target_modules = ["q_proj", "v_proj"], rslora = true }"#;

/// Covers where a training that goes on begins: where the other one was, whose next step has the same loss; and what
/// is written.
#[test]
fn training_goes_on_where_the_adapter_is() {
    let world = World::small_labelled();
    let train = |output: &str, steps: &str, more: &[&str]| {
        let places = [format!("output.student={output}"), format!("student.max_steps={steps}")];
        let overrides = [&ONE_BATCH[..], &[&places[0], &places[1]], more].concat();
        world.run("train-student", &overrides).succeeded();
        world.curve(output)
    };
    let whole = train("whole", "4", &[PLAIN]);
    train("first", "3", &[PLAIN]);
    without_lora(&world);
    let from = "student.adapter=run/first/adapter";
    let second = train("second", "2", &[from]);
    let loss = |line: &Value| line["loss"].as_f64().expect("nats");
    assert!((loss(&second[0]) - loss(&whole[3])).abs() < 1e-5, "{} and {}", second[0], whole[3]);
    assert!((loss(&second[0]) - loss(&whole[0])).abs() > 1e-3, "{} and {}", second[0], whole[0]);

    // A step of no length changes nothing.
    train("still", "1", &[from, "student.learning_rate=0.0", "student.final_learning_rate=0.0"]);
    let [before, after] = ["first", "still"].map(|output| {
        let mut files = world.files(&format!("run/{output}/adapter"));
        files.retain(|(path, _)| !path.ends_with("provenance.json"));
        files
    });
    assert!(before == after, "the adapter is written as it was read");
    // What it writes is an adapter like any other: of the same base, with the settings that it had.
    let settings = fs::read(world.path("run/second/adapter/adapter_config.json")).expect("settings");
    let settings: Value = serde_json::from_slice(&settings).expect("JSON");
    assert_eq!((&settings["r"], &settings["use_rslora"]), (&json!(4), &json!(true)));
    // The teacher's training goes on as well, and says what it will take.
    world
        .run(
            "finetune",
            &[
                "finetune.adapter=run/first/adapter",
                "finetune.init=pretrained",
                "finetune.model=start/model",
                "finetune.max_steps=1",
                "output.teacher=tuned",
            ],
        )
        .succeeded();
    assert!(world.path("run/tuned/adapter/adapter_model.safetensors").exists());
    let plan = run(world.stage("train-student", &[from]).arg("--plan")).succeeded();
    assert!(plan.stdout.lines().any(|line| line.trim_start().starts_with("adapter ")), "{}", plan.stdout);
}

/// Waits until a training has written so many lines, and kills it.
fn kill_at(mut child: Child, metrics: &Path, lines: usize) {
    let began = Instant::now();
    while fs::read_to_string(metrics).map_or(0, |text| text.lines().count()) < lines {
        assert!(began.elapsed() < Duration::from_secs(60), "it never came so far");
        thread::sleep(Duration::from_millis(1));
    }
    child.kill().expect("SIGKILL is sent");
    assert!(child.wait().expect("it ends").code().is_none(), "done before it was killed");
}

/// Covers kills of a training that goes on from an adapter, with a mixture; and an adapter that is another one when
/// it resumes.
#[test]
fn a_training_that_goes_on_survives_kills_and_knows_its_adapter() {
    let world = World::labelled();
    let mixture =
        r#"student.mixture=[{ labels = "run/labels/train", weight = 0.5 }, { labels = "run/labels/valid" }]"#;
    world
        .run("train-student", &["output.student=sft", "student.max_steps=2", "student.objective=supervised"])
        .succeeded();
    without_lora(&world);
    // Ranks of their own, as a search for them leaves.
    let patterns = json!({ "rank_pattern": { r"layers\.0\..*q_proj": 3 }, "lora_dropout": 0.1 });
    fs::create_dir_all(world.path("run/student")).expect("a folder is made");
    fs::rename(world.path("run/sft/adapter"), world.path(TRAINED)).expect("it is where copies are made of");
    adapter(&world, "patterned", patterns, |tensors| {
        for (name, (shape, values)) in
            tensors.iter_mut().filter(|(name, _)| name.contains("layers.0.self_attn.q_proj"))
        {
            let columns = shape[1];
            if name.contains("lora_A") {
                (shape[0], *values) = (3, values[..3 * columns].to_vec());
            } else {
                (shape[1], *values) =
                    (3, values.chunks(columns).flat_map(|row| &row[..3]).copied().collect());
            }
        }
    });
    fs::remove_dir_all(world.path("run/student")).expect("it is removed");
    let overrides = ["student.adapter=patterned", mixture, "student.epochs=8", "student.ema_decay=0.9"];
    world.run("train-student", &overrides).succeeded();
    let expected = world.curve("student");
    let files = world.files("run/student/adapter");
    world.run("evaluate", &[]).succeeded();
    for lines in [4, 7] {
        let output = format!("killed-{lines}");
        let place = format!("output.student={output}");
        let overrides = [&overrides[..], &[&place]].concat();
        let child = world.stage("train-student", &overrides).spawn().expect("the binary starts");
        kill_at(child, &world.path(&format!("run/{output}/metrics.jsonl")), lines);
        let said = world.run("train-student", &overrides).succeeded();
        assert!(said.stderr.contains("resumed from a checkpoint"), "{}", said.stderr);
        assert_eq!(world.curve(&output), expected);
        assert!(world.files(&format!("run/{output}/adapter")) == files, "killed at line {lines}");
    }
    let settings: Value = serde_json::from_slice(&files[0].1).expect("JSON");
    assert_eq!(settings["rank_pattern"], json!({ r"layers\.0\..*q_proj": 3 }));

    // The same adapter elsewhere is the same run; another one is not.
    fs::rename(world.path("patterned"), world.path("moved")).expect("it is moved");
    let moved = [&["student.adapter=moved"][..], &overrides[1..]].concat();
    world.run("train-student", &moved).succeeded();
    let file = world.path("moved/adapter_model.safetensors");
    let mut tensors = read(&file);
    tensors.values_mut().next().expect("tensors").1[0] += 0.5;
    write(&file, &tensors);
    world.run("train-student", &moved).failed(3, &["one of another run", "adapter: expected"]);
}

#[test]
fn an_adapter_to_go_on_from_is_refused_by_name_where_it_cannot() {
    let world = World::small_labelled();
    let train = |overrides: &[&str]| world.run("train-student", overrides);
    train(&["student.max_steps=1"]).succeeded();
    train(&["student.adapter=run/student/adapter", "output.student=other"])
        .failed(2, &["`student.lora`: expected none beside `adapter`", "hint: remove one of them"]);
    without_lora(&world);
    train(&["student.adapter=run/student/adapter"]).failed(
        2,
        &["`student.adapter`: expected another folder than the one that this run writes", "hint:"],
    );
    train(&["student.adapter=nowhere", "output.student=other"])
        .failed(3, &["nowhere", "no adapter_config.json"]);
    train(&["student.adapter=run/student/adapter", "student.optimizer=muon", "output.student=other"])
        .failed(2, &["`student.optimizer`: expected \"adamw\"", "`lora` or `adapter`"]);
    train(&["student.adapter=run/student/adapter", "student.init=random", "output.student=other"])
        .failed(2, &["`student.adapter`: adapters over random weights"]);
    adapter(&world, "biased", json!({ "bias": "all" }), |tensors| {
        let norm =
            read(&world.path("start/model/model.safetensors")).remove("model.norm.weight").expect("a norm");
        tensors.insert(format!("{PREFIX}model.norm.weight"), norm);
    });
    train(&["student.adapter=biased", "output.student=other"]).failed(
        3,
        &["biased", "found a whole tensor: `base_model.model.model.norm.weight`", "softshard merge"],
    );
    assert!(!world.path("run/other").exists(), "nothing is written");
}
