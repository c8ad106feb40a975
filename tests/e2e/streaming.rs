//! Models larger than the memory: layers streamed from their files give the bytes of a resident run, under a cap on memory
//! below which that run fails; and quantised ones take less. And a plan of a run's memory says what is then measured.

use std::{
    fs,
    io::Write,
    path::Path,
    process::{Command, Stdio},
    thread,
    time::Duration,
};

use serde_json::{Value, json};
use softshard_e2e::{Said, World, assert_same_files, softshard};

const MIB: u64 = 1 << 20;

/// Shape of a Llama; the vocabulary is that of the world's tokenizer.
struct Shape {
    layers: u64,
    width: u64,
    inner: u64,
    heads: u64,
}

/// 40 layers of 8.9 MB in 32 bits: 354 MB, in a file of half that size.
const LARGE: Shape = Shape { layers: 40, width: 384, inner: 1536, heads: 6 };
/// 107 MB in 32 bits.
const MEDIUM: Shape = Shape { layers: 12, width: 384, inner: 1536, heads: 6 };
/// What a run takes with next to no model.
const SMALL: Shape = Shape { layers: 1, width: 64, inner: 128, heads: 2 };
const VOCABULARY: u64 = 400;
const HEAD_WIDTH: u64 = 64;

/// Address space of the capped runs, which holds the program as well: less than a third of the large model's weights.
const CAP: u64 = 120 * MIB;

/// Tokens of a batch.
const BATCH: u64 = 160;

impl Shape {
    /// Names and shapes of the tensors.
    fn tensors(&self) -> Vec<(String, Vec<u64>)> {
        let Shape { layers, width, inner, heads } = *self;
        let keys = heads / 2 * HEAD_WIDTH;
        let mut tensors = vec![
            ("model.embed_tokens.weight".to_owned(), vec![VOCABULARY, width]),
            ("model.norm.weight".to_owned(), vec![width]),
        ];
        for layer in 0..layers {
            let named = [
                ("input_layernorm", vec![width]),
                ("post_attention_layernorm", vec![width]),
                ("self_attn.q_proj", vec![heads * HEAD_WIDTH, width]),
                ("self_attn.k_proj", vec![keys, width]),
                ("self_attn.v_proj", vec![keys, width]),
                ("self_attn.o_proj", vec![width, heads * HEAD_WIDTH]),
                ("mlp.gate_proj", vec![inner, width]),
                ("mlp.up_proj", vec![inner, width]),
                ("mlp.down_proj", vec![width, inner]),
            ];
            tensors.extend(named.map(|(name, shape)| (format!("model.layers.{layer}.{name}.weight"), shape)));
        }
        tensors
    }

    /// Numbers of one layer.
    fn layer(&self) -> u64 {
        let first = "model.layers.0.";
        let of_first = self.tensors().into_iter().filter(|(name, _)| name.starts_with(first));
        of_first.map(|(_, shape)| shape.iter().product::<u64>()).sum()
    }

    /// Bytes of two layers and the embedding in 32 bits, and of a tensor that is read from the file.
    fn streamed(&self) -> u64 {
        4 * (2 * self.layer() + VOCABULARY * self.width) + 2 * self.inner * self.width
    }

    /// Writes a model of random bf16 weights, without a tensor in memory.
    fn write(&self, folder: &Path) {
        let Shape { layers, width, inner, heads } = *self;
        fs::create_dir_all(folder).expect("a folder is made");
        let config = json!({
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": VOCABULARY, "hidden_size": width,
            "intermediate_size": inner, "num_hidden_layers": layers, "num_attention_heads": heads,
            "num_key_value_heads": heads / 2, "head_dim": HEAD_WIDTH, "hidden_act": "silu", "max_position_embeddings": 256,
            "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": true, "torch_dtype": "bfloat16",
        });
        fs::write(folder.join("config.json"), config.to_string()).expect("the configuration is written");
        let (mut header, mut end) = (serde_json::Map::new(), 0);
        for (name, shape) in self.tensors() {
            let begin = end;
            end += 2 * shape.iter().product::<u64>();
            header.insert(name, json!({ "dtype": "BF16", "shape": shape, "data_offsets": [begin, end] }));
        }
        let mut header = Value::Object(header).to_string().into_bytes();
        header.resize(header.len().next_multiple_of(8), b' ');
        let file = fs::File::create(folder.join("model.safetensors")).expect("the file is made");
        let mut file = std::io::BufWriter::new(file);
        let mut write = |bytes: &[u8]| file.write_all(bytes).expect("the weights are written");
        write(&(header.len() as u64).to_le_bytes());
        write(&header);
        // Xorshift; of each 16 bits sign and mantissa are random, the magnitude is between 2^-5 and 2^-4: RMS 0.047.
        let mut state = 0x9E37_79B9_7F4A_7C15_u64;
        for _ in 0..end.div_ceil(8) {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            write(&((state & 0x807F_807F_807F_807F) | 0x3D00_3D00_3D00_3D00).to_le_bytes()[..]);
        }
        assert_eq!(end % 8, 0, "whole words were written");
        file.flush().expect("the weights are written");
    }
}

