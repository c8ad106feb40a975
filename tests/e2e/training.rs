//! The loop of training: held-out data, the best step, early ends, averages, and what it refuses.

use std::{
    fs,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;
use softshard_e2e::World;

/// The evaluations of a run, as (step, NLL).
fn evaluations(world: &World, output: &str) -> Vec<(u64, f64)> {
    let lines = world.curve(output);
    let held_out = lines.iter().filter(|line| line["split"] == "valid");
    held_out
        .map(|line| (line["step"].as_u64().expect("a step"), line["nll"].as_f64().expect("nats")))
        .collect()
}

fn adapter(world: &World, output: &str) -> Vec<u8> {
    let path = format!("run/{output}/adapter/adapter_model.safetensors");
    fs::read(world.path(&path)).expect("an adapter")
}

fn lines_of(path: &Path) -> usize {
    fs::read_to_string(path).map_or(0, |text| text.lines().count())
}

/// Every kind of state that a checkpoint has to carry.
const EVERYTHING: [&str; 6] = [
    "student.evaluation={ every_steps = 2, patience = 50 }",
    "student.ema_decay=0.9",
    "student.schedule=warmup_stable_decay",
    "student.loss.alpha={ kind = \"linear\", first = 0.0, last = 2.0 }",
    "student.epochs=6",
    "student.keep_checkpoints=1",
];

#[test]
fn evaluations_averages_and_the_best_step_survive_a_kill() {
    let world = World::labelled();
    world.run("train-student", &EVERYTHING).succeeded();
    let expected = world.curve("student");
    let found = evaluations(&world, "student");
    let steps = expected.len() - found.len();
    assert!(steps >= 10 && found.len() == steps.div_ceil(2), "{steps} steps, {found:?}");
    let valid = expected.iter().find(|line| line["split"] == "valid").expect("an evaluation");
    for key in ["nll", "kl", "ece", "accuracy"] {
        assert!(valid[key].as_f64().is_some_and(|value| value.is_finite() && value >= 0.0), "{valid}");
    }
    for lines in [3, 8] {
        let output = format!("killed-{lines}");
        let place = format!("output.student={output}");
        let overrides = [&EVERYTHING[..], &[&place]].concat();
        let mut child = world.stage("train-student", &overrides).spawn().expect("the binary starts");
        let metrics = world.path(&format!("run/{output}/metrics.jsonl"));
        let began = Instant::now();
        while lines_of(&metrics) < lines {
            assert!(began.elapsed() < Duration::from_secs(60), "it never came so far");
            thread::sleep(Duration::from_millis(1));
        }
        child.kill().expect("SIGKILL is sent");
        assert!(child.wait().expect("it ends").code().is_none(), "done before it was killed");
        world.run("train-student", &overrides).succeeded();
        assert_eq!(world.curve(&output), expected, "killed at line {lines}");
        assert!(adapter(&world, &output) == adapter(&world, "student"), "killed at line {lines}");
    }
}

#[test]
fn the_average_is_what_is_written_and_held_out_data_is_judged_as_by_evaluate() {
    let world = World::labelled();
    let evaluation = "student.evaluation={ every_steps = 100 }";
    let train = |output: &str, decay: Option<&str>| {
        let output = format!("output.student={output}");
        let overrides: Vec<&str> = [evaluation, &output].into_iter().chain(decay).collect();
        world.run("train-student", &overrides).succeeded();
    };
    train("plain", None);
    train("followed", Some("student.ema_decay=0.0"));
    train("averaged", Some("student.ema_decay=0.99"));
    assert!(
        adapter(&world, "followed") == adapter(&world, "plain"),
        "an average that forgets is the last step"
    );
    assert!(adapter(&world, "averaged") != adapter(&world, "plain"));
    for output in ["plain", "averaged"] {
        world.run("evaluate", &[&format!("output.student={output}"), "evaluate.split=valid"]).succeeded();
        let scores = world.path(&format!("run/evaluations/{output}-valid/held_out.json"));
        let scores = fs::read(scores).expect("an evaluation");
        let scores: Value = serde_json::from_slice(&scores).expect("JSON");
        let lines = world.curve(output);
        let line = lines.iter().find(|line| line["split"] == "valid").expect("an evaluation");
        for (ours, theirs) in [("nll", "nll"), ("kl", "kl_to_teacher"), ("ece", "ece")] {
            let [ours, theirs] =
                [&line[ours], &scores["held_out"][theirs]].map(|value| value.as_f64().expect("a number"));
            assert!((ours - theirs).abs() < 1e-4 * theirs.abs().max(1.0), "{output}: {line} and {scores}");
        }
    }
}

#[test]
fn a_run_that_gets_worse_ends_early_and_writes_its_best_step() {
    let world = World::labelled();
    let worse = [
        "student.learning_rate=0.3",
        "student.schedule=constant",
        "student.epochs=20",
        "student.evaluation={ every_steps = 1, patience = 3 }",
    ];
    let said = world.run("train-student", &worse).succeeded();
    let found = evaluations(&world, "student");
    let &(best, _) = found.iter().min_by(|a, b| a.1.total_cmp(&b.1)).expect("evaluations");
    assert_eq!(found.last().map(|last| last.0), Some(best + 3), "three were no better: {found:?}");
    assert!(said.stdout.contains(&format!("step {best}")), "{}", said.stdout);
    // The same as a run of so many steps: nothing of the others is in it.
    let alone = ["student.learning_rate=0.3", "student.schedule=constant", "output.student=alone"];
    let steps = format!("student.max_steps={best}");
    world.run("train-student", &[&alone[..], &[&steps]].concat()).succeeded();
    assert!(adapter(&world, "alone") == adapter(&world, "student"));
    // Run again it has nothing to do, and the last step can be had instead.
    let last =
        [&worse[..3], &["student.evaluation={ every_steps = 1, patience = 3, export = \"last\" }"]].concat();
    world.run("train-student", &last).succeeded();
    assert_eq!(evaluations(&world, "student"), found);
    assert!(adapter(&world, "alone") != adapter(&world, "student"));
}

/// Covers `best_by`: which step is kept and written, when the run ends early, and that a kill changes nothing of it.
#[test]
fn the_best_step_by_any_metric_is_written_also_after_a_kill() {
    let world = World::labelled();
    let worse = ["student.learning_rate=0.1", "student.schedule=constant", "student.epochs=20"];
    let mut steps = Vec::new();
    for metric in ["nll", "kl", "ece"] {
        let evaluation =
            format!(r#"student.evaluation={{ every_steps = 1, patience = 5, best_by = "{metric}" }}"#);
        let train = |output: &str| {
            let output = format!("output.student={output}");
            world.stage("train-student", &[&worse[..], &[&evaluation, &output]].concat())
        };
        let said = softshard_e2e::run(&mut train(metric)).succeeded();
        let curve = world.curve(metric);
        let found: Vec<(u64, f64)> = curve
            .iter()
            .filter(|line| line["split"] == "valid")
            .map(|line| (line["step"].as_u64().expect("a step"), line[metric].as_f64().expect("a number")))
            .collect();
        let &(best, value) = found.iter().min_by(|a, b| a.1.total_cmp(&b.1)).expect("evaluations");
        assert_eq!(
            found.last().map(|last| last.0),
            Some(best + 5),
            "{metric}: five were no better: {found:?}"
        );
        assert!(said.stdout.contains(&format!("step {best}")), "{metric} {value}: {}", said.stdout);
        let kept = fs::read_dir(world.path(&format!("run/{metric}/checkpoints"))).expect("checkpoints");
        let mut kept: Vec<_> = kept.map(|entry| entry.expect("an entry").file_name()).collect();
        kept.sort();
        let expected = [best, best + 5].map(|step| format!("step-{step:08}"));
        assert!(kept.len() <= 3 && expected.iter().all(|step| kept.contains(&step.into())), "{kept:?}");
        let alone = format!("{metric}-alone");
        let places = [format!("student.max_steps={best}"), format!("output.student={alone}")];
        world
            .run("train-student", &[&worse[..2], &[&places[0], &places[1], "student.epochs=20"]].concat())
            .succeeded();
        assert!(adapter(&world, &alone) == adapter(&world, metric), "{metric}: the best step is written");

        // Killed behind the best step.
        let killed = format!("{metric}-killed");
        let mut child = train(&killed).spawn().expect("the binary starts");
        let (metrics, began) = (world.path(&format!("run/{killed}/metrics.jsonl")), Instant::now());
        let lines = usize::try_from(2 * best + 3).expect("a few");
        while lines_of(&metrics) < lines {
            assert!(began.elapsed() < Duration::from_secs(60), "it never came so far");
            thread::sleep(Duration::from_millis(1));
        }
        child.kill().expect("SIGKILL is sent");
        assert!(child.wait().expect("it ends").code().is_none(), "done before it was killed");
        softshard_e2e::run(&mut train(&killed)).succeeded();
        assert_eq!(world.curve(&killed), curve, "{metric}");
        assert!(adapter(&world, &killed) == adapter(&world, metric), "{metric}");
        steps.push(best);
    }
    eprintln!("best steps by NLL, KL and ECE: {steps:?}");
    // Judged by something else there is no best step yet.
    let other = r#"student.evaluation={ every_steps = 1, patience = 5, best_by = "ece" }"#;
    let said = world.run("train-student", &[&worse[..], &[other, "output.student=nll"]].concat()).succeeded();
    assert!(said.stderr.contains("it was judged by something else"), "{}", said.stderr);
    // A best step whose weights are damaged is not written.
    let weights = world.path(&format!("run/kl/checkpoints/step-{:08}/trainable.safetensors", steps[1]));
    fs::write(weights, "torn").expect("the file is torn");
    let by_kl = r#"student.evaluation={ every_steps = 1, patience = 5, best_by = "kl" }"#;
    world
        .run("train-student", &[&worse[..], &[by_kl, "output.student=kl"]].concat())
        .failed(3, &["expected a whole checkpoint", "trainable.safetensors", "hint: `evaluation.export`"]);
}

#[test]
fn a_checkpoint_of_another_version_is_refused_and_left_alone() {
    let world = World::small_labelled();
    world.run("train-student", &[]).succeeded();
    let checkpoints = world.path("run/student/checkpoints");
    let newest =
        fs::read_dir(&checkpoints).expect("checkpoints").map(|entry| entry.expect("an entry").path());
    let state = newest.max().expect("a checkpoint").join("state.json");
    let text = fs::read_to_string(&state).expect("a state").replace("\"version\": 1", "\"version\": 2");
    fs::write(&state, text).expect("written");
    let before = world.files("run/student");
    world.run("train-student", &[]).failed(
        3,
        &[
            "expected version 1 of its format, which this program reads, found version 2",
            "hint: go on with the softshard that",
        ],
    );
    assert!(world.files("run/student") == before, "nothing is written");
}

#[test]
fn a_model_that_is_broken_by_its_last_step_is_not_written() {
    let world = World::labelled();
    let last = ["student.max_steps=1", "student.schedule=constant"];
    let found = |rate: &str, evaluation: &str, parts: &[&str]| {
        let rate = format!("student.learning_rate={rate}");
        world.run("train-student", &[&last[..], &[&rate, evaluation]].concat()).failed(1, parts);
        assert!(!world.path("run/student/adapter").exists());
        assert!(!world.path("run/student/checkpoints/step-00000001").exists());
    };
    let evaluation = "student.evaluation={ every_steps = 1 }";
    found(
        "1e30",
        evaluation,
        &["train-student step 1: expected a finite NLL on held-out data", "hint: train with a lower"],
    );
    let none = "student.max_steps=1";
    found(
        "1e39",
        none,
        &["train-student step 1: no checkpoint could be written", "expected finite numbers, found"],
    );
}

#[test]
fn what_is_not_finite_stops_the_run_and_is_kept() {
    let world = World::labelled();
    let broken =
        ["student.learning_rate=1e30", "student.schedule=constant", "student.checkpoint_every_steps=1"];
    let said =
        world.run("train-student", &broken).failed(1, &["expected a finite", "hint: the step's sequences"]);
    let kept = fs::read_dir(world.path("run/student")).expect("a folder").filter_map(|entry| {
        let path = entry.expect("an entry").path();
        path.file_name()?.to_str()?.starts_with("not-finite-step-").then_some(path)
    });
    let kept: Vec<_> = kept.collect();
    assert_eq!(kept.len(), 1, "{}", said.stderr);
    let kept: Value = serde_json::from_slice(&fs::read(&kept[0]).expect("a file")).expect("JSON");
    let sequence = &kept["micro_batches"][0]["sequences"][0];
    let key = sequence["sequence_key"].as_str().expect("a key");
    assert_eq!((key.len(), kept["stage"].as_str()), (32, Some("train-student")));
    assert!(!sequence["input_ids"].as_array().expect("ids").is_empty());
    assert!(!kept["micro_batches"][0]["log_probs"].as_array().expect("labels").is_empty());
    let checkpoints = fs::read_dir(world.path("run/student/checkpoints")).expect("checkpoints").count();
    assert!(checkpoints >= 1, "the last checkpoint is intact");
    // Another recipe over these checkpoints: what differs is said.
    world.run("train-student", &["student.weight_decay=0.5"]).failed(
        3,
        &[
            "expected one of this run",
            "student.learning_rate: expected",
            "student.weight_decay: expected 0.5, found 0.01",
        ],
    );
}

#[test]
fn recipes_that_no_run_can_use_are_refused() {
    let world = World::small_labelled();
    let refused = [
        ("student.lora.r=0", "`student`: lora: `r`: expected 1 to 65536, found 0"),
        ("student.loss.alpha=-0.5", "`student.loss.alpha`: expected numbers of at least 0, found -0.5"),
        (
            "student.ema_decay=1.0",
            "`student.ema_decay`: expected a number of at least 0 and below 1, found 1",
        ),
        ("student.optimizer=muon", "`student.optimizer`: expected \"adamw\" where an adapter is trained"),
        ("student.evaluation={ every_steps = 0 }", "`student.evaluation.every_steps`: expected at least 1"),
        ("student.keep_checkpoints=0", "`student.keep_checkpoints`: expected at least 1, found 0"),
        ("student.loss.alpha={ kind = \"linear\", first = 1.0 }", "missing field `last`"),
        (
            "student.evaluation={ every_steps = 1, data = \"s3://bucket/valid\" }",
            "`student.evaluation.data`: expected a folder",
        ),
        (
            "finetune.evaluation={ every_steps = 1, best_by = \"kl\" }",
            "`finetune.evaluation.best_by`: expected \"nll\" or \"ece\"",
        ),
    ];
    for (override_, part) in refused {
        world.run("train-student", &[override_]).failed(2, &[part]);
    }
    // What the model has is known from its configuration: here it has no weights.
    let weights = world.path("start/model/model.safetensors");
    fs::rename(&weights, world.path("weights")).expect("moved away");
    let expected = "lora: `target_modules`: expected some of down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj, all-linear, found";
    for (stage, section, model) in
        [("train-student", "student", "start/model"), ("finetune", "finetune", "shape")]
    {
        for target in ["w_pack", "lm_head"] {
            let lora = format!(
                r#"{section}.lora={{ r = 4, alpha = 8.0, target_modules = ["q_proj", "{target}"] }}"#
            );
            let pretrained = format!("{section}.init=pretrained");
            let parts = [
                &*format!("recipe: `{section}`: {expected} `{target}`"),
                "hint: these are the linear maps of",
                model,
            ];
            world.run(stage, &[&lora, &pretrained]).failed(2, &parts);
        }
    }
    world.run("train-student", &["student.evaluation={ every_steps = 1 }"]).failed(3, &["valid"]);
}

#[test]
fn a_whole_model_learns_by_muon() {
    let world = World::labelled();
    let whole = [
        "finetune.optimizer=muon",
        "finetune.learning_rate=3e-3",
        "finetune.max_steps=8",
        "output.teacher=../muon",
    ];
    world.run("finetune", &whole).succeeded();
    let text = fs::read_to_string(world.path("muon/metrics.jsonl")).expect("metrics");
    let losses: Vec<f64> = text
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).expect("JSON")["loss"].as_f64().expect("a loss"))
        .collect();
    assert_eq!(losses.len(), 8);
    assert!(losses[7] < losses[0] - 0.3, "{losses:?}");
    let first = world.path("muon/checkpoints/step-00000000");
    assert!(!first.exists(), "there is nothing to keep before the first step");
    let moments =
        fs::read(world.path("muon/checkpoints/step-00000008/moments.safetensors")).expect("moments");
    let header = String::from_utf8_lossy(&moments[..4000.min(moments.len())]).into_owned();
    assert!(
        header.contains("q_proj.weight.momentum") && header.contains("embed_tokens.weight.second"),
        "{header}"
    );
}
