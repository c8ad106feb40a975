//! The data of a student: packing, mixtures, objectives, and datasets that it cannot learn from.

use std::{fs, path::Path};

use serde_json::Value;
use softshard_e2e::{World, softshard};
use softshard_labels::{LabelDataset, LabelPlan, LabelWriter, SequenceLabels};

/// Of f32 sums in another order, relative: 24 bits, some hundred terms.
const OTHER_ORDER: f64 = 2e-5;

/// The lines of a run's metrics.
fn metrics(world: &World, output: &str) -> Vec<Value> {
    let text =
        fs::read_to_string(world.path(&format!("run/{output}/metrics.jsonl"))).expect("metrics are written");
    text.lines().map(|line| serde_json::from_str(line).expect("a line is JSON")).collect()
}

fn number(line: &Value, key: &str) -> f64 {
    line[key].as_f64().unwrap_or_else(|| panic!("no number `{key}` in {line}"))
}

/// Trains into `run/<output>` and gives the metrics of its steps.
fn trained(world: &World, output: &str, overrides: &[&str]) -> Vec<Value> {
    let output_folder = format!("output.student={output}");
    world.run("train-student", &[&[output_folder.as_str()], overrides].concat()).succeeded();
    metrics(world, output)
}

/// One step over all sequences, so that both sums are over the same tokens.
const ONE_STEP: [&str; 3] = [
    "student.epochs=1",
    "student.accumulate_batches=1000",
    r#"student.lora={ r = 4, alpha = 8.0, dropout = 0.0, target_modules = ["q_proj", "v_proj", "down_proj"] }"#,
];

/// Covers packing: the same loss and the same norm of the gradients as side by side, whatever is kept for the backward pass; and
/// another order for another seed and epoch, the same for the same.
#[test]
fn packing_changes_neither_loss_nor_gradients() {
    let world = World::labelled();
    let run = |output: &str, overrides: &[&str]| trained(&world, output, &[&ONE_STEP, overrides].concat());
    let padded = run("padded", &[]);
    let [padded] = &padded[..] else { panic!("one step: {padded:?}") };
    for (output, more) in
        [("packed", "student.checkpointing=none"), ("by-layer", "student.checkpointing=layer")]
    {
        let packed = run(output, &["student.packing=true", more]);
        let [packed] = &packed[..] else { panic!("one step: {packed:?}") };
        for key in ["tokens", "labelled_tokens"] {
            assert_eq!(packed[key], padded[key], "{key}");
        }
        for key in ["loss", "cross_entropy", "gradient_norm"] {
            let (packed, padded) = (number(packed, key), number(padded, key));
            assert!((packed - padded).abs() <= OTHER_ORDER * padded.abs(), "{key}: {packed} and {padded}");
        }
    }
    let steps = |output: &str, more: &[&str]| -> Vec<(u64, u64)> {
        let lines = trained(&world, output, &[&["student.packing=true"], more].concat());
        lines.iter().map(|line| (number(line, "loss").to_bits(), number(line, "tokens").to_bits())).collect()
    };
    let first = steps("one", &[]);
    assert_eq!(first, steps("same", &[]));
    assert_ne!(first, steps("other", &["student.seed=11"]));
}

