//! Items of a JSON array, cut out one at a time: the array may be larger than the memory.

use std::io::BufRead;
use std::path::PathBuf;
use std::sync::Arc;

use super::file::Stream;
use super::lines::utf_8;
use super::{MAX_ROW_BYTES, Place};
use crate::Error;

const WHOLE: &str = "a JSON array is `[`, rows with commas between them, `]`; was the file cut off?";

pub(super) struct Items {
    stream: Stream,
    path: Arc<PathBuf>,
    row: u64,
    at_end: bool,
}

impl Items {
    pub(super) fn new(stream: Stream, path: Arc<PathBuf>) -> Self {
        Self { stream, path, row: 0, at_end: false }
    }

    pub(super) fn place(&self) -> Place {
        Place { path: Arc::clone(&self.path), line: self.row.max(1), unit: "row" }
    }

    /// The text of the next item, which may be broken inside; `None` after the last one.
    pub(super) fn next_item(&mut self) -> Option<Result<String, Error>> {
        self.advance().transpose()
    }

    fn advance(&mut self) -> Result<Option<String>, Error> {
        if self.at_end {
            return Ok(None);
        }
        if self.row == 0 {
            self.skip_byte_order_mark()?;
            self.skip_space()?; // The kind says that `[` comes next.
            self.stream.reader.consume(1);
        }
        match (self.skip_space()?, self.row) {
            (Some(b']'), _) => return self.end(),
            (Some(b','), 1..) => self.stream.reader.consume(1),
            (Some(_), 0) => {}
            (Some(byte), _) => {
                let problem = format!("expected `,` or `]` after the row, found {:?}", char::from(byte));
                return Err(self.place().error(problem, WHOLE));
            }
            (None, _) => return Err(self.cut_off()),
        }
        self.row += 1;
        self.skip_space()?;
        let bytes = self.item()?;
        utf_8(bytes, &self.place()).map(Some)
    }

    /// After the bracket that closes the array nothing may come.
    fn end(&mut self) -> Result<Option<String>, Error> {
        self.stream.reader.consume(1);
        self.at_end = true;
        match self.skip_space()? {
            None => Ok(None),
            Some(byte) => {
                let problem = format!("expected nothing after the array, found {:?}", char::from(byte));
                Err(self.place().error(problem, "a file holds one array; for several values write JSONL"))
            }
        }
    }

    /// The bytes of a value, up to the comma or bracket behind it.
    fn item(&mut self) -> Result<Vec<u8>, Error> {
        let mut item = Vec::new();
        let (mut depth, mut in_string, mut escaped) = (0u64, false, false);
        loop {
            let buffer = fill(&mut self.stream, &self.path, self.row)?;
            if buffer.is_empty() {
                return Err(self.cut_off());
            }
            let end = buffer.iter().position(|byte| {
                if in_string {
                    in_string = escaped || *byte != b'"';
                    escaped = !escaped && *byte == b'\\';
                    return false;
                }
                match byte {
                    b'"' => in_string = true,
                    b'{' | b'[' => depth += 1,
                    b'}' | b']' | b',' if depth == 0 => return true,
                    b'}' | b']' => depth -= 1,
                    _ => {}
                }
                false
            });
            let used = end.unwrap_or(buffer.len());
            item.extend_from_slice(&buffer[..used]);
            self.stream.reader.consume(used);
            if item.len() > MAX_ROW_BYTES {
                let problem = format!("expected at most {MAX_ROW_BYTES} bytes in a row, found more");
                return Err(self.place().error(problem, WHOLE));
            }
            if end.is_some() {
                return Ok(item);
            }
        }
    }

    /// Goes to the next byte that is no white space, and says which.
    fn skip_space(&mut self) -> Result<Option<u8>, Error> {
        loop {
            let buffer = fill(&mut self.stream, &self.path, self.row)?;
            if buffer.is_empty() {
                return Ok(None);
            }
            let space = buffer.len() - buffer.trim_ascii_start().len();
            let found = buffer.get(space).copied();
            self.stream.reader.consume(space);
            if found.is_some() {
                return Ok(found);
            }
        }
    }

    fn skip_byte_order_mark(&mut self) -> Result<(), Error> {
        if fill(&mut self.stream, &self.path, self.row)?.starts_with(b"\xef\xbb\xbf") {
            self.stream.reader.consume(3);
        }
        Ok(())
    }

    fn cut_off(&self) -> Error {
        self.place().error("expected `]` at the end of the array, found the end of the file", WHOLE)
    }
}

fn fill<'a>(stream: &'a mut Stream, path: &Arc<PathBuf>, row: u64) -> Result<&'a [u8], Error> {
    let packed = stream.packed;
    stream.reader.fill_buf().map_err(|error| {
        let place = Place { path: Arc::clone(path), line: row.max(1), unit: "row" };
        super::file::unreadable(packed, error, &place)
    })
}
