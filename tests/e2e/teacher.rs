//! What a teacher can be told: to share the work, and to be surer, less sure or wrong.

use std::path::Path;

use softshard_e2e::{World, assert_same_files, run};
use softshard_labels::{LabelDataset, SequenceLabels};

/// All labels of a dataset.
fn labels(path: &Path) -> Vec<SequenceLabels> {
    let dataset = LabelDataset::open(path).expect("a finished dataset");
    (0..dataset.len()).map(|row| dataset.read(row).expect("a row")).collect()
}

fn plan(path: &Path) -> serde_json::Value {
    let text = std::fs::read(path.join("_softshard/plan.json")).expect("a plan");
    serde_json::from_slice(&text).expect("JSON")
}

#[test]
fn tasks_and_devices_share_the_shards() {
    let world = World::with_teacher();
    let shards = "labels.sequences_per_shard=2";
    world.run("teacher-labels", &[shards]).succeeded();
    let expected = world.dataset("run/labels");

    let task = |task: &str, devices: &str| {
        let mut stage = world.stage("teacher-labels", &[shards, "output.labels=shared"]);
        run(stage.args(["--task", task, "--of", "3", "--device", devices]))
    };
    task("2", "cpu").succeeded();
    task("0", "cpu,cpu").succeeded();
    let before = world.files("run/shared");
    task("0", "cpu").succeeded();
    assert_same_files(&world.files("run/shared"), &before, "the same task again, attempts included");
    assert!(!world.path("run/shared/train/manifest.json").exists(), "a task does not finish the dataset");
    task("3", "cpu").failed(2, &["`--task`: expected a number below `--of 3`, found 3"]);
    // The third part, and the end.
    world.run("teacher-labels", &[shards, "output.labels=shared"]).succeeded();
    assert_same_files(&world.dataset("run/shared"), &expected, "three tasks");
}

#[test]
fn a_scale_makes_a_teacher_less_sure() {
    let world = World::with_teacher();
    world.run("teacher-labels", &["labels.temperatures=[2.0]"]).succeeded();
    world
        .run("teacher-labels", &["teacher.logit_scale=0.5", "output.labels=unsure", "labels.temperatures=[]"])
        .succeeded();
    let (sure, unsure) = (labels(&world.path("run/labels/train")), labels(&world.path("run/unsure/train")));
    for (sure, unsure) in sure.iter().zip(&unsure) {
        // The partition of z/2 is the one at a temperature of 2; the rest follows from it.
        for (at_2, scaled) in sure.log_partitions[0].iter().zip(&unsure.log_sum_exp) {
            assert!((at_2 - scaled).abs() < 4e-3, "10 mantissa bits: {at_2} and {scaled}");
        }
        // The same tokens are the most probable ones, so the same are beyond them.
        for (at_2, scaled) in sure.tail_log_masses[0].iter().zip(&unsure.tail_log_mass) {
            assert!(
                (at_2 - scaled).abs() <= 2e-3 * scaled.abs() + 1e-5,
                "10 mantissa bits: {at_2} and {scaled}"
            );
        }
        let nats = |labels: &SequenceLabels| labels.entropy.iter().sum::<f32>();
        assert!(nats(unsure) > nats(sure));
    }
    let altered = &plan(&world.path("run/unsure/train"))["teacher"]["altered"];
    assert_eq!(altered["logit_scale"], 0.5);
    assert!(plan(&world.path("run/labels/train"))["teacher"].get("altered").is_none());
    // The same output with another scale is another plan.
    world
        .run(
            "teacher-labels",
            &["teacher.logit_scale=0.25", "output.labels=unsure", "labels.temperatures=[]"],
        )
        .failed(3, &["altered", "0.5", "0.25"]);
    world.run("teacher-labels", &["teacher.logit_scale=0"]).failed(2, &["`teacher.logit_scale`", "above 0"]);
    let audit = |scale: &str| {
        let mut audit = world.stage("labels", &["output.labels=unsure", scale]);
        let mut arguments: Vec<_> = audit.get_args().map(std::ffi::OsStr::to_owned).collect();
        arguments.insert(1, "audit".into());
        audit = softshard_e2e::command(&[]);
        run(audit.args(arguments))
    };
    audit("teacher.logit_scale=0.5").succeeded();
    audit("teacher.logit_scale=1.0").failed(3, &["the teacher of the labels"]);
}

