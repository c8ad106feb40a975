//! Parts of an evaluation that is under way, kept beside its result: one that was stopped or killed goes on behind the last of them.
//!
//! A file of lines: the first says what is evaluated, each that follows is a part, in the order in which they are made. A line begins
//! with its hash, so one that was torn is none; what comes behind it is made again.

use std::{
    collections::VecDeque,
    fs::TryLockError,
    io::{Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};

use anyhow::{Result, bail};
use fs_err as fs;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use softshard_labels::Provenance;

/// Digits of a line's hash.
const DIGITS: usize = 16;

/// What parts are of: those of anything else are not believed.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Header {
    /// What the result is made from.
    pub(crate) provenance: Provenance,
    /// Decides which sequences are scored together, and with it where a part ends.
    pub(crate) max_tokens_per_batch: usize,
}

/// The parts of one result. No two processes have those of the same one.
pub(crate) struct Parts {
    path: PathBuf,
    file: fs::File,
    /// Those of an earlier run that are not used yet, each with where its line begins.
    kept: VecDeque<(u64, String)>,
}

/// Where a result and its rows are written.
pub(crate) struct Places {
    pub(crate) result: PathBuf,
    pub(crate) rows: PathBuf,
    partial: PathBuf,
}

impl Places {
    /// Of a task's result, in the folder of its name.
    pub(crate) fn of(folder: &Path, task: &str) -> Self {
        let [result, rows, partial] =
            ["json", "rows.jsonl", "partial"].map(|extension| folder.join(format!("{task}.{extension}")));
        Self { result, rows, partial }
    }
}

impl Parts {
    /// Those that are there of just this evaluation; others are left out, which is said.
    ///
    /// # Errors
    /// The folder cannot be written; another process makes the same result.
    pub(crate) fn open(places: &Places, header: &Header) -> Result<Self> {
        let path = places.partial.clone();
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)?;
        }
        let mut options = fs::OpenOptions::new();
        let mut file = options.read(true).write(true).create(true).truncate(false).open(&path)?;
        match file.file().try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => bail!(
                "`{}`: expected no other evaluation of this name, found one at work\n\
                 hint: wait for its end, or give this one a name with `evaluate.name`",
                path.display()
            ),
            Err(TryLockError::Error(error)) => {
                tracing::warn!("`{}` cannot be locked against another evaluation: {error}", path.display());
            }
        }
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        let (mut lines, mut end) = whole_lines(&bytes);
        let first = lines.pop_front().and_then(|(_, text)| serde_json::from_str::<Header>(&text).ok());
        if first.as_ref() != Some(header) {
            if let Some(first) = &first {
                say_other(&path, header, first);
            }
            (lines, end) = (VecDeque::new(), 0);
        }
        file.set_len(end)?;
        file.seek(SeekFrom::Start(end))?;
        let mut parts = Self { path, file, kept: lines };
        if end == 0 {
            parts.append(header)?;
        } else if !parts.kept.is_empty() {
            let (path, kept) = (parts.path.display(), parts.kept.len());
            tracing::info!("an evaluation that was interrupted goes on behind {kept} parts, in `{path}`");
        }
        Ok(parts)
    }

    /// The next part: the one that was kept, or else what `make` gives, which is kept.
    ///
    /// # Errors
    /// Those of `make`; the part cannot be written.
    pub(crate) fn next<T: Serialize + DeserializeOwned>(
        &mut self,
        make: impl FnOnce() -> Result<T>,
    ) -> Result<T> {
        if let Some((start, text)) = self.kept.pop_front() {
            match serde_json::from_str(&text) {
                Ok(part) => return Ok(part),
                // A number that is not finite is no JSON.
                Err(_) => self.cut(start)?,
            }
        }
        let part = make()?;
        self.append(&part)?;
        Ok(part)
    }

    /// Puts a result and its rows in their places, and removes the parts. A result of something else goes before its rows do:
    /// it never stands beside those of another.
    ///
    /// # Errors
    /// The folder cannot be written.
    pub(crate) fn commit(self, places: &Places, result: &[u8], rows: &[u8]) -> Result<()> {
        let [written_rows, written] =
            [(&places.rows, rows), (&places.result, result)].map(|(path, bytes)| -> Result<PathBuf> {
                let name = path.file_name().unwrap_or_default().to_string_lossy();
                let unfinished = path.with_file_name(format!(".{name}.writing"));
                let mut file = fs::File::create(&unfinished)?;
                file.write_all(bytes)?;
                file.sync_all()?;
                Ok(unfinished)
            });
        let (written_rows, written) = (written_rows?, written?);
        let has = |path: &Path, bytes: &[u8]| fs::read(path).is_ok_and(|found| found == bytes);
        if places.result.exists() && !(has(&places.result, result) && has(&places.rows, rows)) {
            fs::remove_file(&places.result)?;
            sync_folder(&places.result)?;
        }
        fs::rename(written_rows, &places.rows)?;
        fs::rename(written, &places.result)?;
        sync_folder(&places.result)?;
        self.discard()
    }

    /// Removes the parts, which nobody needs.
    ///
    /// # Errors
    /// The folder cannot be written.
    pub(crate) fn discard(self) -> Result<()> {
        Ok(fs::remove_file(&self.path)?)
    }

    /// Leaves out what begins at `start` and all that follows.
    fn cut(&mut self, start: u64) -> Result<()> {
        self.kept.clear();
        self.file.set_len(start)?;
        self.file.seek(SeekFrom::Start(start))?;
        Ok(())
    }

    fn append(&mut self, part: &impl Serialize) -> Result<()> {
        let text = serde_json::to_string(part)?;
        self.file.write_all(format!("{} {text}\n", hash(&text)).as_bytes())?;
        Ok(self.file.sync_data()?)
    }
}