/// Data of some short articles, the large model, and a recipe for both stages.
fn world() -> World {
    let world = World::new();
    let recipe = r#"
[data]
instructions = "data/instructions.jsonl"
template = "none"
max_prompt_tokens = 200
max_tokens = 250
limit = 4
split = { valid_rows = 0, seed = 1 }
[tokenizer]
path = "data/tokenizer"
[teacher]
model = "large"
max_tokens_per_batch = BATCH
[labels]
selection = { kind = "top_k", k = 16 }
[student]
model = "large"
max_steps = 2
learning_rate = 1e-2
max_tokens_per_batch = BATCH
lora = { r = 4, alpha = 8.0, dropout = 0.1, target_modules = ["q_proj", "v_proj"] }
[output]
dir = "run"
"#;
    let recipe = recipe.replace("BATCH", &BATCH.to_string());
    fs::write(world.path("recipe.toml"), recipe).expect("the recipe is written");
    LARGE.write(&world.path("large"));
    world.run("prepare", &[]).succeeded();
    world
}

/// Prepares a run of a stage with overrides.
type Stage = fn(&World, &str, &[&str]) -> Command;

/// A stage with two threads, and without the address space that allocators reserve for each of them.
fn stage(world: &World, stage: &str, overrides: &[&str]) -> Command {
    let mut stage = world.stage(stage, overrides);
    stage.env("RAYON_NUM_THREADS", "2").env("MALLOC_ARENA_MAX", "1").env_remove("RUST_BACKTRACE");
    stage
}

/// The same below a cap on its address space.
fn capped(world: &World, name: &str, overrides: &[&str]) -> Command {
    let inner = stage(world, name, overrides);
    let mut shell = Command::new("sh");
    shell.args(["-c", &format!("ulimit -v {} && exec \"$0\" \"$@\"", CAP / 1024)]);
    shell.arg(inner.get_program()).args(inner.get_args());
    for (name, value) in inner.get_envs() {
        match value {
            Some(value) => shell.env(name, value),
            None => shell.env_remove(name),
        };
    }
    shell
}

/// Runs a command to its end; what it said, and the most memory that it ever held.
fn measured(mut command: Command) -> (Said, u64) {
    let piped = command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = piped.spawn().expect("the command starts");
    let status = format!("/proc/{}/status", child.id());
    let mut peak = 0;
    while child.try_wait().expect("it is our child").is_none() {
        // The kernel keeps the maximum; it is gone with the process.
        let text = fs::read_to_string(&status).unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kib =
            line.and_then(|line| line.split_whitespace().next()).and_then(|kib| kib.parse::<u64>().ok());
        peak = kib.map_or(peak, |kib| kib * 1024).max(peak);
        thread::sleep(Duration::from_millis(5));
    }
    (Said::new(&child.wait_with_output().expect("it has ended")), peak)
}

fn manifest(world: &World, dataset: &str) -> Value {
    let manifest = fs::read(world.path(dataset).join("manifest.json")).expect("a manifest");
    serde_json::from_slice(&manifest).expect("JSON")
}

fn mib(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / MIB as f64)
}

