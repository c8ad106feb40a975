//! Datasets that were written once for each version of the format, and are read for ever.
//!
//! What is in `tests/golden/v1` must never be made again, whatever a test says: other teams have such files. A change that
//! needs other files is a new version, with a folder of its own beside this one, made once by
//! `cargo test --workspace --test it -- --ignored golden_files`.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use softshard_labels::{
    LabelDataset, LabelGroup, LabelPlan, LabelWriter, OptionalColumn, ReadLimits, Selection, Sequence,
    SequenceDataset, SequenceLabels, SequenceWriter, verify,
};

use crate::common::{Random, VOCABULARY, empty, info, leave_out, plan, push_position, sequence, tempered};

const VERSION: u32 = LabelPlan::NEWEST_VERSION;
const ROWS: u64 = 8;

/// Datasets of a version: what was new in it.
fn datasets(version: u32) -> &'static [&'static str] {
    match version {
        1 => &["top_k", "top_p", "sampled", "top_k_sampled"],
        _ => &["top_k", "top_p", "top_k_sampled"],
    }
}

fn folder(version: u32) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/golden/v{version}"))
}

/// The plan of a golden dataset: together they have every selection, every kind of rounding, and every omission; of the second version
/// every selection that has tails at temperatures, one of them below 1.
fn golden_plan(version: u32, name: &str) -> LabelPlan {
    let first = first_plan(name);
    if version == 1 {
        return first;
    }
    let omit = if name == "top_p" { first.omit[1..].to_vec() } else { Vec::new() };
    let temperatures: &[f32] = if name == "top_k" { &[0.5, 2.0] } else { &[0.25, 0.7, 1.5] };
    tempered(LabelPlan { omit, ..first }, temperatures)
}

fn first_plan(name: &str) -> LabelPlan {
    let shards = LabelPlan::ranges(ROWS, ROWS / 2);
    let plan = |selection| LabelPlan { row_group_tokens: 6, ..plan(shards, selection) };
    match name {
        "top_k" => LabelPlan { temperatures: vec![2.0], ..plan(Selection::TopK { k: 4 }) },
        "top_p" => LabelPlan {
            mantissa_bits: 23,
            position_mantissa_bits: 23,
            omit: vec![OptionalColumn::LogSumExp, OptionalColumn::Entropy, OptionalColumn::GoldLogProb],
            ..plan(Selection::TopP { p: 0.95, k: 6 })
        },
        "sampled" => LabelPlan {
            position_mantissa_bits: 7,
            omit: vec![OptionalColumn::LogSumExp],
            ..plan(Selection::Sampled { draws: 6 })
        },
        "top_k_sampled" => LabelPlan {
            temperatures: vec![0.5, 1.5],
            omit: vec![OptionalColumn::GoldLogProb],
            ..plan(Selection::TopKSampled { k: 3, draws: 4 })
        },
        name => panic!("no golden dataset {name}"),
    }
}

/// Seeds of sequences that are short enough for files that are looked at.
fn seeds() -> Vec<u64> {
    let is_short = |seed: &u64| (2..=5).contains(&sequence(&mut Random(*seed), VOCABULARY).positions.len());
    (0..).filter(is_short).take(usize::try_from(ROWS).unwrap()).collect()
}

/// Labels of a teacher that is rather sure of itself. At the first position it knows three tokens alone, two of them
/// equal, so that nothing lies beyond them.
fn labels(seed: u64, plan: &LabelPlan) -> SequenceLabels {
    let mut random = Random(seed);
    let Sequence { source, input_ids, positions } = sequence(&mut random, VOCABULARY);
    let mut labels = SequenceLabels { source, input_ids, positions, ..empty(plan) };
    for index in 0..labels.positions.len() {
        let logit = |id| match id {
            7 | 40 => 2.0,
            90 => 1.0,
            _ => -800.0,
        };
        let logits: Vec<f64> = match index {
            0 => (0..VOCABULARY).map(logit).collect(),
            _ => (0..VOCABULARY).map(|_| 12.0 * random.unit().powi(4)).collect(),
        };
        let gold = labels.input_ids[usize::try_from(labels.positions[index]).unwrap()];
        push_position(&mut labels, plan, &logits, gold);
    }
    leave_out(&mut labels, plan);
    labels
}

