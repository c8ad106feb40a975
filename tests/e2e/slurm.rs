//! Labels by the real Slurm: nodes, controllers and workers are killed, and nothing differs.

#[path = "../slurm/mod.rs"]
mod slurm;

use std::{fs, path::PathBuf};

use slurm::{Cluster, is_alive, outside, parent, signal, wait_until};
use softshard_e2e::{Files, Said, World, assert_same_files, softshard};

/// Small shards: 20 of the 60 sequences to train on, 4 of the 12 of `valid` and of `test`.
const SHARDS: &str = "labels.sequences_per_shard=3";

/// What one process makes.
fn expected(world: &World) -> Files {
    world.run("teacher-labels", &[SHARDS, "output.labels=alone"]).succeeded();
    world.dataset("run/alone")
}

/// `submit` or `resume` of the labels in `run/<labels>`.
fn submit(cluster: &Cluster, world: &World, command: &str, labels: &str, more: &[&str]) -> Said {
    let mut command = world.stage(command, &[SHARDS, &format!("output.labels={labels}")]);
    command.args(["--engine", "slurm"]).args(more);
    cluster.command(command).succeeded()
}

/// Ids of the jobs, in the order in which they were submitted.
fn jobs(said: &Said) -> Vec<String> {
    let id = |line: &str| Some(line.strip_prefix("job ")?.split_once(':')?.0.to_owned());
    said.stdout.lines().filter_map(id).collect()
}

/// The job that runs on a node, as 1_0: scancel does not take the id of its own that a task of an array has.
fn job_on(cluster: &Cluster, node: &str) -> String {
    let said = cluster.slurm("squeue", &["--noheader", &format!("--nodelist={node}"), "--format=%i"]);
    said.trim().to_owned()
}

/// Shards of the training split that have a commit.
fn committed(world: &World, labels: &str) -> usize {
    fs::read_dir(world.path(&format!("run/{labels}/train/_softshard/commits"))).map_or(0, Iterator::count)
}

/// Every shard is there once, whole, and as one process would have made it.
fn assert_as_one_process(world: &World, labels: &str, expected: &Files) {
    let found = world.dataset(&format!("run/{labels}"));
    assert_same_files(&found, expected, labels);
    for split in ["train", "valid", "test"] {
        let folder = world.path(&format!("run/{labels}/{split}"));
        let said = softshard(&["labels", "verify", folder.to_str().expect("a path of ASCII")]).succeeded();
        assert!(said.stdout.contains("every hash and every row is right"), "{said:?}");
    }
}

/// All that the jobs said.
fn logs(world: &World) -> String {
    let folder = world.path("run/slurm/logs");
    let mut paths: Vec<PathBuf> =
        fs::read_dir(folder).expect("logs").map(|entry| entry.expect("an entry").path()).collect();
    paths.sort();
    let text = |path: &PathBuf| {
        let text = fs::read(path).expect("a log");
        format!("── {}\n{}", path.display(), String::from_utf8_lossy(&text))
    };
    paths.iter().map(text).collect()
}

/// Restarts of the tasks of an array, summed.
fn restarts(cluster: &Cluster, array: &str) -> u32 {
    let said = cluster.slurm("scontrol", &["show", "job", array]);
    let counts = said.split_whitespace().filter_map(|word| word.strip_prefix("Restarts="));
    counts.map(|count| count.parse::<u32>().expect("a count")).sum()
}

#[test]
fn killed_nodes_controllers_and_late_writers_leave_one_dataset() {
    let Some(cluster) = Cluster::start() else { return };
    let world = World::with_teacher();
    let expected = expected(&world);

    // A zombie: it has begun a shard of the last task, and will end long after all others.
    let overrides = [SHARDS, "output.labels=labels"];
    let zombie = outside(&world, &overrides, 9, 10);
    wait_until("the zombie has begun", || {
        let folder = world.path("run/labels/train/_softshard");
        folder.join("plan.json").exists() && fs::read_dir(folder.join("tmp")).is_ok_and(|tmp| tmp.count() > 0)
    });
    signal(zombie.id(), "STOP");
    assert!(committed(&world, "labels") < 2, "the zombie was too fast");

    let said = submit(&cluster, &world, "submit", "labels", &["--tasks", "10"]);
    let [array, _] = &jobs(&said)[..] else { panic!("{said:?}") };
    let paused = ["n1", "n2", "n3"].map(|node| cluster.pause_worker(node));

    let held = cluster.wait_for_saved_state();

    // A node is lost with all that runs there; another worker is told to stop, as before a time limit; the controller dies;
    // and workers end while nobody is there to hear it.
    cluster.kill_node("n2");
    assert!(!is_alive(paused[1]), "the worker died with its node");
    signal(parent(paused[2]).expect("a worker has a shell"), "TERM"); // as --signal=B:TERM@120 does
    cluster.kill_controller();
    signal(paused[0], "CONT");
    signal(paused[2], "CONT");
    wait_until("workers end without a controller", || !is_alive(paused[0]) && !is_alive(paused[2]));
    cluster.restart_controller(&[]);
    cluster.restart_node("n2");
    cluster.slurm("scancel", &[&held]);

    cluster.wait_for_jobs();
    let finished = world.path("run/labels/train/manifest.json");
    assert!(finished.exists(), "not finished: {}", logs(&world));
    assert!(
        restarts(&cluster, array) >= 2,
        "the killed task and the stopped one run again: {}",
        logs(&world)
    );

    signal(zombie.id(), "CONT");
    zombie.end().succeeded();
    assert_as_one_process(&world, "labels", &expected);
    let said = submit(&cluster, &world, "resume", "labels", &[]);
    assert!(said.stdout.contains("nothing is missing"), "{said:?}");
    assert_as_one_process(&world, "labels", &expected);
}

