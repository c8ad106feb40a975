//! Rows of an instruction: Dolly's columns, and Alpaca's with those that LLaMA-Factory adds.

use super::Content;
use super::columns::{Columns, ignore_hint};
use super::reading::Notes;
use super::shape::conversation;
use crate::config::Template;
use crate::conversation::Message;
use crate::value::Value;
use crate::{DataConfig, Error};

const CONTEXT: [&str; 2] = ["context", "input"];
/// What only a chat template can place.
const FOR_TEMPLATES: [&str; 6] =
    ["system", "system_prompt", "history", "tools", "documents", "chat_template_kwargs"];

pub(super) fn read(
    columns: &mut Columns,
    response: &[&'static str],
    data: &DataConfig,
    notes: &mut Notes,
) -> Result<Content, Error> {
    let instruction = columns.take_text("instruction")?.unwrap_or_default();
    let context = columns.take_one_text(&CONTEXT)?.unwrap_or_default();
    let response = columns.take_one_text(response)?.unwrap_or_default();
    content(columns, (instruction, context, response), data, notes)
}

/// An instruction, its context and its response; a conversation if other columns say more.
pub(super) fn content(
    columns: &mut Columns,
    (instruction, context, response): (String, String, String),
    data: &DataConfig,
    notes: &mut Notes,
) -> Result<Content, Error> {
    if !FOR_TEMPLATES.iter().any(|name| columns.carries(name)) {
        return Ok(Content::Instruction { instruction, context, response });
    }
    refuse_what_has_no_place(columns, data)?;
    let mut messages = history(columns)?;
    let question = if context.is_empty() { instruction } else { format!("{instruction}\n\n{context}") };
    messages.push(Message::new("user", &question));
    messages.push(Message::new("assistant", &response));
    conversation(columns, messages, "response", data, notes)
}

/// Only a chat template has a place for a system text, tools and earlier turns.
pub(super) fn refuse_what_has_no_place(columns: &Columns, data: &DataConfig) -> Result<(), Error> {
    if data.template() == Some(Template::Chat) {
        return Ok(());
    }
    let Some(name) = FOR_TEMPLATES.iter().find(|name| columns.carries(name)) else { return Ok(()) };
    let template = data.template_name();
    let problem = format!("expected columns that `template = {template:?}` has a place for, found `{name}`");
    Err(columns.place.error(problem, format!("set `template = \"chat\"`; {}", ignore_hint(name))))
}

/// Pairs of what was asked and answered before.
fn history(columns: &mut Columns) -> Result<Vec<Message>, Error> {
    let Some(value) = columns.take_json("history")? else { return Ok(Vec::new()) };
    let Value::List(pairs) = value else { return Err(columns.wrong("history", "a list of pairs", &value)) };
    let mut messages = Vec::new();
    for pair in pairs {
        match pair {
            Value::List(pair) => match pair.as_slice() {
                [Value::Text(question), Value::Text(answer)] => {
                    messages.push(Message::new("user", question));
                    messages.push(Message::new("assistant", answer));
                }
                _ => return Err(columns.wrong("history", "pairs of texts", &Value::List(pair))),
            },
            other => return Err(columns.wrong("history", "pairs of texts", &other)),
        }
    }
    Ok(messages)
}
