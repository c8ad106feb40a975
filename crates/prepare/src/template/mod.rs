//! Prompt templates: MiniLLM's, and the model's own.
//!
//! A chat template is run as transformers 5.23 runs it: Jinja2 with Python's values, in a sandbox. [`lexer`],
//! [`parser`] and [`expressions`] read it, [`scope`] finds where its names lie, [`render`], [`eval`] and [`calls`] run
//! it. What Python would print, compare or raise is in [`printing`], [`operators`], [`strings`] and the like. What is
//! not there is refused by name.

mod ast;
mod calls;
mod cases;
mod checks;
mod dates;
mod eval;
mod expressions;
mod filters;
mod formatting;
mod iterate;
mod json;
mod keyed;
mod lexer;
mod limits;
mod loops;
mod methods;
mod number_filters;
mod operators;
mod padding;
mod parser;
mod percent;
mod printing;
mod prompts;
mod render;
mod scope;
mod sources;
mod strings;
mod text_filters;
mod value;
mod walk;

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use self::dates::Moment;
use self::limits::{Failure, Kind, Meter};
use self::render::{Renderer, Written};
use self::value::Val;
use crate::Error;
use crate::config::DataConfig;
use crate::conversation::{Conversation, Message};
use crate::value::Value;

pub use prompts::minillm_prompt;
pub(crate) use prompts::plain_prompt;
pub(crate) use sources::{Source, Sources};

/// Variables that the template gets from the row.
const OF_THE_ROW: [&str; 4] = ["messages", "tools", "documents", "add_generation_prompt"];
/// Fields of a message in which its reasoning may stand; the first is the one that templates read.
const REASONING: [&str; 3] = ["reasoning_content", "thinking", "reasoning"];

/// A chat template of a Hugging Face tokenizer, or several, with the variables that it gets in every row. It is compiled
/// when it is first used.
#[derive(Clone, Debug)]
pub struct ChatTemplate {
    sources: Arc<Sources>,
    special_tokens: BTreeMap<String, String>,
    variables: BTreeMap<String, Value>,
    now: Option<Moment>,
}

/// A conversation as text.
#[derive(Clone, Debug, PartialEq)]
pub struct Rendering {
    /// The text.
    pub text: String,
    /// What the template marks as written by the model (`{% generation %}`), as bytes of the text, in order.
    pub generated: Vec<Range<usize>>,
}

impl ChatTemplate {
    /// A template from its text, compiled at once. `special_tokens` are variables of the template such as `bos_token`.
    ///
    /// # Errors
    /// [`Error::ChatTemplate`] with the template's line.
    pub fn new(source: String, special_tokens: BTreeMap<String, String>) -> Result<Self, Error> {
        let template = Self::of(Sources::one("chat template".into(), source), special_tokens);
        template.sources.choose(false)?.root()?;
        Ok(template)
    }

    /// A template that is compiled when it is first used.
    pub(crate) fn of(sources: Sources, special_tokens: BTreeMap<String, String>) -> Self {
        Self { sources: Arc::new(sources), special_tokens, variables: BTreeMap::new(), now: None }
    }

    /// The same template with the variables and the date of a recipe.
    pub fn configured(&self, data: &DataConfig) -> Self {
        let now = data.template_date.as_deref().and_then(Moment::parse);
        Self { variables: data.template_variables.clone(), now, ..self.clone() }
    }

    /// The template's text; of several templates the default one's.
    pub fn source(&self) -> &str {
        self.sources.default_text()
    }

    /// What has to be equal for two templates to be the same.
    pub(crate) fn blake3(&self) -> String {
        self.sources.blake3()
    }

    /// The first `turns` messages of the conversation as text; with `add_generation_prompt` it ends where the assistant's
    /// answer begins.
    ///
    /// # Errors
    /// [`Error::ChatTemplate`] with what the template raised, what is refused, or the limit that it went over.
    pub fn render(
        &self,
        conversation: &Conversation,
        turns: usize,
        add_generation_prompt: bool,
    ) -> Result<Rendering, Error> {
        let has_tools = !matches!(conversation.tools, None | Some(Value::Null));
        let source = self.sources.choose(has_tools)?;
        let root = source.root()?;
        let given = self
            .given(conversation, turns, add_generation_prompt)
            .map_err(|problem| source.error(&problem))?;
        let meter = Meter::default();
        let written = Renderer::new(given, self.now.as_ref(), &meter).run(root);
        let Written { text, generated } = written.map_err(|failure| failed(source, &failure))?;
        let generated = generated.into_iter().map(|(begin, count)| {
            let end = text[begin..].char_indices().nth(count).map_or(text.len(), |(at, _)| begin + at);
            begin..end
        });
        Ok(Rendering { generated: generated.collect(), text })
    }

