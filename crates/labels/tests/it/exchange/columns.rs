//! Parquet columns of others.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use softshard_labels::{
    ColumnMap, ImportSource, ImportTarget, LabelDataset, LabelPlan, LabelWriter, OptionalColumn,
    PositionRule, Selection, export_hf, import,
};

use super::{GO, columns, refused, target};
use crate::common::{Random, TOP_4, plan};

#[test]
fn columns_of_others_are_read_in_every_layout() {
    let expected: Value = serde_json::from_slice(&fs::read(foreign("expected.json")).unwrap()).unwrap();
    for case in expected["cases"].as_array().unwrap() {
        let name = case["name"].as_str().unwrap();
        let (files, map) = ([foreign(&format!("{name}.parquet"))], mapping(case));
        let folder = tempfile::tempdir().unwrap();
        let target = ImportTarget { approximate_tail: case["approximate"] == true, ..target(50) };
        let source = ImportSource::Parquet { files: &files, columns: &map };
        let done = import(folder.path(), &source, &target, &GO, &())
            .unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(done.manifest.plan.selection, Selection::TopK { k: 5 });
        let tolerance = if case["approximate"] == true { 2e-2 } else { 1e-5 };
        let rows: Result<Vec<_>, _> = LabelDataset::open(folder.path()).unwrap().iter().collect();
        for (labels, row) in rows.unwrap().iter().zip(expected["rows"].as_array().unwrap()) {
            assert_eq!(json!(labels.input_ids), row["tokens"], "{name}");
            let length = labels.input_ids.len();
            let first = if case["map"].get("loss_mask").is_some() { length / 2 } else { 1 };
            assert_eq!(labels.positions.len(), length - first, "{name}");
            for (index, entries) in labels.entries().enumerate() {
                let place = first + index - 1;
                assert_eq!(json!(entries.position), json!(first + index), "{name}");
                assert_eq!(entries.token_ids.len(), 5);
                let ids: Vec<i32> = serde_json::from_value(row["ids"][place].clone()).unwrap();
                for (id, log_prob) in entries.token_ids.iter().zip(entries.log_probs) {
                    let entry = ids.iter().position(|expected| expected == id).unwrap();
                    let expected = row["values"][place][entry].as_f64().unwrap();
                    assert!(
                        (f64::from(*log_prob) - expected).abs() < tolerance,
                        "{name}: {log_prob}, {expected}"
                    );
                }
                for (column, key) in [
                    (&labels.tail_log_mass, "tail"),
                    (&labels.log_sum_exp, "lse"),
                    (&labels.entropy, "entropy"),
                    (&labels.gold_log_prob, "gold"),
                ] {
                    let Some(found) = column.get(index) else { continue };
                    let expected = row[key][place].as_f64().unwrap();
                    assert!(
                        (f64::from(*found) - expected).abs() < 2e-3 * expected.abs().max(1.0),
                        "{name} {key}"
                    );
                }
            }
        }
    }
}

#[test]
fn columns_that_do_not_fit_are_refused_by_row() {
    let folder = tempfile::tempdir().unwrap();
    let try_file = |name: &str, pairs: &[(&str, &str)], rule| {
        let (files, map) = ([foreign(name)], columns(pairs, rule));
        import(
            &folder.path().join("out"),
            &ImportSource::Parquet { files: &files, columns: &map },
            &target(50),
            &GO,
            &(),
        )
    };
    let base = [("input_ids", "tokens"), ("token_ids", "ids"), ("log_probs", "values")];
    let next = PositionRule::Next;
    refused(
        try_file("bad-null.parquet", &base, next),
        &["bad-null.parquet` row 0 column `values` values: expected a number everywhere, found null"],
    );
    refused(
        try_file("bad-few.parquet", &base, next),
        &["bad-few.parquet` row 0 log_probs: expected as many values as ids: 5, found 4"],
    );
    refused(
        try_file("next-short.parquet", &base, PositionRule::This),
        &["row 0 token_ids: expected entries at 2 places, as there are 2 tokens, found 1"],
    );
    refused(
        try_file("half.parquet", &base, next),
        &["tail_log_mass: expected exact", "rounded", "--approximate-tail"],
    );
    // Differences to the log-sum-exp do not look rounded; the logits do.
    let logits = [base[0], base[1], ("logits", "values"), ("log_sum_exp", "lse")];
    refused(
        try_file("bad-rounded.parquet", &logits, next),
        &["tail_log_mass: expected exact", "rounded", "--approximate-tail"],
    );
    refused(
        try_file("next-flat-masked.parquet", &base, next),
        &[
            "row 0 token_ids: expected entries that 2 or 1 places share evenly, not both, found 10",
            "map `counts`",
        ],
    );
    refused(
        try_file("padded.parquet", &[base[0], base[1], base[2], ("counts", "tokens")], next),
        &["row 0 counts: expected 1 of them, as token_ids has lists, found 2"],
    );
    refused(try_file("padded.parquet", &base, next), &["padded.parquet` row 0"]);
    refused(
        try_file("normalised.parquet", &base, next),
        &["expected log-probabilities of the full vocabulary", "--normalised"],
    );
    let other = [base[0], base[1], ("log_probs", "probabilities")];
    refused(
        try_file("this.parquet", &other, next),
        &["this.parquet`: expected column `probabilities`, found only tokens, ids, values, lse"],
    );
    let swapped = [base[0], ("token_ids", "values"), ("log_probs", "ids")];
    refused(
        try_file("next-short.parquet", &swapped, next),
        &["row 0 column `ids` type: expected floating-point numbers"],
    );
    for (pairs, said) in [
        (&base[..2], "expected a column for `log_probs`, or one for `logits`, not both, found none"),
        (
            &[base[0], base[1], ("logits", "values")],
            "expected a column for `log_sum_exp`, as there are logits",
        ),
        (&[base[0], ("top", "ids")], "expected one of input_ids, token_ids"),
    ] {
        let pairs = pairs.iter().map(|(key, column)| ((*key).to_owned(), (*column).to_owned()));
        let error = ColumnMap::new(pairs, next, false).unwrap_err().to_string();
        assert!(error.contains(said), "{error}");
    }
    assert!(!folder.path().join("out").exists());
}

