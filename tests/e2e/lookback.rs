//! `lookback`: learnt from judged answers, asked of others.

use std::{fs, path::Path};

use serde_json::{Value, json};
use softshard_e2e::{Said, World, command, run};

/// A world with a teacher and 12 documents, each with its own summary and another's.
fn judged() -> World {
    let world = World::with_teacher();
    let rows: Vec<Value> = fs::read_to_string(world.path("data/instructions.jsonl"))
        .expect("the data is there")
        .lines()
        .take(12)
        .map(|line| serde_json::from_str(line).expect("a line of JSON"))
        .collect();
    let row = |index: usize| {
        let (own, other) = (&rows[index]["response"], &rows[(index + 1) % rows.len()]["response"]);
        let summaries = json!([{ "summary": own, "consistent": 1 }, { "summary": other, "consistent": 0 }]);
        json!({ "id": index, "document": rows[index]["context"], "summaries": summaries }).to_string() + "\n"
    };
    fs::write(world.path("judged.jsonl"), (0..rows.len()).map(row).collect::<String>()).expect("written");
    world
}

fn lookback(world: &World, command_line: &[&str], output: &str, more: &[&str]) -> Said {
    let path = |name: &str| world.path(name).to_str().expect("a path of ASCII").to_owned();
    let mut command = command(&["lookback"]);
    command.args(command_line);
    if !more.contains(&"--model") {
        command.args(["--model", &path("run/teacher/model")]);
    }
    if !more.contains(&"--data") {
        command.args(["--data", &path("judged.jsonl")]);
    }
    command.args(["--output", &path(output), "--draws", "200"]).args(more);
    run(&mut command)
}

fn read(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).expect("it is written")).expect("it is JSON")
}

#[test]
fn a_classifier_is_learnt_and_asked() {
    let world = judged();
    let said = lookback(&world, &["train"], "of-teacher.json", &["--folds", "3"]).succeeded().stdout;
    for part in [
        "24 answers to 12 documents, 3 folds",
        "told apart by",
        "spans",
        "windows",
        "answers, mean of windows",
    ] {
        assert!(said.contains(part), "expected {part:?} in:\n{said}");
    }
    let classifier = read(&world.path("of-teacher.json"));
    assert_eq!(classifier["format"], "softshard-lookback");
    assert_eq!(classifier["spans"]["weights"].as_array().map(Vec::len), Some(2 * 4));
    let rows = fs::read_to_string(world.path("of-teacher.rows.jsonl")).expect("rows");
    assert_eq!(rows.lines().count(), 24);

    // The same bytes again, on one thread too.
    let before = fs::read(world.path("of-teacher.json")).expect("it is there");
    let mut again = command(&["lookback", "train", "--folds", "3", "--draws", "200"]);
    for (flag, name) in
        [("--model", "run/teacher/model"), ("--data", "judged.jsonl"), ("--output", "again.json")]
    {
        again.arg(flag).arg(world.path(name));
    }
    run(again.env("RAYON_NUM_THREADS", "1")).succeeded();
    assert!(fs::read(world.path("again.json")).expect("it is there") == before);

    let path = world.path("of-teacher.json");
    let path = path.to_str().expect("a path of ASCII");
    let said = lookback(&world, &["score", path], "scores.json", &[]).succeeded().stdout;
    assert!(said.contains("factual rate") && said.contains("AUROC"), "{said}");
    let scores = read(&world.path("scores.json"));
    assert_eq!(
        (&scores["answers"], &scores["documents"], &scores["empty"]),
        (&json!(24), &json!(12), &json!(0))
    );
    assert_eq!(
        scores["provenance"]["inputs"]["model.weights"],
        classifier["provenance"]["inputs"]["model.weights"]
    );

    // Of another model it knows nothing.
    world.run("finetune", &["finetune.seed=9", "output.teacher=../other"]).succeeded();
    let other = world.path("other/model");
    let other = other.to_str().expect("a path of ASCII");
    lookback(&world, &["score", path], "other.json", &["--model", other])
        .failed(3, &["model.weights", "hint: it knows the heads of one model"]);
    assert!(!world.path("other.json").exists());
}

#[test]
fn what_cannot_be_judged_is_said() {
    let world = judged();
    let file = |name: &str, text: &str| {
        fs::write(world.path(name), text).expect("written");
        world.path(name).to_str().expect("a path of ASCII").to_owned()
    };
    let two = |first: &str, second: &str| {
        format!("{{\"document\": \"a b c\", {first}}}\n{{\"document\": \"d e f\", {second}}}\n")
    };
    let alike =
        file("alike.jsonl", &two(r#""answer": "a", "factual": true"#, r#""answer": "d", "factual": true"#));
    lookback(&world, &["train"], "x.json", &["--data", &alike, "--folds", "2"])
        .failed(3, &["expected factual answers and others outside of each of 2 folds", "class 0, found 0"]);
    let one = file("one.jsonl", &two(r#""answer": "a", "factual": true"#, r#""answer": "d""#));
    lookback(&world, &["train"], "x.json", &["--data", &one])
        .failed(3, &["expected at least 5 documents with judged answers, found 1"]);
    let none = file("none.jsonl", "");
    lookback(&world, &["train"], "x.json", &["--data", &none])
        .failed(3, &["expected judged answers, found none"]);
    let other = file("other.json", "{}");
    lookback(&world, &["score", &other], "x.json", &[])
        .failed(3, &["hint: make it with `softshard lookback train`"]);
    lookback(&world, &["train"], "x.json", &["--template", "{document}"]).failed(2, &["`{document}` once"]);
    lookback(&world, &["train"], "x.jsonl", &[]).failed(2, &["expected a name that ends in `.json`"]);
    assert!(!world.path("x.json").exists());

    // An empty answer is counted, and in no rate.
    lookback(&world, &["train"], "of-teacher.json", &[]).succeeded();
    let path = world.path("of-teacher.json");
    let before = fs::read(&path).expect("a classifier");
    let of_itself = ["score", path.to_str().expect("ASCII")];
    lookback(&world, &of_itself, "of-teacher.json", &[]).failed(3, &["another file than the classifier"]);
    assert_eq!(fs::read(&path).expect("a classifier"), before);
    let empty = file("empty.jsonl", &two(r#""answer": " ""#, r#""answer": "d""#));
    let said = lookback(&world, &["score", path.to_str().expect("ASCII")], "y.json", &["--data", &empty]);
    let said = said.succeeded().stdout;
    for part in ["1 answers to 1 documents", "empty: 1 answers", "n/a", "no AUROC"] {
        assert!(said.contains(part), "expected {part:?} in:\n{said}");
    }
}
