//! Three sides of the rows: `valid` chooses, `test` is reported, and which of them are labelled the recipe says.

use std::{collections::BTreeSet, fs, path::Path};

use serde_json::Value;
use softshard_e2e::{World, run, softshard};
use softshard_labels::{SequenceDataset, SequenceKey};

fn read_json(path: &Path) -> Value {
    let bytes = fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_slice(&bytes).expect("JSON")
}

fn text(world: &World, path: &str) -> String {
    world.path(path).to_str().expect("a path of ASCII").to_owned()
}

fn keys(world: &World, split: &str) -> BTreeSet<SequenceKey> {
    let dataset = SequenceDataset::open(world.path("run/sequences").join(split)).expect("sequences");
    dataset.read_all().expect("all of them").iter().map(softshard_labels::Sequence::key).collect()
}

const TEACHER: [&str; 2] = ["evaluate.model=run/teacher/model", "evaluate.max_new_tokens=3"];
const VALID: &str = "evaluate.split=valid";

#[test]
fn what_is_reported_is_of_test_and_is_compared_with_nothing_else() {
    let world = World::labelled();
    let [train, valid, test] = ["train", "valid", "test"].map(|split| keys(&world, split));
    assert_eq!([train.len(), valid.len(), test.len()], [60, 12, 12]);
    assert!(train.is_disjoint(&valid) && train.is_disjoint(&test) && valid.is_disjoint(&test));

    let said = world.run("evaluate", &TEACHER).succeeded().stdout;
    assert!(said.starts_with("test: 12 sequences (") && said.contains("4 answered\n"), "{said}");
    let result = read_json(&world.path("run/evaluations/teacher/held_out.json"));
    assert_eq!((result["split"].as_str(), result["rows"].as_u64()), (Some("test"), Some(12)));
    assert_eq!(result["provenance"]["recipe"]["evaluate"]["split"], "test");
    assert!(result["held_out"]["kl_to_teacher"].as_f64().is_some_and(|kl| kl < 1e-3), "{result}");
    assert!(result.get("seconds").is_none(), "the same inputs give the same bytes: {result}");

    // By name alone, and not in the place of what is reported.
    let of_valid = [&TEACHER[..], &[VALID]].concat();
    let said = world.run("evaluate", &of_valid).succeeded().stdout;
    assert!(said.starts_with("valid: 12 sequences ("), "{said}");
    let of_valid = read_json(&world.path("run/evaluations/teacher-valid/held_out.json"));
    assert_eq!(of_valid["split"], "valid");
    assert_eq!(read_json(&world.path("run/evaluations/teacher/held_out.json")), result);
    assert_ne!(of_valid["provenance"]["inputs"]["rows"], result["provenance"]["inputs"]["rows"]);

    // A table for each choice of rows: of other rows, and of other answers.
    let more = ["evaluate.max_answers=5", "evaluate.name=more"];
    world.run("evaluate", &[&TEACHER[..], &more].concat()).succeeded();
    world.run("evaluate", &[&TEACHER[..], &["evaluate.name=same"]].concat()).succeeded();
    let report = world.run("report", &[]).succeeded().stdout;
    let tables: Vec<&str> = report.lines().filter(|line| line.contains(" sequences (")).collect();
    assert_eq!(tables.len(), 3, "{report}");
    let all = format!("{}\n", report.trim_end());
    let of_test = all.split("\n\n").find(|table| table.contains("4 answered") && table.starts_with("test"));
    let of_test = of_test.unwrap_or_else(|| panic!("a table of test: {report}"));
    assert!(of_test.contains("\nsame ") && of_test.contains("\nteacher "), "{report}");
    assert!(!of_test.contains("more") && !of_test.contains("teacher-valid"), "{report}");
    let page = text(&world, "page.html");
    let html = ["report", &text(&world, "recipe.toml"), "--html", &page];
    softshard(&html).succeeded();
    let page = fs::read_to_string(page).expect("a page");
    assert_eq!(page.matches("<h2>Evaluations, ").count(), 3, "{page}");

    let [one, other] = ["teacher", "teacher-valid"]
        .map(|name| text(&world, &format!("run/evaluations/{name}/held_out.json")));
    let said = softshard(&["diff", &one, &other]).failed(3, &["something else"]).stdout;
    for part in [
        "the rows that were scored (results of other rows are not to be compared) are others",
        "`evaluate.split` is",
    ] {
        assert!(said.contains(part), "expected {part:?} in:\n{said}");
    }
    let same = text(&world, "run/evaluations/same/held_out.json");
    let said = softshard(&["diff", &one, &same]).stdout;
    assert!(!said.contains("the rows"), "{said}");

    // Learning from them, or choosing by them, is said.
    for (key, what) in [
        (r#"student.mixture=[{ labels = "run/labels/test" }]"#, "the model learns from rows of `test`"),
        (
            r#"student.evaluation={ every_steps = 2, data = "run/labels/test" }"#,
            "the best step is chosen by rows of `test`",
        ),
        ("student.evaluation={ every_steps = 2 }", ""),
    ] {
        let output = format!("output.student=of-{}", what.len());
        let said = world.run("train-student", &[key, "student.max_steps=2", &output]).succeeded().stderr;
        assert!(said.contains(what) && said.contains("rows of `test`") != what.is_empty(), "{key}: {said}");
    }

    // However the rows lie, they are the same.
    for stage in ["prepare", "evaluate"] {
        let laid = [&TEACHER[..], &["data.sequences_per_shard=5", "evaluate.name=laid"]].concat();
        world.run(stage, &laid).succeeded();
    }
    let laid = read_json(&world.path("run/evaluations/laid/held_out.json"));
    assert_eq!(laid["provenance"]["inputs"]["rows"], result["provenance"]["inputs"]["rows"]);
    assert_ne!(laid["provenance"]["inputs"]["sequences"], result["provenance"]["inputs"]["sequences"]);
}

/// As recipes and sequences were before there was `test`.
#[test]
fn without_test_rows_nothing_is_reported_by_itself() {
    let world = World::new();
    let two = "data.split={ valid_rows = 12, seed = 1 }";
    for stage in ["prepare", "finetune", "teacher-labels"] {
        world.run(stage, &[two]).succeeded();
    }
    let with = |more: &'static [&'static str]| [&[two], &TEACHER[..], more].concat();
    let parts = [
        "run/sequences/test`: expected held-out sequences, of the split `test`, found none",
        "hint: set `data.split.test_rows` and prepare again, or score the rows that choose, with `evaluate.split=valid`",
    ];
    world.run("evaluate", &with(&[])).failed(3, &parts);
    assert!(!world.path("run/evaluations").exists(), "nothing is begun");
    world.run("evaluate", &with(&["evaluate.split=train"])).failed(2, &["`evaluate.split`"]);
    world.run("evaluate", &with(&[VALID])).succeeded();
    // The recipe asks for rows that the sequences have not.
    world.run("evaluate", &TEACHER).failed(3, &["run/sequences/test`: expected held-out sequences"]);
    let parts = [
        "run/sequences/train`: expected what the recipe says",
        "data.split.test_rows: expected 12, found nothing",
    ];
    world.run("teacher-labels", &[]).failed(3, &parts);
    world
        .run_accepting("teacher-labels", &[], &["data.split"])
        .failed(3, &["run/sequences/test`", "a finished dataset"]);
}

