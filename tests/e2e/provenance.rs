//! What was read is what is said: each way to a wrong number that was once found, and what the artefacts say of themselves.

use std::{fs, path::Path};

use serde_json::{Value, json};
use softshard_e2e::World;

fn read_json(path: &Path) -> Value {
    let bytes = fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_slice(&bytes).expect("JSON")
}

fn edit(path: &Path, from: &str, to: &str) {
    let text = fs::read_to_string(path).expect("a text");
    assert!(text.contains(from), "{from} in {text}");
    fs::write(path, text.replace(from, to)).expect("it is written");
}

/// A student that has learnt a little.
fn trained() -> World {
    let world = World::labelled();
    world.run("train-student", &["student.max_steps=2"]).succeeded();
    world
}

const STEPS: [&str; 2] = ["student.max_steps=6", "student.checkpoint_every_steps=3"];

/// Fault 1.
#[test]
fn a_run_over_a_base_whose_configuration_was_edited_is_another_one() {
    let world = World::labelled();
    world.run("train-student", &STEPS).succeeded();
    let (config, curve) = (world.path("start/model/config.json"), world.curve("student"));
    let adapter = world.files("run/student/adapter");
    for (from, to) in
        [("\"rope_theta\": 10000.0", "\"rope_theta\": 5000.0"), ("\"rms_norm_eps\": ", "\"rms_norm_eps\": 1")]
    {
        let text = fs::read_to_string(&config).expect("the shape is there");
        edit(&config, from, to);
        let parts =
            ["step-00000006", "another run", "model.config: expected ", "hint: choose another output"];
        // A finished run would be written once more.
        world.run("train-student", &STEPS).failed(3, &parts);
        assert!(world.files("run/student/adapter") == adapter, "the adapter is untouched");
        fs::write(&config, text).expect("the shape is back");
    }
    // One that was interrupted would go on.
    fs::remove_dir_all(world.path("run/student/checkpoints/step-00000006")).expect("a checkpoint is gone");
    fs::remove_dir_all(world.path("run/student/adapter")).expect("it was not finished");
    let text = fs::read_to_string(&config).expect("the shape is there");
    edit(&config, "10000.0", "5000.0");
    world.run("train-student", &STEPS).failed(3, &["step-00000003", "model.config: expected "]);
    assert!(!world.path("run/student/adapter").exists());
    fs::write(&config, text).expect("the shape is back");
    let said = world.run("train-student", &STEPS).succeeded().stderr;
    assert!(said.contains("resumed from a checkpoint"), "{said}");
    assert_eq!(world.curve("student"), curve);
    assert!(world.files("run/student/adapter") == adapter, "the same adapter, with the same provenance");
}

/// Checkpoints from before there was a provenance are of the same run; what they did not say is taken as it is, and said.
#[test]
fn checkpoints_of_earlier_versions_still_resume() {
    let world = World::labelled();
    world.run("train-student", &STEPS).succeeded();
    let adapter = world.files("run/student/adapter");
    let as_before = |change: &dyn Fn(&mut Value)| {
        let _ = fs::remove_dir_all(world.path("run/student/checkpoints/step-00000006"));
        let _ = fs::remove_dir_all(world.path("run/student/adapter"));
        let state = world.path("run/student/checkpoints/step-00000003/state.json");
        let mut stored = read_json(&state);
        let run = stored["run"].take();
        let mut config = run["recipe"]["student"].clone();
        let config = config.as_object_mut().expect("a section");
        let objective = config.remove("objective");
        config.remove("passes");
        stored["run"] = json!({
            "config": config, "objective": objective,
            "data_manifest_blake3": run["inputs"]["data"], "model_blake3": run["inputs"]["model.weights"],
        });
        change(&mut stored["run"]);
        fs::write(state, serde_json::to_vec(&stored).expect("JSON")).expect("it is written");
    };
    as_before(&|_| {});
    let said = world.run("train-student", &STEPS).succeeded().stderr;
    let warned = "the checkpoint is of an earlier version, which did not write down model.config, tokenizer.";
    assert!(said.contains("resumed from a checkpoint") && said.contains(warned), "{said}");
    assert!(world.files("run/student/adapter") == adapter, "the same adapter, with the same provenance");

    world.run("train-student", &[&STEPS[..], &["output.student=other"]].concat()).succeeded();
    fs::rename(world.path("run/other"), world.path("run/moved")).expect("it is moved");
    fs::remove_dir_all(world.path("run/student")).expect("it is removed");
    fs::rename(world.path("run/moved"), world.path("run/student")).expect("it is moved");
    as_before(&|run| run["config"]["seed"] = json!(77));
    world.run("train-student", &STEPS).failed(3, &["another run", "student.seed: expected 10, found 77"]);
}

