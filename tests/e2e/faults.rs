//! What a labelling run survives: a kill and an error at every kind of system call, a second writer, a disk it cannot write.
//!
//! Calls are counted by thread, as strace counts them for `when=`. A fresh run has more shards than its start has calls of a
//! kind, so the thread that writes shards is hit too; the calls of the end are hit in a run that finds all shards there.

use std::{
    collections::{BTreeSet, HashMap},
    fs,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use softshard_e2e::{
    Disk, Files, Said, World, assert_same_files, may_trace,
    strace::{CALLS, changing_calls, sample, traced},
};

/// Those for which a disk answers with an error.
const FAILING: [&str; 9] =
    ["write", "fsync", "fdatasync", "linkat", "rename", "renameat", "openat", "mkdir", "mkdirat"];

/// How a labelling run starts.
#[derive(Clone, Copy, Debug)]
enum Start {
    /// With nothing.
    Fresh,
    /// With all shards committed, but neither card nor manifest, and with leftovers of others.
    Unfinished,
}

/// A world, the dataset that must come out of it, and how runs in it start.
struct Scene {
    world: World,
    expected: Files,
    start: Start,
}

impl Scene {
    fn new(start: Start) -> Self {
        let world = World::small();
        world.run("teacher-labels", &["output.labels=expected"]).succeeded();
        let expected = world.dataset("run/expected");
        assert_eq!(expected.len(), 6 + 6 + 3, "shards, their commits, plan, card and manifest");
        Scene { world, expected, start }
    }

    /// Prepares an output folder and gives its place.
    fn output(&self, name: &str) -> PathBuf {
        let output = self.world.path("run").join(name);
        if let Start::Unfinished = self.start {
            let copied =
                Command::new("cp").arg("-a").arg(self.world.path("run/expected")).arg(&output).status();
            assert!(copied.expect("cp runs").success());
            for file in ["train/manifest.json", "train/README.md"] {
                fs::remove_file(output.join(file)).expect("the file is removed");
            }
            for file in
                ["_softshard/tmp/of-another-machine", "data/labels-00000-of-00006-000000000000.parquet"]
            {
                fs::write(output.join("train").join(file), "left over").expect("a leftover is written");
            }
        }
        output
    }

    /// Labels below strace; the `calls` go to `<name>.trace`, and `fault` happens.
    fn traced(&self, name: &str, calls: &str, fault: &str) -> Said {
        let stage = self.world.stage("teacher-labels", &[&format!("output.labels={name}")]);
        traced(&stage, &self.trace(name), calls, fault)
    }

    fn trace(&self, name: &str) -> PathBuf {
        self.world.path(name).with_extension("trace")
    }

    /// For each system call, which of its calls in an undisturbed run change the output: at most `most`, evenly chosen.
    fn calls(&self, most: usize) -> Vec<(String, usize)> {
        let output = self.output("undisturbed");
        self.traced("undisturbed", CALLS, "").succeeded();
        assert_same_files(&self.world.dataset("run/undisturbed"), &self.expected, "traced");
        let trace = fs::read_to_string(self.trace("undisturbed")).expect("a trace");
        let calls = changing_calls(&trace, &output);
        calls
            .into_iter()
            .flat_map(|(call, numbers)| sample(&numbers, most).into_iter().map(move |n| (call.clone(), n)))
            .collect()
    }

    /// Resumes, and compares with what must come out.
    fn resume(&self, name: &str, after: &str) {
        if self.world.path("run").join(name).exists() {
            assert_sound(&self.world.dataset(&format!("run/{name}")), &self.expected, after);
        }
        self.world.run("teacher-labels", &[&format!("output.labels={name}")]).succeeded();
        assert_same_files(&self.world.dataset(&format!("run/{name}")), &self.expected, after);
        fs::remove_dir_all(self.world.path("run").join(name)).expect("the output is removed");
    }
}

/// Whatever has its final name is whole, and no commit is without its shard.
fn assert_sound(found: &Files, expected: &Files, after: &str) {
    let there = |path: &Path| found.iter().any(|(name, _)| name == path);
    for (name, bytes) in found {
        let text = name.to_string_lossy();
        if text.contains("_softshard/tmp/") || text.contains("-000000000000") {
            continue;
        }
        assert!(expected.contains(&(name.clone(), bytes.clone())), "{after}: {text} is not what it must be");
        if text.contains("_softshard/commits/") {
            let commit: serde_json::Value = serde_json::from_slice(bytes).expect("a commit is JSON");
            let file = commit["record"]["file"].as_str().expect("a commit names its file");
            assert!(there(&Path::new("train/data").join(file)), "{after}: {text} has no {file}");
        }
    }
    let commits = found.iter().filter(|(name, _)| name.to_string_lossy().contains("commits/")).count();
    assert!(
        !there(Path::new("train/manifest.json")) || commits == 6,
        "{after}: a manifest of {commits} commits"
    );
}

/// A sync that failed is never asked for again: the kernel would say "fine".
fn assert_not_tried_again(trace: &str, after: &str) {
    let mut syncs = trace.lines().skip_while(|line| !line.contains("(INJECTED)"));
    let path = |line: &str| line.split(['<', '>']).nth(1).map(str::to_owned);
    let failed = syncs.next().and_then(path).unwrap_or_else(|| panic!("{after}: no sync failed in {trace}"));
    let again = syncs.find(|line| line.contains(&failed) && !line.contains("(INJECTED)"));
    assert_eq!(again, None, "{after}: synced again");
}

/// Kills runs at calls of every kind, and resumes them.
fn kill_everywhere(start: Start, most: usize) {
    if !may_trace() {
        return;
    }
    let scene = Scene::new(start);
    let calls = scene.calls(most);
    let kinds: BTreeSet<&str> = calls.iter().map(|(call, _)| &call[..4]).collect();
    assert_eq!(kinds, BTreeSet::from(["fsyn", "link", "mkdi", "open", "rena", "unli", "writ"]));
    for (call, number) in &calls {
        let (name, after) = (format!("{call}-{number}"), format!("killed at {call} {number}"));
        scene.output(&name);
        let said = scene.traced(&name, call, &format!("signal=SIGKILL:when={number}"));
        assert_eq!(said.code, -1, "{after}: {said:?}");
        scene.resume(&name, &after);
    }
    eprintln!("killed at {} calls: {calls:?}", calls.len());
}

/// Covers the folders, the plan and every shard up to its commit.
#[test]
fn a_kill_at_any_system_call_of_labelling_loses_nothing() {
    kill_everywhere(Start::Fresh, 12);
}

/// Covers resuming, the removal of leftovers, the card and the manifest.
#[test]
fn a_kill_at_any_system_call_of_finishing_loses_nothing() {
    kill_everywhere(Start::Unfinished, 6);
}

/// Makes calls of every kind fail, and resumes.
fn fail_everywhere(start: Start, most: usize) {
    if !may_trace() {
        return;
    }
    let scene = Scene::new(start);
    let mut calls = scene.calls(most);
    calls.retain(|(call, _)| FAILING.contains(&call.as_str()));
    let errors = [("ENOSPC", "No space left on device"), ("EIO", "Input/output error")];
    for ((call, number), (error, text)) in calls.iter().zip(errors.into_iter().cycle()) {
        let (name, after) = (format!("{error}-{call}-{number}"), format!("{error} at {call} {number}"));
        let output = scene.output(&name);
        let said = scene.traced(&name, call, &format!("error={error}:when={number}"));
        let output = output.to_str().expect("a path of ASCII");
        if call == "write" && !said.stderr.contains("error: ") {
            // The main thread's call of this number was the message itself: the exit code alone tells.
            assert_eq!(said.code, 1, "{after}: {said:?}");
        } else {
            said.failed(1, &[text, output]);
        }
        if call == "fsync" {
            assert_not_tried_again(&fs::read_to_string(scene.trace(&name)).expect("a trace"), &after);
        }
        scene.resume(&name, &after);
    }
    eprintln!("failed at {} calls: {calls:?}", calls.len());
}

/// Covers ENOSPC and EIO from write, fsync and link, up to the commits.
#[test]
fn an_error_at_any_system_call_of_labelling_is_named_and_commits_nothing() {
    fail_everywhere(Start::Fresh, 13);
}

/// Covers ENOSPC and EIO from write, fsync, link and rename, up to the manifest.
#[test]
fn an_error_at_any_system_call_of_finishing_is_named() {
    fail_everywhere(Start::Unfinished, 6);
}

/// Covers files that cannot be removed: a leftover is a warning, and the end of a run that must remove one an error.
#[test]
fn an_error_at_any_unlink_leaves_a_sound_dataset() {
    if !may_trace() {
        return;
    }
    for start in [Start::Fresh, Start::Unfinished] {
        let scene = Scene::new(start);
        let mut calls = scene.calls(5);
        calls.retain(|(call, _)| call.starts_with("unlink"));
        assert!(calls.len() > 1, "{calls:?}");
        for (call, number) in &calls {
            let (name, after) = (format!("{call}-{number}"), format!("EIO at {call} {number}"));
            scene.output(&name);
            let said = scene.traced(&name, call, &format!("error=EIO:when={number}"));
            assert!(matches!(said.code, 0 | 1), "{after}: {said:?}");
            assert!(said.stderr.contains("Input/output error"), "{after}: {said:?}");
            scene.resume(&name, &after);
        }
        eprintln!("failed at {} calls: {calls:?}", calls.len());
    }
}

/// Covers writes that stop half way, and files that cannot be made, on the main thread and the one that writes: wherever a disk
/// is full, nothing is committed half.
#[test]
fn a_short_write_is_never_a_short_file() {
    let scene = Scene::new(Start::Fresh);
    let (output, mut failed) = (scene.world.path("run/short"), 0);
    let sizes = (6..30).map(|pages| format!("size={}k", 4 * pages));
    let numbers = (6..30).map(|files| format!("size=16m,nr_inodes={files}"));
    for limit in sizes.chain(numbers) {
        let after = format!("a disk of {limit}");
        let Some(_disk) = Disk::mount(output.clone(), &limit) else { return };
        let said = scene.world.run("teacher-labels", &["output.labels=short"]);
        if said.code != 0 {
            failed += 1;
            let place = output.to_str().expect("a path of ASCII");
            said.failed(1, &["No space left on device", place]);
        }
        assert_sound(&scene.world.dataset("run/short"), &scene.expected, &after);
        let larger =
            Command::new("mount").args(["-o", "remount,size=16m,nr_inodes=1000"]).arg(&output).status();
        assert!(larger.expect("mount runs").success());
        scene.world.run("teacher-labels", &["output.labels=short"]).succeeded();
        assert_same_files(&scene.world.dataset("run/short"), &scene.expected, &after);
    }
    assert!(failed > 20, "{failed} disks were too small");
}

/// Covers a disk that says it wrote what it did not: a shard is read back before it is committed.
#[test]
fn a_write_that_never_happened_is_found_before_the_commit() {
    if !may_trace() {
        return;
    }
    let scene = Scene::new(Start::Fresh);
    let output = scene.output("undisturbed");
    scene.traced("undisturbed", "write", "").succeeded();
    let trace = fs::read_to_string(scene.trace("undisturbed")).expect("a trace");
    // Those of the data, which are larger than the plan, a commit and the card.
    let calls = changing_calls(&trace, &output);
    let (_, numbers) = calls.iter().find(|(call, _)| call == "write").expect("files are written");
    let mut refused = 0;
    for number in sample(numbers, 12) {
        let (name, after) = (format!("lost-{number}"), format!("write {number} is lost"));
        // As many bytes as it was asked for are not known here: one is claimed, and none written.
        let said = scene.traced(&name, "write", &format!("retval=1:when={number}"));
        refused += usize::from(said.code != 0);
        for (path, bytes) in &scene.world.files(&format!("run/{name}")) {
            let is_data = path.to_string_lossy().contains("/data/");
            let whole = || scene.expected.contains(&(path.clone(), bytes.clone()));
            assert!(!is_data || whole(), "{after}: {} is not what it must be", path.display());
        }
        fs::remove_dir_all(scene.world.path("run").join(&name)).expect("the output is removed");
    }
    assert!(refused > 6, "{refused} runs ended with an error");
}

/// Covers races for the plan, for every commit and for the end; the later the second starts, the later they meet.
#[test]
fn two_writers_leave_one_dataset() {
    let scene = Scene::new(Start::Fresh);
    for round in 0..16 {
        let name = format!("two-{round}");
        let output = format!("output.labels={name}");
        let writers = [0, round].map(|tens| {
            thread::sleep(Duration::from_millis(tens * 10));
            scene.world.stage("teacher-labels", &[&output]).spawn().expect("the binary starts")
        });
        for writer in writers {
            let ended = writer.wait_with_output().expect("a writer ends");
            assert!(ended.status.success(), "round {round}: {}", String::from_utf8_lossy(&ended.stderr));
        }
        assert_same_files(&scene.world.dataset(&format!("run/{name}")), &scene.expected, &name);
    }
}

/// Covers a writer that stands still before it links its plan or a shard, links a commit, or renames card or manifest, while
/// another one finishes and clears all temporary files: it still ends well.
#[test]
fn a_slow_writer_survives_that_another_finishes() {
    /// Microseconds: many times as long as the other run takes.
    const DELAY: u32 = 8_000_000;
    if !may_trace() {
        return;
    }
    let scene = Scene::new(Start::Fresh);
    let slow = &|(call, number): (&str, usize)| {
        let name = format!("slow-{call}-{number}");
        thread::scope(|scope| {
            let writer = scope.spawn(|| {
                let said = scene.traced(&name, call, &format!("delay_enter={DELAY}:when={number}"));
                (said, Instant::now())
            });
            wait_for_delay(&scene.trace(&name), call, number);
            scene.world.run("teacher-labels", &[&format!("output.labels={name}")]).succeeded();
            let other_ended = Instant::now();
            let (said, ended) = writer.join().expect("the slow writer was started");
            said.succeeded();
            assert!(other_ended < ended, "{name}: the other run ended after the slow one: raise DELAY");
        });
        assert_same_files(&scene.world.dataset(&format!("run/{name}")), &scene.expected, &name);
    };
    thread::scope(|scope| {
        for place in [("linkat", 1), ("linkat", 2), ("rename", 1), ("rename", 2)] {
            scope.spawn(move || slow(place));
        }
    });
}

/// Returns when a thread is inside of the call that is delayed: strace writes its line before it waits.
fn wait_for_delay(trace: &Path, call: &str, number: usize) {
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(60) {
        let lines = fs::read_to_string(trace).unwrap_or_default();
        let mut counts: HashMap<&str, usize> = HashMap::new();
        for line in lines.lines() {
            let Some((thread, rest)) = line.split_once(' ') else { continue };
            if rest.trim_start().starts_with(&format!("{call}(")) {
                *counts.entry(thread).or_default() += 1;
            }
        }
        if counts.values().any(|count| *count >= number) {
            return;
        }
        thread::sleep(Duration::from_millis(20));
    }
    panic!("{}: no {call} number {number} within a minute", trace.display());
}

/// Covers an output that cannot be written: refused before a teacher is loaded, as one that cannot be loaded shows.
#[test]
fn a_read_only_output_fails_before_the_teacher_loads() {
    let world = World::small();
    fs::write(world.path("run/teacher/model/model.safetensors"), "no weights")
        .expect("the teacher is broken");
    for folder in ["run/labels/train", "run/labels"] {
        let Some(disk) = Disk::mount(world.path(folder), "ro") else { return };
        world.run("teacher-labels", &[]).failed(1, &[folder, "Read-only file system"]);
        drop(disk);
        world.run("teacher-labels", &[]).failed(3, &["model.safetensors"]);
        fs::remove_dir_all(world.path("run/labels")).expect("the output is removed");
    }
}
