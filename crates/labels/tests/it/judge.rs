//! Verification, statistics and comparison of finished datasets.

use std::path::Path;
use std::sync::atomic::AtomicBool;

use softshard_labels::{
    LabelDataset, LabelDiff, LabelPlan, LabelStats, LabelWriter, OptionalColumn, ReadLimits, Selection,
    SequenceLabels, Verification, verify,
};

use crate::common::{TOP_4, plan, write_dataset};

static GO: AtomicBool = AtomicBool::new(false);
/// Sums of f32 logarithms in another order.
const CLOSE: f64 = 1e-6;

fn look(dir: &Path) -> Verification {
    verify(dir, &ReadLimits::default(), &GO, &()).unwrap()
}

fn messages(dir: &Path) -> Vec<String> {
    let text = |problem: &softshard_labels::Problem| problem.to_string();
    let of_dir = dir.to_str().unwrap();
    look(dir).problems.iter().map(text).map(|line| line.replace(of_dir, "DIR")).collect()
}

#[test]
fn a_good_dataset_has_no_problems() {
    let dir = tempfile::tempdir().unwrap();
    let manifest = write_dataset(dir.path(), &plan(LabelPlan::ranges(50, 20), TOP_4));
    let found = look(dir.path());
    assert_eq!(found.problems, []);
    assert_eq!((found.shards, found.rows, found.labelled_tokens), (3, 50, manifest.labelled_tokens));
}

#[test]
fn all_problems_are_named_not_the_first() {
    let dir = tempfile::tempdir().unwrap();
    let manifest = write_dataset(dir.path(), &plan(LabelPlan::ranges(50, 10), TOP_4));
    let path = |shard: usize| dir.path().join("data").join(&manifest.shards[shard].file);
    let mut bytes = fs_err::read(path(0)).unwrap();
    bytes[40] ^= 1;
    fs_err::write(path(0), bytes).unwrap();
    fs_err::remove_file(path(1)).unwrap();
    let bytes = fs_err::read(path(2)).unwrap();
    fs_err::write(path(2), &bytes[..bytes.len() - 1]).unwrap();
    fs_err::write(path(3), []).unwrap();
    fs_err::write(dir.path().join("data/stray"), []).unwrap();

    let found = messages(dir.path());
    let has = |start: &str| {
        assert!(found.iter().any(|line| line.starts_with(start)), "expected {start:?} in {found:#?}");
    };
    has("`DIR/data`: expected only the shards of the manifest, found `stray`");
    has(&format!("`DIR/data`: expected shard `{}`, found none", manifest.shards[1].file));
    for shard in [0, 2, 3] {
        has(&format!(
            "shard `{}` file: expected BLAKE3 {}",
            manifest.shards[shard].file, manifest.shards[shard].blake3
        ));
        has(&format!(
            "shard `{}` file: expected SHA-256 {}",
            manifest.shards[shard].file, manifest.shards[shard].sha256
        ));
    }
    has(&format!("shard `{}` row group 0 (rows 0..", manifest.shards[0].file));
    has(&format!("shard `{}` file: expected {} bytes", manifest.shards[2].file, manifest.shards[2].bytes));
    has(&format!("shard `{}` footer: expected a Parquet file", manifest.shards[3].file));
    assert_eq!(look(dir.path()).problems.iter().filter(|problem| problem.shard.is_none()).count(), 2);
}

/// Flips in the first row group name its columns or rows, never more than is decoded.
#[test]
fn rows_and_columns_of_damage_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let manifest = write_dataset(dir.path(), &plan(vec![[0, 10]], TOP_4));
    let path = dir.path().join("data").join(&manifest.shards[0].file);
    let good = fs_err::read(&path).unwrap();
    let (mut rows, mut columns) = (0, 0);
    for at in (4..good.len() / 2).step_by(23) {
        let mut bytes = good.clone();
        bytes[at] ^= 1;
        fs_err::write(&path, bytes).unwrap();
        let problems = look(dir.path()).problems;
        assert!(problems.len() >= 2, "hashes of the file");
        rows += problems.iter().filter(|problem| problem.row.is_some_and(|row| row < 10)).count();
        columns += problems.iter().filter(|problem| problem.column.is_some()).count();
    }
    assert!(rows > 0 && columns > rows, "{rows} rows and {columns} columns are named");
}