/// Covers mixtures: how often each dataset's sequences come, that a run knows its mixture again, and datasets that do not fit.
#[test]
fn datasets_are_mixed_by_weight() {
    let world = World::labelled();
    // Other labels of other sequences: another split.
    let second = ["data.split.seed=7", "output.sequences=second", "output.labels=second-labels"];
    world.run("prepare", &second).succeeded();
    world.run("teacher-labels", &[&second[..], &["labels.sequences_per_shard=4"]].concat()).succeeded();
    let tokens_of = |labels: &str| -> u64 {
        let manifest =
            fs::read(world.path(&format!("run/{labels}/train/manifest.json"))).expect("a manifest");
        let manifest: Value = serde_json::from_slice(&manifest).expect("JSON");
        manifest["input_tokens"].as_u64().expect("a number")
    };
    let (one, two) = (tokens_of("labels"), tokens_of("second-labels"));
    let mixture = |weight: f64| {
        format!(
            r#"student.mixture=[{{ labels = "run/labels/train" }}, {{ labels = "run/second-labels/train", weight = {weight} }}]"#
        )
    };
    let tokens = |output: &str, weight: f64, epochs: u32| -> u64 {
        let epochs = format!("student.epochs={epochs}");
        let lines = trained(&world, output, &[&mixture(weight), &epochs]);
        lines.iter().map(|line| line["tokens"].as_u64().expect("a number")).sum()
    };
    assert_eq!(tokens("halves", 0.5, 2), 2 * one + two, "each half once");
    assert_eq!(tokens("often", 2.5, 2), 2 * one + 5 * two);
    let once = trained(&world, "once", &[&mixture(1.0)]);
    let again = trained(&world, "again", &[&mixture(1.0), "student.packing=false"]);
    assert_eq!(once.len(), again.len());
    for (once, again) in once.iter().zip(&again) {
        assert_eq!(number(once, "loss").to_bits(), number(again, "loss").to_bits());
    }
    // Where the labels lie is nothing to the run; what they weigh is.
    let moved = world.path("moved");
    fs::rename(world.path("run/second-labels"), &moved).expect("the labels are moved");
    let at_moved = mixture(1.0).replace("run/second-labels", "moved");
    world.run("train-student", &["output.student=once", &at_moved]).succeeded();
    let weight = at_moved.replace("weight = 1", "weight = 3");
    world
        .run("train-student", &["output.student=once", &weight])
        .failed(3, &["student.passes.1: expected 3.0, found 1.0"]);

    // A tokenizer of the same size with other tokens, in one dataset of two.
    let other = world.path("other");
    let other = other.to_str().expect("a path of ASCII");
    softshard(&["demo-data", other, "--rows", "84", "--seed", "9", "--vocab-size", "400"]).succeeded();
    let elsewhere =
        ["output.dir=elsewhere", "teacher.model=elsewhere/teacher/model", "tokenizer.path=other/tokenizer"];
    for stage in ["prepare", "finetune", "teacher-labels"] {
        world.run(stage, &[&elsewhere[..], &["finetune.max_steps=1"]].concat()).succeeded();
    }
    let foreign = at_moved.replace("moved/train", "elsewhere/labels/train");
    world
        .run("train-student", &["output.student=foreign", &foreign])
        .failed(3, &["elsewhere/labels/train", "the recipe's tokenizer", "vocabulary_blake3: expected"]);
    // Another prompt is somebody's choice in a mixture.
    let warned = world.run("train-student", &["output.student=prompts", &at_moved, "data.template=minillm"]);
    let warned = warned.succeeded().stderr;
    assert!(warned.contains("expected the recipe's prompt template `minillm`, found `none`"), "{warned}");
}

/// Covers `pretrain`: every token from the second on is scored, from sequences or from labels, and for `finetune` too.
#[test]
fn pretraining_scores_every_token() {
    let world = World::labelled();
    let run = |output: &str, overrides: &[&str]| {
        let lines = trained(&world, output, &[&ONE_STEP, overrides].concat());
        let [line] = &lines[..] else { panic!("one step: {lines:?}") };
        line.clone()
    };
    let manifest = fs::read(world.path("run/sequences/train/manifest.json")).expect("a manifest");
    let manifest: Value = serde_json::from_slice(&manifest).expect("JSON");
    let [tokens, rows] = ["input_tokens", "rows"].map(|key| manifest[key].as_u64().expect("a number"));
    let pretrain = "student.objective=pretrain";
    let alone = run("sequences", &[pretrain, "student.loss.alpha=0"]);
    let taught = run("labels", &[pretrain]);
    let masked = run("masked", &["student.objective=supervised"]);
    for line in [&alone, &taught] {
        assert_eq!(line["tokens"], tokens);
        assert_eq!(line["labelled_tokens"], tokens - rows, "all but the first of each sequence: {line}");
        let (found, expected) = (number(line, "cross_entropy"), number(&alone, "cross_entropy"));
        assert!((found - expected).abs() <= OTHER_ORDER * expected, "{found} and {expected}");
    }
    assert!(masked["labelled_tokens"].as_u64() < Some(tokens - rows), "{masked}");
    assert!(number(&taught, "loss") > number(&taught, "cross_entropy"), "the teacher counts: {taught}");
    assert!((number(&alone, "loss") - number(&alone, "cross_entropy")).abs() < 1e-9, "{alone}");

    let pretrain = ["finetune.objective=pretrain", "finetune.max_steps=1", "output.teacher=pretrained"];
    world.run("finetune", &pretrain).succeeded();
    let line = &metrics(&world, "pretrained")[0];
    assert!(number(line, "labelled_tokens") > 0.9 * number(line, "tokens"), "{line}");
}

