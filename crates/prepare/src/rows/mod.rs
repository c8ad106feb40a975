//! Rows of data files and documents of text files, read one at a time.

mod array;
mod columns;
mod documents;
mod file;
mod instruction;
mod kind;
mod lines;
mod parquet;
mod pipe;
mod plain;
mod reading;
mod schema;
mod shape;
mod tokens;
mod turn;

use std::borrow::Cow;
use std::path::PathBuf;
use std::sync::Arc;

pub(crate) use file::Inputs;
pub use plain::{FileRow, file_rows};
pub(crate) use reading::Reading;

use crate::Error;
use crate::conversation::Conversation;

/// A line, a row or a document longer than this is refused: it is some other kind of file.
const MAX_ROW_BYTES: usize = 64 << 20;

/// Where a row stands.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    pub(crate) path: Arc<PathBuf>,
    /// Number of the line or of the row, from 1.
    pub(crate) line: u64,
    /// `line` in text, `row` in arrays and tables.
    pub(crate) unit: &'static str,
}

impl Place {
    /// `file.jsonl:12`: without the folder, so that the same data gives the same bytes on every machine.
    pub(crate) fn source(&self) -> String {
        let name = self.path.file_name().unwrap_or_default();
        format!("{}:{}", name.to_string_lossy(), self.line)
    }

    pub(crate) fn error(&self, problem: impl Into<String>, hint: impl Into<Cow<'static, str>>) -> Error {
        Error::Row {
            path: self.path.to_path_buf(),
            unit: self.unit,
            line: self.line,
            problem: problem.into(),
            hint: hint.into(),
        }
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
    /// A text and how it goes on, joined as they are, without a template.
    Completion {
        prompt: String,
        completion: String,
    },
    /// The last message is the assistant's: the response.
    Conversation(Conversation),
    Document(String),
    /// Token ids that another tool made, and which of them are labelled.
    Tokens {
        input_ids: Vec<i32>,
        labelled: Vec<bool>,
    },
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
            Content::Completion { completion, .. } => completion.trim().is_empty(),
            Content::Conversation(conversation) => conversation.messages.last().is_none_or(turn::is_empty),
            Content::Document(_) | Content::Tokens { .. } => false,
        }
    }

    /// A hash of the seed and the prompt (of the whole text for a document): the row's place in the split.
    pub(crate) fn split_hash(&self, seed: u64) -> u64 {
        let mut hasher = blake3::Hasher::new_derive_key("softshard prepare split 1");
        hasher.update(&seed.to_le_bytes());
        let mut add = |part: &[u8]| {
            hasher.update(&u64::try_from(part.len()).expect("a length fits 64 bits").to_le_bytes());
            hasher.update(part);
        };
        match &self.content {
            Content::Instruction { instruction, context, .. } => {
                add(instruction.as_bytes());
                add(context.as_bytes());
            }
            Content::Completion { prompt, .. } => add(prompt.as_bytes()),
            Content::Conversation(conversation) => conversation.prompt().iter().for_each(|message| {
                add(message.role().as_bytes());
                add(message.text().as_bytes());
            }),
            Content::Document(text) => add(text.as_bytes()),
            Content::Tokens { input_ids, labelled } => {
                let prompt = input_ids.iter().zip(labelled).take_while(|(_, labelled)| !**labelled);
                add(&prompt.flat_map(|(id, _)| id.to_le_bytes()).collect::<Vec<u8>>());
            }
        }
        let digest = hasher.finalize();
        u64::from_le_bytes(*digest.as_bytes().first_chunk().expect("a BLAKE3 digest has 32 bytes"))
    }
}

#[cfg(test)]
mod tests;