/// Says why parts that are there are not used.
fn say_other(path: &Path, header: &Header, found: &Header) {
    let differences = header.provenance.differences(&found.provenance);
    let why = match differences.first() {
        Some(difference) if differences.len() == 1 => difference.to_string(),
        Some(difference) => format!("{difference}, and {} more", differences.len() - 1),
        None => "another version, or other batches".to_owned(),
    };
    tracing::warn!("`{}`: parts of another evaluation are left out: {why}", path.display());
}

/// The lines up to the first that is not whole, each with where it begins, and where they end.
fn whole_lines(bytes: &[u8]) -> (VecDeque<(u64, String)>, u64) {
    let (mut lines, mut end) = (VecDeque::new(), 0);
    for line in bytes.split_inclusive(|byte| *byte == b'\n') {
        let text = std::str::from_utf8(line).ok().and_then(|line| line.strip_suffix('\n'));
        let Some((digits, text)) = text.and_then(|text| text.split_once(' ')) else { break };
        if digits != hash(text) {
            break;
        }
        lines.push_back((end, text.to_owned()));
        end += u64::try_from(line.len()).expect("a length fits 64 bits");
    }
    (lines, end)
}

fn hash(text: &str) -> String {
    blake3::hash(text.as_bytes()).to_hex()[..DIGITS].to_owned()
}

fn sync_folder(path: &Path) -> Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    Ok(fs::File::open(folder)?.sync_all()?)
}

#[cfg(test)]
mod tests {
    use softshard_labels::Artefact;

    use super::*;

    fn header(max_tokens_per_batch: usize) -> Header {
        Header { provenance: Provenance::new(Artefact::Evaluation), max_tokens_per_batch }
    }

    /// Parts 0 to `count`; how many of them were made.
    fn made(places: &Places, header: &Header, count: usize) -> usize {
        let mut parts = Parts::open(places, header).expect("it opens");
        let mut made = 0;
        for number in 0..count {
            let part: (usize, f64) = parts
                .next(|| {
                    made += 1;
                    Ok((number, 0.1 + number as f64))
                })
                .expect("a part");
            assert_eq!(part, (number, 0.1 + number as f64));
        }
        made
    }

    #[test]
    fn parts_are_made_once_and_those_of_something_else_are_left_out() {
        let folder = tempfile::tempdir().expect("a folder");
        let places = Places::of(folder.path(), "student");
        assert_eq!(made(&places, &header(1), 3), 3);
        assert_eq!(made(&places, &header(1), 5), 2);
        assert_eq!(made(&places, &header(1), 5), 0);
        assert_eq!(made(&places, &header(2), 5), 5);
        let mut other = header(2);
        other.provenance.input("adapter", "b");
        assert_eq!(made(&places, &other, 5), 5);
        let parts = Parts::open(&places, &other).expect("it opens");
        let error = Parts::open(&places, &other).err().expect("it is locked").to_string();
        assert!(error.contains("found one at work"), "{error}");
        parts.commit(&places, b"{}", b"").expect("committed");
        let mut names: Vec<_> =
            fs::read_dir(folder.path()).expect("a folder").map(|one| one.expect("one").file_name()).collect();
        names.sort();
        assert_eq!(names, ["student.json", "student.rows.jsonl"]);
    }

    #[test]
    fn a_file_that_ends_anywhere_is_good_up_to_its_last_whole_line() {
        let folder = tempfile::tempdir().expect("a folder");
        let places = Places::of(folder.path(), "student");
        made(&places, &header(1), 3);
        let whole = fs::read(&places.partial).expect("parts");
        let ends: Vec<usize> = (1..=whole.len()).filter(|end| whole[end - 1] == b'\n').collect();
        assert_eq!(ends.len(), 4);
        for end in 0..whole.len() {
            fs::write(&places.partial, &whole[..end]).expect("it is cut");
            let lines = ends.iter().filter(|line| **line <= end).count();
            assert_eq!(made(&places, &header(1), 3), 3 - lines.saturating_sub(1), "cut at {end}");
            assert!(fs::read(&places.partial).expect("parts") == whole, "cut at {end}");
        }
        // What a disk makes of a page that was not written.
        let mut damaged = whole.clone();
        damaged[ends[1] + 3..ends[1] + 6].fill(0);
        fs::write(&places.partial, damaged).expect("it is damaged");
        assert_eq!(made(&places, &header(1), 3), 2);
    }
}
