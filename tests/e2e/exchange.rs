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
    // A teacher that knows its rows: what it keeps says which token its entries are of.
    let known = ["finetune.epochs=60", "finetune.max_steps=60", "output.teacher=knowing"];
    world.run("finetune", &known).succeeded();
    let recipe = fs::read_to_string(world.path("recipe.toml")).expect("a recipe");
    let recipe = recipe.replace("run/teacher/model", "run/knowing/model");
    fs::write(world.path("recipe.toml"), recipe).expect("a recipe is written");
    world.run("teacher-labels", &[]).succeeded();
    parts_of_two_machines_are_merged(&world);
    datasets_are_merged(&world);
    jsonl_comes_back_as_it_was(&world);
    trainers_rows_come_back(&world);
    imports_say_what_they_need(&world);
    texts_of_a_tokenizer_that_drops_spaces_are_found(&world);
    bad_rows_are_dropped_where_it_is_asked_for(&world);
    options_of_other_sources_are_refused(&world);
    readers_may_leave(&world);
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
    softshard(&["labels", "merge", &a, &b, "-o", &out])
        .failed(3, &["expected 6 shards, found 4 of them; missing 2, 5", "hint: "]);
    softshard(&["labels", "diff", &out, &a]).failed(3, &["no manifest.json"]);
    let said = softshard(&["labels", "merge", &c, "-o", &out]).succeeded();
    assert!(said.stdout.starts_with("merged: 6 shards (4 there before), 12 sequences, "), "{}", said.stdout);
    let whole = world.dataset("run/labels/train");
    assert_same_files(&world.dataset("joined"), &whole, "the merge of parts");
    softshard(&["labels", "merge", "/nowhere", "-o", &text(world.path("none"))])
        .failed(3, &["found neither"]);
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
    let said = softshard(&["labels", "merge", &left, &right, "-o", &out]).succeeded();
    assert!(said.stdout.starts_with("merged: 9 shards (0 there before), 17 sequences, "), "{}", said.stdout);
    softshard(&["labels", "verify", &out]).succeeded();

    world.run("teacher-labels", &["output.labels=rounder", "labels.mantissa_bits=4"]).succeeded();
    let rounder = text(world.path("run/rounder/train"));
    let refused = text(world.path("refused"));
    softshard(&["labels", "merge", &rounder, &right, "-o", &refused])
        .failed(3, &["expected labels made like those of", "mantissa_bits: expected 4, found 7"]);
    assert!(!world.path("refused").exists());
}

fn jsonl_comes_back_as_it_was(world: &World) {
    let [train, file, back] = ["run/labels/train", "labels.jsonl", "back"].map(|name| text(world.path(name)));
    softshard(&["labels", "export", &train, "--to", "jsonl", "-o", &file]).succeeded();
    let printed =
        softshard(&["labels", "export", &train, "--to", "jsonl", "--output", "-"]).succeeded().stdout;
    assert_eq!(printed, fs::read_to_string(&file).expect("the export"));
    let first: Value = serde_json::from_str(printed.lines().next().expect("a line")).expect("JSON");
    assert_eq!(first["positions"].as_array().map(Vec::len), first["token_ids"].as_array().map(Vec::len));
    softshard(&["labels", "import", &file, "-o", &back, "--from", "softshard"]).succeeded();
    assert_same_files(&world.dataset("back"), &world.dataset("run/labels/train"), "export and import");
}

fn trainers_rows_come_back(world: &World) {
    let [train, hf, back] = ["run/labels/train", "hf", "from-hf"].map(|name| text(world.path(name)));
    softshard(&["labels", "export", &train, "--to", "hf", "-o", &hf]).succeeded();
    softshard(&["labels", "export", &train, "--to", "hf", "-o", &hf])
        .failed(3, &["expected a folder that is not there or empty"]);
    let tokenizer = text(world.path("data/tokenizer"));
    let data = format!("{hf}/data");
    let map = "input_ids=input_ids,labels=labels,token_ids=teacher_token_ids,log_probs=teacher_log_probs,\
               log_sum_exp=teacher_log_sum_exp,tail_log_mass=teacher_tail_log_mass,entropy=teacher_entropy,\
               gold_log_prob=teacher_gold_log_prob,source=source";
    let arguments = [
        "labels",
        "import",
        &data,
        "-o",
        &back,
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
            (&json!(0.0), &json!(["log_sum_exp", "log_partitions", "tail_log_masses"])),
            "{sequence}"
        );
    }
}

