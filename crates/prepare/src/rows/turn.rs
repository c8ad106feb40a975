//! Turns of a conversation: OpenAI's role and content, or ShareGPT's from and value.

use super::Place;
use super::columns::carries;
use super::reading::Notes;
use crate::Error;
use crate::conversation::Message;
use crate::value::Value;

/// Fields that say of a turn whether it is learnt: OpenAI's and Mistral's, axolotl's, ms-swift's.
const TRAINED: [&str; 4] = ["weight", "train", "training", "loss"];
/// Fields that say it in a way that we do not read: silently ignored, they would be learnt.
const OTHERWISE_TRAINED: [&str; 7] =
    ["train_detail", "training_detail", "mask", "masked", "loss_mask", "loss_weight", "trainable"];
/// Fields in which an assistant says something beside the content; others do where they hold a list or an object.
const SAID: [&str; 7] =
    ["reasoning_content", "reasoning", "thinking", "thought", "tool_plan", "function_call", "refusal"];

const TURN: &str = "a turn is {\"role\": …, \"content\": …} or {\"from\": …, \"value\": …}";
const ROLES: &str = "known are human, user, input; gpt, assistant, chatgpt, model, bot, output; system; tool, \
                     function, observation, tool_response, function_response; function_call, tool_call";

/// Whether nothing is said in a turn: no text, and no other field that says something, as calls of tools do.
pub(super) fn is_empty(message: &Message) -> bool {
    let says_more = |(name, value): &(String, Value)| {
        carries(value)
            && (SAID.contains(&name.as_str())
                || matches!(value, Value::List(_) | Value::Object(_)) && name != "content")
    };
    !message.get("content").is_some_and(carries) && !message.fields.iter().any(says_more)
}

/// What ShareGPT's roles are called in templates.
enum Role {
    Of(&'static str),
    /// The assistant's call of a tool, as JSON in the turn's text.
    Call,
}

fn alias(role: &str) -> Option<Role> {
    Some(Role::Of(match role.to_ascii_lowercase().as_str() {
        "human" | "user" | "input" => "user",
        "gpt" | "assistant" | "chatgpt" | "model" | "bot" | "output" => "assistant",
        "system" => "system",
        "tool" | "function" | "observation" | "tool_response" | "function_response" => "tool",
        "function_call" | "tool_call" => return Some(Role::Call),
        _ => return None,
    }))
}

/// Reads the turns of a column.
pub(super) struct Turns<'a> {
    pub(super) column: &'a str,
    pub(super) place: &'a Place,
    pub(super) notes: &'a mut Notes,
}