#[test]
fn a_dataset_without_manifest_is_one_problem() {
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(messages(dir.path()), ["`DIR`: expected a finished dataset, found no manifest.json"]);
}

#[test]
fn an_interrupted_verification_says_so() {
    let dir = tempfile::tempdir().unwrap();
    write_dataset(dir.path(), &plan(vec![[0, 10]], TOP_4));
    let error = verify(dir.path(), &ReadLimits::default(), &AtomicBool::new(true), &()).unwrap_err();
    assert!(!error.is_bad_data() && error.to_string().contains("interrupted"), "{error}");
}

#[test]
fn statistics_say_nothing_of_what_is_not_there() {
    let of = |plan: &LabelPlan| {
        let dir = tempfile::tempdir().unwrap();
        write_dataset(dir.path(), plan);
        LabelStats::of(&LabelDataset::open(dir.path()).unwrap(), &GO).unwrap()
    };
    let drawn = plan(LabelPlan::ranges(20, 20), Selection::Sampled { draws: 9 });
    let stats = of(&LabelPlan { omit: vec![OptionalColumn::GoldLogProb], ..drawn });
    assert_eq!((stats.teacher.gold_nll_nats, &stats.teacher.calibration), (None, &None));
    assert!(stats.entropy_nats.is_some() && stats.retained_mass.mean > 0.0);

    let exact = plan(LabelPlan::ranges(20, 20), TOP_4);
    let stats = of(&LabelPlan { omit: vec![OptionalColumn::LogSumExp, OptionalColumn::Entropy], ..exact });
    assert_eq!(stats.entropy_nats, None);
    assert!(stats.teacher.gold_nll_nats.is_some() && stats.teacher.calibration.is_some());
}

#[test]
fn statistics_are_those_of_a_loop_over_all_labels() {
    let dir = tempfile::tempdir().unwrap();
    let selection = Selection::TopP { p: 0.9, k: 20 };
    write_dataset(dir.path(), &plan(LabelPlan::ranges(60, 25), selection));
    let dataset = LabelDataset::open(dir.path()).unwrap();
    let stats = LabelStats::of(&dataset, &GO).unwrap();
    let (mut positions, mut entries, mut right, mut kept) = (0.0, 0u64, 0.0, 0.0);
    let (mut entropy, mut mass, mut nll) = (0.0, 0.0, 0.0);
    for labels in dataset.iter().map(Result::unwrap) {
        let mut start = 0;
        for (index, gold) in labels.gold().into_iter().enumerate() {
            let end = start + usize::try_from(labels.counts[index]).unwrap();
            let ids = &labels.token_ids[start..end];
            start = end;
            positions += 1.0;
            entries += u64::try_from(ids.len()).unwrap();
            right += f64::from(u8::from(ids[0] == gold));
            kept += f64::from(u8::from(ids.contains(&gold)));
            entropy += f64::from(labels.entropy[index]);
            mass += 1.0 - f64::from(labels.tail_log_mass[index]).exp();
            nll -= f64::from(labels.gold_log_prob[index]);
        }
    }
    assert_eq!(stats.entries, entries);
    let close = |found: f64, sum: f64| assert!((found - sum / positions).abs() < CLOSE, "{found}");
    let calibration = stats.teacher.calibration.as_ref().unwrap();
    close(calibration.top_1_accuracy, right);
    close(stats.gold_kept, kept);
    let entropy_nats = stats.entropy_nats.as_ref().unwrap();
    close(entropy_nats.mean, entropy);
    close(stats.retained_mass.mean, mass);
    close(stats.teacher.gold_nll_nats.unwrap(), nll);
    assert_eq!(stats.columns.iter().map(|column| column.bytes).sum::<u64>(), stats.bytes);
    for spread in [entropy_nats, &stats.retained_mass, &stats.entries_per_position] {
        let counted: u64 = spread.histogram.iter().map(|bin| bin.count).sum();
        assert_eq!(counted, stats.labelled_tokens);
        assert!(spread.percentiles.values().is_sorted());
    }
    assert_eq!(calibration.bins.len(), 15);
}

#[test]
fn other_cuts_and_row_groups_are_interchangeable() {
    let (left, right) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    write_dataset(left.path(), &plan(LabelPlan::ranges(30, 10), TOP_4));
    let mut other = plan(LabelPlan::ranges(30, 7), TOP_4);
    other.row_group_tokens = 100;
    write_dataset(right.path(), &other);
    let [left, right] = [left, right].map(|dir| LabelDataset::open(dir.path()).unwrap());
    let found = LabelDiff::of(&left, &right, &GO).unwrap();
    assert!(found.interchangeable(), "{found:?}");
    assert_eq!((found.plan.len(), found.equal), (2, 30));
}