/// Fault 2.
#[test]
fn a_result_of_another_model_is_not_overwritten() {
    let world = trained();
    world.run("evaluate", &[]).succeeded();
    let result = world.path("run/evaluations/student/held_out.json");
    let before = fs::read(&result).expect("a result");
    let teacher = "evaluate.model=run/teacher/model";
    // Under its own name.
    world.run("evaluate", &[teacher]).succeeded();
    assert_eq!(fs::read(&result).expect("a result"), before, "the student's result is as it was");
    let of_teacher = read_json(&world.path("run/evaluations/teacher/held_out.json"));
    assert_eq!(of_teacher["name"], "teacher");
    assert_eq!(
        of_teacher["provenance"]["recipe"]["evaluate"]["subject"],
        json!({"kind": "model", "name": "teacher"})
    );
    // Under the student's it is refused, before anything is computed.
    let named = [teacher, "evaluate.name=student"];
    let parts = [
        "run/evaluations/student/held_out.json",
        "model `teacher` (weights ",
        "student `student` (adapter ",
        "hint: ",
    ];
    world.run("evaluate", &named).failed(3, &parts);
    assert_eq!(fs::read(&result).expect("a result"), before);
    // The same model again is the same result, which is not made again, and a student that was trained anew has its own anew.
    let said = world.run("evaluate", &[teacher]).succeeded();
    assert!(said.stdout.contains("as it was: made from the same"), "{}", said.stdout);
    fs::remove_dir_all(world.path("run/student")).expect("the student is removed");
    world.run("train-student", &["student.max_steps=3"]).succeeded();
    world.run("evaluate", &[]).succeeded();
    assert_ne!(fs::read(&result).expect("a result"), before);
    // Another model of the same name.
    fs::create_dir_all(world.path("elsewhere/teacher")).expect("a folder");
    fs::rename(world.path("start/model"), world.path("elsewhere/teacher/model")).expect("it is moved");
    world.run("evaluate", &["evaluate.model=elsewhere/teacher/model"]).failed(
        3,
        &["run/evaluations/teacher/held_out.json", "model `teacher` (weights ", "`evaluate.name`"],
    );
    // Whoever means it, says it. What does not name its model is no result.
    world.run_accepting("evaluate", &named, &["result"]).succeeded();
    assert_eq!(read_json(&result)["provenance"]["recipe"]["evaluate"]["subject"]["name"], "teacher");
    let mut old = read_json(&result);
    old.as_object_mut().expect("an object").remove("provenance");
    fs::write(&result, serde_json::to_vec(&old).expect("JSON")).expect("it is written");
    let no_result =
        ["run/evaluations/student/held_out.json", "the JSON of a result", "missing field `provenance`"];
    world.run("evaluate", &named).failed(3, &no_result);
    world.run("report", &[]).failed(3, &no_result);
    fs::remove_file(&result).expect("it is removed");
    let report = world.run("report", &[]).succeeded().stdout;
    assert!(report.contains("\nteacher: model `teacher` (weights "), "{report}");
    // Where earlier versions wrote results there are none.
    fs::write(world.path("run/evaluations/student.json"), "{}").expect("it is written");
    world
        .run("report", &[])
        .failed(3, &["a folder for each name of a result", "found `student.json`", "evaluate again"]);
}

