//! One input of a small world is changed at a time, every file and every key of the recipe: the next stage refuses it by name, keeps it in
//! what it makes, or makes the same as before. A key that is new to the recipe fails here until somebody says which.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use serde_json::Value;
use softshard_e2e::{Said, World, root};

/// What becomes of a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Then {
    /// Exit code 3, before anything is made.
    Refused,
    /// The recipe by itself is wrong: exit code 2.
    Contradicts,
    /// What is made says so.
    Recorded,
    /// It decides no number: the same is made.
    Same,
    /// A test of its own has it.
    Elsewhere,
}

use Then::{Contradicts, Elsewhere, Recorded, Refused, Same};

/// Key, another value, and what becomes of it. Keys that this version does not have are left out.
type Keys = &'static [(&'static str, &'static str, Then)];

/// Read against sequences.
const DATA: Keys = &[
    ("instructions", r#"["data/instructions.jsonl", "data/instructions.jsonl"]"#, Refused),
    ("text", "data/instructions.jsonl", Contradicts),
    ("ignore_columns", r#"["source"]"#, Refused),
    ("document_separator", "---", Refused),
    ("template", "minillm", Refused),
    ("template_date", "", Elsewhere),
    ("template_variables", "", Elsewhere),
    ("max_prompt_tokens", "150", Refused),
    ("max_tokens", "240", Refused),
    ("mask", "all", Refused),
    ("bos", "", Elsewhere),
    ("empty_responses", "drop", Refused),
    ("split", "{ valid_rows = 12, test_rows = 11, seed = 1 }", Refused),
    ("sequences_per_shard", "7", Same),
    ("limit", "50", Refused),
];
const TOKENIZER: Keys =
    &[("path", "other/tokenizer", Refused), ("add_bos", "true", Refused), ("add_eos", "false", Refused)];
/// Read against labels.
const TEACHER: Keys = &[
    ("model", "start/model", Refused),
    ("adapter", "run/student/adapter", Refused),
    ("calibration", "temperature", Refused),
    ("label_noise", "0.5", Refused),
    ("logit_scale", "2.0", Refused),
    ("precision", "bf16", Refused),
    ("quantise", "8", Refused),
    ("max_tokens_per_batch", "77", Same),
    ("residency", "streamed", Same),
    ("rows_per_chunk", "7", Same),
    ("tokens_per_block", "77", Same),
];
const LABELS: Keys = &[
    ("mantissa_bits", "9", Refused),
    ("omit", r#"["gold_log_prob"]"#, Refused),
    ("position_mantissa_bits", "9", Refused),
    ("selection", r#"{ kind = "top_k", k = 8 }"#, Refused),
    ("splits", r#"["train", "valid", "test"]"#, Same),
    ("temperatures", "[]", Refused),
    ("sequences_per_shard", "7", Same),
];
/// Read against the checkpoints of a run.
const STUDENT: Keys = &[
    ("accumulate_batches", "3", Refused),
    ("adapter", "run/student/adapter", Contradicts),
    ("checkpoint_every_steps", "1", Same),
    ("checkpointing", "layer", Same),
    ("clip_norm", "2.0", Refused),
    ("decay_steps", "1", Refused),
    ("ema_decay", "0.5", Refused),
    ("epochs", "3", Refused),
    ("evaluation", "{ every_steps = 1 }", Recorded),
    ("final_learning_rate", "1e-5", Refused),
    ("init", "random", Contradicts),
    ("keep_checkpoints", "1", Same),
    ("learning_rate", "1e-3", Refused),
    ("lora", r#"{ r = 4, alpha = 9.0, dropout = 0.1, target_modules = ["q_proj", "v_proj"] }"#, Refused),
    ("loss", "{ alpha = 0.25 }", Refused),
    ("max_steps", "3", Refused),
    ("max_tokens_per_batch", "512", Refused),
    ("mixture", r#"[{ labels = "run/labels/valid" }]"#, Refused),
    ("model", "run/teacher/model", Refused),
    ("objective", "supervised", Refused),
    ("optimizer", "muon", Contradicts),
    ("packing", "true", Refused),
    ("precision", "bf16", Refused),
    ("quantise", "8", Refused),
    ("residency", "streamed", Same),
    ("rows_per_chunk", "7", Refused),
    ("schedule", "linear", Refused),
    ("seed", "77", Refused),
    ("warmup_steps", "1", Refused),
    ("weight_decay", "0.5", Refused),
];
/// Kept in the result.
const EVALUATE: Keys = &[
    ("adapter", "", Elsewhere),
    ("generation", "{ repetition_penalty = 1.5 }", Recorded),
    ("max_answers", "2", Recorded),
    ("max_new_tokens", "3", Recorded),
    ("max_tokens_per_batch", "77", Same),
    ("model", "", Elsewhere),
    ("name", "other", Same),
    ("precision", "bf16", Recorded),
    ("quantise", "8", Recorded),
    ("residency", "streamed", Same),
    ("split", "valid", Recorded),
    ("rouge", r#"{ unit = "rougeLsum", stemmer = false, lines_end_at_full_stops = true }"#, Recorded),
    ("stop_at_newline", "true", Recorded),
    ("summaries", "", Elsewhere),
    ("task", "", Elsewhere),
    ("tasks", "", Elsewhere),
];

const STEPS: &str = "student.max_steps=2";
const FEW: &str = "evaluate.max_answers=1";

/// Labelled, trained and evaluated.
fn whole() -> World {
    let world = World::labelled();
    world.run("train-student", &[STEPS]).succeeded();
    world.run("evaluate", &[FEW]).succeeded();
    world
}

fn read_json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).expect("a file")).expect("JSON")
}

/// Keys of a section in the published schema.
fn keys_of(section: &str) -> BTreeSet<String> {
    let schema = read_json(&root().join("schemas/recipe.schema.json"));
    let properties = schema["$defs"][section]["properties"].as_object().expect("a section");
    properties.keys().cloned().collect()
}

/// Changes one key after the other.
fn change_each(section: &str, table: &str, keys: Keys, mut then: impl FnMut(&str, &str, Then)) {
    let there = keys_of(section);
    let known: BTreeSet<String> = keys.iter().map(|(key, ..)| (*key).to_owned()).collect();
    let unknown: Vec<&String> = there.difference(&known).collect();
    assert!(unknown.is_empty(), "[{table}]: what becomes of a change of {unknown:?}? Say it in this file");
    for (key, value, expected) in keys {
        if there.contains(*key) && *expected != Elsewhere {
            then(&format!("{table}.{key}"), &format!("{table}.{key}={value}"), *expected);
        }
    }
}

/// Checks what a stage said of a change, where it refuses by name.
#[track_caller]
fn refuses(said: Said, change: &str, expected: Then, name: &str) -> bool {
    let code = match expected {
        Refused => 3,
        Contradicts => 2,
        _ => {
            assert_eq!(said.code, 0, "{change}: {}", said.stderr);
            return false;
        }
    };
    assert_eq!(said.code, code, "{change}: {}", said.stderr);
    assert!(said.stderr.contains(name), "{change}: expected {name} in {}", said.stderr);
    true
}

#[test]
fn each_key_of_the_data_is_compared_with_the_sequences() {
    let world = whole();
    let other = world.path("other");
    let other = other.to_str().expect("a path of ASCII");
    softshard_e2e::softshard(&["demo-data", other, "--rows", "84", "--seed", "9", "--vocab-size", "400"])
        .succeeded();
    let labels = world.files("run/labels");
    let mut change = |key: &str, change: &str, expected: Then| {
        let name = match key {
            "tokenizer.path" => "expected as in the recipe's tokenizer",
            "data.split" => "data.split.test_rows",
            "data.text" => "instructions",
            key => key,
        };
        refuses(world.run("teacher-labels", &[change]), change, expected, name);
        let mut now = world.files("run/labels");
        let is_recipe = |path: &Path| path.ends_with("recipe.toml");
        now.retain(|(path, _)| !is_recipe(path));
        let before: Vec<_> = labels.iter().filter(|(path, _)| !is_recipe(path)).cloned().collect();
        assert!(now == before, "{change}: the labels are as they were");
    };
    change_each("DataConfig", "data", DATA, &mut change);
    change_each("TokenizerConfig", "tokenizer", TOKENIZER, &mut change);
}

#[test]
fn each_key_of_teacher_labels_and_student_is_compared_or_decides_nothing() {
    let world = whole();
    let adapter = || world.files("run/student/adapter");
    let before = adapter();
    let mut change = |key: &str, change: &str, expected: Then| {
        let name = match key {
            "teacher.model" => "teacher.weights",
            "teacher.precision" | "teacher.quantise" => "dtype",
            "teacher.calibration" => "is_calibrated",
            "student.model" => "model.weights",
            "student.mixture" => "data: expected",
            "student.init" | "student.optimizer" | "student.adapter" => "student",
            "student.objective" => "student.objective",
            key => key,
        };
        let overrides = if key == "student.max_steps" { vec![change] } else { vec![STEPS, change] };
        refuses(world.run("train-student", &overrides), change, expected, name);
        let same = adapter() == before;
        assert_eq!(same, expected != Recorded, "{change}: the adapter with its provenance");
        if expected == Recorded {
            world.run("train-student", &[STEPS]).succeeded();
            assert!(adapter() == before, "{change}: as it was");
        }
    };
    change_each("TeacherConfig", "teacher", TEACHER, &mut change);
    change_each("LabelsConfig", "labels", LABELS, &mut change);
    change_each("TrainConfig", "student", STUDENT, &mut change);
}

#[test]
fn each_key_of_an_evaluation_is_kept_in_its_result() {
    let world = whole();
    let result = |name: &str| {
        read_json(&world.path(&format!("run/evaluations/{name}/held_out.json")))["provenance"].clone()
    };
    let before = result("student");
    change_each("EvaluateConfig", "evaluate", EVALUATE, |key, change, expected| {
        let overrides = if key == "evaluate.max_answers" { vec![change] } else { vec![FEW, change] };
        assert!(!refuses(world.run("evaluate", &overrides), change, expected, key));
        let now = result(match key {
            "evaluate.name" => "other",
            "evaluate.split" => "student-valid",
            _ => "student",
        });
        assert_eq!(now == before, expected == Same, "{change}: {now}");
    });
}

/// Another byte in the middle of a file, and the file back afterwards.
struct Changed(PathBuf, Vec<u8>);

impl Changed {
    fn at(path: PathBuf) -> Self {
        let before = fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let mut bytes = before.clone();
        match path.file_name().and_then(|name| name.to_str()) {
            // What stays JSON, and says something else.
            Some("config.json") => bytes = replaced(&before, "\"rms_norm_eps\": ", "\"rms_norm_eps\": 1"),
            Some("instructions.jsonl") => bytes.truncate(before.len() * 9 / 10),
            Some(name) if name.ends_with(".safetensors") => *bytes.last_mut().expect("weights") ^= 1,
            _ => {
                let middle = bytes.len() / 2;
                bytes[middle] ^= 1;
            }
        }
        fs::write(&path, bytes).expect("it is changed");
        Self(path, before)
    }
}

impl Drop for Changed {
    fn drop(&mut self) {
        fs::write(&self.0, &self.1).expect("it is back");
    }
}

fn replaced(bytes: &[u8], from: &str, to: &str) -> Vec<u8> {
    let text = String::from_utf8(bytes.to_vec()).expect("a text");
    assert!(text.contains(from), "{from} in {text}");
    text.replacen(from, to, 1).into_bytes()
}

fn first_below(folder: PathBuf) -> PathBuf {
    let mut files: Vec<PathBuf> =
        fs::read_dir(&folder).expect("a folder").map(|entry| entry.expect("an entry").path()).collect();
    files.sort();
    files.remove(0)
}

#[test]
fn each_file_is_compared_or_kept_in_what_is_made() {
    let world = whole();
    let data = world.path("data/instructions.jsonl");
    let text = fs::read_to_string(&data).expect("the data");
    // A file that ends with a whole row.
    let cut = |path: &Path| {
        let text = fs::read_to_string(path).expect("the data");
        let end = text.rfind('\n').map_or(0, |end| end + 1);
        fs::write(path, &text[..end]).expect("whole rows");
    };
    let refused: [(PathBuf, &str, &str); 9] = [
        (data.clone(), "teacher-labels", "data.instructions.0"),
        (first_below(world.path("run/sequences/train/data")), "teacher-labels", "expected BLAKE3"),
        (first_below(world.path("run/sequences/test/data")), "evaluate", "expected BLAKE3"),
        (first_below(world.path("run/labels/train/data")), "train-student", "expected BLAKE3"),
        (first_below(world.path("run/labels/test/data")), "evaluate", "expected BLAKE3"),
        (world.path("run/teacher/model/config.json"), "train-student", "teacher.config"),
        (world.path("run/teacher/model/model.safetensors"), "train-student", "teacher.weights"),
        (world.path("start/model/config.json"), "train-student", "model.config"),
        (world.path("start/model/model.safetensors"), "evaluate", "model.weights"),
    ];
    for (path, stage, name) in refused {
        let changed = Changed::at(path.clone());
        if path == data {
            cut(&path);
        }
        let said = world.run(stage, &[STEPS, FEW]);
        assert_eq!(said.code, 3, "{}: {}", path.display(), said.stderr);
        assert!(said.stderr.contains(name), "{}: expected {name} in {}", path.display(), said.stderr);
        drop(changed);
        world.run(stage, &[STEPS, FEW]).succeeded();
    }
    assert_eq!(fs::read_to_string(&data).expect("the data"), text);
    // An adapter that somebody went on with elsewhere is another one: its result says so.
    let result = || {
        read_json(&world.path("run/evaluations/student/held_out.json"))["provenance"]["inputs"]["adapter"]
            .clone()
    };
    let before = result();
    let changed = Changed::at(world.path("run/student/adapter/adapter_model.safetensors"));
    world.run("evaluate", &[FEW]).succeeded();
    assert_ne!(result(), before);
    drop(changed);
    world.run("evaluate", &[FEW]).succeeded();
    assert_eq!(result(), before);
}
