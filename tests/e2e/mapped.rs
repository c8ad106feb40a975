//! Label files that change under a reader: mapped ones end the process with a diagnosis, read ones are an error.

use std::{
    ffi::OsStr,
    fs,
    path::{Path, PathBuf},
    process::{Child, Command},
    thread,
    time::{Duration, Instant},
};

use softshard_e2e::{Said, World, command, may_trace, run, skipped};

/// `f_type` of NFS, little-endian: what `statfs` of a network file system writes first.
const NFS: &str = "6969000000000000";

fn metrics_lines(world: &World, output: &str) -> usize {
    let metrics = world.path(&format!("run/{output}/metrics.jsonl"));
    fs::read_to_string(metrics).map_or(0, |text| text.lines().count())
}

/// Waits until a run has written that many lines of metrics.
fn wait_for_lines(world: &World, output: &str, lines: usize) {
    let began = Instant::now();
    while metrics_lines(world, output) < lines {
        assert!(began.elapsed() < Duration::from_secs(120), "{lines} lines of metrics never came");
        thread::sleep(Duration::from_millis(2));
    }
}

fn said(child: Child) -> Said {
    Said::new(&child.wait_with_output().expect("the child ends"))
}

/// The files of the labels, in order.
fn shards(labels: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(labels.join("data")).expect("shards are there");
    let mut shards: Vec<PathBuf> = entries.map(|entry| entry.expect("an entry").path()).collect();
    shards.sort();
    shards
}

/// Covers a shard that somebody cuts short while a student reads it, mapped and read: the run ends with the shard's name and
/// exit 3, and goes on from its checkpoint when the shard is back.
#[test]
fn a_shard_cut_while_it_is_in_use_is_diagnosed_and_costs_no_checkpoint() {
    let world = World::labelled();
    // More row groups than are kept in memory, so that every epoch reads shards again.
    let labels = ["labels.sequences_per_shard=2", "output.labels=many"];
    world.run("teacher-labels", &labels).succeeded();
    let shards = shards(&world.path("run/many/train"));
    assert!(shards.len() > 20, "{}", shards.len());
    for (switch, diagnosis) in
        [(None, "the file was cut short"), (Some("--no-mmap"), "it was cut while it was read")]
    {
        let output = switch.map_or("mapped", |_| "read");
        let student = format!("output.student={output}");
        let stage = || {
            let mut stage = world.stage("train-student", &["student.epochs=2000", labels[1], &student]);
            stage.args(switch);
            stage
        };
        let child = stage().spawn().expect("the binary starts");
        wait_for_lines(&world, output, 4); // behind the first checkpoint
        let bytes: Vec<Vec<u8>> = shards.iter().map(|path| fs::read(path).expect("a shard")).collect();
        for path in &shards[5..15] {
            fs::OpenOptions::new()
                .write(true)
                .open(path)
                .and_then(|file| file.set_len(0))
                .expect("it is cut");
        }
        let failed = said(child).failed(3, &[diagnosis, "hint: ", "labels-000"]);
        assert!(!failed.stderr.contains("panicked"), "{}", failed.stderr);
        for (path, bytes) in shards.iter().zip(bytes) {
            fs::write(path, bytes).expect("the shard is put back");
        }
        let before = metrics_lines(&world, output);
        let child = stage().spawn().expect("the binary starts");
        wait_for_lines(&world, output, before + 3);
        let id = child.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &id]).status().expect("kill runs").success());
        said(child).failed(75, &["resumed from a checkpoint"]);
    }
    // A SIGBUS that is no fault of a map kills, as ever.
    let student = ["student.epochs=2000", labels[1], "output.student=killed"];
    let child = world.stage("train-student", &student).spawn().expect("the binary starts");
    wait_for_lines(&world, "killed", 1);
    let id = child.id().to_string();
    assert!(Command::new("kill").args(["-BUS", &id]).status().expect("kill runs").success());
    assert!(!said(child).failed(-1, &[]).stderr.contains("cut short"));
}

/// Runs the binary below strace and gives the names of the shards that it mapped, and what it said.
fn mapped(world: &World, arguments: &[&str], fault: Option<&str>) -> (usize, Said) {
    let trace = world.path("mmap.trace");
    let mut strace = Command::new("strace");
    strace.args(["-f", "-y", "-qq", "-e", "trace=mmap,fstatfs", "-o"]).arg(&trace);
    if let Some(fault) = fault {
        strace.args(["-e", &format!("inject=fstatfs:{fault}")]);
    }
    let binary = command(arguments);
    let said = run(strace.arg(binary.get_program()).args(binary.get_args().map(OsStr::to_os_string)));
    let trace = fs::read_to_string(trace).expect("a trace");
    let maps = trace.lines().filter(|line| line.contains("mmap(") && line.contains(".parquet>"));
    (maps.count(), said)
}

/// Covers labels on a network file system, where a map is not safe, and `--no-mmap`: files are read, and all is as with maps.
#[test]
fn what_is_not_local_is_read_and_not_mapped() {
    let world = World::small_labelled();
    let labels = world.path("run/labels/train");
    let labels = labels.to_str().expect("a path of ASCII");
    let verify = ["labels", "verify", labels];
    if !may_trace() {
        return;
    }
    let (maps, local) = mapped(&world, &verify, None);
    if maps == 0 {
        return skipped("temporary folders lie on a file system that is not known to be local");
    }
    let (maps, switched) = mapped(&world, &["labels", "verify", labels, "--no-mmap"], None);
    assert_eq!((maps, switched.code), (0, 0), "{switched:?}");
    let (maps, network) = mapped(&world, &verify, Some(&format!("poke_exit=@arg2={NFS}")));
    assert_eq!((maps, network.code), (0, 0), "{network:?}");
    let local = local.succeeded();
    assert_eq!(local.stdout, switched.stdout);
    assert_eq!(local.stdout, network.stdout);
    // A file system that does not answer is not taken for a local one.
    let (maps, silent) = mapped(&world, &verify, Some("error=ENOSYS"));
    assert_eq!((maps, silent.code), (0, 0), "{silent:?}");
}