#[test]
fn damaged_files_of_others_end_in_an_error_or_in_labels_that_pass() {
    let folder = tempfile::tempdir().unwrap();
    let bytes = fs::read(foreign("this.parquet")).unwrap();
    let file = [folder.path().join("damaged.parquet")];
    let mut random = Random(11);
    let map = columns(
        &[("input_ids", "tokens"), ("token_ids", "ids"), ("log_probs", "values")],
        PositionRule::This,
    );
    let mut refusals = 0;
    for flip in 0..60 {
        let mut damaged = bytes.clone();
        damaged[random.below(bytes.len())] ^= 1 << random.below(8);
        if flip % 10 == 0 {
            damaged.truncate(random.below(bytes.len()));
        }
        fs::write(&file[0], damaged).unwrap();
        let out = folder.path().join(flip.to_string());
        match import(&out, &ImportSource::Parquet { files: &file, columns: &map }, &target(50), &GO, &()) {
            Ok(_) => drop(LabelDataset::open(&out).unwrap()),
            Err(error) => {
                assert!(error.is_bad_data() && error.to_string().contains("damaged.parquet"), "{error}");
                assert!(!out.exists());
                refusals += 1;
            }
        }
    }
    assert!(refusals > 6, "{refusals}");
}

#[test]
fn a_wrong_position_rule_is_found() {
    let folder = tempfile::tempdir().unwrap();
    let hf = folder.path().join("hf");
    let out = folder.path().join("out");
    export_hf(&liked(folder.path()), &hf, &GO, &()).unwrap();
    let files = [hf.join("data/train-00000-of-00001.parquet")];
    let mut pairs = vec![
        ("input_ids", "input_ids"),
        ("token_ids", "teacher_token_ids"),
        ("log_probs", "teacher_log_probs"),
    ];
    let map = columns(&pairs, PositionRule::Next);
    let source = ImportSource::Parquet { files: &files, columns: &map };
    let hint = "entries at t seem to describe token t: --position-rule this";
    refused(
        import(&out, &source, &target(97), &GO, &()),
        &["token_ids: expected entries that hold the token they describe", hint],
    );
    pairs.push(("labels", "labels"));
    let map = columns(&pairs, PositionRule::Next);
    let source = ImportSource::Parquet { files: &files, columns: &map };
    refused(
        import(&out, &source, &target(97), &GO, &()),
        &["token_ids: expected entries, as the loss counts there, found none"],
    );
    let map = columns(&pairs, PositionRule::This);
    let source = ImportSource::Parquet { files: &files, columns: &map };
    import(&out, &source, &target(97), &GO, &()).unwrap();
}

/// What `tests/peers/make_foreign.py` wrote.
fn foreign(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/foreign").join(name)
}

fn mapping(case: &Value) -> ColumnMap {
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let pairs = case["map"].as_object().unwrap().iter().map(|(key, column)| (key.clone(), text(column)));
    let rule = if case["rule"] == "next" { PositionRule::Next } else { PositionRule::This };
    ColumnMap::new(pairs, rule, case["normalised"] == true).unwrap()
}

/// A dataset whose tokens are those that the teacher likes most.
fn liked(folder: &Path) -> LabelDataset {
    let plan = LabelPlan {
        omit: vec![OptionalColumn::LogSumExp, OptionalColumn::Entropy, OptionalColumn::GoldLogProb],
        mantissa_bits: 23,
        position_mantissa_bits: 23,
        ..plan(LabelPlan::ranges(40, 40), TOP_4)
    };
    let dir = folder.join("liked");
    let writer = LabelWriter::create_or_resume(&dir, plan.clone()).unwrap();
    let mut shard = writer.shard(0).unwrap();
    for mut labels in crate::common::shard_labels(&plan, 0) {
        let first: Vec<i32> = labels.entries().map(|entries| entries.token_ids[0]).collect();
        for (position, id) in labels.positions.iter().zip(first) {
            labels.input_ids[usize::try_from(*position).unwrap()] = id;
        }
        shard.push(labels).unwrap();
    }
    shard.commit().unwrap();
    writer.finish().unwrap();
    LabelDataset::open(&dir).unwrap()
}
