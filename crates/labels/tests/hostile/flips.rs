//! Flipped bits at every region of a dataset, 1,000 for each of three kinds of damage.

use std::ops::Range;
use std::path::Path;
use std::sync::atomic::AtomicBool;

use parquet::file::metadata::ParquetMetaDataReader;
use softshard_labels::{LabelDataset, LabelPlan, LabelWriter, ReadLimits, SequenceLabels, verify};

use crate::allocations::assert_small;
use crate::common::{Random, TOP_4, plan, tree, write_dataset};
use crate::entry::{LIMITS, footer_start, read_all, rehash, stage};
use crate::seeds::{GOOD, Good, MIXED, SAMPLED, uncompressed};

const FLIPS: usize = 1000;
/// Page headers of our columns are this long or longer; behind them lie the levels.
const HEADER: usize = 20;
const LEVELS: usize = 24;

/// Every region of a shard by name: magic bytes, page headers, levels, values, footer, key-values.
fn regions(shard: &[u8]) -> Vec<(String, Range<usize>)> {
    let (footer, tail) = (footer_start(shard).unwrap(), shard.len() - 8);
    let metadata = ParquetMetaDataReader::decode_metadata(&shard[footer..tail]).unwrap();
    let mut regions = vec![
        ("magic".to_owned(), 0..4),
        ("footer size".to_owned(), tail..tail + 4),
        ("closing magic".to_owned(), tail + 4..shard.len()),
    ];
    for group in metadata.row_groups() {
        for column in group.columns() {
            let (start, size) = column.byte_range();
            let [start, size] = [start, size].map(|value| usize::try_from(value).unwrap());
            let (name, end) = (column.column_path().string(), start + size);
            let levels = (start + HEADER).min(end)..(start + HEADER + LEVELS).min(end);
            regions.push((format!("{name} page header"), start..levels.start));
            regions.push((format!("{name} values"), levels.end..end));
            regions.push((format!("{name} levels"), levels));
        }
    }
    let key_values = shard[footer..].windows(10).position(|bytes| bytes == b"softshard.").unwrap();
    regions.push(("footer".to_owned(), footer..footer + key_values));
    regions.push(("key-values".to_owned(), footer + key_values..tail));
    regions.retain(|(_, range)| !range.is_empty());
    assert!(regions.len() > 30, "{regions:?}");
    regions
}

/// Flips one bit within a range.
fn flip(bytes: &mut [u8], range: &Range<usize>, random: &mut Random) -> usize {
    let at = range.start + random.below(range.len());
    bytes[at] ^= 1 << random.below(8);
    at
}

/// A dataset of two shards with several row groups each.
fn dataset() -> (tempfile::TempDir, LabelPlan) {
    let dir = tempfile::tempdir().unwrap();
    let plan = plan(LabelPlan::ranges(12, 6), TOP_4);
    write_dataset(dir.path(), &plan);
    (dir, plan)
}

fn problems(dir: &Path) -> usize {
    verify(dir, &LIMITS, &AtomicBool::new(false), &()).unwrap().problems.len()
}

/// As copying, disks and memory do it: nothing of the dataset is adapted to the damage.
#[test]
fn a_flip_anywhere_is_an_error_or_changes_nothing_that_is_read() {
    let (dir, plan) = dataset();
    let truth = LabelDataset::open(dir.path()).unwrap().iter().collect::<Result<Vec<_>, _>>().unwrap();
    let good = tree(dir.path());
    let files: Vec<&String> = good.keys().collect();
    let shard_regions: Vec<(&String, (String, Range<usize>))> = files
        .iter()
        .filter(|name| name.starts_with("data/"))
        .flat_map(|name| regions(&good[*name]).into_iter().map(|region| (*name, region)))
        .collect();
    let others = files.iter().filter(|name| !name.starts_with("data/"));
    let mut places: Vec<(&String, (String, Range<usize>))> =
        others.map(|name| (*name, (String::new(), 0..good[*name].len()))).collect();
    places.extend(shard_regions);
    let (mut random, mut refused) = (Random(11), 0);
    for round in 0..FLIPS {
        let (name, (region, range)) = &places[round % places.len()];
        let path = dir.path().join(name);
        let before = fs_err::read(&path).unwrap();
        let mut bytes = before.clone();
        let at = flip(&mut bytes, range, &mut random);
        fs_err::write(&path, bytes).unwrap();
        let place = format!("round {round}, byte {at} of {name}, {region}");
        let limits = ReadLimits { memory_map: round % 2 == 0, ..LIMITS };
        match read_all(dir.path(), &limits) {
            Ok(read) => assert_eq!(read, truth, "{place}"),
            Err(error) => {
                refused += 1;
                let file = name.strip_prefix("data/").unwrap_or(name);
                let error = error.to_string();
                // A flip in the name of a shard makes the folder hold another one than the manifest says.
                assert!(error.contains(file) || name.as_str() == "manifest.json", "{place}: {error}");
                assert!(name.starts_with("data/") || name.as_str() == "manifest.json", "{place}: {error}");
            }
        }
        if name.starts_with("data/") {
            assert!(problems(dir.path()) > 0, "{place}");
        } else if name.contains("_softshard") {
            survives(dir.path(), &plan, &good, &place);
        }
        fs_err::write(&path, before).unwrap();
    }
    assert!(refused > FLIPS * 9 / 10, "{refused} of {FLIPS} flips were refused");
    assert_eq!(problems(dir.path()), 0);
}

