//! `prepare` and `evaluate` killed at system calls, or told to stop there: what stands is whole, and run again they make what they would
//! have made.

use std::{collections::BTreeSet, fs, path::Path, process::Command};

use softshard_e2e::{
    Files, World, assert_same_files, may_trace,
    strace::{CALLS, changing_calls, sample, traced},
};

const SPLITS: [&str; 3] = ["train", "valid", "test"];

/// Puts files where others may be.
fn put(folder: &Path, files: &Files) {
    let _ = fs::remove_dir_all(folder);
    for (name, bytes) in files {
        let path = folder.join(name);
        fs::create_dir_all(path.parent().expect("a folder")).expect("a folder is made");
        fs::write(path, bytes).expect("a file is written");
    }
}

/// Every few calls of a kind at which a stage changes what is below `output`, found by a run that nothing happens to.
fn calls(stage: &Command, trace: &Path, output: &Path, most: usize) -> Vec<(String, usize)> {
    traced(stage, trace, CALLS, "").succeeded();
    let found = changing_calls(&fs::read_to_string(trace).expect("a trace"), output);
    let sampled = |(call, numbers): &(String, Vec<usize>)| -> Vec<(String, usize)> {
        sample(numbers, most).into_iter().map(|number| (call.clone(), number)).collect()
    };
    found.iter().flat_map(sampled).collect()
}

/// The content of one side's files, but for those that are being written.
fn side(files: &Files, split: &str) -> Files {
    let is_of = |name: &Path| name.starts_with(split) && !name.starts_with(format!("{split}/_softshard"));
    files.iter().filter(|(name, _)| is_of(name)).cloned().collect()
}

fn manifest<'a>(files: &'a Files, split: &str) -> Option<&'a [u8]> {
    let path = Path::new(split).join("manifest.json");
    files.iter().find(|(name, _)| *name == path).map(|(_, bytes)| bytes.as_slice())
}

/// A side that has a manifest is whole, of the run before or of this one; and where `train` is, all are of its run.
#[track_caller]
fn assert_believable(found: &Files, runs: [&Files; 2], after: &str) {
    for split in SPLITS {
        let Some(bytes) = manifest(found, split) else { continue };
        let of = runs.iter().find(|run| manifest(run, split) == Some(bytes));
        let of = of.unwrap_or_else(|| panic!("{after}: a manifest of {split} that no run makes"));
        for (name, bytes) in side(of, split) {
            assert!(found.contains(&(name.clone(), bytes)), "{after}: {}", name.display());
        }
    }
    if let Some(train) = manifest(found, "train") {
        let of = runs.iter().find(|run| manifest(run, "train") == Some(train)).expect("found above");
        for split in SPLITS {
            assert_eq!(manifest(found, split), manifest(of, split), "{after}: {split} is of another run");
        }
    }
}

/// Covers the first preparation, one over another, and one that leaves a side of the one before out.
#[test]
fn a_kill_at_any_system_call_of_prepare_leaves_whole_sides_of_one_run() {
    if !may_trace() {
        return;
    }
    let world = World::new();
    let (output, trace) = (world.path("run/sequences"), world.path("trace"));
    let made = |overrides: &[&str]| -> Files {
        let _ = fs::remove_dir_all(&output);
        world.run("prepare", overrides).succeeded();
        world.files("run/sequences")
    };
    let small = "data.sequences_per_shard=25";
    let three = ["data.split={ valid_rows = 20, test_rows = 30, seed = 3 }", small];
    let two = ["data.split={ valid_rows = 12, seed = 1 }", small];
    let (of_three, of_two) = (made(&three), made(&two));
    let mut killed = 0;
    for (before, overrides, expected, most) in [
        (&Files::new(), &three, &of_three, 3),
        (&of_two, &three, &of_three, 3),
        (&of_three, &two, &of_two, 6),
    ] {
        let stage = world.stage("prepare", overrides);
        put(&output, before);
        for (call, number) in calls(&stage, &trace, &output, most) {
            let after = format!("killed at {call} {number}");
            put(&output, before);
            let said = traced(&stage, &trace, &call, &format!("signal=SIGKILL:when={number}"));
            killed += usize::from(said.code == -1);
            if output.exists() {
                assert_believable(&world.files("run/sequences"), [before, expected], &after);
            }
            world.run("prepare", overrides).succeeded();
            assert_same_files(&world.files("run/sequences"), expected, &after);
        }
    }
    eprintln!("killed {killed} times");
    assert!(killed >= 60, "{killed}");
}

/// Covers a stop before anything is written, among shards, and when it is too late: then all is done.
#[test]
fn a_prepare_that_is_told_to_stop_changes_nothing_or_all() {
    if !may_trace() {
        return;
    }
    let world = World::new();
    let (output, trace) = (world.path("run/sequences"), world.path("trace"));
    world.run("prepare", &[]).succeeded();
    let before = world.files("run/sequences");
    let overrides = ["data.split.seed=7", "data.sequences_per_shard=25"];
    let stage = world.stage("prepare", &overrides);
    let calls = calls(&stage, &trace, &output, 4);
    put(&output, &before);
    world.run("prepare", &overrides).succeeded();
    let expected = world.files("run/sequences");
    let mut codes = BTreeSet::new();
    for (call, number) in calls {
        let after = format!("told at {call} {number}");
        put(&output, &before);
        let said = traced(&stage, &trace, &call, &format!("signal=SIGTERM:when={number}"));
        codes.insert(said.code);
        let mut found = world.files("run/sequences");
        // Folders for what is being written stay until the next run.
        found.retain(|(name, _)| !name.components().any(|part| part.as_os_str() == "_softshard"));
        match said.code {
            75 => assert_same_files(&found, &before, &after),
            code => {
                assert_eq!(code, 0, "{after}: {}", said.stderr);
                assert_same_files(&found, &expected, &after);
            }
        }
    }
    assert_eq!(codes, BTreeSet::from([0, 75]));
}

