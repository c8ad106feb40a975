//! JSON lines: one object for each record, appended.

use std::{
    io::{self, Read, Seek, SeekFrom, Write},
    path::Path,
};

use fs_err as fs;

/// More than any line of ours.
const LONGEST_LINE: u64 = 64 << 10;

/// An open file of JSON lines.
pub(crate) struct Lines(fs::File);

impl Lines {
    /// Opens `path` to append; a last line that a crash or a full disk tore is cut off.
    ///
    /// # Errors
    /// The file cannot be opened, or ends in something that is no line.
    pub(crate) fn append_to(path: &Path) -> io::Result<Self> {
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)?;
        }
        let mut file = fs::OpenOptions::new().read(true).append(true).create(true).open(path)?;
        let length = file.metadata()?.len();
        let start = length.saturating_sub(LONGEST_LINE);
        file.seek(SeekFrom::Start(start))?;
        let mut tail = Vec::new();
        Read::by_ref(&mut file).take(length - start).read_to_end(&mut tail)?;
        let whole = tail.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end as u64 + 1);
        if whole == 0 && start > 0 {
            let problem = format!("`{}`: expected lines of JSON, found none at its end", path.display());
            return Err(io::Error::new(io::ErrorKind::InvalidData, problem));
        }
        if start + whole < length {
            file.set_len(start + whole)?;
        }
        Ok(Self(file))
    }

    /// Appends one object, in one write.
    ///
    /// # Errors
    /// The file cannot be written.
    pub(crate) fn write(&mut self, object: &impl serde::Serialize) -> io::Result<()> {
        let mut line = serde_json::to_vec(object)?;
        line.push(b'\n');
        self.0.write_all(&line)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_torn_last_line_is_mended() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("metrics/run.jsonl");
        Lines::append_to(&path).expect("a new file").write(&1).expect("written");
        for torn in ["", "2", "{\"time\": 17"] {
            fs::write(&path, format!("1\n{torn}")).expect("written");
            Lines::append_to(&path).expect("opened").write(&3).expect("written");
            assert_eq!(fs::read_to_string(&path).expect("read"), "1\n3\n", "{torn}");
        }
        fs::write(&path, "torn").expect("written");
        Lines::append_to(&path).expect("opened");
        assert_eq!(fs::read(&path).expect("read"), b"");
        fs::write(&path, vec![b'x'; 70_000]).expect("written");
        let error = Lines::append_to(&path).err().expect("refused").to_string();
        assert!(error.ends_with("expected lines of JSON, found none at its end"), "{error}");
    }
}
