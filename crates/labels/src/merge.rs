//! Joins label datasets: parts of one plan, or datasets of different sequences that were labelled alike.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use serde::Serialize;

use crate::dataset::{LabelDataset, LabelPlan, LabelWriter, LabelsManifest, committed_records, load_labels};
use crate::host::{Links, PRIVATE, durable, parallel, regular};
use crate::observer::{Observer, Progress};
use crate::shard::{ShardRecord, check_record};
use crate::values::{Error, ReadLimits, SequenceLabels, json, quoted, some_of};

/// Keys of the plan that may differ between datasets of other sequences.
const OF_A_PART: [&str; 3] = ["sequences", "shards", "split"];

/// What a merge did.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Merged {
    /// The finished dataset.
    pub manifest: LabelsManifest,
    /// Shards that were copied now; the others were there.
    pub copied: usize,
    /// One line for each shard that two folders hold with different bytes; the first was taken.
    pub conflicts: Vec<String>,
}

/// A folder that was given.
struct Part {
    dir: PathBuf,
    plan: LabelPlan,
    finished: bool,
}

/// Merges label datasets into `output`; goes on with a merge that was interrupted or that lacked shards.
///
/// Folders of **one plan**, finished or not: each valid commit is copied as it is. Of a shard that comes twice, the
/// first is taken. If shards are still missing, what is there is kept, and a later merge adds the rest.
///
/// Finished datasets of **different sequences** with the same tokenizer, template, teacher and options: one dataset with
/// a plan of its own. Its `sequences` is the BLAKE3 of the parts' `sequences`, one per line, in order; its `split` the
/// names of theirs, joined by `_`. Parts of one sequence dataset whose ranges follow each other keep both as they are.
/// Column chunks are copied without decoding, and everything is read back before it counts.
///
/// # Errors
/// [`Error::Bad`] naming every key in which plans differ, a sequence that two parts label differently, or the shards
/// that are missing; [`Error::OtherPlan`] if `output` holds something else; I/O, [`io::ErrorKind::Interrupted`] when
/// `stop` is set. Nothing is written when the parts do not fit.
pub fn merge(
    output: &Path,
    inputs: &[PathBuf],
    stop: &AtomicBool,
    observer: &dyn Observer,
) -> Result<Merged, Error> {
    let parts = inputs.iter().map(|dir| Part::open(dir)).collect::<Result<Vec<_>, _>>()?;
    let Some((first, others)) = parts.split_first() else {
        return Err(Error::bad("merge", "at least one dataset", "none"));
    };
    if others.iter().all(|part| part.plan == first.plan) {
        return join(output, &parts, stop, observer);
    }
    check_alike(first, others)?;
    if let Some(part) = parts.iter().find(|part| !part.finished) {
        let hint = "only folders of one plan can be merged before they are finished";
        return Err(Error::bad(quoted(&part.dir), "a finished dataset", "no manifest.json").hint(hint));
    }
    append(output, &parts, stop, observer)
}

impl Part {
    /// Reads the plan of a folder.
    fn open(dir: &Path) -> Result<Self, Error> {
        let (plan, finished) = if dir.join("manifest.json").exists() {
            (manifest(dir)?.plan, true)
        } else {
            let path = dir.join(PRIVATE).join("plan.json");
            let bytes =
                regular::read(&path, Links::Refused).map_err(|error| {
                    match durable::is_not_found(&error) {
                        true => Error::bad(
                            quoted(dir),
                            "labels: manifest.json or _softshard/plan.json",
                            "neither",
                        )
                        .hint("name the folder of one split, such as labels/train"),
                        false => error,
                    }
                })?;
            let plan: LabelPlan = json::parse(&path, &bytes, LabelPlan::FORMAT, LabelPlan::NEWEST_VERSION)?;
            plan.validate().map_err(|error| error.within(quoted(&path)))?;
            (plan, false)
        };
        Ok(Self { dir: dir.to_owned(), plan, finished })
    }

    /// Records of the shards whose files are as they should be.
    fn records(&self) -> Result<Vec<Option<ShardRecord>>, Error> {
        if !self.finished {
            return committed_records(&self.dir, &self.plan);
        }
        let records = manifest(&self.dir)?.shards;
        let data = self.dir.join("data");
        parallel::map(records.len(), |index| {
            let record = &records[index];
            if durable::holds(&data.join(&record.file), record.bytes, &record.blake3)? {
                return Ok(Some(record.clone()));
            }
            tracing::warn!(shard = record.file, dir = %self.dir.display(), "passing over a shard that is damaged or gone");
            Ok(None)
        })
    }
}