/// Fault 3: what is held out is what was held out when the sequences were made, in their template.
#[test]
fn held_out_prompts_come_from_the_sequences() {
    let world = trained();
    let all = ["evaluate.max_answers=100"];
    world.run("evaluate", &all).succeeded();
    let answers =
        || fs::read_to_string(world.path("run/evaluations/student/held_out.rows.jsonl")).expect("answers");
    let before = answers();
    let sources: Vec<String> = before
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).expect("JSON")["doc"]["source"].to_string())
        .collect();
    assert_eq!(sources.len(), 12);

    // The first row goes: every source that follows would be another, and another row would be held out.
    let data = world.path("data/instructions.jsonl");
    let text = fs::read_to_string(&data).expect("the data");
    fs::write(&data, text.split_once('\n').expect("lines").1).expect("a row is deleted");
    let place = "sequences `";
    world
        .run("evaluate", &all)
        .failed(3, &[place, "data.instructions.0: expected ", "run `softshard prepare` again"]);
    for stage in ["teacher-labels", "finetune", "train-student"] {
        world.run(stage, &[]).failed(3, &[place, "data.instructions.0: expected "]);
    }
    world.run_accepting("evaluate", &all, &["data.instructions"]).succeeded();
    assert_eq!(answers(), before, "the same prompts, references and answers");
    let result = read_json(&world.path("run/evaluations/student/held_out.json"));
    assert_eq!(result["provenance"]["accepted"][0]["name"], "data.instructions.0");
    fs::write(&data, &text).expect("the row is back");

    for (key, parts) in [
        ("data.template=minillm", ["data.template: expected \"minillm\"", "found \"none\""]),
        ("data.split.seed=2", ["data.split.seed: expected 2", "found 1"]),
        ("data.max_tokens=240", ["data.max_tokens: expected 240", "found 250"]),
        ("tokenizer.add_eos=false", ["tokenizer.add_eos: expected false", "found true"]),
    ] {
        world.run("evaluate", &[key]).failed(3, &parts);
        world.run("teacher-labels", &[key]).failed(3, &parts);
    }
    // What lies otherwise is no other data, and data that is gone says nothing.
    fs::remove_file(&data).expect("the data is gone");
    world.run("evaluate", &[&all[..], &["data.sequences_per_shard=7"]].concat()).succeeded();
    assert_eq!(answers(), before);
}

/// Sequences of version 1 have no rows: evaluate says how to make them.
#[test]
fn sequences_of_version_1_are_read_and_not_answered() {
    let world = trained();
    let old = softshard_e2e::root().join("crates/labels/tests/golden/v1/sequences");
    for name in ["manifest.json", "data"] {
        let (from, to) = (old.join(name), world.path("run/old/test").join(name));
        let files = if from.is_dir() {
            let entries = fs::read_dir(&from).expect("shards").map(|entry| entry.expect("an entry").path());
            entries.map(|path| (path.clone(), to.join(path.file_name().expect("a name")))).collect()
        } else {
            vec![(from, to)]
        };
        for (from, to) in files {
            fs::create_dir_all(to.parent().expect("a folder")).expect("a folder");
            fs::copy(from, to).expect("a file");
        }
    }
    let old = ["output.sequences=old"];
    world.run("evaluate", &old).failed(3, &["data.template: expected \"none\", found \"alpaca\""]);
    world
        .run_accepting("evaluate", &old, &["data", "labels"])
        .failed(3, &["run/old/test", "version 1, which has none", "hint: run `softshard prepare` again"]);
}

