//! A conversation: the messages, and what else of a row goes to the chat template.

use crate::value::Value;

/// One turn of a conversation, with all fields that the row gives it.
#[derive(Clone, Debug, PartialEq)]
pub struct Message {
    /// The fields in the order of the row, `role` and `content` among them, as the template sees them.
    pub fields: Vec<(String, Value)>,
    /// Whether the row leaves the turn out of the loss or takes it in; `None`: the mask decides.
    pub trained: Option<bool>,
}

impl Message {
    /// A turn of a role and a text.
    pub fn new(role: &str, content: &str) -> Self {
        let fields = vec![("role".to_owned(), role.into()), ("content".to_owned(), content.into())];
        Self { fields, trained: None }
    }

    /// `system`, `user`, `assistant`, `tool` or what else the template knows.
    pub fn role(&self) -> &str {
        self.get("role").and_then(Value::as_text).unwrap_or_default()
    }

    /// What is said; empty where there is no text, as in a turn that only calls tools.
    pub fn text(&self) -> &str {
        self.get("content").and_then(Value::as_text).unwrap_or_default()
    }

    /// A field of the row.
    pub fn get(&self, field: &str) -> Option<&Value> {
        self.fields.iter().find(|(name, _)| name == field).map(|(_, value)| value)
    }
}

/// Messages, and what else of the row the template sees.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Conversation {
    /// All turns. In a row to learn from the last one is the assistant's: the response.
    pub messages: Vec<Message>,
    /// What the assistant may call: the row's `tools`.
    pub tools: Option<Value>,
    /// What the assistant may cite: the row's `documents`.
    pub documents: Option<Value>,
    /// Variables of the template that this row sets; they come before the recipe's.
    pub variables: Vec<(String, Value)>,
}

impl Conversation {
    /// A question of the user and its answer.
    pub(crate) fn short(question: &str, answer: &str) -> Self {
        let messages = vec![Message::new("user", question), Message::new("assistant", answer)];
        Self { messages, ..Self::default() }
    }

    /// The turns before the last one: what is answered.
    pub fn prompt(&self) -> &[Message] {
        self.messages.split_last().map_or(&[], |(_, before)| before)
    }

    /// The text of the last turn; empty if there is none.
    pub fn response(&self) -> &str {
        self.messages.last().map_or("", Message::text)
    }
}
