//! `compare`: results on the same rows, and refused on others.

use std::fs;

use serde_json::Value;
use softshard_e2e::{Said, World, run};

/// A world with two results of the held-out rows: the teacher's and that of the model that the student starts from.
fn compared() -> World {
    let world = World::labelled();
    for name in ["teacher", "start"] {
        let model =
            format!("evaluate.model={}", if name == "teacher" { "run/teacher/model" } else { "start/model" });
        let named = format!("evaluate.name={name}");
        world.run("evaluate", &[&model, &named, "evaluate.max_answers=100"]).succeeded();
    }
    world
}

fn compare(world: &World, results: &[&str], options: &[&str]) -> Said {
    let mut command = softshard_e2e::command(&["compare"]);
    command
        .args(results.iter().map(|name| world.path(&format!("run/evaluations/{name}/held_out.json"))))
        .args(options);
    run(&mut command)
}

fn rows(world: &World, name: &str) -> Vec<Value> {
    let text =
        fs::read_to_string(world.path(&format!("run/evaluations/{name}/held_out.rows.jsonl"))).expect("rows");
    text.lines().map(|line| serde_json::from_str(line).expect("a line of JSON")).collect()
}

#[test]
fn two_models_on_the_same_rows() {
    let world = compared();
    let said = compare(&world, &["start", "teacher"], &[]).succeeded().stdout;
    assert!(said.contains("teacher beside start, test: 12 sequences ("), "{said}");
    assert!(said.contains("12 documents"), "{said}");
    let nll = said.lines().find(|line| line.starts_with("nll ")).expect("a line of nll");
    assert!(nll.contains(" win"), "a teacher that learnt for long is better: {nll}");

    let json = compare(&world, &["start", "teacher", "start"], &["--json"]).succeeded().stdout;
    let found: Value = serde_json::from_str(&json).expect("one document");
    let metric = |candidate: usize, name: &str| -> &Value {
        let metrics = found[candidate]["metrics"].as_array().expect("a list");
        metrics.iter().find(|line| line["metric"] == name).unwrap_or_else(|| panic!("{name} in {found}"))
    };
    // What the rows say is what the result says.
    for (name, index) in [("start", "baseline"), ("teacher", "candidate")] {
        let text = fs::read_to_string(world.path(&format!("run/evaluations/{name}/held_out.json")))
            .expect("a result");
        let result: Value = serde_json::from_str(&text).expect("JSON");
        let pairs = [
            ("nll", &result["held_out"]["nll"]),
            ("kl_to_teacher", &result["held_out"]["kl_to_teacher"]),
            ("ece", &result["held_out"]["ece"]),
            ("smooth_ece", &result["held_out"]["calibration"]["smooth"]["value"]),
            ("rouge_l", &result["answers"]["rouge_l"]),
        ];
        for (metric_name, expected) in pairs {
            let (value, expected) = (metric(0, metric_name)[index].as_f64(), expected.as_f64());
            let (value, expected) = (value.expect("a number"), expected.expect("a number"));
            assert!((value - expected).abs() < 1e-6, "{name} {metric_name}: {value}, {expected}");
        }
    }
    let nll = metric(0, "nll");
    assert_eq!(nll["word"], "win");
    assert!(nll["interval"]["upper"].as_f64() < Some(0.0) && nll["p_holm"].as_f64() < Some(0.05), "{nll}");
    assert!(nll["smallest_difference"].as_f64() > Some(0.0));
    // The same model differs in nothing.
    let same = metric(1, "nll");
    assert_eq!(
        (&same["word"], &same["difference"], &same["p_holm"]),
        (&"tie".into(), &0.0.into(), &1.0.into())
    );
    let margin = compare(&world, &["start", "start"], &["--json", "--margin", "nll=0.1"]).succeeded().stdout;
    let margin: Value = serde_json::from_str(&margin).expect("one document");
    let words =
        margin[0]["metrics"].as_array().expect("a list").iter().filter(|line| line["word"] == "equal");
    assert_eq!(words.count(), 1, "{margin}");
    // Two results of one recipe: seeds outside, documents inside.
    let both = format!("start/held_out.json,{}", world.path("run/evaluations/teacher").display());
    let seeds = compare(&world, &["start", &both], &["--json"]).succeeded().stdout;
    let seeds: Value = serde_json::from_str(&seeds).expect("one document");
    assert_eq!(seeds[0]["candidate"], serde_json::json!(["start", "teacher"]));
    let line = &seeds[0]["metrics"][0];
    assert_eq!(line["of_seeds"]["seeds"], serde_json::json!([1, 2]), "{line}");
    let not_available = seeds[0]["not_available"].as_array().expect("a list");
    assert!(not_available.iter().any(|why| why.as_str().is_some_and(|why| why.contains("one seed each"))));
    // The same bytes again.
    assert_eq!(json, compare(&world, &["start", "teacher", "start"], &["--json"]).succeeded().stdout);
}