/// Covers labelling with a teacher three times as large as the memory that is allowed: the bytes of a resident run, within
/// two layers, the embedding, the states and activations; and `auto`, which finds out by itself.
#[test]
fn a_teacher_larger_than_the_memory_labels_as_a_resident_one() {
    let world = world();
    let label = |run: Stage, output: &str, overrides: &[&str]| {
        let output = format!("output.labels={output}");
        measured(run(&world, "teacher-labels", &[&[output.as_str()], overrides].concat()))
    };
    let (resident, streamed, auto) =
        ("teacher.residency=resident", "teacher.residency=streamed", "teacher.residency=auto");
    let (said, of_resident) = label(stage, "resident", &[resident]);
    said.succeeded();
    let failed = label(capped, "failed", &[resident]).0;
    failed.failed(4, &["memory: 0.4 GB of weights", "hint: `residency = \"streamed\"`"]);
    let (said, of_streamed) = label(capped, "streamed", &[streamed]);
    said.succeeded();
    assert_same_files(&world.dataset("run/streamed"), &world.dataset("run/resident"), "streamed");

    // Its sequences are scored on all workers where the teacher is resident; one that waited for a layer would wait forever.
    let mut audit = Command::new("timeout");
    audit
        .args(["--signal=KILL", "300"])
        .arg(softshard_e2e::binary())
        .args(["labels", "audit"])
        .arg(world.path("recipe.toml"));
    audit.args(["--set", streamed, "--set", "output.labels=streamed"]).env("RAYON_NUM_THREADS", "2");
    softshard_e2e::run(&mut audit).succeeded();

    SMALL.write(&world.path("small"));
    let (said, fixed) = label(capped, "small", &[streamed, "teacher.model=small"]);
    said.succeeded();
    let tokens = manifest(&world, "run/sequences/train")["input_tokens"].as_u64().expect("tokens");
    // Before and after a layer.
    let states = 2 * 4 * LARGE.width * tokens;
    // Of two batches that compute at a time: gate, its activation, up and their product, and half a dozen of the states' size.
    let activations = 2 * 4 * BATCH * (4 * LARGE.inner + 6 * LARGE.width);
    println!(
        "resident {}; streamed, of {} of weights:",
        mib(of_resident),
        mib(4 * LARGE.layers * LARGE.layer())
    );
    assert_within(
        of_streamed,
        &[
            ("a small model", fixed),
            ("weights", LARGE.streamed()),
            ("states", states),
            ("activations", activations),
            kept(),
        ],
    );

    let chosen = label(capped, "auto-capped", &[auto]).0.succeeded().stderr;
    assert!(chosen.contains("residency auto: streamed layer by layer (0.4 GB of weights"), "{chosen}");
    let chosen = label(stage, "auto", &[auto]).0.succeeded().stderr;
    assert!(chosen.contains("residency auto: resident (0.4 GB of weights"), "{chosen}");
}

/// The heap may hold the matrices of a layer that were freed, in pieces.
fn kept() -> (&'static str, u64) {
    ("freed and kept", 4 * LARGE.layer())
}

/// Fails the test unless a peak is below the sum of what is known to be in memory.
#[track_caller]
fn assert_within(peak: u64, parts: &[(&str, u64)]) {
    let parts_in_words: Vec<String> =
        parts.iter().map(|(name, bytes)| format!("{name} {}", mib(*bytes))).collect();
    let sum: u64 = parts.iter().map(|(_, bytes)| bytes).sum();
    let words = format!("{} at most, within {} = {}", mib(peak), mib(sum), parts_in_words.join(" + "));
    println!("{words}");
    assert!(peak < sum, "{words}");
}

