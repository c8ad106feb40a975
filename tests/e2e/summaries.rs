//! The task `summaries`: documents of a file, answered and scored, with what stands beside any model.

use std::fs;

use serde_json::{Value, json};
use softshard_e2e::{Said, World, command, run};

/// A world with a teacher, and a file of six documents, one of them without a reference.
fn documents() -> World {
    let world = World::with_teacher();
    let rows = fs::read_to_string(world.path("data/instructions.jsonl")).expect("the data is there");
    let row = |(number, line): (usize, &str)| {
        let row: Value = serde_json::from_str(line).expect("a line of JSON");
        let summary = if number == 3 { Value::Null } else { row["response"].clone() };
        json!({ "id": format!("d{number}"), "document": row["context"], "summary": summary }).to_string()
            + "\n"
    };
    let text: String = rows.lines().take(6).enumerate().map(row).collect();
    fs::write(world.path("documents.jsonl"), text).expect("written");
    let recipe = fs::read_to_string(world.path("recipe.toml")).expect("a recipe");
    let section = "[evaluate.summaries]\nfile = \"documents.jsonl\"\nprompt = \"xsum\"\n\n[output]";
    fs::write(world.path("recipe.toml"), recipe.replace("[output]", section)).expect("written");
    world
}

fn evaluate(world: &World, name: &str, more: &[&str]) -> Said {
    let name = format!("evaluate.name={name}");
    let usual = ["evaluate.model=run/teacher/model", &name, r#"evaluate.tasks=["summaries"]"#];
    world.run("evaluate", &[&usual[..], more].concat())
}

fn result(world: &World, name: &str) -> Value {
    let path = world.path(&format!("run/evaluations/{name}/summaries.json"));
    serde_json::from_slice(&fs::read(path).expect("a result")).expect("JSON")
}

#[test]
fn documents_are_summarised_and_anchors_stand_beside() {
    let world = documents();
    let said = evaluate(&world, "teacher", &[]).succeeded().stdout;
    for part in ["summaries: 6 documents (", "ROUGE-1", "gold reference", "lead-3", "teacher"] {
        assert!(said.contains(part), "expected {part:?} in:\n{said}");
    }
    let found = result(&world, "teacher");
    let scores = &found["summaries"];
    assert_eq!((&scores["means"]["rows"], &scores["gold"]["rows"]), (&json!(6), &json!(5)));
    assert_eq!(scores["gold"]["rouge"]["minillm"]["rouge1"], json!(1.0));
    assert_eq!(scores["lead_3"]["copying"]["unigrams"], json!(1.0));
    let prompt = "Article: {document}\nSummarize the article in one sentence. Summary:";
    assert_eq!(
        (&scores["prompt"], &found["provenance"]["inputs"]["sequences"]),
        (&json!(prompt), &Value::Null)
    );
    let rows = fs::read_to_string(world.path("run/evaluations/teacher/summaries.rows.jsonl")).expect("rows");
    let rows: Vec<Value> = rows.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    assert_eq!((rows.len(), &rows[2]["doc"]["id"]), (6, &json!("d2")));
    assert!(rows[3].get("rouge").is_none() && rows[3].get("target").is_none(), "{}", rows[3]);

    // Made once: the same again is as it was, with held-out rows beside it.
    let both = r#"evaluate.tasks=["held_out", "summaries"]"#;
    let again = evaluate(&world, "teacher", &[both]).succeeded();
    assert!(again.stdout.contains("as it was: made from the same"), "{}", again.stdout);

    // Drawn answers are others, and the same again whatever stands beside them.
    let drawn = ["evaluate.generation.temperature=1.0", "evaluate.generation.seed=5"];
    evaluate(&world, "drawn", &drawn).succeeded();
    let first = result(&world, "drawn");
    fs::remove_dir_all(world.path("run/evaluations/drawn")).expect("removed");
    evaluate(&world, "drawn", &drawn).succeeded();
    assert_eq!(result(&world, "drawn"), first);
    assert_ne!(first["provenance"]["recipe"], found["provenance"]["recipe"]);

    // Answers of other settings are not compared; those of another model are.
    world
        .run("finetune", &["finetune.max_steps=2", "finetune.seed=4", "output.teacher=../start"])
        .succeeded();
    evaluate(&world, "start", &["evaluate.model=start/model"]).succeeded();
    let compare = |other: &str| {
        let of = |name: &str| world.path(&format!("run/evaluations/{name}"));
        run(command(&["compare", "--draws", "200"]).arg(of("teacher")).arg(of(other)))
    };
    let said = compare("start").succeeded().stdout;
    for part in ["rouge1", "rouge_l", "answered", "6 documents"] {
        assert!(said.contains(part), "expected {part:?} in:\n{said}");
    }
    compare("drawn").failed(3, &["expected `evaluate.generation`", "evaluate one of them again"]);
    let report = run(command(&["report"]).arg(world.path("recipe.toml"))).succeeded().stdout;
    assert_eq!(report.matches("gold reference").count(), 1, "{report}");
}

#[test]
fn what_cannot_be_summarised_is_refused_by_name() {
    let world = documents();
    let none = r#"evaluate.summaries={ file = "documents.jsonl", prompt = "no place" }"#;
    evaluate(&world, "x", &[none]).failed(2, &["`evaluate.summaries.prompt`", "`{document}` in it"]);
    fs::write(world.path("documents.jsonl"), "{\"text\": \"a\"}\n").expect("written");
    evaluate(&world, "x", &[]).failed(3, &["documents.jsonl:1", "expected a text in `document`, found none"]);
    fs::write(world.path("documents.jsonl"), "").expect("written");
    evaluate(&world, "x", &[]).failed(3, &["expected rows with a document, found none"]);
    let recipe = fs::read_to_string(world.path("recipe.toml")).expect("a recipe");
    let recipe = recipe
        .replace("[evaluate.summaries]", "[evaluate.task.other]")
        .replace("prompt = \"xsum\"", "like = \"fib\"");
    fs::write(world.path("recipe.toml"), recipe).expect("written");
    evaluate(&world, "x", &[])
        .failed(2, &["a task with a section [evaluate.summaries], found \"summaries\""]);
    assert!(!world.path("run/evaluations").exists());
}
