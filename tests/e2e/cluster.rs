//! What can be said of submissions without a scheduler: parts, the end, scripts and manifests.

use std::fs;

use softshard_e2e::{World, assert_same_files, run};

/// The small world has 6 shards to train on, and none held out.
fn world() -> World {
    World::small()
}

/// Labels one of several parts.
fn part(world: &World, task: &str, of: &str, variables: &[(&str, &str)]) -> softshard_e2e::Said {
    let mut command = world.stage("teacher-labels", &[]);
    command.env_remove("SLURM_ARRAY_TASK_ID").env_remove("JOB_COMPLETION_INDEX");
    run(command.args(["--task", task, "--of", of]).envs(variables.iter().copied()))
}

#[test]
fn parts_and_their_end_are_a_run_of_one_process() {
    let world = world();
    world.run("teacher-labels", &["output.labels=alone"]).succeeded();
    let expected = world.dataset("run/alone");
    let finalize = |overrides: &[&str]| {
        let recipe = world.path("recipe.toml");
        let mut arguments = vec!["labels", "finalize", recipe.to_str().expect("a path of ASCII")];
        overrides.iter().for_each(|value| arguments.extend(["--set", value]));
        softshard_e2e::softshard(&arguments)
    };
    finalize(&[]).failed(1, &["expected 6 committed shards, found 0; missing 0, 1, 2, 3, 4, 5", "hint:"]);

    // In any order, one of them twice, each as another scheduler would say it.
    part(&world, "3", "4", &[]).succeeded();
    part(&world, "auto", "4", &[("SLURM_ARRAY_TASK_ID", "1")]).succeeded();
    part(&world, "auto", "4", &[("JOB_COMPLETION_INDEX", "1"), ("SOFTSHARD_TASKS", "0,3")]).succeeded();
    finalize(&[]).failed(1, &["expected 6 committed shards, found 4; missing 0", "softshard resume"]);
    assert!(!world.path("run/labels/train/manifest.json").exists());
    part(&world, "0", "4", &[]).succeeded();
    part(&world, "2", "4", &[]).succeeded();
    let said = jobs(&world, "resume", "slurm", &["--dry-run"]).succeeded();
    assert!(said.stdout.contains("every shard is there; `softshard labels finalize"), "{said:?}");
    assert!(!world.path("run/labels/train/manifest.json").exists(), "no part finishes the labels");

    // The end needs no teacher, nor does a part that is done.
    let weights = world.path("run/teacher/model/model.safetensors");
    fs::rename(&weights, world.path("away")).expect("the weights are moved");
    for _ in 0..2 {
        let said = finalize(&[]).succeeded();
        assert!(said.stdout.contains("labels train: 6 shards, 12 sequences"), "{said:?}");
        assert_same_files(&world.dataset("run/labels"), &expected, "finalize");
    }
    fs::rename(world.path("away"), &weights).expect("the weights are moved back");
    let said = jobs(&world, "submit", "slurm", &["--then-student", "--set", "student.epochs=2"]).succeeded();
    assert!(said.stdout.contains("softshard train-student /"), "no script was written: {said:?}");
    assert!(said.stdout.contains("--set=student.epochs=2 --device=cpu"), "{said:?}");
    // A shard that is damaged after its commit is missing.
    let data = fs::read_dir(world.path("run/labels/train/data")).expect("data").flatten();
    let shard = data.map(|entry| entry.path()).min().expect("a shard");
    fs::write(&shard, "junk").expect("the shard is damaged");
    fs::remove_file(world.path("run/labels/train/manifest.json")).expect("a manifest");
    finalize(&[]).failed(1, &["expected 6 committed shards, found 5; missing 0"]);
    let said = jobs(&world, "resume", "slurm", &["--dry-run", "--tasks", "6"]).succeeded();
    assert!(said.stdout.contains("train: 1 of 6 shards are missing: 0"), "{said:?}");
    assert!(said.stdout.contains("1 tasks of 6: 0\n"), "{said:?}");
    part(&world, "0", "6", &[]).succeeded();
    finalize(&[]).succeeded();
    assert_same_files(&world.dataset("run/labels"), &expected, "a damaged shard");

    part(&world, "4", "4", &[]).failed(2, &["expected a number below `--of 4`, found 4"]);
    part(&world, "auto", "4", &[]).failed(2, &["SLURM_ARRAY_TASK_ID or JOB_COMPLETION_INDEX"]);
    part(&world, "x", "4", &[]).failed(2, &["expected a whole number from 0, or `auto`"]);
}