/// The manifest of a finished dataset, whose files nobody looked at yet.
fn manifest(dir: &Path) -> Result<LabelsManifest, Error> {
    let (manifest, _) = load_labels(dir, &ReadLimits::default())?;
    let (place, count) = (quoted(&dir.join("manifest.json")), manifest.shards.len());
    for (index, record) in manifest.shards.iter().enumerate() {
        check_record(&place, "labels", (index, count), record)?;
    }
    Ok(manifest)
}

/// Copies the committed shards of one plan together.
fn join(output: &Path, parts: &[Part], stop: &AtomicBool, observer: &dyn Observer) -> Result<Merged, Error> {
    let plan = &parts[0].plan;
    let records = parts.iter().map(Part::records).collect::<Result<Vec<_>, _>>()?;
    let writer = LabelWriter::create_or_resume(output, plan.clone())?;
    let own = committed_records(output, plan)?;
    let mut conflicts = Vec::new();
    let mut copies = Vec::new();
    for shard in 0..plan.shards.len() {
        let held = parts
            .iter()
            .zip(&records)
            .filter_map(|(part, records)| Some((&part.dir, records[shard].as_ref()?)));
        let mut held = own[shard]
            .iter()
            .map(|record| (None, record))
            .chain(held.map(|(dir, record)| (Some(dir), record)));
        let Some((dir, record)) = held.next() else { continue };
        for (other_dir, other) in held {
            if other.blake3 != record.blake3 {
                let [kept, left] = [dir, other_dir].map(|dir| quoted(dir.map_or(output, PathBuf::as_path)));
                conflicts.push(format!(
                    "shard {shard}: {kept} and {left} hold different bytes; the first is kept"
                ));
            }
        }
        copies.extend(dir.map(|dir| (shard, dir, record)));
    }
    let progress = Copied::new(copies.len(), stop, observer);
    parallel::map(copies.len(), |index| {
        progress.check()?;
        let (shard, dir, record) = copies[index];
        writer.copy_file(shard, &dir.join("data").join(&record.file), record)?;
        progress.done();
        Ok(())
    })?;
    let missing = writer.missing()?;
    if missing.is_empty() {
        return Ok(Merged { manifest: writer.finish()?, copied: copies.len(), conflicts });
    }
    let total = plan.shards.len();
    let found = format!("{} of them; missing {}", total - missing.len(), some_of(&missing));
    let hint = "what is there was kept: merge the folders that hold the missing shards into the same output";
    Err(Error::bad(quoted(output), format_args!("{total} shards"), found).hint(hint))
}

/// Refuses datasets that were not made alike.
fn check_alike(first: &Part, others: &[Part]) -> Result<(), Error> {
    for part in others {
        let differ: Vec<String> = json::changes(&first.plan, &part.plan)
            .into_iter()
            .filter(|[key, ..]| !OF_A_PART.contains(&key.as_str()))
            .map(|[key, expected, found]| format!("\n  {key}: expected {expected}, found {found}"))
            .collect();
        if !differ.is_empty() {
            let expected = format!("labels made like those of {}", quoted(&first.dir));
            return Err(Error::bad(quoted(&part.dir), expected, format_args!("others:{}", differ.concat())));
        }
    }
    Ok(())
}

/// One dataset of the parts' sequences, one part behind the other.
fn append(
    output: &Path,
    parts: &[Part],
    stop: &AtomicBool,
    observer: &dyn Observer,
) -> Result<Merged, Error> {
    let mut parts: Vec<(&Part, LabelDataset)> =
        parts.iter().map(|part| Ok((part, LabelDataset::open(&part.dir)?))).collect::<Result<_, Error>>()?;
    check_disjoint(&parts, stop)?;
    let plan = appended_plan(&mut parts);
    let writer = LabelWriter::create_or_resume(output, plan)?;
    let sources: Vec<(usize, usize)> = parts
        .iter()
        .enumerate()
        .flat_map(|(part, (_, dataset))| (0..dataset.shards().len()).map(move |shard| (part, shard)))
        .collect();
    let missing = writer.missing()?;
    let progress = Copied::new(missing.len(), stop, observer);
    parallel::map(missing.len(), |index| {
        progress.check()?;
        let shard = missing[index];
        let (part, of_part) = sources[shard];
        let dataset = &parts[part].1;
        writer.copy_groups(shard, &dataset.shards()[of_part], &dataset.manifest().shards[of_part])?;
        progress.done();
        Ok(())
    })?;
    Ok(Merged { manifest: writer.finish()?, copied: missing.len(), conflicts: Vec::new() })
}

