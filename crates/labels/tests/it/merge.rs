//! Merging: parts of one plan, and datasets of other sequences.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use crate::common::{Random, TOP_4, labels, plan, shard_labels, tree, write_dataset, write_shard};
use softshard_labels::{Error, LabelDataset, LabelPlan, LabelWriter, Merged, merge};

static GO: AtomicBool = AtomicBool::new(false);

fn merged(output: &Path, inputs: &[&Path]) -> Result<Merged, Error> {
    let inputs: Vec<PathBuf> = inputs.iter().map(|dir| dir.to_path_buf()).collect();
    merge(output, &inputs, &GO, &())
}

fn message(result: Result<Merged, Error>) -> String {
    let error = result.unwrap_err();
    assert!(error.is_bad_data(), "{error}");
    error.to_string()
}

/// A folder with some shards of a plan.
fn some_shards(dir: &Path, plan: &LabelPlan, shards: &[usize]) {
    let writer = LabelWriter::create_or_resume(dir, plan.clone()).unwrap();
    shards.iter().for_each(|shard| drop(write_shard(&writer, *shard)));
}

#[test]
fn parts_of_one_plan_become_what_one_run_writes() {
    let plan = plan(LabelPlan::ranges(20, 4), TOP_4);
    let folder = tempfile::tempdir().unwrap();
    let [a, b, c, out, whole] = ["a", "b", "c", "out", "whole"].map(|name| folder.path().join(name));
    some_shards(&a, &plan, &[0, 3]);
    some_shards(&b, &plan, &[3, 1]);
    write_dataset(&whole, &plan);

    let said = message(merged(&out, &[&a, &b]));
    assert!(said.contains("expected 5 shards, found 3 of them; missing 2, 4\nhint: "), "{said}");
    assert!(!out.join("manifest.json").exists());

    // What is there stays; a part may be finished, and may be the output itself.
    some_shards(&c, &plan, &[2, 4]);
    let done = merged(&out, &[&c, &out]).unwrap();
    assert_eq!((done.copied, done.conflicts.len()), (2, 0));
    assert_eq!(tree(&out), tree(&whole));
    assert_eq!(merged(&out, &[&a, &b, &c, &whole]).unwrap().copied, 0);
    assert_eq!(tree(&out), tree(&whole));
}

#[test]
fn the_first_of_two_files_of_a_shard_is_kept_and_damage_is_passed_over() {
    let plan = plan(LabelPlan::ranges(8, 4), TOP_4);
    let folder = tempfile::tempdir().unwrap();
    let [a, b, out] = ["a", "b", "out"].map(|name| folder.path().join(name));
    write_dataset(&a, &plan);
    let writer = LabelWriter::create_or_resume(&b, plan.clone()).unwrap();
    write_shard(&writer, 0);
    let mut other = writer.shard(1).unwrap();
    (0..4).for_each(|row| other.push(labels(&mut Random(900 + row), &plan)).unwrap());
    other.commit().unwrap();

    let done = merged(&out, &[&a, &b]).unwrap();
    assert_eq!(done.conflicts.len(), 1);
    let line = &done.conflicts[0];
    assert!(
        line.starts_with("shard 1: `") && line.ends_with("hold different bytes; the first is kept"),
        "{line}"
    );
    assert_eq!(tree(&out), tree(&a));

    // A finished dataset with a damaged shard is repaired from another copy.
    let manifest = LabelDataset::open(&a).unwrap().manifest().clone();
    let file = a.join("data").join(&manifest.shards[0].file);
    let mut bytes = fs_err::read(&file).unwrap();
    bytes[50] ^= 4;
    fs_err::write(&file, bytes).unwrap();
    let repaired = folder.path().join("repaired");
    let said = message(merged(&repaired, &[&a]));
    assert!(said.contains("found 1 of them; missing 0"), "{said}");
    merged(&repaired, &[&a, &b]).unwrap();
    assert_eq!(tree(&repaired), tree(&out));
}

#[test]
fn ranges_of_one_sequence_dataset_become_what_one_run_writes() {
    let folder = tempfile::tempdir().unwrap();
    let [a, b, out, whole] = ["a", "b", "out", "whole"].map(|name| folder.path().join(name));
    write_dataset(&a, &plan(vec![[0, 3], [3, 6]], TOP_4));
    write_dataset(&b, &plan(vec![[6, 9], [9, 10]], TOP_4));
    write_dataset(&whole, &plan(LabelPlan::ranges(10, 3), TOP_4));
    assert_eq!(merged(&out, &[&b, &a]).unwrap().copied, 4);
    assert_eq!(tree(&out), tree(&whole), "chunks that were copied are those that are written");
}