/// A writer refuses a damaged plan, and writes again what a damaged commit stood for. Of a finished dataset the commits do not
/// count.
fn survives(dir: &Path, plan: &LabelPlan, good: &std::collections::BTreeMap<String, Vec<u8>>, place: &str) {
    match LabelWriter::create_or_resume(dir, plan.clone()) {
        Err(error) => assert!(error.to_string().contains("plan.json"), "{place}: {error}"),
        Ok(writer) => {
            assert!(!place.contains("plan.json"), "{place}");
            assert_eq!(writer.missing().unwrap(), [] as [usize; 0], "{place}");
            fs_err::remove_file(dir.join("manifest.json")).unwrap();
            write_dataset(dir, plan);
            assert_eq!(&tree(dir), good, "{place}");
        }
    }
}

/// Flips bits of a shard of one row group, adapts what `adapt` does, and reads it; counts what could still be read.
fn forged(
    good: &Good,
    shard: &[u8],
    seed: u64,
    adapt: fn(&mut [u8]),
    check: impl Fn(&[SequenceLabels]),
) -> usize {
    let regions = regions(shard);
    let (mut random, mut read) = (Random(seed), 0);
    for round in 0..FLIPS {
        let (region, range) = &regions[round % regions.len()];
        let mut bytes = shard.to_vec();
        let at = flip(&mut bytes, range, &mut random);
        adapt(&mut bytes);
        let dir = tempfile::tempdir().unwrap();
        stage(dir.path(), &good.manifest, &bytes);
        let place = format!("round {round}, byte {at}, {region}");
        match read_all(dir.path(), &ReadLimits { memory_map: round % 2 == 0, ..LIMITS }) {
            Ok(labels) => {
                read += 1;
                check(&labels);
            }
            Err(error) => {
                let error = error.to_string();
                assert!(error.contains("shard `labels-00000-of-00001-"), "{place}: {error}");
                assert!(!error.contains("a panic"), "{place}: {error}");
            }
        }
        assert_small();
    }
    read
}

/// As if the flip had happened before the manifest was made: the hashes of row groups and the checks of the footer remain.
#[test]
fn a_flip_behind_the_hash_of_the_file_is_an_error_or_the_truth() {
    for good in [&GOOD, &MIXED] {
        let truth = good.labels();
        let read = forged(good, &good.shard, 12, |_| {}, |labels| assert_eq!(labels, truth));
        assert!(read < FLIPS / 10, "{read} of {FLIPS} could be read");
    }
}

/// As if somebody had forged all hashes: values may differ, but they keep the rules of the format.
#[test]
fn a_flip_behind_all_hashes_neither_panics_nor_takes_memory() {
    let adapt = |shard: &mut [u8]| {
        rehash(shard);
    };
    let is_some = |labels: &[SequenceLabels]| assert!(!labels.is_empty());
    forged(&GOOD, &GOOD.shard, 13, adapt, is_some);
    // Without zstd around them, the flips reach levels and values.
    for good in [&GOOD, &SAMPLED, &MIXED] {
        let read = forged(good, &uncompressed(&good.shard), 14, adapt, is_some);
        assert!(read > FLIPS / 10, "{read} of {FLIPS} could be read");
    }
}
