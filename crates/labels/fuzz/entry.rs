//! What the fuzz targets run: bytes that stand in the place of one file of a dataset, opened, judged and read in full.
//!
//! Any error is fine. A panic is not, nor is memory beyond the limits, nor labels that break the rules of the format.
//! The targets of libFuzzer and tests/hostile/fuzz.rs share this file.

use std::fs;
use std::path::Path;
use std::sync::atomic::AtomicBool;

use serde_json::{Value, json};
use softshard_labels::{Error, LabelDataset, LabelPlan, LabelWriter, ReadLimits, SequenceLabels, verify};
use tempfile::TempDir;

/// Good datasets of one shard, which has one row group.
pub(crate) const GOOD_MANIFEST: &[u8] = include_bytes!("corpus/manifest/good.json");
pub(crate) const SAMPLED_MANIFEST: &[u8] = include_bytes!("corpus/manifest/sampled.json");
pub(crate) const MIXED_MANIFEST: &[u8] = include_bytes!("corpus/manifest/top_k_sampled.json");
pub(crate) const GOOD_PLAN: &[u8] = include_bytes!("corpus/plan/good.json");
pub(crate) const GOOD_SHARD: &[u8] = include_bytes!("corpus/shard_open/good.parquet");

/// Small, so that whoever goes beyond them is seen.
pub(crate) const LIMITS: ReadLimits = ReadLimits {
    rows_per_group: 1 << 12,
    sequence_tokens: 1 << 12,
    entries_per_position: 1 << 10,
    row_group_bytes: 1 << 20,
    footer_bytes: 1 << 16,
    shards: 100,
    memory_map: true,
};

/// Bytes as `manifest.json`.
pub(crate) fn manifest(bytes: &[u8]) {
    let dir = folder();
    put(&dir, &format!("data/{}", good_name()), GOOD_SHARD);
    put(&dir, "manifest.json", bytes);
    judge(dir.path());
}

/// Bytes as `_softshard/plan.json`, and as the plan of a dataset that is to be written.
pub(crate) fn plan(bytes: &[u8]) {
    let dir = folder();
    put(&dir, "_softshard/plan.json", bytes);
    let good: LabelPlan = serde_json::from_slice(GOOD_PLAN).expect("the good plan is one");
    fine(LabelWriter::create_or_resume(dir.path(), good));
    let Ok(plan) = serde_json::from_slice::<LabelPlan>(bytes) else { return };
    if plan.validate().is_ok() && plan.shards.len() <= LIMITS.shards {
        let other = folder();
        fine(LabelWriter::create_or_resume(other.path(), plan).and_then(|writer| writer.missing()));
    }
}

/// Bytes as `_softshard/commits/00000.json`.
pub(crate) fn commit(bytes: &[u8]) {
    let dir = folder();
    let good: LabelPlan = serde_json::from_slice(GOOD_PLAN).expect("the good plan is one");
    let writer = LabelWriter::create_or_resume(dir.path(), good).expect("the good plan is one");
    put(&dir, &format!("data/{}", good_name()), GOOD_SHARD);
    put(&dir, "_softshard/commits/00000.json", bytes);
    if fine(writer.missing()).is_some_and(|missing| missing.is_empty()) {
        fine(writer.finish());
    }
}

/// Bytes as a shard that manifest and row group hash agree with: all that is wrong must be found in the bytes.
pub(crate) fn shard_open(bytes: &[u8]) {
    let mut bytes = bytes.to_vec();
    rehash(&mut bytes);
    let dir = folder();
    let has = |column: &[u8]| bytes.windows(column.len()).any(|window| window == column);
    let manifest = match (has(b"log_probs"), has(b"sample_counts")) {
        (_, false) => GOOD_MANIFEST,
        (false, true) => SAMPLED_MANIFEST,
        (true, true) => MIXED_MANIFEST,
    };
    stage(dir.path(), manifest, &bytes);
    judge(dir.path());
}

/// Writes a good dataset with another shard, whose file hash is right.
pub(crate) fn stage(dir: &Path, manifest: &[u8], shard: &[u8]) {
    let mut manifest: Value = serde_json::from_slice(manifest).expect("the good manifest is JSON");
    let blake3 = blake3::hash(shard).to_hex();
    let name = format!("labels-00000-of-00001-{}.parquet", &blake3[..12]);
    let record = &mut manifest["shards"][0];
    record["file"] = json!(name);
    record["bytes"] = json!(shard.len());
    record["blake3"] = json!(blake3.as_str());
    put(dir, &format!("data/{name}"), shard);
    put(dir, "manifest.json", &serde_json::to_vec(&manifest).expect("JSON is written"));
}

/// Makes the hash of the only row group of a shard right, where there is one.
pub(crate) fn rehash(shard: &mut [u8]) -> Option<()> {
    let footer = footer_start(shard)?;
    let hash = blake3::hash(shard.get(4..footer)?).to_hex();
    let list = shard.get(footer..)?.windows(2).position(|bytes| bytes == b"[\"")?;
    let at = footer + list + 2;
    shard.get_mut(at..at + 64)?.copy_from_slice(hash.as_bytes());
    Some(())
}

/// Where the footer of a shard begins.
pub(crate) fn footer_start(shard: &[u8]) -> Option<usize> {
    let tail = shard.len().checked_sub(8)?;
    let size = shard.get(tail..tail + 4)?.try_into().ok()?;
    tail.checked_sub(usize::try_from(u32::from_le_bytes(size)).ok()?).filter(|start| *start >= 4)
}

/// Opens and reads a dataset in every way there is.
fn judge(dir: &Path) {
    fine(verify(dir, &LIMITS, &AtomicBool::new(false), &()));
    for memory_map in [true, false] {
        fine(read_all(dir, &ReadLimits { memory_map, ..LIMITS }));
    }
}

/// All labels, read one by one and row group by row group; both must keep the rules.
pub(crate) fn read_all(dir: &Path, limits: &ReadLimits) -> Result<Vec<SequenceLabels>, Error> {
    let dataset = LabelDataset::open_with(dir, limits.clone())?;
    let promised = dataset.manifest().plan.limits();
    let alone: Vec<_> = (0..dataset.len()).rev().map(|row| dataset.read(row)).collect();
    let labels = dataset.iter().collect::<Result<Vec<_>, _>>()?;
    for (labels, alone) in labels.iter().zip(alone.into_iter().rev()) {
        labels.validate(&promised).expect("what was read keeps the rules");
        if let Ok(alone) = alone {
            assert_eq!(&alone, labels, "a row alone is the row of its row group");
        }
    }
    Ok(labels)
}

/// An error is fine, but a panic that was caught is a mistake of ours.
fn fine<T>(result: Result<T, Error>) -> Option<T> {
    result.inspect_err(|error| assert!(!error.to_string().contains("a panic"), "{error}")).ok()
}

fn good_name() -> String {
    let hash = blake3::hash(GOOD_SHARD).to_hex();
    format!("labels-00000-of-00001-{}.parquet", &hash[..12])
}

/// In memory where the machine has a file system there.
fn folder() -> TempDir {
    let memory = Path::new("/dev/shm");
    let dir = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() };
    dir.expect("a temporary folder")
}

fn put(dir: impl AsRef<Path>, name: &str, bytes: &[u8]) {
    let path = dir.as_ref().join(name);
    fs::create_dir_all(path.parent().expect("a file has a folder")).expect("the folder is made");
    fs::write(path, bytes).expect("the file is written");
}