#[test]
fn other_sequences_become_one_dataset_and_resume() {
    let folder = tempfile::tempdir().unwrap();
    let [a, b, out, again] = ["a", "b", "out", "again"].map(|name| folder.path().join(name));
    let first = plan(vec![[0, 3], [3, 6]], TOP_4);
    let second = LabelPlan {
        sequences: "66".repeat(32),
        split: "valid".to_owned(),
        ..plan(vec![[40, 44], [44, 45]], TOP_4)
    };
    write_dataset(&a, &first);
    write_dataset(&b, &second);
    let done = merged(&out, &[&a, &b]).unwrap();
    let plan = &done.manifest.plan;
    assert_eq!(plan.shards, [[0, 3], [3, 6], [6, 10], [10, 11]]);
    assert_eq!(plan.split, "train_valid");
    let parts = format!("{}\n{}\n", first.sequences, second.sequences);
    assert_eq!(plan.sequences, blake3::hash(parts.as_bytes()).to_hex().as_str());
    let rows = |dir: &Path| {
        let rows: Result<Vec<_>, _> = LabelDataset::open(dir).unwrap().iter().collect();
        rows.unwrap()
    };
    assert_eq!(rows(&out), [rows(&a), rows(&b)].concat());

    let stopped = merge(&again, &[a.clone(), b.clone()], &AtomicBool::new(true), &()).unwrap_err();
    assert!(matches!(&stopped, Error::Io(error) if error.kind() == ErrorKind::Interrupted), "{stopped}");
    let writer = LabelWriter::create_or_resume(&again, plan.clone()).unwrap();
    assert_eq!(writer.missing().unwrap(), [0, 1, 2, 3]);
    // One commit of the first run is gone, as if it had been killed.
    merged(&again, &[&a, &b]).unwrap();
    fs_err::remove_file(again.join("_softshard/commits/00001.json")).unwrap();
    fs_err::remove_file(again.join("manifest.json")).unwrap();
    assert_eq!(merged(&again, &[&a, &b]).unwrap().copied, 1);
    assert_eq!(tree(&again), tree(&out));
    let said = message(merged(&out, &[&b, &a]));
    assert!(said.contains("expected the plan of this run, found another plan"), "{said}");
}

#[test]
fn what_does_not_fit_is_refused_and_nothing_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let [a, b, c, out] = ["a", "b", "c", "out"].map(|name| folder.path().join(name));
    let first = plan(vec![[0, 3]], TOP_4);
    write_dataset(&a, &first);
    let mut other = LabelPlan { mantissa_bits: 5, ..plan(vec![[3, 5]], TOP_4) };
    other.teacher.weights_blake3 = "77".repeat(32);
    write_dataset(&b, &other);
    let said = message(merged(&out, &[&a, &b]));
    for part in [
        "/b`: expected labels made like those of `",
        "mantissa_bits: expected ",
        ", found 5",
        "teacher.weights_blake3",
    ] {
        assert!(said.contains(part), "expected {part} in {said}");
    }

    // The same sequences: other labels are named, equal ones may come twice.
    let other = LabelPlan { sequences: "66".repeat(32), ..first.clone() };
    let writer = LabelWriter::create_or_resume(&c, other.clone()).unwrap();
    let mut shard = writer.shard(0).unwrap();
    let mut rows = shard_labels(&first, 0);
    let log_partition = &mut rows[1].log_sum_exp[0];
    *log_partition += 1.0;
    let key = rows[1].key();
    rows.into_iter().for_each(|row| shard.push(row).unwrap());
    shard.commit().unwrap();
    let said = message(merged(&out, &[&a, &c]));
    assert!(said.contains("/c`: expected a finished dataset, found no manifest.json"), "{said}");
    writer.finish().unwrap();
    let said = message(merged(&out, &[&a, &c]));
    assert!(said.contains(&format!("/c` row 1, sequence {key}: expected the labels of `")), "{said}");

    let said = message(merged(&out, &[&a, folder.path()]));
    assert!(
        said.contains("expected labels: manifest.json or _softshard/plan.json, found neither\nhint: "),
        "{said}"
    );
    assert!(!out.exists());

    let twin = folder.path().join("twin");
    write_dataset(&twin, &LabelPlan { shards: vec![[0, 2]], ..other });
    assert_eq!(merged(&out, &[&a, &twin]).unwrap().manifest.rows, 5);
}
