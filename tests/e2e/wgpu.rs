//! Both stages on a GPU that is none (lavapipe: Vulkan on the CPU), beside the same on the CPU. `make lavapipe` runs these.
//!
//! Few runs, each of much: every process compiles its kernels, and lavapipe takes its time for them.

use std::{fs, os::unix::fs::symlink, path::Path, process::Command};

use serde_json::Value;
use softshard_e2e::{Said, World, build, root, run, softshard};

/// Of a loss: f32 sums in another order, and other exponentials, over some steps.
const CLOSE: f64 = 1e-3;

/// A stage of the world's recipe on a device.
fn on(world: &World, device: &str, stage: &str, overrides: &[&str]) -> Said {
    run(world.stage(stage, overrides).args(["--device", device]))
}

#[test]
fn models_compute_the_same() {
    // Positions that are learned and that are turned, norms of both kinds, with biases and without, gates.
    let folder = tempfile::tempdir().expect("a temporary folder");
    let models = ["tiny-gpt2", "tiny-qwen2", "tiny-neox"];
    for name in models {
        symlink(root().join("tests/peers/golden").join(name), folder.path().join(name)).expect("a link");
    }
    let mut program = Command::new(build(&["--example", "gpu"]).join("examples/gpu"));
    program.args(["--device", "wgpu:0", "--only", "parity", "--golden"]).arg(folder.path());
    let said = run(program.current_dir(root())).succeeded();
    for name in models {
        for check in [
            "f32 logits",
            "f32 labels",
            "f32 greedy",
            "f32 gradients",
            "streamed f32 gradients",
            "8-bit",
            "4-bit",
        ] {
            let row = said.stdout.lines().find(|line| line.starts_with(&format!("| {name} | {check}")));
            assert!(row.is_some_and(|row| row.ends_with("| ok |")), "{name} {check}:\n{}", said.stdout);
        }
    }
}

#[test]
fn labels_are_those_of_the_cpu() {
    let world = World::with_teacher();
    let path = |folder: &str| world.path("run").join(folder).join("train").display().to_string();
    on(&world, "cpu", "teacher-labels", &["output.labels=cpu"]).succeeded();
    // Two that share the work.
    on(&world, "wgpu:0,wgpu:0", "teacher-labels", &["output.labels=gpu"]).succeeded();
    softshard(&["labels", "verify", &path("gpu")]).succeeded();
    let said = softshard(&["labels", "diff", &path("cpu"), &path("gpu"), "--json"]);
    let found: Value = serde_json::from_str(&said.stdout).expect("JSON");
    assert_eq!(found["plan"], serde_json::json!([]));
    let different = found["different"].as_array().expect("a list");
    let sum = |key: &str| different.iter().map(|found| found[key].as_u64().expect("a count")).sum::<u64>();
    let most =
        |key: &str| different.iter().map(|found| found[key].as_f64().expect("a number")).fold(0.0, f64::max);
    assert_eq!(sum("positions_on_one_side"), 0);
    // Stored with 8 significant bits: a last bit may fall to the other side, and so may one of two that are next to equal.
    assert!(sum("positions_with_other_tokens") <= 2, "{different:#?}");
    assert!(most("max_log_prob") < 0.1 && most("max_gold_log_prob") < 0.1, "{different:#?}");
}

/// The loss of each step.
fn losses(folder: &Path) -> Vec<f64> {
    let text = fs::read_to_string(folder.join("metrics.jsonl")).expect("metrics are written");
    let line = |line: &str| serde_json::from_str::<Value>(line).expect("a line of JSON")["loss"].as_f64();
    text.lines().filter_map(line).collect()
}

#[test]
fn a_student_learns_as_on_the_cpu() {
    let world = World::labelled();
    for (name, overrides) in [
        ("plain", &[r#"student.loss.divergence={ kind = "skew_kl", lambda = 0.1 }"#][..]),
        ("streamed", &["student.residency=streamed", "student.packing=true"]),
        ("codes", &["student.quantise=4", "student.checkpointing=layer"]),
    ] {
        for device in ["cpu", "wgpu:0"] {
            let output = format!("output.student={name}-{}", &device[..3]);
            on(&world, device, "train-student", &[&["student.max_steps=4", &*output], overrides].concat())
                .succeeded();
        }
        let losses = |device: &str| losses(&world.path("run").join(format!("{name}-{device}")));
        let (found, expected) = (losses("wgp"), losses("cpu"));
        assert!(expected.len() == 4 && found.len() == 4, "{name}: {found:?}");
        for (found, expected) in found.iter().zip(&expected) {
            assert!((found / expected - 1.0).abs() < CLOSE, "{name}: {found} {expected}");
        }
    }
}

#[test]
fn what_a_device_does_not_compute_in_is_refused() {
    let world = World::with_teacher();
    on(&world, "wgpu:0", "teacher-labels", &["teacher.precision=bf16"])
        .failed(4, &["precision `bf16`: this device does not compute in it", "hint: `precision = \"f32\"`"]);
    on(&world, "wgpu:7", "teacher-labels", &[]).failed(4, &["device `wgpu:7`: expected an index below "]);
}
