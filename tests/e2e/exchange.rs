//! `softshard labels merge|import|export`: labels from and to other machines and programs.

use std::{fs, path::Path, path::PathBuf};

use serde_json::{Value, json};
use softshard_e2e::{World, assert_same_files, command, root, run, softshard};

fn text(path: PathBuf) -> String {
    path.to_str().expect("a path of ASCII").to_owned()
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("a folder is made");
    for entry in fs::read_dir(from).expect("the folder is there") {
        let entry = entry.expect("an entry");
        let (from, to) = (entry.path(), to.join(entry.file_name()));
        if from.is_dir() {
            copy(&from, &to);
        } else {
            fs::copy(from, to).expect("a file is copied");
        }
    }
}

#[test]
fn labels_travel() {
    let world = World::small();
    world.run("teacher-labels", &[]).succeeded();
    parts_of_two_machines_are_merged(&world);
    datasets_are_merged(&world);
    jsonl_comes_back_as_it_was(&world);
    trainers_rows_come_back(&world);
    imports_say_what_they_need(&world);
}

/// Leaves the commits of some shards, as a machine that was killed would have.
fn part(world: &World, name: &str, shards: &[usize]) -> String {
    let dir = world.path(name);
    copy(&world.path("run/labels/train"), &dir);
    fs::remove_file(dir.join("manifest.json")).expect("the manifest is there");
    for entry in fs::read_dir(dir.join("_softshard/commits")).expect("commits") {
        let path = entry.expect("an entry").path();
        let shard = path.file_stem().and_then(|stem| stem.to_str()?.parse::<usize>().ok()).expect("a number");
        if !shards.contains(&shard) {
            fs::remove_file(path).expect("a commit is removed");
        }
    }
    text(dir)
}

fn parts_of_two_machines_are_merged(world: &World) {
    let (a, b, c) = (part(world, "a", &[0, 1, 4]), part(world, "b", &[3, 4]), part(world, "c", &[2, 5]));
    let out = text(world.path("joined"));
    softshard(&["labels", "merge", &out, &a, &b])
        .failed(3, &["expected 6 shards, found 4 of them; missing 2, 5", "hint: "]);
    softshard(&["labels", "diff", &out, &a]).failed(3, &["no manifest.json"]);
    let said = softshard(&["labels", "merge", &out, &c]).succeeded();
    assert!(said.stdout.starts_with("merged: 6 shards (4 there before), 12 sequences, "), "{}", said.stdout);
    let whole = world.dataset("run/labels/train");
    assert_same_files(&world.dataset("joined"), &whole, "the merge of parts");
    softshard(&["labels", "merge", &text(world.path("none")), "/nowhere"]).failed(3, &["found neither"]);
    assert!(!world.path("none").exists());
}

fn datasets_are_merged(world: &World) {
    // The same teacher on other sequences.
    let instructions = world.path("data/instructions.jsonl");
    let before = fs::read_to_string(&instructions).expect("the data is there");
    let other: String = before.lines().take(5).map(|line| line.replacen(". ", ".. ", 1) + "\n").collect();
    fs::write(world.path("data/other.jsonl"), other).expect("other data");
    let others = [
        "data.instructions=data/other.jsonl",
        "output.sequences=other/sequences",
        "output.labels=other/labels",
    ];
    world.run("prepare", &others).succeeded();
    world.run("teacher-labels", &others).succeeded();
    let [left, right, out] =
        ["run/labels/train", "run/other/labels/train", "both"].map(|name| text(world.path(name)));
    let said = softshard(&["labels", "merge", &out, &left, &right]).succeeded();
    assert!(said.stdout.starts_with("merged: 9 shards (0 there before), 17 sequences, "), "{}", said.stdout);
    softshard(&["labels", "verify", &out]).succeeded();

    world.run("teacher-labels", &["output.labels=rounder", "labels.mantissa_bits=4"]).succeeded();
    let rounder = text(world.path("run/rounder/train"));
    let refused = text(world.path("refused"));
    softshard(&["labels", "merge", &refused, &rounder, &right])
        .failed(3, &["expected labels made like those of", "mantissa_bits: expected 4, found 7"]);
    assert!(!world.path("refused").exists());
}

fn jsonl_comes_back_as_it_was(world: &World) {
    let [train, file, back] = ["run/labels/train", "labels.jsonl", "back"].map(|name| text(world.path(name)));
    softshard(&["labels", "export", &train, "--to", "jsonl", &file]).succeeded();
    let printed = softshard(&["labels", "export", &train, "--to", "jsonl", "-"]).succeeded().stdout;
    assert_eq!(printed, fs::read_to_string(&file).expect("the export"));
    let first: Value = serde_json::from_str(printed.lines().next().expect("a line")).expect("JSON");
    assert_eq!(first["positions"].as_array().map(Vec::len), first["token_ids"].as_array().map(Vec::len));
    softshard(&["labels", "import", &back, &file, "--from", "softshard"]).succeeded();
    assert_same_files(&world.dataset("back"), &world.dataset("run/labels/train"), "export and import");
}

