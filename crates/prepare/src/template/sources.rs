//! Where a chat template comes from: its files, its names, and the tree that it is compiled to when it is first used.

use std::sync::OnceLock;

use super::parser;
use super::scope::{self, Root};
use crate::Error;

/// The name of the template that is taken where none is asked for.
const DEFAULT: &str = "default";
/// The name of the template that is taken where a conversation has tools.
const TOOL_USE: &str = "tool_use";

/// The templates of a tokenizer, by their names.
#[derive(Debug)]
pub(crate) struct Sources {
    named: Vec<Source>,
}

/// A template's text, and what it is compiled to.
#[derive(Debug)]
pub(crate) struct Source {
    name: String,
    /// The file, for messages.
    file: String,
    text: String,
    compiled: OnceLock<Result<Root, String>>,
}

impl Source {
    pub(crate) fn new(name: String, file: String, text: String) -> Self {
        Self { name, file, text, compiled: OnceLock::new() }
    }

    pub(crate) fn is_named(&self, name: &str) -> bool {
        self.name == name
    }

    /// The compiled template.
    pub(super) fn root(&self) -> Result<&Root, Error> {
        let compile = || {
            let resolved = parser::parse(&self.text).and_then(scope::resolve);
            resolved.map_err(|error| format!("line {}: {}", error.line, error.problem))
        };
        self.compiled.get_or_init(compile).as_ref().map_err(|problem| self.error(problem))
    }

    pub(super) fn error(&self, problem: &str) -> Error {
        Error::ChatTemplate(format!("`{}` {problem}", self.file))
    }
}

impl Sources {
    pub(super) fn one(file: String, text: String) -> Self {
        Self { named: vec![Source::new(DEFAULT.into(), file, text)] }
    }

    /// Templates by name; `None` if there are none.
    pub(crate) fn new(mut named: Vec<Source>) -> Option<Self> {
        named.sort_by(|left, right| left.name.cmp(&right.name));
        (!named.is_empty()).then_some(Self { named })
    }

    fn get(&self, name: &str) -> Option<&Source> {
        self.named.iter().find(|source| source.name == name)
    }

    /// The template for a conversation, as transformers chooses it.
    pub(super) fn choose(&self, has_tools: bool) -> Result<&Source, Error> {
        let tool_use = if has_tools { self.get(TOOL_USE) } else { None };
        if let Some(source) = tool_use.or_else(|| self.get(DEFAULT)) {
            return Ok(source);
        }
        let names: Vec<&str> = self.named.iter().map(|source| source.name.as_str()).collect();
        Err(self.named[0]
            .error(&format!("expected a template named `{DEFAULT}`, found {}", names.join(", "))))
    }

    pub(super) fn default_text(&self) -> &str {
        &self.get(DEFAULT).unwrap_or(&self.named[0]).text
    }

    /// The hash of the one template's text, or of all names and texts.
    pub(super) fn blake3(&self) -> String {
        if let [source] = self.named.as_slice() {
            return blake3::hash(source.text.as_bytes()).to_hex().to_string();
        }
        let mut hasher = blake3::Hasher::new();
        for part in self.named.iter().flat_map(|source| [&source.name, &source.text]) {
            hasher.update(&u64::try_from(part.len()).expect("a length fits 64 bits").to_le_bytes());
            hasher.update(part.as_bytes());
        }
        hasher.finalize().to_hex().to_string()
    }
}