/// Covers LoRA over a base larger than the memory that is allowed: the same losses and the same adapter, byte for byte, as over
/// a resident base, with and without the activations of all layers in memory.
#[test]
fn an_adapter_is_the_same_over_streamed_layers() {
    let world = world();
    world.run("teacher-labels", &[]).succeeded();
    let mut runs = Vec::new();
    for (name, key, cap) in
        [("streamed", "residency", true), ("layer", "checkpointing", false), ("none", "checkpointing", false)]
    {
        let (output, how) = (format!("output.student={name}"), format!("student.{key}={name}"));
        let train: Stage = if cap { capped } else { stage };
        let (said, peak) = measured(train(&world, "train-student", &[&output, &how]));
        said.succeeded();
        println!("{name}: {}", mib(peak));
        runs.push((name, world.curve(name), world.files(&format!("run/{name}/adapter")), peak));
    }
    let (_, expected, adapter, _) = runs.last().expect("three runs");
    assert_eq!(expected.len(), 2);
    for (name, losses, files, _) in &runs {
        assert_eq!(losses, expected, "{name}");
        assert_same_files(files, adapter, name);
    }
    // Where the weights are does not make another run of it.
    let elsewhere = ["output.student=none", "student.residency=streamed"];
    let resumed = world.run("train-student", &elsewhere).succeeded().stderr;
    assert!(resumed.contains("resumed from a checkpoint"), "{resumed}");

    let peaks: Vec<u64> = runs.iter().map(|(.., peak)| *peak).collect();
    assert!(peaks.is_sorted(), "streamed < layer < none: {peaks:?}");

    SMALL.write(&world.path("small"));
    let small = ["output.student=small", "student.model=small", "student.residency=streamed"];
    let (said, fixed) = measured(capped(&world, "train-student", &small));
    said.succeeded();
    let inputs = 4 * LARGE.layers * LARGE.width * BATCH;
    // Of one layer: what its graph keeps, and gradients.
    let graph = 4 * BATCH * (12 * LARGE.inner + 20 * LARGE.width);
    assert_within(
        peaks[0],
        &[
            ("a small model", fixed),
            ("weights", LARGE.streamed()),
            ("inputs of all layers", inputs),
            ("graph of a layer", graph),
            kept(),
        ],
    );
}

/// Covers bf16 on a CPU without matrix units: weights are half as large, whether they are in memory or streamed, and nothing
/// that a product makes of them takes it back.
#[test]
fn a_teacher_in_bf16_takes_less_memory_than_in_f32() {
    let world = world();
    for residency in ["resident", "streamed"] {
        let label = |precision: &str| {
            let output = format!("output.labels={residency}-{precision}");
            let (how, precision) =
                (format!("teacher.residency={residency}"), format!("teacher.precision={precision}"));
            let mut run = stage(&world, "teacher-labels", &[&output, &how, &precision]);
            run.env("SOFTSHARD_AMX", "off");
            let (said, peak) = measured(run);
            said.succeeded();
            peak
        };
        let (of_f32, of_bf16) = (label("f32"), label("bf16"));
        println!("{residency}: {} in f32, {} in bf16", mib(of_f32), mib(of_bf16));
        // Half of the weights, but for the part of a matrix that each of two threads has in f32, and what the heap keeps.
        let layers = if residency == "resident" { LARGE.layers } else { 2 };
        let saved = (2 * layers * LARGE.layer()).saturating_sub(2 * (4 << 20) + 4 * LARGE.layer());
        assert!(of_bf16 + saved < of_f32, "{residency}: {} and {}", mib(of_f32), mib(of_bf16));
    }
}

/// Covers teachers whose layers are codes: the plan says so, labels of another precision are other labels, and the memory is
/// what the bits say.
#[test]
fn a_quantised_teacher_says_so_and_takes_less_memory() {
    let world = world();
    let label = |name: &str, quantise: &[&str]| {
        let output = format!("output.labels={name}");
        let overrides = [&[output.as_str()][..], quantise].concat();
        let (said, peak) = measured(stage(&world, "teacher-labels", &overrides));
        said.succeeded();
        let manifest = manifest(&world, &format!("run/{name}/train"));
        (manifest["plan"]["teacher"]["dtype"].as_str().expect("a name").to_owned(), peak)
    };
    let (dtype, dense) = label("f32", &[]);
    assert_eq!(dtype, "f32");
    for (bits, per_weight) in [("8", 8.5), ("4", 4.5)] {
        let (dtype, peak) = label(&format!("bits-{bits}"), &[&format!("teacher.quantise={bits}")]);
        assert_eq!(dtype, format!("f32, layers in {bits} bits"));
        let saved = (dense - peak) as f64;
        let expected = (LARGE.layers * LARGE.layer()) as f64 * (32.0 - per_weight) / 8.0;
        println!("{bits} bits: {}, in f32 {}", mib(peak), mib(dense));
        assert!(
            (saved / expected - 1.0).abs() < 0.1,
            "{bits} bits: expected {expected} bytes less, found {saved}"
        );
        let folder = |name: &str| world.path(&format!("run/{name}/train")).display().to_string();
        softshard(&["labels", "diff", &folder("f32"), &folder(&format!("bits-{bits}"))])
            .failed(3, &["plan keys that differ: 1"]);
    }
}

