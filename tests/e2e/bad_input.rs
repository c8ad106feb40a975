//! Bad input: a clear message, the documented exit code, and nothing lost.

use std::fs;

use softshard_e2e::{Disk, World, softshard};

/// Replaces one part of a file.
fn edit(world: &World, path: &str, from: &str, to: &str) {
    let path = world.path(path);
    let text = fs::read_to_string(&path).expect("the file is there");
    assert!(text.contains(from), "{from:?} is in {}", path.display());
    fs::write(&path, text.replacen(from, to, 1)).expect("the file is written");
}

#[test]
fn a_misspelt_recipe_key_is_named_with_its_place() {
    let world = World::new();
    edit(&world, "recipe.toml", "sequences_per_shard", "sequences_per_shrad");
    world.run("prepare", &[]).failed(
        2,
        &["recipe.toml", "line 25, column 1", "unknown field `sequences_per_shrad`", "expected one of"],
    );
    assert!(!world.path("run").exists(), "nothing is written");
}

#[test]
fn a_missing_recipe_key_is_named() {
    let world = World::new();
    edit(&world, "recipe.toml", "[tokenizer]\npath = \"data/tokenizer\"\n", "[tokenizer]\n");
    world.run("prepare", &[]).failed(2, &["recipe.toml", "missing field `path`"]);
    softshard(&["prepare", "/nowhere/recipe.toml"]).failed(2, &["/nowhere/recipe.toml"]);
}

#[test]
fn a_folder_without_config_is_no_model() {
    let world = World::prepared();
    fs::create_dir(world.path("empty")).expect("a folder is made");
    world.run("teacher-labels", &["teacher.model=empty"]).failed(3, &["empty", "config.json", "hint:"]);
}

#[test]
fn truncated_and_incomplete_safetensors_are_named() {
    let world = World::with_teacher();
    let weights = world.path("run/teacher/model/model.safetensors");
    let bytes = fs::read(&weights).expect("the weights are there");
    fs::write(&weights, &bytes[..bytes.len() - 100]).expect("the weights are cut");
    world.run("teacher-labels", &[]).failed(3, &["model.safetensors"]);
    // A tensor under another name is missing under its own.
    let text = b"model.norm.weight";
    let at = bytes
        .windows(text.len())
        .position(|window| window == text)
        .expect("the tensor's name is in the header");
    let mut renamed = bytes.clone();
    renamed[at..at + text.len()].copy_from_slice(b"model.form.weight");
    fs::write(&weights, renamed).expect("the weights are written");
    world.run("teacher-labels", &[]).failed(3, &["model.norm.weight", "model.form.weight"]);
    fs::write(&weights, bytes).expect("the weights are repaired");
    world.run("teacher-labels", &[]).succeeded();
}

#[test]
fn a_tokenizer_larger_than_the_vocabulary_is_refused() {
    let world = World::prepared();
    edit(&world, "shape/config.json", "\"vocab_size\": 400", "\"vocab_size\": 300");
    world.run("finetune", &[]).failed(3, &["shape", "expected at most the model's 300 ids, found 400"]);
}

#[test]
fn broken_lines_empty_responses_and_invalid_utf8_are_named_by_line() {
    let world = World::prepared();
    let before = world.files("run/sequences");
    let data = world.path("data/instructions.jsonl");
    let good = fs::read_to_string(&data).expect("the data is there");
    let cases: [(&[u8], &[&str]); 3] = [
        (b"{\"instruction\": \"a\", \"respon\n", &["instructions.jsonl` line 73"]),
        (b"{\"instruction\": \"a\", \"response\": \"  \"}\n", &["instructions.jsonl` line 73", "response"]),
        (b"{\"instruction\": \"\xff\", \"response\": \"b\"}\n", &["instructions.jsonl` line 73", "UTF-8"]),
    ];
    for (line, expected) in cases {
        let mut bytes = good.clone().into_bytes();
        bytes.extend_from_slice(line);
        fs::write(&data, bytes).expect("the data is written");
        world.run("prepare", &[]).failed(3, expected);
        assert!(world.files("run/sequences") == before, "the sequences that were there are there");
    }
}

#[test]
fn unfinished_damaged_and_foreign_labels_are_refused() {
    let world = World::labelled();
    let train = world.path("run/labels/train");
    let manifest = fs::read(train.join("manifest.json")).expect("the manifest is there");
    fs::remove_file(train.join("manifest.json")).expect("the manifest is removed");
    world.run("train-student", &[]).failed(3, &["labels/train", "no manifest.json"]);
    fs::write(train.join("manifest.json"), manifest).expect("the manifest is back");

    let shard =
        fs::read_dir(train.join("data")).expect("shards").next().expect("a shard").expect("an entry").path();
    let good = fs::read(&shard).expect("the shard is there");
    let mut flipped = good.clone();
    flipped[good.len() / 2] ^= 1;
    fs::write(&shard, flipped).expect("a bit is flipped");
    let name = shard.file_name().expect("a name").to_string_lossy().into_owned();
    world.run("train-student", &[]).failed(3, &[&name, "expected BLAKE3"]);
    fs::write(&shard, good).expect("the shard is repaired");

    softshard(&[
        "demo-data",
        world.path("other").to_str().expect("ASCII"),
        "--rows",
        "80",
        "--seed",
        "9",
        "--vocab-size",
        "380",
    ])
    .succeeded();
    // A model without a tokenizer of its own: only the labels can tell.
    fs::rename(world.path("start/model/tokenizer.json"), world.path("tokenizer.json"))
        .expect("it is moved away");
    world
        .run("train-student", &["tokenizer.path=other/tokenizer"])
        .failed(3, &["run/labels/train", "the recipe's tokenizer", "vocab_size: expected 380, found 400"]);
    fs::rename(world.path("tokenizer.json"), world.path("start/model/tokenizer.json")).expect("it is back");
    world.run("train-student", &[]).succeeded();
}

