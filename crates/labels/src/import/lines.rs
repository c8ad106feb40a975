//! JSON files with one object per line, read line by line.

use std::io::{BufRead, Read};
use std::path::Path;

use serde::de::DeserializeOwned;

use crate::Error;
use crate::error::quoted;

/// A longer line is refused before it is parsed: a position with 64 entries takes about 1 KiB, and parsing some times that.
const MAX_BYTES: u64 = 64 << 20;

/// The lines of a file that are not blank.
pub(crate) struct Lines {
    file: String,
    name: String,
    reader: std::io::BufReader<fs_err::File>,
    line: u64,
    buffer: Vec<u8>,
}

/// Where a line stands.
pub(crate) struct LinePlace {
    /// In messages: file and line.
    pub(crate) place: String,
    /// `file:3`, for the column `source`.
    pub(crate) source: String,
}

impl Lines {
    pub(crate) fn open(path: &Path) -> Result<Self, Error> {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let reader = std::io::BufReader::with_capacity(1 << 20, fs_err::File::open(path)?);
        Ok(Self { file: quoted(path), name, reader, line: 0, buffer: Vec::new() })
    }

    /// The next line, parsed.
    pub(crate) fn next<T: DeserializeOwned>(&mut self) -> Result<Option<(LinePlace, T)>, Error> {
        loop {
            self.buffer.clear();
            let read = self.reader.by_ref().take(MAX_BYTES + 1).read_until(b'\n', &mut self.buffer)?;
            if read == 0 {
                return Ok(None);
            }
            self.line += 1;
            let place = format!("{} line {}", self.file, self.line);
            if self.buffer.len() > usize::try_from(MAX_BYTES).unwrap_or(usize::MAX) {
                return Err(Error::bad(place, format_args!("at most {MAX_BYTES} bytes"), "more"));
            }
            if self.buffer.iter().all(u8::is_ascii_whitespace) {
                continue;
            }
            let value = serde_json::from_slice(&self.buffer)
                .map_err(|error| Error::bad(&place, "a JSON object of this format", error))?;
            let source = format!("{}:{}", self.name, self.line);
            return Ok(Some((LinePlace { place, source }, value)));
        }
    }
}