/// Fault 4.
#[test]
fn labels_are_those_that_the_recipe_makes() {
    let world = World::labelled();
    let student = ["student.max_steps=2"];
    let with = |key: &str| -> Vec<String> { vec![student[0].to_owned(), key.to_owned()] };
    let run = |key: &str| {
        let overrides = with(key);
        world.run("train-student", &overrides.iter().map(String::as_str).collect::<Vec<_>>())
    };
    for (key, parts) in [
        ("labels.selection={ kind = \"top_k\", k = 8 }", ["labels.selection.k: expected 8", "found 16"]),
        ("labels.mantissa_bits=9", ["labels.mantissa_bits: expected 9", "found 7"]),
        ("labels.temperatures=[2.0, 4.0]", ["labels.temperatures: expected [2.0,4.0]", "found [2.0]"]),
        ("teacher.logit_scale=0.5", ["teacher.logit_scale: expected 0.5", "found 1.0"]),
        ("teacher.calibration=temperature", ["teacher.is_calibrated: expected true", "found false"]),
        ("teacher.label_noise=0.25", ["teacher.label_noise: expected 0.25", "found 0.0"]),
        ("teacher.precision=bf16", ["dtype: expected bf16", "found f32"]),
        ("teacher.model=start/model", ["teacher.weights: expected ", "found "]),
    ] {
        run(key).failed(3, &[&parts[..], &["labels `", "run/labels/train", "hint: label again"]].concat());
        assert!(!world.path("run/student").exists(), "{key}: nothing is begun");
    }
    // The teacher was trained on, where it lies.
    let config = world.path("run/teacher/model/config.json");
    let text = fs::read_to_string(&config).expect("the shape");
    edit(&config, "10000.0", "5000.0");
    world.run("train-student", &student).failed(3, &["teacher.config: expected "]);
    fs::write(&config, text).expect("it is back");

    // Another corpus, prepared, but not labelled.
    let data = world.path("data/instructions.jsonl");
    let text = fs::read_to_string(&data).expect("the data");
    let fewer: Vec<&str> = text.lines().skip(5).collect();
    fs::write(&data, fewer.join("\n")).expect("another corpus");
    world.run("prepare", &[]).succeeded();
    world.run("train-student", &student).failed(3, &["run/labels/train", "labels.sequences: expected "]);
    fs::write(&data, &text).expect("the corpus is back");
    world.run("prepare", &[]).succeeded();
    world.run("train-student", &student).succeeded();
    let plain = read_json(&world.path("run/student/adapter/provenance.json"));
    assert_eq!(plain["accepted"], json!([]));
    assert_eq!(plain["from"]["data"]["recipe"]["labels"]["selection"], json!({"kind": "top_k", "k": 16}));

    // The same rows under another manifest are the same sequences.
    world.run("prepare", &["data.sequences_per_shard=7"]).succeeded();
    world.run("train-student", &[student[0], "output.student=same"]).succeeded();

    // Taken by name, and kept; labels of elsewhere are said, and kept.
    let noisy = [student[0], "teacher.label_noise=0.25", "output.student=taken"];
    world.run_accepting("train-student", &noisy, &["teacher.label_noise"]).succeeded();
    let taken = read_json(&world.path("run/taken/adapter/provenance.json"));
    let expected = json!([{"name": "teacher.label_noise", "expected": "0.25", "found": "0.0"}]);
    assert_eq!(taken["accepted"], expected);
    fs::rename(world.path("run/labels"), world.path("theirs")).expect("the labels are moved");
    let theirs = [student[0], "output.labels=../theirs", "labels.mantissa_bits=9", "output.student=foreign"];
    let said = world.run("train-student", &theirs).succeeded().stderr;
    assert_eq!(said.matches("labels that this recipe does not make").count(), 1, "{said}");
    let foreign = read_json(&world.path("run/foreign/adapter/provenance.json"));
    assert_eq!(foreign["accepted"][0]["name"], "labels.foreign");
    let result = [&theirs[..], &["evaluate.max_answers=1"]].concat();
    world.run("evaluate", &result).succeeded();
    let result = read_json(&world.path("run/evaluations/foreign/held_out.json"));
    assert_eq!(result["provenance"]["accepted"][0]["name"], "labels.foreign");
}

/// Fault 5.
#[test]
fn an_output_has_one_run() {
    let world = trained();
    let model = world.path("run/student/model");
    fs::create_dir(&model).expect("a folder");
    for name in ["config.json", "model.safetensors", "tokenizer.json", "provenance.json"] {
        fs::copy(world.path("run/teacher/model").join(name), model.join(name)).expect("a file");
    }
    world
        .run("evaluate", &[])
        .failed(3, &["run/student`: expected `model/` or `adapter/`, found both", "hint: "]);
    let same = ["student.max_steps=2"];
    world.run("train-student", &same).failed(3, &["run/student/model`", "what another run made", "hint: "]);
    fs::remove_dir_all(&model).expect("it is removed");
    world.run("train-student", &same).succeeded();
    // An adapter without its checkpoints: of the same run it is made again, of another it is refused before training.
    fs::remove_dir_all(world.path("run/student/checkpoints")).expect("they are removed");
    let other = ["student.max_steps=2", "student.seed=5"];
    let parts = ["run/student/adapter`", "student.seed: expected 5, found 10", "hint: name another output"];
    world.run("train-student", &other).failed(3, &parts);
    assert!(!world.path("run/student/checkpoints").exists(), "nothing is trained");
    world.run("train-student", &same).succeeded();
    // One that does not say where it comes from.
    fs::remove_dir_all(world.path("run/student/checkpoints")).expect("they are removed");
    fs::remove_file(world.path("run/student/adapter/provenance.json")).expect("it is removed");
    world.run("train-student", &same).failed(3, &["run/student/adapter`", "what another run made"]);
}