fn imports_say_what_they_need(world: &World) {
    let tokenizer = text(world.path("data/tokenizer"));
    let out = text(world.path("imported"));
    let capture = text(root().join("crates/labels/tests/golden/distillkit/recommended"));
    let arguments =
        ["labels", "import", &capture, "-o", &out, "--from", "distillkit", "--tokenizer", &tokenizer];
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
        &file,
        "-o",
        &out,
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

/// As of SentencePiece: the first token of a text loses the space before it.
fn tokenizer_that_drops_spaces(world: &World) -> String {
    let texts = [
        "<unk>",
        "<s>",
        "</s>",
        "t",
        "h",
        "\u{2581}the",
        "the",
        "\u{2581}cat",
        "cat",
        "\u{2581}dog",
        "!",
        "<0x21>",
    ];
    let vocabulary: serde_json::Map<String, Value> =
        texts.iter().enumerate().map(|(id, text)| ((*text).to_owned(), id.into())).collect();
    let special = |id: usize| {
        json!({"id": id, "content": texts[id], "single_word": false, "lstrip": false, "rstrip": false,
               "normalized": false, "special": true})
    };
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null, "post_processor": null, "pre_tokenizer": null,
        "added_tokens": [special(0), special(1), special(2)],
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": "\u{2581}"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "\u{2581}"}]},
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "\u{2581}"}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
        "model": {"type": "BPE", "dropout": null, "unk_token": "<unk>", "continuing_subword_prefix": null,
                  "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true, "vocab": vocabulary,
                  "merges": []},
    });
    let folder = world.path("sentencepiece");
    fs::create_dir(&folder).expect("a folder is made");
    fs::write(folder.join("tokenizer.json"), tokenizer.to_string()).expect("a tokenizer");
    text(folder)
}

fn texts_of_a_tokenizer_that_drops_spaces_are_found(world: &World) {
    let (tokenizer, file) = (tokenizer_that_drops_spaces(world), text(world.path("texts.jsonl")));
    let import = |name: &str, tokens: [&str; 4]| {
        let [first, second, third, fourth] = tokens;
        let token = |token: &str, other: &str| {
            json!({"token": token, "logprob": -0.5, "top_logprobs": [
                {"token": token, "logprob": -0.5}, {"token": other, "logprob": -1.25}]})
        };
        let response = json!({"prompt_token_ids": [1], "choices": [{"logprobs": {"content": [
            token(first, second), token(third, fourth)]}}]});
        fs::write(&file, response.to_string()).expect("a response");
        let out = text(world.path(name));
        let arguments = ["labels", "import", &file, "-o", &out, "--from", "completions", "--top-k", "2"];
        softshard(&[&arguments[..], &["--teacher", "gpt", "--tokenizer", &tokenizer]].concat())
    };
    import("kept", [" the", "!", "cat", " cat"]).succeeded();
    let labels = softshard_labels::LabelDataset::open(world.path("kept")).expect("labels");
    let labels = labels.read(0).expect("a sequence");
    assert_eq!((labels.input_ids, labels.token_ids), (vec![1, 5, 8], vec![5, 10, 8, 7]));
    // Another server prints this of ` cat` as well, and nothing here shows which one it is.
    import("dropped", ["the", "!", "cat", "dog"])
        .failed(3, &["token \"the\": expected the text of one token, found 2 tokens, among them 5 and 6"]);
}

