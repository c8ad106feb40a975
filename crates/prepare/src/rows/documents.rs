//! Documents of a text file: what stands between two separators, without the white space around it.

use super::MAX_ROW_BYTES;
use super::lines::Lines;
use super::reading::{Body, Raw};
use crate::Error;

pub(super) struct Documents<'a> {
    lines: Lines,
    separator: &'a str,
    buffer: String,
    /// Where the search for the separator goes on; everything before has been searched.
    searched: usize,
    first_line: u64,
    at_end: bool,
}

impl<'a> Documents<'a> {
    /// `first` is a line that was read already.
    pub(super) fn new(lines: Lines, first: String, separator: &'a str) -> Self {
        Self { lines, separator, buffer: first, searched: 0, first_line: 1, at_end: false }
    }

    fn document(&self, text: &str) -> Option<Raw> {
        let text = text.trim();
        let place = self.lines.place_of(self.first_line);
        (!text.is_empty()).then(|| Raw { place, body: Body::Document(text.to_owned()) })
    }

    /// The next document, or nothing yet after another line; `None` at the end of the file.
    pub(super) fn advance(&mut self) -> Option<Result<Option<Raw>, Error>> {
        if let Some(at) = self.buffer[self.searched..].find(self.separator) {
            let rest = self.buffer.split_off(self.searched + at + self.separator.len());
            let mut text = std::mem::replace(&mut self.buffer, rest);
            text.truncate(self.searched + at);
            self.searched = 0;
            return Some(Ok(self.document(&text)));
        }
        if self.at_end {
            return None;
        }
        self.searched =
            floor_char_boundary(&self.buffer, self.buffer.len().saturating_sub(self.separator.len()));
        match self.lines.next_line() {
            Some(Ok(line)) => {
                if self.buffer.trim().is_empty() {
                    self.first_line = self.lines.line;
                }
                self.buffer.push_str(&line);
            }
            Some(Err(error)) => return Some(Err(error)),
            None => {
                self.at_end = true;
                let text = std::mem::take(&mut self.buffer);
                self.searched = 0;
                return Some(Ok(self.document(&text)));
            }
        }
        if self.buffer.len() > MAX_ROW_BYTES {
            let problem = format!("expected a document of at most {MAX_ROW_BYTES} bytes, found more");
            return Some(Err(self.lines.place().error(problem, "check `document_separator`")));
        }
        Some(Ok(None))
    }
}

fn floor_char_boundary(text: &str, mut at: usize) -> usize {
    while !text.is_char_boundary(at) {
        at -= 1;
    }
    at
}
