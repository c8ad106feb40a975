//! Our own JSONL, as `export` writes it: the same dataset again.

use std::path::Path;
use std::sync::atomic::AtomicBool;

use super::lines::Lines;
use super::rows::RowsHash;
use super::{DroppedRows, Imported, Shards, check_stop, progress};
use crate::dataset::{LabelPlan, LabelWriter, Line, committed_records, load_labels_file, manifest_beside};
use crate::observer::Observer;
use crate::shard::ShardRecord;
use crate::values::{Error, ReadLimits, SequenceLabels, quoted};

/// Makes a dataset of a JSONL file that [`export_jsonl`](crate::export_jsonl) wrote, with the plan of the manifest
/// beside it, or of another `manifest`: the same bytes as the dataset that was exported, or none. Goes on where it was
/// interrupted.
///
/// The manifest's word is taken for where the labels come from, not for what they are: a shard that comes out with other
/// bytes than the manifest says is not committed.
///
/// # Errors
/// [`Error::Bad`] naming file, line and field, before anything is written, or the shard that is another;
/// [`Error::OtherPlan`]; I/O,
/// [`std::io::ErrorKind::Interrupted`] when `stop` is set.
pub fn import_jsonl(
    output: &Path,
    file: &Path,
    manifest: Option<&Path>,
    stop: &AtomicBool,
    observer: &dyn Observer,
) -> Result<Imported, Error> {
    let path = manifest.map_or_else(|| manifest_beside(file), Path::to_owned);
    let loaded = load_labels_file(&path, &ReadLimits::default());
    let (manifest, _) = loaded.map_err(|error| match crate::host::durable::is_not_found(&error) {
        true => Error::bad(quoted(&path), "the manifest that the export wrote", "nothing")
            .hint("name it with --manifest"),
        false => error,
    })?;
    let plan = manifest.plan;
    let total = manifest.rows;

    let limits = plan.limits();
    let mut ends = plan.shards.iter().map(|[_, end]| end - plan.shards[0][0]).peekable();
    let (mut rows, mut content, mut expected) = (0, RowsHash::default(), Vec::new());
    for_each(file, &plan, stop, |place, labels| {
        labels.validate(&limits).map_err(|error| error.within(place))?;
        rows += 1;
        content.add(&labels);
        if ends.next_if_eq(&rows).is_some() {
            expected.push(content.so_far());
        }
        progress(observer, "check", rows, total);
        Ok(())
    })?;
    if rows != total {
        return Err(Error::bad(quoted(file), format_args!("{total} lines, as the manifest says"), rows));
    }
    let writer = LabelWriter::create_or_resume(output, plan.clone())?;
    for (shard, found) in committed_records(output, &plan)?.iter().enumerate() {
        if let Some(found) = found.as_ref().filter(|found| **found != manifest.shards[shard]) {
            return Err(other_bytes(shard, &manifest.shards[shard], found));
        }
    }
    let shards = Shards::new(&writer, true, expected, observer)?;
    let mut shards = Shards { records: Some(&manifest.shards), ..shards };
    for_each(file, &plan, stop, |_, labels| shards.push(labels))?;
    let written = shards.finish()?;
    let dropped = DroppedRows::default();
    Ok(Imported { manifest: writer.finish()?, written, passed_over: 0, dropped, mass_above_one: 0 })
}

/// A shard that is not the one of the manifest.
pub(super) fn other_bytes(shard: usize, expected: &ShardRecord, found: &ShardRecord) -> Error {
    let place = format!("shard {shard}");
    let expected = format!("BLAKE3 {} with {} rows, as the manifest says", expected.blake3, expected.rows);
    let hint = "the labels are not those that were exported, or another version of softshard wrote them";
    Error::bad(place, expected, &found.blake3).hint(hint)
}

fn for_each(
    file: &Path,
    plan: &LabelPlan,
    stop: &AtomicBool,
    mut each: impl FnMut(&str, SequenceLabels) -> Result<(), Error>,
) -> Result<(), Error> {
    let mut lines = Lines::open(file)?;
    while let Some((at, line)) = lines.next::<Line>()? {
        check_stop(stop)?;
        let labels = line.into_labels(plan).map_err(|error| error.within(&at.place))?;
        each(&at.place, labels)?;
    }
    Ok(())
}
