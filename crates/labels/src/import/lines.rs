//! JSON files with one object per line, read line by line.

use std::io::{BufRead, Read};
use std::path::Path;

use serde::de::DeserializeOwned;

use crate::values::{Error, quoted};

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

/// What a file begins with that is no text of ours, what it is, and what to do about it.
const OTHERS: [(&[u8], &str, &str); 5] = [
    (&[0x1F, 0x8B], "a gzip file", "unpack it: gunzip"),
    (&[0x28, 0xB5, 0x2F, 0xFD], "a zstd file", "unpack it: zstd -d"),
    (b"PAR1", "a Parquet file", "--from parquet reads columns, --from distillkit captures"),
    (&[0xFF, 0xFE], "UTF-16", "convert it: iconv -f UTF-16 -t UTF-8"),
    (&[0xFE, 0xFF], "UTF-16", "convert it: iconv -f UTF-16 -t UTF-8"),
];
/// What some programs put before UTF-8.
const BYTE_ORDER_MARK: &[u8] = &[0xEF, 0xBB, 0xBF];

impl Lines {
    /// Opens a file; a byte order mark of UTF-8 is passed over.
    pub(crate) fn open(path: &Path) -> Result<Self, Error> {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let mut reader = std::io::BufReader::with_capacity(1 << 20, fs_err::File::open(path)?);
        let start = reader.fill_buf()?;
        if let Some((_, what, hint)) = OTHERS.iter().find(|(first, ..)| start.starts_with(first)) {
            return Err(Error::bad(quoted(path), "lines of JSON in UTF-8", what).hint(hint));
        }
        if start.starts_with(BYTE_ORDER_MARK) {
            reader.consume(BYTE_ORDER_MARK.len());
        }
        Ok(Self { file: quoted(path), name, reader, line: 0, buffer: Vec::new() })
    }

    /// The next line, parsed. After a bad line the one behind it can be read.
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
                self.skip_line()?;
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

    /// Goes to the end of a line of which `buffer` has a part.
    fn skip_line(&mut self) -> Result<(), Error> {
        while !self.buffer.ends_with(b"\n") {
            self.buffer.clear();
            if self.reader.by_ref().take(MAX_BYTES).read_until(b'\n', &mut self.buffer)? == 0 {
                break;
            }
        }
        Ok(())
    }
}
