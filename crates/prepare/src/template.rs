//! Prompt templates: MiniLLM's, and the model's own.

use std::collections::BTreeMap;
use std::ops::Range;

use minijinja::{Environment, Error as JinjaError, ErrorKind};

use crate::Error;
use crate::conversation::Conversation;
use crate::value::Value;

const WITHOUT_CONTEXT: &str = "Below is an instruction that describes a task. Write a response that appropriately \
                               completes the request.\n\n### Instruction:\n";
const WITH_CONTEXT: &str = "Below is an instruction that describes a task, paired with an input that provides \
                            further context. Write a response that appropriately completes the request.\n\n### \
                            Instruction:\n";

/// The prompt of MiniLLM (arXiv 2306.08543) for Dolly, which the paper (arXiv 2502.11306) uses too.
pub fn minillm_prompt(instruction: &str, context: &str) -> String {
    if context.is_empty() {
        format!("{WITHOUT_CONTEXT}{instruction}\n\n### Response:\n")
    } else {
        format!("{WITH_CONTEXT}{instruction}\n\n### Input:\n{context}\n\n### Response:\n")
    }
}

/// The instruction and the context, each on lines of its own.
pub(crate) fn plain_prompt(instruction: &str, context: &str) -> String {
    if context.is_empty() { format!("{instruction}\n") } else { format!("{instruction}\n{context}\n") }
}

/// A chat template of a Hugging Face tokenizer: Jinja with `trim_blocks` and `lstrip_blocks`, Python's string
/// methods and `raise_exception`. `strftime_now` is not there, so templates take their fixed date: the same data
/// gives the same sequences tomorrow.
pub struct ChatTemplate {
    environment: Environment<'static>,
    source: String,
    special_tokens: BTreeMap<String, String>,
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
    /// Compiles the template. `special_tokens` are its variables `bos_token`, `eos_token`, `pad_token`, `unk_token`.
    ///
    /// # Errors
    /// [`Error::ChatTemplate`] with the template's line.
    pub fn new(source: String, special_tokens: BTreeMap<String, String>) -> Result<Self, Error> {
        let mut environment = Environment::new();
        environment.set_trim_blocks(true);
        environment.set_lstrip_blocks(true);
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function("raise_exception", |message: String| -> Result<String, JinjaError> {
            Err(JinjaError::new(ErrorKind::InvalidOperation, message))
        });
        environment
            .add_template_owned("chat", source.clone())
            .map_err(|error| Error::ChatTemplate(error.to_string()))?;
        Ok(Self { environment, source, special_tokens })
    }

    /// The template's text.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// The first `turns` messages of the conversation as text; with `add_generation_prompt` it ends where the assistant's
    /// answer begins.
    ///
    /// # Errors
    /// [`Error::ChatTemplate`] with what the template raised.
    pub fn render(
        &self,
        conversation: &Conversation,
        turns: usize,
        add_generation_prompt: bool,
    ) -> Result<Rendering, Error> {
        let template = self.environment.get_template("chat").expect("added in `new`");
        let special_tokens = minijinja::Value::from_serialize(&self.special_tokens);
        let messages: Vec<Value> = conversation.messages[..turns]
            .iter()
            .map(|message| Value::Object(message.fields.clone()))
            .collect();
        let (tools, documents) = (&conversation.tools, &conversation.documents);
        let context =
            minijinja::context! { messages, tools, documents, add_generation_prompt, ..special_tokens };
        let text = template.render(context).map_err(|error| Error::ChatTemplate(error.to_string()))?;
        Ok(Rendering { text, generated: Vec::new() })
    }
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
        let template = template(include_str!("../tests/small_chat_template.jinja"));
        let messages = vec![Message::new("tool", "x")];
        let conversation = Conversation { messages, ..Conversation::default() };
        let error = template.render(&conversation, 1, false).unwrap_err().to_string();
        assert!(error.contains("unknown role tool"), "{error}");
        let error = ChatTemplate::new("{% if %}".into(), BTreeMap::new()).err().unwrap().to_string();
        assert!(error.starts_with("chat template: syntax error"), "{error}");
    }
}
