//! Metrics of labelling: what is recorded, and that labels do not wait for a disk that takes none.

use std::{fs, os::unix::fs::symlink};

use softshard_e2e::World;

#[test]
fn shards_are_recorded_and_resumed_runs_append() {
    let world = World::with_teacher();
    let prometheus = "output.prometheus=softshard.prom";
    world.run("teacher-labels", &[prometheus]).succeeded();
    let lines =
        fs::read_to_string(world.path("run/metrics/teacher-labels.jsonl")).expect("metrics are there");
    let shards = ["train", "valid"].map(|split| lines.matches(&format!(r#""split":"{split}""#)).count());
    assert_eq!(shards, [6, 2], "{lines}");
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
