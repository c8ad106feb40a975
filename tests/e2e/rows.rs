//! Rows as people have them: every shape and every kind of file gives the sequences of the same rows as plain JSONL,
//! and what is not read is named before anything is written.

use std::fs;
use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use softshard_e2e::{Background, Files, Said, World, assert_same_files, root, run};

const TEMPLATE: &str = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{{ eos_token }}{% endfor %}\
                        {% if add_generation_prompt %}[assistant]{% endif %}";

/// A world whose recipe reads `data/rows` with the chat template.
fn world() -> World {
    let world = World::new();
    let config = world.path("data/tokenizer/tokenizer_config.json");
    let mut tokenizer: Value =
        serde_json::from_slice(&fs::read(&config).expect("a tokenizer")).expect("it is JSON");
    tokenizer["chat_template"] = json!(TEMPLATE);
    fs::write(config, tokenizer.to_string()).expect("the tokenizer is written");
    let recipe = world.path("recipe.toml");
    let text = fs::read_to_string(&recipe).expect("a recipe");
    let text = text.replace("data/instructions.jsonl", "data/rows");
    fs::write(recipe, text.replace("template = \"none\"", "template = \"chat\"")).expect("it is written");
    world
}

fn prepare(world: &World, rows: &[u8], overrides: &[&str]) -> Said {
    fs::write(world.path("data/rows"), rows).expect("rows are written");
    world.run("prepare", overrides)
}

/// The sequences of rows.
fn sequences(world: &World, rows: &[u8]) -> Files {
    prepare(world, rows, &["data.split={ valid_rows = 0, seed = 1 }"]).succeeded();
    without_recipe(world.files("run/sequences"))
}

/// The recipe names the pipe, and the manifest has the hash of the data file; all else must be equal. Names of shards carry hashes.
fn without_recipe(mut files: Files) -> Files {
    files.retain(|(name, _)| !name.ends_with("recipe.toml") && !name.ends_with("manifest.json"));
    files
}

/// Names in the world's folder and in that of its data.
fn names(world: &World) -> Vec<PathBuf> {
    let entries = |folder: &str| fs::read_dir(world.path(folder)).expect("a folder");
    entries(".").chain(entries("data")).map(|entry| entry.expect("an entry").path()).collect()
}

/// 30 conversations of a question and an answer, in a shape.
fn rows(shape: impl Fn(String, String) -> Value) -> Vec<Value> {
    (0..30).map(|n| shape(format!("question {n}"), format!("answer {}", n * n))).collect()
}

fn lines(rows: &[Value]) -> Vec<u8> {
    rows.iter().map(|row| format!("{row}\n")).collect::<String>().into_bytes()
}

fn turn(role: &str, content: impl Into<Value>) -> Value {
    json!({ "role": role, "content": content.into() })
}

fn messages(question: String, answer: String) -> Value {
    json!({ "messages": [turn("system", "s"), turn("user", question), turn("assistant", answer)] })
}

#[test]
fn every_shape_gives_the_sequences_of_messages() {
    let world = world();
    let expected = sequences(&world, &lines(&rows(messages)));
    assert!(!expected.is_empty());
    type Shape = fn(String, String) -> Value;
    let shapes: [(&str, Shape); 8] = [
        ("ShareGPT", |q, a| {
            json!({ "conversations": [
                { "from": "system", "value": "s" }, { "from": "human", "value": q }, { "from": "gpt", "value": a }
            ] })
        }),
        (
            "a system column",
            |q, a| json!({ "system": "s", "messages": [turn("user", q), turn("assistant", a)] }),
        ),
        (
            "Alpaca",
            |q, a| json!({ "system": "s", "instruction": q, "input": "", "output": a, "history": null }),
        ),
        ("Dolly", |q, a| json!({ "system_prompt": "s", "instruction": q, "context": "", "response": a })),
        ("texts of TRL", |q, a| json!({ "system": "s", "prompt": q, "completion": a })),
        (
            "turns of TRL",
            |q, a| json!({ "prompt": [turn("system", "s"), turn("user", q)], "completion": [turn("assistant", a)] }),
        ),
        ("parts", |q, a| {
            let (begin, end) = q.split_at(4);
            let parts = json!([{ "type": "text", "text": begin }, { "type": "text", "text": end }]);
            json!({ "messages": [turn("system", "s"), turn("user", parts), turn("assistant", a)] })
        }),
        ("turns as JSON", |q, a| json!({ "messages": messages(q, a)["messages"].to_string() })),
    ];
    for (name, shape) in shapes {
        assert_same_files(&sequences(&world, &lines(&rows(shape))), &expected, name);
    }
}

