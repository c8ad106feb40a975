//! Lines of a UTF-8 file, with their numbers.

use std::io::{BufRead, Read};
use std::path::PathBuf;
use std::sync::Arc;

use super::file::Stream;
use super::{MAX_ROW_BYTES, Place};
use crate::Error;

pub(super) struct Lines {
    stream: Stream,
    path: Arc<PathBuf>,
    pub(super) line: u64,
}

impl Lines {
    pub(super) fn new(stream: Stream, path: Arc<PathBuf>) -> Self {
        Self { stream, path, line: 0 }
    }

    pub(super) fn place(&self) -> Place {
        self.place_of(self.line)
    }

    pub(super) fn place_of(&self, line: u64) -> Place {
        Place { path: Arc::clone(&self.path), line, unit: "line" }
    }

    /// The next line with its newline; `None` at the end of the file.
    pub(super) fn next_line(&mut self) -> Option<Result<String, Error>> {
        let mut bytes = Vec::new();
        let limit = u64::try_from(MAX_ROW_BYTES).expect("a constant") + 1;
        match self.stream.reader.by_ref().take(limit).read_until(b'\n', &mut bytes) {
            Ok(0) => return None,
            Ok(_) => self.line += 1,
            Err(error) => return Some(Err(self.stream.unreadable(error, &self.place_of(self.line + 1)))),
        }
        if bytes.len() > MAX_ROW_BYTES {
            let problem = format!("expected at most {MAX_ROW_BYTES} bytes in a line, found more");
            return Some(Err(self.place().error(problem, "is this file text with one row per line?")));
        }
        if self.line == 1 && bytes.starts_with(b"\xef\xbb\xbf") {
            bytes.drain(..3);
        }
        Some(utf_8(bytes, &self.place()))
    }
}

/// Bytes of a row as text.
pub(super) fn utf_8(bytes: Vec<u8>, place: &Place) -> Result<String, Error> {
    String::from_utf8(bytes).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        let (byte, unit) = (error.as_bytes()[at], place.unit);
        let problem = format!("expected UTF-8, found byte 0x{byte:02x} at byte {} of the {unit}", at + 1);
        place.error(problem, "convert the file first, for example with `iconv -f WINDOWS-1252 -t UTF-8`")
    })
}
