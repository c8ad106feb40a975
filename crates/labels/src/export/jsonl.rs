//! Labels as JSON, one object per sequence: everything that the shards hold, for programs that do not read Parquet.

use std::io::Write;
use std::path::Path;
use std::sync::atomic::AtomicBool;

use super::{for_each_group, write_whole};
use crate::dataset::{LabelDataset, Line, manifest_beside};
use crate::observer::Observer;
use crate::values::{Error, json};

/// Writes all labels to `to`: JSON, one object per line and sequence, in stored order.
///
/// # Errors
/// [`Error::Bad`] if a row group is damaged; I/O, [`std::io::ErrorKind::Interrupted`] when `stop` is set.
pub fn write_jsonl(
    dataset: &LabelDataset,
    to: &mut impl Write,
    stop: &AtomicBool,
    observer: &dyn Observer,
) -> Result<(), Error> {
    let plan = &dataset.manifest().plan;
    for_each_group(dataset, stop, observer, |group| {
        for row in 0..group.len() {
            let line = Line::new(group.key(row), group.source(row), &group.row(row), plan);
            serde_json::to_writer(&mut *to, &line).map_err(std::io::Error::from)?;
            to.write_all(b"\n")?;
        }
        Ok(())
    })
}

/// Writes all labels to a file, see [`write_jsonl`], and the manifest beside it, as `NAME.manifest.json`: with both,
/// [`import_jsonl`](crate::import_jsonl) makes the same dataset again.
///
/// # Errors
/// See [`write_jsonl`]; the file is whole or not there.
pub fn export_jsonl(
    dataset: &LabelDataset,
    file: &Path,
    stop: &AtomicBool,
    observer: &dyn Observer,
) -> Result<(), Error> {
    write_whole(file, |to| write_jsonl(dataset, to, stop, observer))?;
    write_whole(&manifest_beside(file), |to| Ok(to.write_all(&json::to_bytes(dataset.manifest()))?))
}