    /// The variables of a rendering; of a name that comes twice the first counts.
    fn given<'t>(
        &'t self,
        conversation: &'t Conversation,
        turns: usize,
        add_generation_prompt: bool,
    ) -> Result<Vec<(&'t str, Val<'t>)>, String> {
        let messages = conversation.messages[..turns].iter().map(message).collect();
        let messages = Val::list(messages).map_err(|failure| failure.to_string())?;
        let mut given = vec![
            ("messages", messages),
            ("tools", objects("tools", conversation.tools.as_ref())?),
            ("documents", objects("documents", conversation.documents.as_ref())?),
            ("add_generation_prompt", Val::Bool(add_generation_prompt)),
        ];
        for (name, value) in
            conversation.variables.iter().map(|(name, value)| (name, value)).chain(&self.variables)
        {
            check_variable(name)?;
            given.push((name, Val::of(value)));
        }
        given.extend(self.special_tokens.iter().map(|(name, token)| (name.as_str(), Val::borrowed(token))));
        Ok(given)
    }

    /// What the template writes after an answer, as it shows on a small conversation; `None` if the template
    /// refuses that one.
    pub(crate) fn ending(&self) -> Option<String> {
        let now = self.now.or_else(|| Moment::parse("2000-01-01"));
        let template = Self { now, ..self.clone() };
        crate::encode::ending(&template)
    }
}

/// A message as transformers passes it: reasoning under all the names that templates read.
fn message(message: &Message) -> Val<'_> {
    let mut entries: Vec<(Val<'_>, Val<'_>)> = Vec::with_capacity(message.fields.len() + 2);
    let reasoning =
        REASONING.iter().find_map(|name| message.get(name).filter(|value| **value != Value::Null));
    if let Some(reasoning) = reasoning
        && message.get("thinking").is_none()
    {
        entries.push((Val::borrowed("thinking"), Val::of(reasoning)));
    }
    entries.extend(message.fields.iter().map(|(name, value)| (Val::borrowed(name), Val::of(value))));
    if let Some(reasoning) = reasoning {
        match message.fields.iter().position(|(name, _)| name == REASONING[0]) {
            Some(place) => {
                let before = entries.len() - message.fields.len();
                entries[before + place].1 = Val::of(reasoning);
            }
            None => entries.push((Val::borrowed(REASONING[0]), Val::of(reasoning))),
        }
    }
    Val::of_entries(entries)
}

/// Tools or documents: none, or a list of objects.
fn objects<'t>(name: &str, value: Option<&'t Value>) -> Result<Val<'t>, String> {
    match value {
        None | Some(Value::Null) => Ok(Val::None),
        Some(Value::List(items)) if items.iter().all(|item| matches!(item, Value::Object(_))) => {
            Ok(Val::of(value.expect("matched above")))
        }
        Some(Value::List(items)) => {
            let found =
                items.iter().find(|item| !matches!(item, Value::Object(_))).map_or("none", Value::kind);
            Err(format!("expected `{name}` as a list of objects, found {found} in it"))
        }
        Some(other) => Err(format!("expected `{name}` as a list of objects, found {}", other.kind())),
    }
}

/// Refuses a variable that would hide what the template gets from the row.
pub(crate) fn check_variable(name: &str) -> Result<(), String> {
    if OF_THE_ROW.contains(&name) {
        return Err(format!("expected other variables than the row's own, found `{name}`"));
    }
    Ok(())
}

/// Whether a text is a date that `strftime_now` can take.
pub(crate) fn is_date(text: &str) -> bool {
    Moment::parse(text).is_some()
}

fn failed(source: &Source, failure: &Failure) -> Error {
    let line = failure.line().map_or_else(String::new, |line| format!("line {line}: "));
    let hint = match failure.kind() {
        Kind::Limit => "\nhint: the template or the row asks for more than a rendering may cost",
        _ => "",
    };
    source.error(&format!("{line}{failure}{hint}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conversation::Message;

    #[test]
    fn the_minillm_prompt_is_byte_exact() {
        assert_eq!(
            minillm_prompt("Say hello.", ""),
            "Below is an instruction that describes a task. Write a response that appropriately completes the \
             request.\n\n### Instruction:\nSay hello.\n\n### Response:\n"
        );
        assert_eq!(
            minillm_prompt("Summarise.", "A text."),
            "Below is an instruction that describes a task, paired with an input that provides further context. \
             Write a response that appropriately completes the request.\n\n### Instruction:\nSummarise.\n\n### \
             Input:\nA text.\n\n### Response:\n"
        );
    }

    fn template(source: &str) -> ChatTemplate {
        let special_tokens = BTreeMap::from([("eos_token".to_owned(), "</s>".to_owned())]);
        ChatTemplate::new(source.to_owned(), special_tokens).unwrap()
    }

    #[test]
    fn what_a_template_raises_is_said() {
        let template = template(include_str!("../../tests/small_chat_template.jinja"));
        let messages = vec![Message::new("tool", "x")];
        let conversation = Conversation { messages, ..Conversation::default() };
        let error = template.render(&conversation, 1, false).unwrap_err().to_string();
        assert!(error.contains("unknown role tool"), "{error}");
        let error = ChatTemplate::new("{% if %}".into(), BTreeMap::new()).err().unwrap().to_string();
        assert!(
            error.starts_with("chat template: `chat template` line 1: expected an expression"),
            "{error}"
        );
    }
}