/// At the temperature with the least negative log-likelihood the mean logit of the labelled tokens is the mean that the teacher
/// expects: that is where the derivative is zero.
#[test]
fn a_calibrated_teacher_expects_what_it_finds() {
    let world = World::with_teacher();
    let exact = [
        "labels.selection={ kind = \"top_k\", k = 400 }",
        "labels.mantissa_bits=23",
        "labels.position_mantissa_bits=23",
        "labels.temperatures=[]",
    ];
    let calibrated = [&exact[..], &["teacher.calibration=temperature"]].concat();
    let said = world.run("teacher-labels", &calibrated).succeeded();
    assert!(said.stderr.contains("calibration: temperature"), "{}", said.stderr);
    world.run("teacher-labels", &[&exact[..], &["output.labels=plain"]].concat()).succeeded();

    // Of expected minus found logits, per labelled token of the split that it was fitted on.
    let surplus = |path: &str| {
        let (mut sum, mut count) = (0.0, 0.0);
        for labels in labels(&world.path(path)) {
            for (index, entries) in labels.entries().enumerate() {
                let expected: f64 =
                    entries.log_probs.iter().map(|&log| f64::from(log).exp() * f64::from(log)).sum();
                sum += expected - f64::from(labels.gold_log_prob[index]);
                count += 1.0;
            }
        }
        sum / count
    };
    let (plain, fitted) = (surplus("run/plain/valid"), surplus("run/labels/valid"));
    assert!(fitted.abs() < 5e-3 && fitted.abs() < plain.abs(), "before {plain}, after {fitted}");
    for split in ["train", "valid", "test"] {
        let altered = &plan(&world.path(&format!("run/labels/{split}")))["teacher"]["altered"];
        assert_eq!(altered["is_calibrated"], true);
        let scale = altered["logit_scale"].as_f64().expect("a number");
        assert!((1.0 / scale * 1000.0).fract().min(1.0 - (1.0 / scale * 1000.0).fract()) < 1e-6, "{scale}");
    }
    // Another worker takes the temperature from the plan.
    let again = world.run("teacher-labels", &calibrated).succeeded();
    assert!(!again.stderr.contains("calibration: temperature"), "{}", again.stderr);
    world
        .run("teacher-labels", &["teacher.calibration=temperature", "teacher.logit_scale=2"])
        .failed(2, &["`teacher.logit_scale`: expected 1 beside `calibration`, found 2"]);
    let small = World::small();
    small
        .run("teacher-labels", &["teacher.calibration=temperature"])
        .failed(3, &["expected sequences that were held out", "data.split"]);
}

#[test]
fn noise_is_in_some_of_the_labels_and_in_the_plan() {
    let world = World::with_teacher();
    world.run("teacher-labels", &[]).succeeded();
    world.run("teacher-labels", &["teacher.label_noise=0.3", "output.labels=noisy"]).succeeded();
    world.run("teacher-labels", &["teacher.label_noise=0.3", "output.labels=again"]).succeeded();
    assert_same_files(&world.dataset("run/again"), &world.dataset("run/noisy"), "the same seed");
    let (clean, noisy) = (labels(&world.path("run/labels/train")), labels(&world.path("run/noisy/train")));
    let (mut exchanged, mut all) = (0.0, 0.0);
    for (clean, noisy) in clean.iter().zip(&noisy) {
        assert_eq!((&clean.entropy, &clean.tail_log_mass), (&noisy.entropy, &noisy.tail_log_mass));
        for (before, after) in clean.entries().zip(noisy.entries()) {
            exchanged += if before.token_ids[0] == after.token_ids[0] { 0.0 } else { 1.0 };
            all += 1.0;
        }
    }
    let share = exchanged / all;
    assert!((share - 0.3_f64).abs() < 4.0 * (0.3_f64 * 0.7 / all).sqrt(), "{share} of {all}");
    let altered = &plan(&world.path("run/noisy/train"))["teacher"]["altered"];
    assert_eq!((altered["label_noise"].as_f64(), altered["logit_scale"].as_f64()), (Some(0.3), Some(1.0)));
    world.run("teacher-labels", &["teacher.label_noise=1.5"]).failed(2, &["`teacher.label_noise`", "0 to 1"]);
}

#[test]
fn batches_that_fit_are_found() {
    let world = World::with_teacher();
    let said = world.run("teacher-labels", &["teacher.max_tokens_per_batch=auto"]).succeeded();
    assert!(said.stderr.contains("batches of up to 1024 tokens"), "{}", said.stderr);
    let auto = labels(&world.path("run/labels/train"));
    world.run("teacher-labels", &["teacher.max_tokens_per_batch=300", "output.labels=other"]).succeeded();
    for (auto, small) in auto.iter().zip(&labels(&world.path("run/other/train"))) {
        assert_eq!(auto.positions, small.positions);
        for (auto, small) in auto.gold_log_prob.iter().zip(&small.gold_log_prob) {
            assert!((auto - small).abs() < 1e-2, "10 mantissa bits: {auto} and {small}");
        }
    }
    world
        .run("teacher-labels", &["teacher.max_tokens_per_batch=most"])
        .failed(2, &["max_tokens_per_batch", "expected a number of tokens of at least 1, or \"auto\""]);
}

/// In bf16 what is computed twice rounds twice, and the format compares a label's numbers with each other.
#[test]
fn noise_and_scale_go_with_rounded_weights() {
    let world = World::with_teacher();
    let selection = r#"labels.selection={ kind = "top_k", k = 64 }"#;
    let settings = ["teacher.precision=bf16", "teacher.label_noise=0.9", "teacher.logit_scale=3", selection];
    world.run("teacher-labels", &settings).succeeded();
    let mut audit = softshard_e2e::command(&["labels", "audit"]);
    audit.arg(world.path("recipe.toml"));
    run(audit.args(settings.iter().flat_map(|setting| ["--set", setting]))).succeeded();
    world.run("teacher-labels", &["teacher.logit_scale=1e-50"]).failed(2, &["`teacher.logit_scale`", "f32"]);
}