/// What is taken by name is taken by the tasks, and by those of a resume.
#[test]
fn tasks_take_what_their_submission_takes() {
    let world = world();
    let first = ["--dry-run", "--then-student", "--accept", "data.template", "--accept", "it's"];
    jobs(&world, "submit", "slurm", &first).succeeded();
    let line = |script: &str| {
        let text = fs::read_to_string(world.path(&format!("run/slurm/{script}"))).expect("a script");
        text.lines().find(|line| line.starts_with("\"$softshard\"")).expect("a command").to_owned()
    };
    let ends = |script: &str, device: &str| {
        let found = line(script);
        let expected = format!("{device} --accept=data.template '--accept=it'\\''s' &");
        assert!(found.ends_with(&expected), "{expected}: {found}");
    };
    ends("labels.sbatch", "--device cpu");
    ends("labels-student.sbatch", "--device cpu");
    assert!(!line("labels-finalize.sbatch").contains("--accept"), "it compares nothing");

    // The tasks label what differs, and keep it; a resume submits the rest with both.
    let other = "data.max_tokens=240";
    let part = |accept: &[&str]| {
        let mut command = world.stage("teacher-labels", &[other]);
        run(command.args(["--task", "0", "--of", "2"]).args(accept))
    };
    part(&[]).failed(3, &["data.max_tokens: expected 240, found 250"]);
    part(&["--accept=data.max_tokens"]).succeeded();
    let kept = fs::read_to_string(world.path("run/labels/provenance.json")).expect("a provenance");
    assert!(kept.contains("data.max_tokens"), "{kept}");
    jobs(&world, "resume", "slurm", &["--dry-run", "--accept", "data.max_tokens"]).succeeded();
    let options = fs::read_to_string(world.path("run/slurm/labels.options.json")).expect("options");
    assert!(options.contains("data.template"), "{options}");
    let script = line("labels.sbatch");
    assert!(script.contains(" --accept=data.max_tokens --accept=data.template "), "{script}");

    let claim = format!("runs:{}", world.path("").display());
    let given = ["--image", "registry/softshard:1", "--claim", claim.trim_end_matches('/')];
    let given = [&given[..], &["--accept", "data", "--then-student"]].concat();
    jobs(&world, "submit", "kubernetes", &given).succeeded();
    for (file, arguments) in [
        ("labels.yaml", "--device, \"cpu\", \"--accept=data\"]"),
        ("labels-student.yaml", "--device, \"cpu\", \"--accept=data\"]"),
    ] {
        let manifest = fs::read_to_string(world.path(&format!("run/kubernetes/{file}"))).expect("a manifest");
        assert!(manifest.contains(arguments), "{arguments}: {manifest}");
    }
}

/// `submit` or `resume`, where no scheduler is found.
fn jobs(world: &World, command: &str, engine: &str, more: &[&str]) -> softshard_e2e::Said {
    let mut command = world.stage(command, &[]);
    run(command.args(["--engine", engine]).args(more).env("PATH", "/nowhere"))
}

