//! Rows of JSONL files and documents of text files, read one at a time.

use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Deserialize;

use crate::conversation::{Conversation, Message};
use crate::value::Value;
use crate::{DataConfig, Error};

/// A line or a document longer than this is refused: it is some other kind of file.
const MAX_ROW_BYTES: usize = 64 << 20;

/// Where a row stands.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    pub(crate) path: Arc<PathBuf>,
    pub(crate) line: u64,
}

impl Place {
    /// `file.jsonl:12`: without the folder, so that the same data gives the same bytes on every machine.
    pub(crate) fn source(&self) -> String {
        let name = self.path.file_name().unwrap_or_default();
        format!("{}:{}", name.to_string_lossy(), self.line)
    }

    pub(crate) fn error(&self, problem: impl Into<String>, hint: &'static str) -> Error {
        Error::Row { path: self.path.to_path_buf(), line: self.line, problem: problem.into(), hint }
    }
}

/// What a row says.
#[derive(Clone, Debug)]
pub(crate) enum Content {
    Instruction {
        instruction: String,
        context: String,
        response: String,
    },
    /// The last message is the assistant's: the response.
    Conversation(Conversation),
    /// Token ids, and of each whether it is labelled: as many.
    Tokens {
        input_ids: Vec<i32>,
        labelled: Vec<bool>,
    },
    Document(String),
}

/// A row of instruction data, or a document.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    pub(crate) place: Place,
    pub(crate) content: Content,
    pub(crate) category: Option<String>,
    pub(crate) facts: Option<serde_json::Value>,
}

impl Row {
    pub(crate) fn has_empty_response(&self) -> bool {
        match &self.content {
            Content::Instruction { response, .. } => response.trim().is_empty(),
            Content::Conversation(conversation) => conversation.has_empty_response(),
            Content::Tokens { .. } | Content::Document(_) => false,
        }
    }

    /// A hash of the seed and the prompt (of the whole text for a document): the row's place in the split.
    pub(crate) fn split_hash(&self, seed: u64) -> u64 {
        let mut hasher = blake3::Hasher::new_derive_key("softshard prepare split 1");
        hasher.update(&seed.to_le_bytes());
        let mut add = |part: &str| {
            hasher.update(&u64::try_from(part.len()).expect("a length fits 64 bits").to_le_bytes());
            hasher.update(part.as_bytes());
        };
        match &self.content {
            Content::Instruction { instruction, context, .. } => {
                add(instruction);
                add(context);
            }
            Content::Conversation(conversation) => conversation.prompt().iter().for_each(|message| {
                add(message.role());
                add(message.text());
            }),
            Content::Tokens { input_ids, .. } => input_ids.iter().for_each(|id| add(&id.to_string())),
            Content::Document(text) => add(text),
        }
        let digest = hasher.finalize();
        u64::from_le_bytes(*digest.as_bytes().first_chunk().expect("a BLAKE3 digest has 32 bytes"))
    }
}

/// The rows of all files of the recipe, in order, up to its limit.
///
/// # Errors
/// Each item is [`Error::Row`] or [`Error::Io`] where the data is bad; stop at the first.
pub(crate) fn rows(data: &DataConfig) -> impl Iterator<Item = Result<Row, Error>> + '_ {
    let files: &[PathBuf] = if data.is_text() { &data.text } else { &data.instructions };
    files
        .iter()
        .flat_map(|path| match Lines::open(path) {
            Ok(lines) if data.is_text() => Rows::Text(Documents::new(lines, &data.document_separator)),
            Ok(lines) => Rows::Json(lines),
            Err(error) => Rows::Failed(Some(error)),
        })
        .take(data.limit.unwrap_or(usize::MAX))
}

enum Rows<'a> {
    Json(Lines),
    Text(Documents<'a>),
    Failed(Option<Error>),
}

impl Iterator for Rows<'_> {
    type Item = Result<Row, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        match self {
            Self::Json(lines) => loop {
                match lines.next_line()? {
                    Ok(line) if line.trim().is_empty() => {}
                    Ok(line) => return Some(parse_row(&line, lines.place())),
                    Err(error) => return Some(Err(error)),
                }
            },
            Self::Text(documents) => documents.next(),
            Self::Failed(error) => error.take().map(Err),
        }
    }
}

/// Lines of a UTF-8 file, with their numbers.
struct Lines {
    reader: BufReader<fs_err::File>,
    path: Arc<PathBuf>,
    line: u64,
}

impl Lines {
    fn open(path: &Path) -> Result<Self, Error> {
        let file = fs_err::File::open(path).map_err(|error| {
            let hint = "paths of a recipe are from its folder";
            io::Error::new(error.kind(), format!("data: {error}\nhint: {hint}"))
        })?;
        let reader = BufReader::with_capacity(1 << 20, file);
        Ok(Self { reader, path: Arc::new(path.to_owned()), line: 0 })
    }

