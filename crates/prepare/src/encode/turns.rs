//! Where the turns of a conversation stand in its rendering, found by rendering parts of it.
//!
//! A turn of the assistant begins where the prompt for it ends: the rendering of the turns before it, with the generation prompt.
//! It ends where the rendering up to it ends. Templates that write earlier turns otherwise when there are later ones (Qwen3 drops
//! their reasoning) have no such beginnings and ends: then the text of the turn is changed, and where the rendering changes the
//! turn is.

use std::ops::Range;

use crate::Error;
use crate::conversation::{Conversation, Message};
use crate::template::{ChatTemplate, Rendering};
use crate::value::Value;

/// Two texts that differ in the first letter and the last: a rendering begins or ends like one of them at most.
const OTHER_TEXTS: [&str; 2] = ["Q softshard Q", "Z softshard Z"];

/// A conversation and its rendering.
pub(crate) struct Rendered<'a> {
    template: &'a ChatTemplate,
    conversation: &'a Conversation,
    pub(crate) text: String,
    pub(crate) generated: Vec<Range<usize>>,
}

/// A turn in the rendering, in bytes.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Turn {
    /// Where the assistant begins to write.
    pub(crate) start: usize,
    pub(crate) end: End,
    /// The generation prompt goes on where this turn, as the conversation has it, already says something.
    pub(crate) has_shorter_prompt: bool,
}

/// Where a turn ends.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum End {
    /// Its rendering ends here, with the token that ends it and white space, if any.
    Rendering(usize),
    /// Here it has said all, the token that ends it included.
    Said(usize),
    /// With the first special token between these.
    Special(Range<usize>),
}

impl<'a> Rendered<'a> {
    pub(crate) fn new(template: &'a ChatTemplate, conversation: &'a Conversation) -> Result<Self, Error> {
        let Rendering { text, generated } =
            template.render(conversation, conversation.messages.len(), false)?;
        Ok(Self { template, conversation, text, generated })
    }

    /// A turn of the assistant.
    ///
    /// # Errors
    /// [`Error::ChatTemplate`] where the template raises, or where it is not plain what the turn is.
    pub(crate) fn answer(&self, turn: usize) -> Result<Turn, Error> {
        let prompt = self.template.render(self.conversation, turn, true)?.text;
        if self.text.starts_with(&prompt) {
            let end = self.end(turn, prompt.len())?;
            return Ok(Turn { start: prompt.len(), end, has_shorter_prompt: false });
        }
        let own = self.own_text(turn)?;
        let before = self.template.render(self.conversation, turn, false)?.text;
        let same = common_prefix(&prompt, &self.text);
        let generation_prompt = prompt.strip_prefix(before.as_str());
        let start = if same >= before.len() {
            // The generation prompt goes on with what this turn has not, as an empty thought.
            Some(same.min(own.start))
        } else if self.is_last(turn) {
            None
        } else {
            // Turns before this one are written otherwise; its header is not.
            match generation_prompt {
                Some("") => Some(own.start),
                Some(header) => self.text[..own.start].rfind(header).map(|at| at + header.len()),
                None => None,
            }
        };
        let start = start.filter(|start| self.text[*start..own.start].trim().is_empty());
        let start = start.ok_or_else(|| self.no_beginning(turn, &prompt, same))?;
        let end = self.end(turn, start)?;
        Ok(Turn { start, end, has_shorter_prompt: same >= before.len() })
    }

    /// A turn of anyone, from the first thing that it says.
    ///
    /// # Errors
    /// As [`Rendered::answer`].
    pub(crate) fn said(&self, turn: usize) -> Result<Turn, Error> {
        let start = self.own_text(turn)?.start;
        Ok(Turn { start, end: self.end(turn, start)?, has_shorter_prompt: false })
    }

    fn is_last(&self, turn: usize) -> bool {
        turn + 1 == self.conversation.messages.len()
    }

    fn end(&self, turn: usize, start: usize) -> Result<End, Error> {
        if self.is_last(turn) {
            return Ok(End::Rendering(self.text.len()));
        }
        let until = self.template.render(self.conversation, turn + 1, false)?.text;
        if self.text.starts_with(&until) && until.len() > start {
            return Ok(End::Rendering(until.len()));
        }
        let said = self.own_text(turn)?.end;
        let said_there = self.change(turn, turn + 1, &until)?.end;
        let ending = until[said_there..].trim_end();
        if self.text[said..].starts_with(ending) {
            return Ok(End::Said(said + ending.len()));
        }
        Ok(End::Special(said..self.own_text(turn + 1)?.start))
    }