/// An adapter belongs to the base it was trained over.
#[test]
fn an_adapter_over_another_base_is_refused() {
    let world = trained();
    let config = world.path("start/model/config.json");
    edit(&config, "10000.0", "5000.0");
    let parts = ["start/model` of the adapter", "model.config: expected ", "hint: name the base"];
    world.run("evaluate", &[]).failed(3, &parts);
    world.run_accepting("evaluate", &[], &["model.config"]).succeeded();
    let result = read_json(&world.path("run/evaluations/student/held_out.json"));
    assert_eq!(result["provenance"]["accepted"][0]["name"], "model.config");
}

/// A merged model says of which base and of which adapter it is, and of which training that was.
#[test]
fn a_merged_model_carries_its_provenance() {
    let world = trained();
    let merge = |output: &str, more: &[&str]| {
        let [base, adapter, output] =
            ["start/model", "run/student/adapter", output].map(|path| world.path(path));
        softshard_e2e::run(softshard_e2e::command(&["merge"]).args([base, adapter, output]).args(more))
    };
    merge("merged", &[]).succeeded();
    let merged = read_json(&world.path("merged/provenance.json"));
    let run = read_json(&world.path("run/student/adapter/provenance.json"));
    for name in ["model.config", "model.weights"] {
        assert!(merged["inputs"][name].is_string());
        assert_eq!(merged["inputs"][name], run["inputs"][name], "{name}");
    }
    assert_eq!((&merged["kind"], &merged["from"]["run"]), (&json!("run"), &run));
    assert_eq!(merged["recipe"], json!({"merge": {"dtype": "keep"}}));
    world.run("evaluate", &[]).succeeded();
    world.run("evaluate", &["evaluate.model=merged"]).succeeded();
    let of_adapter = read_json(&world.path("run/evaluations/student/held_out.json"));
    let of_merged = read_json(&world.path("run/evaluations/merged/held_out.json"));
    assert_eq!(merged["inputs"]["adapter"], of_adapter["provenance"]["inputs"]["adapter"]);
    assert_eq!(of_merged["provenance"]["from"]["run"], merged);
    merge("rounded", &["--dtype", "bf16"]).succeeded();
    let [one, other] = ["merged", "rounded"].map(|path| world.path(path).to_string_lossy().into_owned());
    let said = softshard_e2e::softshard(&["diff", &one, &other]).failed(3, &["something else"]).stdout;
    assert!(said.contains("`merge.dtype` is \"keep\" on the left and \"bf16\" on the right"), "{said}");

    // Over another base than its own it is refused, or taken by name and kept.
    edit(&world.path("start/model/config.json"), "10000.0", "5000.0");
    let parts = ["start/model` of the adapter", "model.config: expected ", "--accept model.config"];
    merge("other", &[]).failed(3, &parts);
    assert!(!world.path("other").exists());
    merge("other", &["--accept", "model.config"]).succeeded();
    let taken = read_json(&world.path("other/provenance.json"));
    assert_eq!(taken["accepted"][0]["name"], "model.config");
    assert_ne!(taken["inputs"]["model.config"], merged["inputs"]["model.config"]);
}