    fn place(&self) -> Place {
        Place { path: Arc::clone(&self.path), line: self.line }
    }

    /// The next line with its newline; `None` at the end of the file.
    fn next_line(&mut self) -> Option<Result<String, Error>> {
        let mut bytes = Vec::new();
        let limit = u64::try_from(MAX_ROW_BYTES).expect("a constant") + 1;
        match self.reader.by_ref().take(limit).read_until(b'\n', &mut bytes) {
            Ok(0) => return None,
            Ok(_) => self.line += 1,
            Err(error) => return Some(Err(error.into())),
        }
        if bytes.len() > MAX_ROW_BYTES {
            let problem = format!("expected at most {MAX_ROW_BYTES} bytes in a line, found more");
            return Some(Err(self.place().error(problem, "is this file text with one row per line?")));
        }
        if self.line == 1 && bytes.starts_with(b"\xef\xbb\xbf") {
            bytes.drain(..3);
        }
        Some(String::from_utf8(bytes).map_err(|error| {
            let at = error.utf8_error().valid_up_to();
            let problem = format!(
                "expected UTF-8, found byte 0x{:02x} at byte {} of the line",
                error.as_bytes()[at],
                at + 1
            );
            self.place()
                .error(problem, "convert the file first, for example with `iconv -f WINDOWS-1252 -t UTF-8`")
        }))
    }
}

/// Documents of a text file: what stands between two separators, without the white space around it.
struct Documents<'a> {
    lines: Lines,
    separator: &'a str,
    buffer: String,
    /// Where the search for the separator goes on; everything before has been searched.
    searched: usize,
    first_line: u64,
}

impl<'a> Documents<'a> {
    fn new(lines: Lines, separator: &'a str) -> Self {
        Self { lines, separator, buffer: String::new(), searched: 0, first_line: 1 }
    }

    fn document(&mut self, text: &str) -> Option<Row> {
        let place = Place { path: Arc::clone(&self.lines.path), line: self.first_line };
        let text = text.trim();
        let content = Content::Document(text.to_owned());
        (!text.is_empty()).then_some(Row { place, content, category: None, facts: None })
    }

    fn next(&mut self) -> Option<Result<Row, Error>> {
        loop {
            if let Some(at) = self.buffer[self.searched..].find(self.separator) {
                let rest = self.buffer.split_off(self.searched + at + self.separator.len());
                let mut text = std::mem::replace(&mut self.buffer, rest);
                text.truncate(self.searched + at);
                self.searched = 0;
                if let Some(row) = self.document(&text) {
                    return Some(Ok(row));
                }
                continue;
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
                    let text = std::mem::take(&mut self.buffer);
                    self.searched = 0;
                    return self.document(&text).map(Ok);
                }
            }
            if self.buffer.len() > MAX_ROW_BYTES {
                let problem = format!("expected a document of at most {MAX_ROW_BYTES} bytes, found more");
                return Some(Err(self.lines.place().error(problem, "check `document_separator`")));
            }
        }
    }
}

fn floor_char_boundary(text: &str, mut at: usize) -> usize {
    while !text.is_char_boundary(at) {
        at -= 1;
    }
    at
}

/// The fields this crate knows (Dolly's, with Alpaca's names for the same); other columns are ignored.
#[derive(Deserialize)]
struct RawRow {
    instruction: Option<String>,
    #[serde(alias = "input")]
    context: Option<String>,
    #[serde(alias = "output")]
    response: Option<String>,
    messages: Option<Vec<Value>>,
    category: Option<String>,
    facts: Option<serde_json::Value>,
}

const FIELDS_HINT: &str = "a row is {\"instruction\": …, \"context\": …, \"response\": …} or {\"messages\": [{\"role\": …, \"content\": …}, …]}";

fn parse_row(line: &str, place: Place) -> Result<Row, Error> {
    let raw: RawRow = serde_json::from_str(line).map_err(|error| match error.classify() {
        serde_json::error::Category::Data => place.error(json_problem(&error), FIELDS_HINT),
        _ => place.error(
            format!("expected one JSON object, found broken JSON: {}", json_problem(&error)),
            "each line is one whole object; was the file cut off?",
        ),
    })?;
    let RawRow { instruction, context, response, messages, category, facts } = raw;
    let content = match (instruction, response, messages) {
        (Some(instruction), Some(response), None) => {
            Content::Instruction { instruction, context: context.unwrap_or_default(), response }
        }
        (None, None, Some(messages)) => {
            let messages: Vec<Message> = messages.into_iter().map(message).collect();
            match messages.as_slice() {
                [_, .., last] if last.role() == "assistant" => {}
                others => {
                    let found = others
                        .last()
                        .map_or("no message".into(), |last| format!("a single or last `{}`", last.role()));
                    let problem =
                        format!("expected `messages` to end with an answer of `assistant`, found {found}");
                    return Err(place.error(problem, FIELDS_HINT));
                }
            }
            Content::Conversation(Conversation { messages, ..Conversation::default() })
        }
        (instruction, response, messages) => {
            let found = [
                instruction.map(|_| "`instruction`"),
                response.map(|_| "`response`"),
                messages.map(|_| "`messages`"),
            ];
            let found: Vec<&str> = found.into_iter().flatten().collect();
            let found = if found.is_empty() { "none of them".into() } else { found.join(" and ") };
            let problem = format!("expected `instruction` and `response`, or `messages`; found {found}");
            return Err(place.error(problem, FIELDS_HINT));
        }
    };
    Ok(Row { place, content, category, facts })
}