fn bad_rows_are_dropped_where_it_is_asked_for(world: &World) {
    let (tokenizer, file) = (text(world.path("data/tokenizer")), text(world.path("some-bad.jsonl")));
    // The last token ties with the second of its alternatives, and has the smaller id.
    let good = json!({"prompt_token_ids": [65], "choices": [{"logprobs": {"tokens": ["token_id:72", "token_id:5"],
        "token_logprobs": [-0.5, -2.25], "top_logprobs": [{"token_id:72": -0.5, "token_id:9": -1.5},
        {"token_id:5": -2.25, "token_id:100": -0.4, "token_id:101": -2.25}]}}]});
    let lines = format!("\u{feff}{good}\n") + &"{\"error\": {\"message\": \"overloaded\"}}\n".repeat(12);
    fs::write(&file, lines).expect("responses");
    let out = text(world.path("some"));
    let arguments = [
        &["labels", "import", &file, "-o", &out, "--from", "completions", "--top-k", "2", "--teacher", "gpt"],
        &["--tokenizer", tokenizer.as_str()][..],
    ]
    .concat();
    softshard(&arguments).failed(
        3,
        &["some-bad.jsonl` line 2 choices: ", "found an error: overloaded", "hint: --bad-rows drop"],
    );
    assert!(!world.path("some").exists());
    let said = softshard(&[&arguments[..], &["--bad-rows", "drop"]].concat()).succeeded().stdout;
    let list = world.path("some/dropped_rows.jsonl");
    let expected = format!("\ndropped 12 rows that cannot be read; all of them: {}\n", list.display());
    assert!(said.starts_with("imported: 1 shards") && said.contains(&expected), "{said}");
    assert!(
        said.contains("some-bad.jsonl` line 11 choices: ") && said.contains("\n  and 2 more\n"),
        "{said}"
    );
    assert_eq!(fs::read_to_string(list).expect("the list").lines().count(), 12);
    softshard(&["labels", "verify", &out]).succeeded();
}

fn options_of_other_sources_are_refused(world: &World) {
    let file = text(world.path("labels.jsonl"));
    let out = text(world.path("not-there"));
    let refused = |from: &str, flag: &[&str], expected: &str| {
        let arguments = ["labels", "import", &file, "-o", &out, "--from", from];
        softshard(&[&arguments[..], flag].concat()).failed(2, &[expected]);
    };
    for flag in [
        &["--teacher", "x"][..],
        &["--tokenizer", "x"],
        &["--split", "x"],
        &["--template", "x"],
        &["--mantissa-bits", "7"],
        &["--sequences-per-shard", "9"],
        &["--bad-rows", "drop"],
    ] {
        refused("softshard", flag, &format!("expected no `{}` with this `--from`", flag[0]));
    }
    refused("completions", &["--map", "a=b"], "expected no `--map`");
    refused("distillkit", &["--normalised"], "expected no `--normalised`");
    refused("parquet", &["--top-k", "3"], "expected no `--top-k`");
    refused("parquet", &["--sequences-per-shard", "0"], "--sequences-per-shard");
    let tokenizer = text(world.path("data/tokenizer"));
    let named = ["--teacher", "x", "--tokenizer", &tokenizer, "--top-k", "2", "--teacher-vocab-size", "399"];
    refused("completions", &named, "from the 400 ids of the tokenizer on, found 399");
    assert!(!world.path("not-there").exists());
}

/// As of `| head`: what only prints ends at once and says nothing, and what writes files goes on.
fn readers_may_leave(world: &World) {
    let train = text(world.path("run/labels/train"));
    let leave = |arguments: &[&str]| {
        let (reader, writer) = std::io::pipe().expect("a pipe");
        drop(reader);
        let mut process = command(arguments);
        let said = process.stdout(writer).output().expect("the binary starts");
        assert_eq!(String::from_utf8_lossy(&said.stderr), "", "{arguments:?}");
        said.status
    };
    for arguments in [
        &["labels", "export", &train, "--to", "jsonl", "-o", "-"][..],
        &["labels", "inspect", &train],
        &["schema", "recipe"],
    ] {
        let status = leave(arguments);
        assert_eq!(
            std::os::unix::process::ExitStatusExt::signal(&status),
            Some(13),
            "{arguments:?}: {status}"
        );
    }

    for stream in ["stdout", "stderr"] {
        let (reader, writer) = std::io::pipe().expect("a pipe");
        drop(reader);
        let labels = format!("output.labels=unread-{stream}");
        let mut stage = world.stage("teacher-labels", &[&labels]);
        let stage = if stream == "stdout" { stage.stdout(writer) } else { stage.stderr(writer) };
        assert_eq!(stage.output().expect("the binary starts").status.code(), Some(0), "{stream}");
        softshard(&["labels", "verify", &text(world.path(&format!("run/unread-{stream}/train")))])
            .succeeded();
    }
}