/// Nothing in a provenance is a time, a host or a path: elsewhere the same inputs give the same bytes.
#[test]
fn the_same_inputs_give_the_same_provenance_elsewhere() {
    let made = |commit: &str| {
        let world = World::labelled();
        let snapshot = format!("hub/models--org--small/snapshots/{commit}");
        fs::create_dir_all(world.path(&snapshot).parent().expect("a folder")).expect("a folder");
        fs::rename(world.path("start/model"), world.path(&snapshot)).expect("it is moved");
        let model = format!("student.model={snapshot}");
        let overrides = [&*model, "student.max_steps=2", "evaluate.max_answers=1"];
        world.run("train-student", &overrides).succeeded();
        world.run("evaluate", &overrides).succeeded();
        let base =
            &read_json(&world.path("run/student/adapter/adapter_config.json"))["base_model_name_or_path"];
        assert_eq!(base, "org/small", "a path in a cache is nobody else's");
        let own = world.path("").to_string_lossy().into_owned();
        let texts = [
            fs::read_to_string(world.path("run/sequences/test/manifest.json")).expect("a manifest"),
            fs::read_to_string(world.path("run/student/adapter/provenance.json")).expect("a provenance"),
            read_json(&world.path("run/evaluations/student/held_out.json"))["provenance"].to_string(),
        ];
        for text in &texts {
            assert!(!text.contains(&own) && !text.contains("tmp"), "{text}");
        }
        texts
    };
    let commit = "0123456789abcdef0123456789abcdef01234567";
    assert_eq!(made(commit), made(&commit.replace('0', "9")));
}

/// Why two runs, labels or results are not the same, in words.
#[test]
fn a_diff_says_why_two_of_a_kind_differ() {
    let world = World::labelled();
    let noisy = ["teacher.label_noise=0.5", "output.labels=noisy", "output.student=taught-noise"];
    world.run("teacher-labels", &noisy).succeeded();
    for overrides in [
        &["student.max_steps=2"][..],
        &[&noisy[..], &["student.max_steps=2", "student.loss.alpha=2"]].concat(),
    ] {
        world.run("train-student", overrides).succeeded();
        world.run("evaluate", overrides).succeeded();
    }
    let diff = |left: &str, right: &str| {
        let [left, right] = [left, right].map(|path| world.path(path).to_string_lossy().into_owned());
        softshard_e2e::softshard(&["diff", &left, &right])
    };
    let noise = "`teacher.label_noise` is 0.0 on the left and 0.5 on the right";
    let alpha = "`student.loss.alpha` is 0.5 on the left and 2.0 on the right";
    let said = |left: &str, right: &str, parts: &[&str]| {
        let found = diff(left, right).failed(3, &["something else"]).stdout;
        for part in parts {
            assert!(found.contains(part), "expected {part:?} in:\n{found}");
        }
    };
    said("run/labels/train", "run/noisy/train", &["labels:", noise]);
    said("run/labels", "run/noisy", &[noise]);
    said("run/student", "run/taught-noise", &["a run:", alpha, "the data that it learnt from:", noise]);
    diff("run/sequences/train", "run/sequences/valid").succeeded();
    let results = ["run/evaluations/student/held_out.json", "run/evaluations/taught-noise/held_out.json"];
    let parts = [
        "a result:",
        "the adapter is another: ",
        "a result, its training:",
        alpha,
        "a result, its labels:",
        noise,
    ];
    said(results[0], results[1], &parts);
    let same = diff("run/student", "run/student/adapter").succeeded().stdout;
    assert!(same.contains("made from the same"), "{same}");
    fs::remove_dir_all(world.path("run/student/adapter")).expect("it is removed");
    diff("run/student", "run/student").succeeded();
    diff("run/student", "run/labels").failed(3, &["expected a run as ", "found labels"]);
    diff("run/student", "shape").failed(3, &["shape`: expected what says what it was made from", "hint: "]);
    let labels = ["labels", "diff"].map(str::to_owned).into_iter();
    let folders =
        ["run/labels/train", "run/noisy/train"].map(|path| world.path(path).to_string_lossy().into_owned());
    let arguments: Vec<String> = labels.chain(folders).collect();
    let found = softshard_e2e::softshard(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
    assert!(found.stdout.starts_with("Made from\n"), "{}", found.stdout);
    assert!(found.stdout.contains(noise), "{}", found.stdout);
}