/// A row as the expected values have it: each f32 as the f64 of the same value, and null for an infinite one.
fn row_of(labels: &SequenceLabels) -> Value {
    let mut row = json!({
        "sequence_key": labels.key().to_string(),
        "source": labels.source,
        "input_ids": labels.input_ids,
        "positions": labels.positions,
        "counts": labels.counts,
        "token_ids": labels.token_ids,
        "log_probs": labels.log_probs,
        "sample_counts": labels.sample_counts,
        "log_sum_exp": labels.log_sum_exp,
        "tail_log_mass": labels.tail_log_mass,
        "entropy": labels.entropy,
        "gold_log_prob": labels.gold_log_prob,
        "log_partitions": labels.log_partitions,
    });
    if !labels.tail_log_masses.is_empty() {
        row["tail_log_masses"] = json!(labels.tail_log_masses);
    }
    row
}

fn sequence_of(sequence: &Sequence) -> Value {
    json!({
        "sequence_key": sequence.key().to_string(),
        "source": sequence.source,
        "input_ids": sequence.input_ids,
        "positions": sequence.positions,
    })
}

/// JSON with a row on each line.
fn to_text(rows: &[Value]) -> String {
    let rows: Vec<String> = rows.iter().map(Value::to_string).collect();
    format!("[\n{}\n]\n", rows.join(",\n"))
}

fn expected(version: u32, name: &str) -> Vec<Value> {
    let text = fs_err::read_to_string(folder(version).join(format!("{name}.expected.json"))).unwrap();
    serde_json::from_str(&text).unwrap()
}

#[test]
#[ignore = "makes the files of a version that has none yet"]
fn golden_files_of_this_version() {
    let folder = folder(VERSION);
    assert!(!folder.exists(), "{} is there: it is never made again", folder.display());
    for name in datasets(VERSION) {
        let (plan, dir) = (golden_plan(VERSION, name), folder.join(name));
        let writer = LabelWriter::create_or_resume(&dir, plan.clone()).unwrap();
        let rows: Vec<SequenceLabels> = seeds().into_iter().map(|seed| labels(seed, &plan)).collect();
        for (index, rows) in rows.chunks(rows.len() / 2).enumerate() {
            let mut shard = writer.shard(index).unwrap();
            for labels in rows {
                shard.push(labels.clone()).unwrap();
            }
            shard.commit().unwrap();
        }
        writer.finish().unwrap();
        let dataset = LabelDataset::open(&dir).unwrap();
        let rows: Vec<Value> = dataset.iter().map(|labels| row_of(&labels.unwrap())).collect();
        fs_err::write(folder.join(format!("{name}.expected.json")), to_text(&rows)).unwrap();
    }
    if VERSION > 1 {
        return; // sequences are as they were
    }
    let mut writer = SequenceWriter::create(folder.join("sequences"), info(), 4).unwrap();
    let rows = seeds().into_iter().map(|seed| sequence(&mut Random(seed), VOCABULARY));
    let rows: Vec<Sequence> = rows.inspect(|sequence| writer.push(sequence.clone()).unwrap()).collect();
    writer.finish().unwrap();
    let rows: Vec<Value> = rows.iter().map(sequence_of).collect();
    fs_err::write(folder.join("sequences.expected.json"), to_text(&rows)).unwrap();
}