impl Turns<'_> {
    /// All turns of a conversation.
    pub(super) fn read(mut self, value: Value) -> Result<Vec<Message>, Error> {
        self.read_part(value, true)
    }

    /// Turns of which the last one may be an answer that is empty, or not.
    pub(super) fn read_part(&mut self, value: Value, ends: bool) -> Result<Vec<Message>, Error> {
        let Value::List(turns) = value else {
            let problem = format!("expected a list of turns in `{}`, found {}", self.column, value.kind());
            return Err(self.place.error(problem, TURN));
        };
        let last = turns.len().checked_sub(1).filter(|_| ends);
        let turns = turns.into_iter().enumerate();
        turns.map(|(index, turn)| self.turn(index, turn, last == Some(index))).collect()
    }

    fn error(&self, index: usize, problem: &str, hint: &'static str) -> Error {
        self.place.error(format!("turn {} of `{}`: {problem}", index + 1, self.column), hint)
    }

    fn turn(&mut self, index: usize, turn: Value, is_last: bool) -> Result<Message, Error> {
        let fields = match turn {
            Value::Object(fields) => fields,
            // Hugging Face datasets keep objects of unlike fields as JSON.
            Value::Text(text) if text.trim_start().starts_with('{') => match serde_json::from_str(&text) {
                Ok(Value::Object(fields)) => fields,
                _ => return Err(self.error(index, "expected an object, found a text", TURN)),
            },
            other => {
                return Err(self.error(index, &format!("expected an object, found {}", other.kind()), TURN));
            }
        };
        let mut message = Message { fields, trained: None };
        self.name_fields(index, &mut message)?;
        self.content(index, &mut message, is_last)?;
        message.trained = self.trained(index, &message)?;
        Ok(message)
    }

    /// ShareGPT's names become the templates'.
    fn name_fields(&self, index: usize, message: &mut Message) -> Result<(), Error> {
        let is_from = self.rename(index, message, "from", "role")?;
        self.rename(index, message, "value", "content")?;
        let role = match message.get("role") {
            Some(Value::Text(role)) if !role.trim().is_empty() => role.clone(),
            found => {
                let found = found.map_or("none", |value| if carries(value) { value.kind() } else { "none" });
                return Err(self.error(index, &format!("expected `role` to be text, found {found}"), TURN));
            }
        };
        if !is_from && self.column == "messages" {
            return Ok(());
        }
        match alias(&role) {
            Some(Role::Of(name)) => set(message, "role", name.into()),
            Some(Role::Call) => self.call(index, message)?,
            None if is_from => {
                return Err(self.error(
                    index,
                    &format!("expected a known role in `from`, found `{role}`"),
                    ROLES,
                ));
            }
            None => {}
        }
        Ok(())
    }

    fn rename(&self, index: usize, message: &mut Message, from: &str, to: &str) -> Result<bool, Error> {
        let has =
            |message: &Message, name: &str| message.get(name).is_some_and(|value| *value != Value::Null);
        if !has(message, from) {
            return Ok(false);
        }
        if has(message, to) {
            return Err(self.error(index, &format!("expected one of `{from}` and `{to}`, found both"), TURN));
        }
        message.fields.retain(|(name, _)| name != to);
        message.fields.iter_mut().filter(|(name, _)| name == from).for_each(|(name, _)| *name = to.into());
        Ok(true)
    }

    /// LLaMA-Factory's `function_call`: the text is JSON of one call or a list of calls.
    fn call(&self, index: usize, message: &mut Message) -> Result<(), Error> {
        let calls = match serde_json::from_str(message.text()) {
            Ok(Value::List(calls)) => calls,
            Ok(call) => vec![call],
            Err(_) => Vec::new(),
        };
        if calls.is_empty() || !calls.iter().all(|call| matches!(call.get("name"), Some(Value::Text(_)))) {
            let expected = "expected JSON of calls with `name` and `arguments` as text, found other text";
            return Err(self.error(
                index,
                expected,
                "to keep the text as it is, give the turn the role `gpt`",
            ));
        }
        let call = |call| Value::Object(vec![("type".into(), "function".into()), ("function".into(), call)]);
        let calls = Value::List(calls.into_iter().map(call).collect());
        set(message, "role", "assistant".into());
        set(message, "content", "".into());
        set(message, "tool_calls", calls);
        Ok(())
    }

    /// Parts of text become one text; what is none is refused, or left to the template where a tool gave it.
    fn content(&mut self, index: usize, message: &mut Message, is_last: bool) -> Result<(), Error> {
        let role = message.role().to_owned();
        let is_result = ["tool", "ipython", "function", "observation"].contains(&role.as_str());
        let content = match message.get("content") {
            Some(Value::Text(_)) => return Ok(()),
            other => other.cloned().unwrap_or_default(),
        };
        match content {
            Value::Null if role == "assistant" && (is_last || !is_empty(message)) => Ok(()),
            Value::Object(_) if is_result => Ok(()),
            Value::List(parts) => {
                if is_result && !parts.iter().all(|part| part.get("type").is_some()) {
                    return Ok(());
                }
                let text = self.join(index, &parts)?;
                self.notes.joined_parts += u64::from(parts.len() > 1);
                set(message, "content", Value::Text(text));
                Ok(())
            }
            other => Err(self.error(
                index,
                &format!("expected `content` to be text, found {}", other.kind()),
                TURN,
            )),
        }
    }

    fn join(&self, index: usize, parts: &[Value]) -> Result<String, Error> {
        let mut joined = String::new();
        for part in parts {
            let found = match (part, part.get("type"), part.get("text")) {
                (Value::Object(fields), Some(Value::Text(kind)), Some(Value::Text(text)))
                    if kind == "text" =>
                {
                    match fields
                        .iter()
                        .find(|(name, value)| name != "type" && name != "text" && carries(value))
                    {
                        None => {
                            joined.push_str(text);
                            continue;
                        }
                        Some((name, _)) => format!("`{name}` beside it"),
                    }
                }
                (_, Some(Value::Text(kind)), _) => format!("one of type `{kind}`"),
                (part, ..) => format!("{} without a type", part.kind()),
            };
            let expected = "expected parts {\"type\": \"text\", \"text\": …}";
            let hint = "models of text read no images, sounds or files; leave the row out, or write the turn as text";
            return Err(self.error(index, &format!("{expected}, found {found}"), hint));
        }
        Ok(joined)
    }

    fn trained(&self, index: usize, message: &Message) -> Result<Option<bool>, Error> {
        let mut trained = None;
        for (name, value) in &message.fields {
            if OTHERWISE_TRAINED.contains(&name.as_str()) && carries(value) {
                let problem = format!("expected `train` to say whether a turn is learnt, found `{name}`");
                return Err(self.error(
                    index,
                    &problem,
                    "a turn is learnt as a whole or not: `train` is true or false",
                ));
            }
            if !TRAINED.contains(&name.as_str()) {
                continue;
            }
            let found = match value {
                Value::Null => continue,
                Value::Bool(is_trained) => *is_trained,
                Value::Int(0) => false,
                Value::Int(1) => true,
                Value::Float(weight) if *weight == 0.0 || *weight == 1.0 => *weight == 1.0,
                other => {
                    let found = serde_json::to_string(other).expect("a value is JSON");
                    let problem = format!("expected `{name}` to be 0 or 1, true or false, found {found}");
                    return Err(self.error(index, &problem, "a turn is learnt as a whole or not"));
                }
            };
            if trained.is_some_and(|trained| trained != found) {
                let problem = format!("expected fields that agree, found `{name}` against another one");
                return Err(self.error(index, &problem, "keep one of `weight`, `train`, `training`, `loss`"));
            }
            trained = Some(found);
        }
        Ok(trained)
    }
}

fn set(message: &mut Message, name: &str, value: Value) {
    match message.fields.iter_mut().find(|(field, _)| field == name) {
        Some((_, field)) => *field = value,
        None => message.fields.push((name.to_owned(), value)),
    }
}