#[test]
fn every_kind_of_file_gives_the_sequences_of_its_rows() {
    let world = world();
    let rows = rows(messages);
    let text = lines(&rows);
    let expected = sequences(&world, &text);
    let gzip = |bytes: &[u8]| {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        encoder.write_all(bytes).expect("memory");
        encoder.finish().expect("memory")
    };
    let zstd = |bytes: &[u8]| zstd::encode_all(bytes, 3).expect("memory");
    let array = serde_json::to_vec_pretty(&rows).expect("JSON");
    let halves = text.split_at(text.len() / 2);
    let kinds: [(&str, Vec<u8>); 7] = [
        ("gzip", gzip(&text)),
        ("gzip in two members", [gzip(halves.0), gzip(halves.1)].concat()),
        ("zstd", zstd(&text)),
        ("an array", array.clone()),
        ("an array in zstd", zstd(&array)),
        ("a byte order mark", [b"\xef\xbb\xbf", text.as_slice()].concat()),
        (
            "Windows' newlines",
            String::from_utf8(text.clone()).expect("UTF-8").replace('\n', "\r\n").into_bytes(),
        ),
    ];
    for (name, bytes) in kinds {
        assert_same_files(&sequences(&world, &bytes), &expected, name);
    }
    let golden = root().join("tests/peers/golden/rows");
    let rows_of = |name: &str| fs::read(golden.join(name)).expect("a golden file");
    for name in ["groups", "datasets", "json"] {
        let [table, array] = ["parquet", "json"].map(|ending| rows_of(&format!("{name}.{ending}")));
        assert_same_files(&sequences(&world, &table), &sequences(&world, &array), name);
    }
}

#[test]
fn what_is_not_read_is_named_before_anything_is_written() {
    let world = world();
    let row = messages("q".into(), "a".into()).to_string();
    let utf_16: Vec<u8> = [0xfeff].into_iter().chain(row.encode_utf16()).flat_map(u16::to_le_bytes).collect();
    let with = |column: &str, value: Value| {
        let mut row = messages("q".into(), "a".into());
        row[column] = value;
        row.to_string().into_bytes()
    };
    let cases: [(Vec<u8>, &[&str]); 10] = [
        (b"PK\x03\x04rest".to_vec(), &["found a zip archive", "hint: unpack it"]),
        (b"ARROW1\0\0rest".to_vec(), &["found an Arrow file", "to_parquet"]),
        (utf_16, &["found UTF-16", "iconv -f UTF-16"]),
        (b"instruction,output\na,b\n".to_vec(), &["found a table in text (CSV)", "instruction,output"]),
        (b"<!DOCTYPE html>".to_vec(), &["found an HTML page"]),
        (b"version https://git-lfs.github.com/spec/v1\n".to_vec(), &["git lfs pull"]),
        (b"PAR1 and nothing else".to_vec(), &["expected a whole Parquet file"]),
        (
            with("images", json!(["i.png"])),
            &["rows` line 1", "found `images` beside `messages`", "data.ignore_columns"],
        ),
        (with("chosen", json!([turn("assistant", "b")])), &["found `chosen`", "data.ignore_columns"]),
        (
            json!({ "messages": [turn("user", "q"), turn("assistant", "a"), turn("user", "r")] })
                .to_string()
                .into_bytes(),
            &["expected `messages` to end with an answer of `assistant`, found `user`"],
        ),
    ];
    for (bytes, expected) in cases {
        prepare(&world, &bytes, &[]).failed(3, expected);
        assert!(!world.path("run").exists(), "{expected:?}: nothing is written");
    }
    fs::remove_file(world.path("data/rows")).expect("a file");
    fs::create_dir(world.path("data/rows")).expect("a folder");
    world.run("prepare", &[]).failed(3, &["expected a file, found a folder", "name its files"]);
}