    /// The part of the rendering that the text of a turn decides.
    fn own_text(&self, turn: usize) -> Result<Range<usize>, Error> {
        self.change(turn, self.conversation.messages.len(), &self.text)
    }

    /// The part of `text`, the rendering of the first `turns`, that changes with what a turn says.
    fn change(&self, turn: usize, turns: usize, text: &str) -> Result<Range<usize>, Error> {
        let (mut before, mut behind) = (text.len(), text.len());
        let mut changes = false;
        for other in OTHER_TEXTS {
            let mut conversation = self.conversation.clone();
            say(&mut conversation.messages[turn], other);
            let changed = self.template.render(&conversation, turns, false)?.text;
            changes |= changed != text;
            before = before.min(common_prefix(text, &changed));
            behind = behind.min(common_suffix(text, &changed));
        }
        if !changes {
            let problem =
                format!("expected turn {} in the rendered conversation, found nothing of it", turn + 1);
            return Err(Error::ChatTemplate(problem));
        }
        Ok(before..before.max(text.len() - behind))
    }

    fn no_beginning(&self, turn: usize, prompt: &str, same: usize) -> Error {
        let part = |text: &str| -> String { text[same..].chars().take(24).collect() };
        let (character, turn) = (self.text[..same].chars().count(), turn + 1);
        Error::ChatTemplate(format!(
            "expected the prompt of turn {turn} to begin the rendered conversation, found a difference at character \
             {character}: {:?} in the prompt, {:?} in the conversation",
            part(prompt),
            part(&self.text)
        ))
    }
}

/// What the template writes after an answer, as it shows on a small conversation; `None` if the template refuses
/// that one.
pub(crate) fn ending(template: &ChatTemplate) -> Option<String> {
    const ANSWER: &str = "answer";
    let conversation = Conversation::short("question", ANSWER);
    let rendered = Rendered::new(template, &conversation).ok()?;
    let turn = rendered.answer(1).ok()?;
    rendered.text[turn.start..].split_once(ANSWER).map(|(_, ending)| ending.to_owned())
}

/// Whether a template has `{% generation %}`, as transformers looks for it.
pub(crate) fn marks_answers(source: &str) -> bool {
    source.split("{%").skip(1).any(|tag| {
        let tag = tag.strip_prefix('-').unwrap_or(tag).trim_start();
        let rest = tag.strip_prefix("generation").map(str::trim_start);
        rest.is_some_and(|rest| rest.strip_prefix('-').unwrap_or(rest).starts_with("%}"))
    })
}

/// Makes a turn say something else: text, reasoning, and what it calls.
fn say(message: &mut Message, text: &str) {
    const SAID: [&str; 4] = ["content", "reasoning_content", "reasoning", "thinking"];
    let calls = message
        .get("tool_calls")
        .is_some_and(|calls| matches!(calls, Value::List(calls) if !calls.is_empty()));
    for (field, value) in &mut message.fields {
        match value {
            // The template may write a turn without content otherwise.
            Value::Null if calls => {}
            Value::Null | Value::Text(_) if field == "content" => *value = text.into(),
            Value::Text(_) if SAID.contains(&field.as_str()) => *value = text.into(),
            Value::List(calls) if field == "tool_calls" => {
                calls.iter_mut().for_each(|call| call_other(call, text))
            }
            _ => {}
        }
    }
}

/// Another name and other arguments; identifiers and types stay.
fn call_other(call: &mut Value, text: &str) {
    let Value::Object(fields) = call else { return };
    for (field, value) in fields {
        match field.as_str() {
            "function" => call_other(value, text),
            "name" | "arguments" => replace_texts(value, text),
            _ => {}
        }
    }
}

fn replace_texts(value: &mut Value, text: &str) {
    match value {
        Value::Text(old) => text.clone_into(old),
        Value::List(items) => items.iter_mut().for_each(|item| replace_texts(item, text)),
        Value::Object(fields) => fields.iter_mut().for_each(|(_, value)| replace_texts(value, text)),
        _ => {}
    }
}

/// Bytes of the whole characters with which both begin.
fn common_prefix(left: &str, right: &str) -> usize {
    let same = left.chars().zip(right.chars()).take_while(|(left, right)| left == right);
    same.map(|(letter, _)| letter.len_utf8()).sum()
}

/// Bytes of the whole characters with which both end.
fn common_suffix(left: &str, right: &str) -> usize {
    let same = left.chars().rev().zip(right.chars().rev()).take_while(|(left, right)| left == right);
    same.map(|(letter, _)| letter.len_utf8()).sum()
}