#[test]
fn every_golden_value_is_read() {
    for version in 1..=VERSION {
        for name in datasets(version) {
            let dir = folder(version).join(name);
            let dataset = LabelDataset::open(&dir).unwrap();
            let expected = expected(version, name);
            let rows: Vec<Value> = dataset.iter().map(|labels| row_of(&labels.unwrap())).collect();
            assert_eq!(rows, expected, "v{version} {name}");
            // Rows alone, and by key.
            for (row, expected) in expected.iter().enumerate() {
                assert_eq!(row_of(&LabelDataset::open(&dir).unwrap().read(row).unwrap()), *expected);
                let key = expected["sequence_key"].as_str().unwrap().parse().unwrap();
                assert_eq!(row_of(&dataset.get(&key).unwrap()), *expected);
            }
            let found = verify(&dir, &ReadLimits::default(), &false.into(), &()).unwrap();
            assert!(found.problems.is_empty(), "v{version} {name}: {:?}", found.problems);
        }
    }
    let dataset = SequenceDataset::open(folder(1).join("sequences")).unwrap();
    let rows: Vec<Value> = dataset.read_all().unwrap().iter().map(sequence_of).collect();
    assert_eq!(rows, expected(1, "sequences"));
}

/// The files are worth keeping: together they have what the format has.
#[test]
fn golden_files_have_shards_groups_and_columns_of_every_kind() {
    let (mut sources, mut without_source) = (0, 0);
    for (version, name) in
        (1..=VERSION).flat_map(|version| datasets(version).iter().map(move |name| (version, name)))
    {
        let dataset = LabelDataset::open(folder(version).join(name)).unwrap();
        let LabelPlan { selection, omit, temperatures, .. } = golden_plan(version, name);
        let plan = &dataset.manifest().plan;
        assert_eq!((&plan.selection, &plan.omit, &plan.temperatures), (&selection, &omit, &temperatures));
        assert_eq!((plan.version, dataset.manifest().version), (version, version));
        assert_eq!(plan.has_tails(), version == 2);
        assert_eq!(dataset.manifest().shards.len(), 2);
        assert!(dataset.groups() >= 4, "{name}: at least two row groups in each shard");
        let mut group = LabelGroup::default();
        dataset.decode_group(0, &mut group).unwrap();
        assert_eq!(group.row(0).sample_counts.is_empty(), selection.draws().is_none());
        assert_eq!(group.row(0).log_probs.is_empty(), !selection.is_exact());
        let (mut nothing_beyond, mut drawn_again) = (false, selection.draws().is_none());
        for labels in dataset.iter().map(Result::unwrap) {
            let has_source = usize::from(labels.source.is_some());
            (sources, without_source) = (sources + has_source, without_source + 1 - has_source);
            nothing_beyond |= labels.tail_log_mass.contains(&f32::NEG_INFINITY);
            assert_eq!(labels.tail_log_masses.len(), if version == 2 { temperatures.len() } else { 0 });
            drawn_again |= labels.sample_counts.iter().any(|count| *count > 1);
        }
        assert!(nothing_beyond && drawn_again, "{name}");
    }
    assert!(sources > 0 && without_source > 0);
    let bytes = |path: &Path| fs_err::metadata(path).unwrap().len();
    for version in 1..=VERSION {
        let files = walk(&folder(version));
        assert!(files.iter().map(|path| bytes(path)).sum::<u64>() < 100_000, "{files:?}");
    }
}

/// Whoever began a dataset of this version can go on with it.
#[test]
fn a_golden_dataset_can_be_resumed() {
    for (version, name) in
        (1..=VERSION).flat_map(|version| datasets(version).iter().map(move |name| (version, name)))
    {
        let (from, to) = (folder(version).join(name), tempfile::tempdir().unwrap());
        for path in walk(&from) {
            let copy = to.path().join(path.strip_prefix(&from).unwrap());
            fs_err::create_dir_all(copy.parent().unwrap()).unwrap();
            fs_err::copy(path, copy).unwrap();
        }
        let plan = LabelDataset::open(&from).unwrap().manifest().plan.clone();
        let writer = LabelWriter::create_or_resume(to.path(), plan).unwrap();
        assert!(writer.missing().unwrap().is_empty(), "{name}: its commits are valid");
    }
}

fn walk(dir: &Path) -> Vec<PathBuf> {
    let paths = fs_err::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    paths.flat_map(|path| if path.is_dir() { walk(&path) } else { vec![path] }).collect()
}
