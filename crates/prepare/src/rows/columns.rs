//! The columns of a row: which are used, which are left, and whether what is left is part of a conversation.

use super::Place;
use super::reading::Notes;
use crate::value::Value;
use crate::{DataConfig, Error};

/// Columns that carry what was said, or what it was said about, in the formats of TRL, axolotl, LLaMA-Factory, Unsloth,
/// OpenAI and the data sets that people train on. One that has a value and no use is an error: it would vanish.
const CONVERSATION: [&str; 44] = [
    "answer",
    "audio",
    "audios",
    "chat",
    "chat_template_kwargs",
    "chosen",
    "completion",
    "completions",
    "context",
    "conversation",
    "conversations",
    "dialog",
    "dialogue",
    "documents",
    "function_call",
    "functions",
    "history",
    "image",
    "images",
    "input",
    "input_ids",
    "inputs",
    "instruction",
    "messages",
    "output",
    "outputs",
    "prompt",
    "query",
    "question",
    "reasoning",
    "reasoning_content",
    "rejected",
    "response",
    "responses",
    "system",
    "system_message",
    "system_prompt",
    "text",
    "thinking",
    "tool_calls",
    "tools",
    "turns",
    "video",
    "videos",
];

/// Whether a column of this name carries part of a conversation.
pub(super) fn is_conversation(name: &str) -> bool {
    CONVERSATION.binary_search(&name).is_ok()
}

/// Whether there is something in a value: tables have every column in every row, empty or null where a row has none.
pub(super) fn carries(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(_) | Value::Int(_) | Value::Float(_) => true,
        Value::Text(text) => !text.trim().is_empty(),
        Value::List(items) => items.iter().any(carries),
        Value::Object(fields) => fields.iter().any(|(_, value)| carries(value)),
    }
}

/// How to have a column left out.
pub(super) fn ignore_hint(name: &str) -> String {
    format!("`data.ignore_columns = [{name:?}]` leaves the column out")
}

/// What is not yet used of a row.
pub(super) struct Columns {
    pub(super) place: Place,
    fields: Vec<(String, Value)>,
}

impl Columns {
    /// Of a row without the columns that the recipe ignores.
    pub(super) fn new(
        place: Place,
        mut fields: Vec<(String, Value)>,
        data: &DataConfig,
        notes: &mut Notes,
    ) -> Self {
        if !data.ignore_columns.is_empty() {
            fields.retain(|(name, value)| {
                let is_ignored = data.ignore_columns.contains(name);
                if is_ignored && carries(value) {
                    notes.ignored.push(name.clone());
                }
                !is_ignored
            });
        }
        Self { place, fields }
    }

    pub(super) fn get(&self, name: &str) -> Option<&Value> {
        self.fields.iter().find(|(field, _)| field == name).map(|(_, value)| value)
    }

    /// Whether the column has a value, be it an empty one.
    pub(super) fn has(&self, name: &str) -> bool {
        self.get(name).is_some_and(|value| *value != Value::Null)
    }

    /// Whether there is something in it.
    pub(super) fn carries(&self, name: &str) -> bool {
        self.get(name).is_some_and(carries)
    }

    /// The column's value, which is used then; `None` for null.
    pub(super) fn take(&mut self, name: &str) -> Option<Value> {
        let at = self.fields.iter().position(|(field, _)| field == name)?;
        Some(self.fields.remove(at).1).filter(|value| *value != Value::Null)
    }

