//! What holds for every import.

use std::fs;

use serde_json::{Value, json};
use softshard_labels::{
    DistillKitConfig, ImportSource, ImportTarget, LabelDataset, LabelPlan, PositionRule, Selection,
    export_hf, export_jsonl, import, import_jsonl,
};

use super::{GO, columns, completions, golden, read, refused, target, vllm};
use crate::common::{TOP_4, plan, tree, write_dataset};

#[test]
fn an_import_goes_on_only_with_the_same_labels() {
    let folder = tempfile::tempdir().unwrap();
    let [whole, file, back] = ["whole", "labels.jsonl", "back"].map(|name| folder.path().join(name));
    let made = write_dataset(&whole, &plan(LabelPlan::ranges(4, 2), TOP_4));
    export_jsonl(&LabelDataset::open(&whole).unwrap(), &file, &GO, &()).unwrap();
    let text = fs::read_to_string(&file).unwrap();
    let mut lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    lines[3]["source"] = json!("someone else");
    fs::write(&file, lines.iter().map(|line| format!("{line}\n")).collect::<String>()).unwrap();
    let expected =
        format!("shard 1: expected BLAKE3 {} with 2 rows, as the manifest says", made.shards[1].blake3);
    refused(import_jsonl(&back, &file, None, &GO, &()), &[&expected]);
    assert!(!back.join("manifest.json").exists() && !back.join("_softshard/commits/00001.json").exists());
    fs::write(&file, &text).unwrap();
    assert_eq!(import_jsonl(&back, &file, None, &GO, &()).unwrap().written, 1);
    assert_eq!(tree(&back), tree(&whole));

    // Labels of others have no manifest: what the rows hold is part of the plan.
    let out = folder.path().join("out");
    let mut response = vllm();
    read(&completions(folder.path(), &[response.clone()]), 2, &out).unwrap();
    read(&completions(folder.path(), &[response.clone()]), 2, &out).unwrap();
    response["choices"][0]["prompt_logprobs"][1]["7"]["logprob"] = json!(-1.6);
    let error = read(&completions(folder.path(), &[response]), 2, &out).unwrap_err().to_string();
    assert!(error.contains("sequences: expected "), "{error}");
}

#[test]
fn what_changes_between_the_readings_ends_an_import() {
    let folder = tempfile::tempdir().unwrap();
    let answer = json!({"prompt_token_ids": [4], "choices": [{"message": {"content": " the"}, "logprobs": {"content": [
        {"token": " the", "logprob": -0.2, "top_logprobs": [{"token": " the", "logprob": -0.2}]}]}}]});
    let files = completions(folder.path(), &[answer]);
    let (file, calls) = (&files[0], std::cell::Cell::new(0));
    let resolve = |_: &str, _: &[&str]| {
        calls.set(calls.get() + 1);
        // As a file would that is written meanwhile.
        Ok(if folder.path().join("out/_softshard/plan.json").exists() { 12 } else { 11 })
    };
    let source = ImportSource::Completions { files: std::slice::from_ref(file), top_k: 1, resolve: &resolve };
    let out = folder.path().join("out");
    refused(
        import(&out, &source, &target(97), &GO, &()),
        &["rows: expected what was there when they were checked"],
    );
    assert!(calls.get() > 1 && !out.join("manifest.json").exists());
    assert!(!out.join("_softshard/commits/00000.json").exists(), "nothing is committed");
}

#[test]
fn the_mass_that_is_said_to_be_reached_is_checked() {
    let folder = tempfile::tempdir().unwrap();
    let [whole, hf] = ["whole", "hf"].map(|name| folder.path().join(name));
    let some = plan(LabelPlan::ranges(9, 9), Selection::TopP { p: 0.2, k: 30 });
    write_dataset(&whole, &LabelPlan { mantissa_bits: 23, position_mantissa_bits: 23, ..some });
    export_hf(&LabelDataset::open(&whole).unwrap(), &hf, &GO, &()).unwrap();
    let files = [hf.join("data/train-00000-of-00001.parquet")];
    let map = columns(
        &[
            ("input_ids", "input_ids"),
            ("token_ids", "teacher_token_ids"),
            ("log_probs", "teacher_log_probs"),
            ("labels", "labels"),
        ],
        PositionRule::This,
    );
    let source = ImportSource::Parquet { files: &files, columns: &map };
    let import_with = |p: f64| {
        let target = ImportTarget { top_p: Some(p), ..target(97) };
        import(&folder.path().join(p.to_string()), &source, &target, &GO, &())
    };
    refused(
        import_with(0.5),
        &[".parquet` row ", " log_probs: expected a mass of 0.5, as there are fewer than ", ", found 0."],
    );
    import_with(0.2).unwrap();
}

#[test]
fn an_approximate_tail_leaves_a_trace() {
    let config = DistillKitConfig::load(&golden("delta").join("compression_config.yaml")).unwrap();
    let files = [golden("delta").join("data_0.parquet")];
    let source = ImportSource::DistillKit { files: &files, config: &config };
    let folder = tempfile::tempdir().unwrap();
    let target = ImportTarget { approximate_tail: true, ..target(1000) };
    let done = import(folder.path(), &source, &target, &GO, &()).unwrap();
    let teacher = &done.manifest.plan.teacher;
    assert_eq!(teacher.config_blake3, "unverified: test, approximate tail");
    assert!(teacher.has_approximate_tail() && !teacher.is_verified());
    let card = fs::read_to_string(folder.path().join("README.md")).unwrap();
    assert!(card.contains("was computed of them and is approximate") && !card.contains("is exact"), "{card}");
}