#[test]
fn a_row_keeps_what_was_scored() {
    let world = compared();
    let rows = rows(&world, "teacher");
    assert_eq!(rows.len(), 12);
    for (number, row) in rows.iter().enumerate() {
        assert_eq!(row["doc_id"], number);
        assert!(row["arguments"]["gen_args_0"]["arg_0"].as_str().is_some_and(|prompt| !prompt.is_empty()));
        let [made, scored] =
            [&row["resps"][0][0], &row["filtered_resps"][0]].map(|text| text.as_str().expect("a text"));
        assert_eq!(made.trim(), scored);
        for metric in row["metrics"].as_array().expect("names") {
            assert!(row[metric.as_str().expect("a name")].is_number(), "{metric} of {row}");
        }
        let nll = row["positions"]["nll"].as_array().expect("numbers");
        let mean =
            nll.iter().filter_map(Value::as_f64).sum::<f64>() / f64::from(u32::try_from(nll.len()).unwrap());
        assert!((mean - row["nll"].as_f64().expect("a number")).abs() < 1e-5);
    }
}

#[test]
fn other_rows_and_settings_are_refused() {
    let world = compared();
    let teacher = "evaluate.model=run/teacher/model";
    let other = |name: &str, setting: &str| {
        let named = format!("evaluate.name={name}");
        world.run("evaluate", &[teacher, &named, "evaluate.max_answers=100", setting]).succeeded();
    };
    other("valid", "evaluate.split=valid");
    compare(&world, &["teacher", "valid"], &[])
        .failed(3, &["of `test`, as evaluation `", "found rows ", "of `valid`", "compared on the same rows"]);
    other("short", "evaluate.max_new_tokens=2");
    compare(&world, &["teacher", "short"], &[])
        .failed(3, &["expected `evaluate.max_new_tokens` of 8", "found 2", "evaluate one of them again"]);

    // A row that is gone, a score that is none, no rows at all.
    let path = world.path("run/evaluations/start/held_out.rows.jsonl");
    let text = fs::read_to_string(&path).expect("rows");
    let first = text.lines().next().expect("a row").to_owned() + "\n";
    fs::write(&path, &first).expect("it is written");
    compare(&world, &["teacher", "start"], &[])
        .failed(3, &["start/held_out.rows.jsonl", "expected 12 rows", "found 1"]);
    fs::write(&path, first.replacen("\"nll\":", "\"nll\":null,\"was\":", 1)).expect("it is written");
    compare(&world, &["teacher", "start"], &[])
        .failed(3, &["start/held_out.rows.jsonl` line 1", "a row of an evaluation"]);
    fs::remove_file(&path).expect("it is removed");
    compare(&world, &["teacher", "start"], &[])
        .failed(3, &["start/held_out.rows.jsonl", "found no file", "evaluate again"]);
    compare(&world, &["teacher", "teacher"], &["--margin", "rouge=1"]).failed(2, &["METRIC one of answered"]);
}
