//! A student on several devices: the same curve, and the same weights, as on one.

use std::{fs, time::Duration};

use softshard_e2e::{Said, World, run};

/// A stage on some devices.
fn on(world: &World, stage: &str, devices: &str, overrides: &[&str]) -> Said {
    run(world.stage(stage, overrides).args(["--device", devices]))
}

/// Fails the test unless both runs, below the world's `run/`, have the same curve and left the same `weights`.
#[track_caller]
fn assert_same_run(world: &World, found: &str, expected: &str, weights: &str) {
    let of = |name: &str| {
        let folder = world.path("run").join(name);
        (world.curve(name), fs::read(folder.join(weights)).expect("weights"))
    };
    let ((curve, weights), (expected_curve, expected_weights)) = (of(found), of(expected));
    assert!(!curve.is_empty());
    assert_eq!(curve, expected_curve, "{found}");
    assert!(weights == expected_weights, "{found}: the weights differ");
}

const ADAPTER: &str = "adapter/adapter_model.safetensors";

#[test]
fn an_adapter_learns_the_same_on_any_number_of_devices() {
    let world = World::labelled();
    // Three micro-batches a step are dealt unevenly, and the last step of an epoch has fewer.
    for (name, overrides) in [
        ("plain", &["student.accumulate_batches=3"][..]),
        ("streamed", &["student.accumulate_batches=3", "student.residency=streamed"]),
        ("quantised", &["student.accumulate_batches=3", "student.quantise=4"]),
    ] {
        let output = |devices: usize| format!("output.student={name}-{devices}");
        let with = |devices: usize| {
            [overrides, &[&*output(devices)]].concat().into_iter().map(str::to_owned).collect::<Vec<_>>()
        };
        for devices in [1, 2, 3] {
            let names = vec!["cpu"; devices].join(",");
            let overrides = with(devices);
            let overrides: Vec<&str> = overrides.iter().map(String::as_str).collect();
            let said = on(&world, "train-student", &names, &overrides).succeeded();
            assert!(!said.stderr.contains("do nothing"), "{}", said.stderr);
        }
        for devices in [2, 3] {
            assert_same_run(&world, &format!("{name}-{devices}"), &format!("{name}-1"), ADAPTER);
        }
    }
}

#[test]
fn a_whole_model_learns_the_same_on_two_devices() {
    let world = World::prepared();
    let few = ["finetune.max_steps=4", "finetune.accumulate_batches=4"];
    on(&world, "finetune", "cpu", &few).succeeded();
    for (layer, output) in [("none", "two"), ("layer", "two-by-layer")] {
        let output = format!("output.teacher={output}");
        let checkpointing = format!("finetune.checkpointing={layer}");
        on(&world, "finetune", "cpu,cpu", &[&few[..], &[&output, &checkpointing]].concat()).succeeded();
    }
    for found in ["two", "two-by-layer"] {
        assert_same_run(&world, found, "teacher", "model/model.safetensors");
    }
}

#[test]
fn a_killed_run_goes_on_with_other_devices() {
    let world = World::labelled();
    let epochs = "student.epochs=6";
    on(&world, "train-student", "cpu", &[epochs]).succeeded();
    let output = "output.student=killed";
    // Behind the checkpoint of step 3, then of step 9.
    for (devices, lines) in [("cpu,cpu", 4), ("cpu,cpu,cpu", 10)] {
        let metrics = world.path("run/killed/metrics.jsonl");
        let mut stage = world.stage("train-student", &[epochs, output]);
        let mut child = stage.args(["--device", devices]).spawn().expect("the binary starts");
        while fs::read_to_string(&metrics).map_or(0, |text| text.lines().count()) < lines {
            assert!(child.try_wait().expect("its state").is_none(), "done before it was killed");
            std::thread::sleep(Duration::from_millis(1));
        }
        child.kill().expect("SIGKILL is sent");
        assert!(child.wait().expect("the child ends").code().is_none(), "done before it was killed");
    }
    let said = on(&world, "train-student", "cpu", &[epochs, output]).succeeded();
    assert!(said.stderr.contains("resumed from a checkpoint"), "{}", said.stderr);
    assert_same_run(&world, "killed", "student", ADAPTER);
}

#[test]
fn devices_without_work_are_named() {
    let world = World::small_labelled();
    let small = "student.max_tokens_per_batch=256";
    on(&world, "train-student", "cpu", &[small]).succeeded();
    let three = on(&world, "train-student", "cpu,cpu,cpu", &[small, "output.student=three"]).succeeded();
    for part in
        ["3 devices, but a step has 2 micro-batches: 1 do nothing", "`accumulate_batches` = 3 or a multiple"]
    {
        assert!(three.stderr.contains(part), "expected {part:?} in:\n{}", three.stderr);
    }
    assert_same_run(&world, "three", "student", ADAPTER);
}

#[test]
fn a_device_that_is_not_there_ends_it_before_anything_is_read() {
    let world = World::new();
    for (devices, found) in [
        ("cpu,cuda:60000", "device `cuda:60000`: expected"),
        ("cpu,gpu", "device `gpu`: expected `cpu`, `cuda:<index>` or `wgpu:<index>`"),
        ("cpu,", "device ``: expected `cpu`, `cuda:<index>` or `wgpu:<index>`"),
    ] {
        for stage in ["train-student", "finetune"] {
            on(&world, stage, devices, &[]).failed(4, &[found]);
        }
    }
    assert!(!world.path("run").exists());
}

/// Products and attention go through matrix units where the CPU has them; this is how another CPU computes.
#[test]
fn without_matrix_units_a_run_is_the_same_but_for_rounding() {
    const ROUNDING: f64 = 1e-4;
    let world = World::labelled();
    let losses = |name: &str| -> Vec<f64> {
        let curve = world.curve(name);
        curve.iter().map(|step| step["loss"].as_f64().expect("a loss")).collect()
    };
    let overrides = |name: &str| ["student.epochs=2".to_owned(), format!("output.student={name}")];
    for (name, units) in [("units", "on"), ("plain", "off")] {
        let overrides = overrides(name);
        let overrides: Vec<&str> = overrides.iter().map(String::as_str).collect();
        run(world.stage("train-student", &overrides).env("SOFTSHARD_AMX", units)).succeeded();
    }
    let (found, expected) = (losses("units"), losses("plain"));
    assert_eq!(found.len(), expected.len());
    for (found, expected) in found.into_iter().zip(expected) {
        assert!((found - expected).abs() <= ROUNDING * expected, "{found} and {expected}");
    }
    let again = ["output.labels=again"];
    run(world.stage("teacher-labels", &again).env("SOFTSHARD_AMX", "off")).succeeded();
}