#[test]
fn differences_are_named_by_key_and_sequence() {
    let (left, right) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    write_dataset(left.path(), &plan(LabelPlan::ranges(30, 10), TOP_4));
    let mut other = plan(LabelPlan::ranges(25, 10), TOP_4);
    other.mantissa_bits = 4;
    write_dataset(right.path(), &other);
    let [left, right] = [left, right].map(|dir| LabelDataset::open(dir.path()).unwrap());
    let found = LabelDiff::of(&left, &right, &GO).unwrap();
    assert!(!found.interchangeable());
    let keys: Vec<&str> = found.plan.iter().map(|key| key.key.as_str()).collect();
    assert_eq!(keys, ["mantissa_bits", "shards"]);
    assert_eq!((found.plan[0].left.as_str(), found.plan[0].right.as_str()), ("10", "4"));
    assert_eq!((found.only_left.len(), found.only_right.len()), (5, 0));
    assert_eq!(found.different.len() + found.equal, 25);
    // 4 of 10 bits: at most 2^-5 + 2^-11 of a number that is at most 8 here.
    let first = &found.different[0];
    assert!(first.max_log_prob > 0.0 && first.max_log_prob < 0.26, "{first:?}");
    assert!(first.columns.contains(&"log_probs".to_owned()) && first.max_gold_log_prob == 0.0);
    assert_eq!(first.positions_on_one_side, 0);
}

/// A manifest that is wrong about itself, and a name that leads out of the folder: both are named, the name is not opened.
#[test]
fn hostile_manifests_are_problems_beside_those_of_the_shards() {
    let dir = tempfile::tempdir().unwrap();
    let manifest = write_dataset(dir.path(), &plan(LabelPlan::ranges(20, 10), TOP_4));
    let path = dir.path().join("manifest.json");
    let text = fs_err::read_to_string(&path).unwrap();
    let name = &manifest.shards[0].file;
    let rows = format!("\"rows\": {},\n  \"input_tokens\"", manifest.rows);
    assert!(text.contains(&rows));
    let hostile = text.replace(name, "../../outside").replace(&rows, &rows.replace("20", "21"));
    fs_err::write(&path, hostile).unwrap();
    let found = messages(dir.path());
    let expected = [
        "`DIR/manifest.json`: expected rows and tokens that are the sums of the shards, found [21, "
            .to_owned(),
        format!("`DIR/data`: expected only the shards of the manifest, found `{name}`"),
        "`DIR/data`: expected shard `../../outside`, found none".to_owned(),
        format!("`DIR/manifest.json` shard 0: expected file \"{name}\", found \"../../outside\""),
    ];
    assert_eq!(found.len(), expected.len(), "{found:#?}");
    for (line, start) in found.iter().zip(&expected) {
        assert!(line.starts_with(start), "expected {start:?} in {line:?}");
    }
}

/// Two tokens that the teacher does not tell apart: neither is its best guess.
#[test]
fn a_tie_is_not_right() {
    let of = |second: f32| {
        let dir = tempfile::tempdir().unwrap();
        let writer =
            LabelWriter::create_or_resume(dir.path(), plan(vec![[0, 1]], Selection::TopK { k: 2 })).unwrap();
        let tail = 1.0 - 0.45 - second;
        let labels = SequenceLabels {
            input_ids: vec![1, 7],
            positions: vec![1],
            counts: vec![2],
            token_ids: vec![7, 9],
            log_probs: vec![0.45f32.ln(), second.ln()],
            log_sum_exp: vec![3.0],
            tail_log_mass: vec![tail.ln()],
            entropy: vec![1.0],
            gold_log_prob: vec![0.45f32.ln()],
            ..SequenceLabels::default()
        };
        let mut shard = writer.shard(0).unwrap();
        shard.push(labels).unwrap();
        shard.commit().unwrap();
        writer.finish().unwrap();
        let stats = LabelStats::of(&LabelDataset::open(dir.path()).unwrap(), &GO).unwrap();
        stats.teacher.calibration.unwrap().top_1_accuracy
    };
    assert_eq!((of(0.45), of(0.35)), (0.0, 1.0));
}