#[test]
fn ignored_columns_are_told() {
    let world = world();
    let mut row = messages("q".into(), "a".into());
    row["rejected"] = json!("b");
    row["source"] = json!("web");
    let learn = "data.split={ valid_rows = 0, seed = 1 }";
    let ignore = "data.ignore_columns=[\"rejected\"]";
    let said = prepare(&world, row.to_string().as_bytes(), &[learn, ignore]).succeeded();
    for line in [
        "columns not used, and in how many rows: source (1)",
        "columns ignored, and in how many rows: rejected (1)",
    ] {
        assert!(said.stdout.contains(line), "{}", said.stdout);
    }
}

#[test]
fn a_pipe_is_read_once_and_gives_all_of_its_rows() {
    let world = world();
    let (first, second) = (rows(messages), rows(|q, a| messages(format!("{q}!"), a)));
    fs::write(world.path("data/first"), lines(&first)).expect("rows are written");
    fs::write(world.path("data/stdin"), lines(&second)).expect("rows are written");
    world.run("prepare", &["data.instructions=[\"data/first\", \"data/stdin\"]"]).succeeded();
    let expected = without_recipe(world.files("run/sequences"));
    fs::remove_dir_all(world.path("run")).expect("a folder");
    let mut command = world.stage("prepare", &["data.instructions=[\"data/first\", \"/dev/stdin\"]"]);
    let mut child = command.stdin(Stdio::piped()).spawn().expect("the binary starts");
    let mut pipe = child.stdin.take().expect("a pipe");
    for row in &second {
        pipe.write_all(format!("{row}\n").as_bytes()).expect("the binary reads");
    }
    drop(pipe);
    Said::new(&child.wait_with_output().expect("it ends")).succeeded();
    assert_same_files(&without_recipe(world.files("run/sequences")), &expected, "a pipe");

    let twice = ["data.instructions=[\"/dev/stdin\", \"/dev/stdin\"]"];
    let child = world.stage("prepare", &twice).stdin(Stdio::piped()).spawn().expect("the binary starts");
    let output = child.wait_with_output().expect("it ends");
    Said::new(&output).failed(3, &["expected each pipe once, found it twice"]);
}

#[test]
fn a_pipe_without_a_writer_stops_at_a_signal_and_leaves_nothing() {
    let world = world();
    let pipe = world.path("data/rows");
    assert_eq!(run(Command::new("mkfifo").arg(&pipe)).code, 0);
    let before = names(&world);
    let waiting = Background::start(&mut world.stage("prepare", &[]));
    std::thread::sleep(Duration::from_millis(400));
    let asked = Instant::now();
    assert_eq!(run(Command::new("kill").arg(waiting.id().to_string())).code, 0);
    waiting.end().failed(75, &["interrupted"]);
    assert!(asked.elapsed() < Duration::from_secs(2), "{:?}", asked.elapsed());
    assert!(!world.path("run").exists());
    // Killed outright while it keeps what came so far: the file has no name, so it is gone too.
    let mut killed = world.stage("prepare", &[]).spawn().expect("the binary starts");
    let mut writer = fs::File::options().write(true).open(&pipe).expect("someone reads");
    writer.write_all(&lines(&rows(messages))).expect("it is read");
    killed.kill().expect("a signal is sent");
    killed.wait().expect("it ends");
    assert_eq!(names(&world), before);
}

#[test]
fn evaluation_reads_no_rows() {
    let world = world();
    prepare(&world, &lines(&rows(messages)), &[]).succeeded();
    world.run("finetune", &["finetune.max_steps=1"]).succeeded();
    let pipe = world.path("data/pipe");
    assert_eq!(run(Command::new("mkfifo").arg(&pipe)).code, 0);
    world.run("evaluate", &["evaluate.model=run/teacher/model", "data.instructions=data/pipe"]).succeeded();
}
