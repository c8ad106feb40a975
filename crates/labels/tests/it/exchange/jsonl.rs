//! JSONL there and back, and rows for other trainers.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use softshard_labels::{
    ImportSource, ImportTarget, LabelDataset, LabelDiff, LabelPlan, OptionalColumn, PositionRule, Selection,
    export_hf, export_jsonl, import, import_jsonl,
};

use super::{GO, columns, refused, target};
use crate::common::{TOP_4, plan, tempered, tree, write_dataset};

#[test]
fn jsonl_goes_there_and_back_to_the_same_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let mut omitting = plan(LabelPlan::ranges(5, 3), TOP_4);
    omitting.omit = vec![OptionalColumn::LogSumExp, OptionalColumn::GoldLogProb];
    let with_tails = tempered(plan(LabelPlan::ranges(5, 2), Selection::TopP { p: 0.9, k: 30 }), &[0.5, 2.0]);
    let without_tails = LabelPlan { version: LabelPlan::VERSION, ..with_tails.clone() };
    let all = plan(vec![[7, 9]], Selection::TopK { k: 97 });
    let drawn = plan(LabelPlan::ranges(5, 5), Selection::Sampled { draws: 20 });
    let hybrid = plan(LabelPlan::ranges(5, 5), Selection::TopKSampled { k: 3, draws: 9 });
    for (index, plan) in [omitting, with_tails, without_tails, all, drawn, hybrid].into_iter().enumerate() {
        let [whole, file, back] =
            ["whole", "labels.jsonl", "back"].map(|name| folder.path().join(format!("{index}-{name}")));
        write_dataset(&whole, &plan);
        export_jsonl(&LabelDataset::open(&whole).unwrap(), &file, &GO, &()).unwrap();
        let done = import_jsonl(&back, &file, None, &GO, &()).unwrap();
        assert_eq!(done.written, plan.shards.len());
        assert_eq!(tree(&back), tree(&whole));
        for gone in ["manifest.json", "_softshard/commits/00000.json"] {
            fs::remove_file(back.join(gone)).unwrap();
        }
        assert_eq!(import_jsonl(&back, &file, None, &GO, &()).unwrap().written, 1);
        assert_eq!(tree(&back), tree(&whole));
    }
}

#[test]
fn jsonl_that_was_changed_is_refused_by_line() {
    let folder = tempfile::tempdir().unwrap();
    let [whole, file, back] = ["whole", "labels.jsonl", "back"].map(|name| folder.path().join(name));
    write_dataset(&whole, &plan(LabelPlan::ranges(3, 3), TOP_4));
    export_jsonl(&LabelDataset::open(&whole).unwrap(), &file, &GO, &()).unwrap();
    let text = fs::read_to_string(&file).unwrap();
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let try_with = |change: &dyn Fn(&mut Value)| {
        let mut lines = lines.clone();
        change(&mut lines[1]);
        let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
        fs::write(&file, text).unwrap();
        import_jsonl(&back, &file, None, &GO, &())
    };
    refused(
        try_with(&|line| line["input_ids"][0] = json!(96)),
        &["labels.jsonl` line 2 sequence_key: expected "],
    );
    refused(
        try_with(&|line| line["log_probs"][0][0] = json!(0.5)),
        &["` line 2 position ", " log_probs[0]: expected at most 0 and finite, found 0.5"],
    );
    refused(
        try_with(&|line| line["token_ids"][0] = json!([1])),
        &["line 2 log_probs[0]: expected 1 values, found 4"],
    );
    refused(
        try_with(&|line| line["surprise"] = json!(1)),
        &["line 2: expected a JSON object", "unknown field `surprise`"],
    );
    fs::write(&file, text.lines().next().unwrap()).unwrap();
    refused(import_jsonl(&back, &file, None, &GO, &()), &["expected 3 lines, as the manifest says, found 1"]);
    refused(import_jsonl(&back, &file, Some(Path::new("/no/such")), &GO, &()), &["--manifest"]);
    assert!(!back.exists(), "nothing is written");
}

#[test]
fn exports_touch_nothing_of_others() {
    let folder = tempfile::tempdir().unwrap();
    let whole = folder.path().join("whole");
    write_dataset(&whole, &plan(LabelPlan::ranges(3, 3), TOP_4));
    let dataset = LabelDataset::open(&whole).unwrap();
    let [part, file_part] = ["out.part", "labels.jsonl.part"].map(|name| folder.path().join(name));
    fs::create_dir(&part).unwrap();
    fs::write(part.join("theirs"), "theirs").unwrap();
    fs::write(&file_part, "theirs").unwrap();
    export_hf(&dataset, &folder.path().join("out/"), &GO, &()).unwrap();
    export_jsonl(&dataset, &folder.path().join("labels.jsonl"), &GO, &()).unwrap();
    assert!(folder.path().join("out/data/train-00000-of-00001.parquet").exists());
    assert_eq!(fs::read_to_string(part.join("theirs")).unwrap(), "theirs");
    assert_eq!(fs::read_to_string(&file_part).unwrap(), "theirs");
    let names: Vec<_> =
        fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names.len(), 6, "no part stays behind: {names:?}");
    let error = export_hf(&dataset, &file_part, &GO, &()).unwrap_err();
    assert!(error.is_bad_data() && error.to_string().ends_with("found a file"), "{error}");
}

#[test]
fn rows_for_trainers_hold_the_same_labels() {
    let folder = tempfile::tempdir().unwrap();
    let [whole, out, back] = ["whole", "hf", "back"].map(|name| folder.path().join(name));
    let plan = plan(LabelPlan::ranges(7, 3), TOP_4);
    write_dataset(&whole, &plan);
    let dataset = LabelDataset::open(&whole).unwrap();
    export_hf(&dataset, &out, &GO, &()).unwrap();
    let error = export_hf(&dataset, &out, &GO, &()).unwrap_err().to_string();
    assert!(error.contains("expected a folder that is not there or empty"), "{error}");

    let file = out.join("data/train-00000-of-00001.parquet");
    let files = [file];
    let map = [
        ("input_ids", "input_ids"),
        ("token_ids", "teacher_token_ids"),
        ("log_probs", "teacher_log_probs"),
        ("labels", "labels"),
        ("log_sum_exp", "teacher_log_sum_exp"),
        ("tail_log_mass", "teacher_tail_log_mass"),
        ("entropy", "teacher_entropy"),
        ("gold_log_prob", "teacher_gold_log_prob"),
        ("source", "source"),
    ];
    let few = columns(&map[..3], PositionRule::This);
    let source = ImportSource::Parquet { files: &files, columns: &few };
    refused(
        import(&back, &source, &target(97), &GO, &()),
        &["tail_log_mass: expected exact", "rounded", "--approximate-tail"],
    );
    let map = columns(&map, PositionRule::This);
    let source = ImportSource::Parquet { files: &files, columns: &map };
    let target = ImportTarget { approximate_tail: true, mantissa_bits: plan.mantissa_bits, ..target(97) };
    import(&back, &source, &target, &GO, &()).unwrap();
    let back = LabelDataset::open(&back).unwrap();
    let found = LabelDiff::of(&dataset, &back, &GO).unwrap();
    assert_eq!((found.equal, found.different.len()), (7, 0), "{found:?}");
    assert!(!back.manifest().plan.teacher.is_verified());
}