/// 70 rows that are reported, which are answered in two parts, and a model that knows nothing.
fn evaluated() -> World {
    let world = World::new();
    let split = "data.split={ test_rows = 70, seed = 1 }";
    for stage in ["prepare", "finetune", "teacher-labels"] {
        world.run(stage, &[split, "finetune.max_steps=2"]).succeeded();
    }
    let recipe = fs::read_to_string(world.path("recipe.toml")).expect("a recipe");
    let recipe =
        recipe.replace("{ valid_rows = 12, test_rows = 12, seed = 1 }", "{ test_rows = 70, seed = 1 }");
    fs::write(world.path("recipe.toml"), recipe).expect("the recipe is written");
    world
}

const EVALUATE: [&str; 4] = [
    "evaluate.model=run/teacher/model",
    "evaluate.max_answers=70",
    "evaluate.max_tokens_per_batch=700",
    "evaluate.name=result",
];
const OTHER: &str = "evaluate.max_new_tokens=3";

/// Covers every part, the result and its answers, and a result that was there before.
#[test]
fn a_kill_at_any_system_call_of_evaluate_loses_no_part_and_leaves_no_half_result() {
    if !may_trace() {
        return;
    }
    let world = evaluated();
    let (output, trace) = (world.path("run/evaluations"), world.path("trace"));
    let made = |overrides: &[&str]| -> Files {
        let _ = fs::remove_dir_all(&output);
        world.run("evaluate", overrides).succeeded();
        world.files("run/evaluations")
    };
    let (before, expected) = (made(&[&EVALUATE[..], &[OTHER]].concat()), made(&EVALUATE));
    assert_eq!((before.len(), expected.len()), (2, 2));
    assert!(before[0] != expected[0] && before[1] != expected[1], "other answers, another result");
    let stage = world.stage("evaluate", &EVALUATE);
    let (mut killed, mut resumed) = (0, 0);
    put(&output, &before);
    for (call, number) in calls(&stage, &trace, &output, 7) {
        let after = format!("killed at {call} {number}");
        put(&output, &before);
        let said = traced(&stage, &trace, &call, &format!("signal=SIGKILL:when={number}"));
        killed += usize::from(said.code == -1);
        let found = world.files("run/evaluations");
        let result = found.iter().find(|(name, _)| name.ends_with("result/held_out.json"));
        if let Some(result) = result {
            let of = if before.contains(result) { &before } else { &expected };
            assert!(of.iter().all(|file| found.contains(file)), "{after}: a result beside other answers");
        }
        let said = world.run("evaluate", &EVALUATE).succeeded();
        resumed += usize::from(said.stderr.contains("goes on behind"));
        assert_same_files(&world.files("run/evaluations"), &expected, &after);
    }
    eprintln!("killed {killed} times, {resumed} of them behind a part");
    assert!(killed >= 25 && resumed >= 10, "{killed}, {resumed}");
}

/// Covers a stop behind some parts, and parts of something else, which are said and left out.
#[test]
fn an_evaluation_that_is_told_to_stop_goes_on_and_no_other_takes_its_parts() {
    if !may_trace() {
        return;
    }
    let world = evaluated();
    world.run("evaluate", &EVALUATE).succeeded();
    let expected = world.files("run/evaluations");
    let others = [&EVALUATE[..], &[OTHER]].concat();
    fs::remove_dir_all(world.path("run/evaluations")).expect("it is removed");
    world.run("evaluate", &others).succeeded();
    let expected_of_others = world.files("run/evaluations");
    let told = |number: usize| {
        let _ = fs::remove_dir_all(world.path("run/evaluations"));
        let stage = world.stage("evaluate", &EVALUATE);
        let stop = format!("signal=SIGTERM:when={number}");
        let said = traced(&stage, &world.path("trace"), "fdatasync", &stop);
        assert_eq!(said.code, 75, "{}", said.stderr);
        let left = world.files("run/evaluations");
        assert_eq!(left.len(), 1, "the parts alone: {left:?}");
        assert!(left[0].0.ends_with("result/held_out.partial"), "{left:?}");
    };
    for number in [1, 2, 4] {
        told(number);
        let said = world.run("evaluate", &EVALUATE).succeeded().stderr;
        // The flag is set by another thread, perhaps behind one part more.
        assert!(number == 1 || said.contains("goes on behind "), "{said}");
        assert_same_files(&world.files("run/evaluations"), &expected, "told to stop");
    }
    told(4);
    let said = world.run("evaluate", &others).succeeded().stderr;
    let why = "parts of another evaluation are left out: evaluate.max_new_tokens: expected 3, found 8";
    assert!(said.contains(why) && !said.contains("goes on behind"), "{said}");
    assert_same_files(&world.files("run/evaluations"), &expected_of_others, "of something else");
}
