//! Our own JSONL, as `export` writes it: the same dataset again.

use std::path::Path;
use std::sync::atomic::AtomicBool;

use super::lines::Lines;
use super::{Imported, Shards, check_stop, progress};
use crate::dataset::check_manifest;
use crate::error::quoted;
use crate::export::{Line, manifest_beside};
use crate::{Error, LabelPlan, LabelWriter, LabelsManifest, ReadLimits, SequenceLabels, json};

/// Makes a dataset of a JSONL file that [`export_jsonl`](crate::export_jsonl) wrote, with the plan of the manifest
/// beside it, or of another `manifest`: the same bytes as the dataset that was exported. Goes on where it was
/// interrupted.
///
/// The manifest's word is taken for where the labels come from.
///
/// # Errors
/// [`Error::Bad`] naming file, line and field, before anything is written; [`Error::OtherPlan`]; I/O,
/// [`std::io::ErrorKind::Interrupted`] when `stop` is set.
pub fn import_jsonl(
    output: &Path,
    file: &Path,
    manifest: Option<&Path>,
    stop: &AtomicBool,
) -> Result<Imported, Error> {
    let path = manifest.map_or_else(|| manifest_beside(file), Path::to_owned);
    let bytes = json::read(&path).map_err(|error| match crate::durable::is_not_found(&error) {
        true => Error::bad(quoted(&path), "the manifest that the export wrote", "nothing")
            .hint("name it with --manifest"),
        false => error,
    })?;
    let manifest: LabelsManifest =
        json::parse(&path, &bytes, LabelsManifest::FORMAT, LabelsManifest::VERSION)?;
    check_manifest(&path, &manifest, &ReadLimits::default())?;
    let plan = manifest.plan;
    let total = manifest.rows;

    let limits = plan.limits();
    let mut rows = 0;
    for_each(file, &plan, stop, |place, labels| {
        labels.validate(&limits).map_err(|error| error.within(place))?;
        rows += 1;
        progress("check", rows, total);
        Ok(())
    })?;
    if rows != total {
        return Err(Error::bad(quoted(file), format_args!("{total} lines, as the manifest says"), rows));
    }
    let writer = LabelWriter::create_or_resume(output, plan.clone())?;
    let mut shards = Shards::new(&writer, true)?;
    for_each(file, &plan, stop, |_, labels| shards.push(labels))?;
    Ok(Imported { manifest: writer.finish()?, written: shards.written(), passed_over: 0, mass_above_one: 0 })
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