#[test]
fn a_model_with_another_tokenizer_is_refused() {
    let world = World::with_teacher();
    let other = world.path("other");
    softshard(&[
        "demo-data",
        other.to_str().expect("ASCII"),
        "--rows",
        "90",
        "--seed",
        "9",
        "--vocab-size",
        "400",
    ])
    .succeeded();
    let [from, to] =
        ["other/tokenizer", "run/teacher/model"].map(|path| world.path(path).join("tokenizer.json"));
    fs::copy(from, to).expect("the model gets another tokenizer of the same size");
    world
        .run("teacher-labels", &[])
        .failed(3, &["run/teacher/model", "id 2", "expected as in the recipe's tokenizer"]);
    assert!(!world.path("run/labels/train").exists(), "nothing is begun");
}

#[test]
fn an_output_of_another_plan_is_refused_by_key() {
    let world = World::with_teacher();
    world.run("teacher-labels", &[]).succeeded();
    let before = world.files("run/labels");
    world
        .run("teacher-labels", &["labels.mantissa_bits=9"])
        .failed(3, &["another plan", "mantissa_bits: expected 9, found 7"]);
    assert!(world.files("run/labels") == before, "the labels that were there are there, with their recipe");
}

#[test]
fn a_checkpoint_of_another_run_is_refused_by_key() {
    let world = World::labelled();
    world.run("train-student", &["student.max_steps=3"]).succeeded();
    world
        .run("train-student", &["student.max_steps=3", "student.loss.alpha=2"])
        .failed(3, &["student.loss.alpha: expected 2.0, found 0.5"]);
}

#[test]
fn a_full_disk_is_named_and_nothing_is_committed() {
    let world = World::with_teacher();
    let Some(_disk) = Disk::mount(world.path("run/labels"), "size=1m") else { return };
    fs::write(world.path("run/labels/filler"), vec![1; 944 << 10]).expect("most of the disk is filled");
    world.run("teacher-labels", &[]).failed(1, &["run/labels", "No space left on device"]);
    assert!(!world.path("run/labels/train/manifest.json").exists());
    let commits = world.files("run/labels/train/_softshard/commits");
    fs::remove_file(world.path("run/labels/filler")).expect("the filler is removed");
    world.run("teacher-labels", &[]).succeeded();
    for (name, commit) in commits {
        let path = world.path("run/labels/train/_softshard/commits").join(name);
        assert_eq!(fs::read(path).expect("the commit is there"), commit, "what was committed is untouched");
    }
}

#[test]
fn a_gpu_that_is_not_there_is_said_plainly() {
    let world = World::prepared();
    let output =
        world.stage("finetune", &[]).args(["--device", "cuda:0"]).output().expect("the binary starts");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(4), "{stderr}");
    assert!(stderr.contains("cuda:0") && stderr.contains("hint:"), "{stderr}");
}

#[test]
fn a_stage_without_its_section_says_which() {
    let world = World::new();
    let text = fs::read_to_string(world.path("recipe.toml")).expect("the recipe is there");
    let text = text.replace("[teacher]\nmodel = \"run/teacher/model\"\n", "");
    fs::write(world.path("recipe.toml"), text).expect("the recipe is written");
    world
        .run("teacher-labels", &[])
        .failed(2, &["`teacher-labels` expected a section [teacher], found none"]);
}

#[test]
fn an_evaluation_of_mixed_data_or_odd_settings_is_refused() {
    let world = World::labelled();
    world.run("train-student", &["student.max_steps=1"]).succeeded();
    world
        .run("evaluate", &["evaluate.adapter=run/student/adapter"])
        .failed(2, &["expected `evaluate.model` beside it"]);
    world
        .run("evaluate", &["evaluate.max_answers=0"])
        .failed(2, &["`evaluate.max_answers`: expected at least 1"]);
    let seed = "data.split.seed=2";
    world.run("prepare", &[seed]).succeeded();
    world.run("evaluate", &[seed]).failed(3, &["run/labels/test", "labels.sequences: expected "]);
    fs::remove_dir_all(world.path("run/labels")).expect("the labels are removed");
    world.run("evaluate", &[seed]).succeeded();
}

#[test]
fn settings_of_an_adapter_are_checked_with_the_recipe() {
    let world = World::new();
    let lora = r#"student.lora={ r = 0, alpha = 8.0, dropout = 0.0, target_modules = ["q_proj"] }"#;
    world.run("train-student", &[lora]).failed(2, &["`student`", "`r`: expected 1 to", "found 0"]);
    world
        .run("train-student", &["student.epochs=0"])
        .failed(2, &["`student.epochs`: expected at least 1, found 0"]);
}