/// Refuses sequences that two parts label differently: readers take the first of them.
fn check_disjoint(parts: &[(&Part, LabelDataset)], stop: &AtomicBool) -> Result<(), Error> {
    for (index, (part, dataset)) in parts.iter().enumerate() {
        for (earlier_part, earlier) in &parts[..index] {
            for row in 0..dataset.len() {
                let key = dataset.key(row);
                let Some(other) = earlier.find(&key) else { continue };
                if stop.load(Ordering::Relaxed) {
                    return Err(interrupted());
                }
                let [here, there] = [dataset.read(row)?, earlier.read(other)?]
                    .map(|labels| SequenceLabels { source: None, ..labels });
                if here != there {
                    let place = format!("{} row {row}, sequence {key}", quoted(&part.dir));
                    let expected = format!("the labels of {} row {other}", quoted(&earlier_part.dir));
                    let hint = "the same sequence with other labels: see `softshard labels diff`";
                    return Err(Error::bad(place, expected, "others").hint(hint));
                }
            }
        }
    }
    Ok(())
}

/// The plan of all parts together; puts parts of one sequence dataset in its order.
fn appended_plan(parts: &mut [(&Part, LabelDataset)]) -> LabelPlan {
    let range = |part: &Part| [part.plan.shards[0][0], part.plan.shards[part.plan.shards.len() - 1][1]];
    let first = &parts[0].0.plan;
    let of_one = parts
        .iter()
        .all(|(part, _)| part.plan.sequences == first.sequences && part.plan.split == first.split);
    if of_one {
        let mut ranges: Vec<[u64; 2]> = parts.iter().map(|(part, _)| range(part)).collect();
        ranges.sort_unstable();
        if ranges.windows(2).all(|pair| pair[0][1] == pair[1][0]) {
            parts.sort_by_key(|(part, _)| range(part));
            let shards = parts.iter().flat_map(|(part, _)| part.plan.shards.clone()).collect();
            return LabelPlan { shards, ..parts[0].0.plan.clone() };
        }
    }
    let mut hasher = blake3::Hasher::new();
    let (mut shards, mut splits, mut end) = (Vec::new(), Vec::<&str>::new(), 0);
    for (part, _) in parts.iter() {
        hasher.update(part.plan.sequences.as_bytes()).update(b"\n");
        if !splits.contains(&part.plan.split.as_str()) {
            splits.push(&part.plan.split);
        }
        for [start, stop] in &part.plan.shards {
            shards.push([end, end + (stop - start)]);
            end += stop - start;
        }
    }
    let sequences = hasher.finalize().to_hex().to_string();
    LabelPlan { sequences, shards, split: splits.join("_"), ..parts[0].0.plan.clone() }
}

/// Counts shards, says so, and stops where that was asked for.
struct Copied<'a> {
    done: AtomicUsize,
    total: usize,
    stop: &'a AtomicBool,
    observer: &'a dyn Observer,
}

impl<'a> Copied<'a> {
    fn new(total: usize, stop: &'a AtomicBool, observer: &'a dyn Observer) -> Self {
        Self { done: AtomicUsize::new(0), total, stop, observer }
    }

    fn check(&self) -> Result<(), Error> {
        if self.stop.load(Ordering::Relaxed) { Err(interrupted()) } else { Ok(()) }
    }

    fn done(&self) {
        let done = self.done.fetch_add(1, Ordering::Relaxed) + 1;
        let (done, total) = (done as u64, self.total as u64);
        let merge = Progress { stage: "merge", unit: "shards", ..Progress::default() };
        self.observer.progress(&Progress { done, total, ..merge });
    }
}

fn interrupted() -> Error {
    io::Error::new(io::ErrorKind::Interrupted, "merge stopped at a shard boundary\nhint: run again to go on")
        .into()
}