/// Writes a dataset again as it was written before temperatures had tails.
fn without_tails(from: &Path, to: &Path) {
    let dataset = LabelDataset::open(from).expect("labels");
    let plan = LabelPlan { version: LabelPlan::VERSION, ..dataset.manifest().plan.clone() };
    let writer = LabelWriter::create_or_resume(to, plan).expect("a new dataset");
    let mut rows = dataset.iter();
    for (shard, [start, end]) in dataset.manifest().plan.shards.iter().enumerate() {
        let mut file = writer.shard(shard).expect("a shard");
        for row in rows.by_ref().take(usize::try_from(end - start).expect("small")) {
            let row = row.expect("a row");
            assert_eq!(row.tail_log_masses.len(), 2, "one for each temperature");
            file.push(SequenceLabels { tail_log_masses: Vec::new(), ..row }).expect("valid labels");
        }
        file.commit().expect("a commit");
    }
    writer.finish().expect("a dataset");
}

#[test]
fn a_temperature_below_1_needs_labels_that_say_what_is_beyond_their_entries() {
    let world = World::labelled();
    let temperatures = "labels.temperatures=[0.5, 2.0]";
    // What was rounded cannot be written again as if it were exact.
    let exact = ["labels.mantissa_bits=23", "labels.position_mantissa_bits=23"];
    world.run("teacher-labels", &[&[temperatures, "output.labels=new"][..], &exact].concat()).succeeded();
    let at = |temperature: &str, labels: &str, student: &str| {
        let settings = [
            format!("student.loss.temperature={temperature}"),
            format!("output.labels={labels}"),
            format!("output.student={student}"),
            "student.max_steps=2".to_owned(),
            temperatures.to_owned(),
            exact[0].to_owned(),
            exact[1].to_owned(),
        ];
        world.run("train-student", &settings.iter().map(String::as_str).collect::<Vec<_>>())
    };
    at("0.5", "new", "sharp").succeeded();
    assert!(number(&metrics(&world, "sharp")[1], "divergence").is_finite());

    without_tails(&world.path("run/new/train"), &world.path("run/old/train"));
    at("0.5", "old", "refused").failed(
        3,
        &["run/old/train", "`student.loss.temperature`", "labels of version 1", "found 0.5", "label again"],
    );
    assert!(!world.path("run/refused/metrics.jsonl").exists());
    // Above 1 most of the mass is beyond, and a difference says it.
    at("2.0", "old", "soft").succeeded();
    softshard(&["labels", "verify", world.path("run/old/train").to_str().expect("ASCII")]).succeeded();
}

/// Covers labels that lack what the loss needs, prompts of another template, and sequences over the student's context.
#[test]
fn data_that_the_student_cannot_learn_from_is_refused() {
    let world = World::labelled();
    let nothing_began = || assert!(!world.path("run/student/metrics.jsonl").exists(), "nothing is trained");
    world
        .run("train-student", &["data.template=minillm"])
        .failed(3, &["run/sequences/train", "data.template: expected \"minillm\", found \"none\"", "hint: "]);
    // Who takes such sequences has labels of the other template still.
    let stage = ["data.template=minillm"];
    world
        .run_accepting("train-student", &stage, &["data.template"])
        .failed(3, &["run/labels/train", "the recipe's prompt template `minillm`, found `none`", "hint: "]);
    // The recipe may say what the labels do not have.
    let at_3 = ["student.loss.temperature=3", "labels.temperatures=[3.0]"];
    let expected = "labels.temperatures: expected [3.0], found [2.0]";
    world.run("train-student", &at_3).failed(3, &["run/labels/train", expected, "hint: "]);
    world.run_accepting("train-student", &at_3, &["labels.temperatures"]).failed(
        3,
        &[
            "run/labels/train",
            "`student.loss.temperature`",
            "whose partition is stored, [2.0], found 3",
            "hint: ",
        ],
    );
    let without = [r#"labels.omit=["entropy"]"#, "output.labels=without"];
    world.run("teacher-labels", &without).succeeded();
    let by_entropy = r#"student.loss.alpha={ kind = "entropy", scale = 1.0 }"#;
    world
        .run("train-student", &[&[by_entropy], &without[..]].concat())
        .failed(3, &["run/without/train", "`student.loss.alpha`", "the column entropy", "hint: "]);
    nothing_began();
    world.run("train-student", &[by_entropy, "student.max_steps=1", "output.student=by-entropy"]).succeeded();

    let config = world.path("start/model/config.json");
    let text = fs::read_to_string(&config).expect("the shape is there");
    let short = text.replace("\"max_position_embeddings\": 256", "\"max_position_embeddings\": 40");
    assert_ne!(text, short, "the context was 256");
    fs::write(&config, short).expect("the shape is written");
    // Nothing that can be known without weights waits for them.
    fs::write(world.path("start/model/model.safetensors"), "no weights").expect("the model is broken");
    world.run("train-student", &[]).failed(
        3,
        &["run/labels/train", "sequences of at most the 40 positions of model", "found one of ", "hint: "],
    );
    nothing_began();
}