    /// The column's text.
    pub(super) fn take_text(&mut self, name: &str) -> Result<Option<String>, Error> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::Text(text)) => Ok(Some(text)),
            Some(other) => Err(self.wrong(name, "text", &other)),
        }
    }

    /// The text of a column that goes by several names; only one of them may have something in it.
    pub(super) fn take_one_text(&mut self, names: &[&'static str]) -> Result<Option<String>, Error> {
        let mut found: Option<(&str, String)> = None;
        for name in names {
            let Some(text) = self.take_text(name)? else { continue };
            found = match found {
                Some((_, earlier)) if earlier.trim().is_empty() || earlier == text => Some((name, text)),
                Some(earlier) if text.trim().is_empty() => Some(earlier),
                Some((earlier, _)) => {
                    let problem = format!("expected one of `{earlier}` and `{name}`, found both");
                    return Err(self.place.error(problem, ignore_hint(name)));
                }
                None => Some((name, text)),
            };
        }
        Ok(found.map(|(_, text)| text))
    }

    /// A column's value, which some keep as JSON in a text: Parquet has no type for lists of unlike objects.
    pub(super) fn take_json(&mut self, name: &str) -> Result<Option<Value>, Error> {
        match self.take(name) {
            Some(Value::Text(text)) if text.trim().is_empty() => Ok(None),
            Some(Value::Text(text)) => match serde_json::from_str(&text) {
                Ok(value) => Ok(Some(value).filter(|value| *value != Value::Null)),
                Err(_) => Err(self.wrong(name, "a list or an object, or JSON of one", &Value::Text(text))),
            },
            other => Ok(other),
        }
    }

    /// The error of a column of another kind.
    pub(super) fn wrong(&self, name: &str, expected: &str, found: &Value) -> Error {
        let problem = format!("expected {expected} in `{name}`, found {}", found.kind());
        self.place.error(problem, ignore_hint(name))
    }

    /// Names of all columns that are left, for a message.
    pub(super) fn names(&self) -> String {
        let names: Vec<String> = self.fields.iter().take(12).map(|(name, _)| format!("`{name}`")).collect();
        if names.is_empty() { "none".into() } else { names.join(", ") }
    }

    /// Refuses a row of which a part of the conversation would vanish, and counts the other columns.
    ///
    /// `used` are the texts that were taken. A column that only says one of them again, or all of them together (as a
    /// rendering of the row does), has nothing of its own.
    pub(super) fn finish(self, used: &[&str], notes: &mut Notes) -> Result<(), Error> {
        for (name, value) in self.fields {
            if !carries(&value) {
                continue;
            }
            if (is_conversation(&name) || holds_turns(&value)) && !repeats(&value, used) {
                let problem = format!(
                    "expected every column of a conversation to be used, found `{name}` beside {}",
                    notes.shape
                );
                return Err(self.place.error(problem, ignore_hint(&name)));
            }
            notes.unused.push(name);
        }
        Ok(())
    }
}

/// Whether a value is a list of turns, by whatever name.
fn holds_turns(value: &Value) -> bool {
    let Value::List(items) = value else { return false };
    let has = |item: &Value, names: [&str; 2]| names.iter().any(|name| item.get(name).is_some());
    items.first().is_some_and(|first| has(first, ["role", "from"]) && has(first, ["content", "value"]))
}

fn repeats(value: &Value, used: &[&str]) -> bool {
    let says_again = |text: &str| {
        let text = text.trim();
        let mut used = used.iter().map(|used| used.trim()).filter(|used| !used.is_empty());
        used.clone().any(|used| used.contains(text)) || used.all(|used| text.contains(used))
    };
    match value {
        Value::Text(text) => says_again(text),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_is_sorted_to_be_searched() {
        assert!(CONVERSATION.is_sorted());
        assert!(is_conversation("system") && !is_conversation("source"));
    }

    #[test]
    fn empty_values_carry_nothing() {
        for empty in ["null", "\"\"", "\" \\n\"", "[]", "{}", "[null]", "{\"bytes\": null, \"path\": \"\"}"] {
            assert!(!carries(&serde_json::from_str(empty).unwrap()), "{empty}");
        }
        for full in ["0", "false", "\"a\"", "[{\"a\": 1}]"] {
            assert!(carries(&serde_json::from_str(full).unwrap()), "{full}");
        }
    }
}