/// A number of megabytes behind `name` in what a run said.
#[track_caller]
fn megabytes(name: &str, said: &str) -> f64 {
    let line = said.lines().find_map(|line| line.trim_start().strip_prefix(name));
    let number = line.and_then(|line| line.trim().strip_suffix(" MB")?.replace(',', "").parse().ok());
    number.unwrap_or_else(|| panic!("expected `{name} <number> MB` in:\n{said}"))
}

/// How far a plan may be from what is measured.
const WITHIN: f64 = 0.15;

/// Labels and sequences of 40 articles, one of all articles in each of 6 texts, a recipe for an adapter and one for a whole model.
fn planned_world() -> World {
    let world = world();
    MEDIUM.write(&world.path("medium"));
    SMALL.write(&world.path("small"));
    let recipe = fs::read_to_string(world.path("recipe.toml")).expect("the recipe is there");
    let recipe = recipe.replace("limit = 4", "limit = 40");
    fs::write(world.path("recipe.toml"), &recipe).expect("a recipe is written");
    world.run("prepare", &[]).succeeded();
    world.run("teacher-labels", &["teacher.model=small"]).succeeded();
    let whole: Vec<&str> = recipe.lines().filter(|line| !line.starts_with("lora =")).collect();
    fs::write(world.path("whole.toml"), whole.join("\n")).expect("a recipe is written");

    let articles = fs::read_to_string(world.path("data/instructions.jsonl")).expect("the data is there");
    let articles: Vec<Value> =
        articles.lines().map(|line| serde_json::from_str(line).expect("a line of JSON")).collect();
    let long = |articles: &[Value]| {
        let texts: Vec<&str> = articles.iter().filter_map(|article| article["context"].as_str()).collect();
        let mut long = articles[0].clone();
        long["context"] = texts.join(" ").into();
        long.to_string()
    };
    let lines: Vec<String> = articles.chunks(12).map(long).collect();
    fs::write(world.path("data/long.jsonl"), lines.join("\n")).expect("the data is written");
    let config = fs::read_to_string(world.path("medium/config.json")).expect("a configuration");
    let config = config.replace("\"max_position_embeddings\":256", "\"max_position_embeddings\":4096");
    fs::write(world.path("medium/config.json"), config).expect("a configuration is written");
    world.run("prepare", &LONG).succeeded();
    world
}

/// Texts of some 1,100 tokens.
const LONG: [&str; 4] = [
    "data.instructions=data/long.jsonl",
    "data.max_prompt_tokens=4000",
    "data.max_tokens=4096",
    "output.sequences=long",
];

/// What a plan says, and how much a run then holds, in MB; the run has so many threads.
#[track_caller]
fn planned(world: &World, recipe: &str, settings: &[&str], threads: u32) -> (f64, f64) {
    let run = |more: &[&str]| {
        let mut command = softshard_e2e::command(&["train-student"]);
        command.arg(world.path(recipe)).args(more).env("RAYON_NUM_THREADS", threads.to_string());
        for setting in ["student.model=medium", "student.max_tokens_per_batch=1024"].iter().chain(settings) {
            command.args(["--set", setting]);
        }
        // The labels are those of a smaller world.
        command.args(["--accept", "teacher"]);
        measured(command)
    };
    let (said, of_plan) = run(&["--plan"]);
    let plan = said.succeeded().stdout;
    let (said, peak) = run(&[]);
    said.succeeded();
    let (expected, found) = (megabytes("expected peak", &plan), peak as f64 / 1e6);
    let off = 100.0 * (expected / found - 1.0);
    println!(
        "{settings:?}, {threads} threads: expected {expected} MB, found {found:.1} MB: {off:+.1} %\n{plan}"
    );
    assert!((of_plan as f64) < 64e6, "a plan loads nothing, and held {}", mib(of_plan));
    (expected, found)
}

