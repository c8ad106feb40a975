//! Metrics of labelling and training: what is recorded, and that no run waits for a disk that takes none.
//! What TensorBoard reads: tests/peers/check_metrics.py.

use std::{fs, os::unix::fs::symlink};

use serde_json::Value;
use softshard_e2e::{World, run};

#[test]
fn shards_are_recorded_and_resumed_runs_append() {
    let world = World::with_teacher();
    let prometheus = "output.prometheus=softshard.prom";
    world.run("teacher-labels", &[prometheus]).succeeded();
    let lines =
        fs::read_to_string(world.path("run/metrics/teacher-labels.jsonl")).expect("metrics are there");
    let shards =
        ["train", "valid", "test"].map(|split| lines.matches(&format!(r#""split":"{split}""#)).count());
    assert_eq!(shards, [6, 2, 2], "{lines}");
    for (index, line) in lines.lines().take(shards[0]).enumerate() {
        assert!(line.starts_with(r#"{"time":1"#) && line.contains(r#""tokens":"#), "{line}");
        assert!(line.contains(&format!(r#""split":"train","step":{},"#, index + 1)), "{line}");
    }
    let text = fs::read_to_string(world.path("softshard.prom")).expect("the text file is there");
    let gauge = r#"softshard_done{run="teacher-labels",stage="teacher-labels",split="train"} 60"#;
    assert!(text.contains(gauge), "{text}");

    // One shard again: its step is the last one.
    let labels = world.path("run/labels/train");
    fs::remove_file(labels.join("manifest.json")).expect("removed");
    fs::remove_file(labels.join("_softshard/commits/00002.json")).expect("removed");
    world.run("teacher-labels", &[prometheus]).succeeded();
    let more = fs::read_to_string(world.path("run/metrics/teacher-labels.jsonl")).expect("metrics are there");
    let new = more.strip_prefix(&lines).expect("lines are appended");
    assert_eq!(new.lines().count(), 1, "{new}");
    assert!(new.contains(r#""split":"train","step":6,"shard":2,"#), "{new}");
    let events =
        fs::read_dir(world.path("run/metrics/tensorboard/teacher-labels")).expect("events are there");
    assert_eq!(events.count(), 2);
}

#[test]
fn labels_go_on_without_metrics() {
    let world = World::with_teacher();
    fs::create_dir(world.path("run/metrics")).expect("a folder is made");
    symlink("/dev/full", world.path("run/metrics/teacher-labels.jsonl")).expect("a link is made");
    let said = world.run("teacher-labels", &["output.prometheus=/proc/softshard.prom"]).succeeded();
    for problem in ["teacher-labels.jsonl`: No space left on device", "/proc/softshard.prom"] {
        let said: Vec<&str> = said.stderr.lines().filter(|line| line.contains(problem)).collect();
        assert_eq!(said.len(), 1, "once for {problem}: {said:?}");
        assert!(
            said[0].contains("WARN metrics: ") && said[0].ends_with("the run goes on without this file"),
            "{said:?}"
        );
    }
    assert!(world.path("run/labels/train/manifest.json").exists());
}

#[test]
fn steps_are_recorded_where_tensorboard_looks() {
    let world = World::small_labelled();
    let prometheus = "output.prometheus=softshard.prom";
    let training = world.run("train-student", &[prometheus]).succeeded();
    let lines = world.curve("student");
    for (index, line) in lines.iter().enumerate() {
        assert_eq!((line["split"].as_str(), line["step"].as_u64()), (Some("train"), Some(index as u64 + 1)));
        for scalar in ["loss", "cross_entropy", "divergence", "alpha", "learning_rate", "gradient_norm"] {
            assert!(line[scalar].is_f64(), "{scalar}: {line}");
        }
    }
    let files = |folder: &str| fs::read_dir(world.path(folder)).expect("events are there").count();
    assert_eq!(files("run/student/tensorboard"), 1);
    let text = fs::read_to_string(world.path("softshard.prom")).expect("the text file is there");
    let gauge = r#"softshard_done{run="student",stage="train-student",split="train"}"#;
    assert!(text.contains(&format!("{gauge} {}", lines.len())) && text.contains("softshard_loss{"), "{text}");
    for part in ["  loss     ", "  speed    ", "waiting for data ", "  time     "] {
        assert!(training.stdout.contains(part), "{}", training.stdout);
    }
    // The report's page, of this training and those before.
    let page = world.path("report.html");
    let mut report = world.stage("report", &[]);
    let said = run(report.arg("--html").arg(&page)).succeeded();
    assert!(said.stdout.starts_with("curves: student, teacher\npage: "), "{}", said.stdout);
    let page = fs::read_to_string(page).expect("a page");
    assert!(page.contains("<b>Divergence from the teacher.</b>") && page.contains("</span>student</th>"));
    // Nothing else is asked for, and nothing was evaluated.
    world.run("report", &[]).failed(3, &["expected evaluations, found none"]);
    // One plain line, of the last step.
    for part in [" tokens/s  ", "  loss ", "  CE ", "  KL ", "  alpha 0.5  lr "] {
        assert!(training.stderr.contains(part), "{}", training.stderr);
    }
}

/// Covers progress and metrics for machines: lines of JSON among those of the log, which `RUST_LOG` filters
/// alike.
#[test]
fn steps_are_lines_of_json_where_the_log_is() {
    let world = World::small_labelled();
    let train = |student: &str, log: &str| {
        let mut stage = world.stage("train-student", &[&format!("output.student={student}")]);
        run(stage.args(["--log-format", "json"]).env("RUST_LOG", log)).succeeded().stderr
    };
    let said = train("said", "info");
    let lines: Vec<Value> = said.lines().map(|line| serde_json::from_str(line).expect(line)).collect();
    let of = |target: &str| -> Vec<&Value> {
        lines.iter().filter(|line| line["target"] == target && line["stage"] == "train-student").collect()
    };
    let steps = of("softshard::progress");
    assert!(!steps.is_empty(), "{said}");
    for (index, line) in steps.iter().enumerate() {
        assert!(line["timestamp"].as_str().is_some_and(|time| time.ends_with('Z')), "{line}");
        let [done, total] = ["done", "total"].map(|key| line[key].as_u64());
        assert_eq!([done, total], [index + 1, steps.len()].map(|count| u64::try_from(count).ok()));
        assert!(
            line["loss"].is_f64() && line["divergence_name"] == "KL" && line["level"] == "INFO",
            "{line}"
        );
    }
    let metrics = of("softshard::metrics");
    let marks: Vec<&Value> =
        metrics.iter().map(|line| &line["mark"]).filter(|mark| !mark.is_null()).collect();
    assert!(marks.len() > 1 && marks[0] == "start" && marks[1..].iter().all(|mark| **mark == "checkpoint"));
    assert_eq!(metrics.len() - marks.len(), steps.len());
    assert!(metrics.iter().any(|line| line["gradient_norm"].is_f64() && line["split"] == "train"), "{said}");
    let filters = [("silent", "warn"), ("quiet", "info,softshard::progress=off,softshard::metrics=warn")];
    for (student, log) in filters {
        let said = train(student, log);
        assert!(
            !said.contains("softshard::progress") && !said.contains("softshard::metrics"),
            "{log}: {said}"
        );
    }
}

#[test]
fn a_training_that_cannot_start_leaves_no_metrics() {
    let world = World::small_labelled();
    fs::remove_file(world.path("run/labels/train/manifest.json")).expect("removed");
    world.run("train-student", &[]).failed(3, &["manifest.json"]);
    assert!(!world.path("run/student/tensorboard").exists());
}

#[test]
fn a_training_goes_on_without_metrics() {
    let world = World::small_labelled();
    fs::create_dir_all(world.path("run/student")).expect("a folder is made");
    fs::write(world.path("run/student/tensorboard"), "no folder").expect("written");
    let said = world.run("train-student", &[]).succeeded();
    assert_eq!(said.stderr.matches("the run goes on without this file").count(), 1, "{}", said.stderr);
    assert!(world.path("run/student/adapter").exists());
}