#[test]
fn the_task_that_has_the_id_of_its_array_goes_on_alone() {
    let Some(cluster) = Cluster::start() else { return };
    let world = World::with_teacher();
    let expected = expected(&world);
    let said = submit(&cluster, &world, "submit", "labels", &["--tasks", "2"]);
    let [array, _] = &jobs(&said)[..] else { panic!("{said:?}") };
    let paused = ["n1", "n2"].map(|node| (cluster.pause_worker(node), job_on(&cluster, node)));
    let (first, last) =
        if paused[0].1.ends_with("_1") { (&paused[1], &paused[0]) } else { (&paused[0], &paused[1]) };
    signal(parent(last.0).expect("a worker has a shell"), "TERM");
    signal(last.0, "CONT");
    wait_until("the last task is in the queue again", || restarts(&cluster, array) == 1);
    signal(first.0, "CONT");
    cluster.wait_for_jobs();
    assert_eq!(restarts(&cluster, array), 1, "its sibling did not start again: {}", logs(&world));
    assert_as_one_process(&world, "labels", &expected);
}

#[test]
fn an_array_that_was_forgotten_is_resumed_and_the_student_follows() {
    let Some(cluster) = Cluster::start() else { return };
    let world = World::with_teacher();
    let start = ["finetune.max_steps=3", "finetune.seed=2", "output.teacher=../start"];
    world.run("finetune", &start).succeeded();
    let expected = expected(&world);
    let student = ["student.epochs=1", "output.student=student"].map(|value| format!("--set={value}"));
    let student = ["--then-student", &student[0], &student[1], "--tasks", "12", "--at-once", "3"];
    let said = submit(&cluster, &world, "submit", "labels", &student);
    assert_eq!(jobs(&said).len(), 3, "{said:?}");

    // A task that somebody cancels is not put in the queue again.
    let worker = cluster.pause_worker("n1");
    let job = job_on(&cluster, "n1");
    cluster.slurm("scancel", &[&job]);
    signal(worker, "CONT");
    wait_until("the worker of a cancelled task ends", || !is_alive(worker));
    let state = || cluster.slurm("squeue", &["--noheader", "--states=all", "--format=%T", "--jobs", &job]);
    wait_until("the task is cancelled", || state().trim() == "CANCELLED");

    // Some tasks are done when the controller loses all it knows, with the nodes.
    wait_until("some shards are there", || committed(&world, "labels") > 0);
    cluster.kill_controller();
    for node in ["n1", "n2", "n3"] {
        cluster.kill_node(node);
    }
    cluster.restart_controller(&["-c"]);
    for node in ["n1", "n2", "n3"] {
        cluster.restart_node(node);
    }
    assert_eq!(cluster.slurm("squeue", &["--noheader"]).trim(), "", "the array is forgotten");
    let there = committed(&world, "labels");
    assert!(there < 20, "{there} shards were done before the kill");
    let recipe = world.path("run/slurm/labels.recipe.toml");
    let recipe = recipe.to_str().expect("a path of ASCII");
    softshard(&["labels", "finalize", recipe])
        .failed(1, &["expected 20 committed shards, found", "missing", "softshard resume"]);

    // With the options of the submission before; the jobs' copy of the recipe stands for it.
    let said = submit(&cluster, &world, "resume", "labels", &[]);
    let missing = format!("train: {} of 20 shards are missing", 20 - there);
    assert!(said.stdout.contains(&missing) && said.stdout.contains("tasks of 12"), "{missing}: {said:?}");
    assert_eq!(jobs(&said).len(), 3, "{said:?}");
    cluster.wait_for_jobs();
    assert!(world.path("run/student/adapter").exists(), "no student: {}", logs(&world));
    assert_as_one_process(&world, "labels", &expected);
}
