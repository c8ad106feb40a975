//! Writes labels for programs that do not know our format.

mod hf;
mod jsonl;

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

pub use hf::export_hf;
pub use jsonl::{export_jsonl, write_jsonl};

use crate::dataset::LabelDataset;
use crate::host::{durable, with_suffix};
use crate::observer::{Observer, Progress};
use crate::shard::LabelGroup;
use crate::values::Error;

/// Calls `each` with every row group, and stops where that was asked for.
fn for_each_group(
    dataset: &LabelDataset,
    stop: &AtomicBool,
    observer: &dyn Observer,
    mut each: impl FnMut(&LabelGroup) -> Result<(), Error>,
) -> Result<(), Error> {
    let (mut group, mut done) = (LabelGroup::default(), 0);
    for index in 0..dataset.groups() {
        if stop.load(Ordering::Relaxed) {
            return Err(io::Error::new(io::ErrorKind::Interrupted, "interrupted while exporting").into());
        }
        dataset.decode_group(index, &mut group)?;
        each(&group)?;
        done += group.len();
        let (done, total) = (done as u64, dataset.len() as u64);
        observer.progress(&Progress { stage: "export", done, total, unit: "rows", ..Progress::default() });
    }
    Ok(())
}

/// A name beside `path` that nobody else has: what is written is first there.
fn part_of(path: &Path) -> PathBuf {
    with_suffix(path, &format!(".part-{}", durable::nonce()))
}

/// Writes a file that is whole or not there: under another name first.
fn write_whole(
    path: &Path,
    write: impl FnOnce(&mut io::BufWriter<fs_err::File>) -> Result<(), Error>,
) -> Result<(), Error> {
    let part = part_of(path);
    let mut to = io::BufWriter::new(fs_err::File::create_new(&part)?);
    let written = write(&mut to).and_then(|()| {
        to.flush()?;
        Ok(to.get_ref().sync_all()?)
    });
    match written {
        Ok(()) => Ok(fs_err::rename(&part, path)?),
        Err(error) => {
            durable::remove_if_there(&part)?;
            Err(error)
        }
    }
}
