//! Power cuts: what an ext4 file system had sent to its disk is all that remains.
//!
//! The disk is a file. A labelling run is killed at a system call, and the file copied at once: what the kernel still
//! holds in memory is not in the copy, as after a power cut. The copy is mounted, which replays its journal.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use softshard_e2e::{Disk, Files, World, assert_same_files, may_trace, run};

/// Calls at which the power goes, and how often in a run.
const CUTS: [(&str, usize); 4] = [("fsync", 9), ("linkat", 5), ("write", 5), ("rename", 2)];

/// A world, the dataset that must come out of it, and empty disks for it.
struct Scene {
    world: World,
    expected: Files,
    /// How often a run calls what is cut.
    calls: Vec<(&'static str, usize)>,
}

/// What a run below strace did to the disk, and what it had been told is safe.
struct Cut {
    disk: PathBuf,
    /// Commits whose folder was synced.
    acknowledged: usize,
    is_finished: bool,
}

impl Scene {
    fn new() -> Option<Self> {
        if !may_trace() {
            return None;
        }
        let world = World::small();
        let empty = world.path("empty.ext4");
        let file = fs::File::create(&empty).expect("the disk is made");
        file.set_len(64 << 20).expect("the disk has room");
        let made = Command::new("mkfs.ext4").args(["-q", "-F"]).arg(&empty).output();
        if !made.is_ok_and(|made| made.status.success()) {
            softshard_e2e::skipped("there is no mkfs.ext4");
            return None;
        }
        drop(Disk::ext4(&empty, world.path("probe"))?);
        world.run("teacher-labels", &["output.labels=expected"]).succeeded();
        let expected = world.dataset("run/expected");
        let mut scene = Scene { world, expected, calls: Vec::new() };
        let whole = scene.labelled_until("whole", None);
        assert!(whole.is_finished, "an undisturbed run finishes");
        assert_eq!(whole.acknowledged, 6, "as many commits as shards");
        let trace = fs::read_to_string(scene.world.path("whole.trace")).expect("a trace");
        scene.calls = CUTS.map(|(call, _)| (call, most_of_a_thread(&trace, call))).into();
        Some(scene)
    }

    /// Labels on a disk of its own until `fault` happens; gives the disk as a power cut leaves it.
    fn labelled_until(&self, name: &str, fault: Option<String>) -> Cut {
        let (disk, cut) =
            (self.world.path(&format!("{name}.ext4")), self.world.path(&format!("{name}-cut.ext4")));
        copy(&self.world.path("empty.ext4"), &disk);
        let folder = self.world.path("run/power");
        let mounted = Disk::ext4(&disk, folder.clone()).expect("mounted before");
        let trace = self.world.path(&format!("{name}.trace"));
        let stage = self.world.stage("teacher-labels", &["output.labels=power"]);
        let mut strace = Command::new("strace");
        strace.args(["-f", "-y", "-qq", "-s", "8", "-o"]).arg(&trace);
        strace.args(["-e", "trace=write,fsync,linkat,rename"]);
        if let Some(fault) = fault {
            strace.args(["-e", &format!("inject={fault}")]);
        }
        let said = run(strace.arg(stage.get_program()).args(stage.get_args()));
        copy(&disk, &cut);
        drop(mounted);
        fs::remove_file(disk).expect("the disk is removed");
        let trace = fs::read_to_string(trace).expect("a trace");
        Cut { disk: cut, acknowledged: acknowledged(&trace), is_finished: said.code == 0 }
    }

    /// Mounts a disk after the cut and gives what is on it.
    fn found(&self, cut: &Cut) -> (Disk, Files) {
        let disk = Disk::ext4(&cut.disk, self.world.path("run/power")).expect("the journal is replayed");
        let mut found = self.world.dataset("run/power");
        found.retain(|(name, _)| !name.starts_with("lost+found"));
        (disk, found)
    }
}

/// Times that a sync of the folder of commits came back.
fn acknowledged(trace: &str) -> usize {
    let (mut waiting, mut count) = (BTreeSet::new(), 0);
    for line in trace.lines() {
        let Some((thread, call)) = line.split_once(' ') else { continue };
        let is_sync = call.contains("fsync(") && call.contains("/_softshard/commits>");
        // Another thread's call may stand between the halves of one.
        if is_sync && call.ends_with("<unfinished ...>") {
            waiting.insert(thread);
        } else if is_sync || call.contains("fsync resumed") && waiting.remove(thread) {
            count += usize::from(call.ends_with("= 0"));
        }
    }
    count
}

/// The most calls of one thread.
fn most_of_a_thread(trace: &str, call: &str) -> usize {
    let threads: BTreeSet<&str> = trace.lines().filter_map(|line| line.split(' ').next()).collect();
    let of =
        |thread: &&str| trace.lines().filter(|line| line.starts_with(*thread) && line.contains(call)).count();
    threads.iter().map(of).max().unwrap_or(0)
}

/// Copies a disk without filling its holes.
fn copy(from: &Path, to: &Path) {
    let copied = Command::new("cp").arg("--sparse=always").args([from, to]).status();
    assert!(copied.expect("cp runs").success());
}

fn commits(files: &Files) -> usize {
    files.iter().filter(|(name, _)| name.to_string_lossy().contains("_softshard/commits/")).count()
}

/// Covers power cuts at syncs, links, renames and writes of a labelling run: what was committed is there and whole, nothing
/// is half there under its name, and a resumed run ends with the same bytes.
#[test]
fn a_power_cut_at_any_time_loses_no_commit() {
    let Some(scene) = Scene::new() else { return };
    let mut cuts = 0;
    for ((call, wanted), (_, most)) in CUTS.iter().zip(&scene.calls) {
        let wanted = (*wanted).min(*most);
        for number in (1..=wanted).map(|step| step * most / wanted) {
            let after = format!("power cut at {call} {number} of {most}");
            let cut = scene.labelled_until("cut", Some(format!("{call}:signal=SIGKILL:when={number}")));
            let (disk, found) = scene.found(&cut);
            for (name, bytes) in &found {
                let text = name.to_string_lossy();
                let is_whole = scene.expected.iter().any(|(other, whole)| other == name && whole == bytes);
                assert!(
                    is_whole || text.contains("_softshard/tmp/"),
                    "{after}: {text} is not what it must be"
                );
            }
            assert!(
                commits(&found) >= cut.acknowledged,
                "{after}: {} commits of {}",
                commits(&found),
                cut.acknowledged
            );
            scene.world.run("teacher-labels", &["output.labels=power"]).succeeded();
            assert_same_files(&scene.world.dataset("run/power"), &scene.expected, &after);
            drop(disk);
            cuts += 1;
        }
    }
    eprintln!("{cuts} power cuts");

    // Whole at its end, and nothing was synced behind our back: a run whose syncs do nothing loses its dataset.
    let whole = scene.labelled_until("cut", None);
    let (disk, found) = scene.found(&whole);
    assert_same_files(&found, &scene.expected, "power cut behind the end");
    drop(disk);
    let unsynced = scene.labelled_until("cut", Some("fsync:retval=0".to_owned()));
    assert!(unsynced.is_finished);
    let (disk, found) = scene.found(&unsynced);
    assert_ne!(found, scene.expected, "without syncs a power cut loses labels, or this test cuts nothing");
    drop(disk);
}