#[test]
fn scripts_are_written_and_remembered_without_a_scheduler() {
    let world = world();
    jobs(&world, "resume", "slurm", &["--dry-run"]).failed(1, &["expected labels that were begun", "submit"]);
    let options = ["--tasks", "4", "--at-once", "2", "--sbatch", "--partition=gpu --gres=gpu:1", "--dry-run"];
    let said = jobs(&world, "submit", "slurm", &options).succeeded();
    assert!(said.stdout.contains("4 tasks of 4: 0-3"), "{said:?}");
    assert!(said.stdout.contains("--dependency=afterany:$labels"), "{said:?}");
    let script = |name: &str| {
        let path = world.path("run/slurm").join(name);
        let checked = run(std::process::Command::new("bash").arg("-n").arg(&path));
        assert_eq!(checked.code, 0, "{checked:?}");
        fs::read_to_string(path).expect("a script")
    };
    let labels = script("labels.sbatch");
    for line in ["#SBATCH --array=0-3%2", "#SBATCH --partition=gpu --gres=gpu:1", "#SBATCH --requeue"] {
        assert!(labels.lines().any(|found| found == line), "{line}: {labels}");
    }
    assert!(script("labels-finalize.sbatch").contains("labels finalize \"$recipe\""));
    assert!(!labels.contains("--accept"), "{labels}");

    let written = || {
        let read = |name: &str| fs::read_to_string(world.path("run/slurm").join(name)).expect("a file");
        (read("labels.recipe.toml"), read("labels.options.json"))
    };
    // What jobs may read stays; a recipe that is edited after the labels were begun is not theirs.
    let before = written();
    let said =
        jobs(&world, "submit", "slurm", &["--dry-run", "--set", "labels.temperatures=[3.0]"]).succeeded();
    assert!(said.stdout.contains("which is another recipe"), "{said:?}");
    assert_eq!(written(), before);
    let recipe = fs::read_to_string(world.path("recipe.toml")).expect("a recipe");
    jobs(&world, "submit", "slurm", &options).succeeded();

    // A part that is done is not submitted again; what is not given is as before.
    part(&world, "1", "4", &[]).succeeded();
    let said = jobs(&world, "resume", "slurm", &["--dry-run", "--at-once", "9"]).succeeded();
    assert!(said.stdout.contains("3 tasks of 4: 0,2-3"), "{said:?}");
    let labels = script("labels.sbatch");
    for line in ["#SBATCH --array=0,2-3%9", "#SBATCH --partition=gpu --gres=gpu:1"] {
        assert!(labels.lines().any(|found| found == line), "{line}: {labels}");
    }

    let edited = recipe.replace("sequences_per_shard = 2", "sequences_per_shard = 3");
    assert_ne!(edited, recipe);
    fs::write(world.path("recipe.toml"), edited).expect("the recipe is edited");
    let said = jobs(&world, "resume", "slurm", &["--dry-run"]).succeeded();
    assert!(!said.stdout.contains("another recipe"), "{said:?}");
    assert_eq!(written(), before);

    jobs(&world, "submit", "slurm", &["--tasks", "5000"])
        .failed(1, &["scontrol: expected Slurm on this machine", "hint:", "--dry-run"]);
    jobs(&world, "submit", "slurm", &["--sbatch", "a\nb"]).failed(2, &["`--sbatch`", "on one line"]);
    jobs(&world, "submit", "slurm", &["--tasks", "0"]).failed(2, &["--tasks"]);
}

#[test]
fn manifests_say_which_tasks_are_missing() {
    let world = world();
    let claim = format!("runs:{}", world.path("").display());
    let given = ["--image", "registry/softshard:1", "--claim", claim.trim_end_matches('/'), "--tasks", "4"];
    let said = jobs(&world, "submit", "kubernetes", &given).succeeded();
    assert!(said.stdout.contains("nothing is applied") && said.stdout.contains("kubectl apply"), "{said:?}");
    assert!(said.stdout.contains("--regexp=Failed; do sleep"), "{said:?}");
    let manifest = || fs::read_to_string(world.path("run/kubernetes/labels.yaml")).expect("a manifest");
    for part in ["completionMode: Indexed", "completions: 4\n", "--task, auto, --of, \"4\"", "values: [75]"] {
        assert!(manifest().contains(part), "{part}: {}", manifest());
    }
    assert!(!manifest().contains("SOFTSHARD_TASKS"), "{}", manifest());
    part(&world, "1", "4", &[]).succeeded();
    jobs(&world, "resume", "kubernetes", &[]).succeeded();
    for part in ["completions: 3\n", "{ name: SOFTSHARD_TASKS, value: \"0,2-3\" }", "registry/softshard:1"] {
        assert!(manifest().contains(part), "{part}: {}", manifest());
    }
    jobs(&world, "submit", "kubernetes", &[]).failed(2, &["expected `--image`"]);
    jobs(&world, "submit", "kubernetes", &given[..2]).failed(2, &["`output.labels`", "--claim NAME:"]);
    let bad = ["--image", "x", "--claim", "Runs:here"];
    jobs(&world, "submit", "kubernetes", &bad).failed(2, &["`--claim`", "as runs:/runs"]);
}
