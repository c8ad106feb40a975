//! Killed at any moment, run again: nothing is lost and nothing differs.

use std::{
    fs,
    path::Path,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use softshard_e2e::{World, assert_same_files};

/// Starts a stage and kills it when `due`; it must not be done by then.
fn kill_when(mut command: Command, due: impl Fn() -> bool) {
    let mut child = command.spawn().expect("the binary starts");
    wait_until(due);
    child.kill().expect("SIGKILL is sent");
    assert!(child.wait().expect("the child ends").code().is_none(), "done before it was killed");
}

/// Looks every millisecond, for a minute at most.
fn wait_until(due: impl Fn() -> bool) {
    let began = Instant::now();
    while !due() {
        assert!(began.elapsed() < Duration::from_secs(60), "what was waited for never came");
        thread::sleep(Duration::from_millis(1));
    }
}

/// Whether a run has written that many lines of metrics.
fn has_lines(metrics: &Path, lines: usize) -> bool {
    fs::read_to_string(metrics).is_ok_and(|text| text.lines().count() >= lines)
}

/// Whether a folder holds that many entries.
fn has_entries(folder: &Path, entries: usize) -> bool {
    fs::read_dir(folder).is_ok_and(|found| found.count() >= entries)
}

#[test]
fn killed_teachers_leave_the_same_dataset() {
    let world = World::with_teacher();
    let shards = "labels.sequences_per_shard=2";
    world.run("teacher-labels", &[shards]).succeeded();
    let expected = world.dataset("run/labels");
    assert!(expected.len() > 60, "manifests, plans, commits and shards: {}", expected.len());
    for shards_done in [0, 1, 7, 16] {
        let output = format!("output.labels=killed-{shards_done}");
        let commits = world.path(&format!("run/killed-{shards_done}/train/_softshard/commits"));
        let stage = || world.stage("teacher-labels", &[shards, &output]);
        kill_when(stage(), || has_entries(&commits, shards_done));
        // Again, in the resumed run.
        kill_when(stage(), || has_entries(&commits, shards_done + 3));
        world.run("teacher-labels", &[shards, &output]).succeeded();
        let found = world.dataset(&format!("run/killed-{shards_done}"));
        assert_same_files(&found, &expected, &format!("killed after {shards_done} shards"));
    }
}

#[test]
fn a_finished_dataset_is_left_as_it_is() {
    let world = World::with_teacher();
    world.run("teacher-labels", &[]).succeeded();
    let expected = world.files("run/labels");
    let said = world.run("teacher-labels", &[]).succeeded();
    assert!(said.stdout.contains("6 there before"), "{}", said.stdout);
    assert!(world.files("run/labels") == expected, "a file differs");
}

#[test]
fn a_killed_student_resumes_to_the_same_curve() {
    let world = World::labelled();
    let epochs = "student.epochs=6";
    world.run("train-student", &[epochs]).succeeded();
    // Behind the checkpoint of step 3, and between others.
    for (quarter, lines) in [(1, 4), (2, 5), (3, 11)] {
        let output = format!("output.student=killed-{quarter}");
        let metrics = world.path(&format!("run/killed-{quarter}/metrics.jsonl"));
        kill_when(world.stage("train-student", &[epochs, &output]), || has_lines(&metrics, lines));
        let said = world.run("train-student", &[epochs, &output]).succeeded();
        assert!(said.stderr.contains("resumed from a checkpoint"), "{}", said.stderr);
        assert_eq!(world.curve(&format!("killed-{quarter}")), world.curve("student"));
        let adapter = |output: &str| fs::read(world.path(output).join("adapter/adapter_model.safetensors"));
        assert!(
            adapter(&format!("run/killed-{quarter}")).expect("an adapter")
                == adapter("run/student").expect("an adapter"),
            "the adapters differ"
        );
    }
}

#[test]
fn sigterm_stops_at_a_boundary_with_75() {
    let world = World::labelled();
    let endless = ["student.epochs=2000", "student.checkpoint_every_steps=0"];
    let mut child = world.stage("train-student", &endless).spawn().expect("the binary starts");
    wait_until(|| has_lines(&world.path("run/student/metrics.jsonl"), 3));
    world.run("train-student", &endless).failed(1, &["expected no other run there, found one at work"]);
    let id = child.id().to_string();
    assert!(Command::new("kill").args(["-TERM", &id]).status().expect("kill runs").success());
    assert_eq!(child.wait().expect("the child ends").code(), Some(75));
    let checkpoints = fs::read_dir(world.path("run/student/checkpoints")).expect("a checkpoint").count();
    assert_eq!(checkpoints, 1);
}

#[test]
fn a_teacher_told_to_stop_does_so_at_a_shard_with_75() {
    let world = World::with_teacher();
    let one = "labels.sequences_per_shard=1";
    let mut child = world.stage("teacher-labels", &[one]).spawn().expect("the binary starts");
    let commits = world.path("run/labels/train/_softshard/commits");
    wait_until(|| has_entries(&commits, 1));
    let id = child.id().to_string();
    assert!(Command::new("kill").args(["-TERM", &id]).status().expect("kill runs").success());
    assert_eq!(child.wait().expect("the child ends").code(), Some(75));
    assert!(!world.path("run/labels/train/manifest.json").exists());
    world.run("teacher-labels", &[one]).succeeded();
}
