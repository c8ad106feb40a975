//! What a training survives: a kill at system calls of its checkpoints and in every shape of run, stops at any moment, a full disk.

use std::{
    fs,
    path::Path,
    process::{Child, Command},
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;
use softshard_e2e::{
    Disk, Files, World, assert_same_files, may_trace,
    strace::{CALLS, changing_calls, sample, traced},
};

/// What a run left behind: its curve, and all files but those that say when or how fast.
#[derive(Debug)]
struct Left {
    curve: Vec<Value>,
    files: Files,
}

impl Left {
    fn of(world: &World, output: &str) -> Self {
        let mut files = world.files(&format!("run/{output}"));
        files.retain(|(name, _)| {
            !(name.starts_with("tensorboard")
                || name.ends_with("metrics.jsonl")
                || name.ends_with("recipe.toml"))
        });
        for (_, bytes) in files.iter_mut().filter(|(name, _)| name.ends_with("state.json")) {
            let mut state: Value = serde_json::from_slice(bytes).expect("a state is JSON");
            // Lines say how long a step took, and have as many digits as that has.
            state.as_object_mut().expect("an object").remove("metrics_bytes").expect("it is there");
            *bytes = serde_json::to_vec(&state).expect("JSON is written");
        }
        Self { curve: world.curve(output), files }
    }

    #[track_caller]
    fn assert_same(&self, expected: &Self, after: &str) {
        assert!(!expected.curve.is_empty());
        assert_eq!(self.curve, expected.curve, "{after}");
        assert_same_files(&self.files, &expected.files, after);
    }
}

/// A stage that writes to `run/<output>`.
fn stage(world: &World, name: &str, overrides: &[&str], output: &str) -> Command {
    let key = if name == "finetune" { "teacher" } else { "student" };
    world.stage(name, &[overrides, &[&*format!("output.{key}={output}")]].concat())
}

#[track_caller]
fn finish(mut command: Command) -> softshard_e2e::Said {
    softshard_e2e::run(&mut command).succeeded()
}

fn lines_of(metrics: &Path) -> usize {
    fs::read_to_string(metrics).map_or(0, |text| text.lines().count())
}

/// Waits until a run is there, or has ended.
fn wait_until(child: &mut Child, there: impl Fn() -> bool) {
    let began = Instant::now();
    while !there() && child.try_wait().expect("its state").is_none() {
        assert!(began.elapsed() < Duration::from_secs(60), "it never came so far");
        thread::sleep(Duration::from_millis(1));
    }
}

/// A checkpoint at each of a few steps, of everything that one can hold; each takes the place of the one before.
const CHECKPOINTS: [&str; 7] = [
    "student.max_steps=3",
    "student.max_tokens_per_batch=256",
    "student.accumulate_batches=1",
    "student.checkpoint_every_steps=1",
    "student.keep_checkpoints=1",
    "student.ema_decay=0.9",
    r#"student.evaluation={ every_steps = 2, data = "run/labels/train" }"#,
];

/// Covers the files of a checkpoint, its name, the removal of the one before, and the adapter.
#[test]
fn a_kill_at_any_system_call_of_a_training_loses_nothing() {
    if !may_trace() {
        return;
    }
    let world = World::small_labelled();
    finish(stage(&world, "train-student", &CHECKPOINTS, "expected"));
    let expected = Left::of(&world, "expected");
    let (output, trace) = (world.path("run/killed"), world.path("trace"));
    let run = |calls: &str, fault: &str| {
        let _ = fs::remove_dir_all(&output);
        traced(&stage(&world, "train-student", &CHECKPOINTS, "killed"), &trace, calls, fault)
    };
    run(CALLS, "").succeeded();
    let calls = changing_calls(&fs::read_to_string(&trace).expect("a trace"), &output);
    let mut killed = 0;
    for (call, numbers) in &calls {
        for number in sample(numbers, 6) {
            let after = format!("killed at {call} {number} of {numbers:?}");
            let said = run(call, &format!("signal=SIGKILL:when={number}"));
            // Logs take a moment more or less, so the last call of a kind may not come.
            killed += usize::from(said.code == -1);
            finish(stage(&world, "train-student", &CHECKPOINTS, "killed"));
            Left::of(&world, "killed").assert_same(&expected, &after);
        }
    }
    eprintln!("killed {killed} times: {calls:?}");
    assert!(killed >= 20, "{killed}");
}

/// Covers packing, a mixture, averages, several devices, and Muon over a whole model.
#[test]
fn every_shape_of_run_goes_on_after_a_kill() {
    let world = World::labelled();
    let mixture = r#"student.mixture=[{ labels = "run/labels/train", weight = 0.5 }, { labels = "run/labels/valid", weight = 1.5 }]"#;
    let packed = ["student.packing=true", mixture, "student.ema_decay=0.9", "student.epochs=8"];
    let streamed = ["student.packing=true", "student.residency=streamed", "student.epochs=8"];
    let quantised = ["student.quantise=4", "student.checkpointing=layer", "student.epochs=8"];
    let muon = [
        "finetune.optimizer=muon",
        "finetune.ema_decay=0.9",
        "finetune.packing=true",
        "finetune.max_steps=20",
        "finetune.checkpoint_every_steps=3",
        "finetune.accumulate_batches=2",
        r#"finetune.evaluation={ every_steps = 4, export = "last" }"#,
    ];
    for (what, name, overrides, devices) in [
        ("packed", "train-student", &packed[..], "cpu"),
        ("devices", "train-student", &packed, "cpu,cpu"),
        ("streamed", "train-student", &streamed, "cpu"),
        ("quantised", "train-student", &quantised, "cpu"),
        ("muon", "finetune", &muon, "cpu"),
    ] {
        let on = |output: &str| {
            let mut command = stage(&world, name, overrides, output);
            command.args(["--device", devices]);
            command
        };
        let (whole, killed) = (format!("{what}-whole"), format!("{what}-killed"));
        finish(on(&whole));
        let metrics = world.path(&format!("run/{killed}/metrics.jsonl"));
        // Behind the first checkpoint, and behind the second one.
        let mut kills = 0;
        for lines in [5, 8] {
            let mut child = on(&killed).spawn().expect("the binary starts");
            wait_until(&mut child, || lines_of(&metrics) >= lines);
            child.kill().expect("SIGKILL is sent");
            kills += usize::from(child.wait().expect("it ends").code().is_none());
        }
        // A machine that is busy may let the second one end.
        assert!(kills > 0, "{what}: done before it was killed");
        let said = finish(on(&killed));
        assert!(kills < 2 || said.stderr.contains("resumed from a checkpoint"), "{what}: {}", said.stderr);
        Left::of(&world, &killed).assert_same(&Left::of(&world, &whole), what);
    }
}

/// Covers a stop before the first step, between steps, and during an evaluation, which is made when the run goes on.
#[test]
fn a_run_that_is_stopped_again_and_again_has_the_same_curve() {
    let world = World::labelled();
    let overrides = [
        "student.epochs=4",
        "student.keep_checkpoints=1",
        "student.evaluation={ every_steps = 1, patience = 50 }",
    ];
    finish(stage(&world, "train-student", &overrides, "expected"));
    let expected = Left::of(&world, "expected");
    let (folder, metrics) = (world.path("run/stopped"), world.path("run/stopped/metrics.jsonl"));
    let mut stops = 0;
    loop {
        let before = lines_of(&metrics);
        let mut child =
            stage(&world, "train-student", &overrides, "stopped").spawn().expect("the binary starts");
        if stops == 0 {
            wait_until(&mut child, || folder.join(".lock").exists());
        } else {
            // One line further than the last time, or two.
            wait_until(&mut child, || lines_of(&metrics) > before + stops % 2);
        }
        let told = if child.try_wait().expect("its state").is_none() {
            Some(Command::new("kill").args(["-TERM", &child.id().to_string()]).status())
        } else {
            None // it is done, and its number may be another's
        };
        match child.wait().expect("it ends").code() {
            Some(75) => stops += 1,
            code => {
                assert_eq!(code, Some(0), "{told:?}");
                break;
            }
        }
    }
    assert!(stops >= 3, "{stops}");
    eprintln!("stopped {stops} times");
    Left::of(&world, "stopped").assert_same(&expected, "stopped");
}

/// Covers a full disk at a line of metrics, a checkpoint and the adapter: named, and the run goes on where there is room.
#[test]
fn a_full_disk_ends_a_run_that_goes_on_when_there_is_room() {
    let world = World::small_labelled();
    finish(stage(&world, "train-student", &CHECKPOINTS, "expected"));
    let expected = Left::of(&world, "expected");
    let output = world.path("run/full");
    let mut failed = 0;
    // Pages of 4 KB.
    for pages in [1, 4, 6, 8, 9, 10, 11, 12, 13, 14, 15, 16, 18, 20] {
        let after = format!("a disk of {pages} pages");
        let Some(_disk) = Disk::mount(output.clone(), &format!("size={}k", 4 * pages)) else { return };
        let said = softshard_e2e::run(&mut stage(&world, "train-student", &CHECKPOINTS, "full"));
        if said.code != 0 {
            failed += 1;
            said.failed(1, &["No space left on device", "run/full"]);
            assert!(
                !output.join("checkpoints/.writing").exists(),
                "{after}: half a checkpoint takes the room"
            );
        }
        let larger = Command::new("mount").args(["-o", "remount,size=16m"]).arg(&output).status();
        assert!(larger.expect("mount runs").success());
        finish(stage(&world, "train-student", &CHECKPOINTS, "full"));
        Left::of(&world, "full").assert_same(&expected, &after);
    }
    eprintln!("{failed} disks were too small");
    assert!(failed >= 4, "{failed}");
}

/// Covers an output that cannot be written: said before a model is loaded, as one that cannot be loaded shows.
#[test]
fn a_read_only_output_fails_before_the_model_loads() {
    let world = World::small_labelled();
    fs::write(world.path("start/model/model.safetensors"), "no weights").expect("the model is broken");
    let run = || softshard_e2e::run(&mut stage(&world, "train-student", &[], "read-only"));
    let Some(disk) = Disk::mount(world.path("run/read-only"), "ro") else { return };
    run().failed(1, &["run/read-only", "Read-only file system"]);
    drop(disk);
    run().failed(3, &["model.safetensors"]);
}