fn message(value: Value) -> Message {
    let Value::Object(fields) = value else { return Message::new("", "") };
    Message { fields, trained: None }
}

/// serde_json's message with the column only: the line is always 1 there.
fn json_problem(error: &serde_json::Error) -> String {
    let text = error.to_string();
    match text.rsplit_once(" at line ") {
        Some((message, _)) => format!("{message} at column {}", error.column()),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(bytes: &[u8], text: bool) -> Vec<Result<Row, Error>> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("data.jsonl");
        fs_err::write(&path, bytes).unwrap();
        let field = if text { "text" } else { "instructions" };
        let data: DataConfig = serde_json::from_value(serde_json::json!({ field: path })).unwrap();
        rows(&data).collect()
    }

    fn message(bytes: &[u8]) -> String {
        let error = read(bytes, false).into_iter().find_map(Result::err).expect("an error");
        let Error::Row { line, problem, .. } = error else { panic!("expected a row error, found {error}") };
        format!("{line}: {problem}")
    }

    const GOOD: &str = "{\"instruction\": \"a\", \"response\": \"b\"}\n";

    #[test]
    fn bad_rows_are_named_by_line() {
        let cases: [(&[u8], &str); 6] = [
            (
                b"{\"instruction\": \"a\", \"resp",
                "2: expected one JSON object, found broken JSON: EOF while parsing a string at column 26",
            ),
            (b"{\"instruction\": \"caf\xe9\"}", "2: expected UTF-8, found byte 0xe9 at byte 21 of the line"),
            (
                b"{\"text\": \"a\"}",
                "2: expected `instruction` and `response`, or `messages`; found none of them",
            ),
            (
                b"{\"instruction\": \"a\"}",
                "2: expected `instruction` and `response`, or `messages`; found `instruction`",
            ),
            (
                b"{\"instruction\": 7, \"response\": \"b\"}",
                "2: invalid type: integer `7`, expected a string at column 17",
            ),
            (
                b"{\"messages\": [{\"role\": \"user\", \"content\": \"a\"}]}",
                "2: expected `messages` to end with an answer of `assistant`, found a single or last `user`",
            ),
        ];
        for (line, expected) in cases {
            assert_eq!(message(&[GOOD.as_bytes(), line].concat()), expected);
        }
    }

    #[test]
    fn blank_lines_carriage_returns_and_a_byte_order_mark_are_harmless() {
        let text = format!("\u{feff}{}\r\n\n{GOOD}\n", GOOD.trim());
        let rows: Vec<Row> = read(text.as_bytes(), false).into_iter().map(Result::unwrap).collect();
        let lines: Vec<u64> = rows.iter().map(|row| row.place.line).collect();
        assert_eq!(lines, [1, 3]);
        assert_eq!(rows[1].place.source(), "data.jsonl:3");
    }

    #[test]
    fn documents_are_what_stands_between_separators() {
        let text = "one\nmore\n<|endoftext|>\ntwo<|endoftext|>three\n<|endoftext|>\n\n<|endoftext|>\nfour";
        let rows: Vec<Row> = read(text.as_bytes(), true).into_iter().map(Result::unwrap).collect();
        let found: Vec<(&str, u64)> = rows
            .iter()
            .map(|row| match &row.content {
                Content::Document(text) => (text.as_str(), row.place.line),
                other => panic!("expected a document, found {other:?}"),
            })
            .collect();
        assert_eq!(found, [("one\nmore", 1), ("two", 4), ("three", 4), ("four", 8)]);
    }

    #[test]
    fn the_split_follows_the_prompt_alone() {
        let row = |response: &str| {
            let line = format!("{{\"instruction\": \"a\", \"response\": \"{response}\"}}");
            read(line.as_bytes(), false).remove(0).unwrap()
        };
        assert_eq!(row("b").split_hash(1), row("c").split_hash(1));
        assert_ne!(row("b").split_hash(1), row("b").split_hash(2));
    }
}