#[test]
fn sides_that_cannot_be_are_refused_by_prepare() {
    let world = World::new();
    for (split, code, parts) in [
        ("{ test_rows = 84 }", 3, ["found all of them held out: 84 of 84 rows", "hint: lower `valid_rows`"]),
        ("{ valid_rows = 50, test_rows = 50 }", 3, ["found all of them held out: 100 of 84 rows", "hint: "]),
        ("{ test_rows = 1000000 }", 3, ["1000000 of 84 rows", "hint: "]),
        (
            "{ valid_fraction = 1e-9 }",
            3,
            ["expected sequences in `valid`, found none", "hint: hold more rows out"],
        ),
        (
            "{ test_fraction = 1e-9 }",
            3,
            ["expected sequences in `test`, found none", "hint: hold more rows out"],
        ),
        ("{ valid_fraction = 0.5, test_fraction = 0.5 }", 2, ["that leave rows to learn from", "found 1"]),
        (
            "{ valid_fraction = 0.5, test_rows = 5 }",
            2,
            ["in rows or in fractions", "`valid_fraction` and `test_rows`"],
        ),
        ("{ test_fraction = -0.5 }", 2, ["`split.test_fraction` from 0 to 1", "found -0.5"]),
        ("{ held_out_rows = 5 }", 2, ["unknown field `held_out_rows`", "`test_rows`"]),
    ] {
        let said = world.run("prepare", &[&format!("data.split={split}")]).failed(code, &parts);
        assert!(!world.path("run/sequences").exists(), "{split}: {}", said.stderr);
    }
    let said = world.run("prepare", &[]).succeeded().stdout;
    for line in ["train         60 ", "valid         12 ", "test          12 "] {
        assert!(said.contains(line), "{line}: {said}");
    }
}