fn trainers_rows_come_back(world: &World) {
    let [train, hf, back] = ["run/labels/train", "hf", "from-hf"].map(|name| text(world.path(name)));
    softshard(&["labels", "export", &train, "--to", "hf", &hf]).succeeded();
    softshard(&["labels", "export", &train, "--to", "hf", &hf])
        .failed(3, &["expected a folder that is not there or empty"]);
    let tokenizer = text(world.path("data/tokenizer"));
    let data = format!("{hf}/data");
    let map = "input_ids=input_ids,labels=labels,token_ids=teacher_token_ids,log_probs=teacher_log_probs,\
               log_sum_exp=teacher_log_sum_exp,tail_log_mass=teacher_tail_log_mass,entropy=teacher_entropy,\
               gold_log_prob=teacher_gold_log_prob,source=source";
    let arguments = [
        "labels",
        "import",
        &back,
        &data,
        "--from",
        "parquet",
        "--teacher",
        "demo",
        "--tokenizer",
        &tokenizer,
        "--map",
        map,
    ];
    softshard(&arguments).failed(2, &["expected `--position-rule this` or `next`"]);
    let arguments = [arguments.as_slice(), &["--position-rule", "this", "--approximate-tail"]].concat();
    softshard(&arguments).succeeded();
    softshard(&["labels", "verify", &back]).succeeded();
    let said =
        softshard(&["labels", "diff", &train, &back, "--json"]).failed(3, &["sequences that differ: 12"]);
    let found: Value = serde_json::from_str(&said.stdout).expect("JSON");
    let keys: Vec<&str> =
        found["plan"].as_array().expect("keys").iter().filter_map(|key| key["key"].as_str()).collect();
    assert!(keys.contains(&"teacher.weights_blake3"), "{keys:?}");
    for sequence in found["different"].as_array().expect("sequences") {
        // The partitions of extra temperatures stay behind, and log_sum_exp is rounded without them: nothing else changes.
        assert_eq!(
            (&sequence["max_log_prob"], &sequence["columns"]),
            (&json!(0.0), &json!(["log_sum_exp", "log_partitions"])),
            "{sequence}"
        );
    }
}

fn imports_say_what_they_need(world: &World) {
    let tokenizer = text(world.path("data/tokenizer"));
    let out = text(world.path("imported"));
    let capture = text(root().join("crates/labels/tests/golden/distillkit/recommended"));
    let arguments = ["labels", "import", &out, &capture, "--from", "distillkit", "--tokenizer", &tokenizer];
    softshard(&arguments).failed(2, &["labels import: expected `--teacher`"]);
    let arguments = [arguments.as_slice(), &["--teacher", "some/teacher"]].concat();
    softshard(&arguments)
        .failed(3, &["tail_log_mass: expected exact log-probabilities", "--approximate-tail"]);
    // Its ids are not of this tokenizer: the row and the id are named.
    softshard(&[arguments.as_slice(), &["--approximate-tail"]].concat())
        .failed(3, &["data_0.parquet` row ", " input_ids[", "expected an id in 0..400"]);
    assert!(!world.path("imported").exists());

    // A server that prints texts: this tokenizer knows which token each is.
    let said = softshard(&[
        "labels",
        "inspect",
        &text(world.path("run/labels/train")),
        "--tokenizer",
        &tokenizer,
        "--top",
        "1",
    ]);
    assert_eq!(said.code, 0);
    let response = json!({"prompt_token_ids": [5, 6], "choices": [{"logprobs": {"content": [
        {"token": "token_id:9", "logprob": -0.5, "top_logprobs": [
            {"token": "token_id:9", "logprob": -0.5}, {"token": "token_id:10", "logprob": -1.25}]},
        {"token": "no such token", "logprob": -0.5, "top_logprobs": []}]}}]});
    let file = world.path("responses.jsonl");
    fs::write(&file, response.to_string()).expect("a response");
    let file = text(file);
    let arguments = [
        "labels",
        "import",
        &out,
        &file,
        "--from",
        "completions",
        "--top-k",
        "2",
        "--teacher",
        "gpt",
        "--tokenizer",
        &tokenizer,
    ];
    softshard(&arguments).failed(
        3,
        &[
            "responses.jsonl` line 1 logprobs.content[1] token \"no such token\"",
            "return_tokens_as_token_ids",
        ],
    );
    let mut response = response;
    response["choices"][0]["logprobs"]["content"].as_array_mut().expect("a list").pop();
    fs::write(&file, response.to_string()).expect("a response");
    let said = softshard(&arguments).succeeded();
    assert!(
        said.stdout.starts_with("imported: 1 shards (0 there before), 1 sequences, 1 labelled tokens"),
        "{}",
        said.stdout
    );
    softshard(&["labels", "verify", &out]).succeeded();
    let inspected = run(command(&["labels", "inspect", &out]).env("NO_COLOR", "1")).succeeded();
    assert!(inspected.stdout.contains("3 tokens, 1 labelled"), "{}", inspected.stdout);
}