/// Covers `train-student --plan`: before anything is loaded it says, within 15 %, what the run then takes, whatever is kept in memory
/// and wherever, and however much is computed at a time. Micro-batches on several threads are at their most together in one step or
/// another, so there are some.
#[test]
fn a_plan_says_how_much_memory_a_run_takes() {
    let world = planned_world();
    let layer = "student.checkpointing=layer";
    let (two, four) = ("student.accumulate_batches=2", "student.accumulate_batches=4");
    let short = "student.max_tokens_per_batch=512";
    let (supervised, small) = ("student.objective=supervised", "student.model=small");
    let steps = ["student.epochs=6", "student.max_steps=6"];
    let of_steps = |settings: &[&'static str]| [&steps[..], settings].concat();
    let cases: [(&str, &str, Vec<&str>); 20] = [
        ("resident", "recipe.toml", vec![]),
        ("by layer", "recipe.toml", vec![layer]),
        ("streamed", "recipe.toml", vec!["student.residency=streamed"]),
        ("8 bits", "recipe.toml", vec!["student.quantise=8"]),
        ("4 bits by layer", "recipe.toml", vec!["student.quantise=4", layer]),
        ("bf16", "recipe.toml", vec!["student.precision=bf16"]),
        ("two at a time", "recipe.toml", of_steps(&[two])),
        ("four", "recipe.toml", of_steps(&[four, short])),
        ("packed", "recipe.toml", vec!["student.packing=true"]),
        (
            "looked at",
            "recipe.toml",
            vec!["student.evaluation={ every_steps = 1, data = \"run/labels/train\" }"],
        ),
        ("averaged, by Muon", "whole.toml", vec!["student.optimizer=muon", "student.ema_decay=0.9"]),
        ("whole model", "whole.toml", vec![]),
        ("whole model of short batches", "whole.toml", vec!["student.max_tokens_per_batch=160"]),
        ("whole model, two at a time", "whole.toml", of_steps(&[two])),
        ("whole model by layer, of three", "whole.toml", of_steps(&[layer, "student.accumulate_batches=3"])),
        ("tiny", "recipe.toml", vec![small]),
        ("tiny whole model, two at a time", "whole.toml", of_steps(&[small, two])),
        ("supervised", "recipe.toml", vec![supervised]),
        (
            "pretrain",
            "recipe.toml",
            vec!["student.objective=pretrain", "student.loss.alpha=0", "student.packing=true"],
        ),
        ("long texts by layer", "recipe.toml", [&[supervised, layer], &LONG[..]].concat()),
    ];
    let mut wrong = Vec::new();
    for (name, recipe, settings) in cases {
        let output = format!("output.student=student-{}", name.replace([' ', ','], "-"));
        let (expected, mut found) = planned(&world, recipe, &[&settings[..], &[&output]].concat(), 2);
        if found * (1.0 + WITHIN) < expected && settings.iter().any(|setting| setting.contains("accumulate"))
        {
            // Those of one run need not meet at their most.
            fs::remove_dir_all(world.path("run").join(output.trim_start_matches("output.student=")))
                .expect("the first one goes");
            found = found.max(planned(&world, recipe, &[&settings[..], &[&output]].concat(), 2).1);
        }
        if (expected / found - 1.0).abs() > WITHIN {
            wrong.push(format!("{name}: expected {expected} MB, found {found:.1} MB"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// Covers plans where the threads decide how many micro-batches are under way, and of a whole model that goes on from a
/// checkpoint: it is read one tensor at a time, so the plan is the same.
#[test]
fn a_plan_knows_threads_and_holds_for_a_run_that_goes_on() {
    let world = planned_world();
    let assert_near = |(expected, found): (f64, f64)| {
        assert!((expected / found - 1.0).abs() < WITHIN, "expected {expected} MB, found {found:.1} MB");
        expected
    };
    let steps =
        ["student.epochs=6", "student.max_steps=6", "student.accumulate_batches=2", "output.student=one"];
    let alone = assert_near(planned(&world, "recipe.toml", &steps, 1));
    let plan = world
        .stage(
            "train-student",
            &[&steps[..], &["student.model=medium", "student.max_tokens_per_batch=1024"]].concat(),
        )
        .args(["--plan", "--accept", "teacher"])
        .env("RAYON_NUM_THREADS", "2")
        .output()
        .expect("it runs");
    let together = megabytes("expected peak", &Said::new(&plan).succeeded().stdout);
    assert!(together > 1.4 * alone, "one thread {alone} MB, two {together} MB");

    // Little beside weights and moments, so that what is held while a checkpoint is read would be the most.
    let settings =
        ["student.max_tokens_per_batch=160", "student.checkpoint_every_steps=1", "output.student=whole"];
    assert_near(planned(&world, "whole.toml", &settings, 2));
    fs::remove_dir_all(world.path("run/whole/checkpoints/step-00000002")).expect("the last one goes");
    assert_near(planned(&world, "whole.toml", &settings, 2));
}