#[test]
fn the_recipe_says_which_sides_are_labelled() {
    let world = World::with_teacher();
    let some = r#"labels.splits=["train", "test"]"#;
    let missing = [some, "data.split={ valid_rows = 12, seed = 1 }"];
    let parts = [
        "`labels.splits`: expected sides that `data.split` asks for, found \"test\"",
        "`data.split.test_rows`",
    ];
    world.run("teacher-labels", &missing).failed(2, &parts);

    let recipe = text(&world, "recipe.toml");
    let of =
        |arguments: &[&str]| softshard(&[arguments, &[&*recipe, "--set", some]].concat()).succeeded().stdout;
    let plan = of(&["labels", "plan"]);
    assert!(
        plan.contains("\ntrain: 60 ") && plan.contains("\ntest: 12 ") && !plan.contains("valid"),
        "{plan}"
    );
    let mut submit = world.stage("submit", &[some, "labels.sequences_per_shard=4"]);
    let said =
        run(submit.args(["--engine", "slurm", "--dry-run"]).env("PATH", "/nowhere")).succeeded().stdout;
    assert!(said.contains("train: 15 of 15 shards") && said.contains("test: 3 of 3 shards"), "{said}");
    assert!(!said.contains("valid"), "{said}");

    world.run("teacher-labels", &[some]).succeeded();
    let labels = world.path("run/labels");
    assert!(labels.join("test/manifest.json").exists() && !labels.join("valid").exists());
    let finished = of(&["labels", "finalize"]);
    assert!(
        finished.contains("labels train: 6 shards") && finished.contains("labels test: 2 shards"),
        "{finished}"
    );
    let audited = of(&["labels", "audit", "--positions", "5"]);
    assert!(audited.contains("run/labels/test") && !audited.contains("valid"), "{audited}");
    // By the recipe's default the rest is labelled, and what is there stays.
    let before = world.files("run/labels/test");
    let kl = |name: &str, overrides: &[&str]| {
        world.run("evaluate", &[&TEACHER[..], overrides].concat()).succeeded();
        read_json(&world.path(&format!("run/evaluations/{name}/held_out.json")))["held_out"]["kl_to_teacher"]
            .clone()
    };
    assert!(kl("teacher", &[some]).is_number());
    assert!(kl("teacher-valid", &[some, VALID]).is_null());
    let said = world.run("evaluate", &[&TEACHER[..], &[VALID]].concat()).succeeded().stderr;
    assert!(said.contains("there are no labels of `valid`, so no distance to the teacher"), "{said}");
    world.run("teacher-labels", &[]).succeeded();
    assert!(world.files("run/labels/test") == before);
    assert!(kl("teacher-valid", &[VALID]).is_number());
}
