//! Which shape a row has, by its columns, and what it says.

use super::columns::{Columns, carries, ignore_hint};
use super::reading::{Body, Notes, Raw};
use super::turn::Turns;
use super::{Content, Place, Row, instruction, tokens};
use crate::config::{Mask, Template};
use crate::conversation::{Conversation, Message};
use crate::value::Value;
use crate::{DataConfig, Error};

/// The shapes of a row that has a conversation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Shape {
    Messages,
    Conversations,
    PromptCompletion,
    Instruction,
    Tokens,
}

const SHAPES: [Shape; 5] =
    [Shape::Messages, Shape::Conversations, Shape::PromptCompletion, Shape::Instruction, Shape::Tokens];

/// ShareGPT's column, and what else it is called.
const CONVERSATIONS: [&str; 2] = ["conversations", "conversation"];
/// What a row says before all turns.
pub(super) const SYSTEM: [&str; 2] = ["system", "system_prompt"];
const RESPONSE: [&str; 2] = ["response", "output"];

const SHAPES_HINT: &str = "a row is {\"messages\": [{\"role\": …, \"content\": …}, …]}, or has `conversations`, \
                           `prompt` and `completion`, `instruction` and `response` (or `output`), or `input_ids` \
                           and `labels`";

impl Shape {
    fn name(self) -> &'static str {
        match self {
            Self::Messages => "`messages`",
            Self::Conversations => "`conversations`",
            Self::PromptCompletion => "`prompt` and `completion`",
            Self::Instruction => "`instruction` and `response`",
            Self::Tokens => "`input_ids`",
        }
    }

    /// Whether all columns that make the shape are there, as `is_there` judges.
    fn fits(self, is_there: impl Fn(&str) -> bool) -> bool {
        match self {
            Self::Messages => is_there("messages"),
            Self::Conversations => CONVERSATIONS.iter().any(|name| is_there(name)),
            Self::PromptCompletion => is_there("prompt") && is_there("completion"),
            Self::Instruction => is_there("instruction") && RESPONSE.iter().any(|name| is_there(name)),
            Self::Tokens => is_there("input_ids"),
        }
    }

    /// The one shape of a row. Columns without anything in them count only where others make none.
    fn of(columns: &Columns) -> Result<Self, Error> {
        let carried = SHAPES.into_iter().filter(|shape| shape.fits(|name| columns.carries(name)));
        let carried: Vec<Self> = carried.collect();
        let empty = || SHAPES.into_iter().filter(|shape| shape.fits(|name| columns.has(name)));
        match carried.as_slice() {
            [shape] => Ok(*shape),
            [one, other, ..] => {
                let problem =
                    format!("expected one shape of a row, found {} beside {}", one.name(), other.name());
                Err(columns.place.error(problem, "`data.ignore_columns` leaves columns out"))
            }
            [] => empty().next().ok_or_else(|| unknown(columns)),
        }
    }
}

/// The error of a row without a shape.
fn unknown(columns: &Columns) -> Error {
    let expected =
        "expected `messages`, `conversations`, `prompt` and `completion`, or `instruction` and `response`";
    let problem = format!("{expected}; found {}", columns.names());
    let has = |name: &str| columns.carries(name);
    if has("chosen") || has("rejected") {
        let hint = "preference pairs are not imitated; to learn the chosen side, rename it `messages` or `completion`";
        columns.place.error(problem, hint)
    } else if has("text") {
        columns
            .place
            .error(problem, "texts without a prompt are read with `data.text` instead of `data.instructions`")
    } else if has("role") || has("from") {
        columns
            .place
            .error(problem, "a row is a whole conversation, not one turn: {\"messages\": [turn, turn, …]}")
    } else {
        columns.place.error(problem, SHAPES_HINT)
    }
}

/// What a row of a file says.
///
/// # Errors
/// [`Error::Row`], naming the column.
pub(super) fn parse(raw: Raw, data: &DataConfig) -> Result<(Row, Notes), Error> {
    let Raw { place, body } = raw;
    let mut notes = Notes::default();
    let fields = match body {
        Body::Document(text) => {
            notes.shape = "text";
            return Ok((Row { place, content: Content::Document(text), category: None, facts: None }, notes));
        }
        Body::Json(text) => object(&text, &place)?,
        Body::Columns(fields, _) => fields,
    };
    let mut columns = Columns::new(place, fields, data, &mut notes);
    let category = category(&mut columns);
    let facts = columns.take("facts").and_then(|facts| serde_json::to_value(facts).ok());
    let content = if data.is_text() {
        notes.shape = "`text`";
        document(&mut columns)?
    } else {
        let shape = Shape::of(&columns)?;
        notes.shape = shape.name();
        match shape {
            Shape::Messages => messages(&mut columns, &["messages"], data, &mut notes)?,
            Shape::Conversations => messages(&mut columns, &CONVERSATIONS, data, &mut notes)?,
            Shape::PromptCompletion => completion(&mut columns, data, &mut notes)?,
            Shape::Instruction => instruction::read(&mut columns, &RESPONSE, data, &mut notes)?,
            Shape::Tokens => tokens::read(&mut columns, data)?,
        }
    };
    let place = columns.place.clone();
    columns.finish(&texts(&content), &mut notes)?;
    Ok((Row { place, content, category, facts }, notes))
}

/// The columns of a row; a document has one, `text`.
pub(super) fn columns(body: Body, place: &Place) -> Result<Vec<(String, Value)>, Error> {
    match body {
        Body::Json(text) => object(&text, place),
        Body::Columns(fields, _) => Ok(fields),
        Body::Document(text) => Ok(vec![("text".to_owned(), Value::Text(text))]),
    }
}

fn object(text: &str, place: &Place) -> Result<Vec<(String, Value)>, Error> {
    let value: Value = serde_json::from_str(text).map_err(|error| {
        let hint = match place.unit {
            "line" => "each line is one whole object; was the file cut off?",
            _ => "each row of the array is one object",
        };
        place.error(format!("expected one JSON object, found broken JSON: {}", json_problem(&error)), hint)
    })?;
    match value {
        Value::Object(fields) => Ok(fields),
        other => Err(place.error(format!("expected one JSON object, found {}", other.kind()), SHAPES_HINT)),
    }
}

/// serde_json's message with the column only: the line is always 1 there.
fn json_problem(error: &serde_json::Error) -> String {
    let text = error.to_string();
    match text.rsplit_once(" at line ") {
        Some((message, _)) => format!("{message} at column {}", error.column()),
        None => text,
    }
}

/// The row's category: a text, or the number of a class.
fn category(columns: &mut Columns) -> Option<String> {
    match columns.take("category")? {
        Value::Text(text) => Some(text),
        Value::Int(number) => Some(number.to_string()),
        _ => None,
    }
}

fn document(columns: &mut Columns) -> Result<Content, Error> {
    let text = columns.take_text("text")?;
    text.map(Content::Document).ok_or_else(|| {
        let problem = format!("expected a text in `text`, found {}", columns.names());
        columns.place.error(
            problem,
            "rows of `data.text` have a column `text`; conversations are read with `data.instructions`",
        )
    })
}

/// The texts that a row was understood to have.
fn texts(content: &Content) -> Vec<&str> {
    match content {
        Content::Instruction { instruction, context, response } => vec![instruction, context, response],
        Content::Completion { prompt, completion } => vec![prompt, completion],
        Content::Conversation(conversation) => conversation.messages.iter().map(Message::text).collect(),
        Content::Document(text) => vec![text],
        Content::Tokens { .. } => Vec::new(),
    }
}

fn messages(
    columns: &mut Columns,
    names: &[&'static str],
    data: &DataConfig,
    notes: &mut Notes,
) -> Result<Content, Error> {
    let name = *names.iter().find(|name| columns.carries(name)).unwrap_or(&names[0]);
    let value = columns.take_json(name)?.unwrap_or_default();
    let place = columns.place.clone();
    let messages = Turns { column: name, place: &place, notes }.read(value)?;
    conversation(columns, messages, name, data, notes)
}

/// `prompt` and `completion`: two texts, or two lists of turns, as TRL has them.
fn completion(columns: &mut Columns, data: &DataConfig, notes: &mut Notes) -> Result<Content, Error> {
    refuse_bad_ones(columns)?;
    let (prompt, completion) = (columns.take("prompt"), columns.take("completion"));
    let place = columns.place.clone();
    match (prompt.unwrap_or_default(), completion.unwrap_or_default()) {
        (Value::Text(prompt), Value::Text(completion)) => match data.template {
            Some(Template::None) => {
                instruction::refuse_what_has_no_place(columns, data)?;
                Ok(Content::Completion { prompt, completion })
            }
            Some(_) => instruction::content(columns, (prompt, String::new(), completion), data, notes),
            None => {
                let problem =
                    "expected `template` in the recipe, as this row's `prompt` is a text, found none";
                let hint =
                    "`template = \"none\"` takes the texts as they are, as TRL does; or set `\"chat\"`";
                Err(place.error(problem, hint))
            }
        },
        (prompt @ Value::List(_), completion @ Value::List(_)) => {
            let mut prompt = Turns { column: "prompt", place: &place, notes }.read_part(prompt, false)?;
            let mut answer =
                Turns { column: "completion", place: &place, notes }.read_part(completion, true)?;
            if answer.first().is_some_and(|first| first.role() != "assistant") {
                let problem =
                    format!("expected `completion` to begin with `assistant`, found `{}`", answer[0].role());
                return Err(place.error(problem, "turns before the first answer belong to `prompt`"));
            }
            // What was asked is given, and all that was answered is learnt, where the mask asks for turns.
            let is_answer =
                |message: &&mut Message| message.role() == "assistant" && message.trained.is_none();
            if data.mask() != Mask::All {
                prompt.iter_mut().filter(is_answer).for_each(|message| message.trained = Some(false));
            }
            if answer.len() > 1 {
                answer.iter_mut().filter(is_answer).for_each(|message| message.trained = Some(true));
            }
            prompt.append(&mut answer);
            conversation(columns, prompt, "completion", data, notes)
        }
        (prompt, completion) => {
            let found = format!("{} and {}", prompt.kind(), completion.kind());
            let problem =
                format!("expected `prompt` and `completion` to be two texts or two lists, found {found}");
            Err(place.error(problem, SHAPES_HINT))
        }
    }
}

/// Rows for KTO say which completions are bad: those are not to be imitated.
fn refuse_bad_ones(columns: &Columns) -> Result<(), Error> {
    let Some(Value::Bool(_)) = columns.get("label") else { return Ok(()) };
    let problem = "expected completions to imitate, found `label`, which says whether each is good";
    let hint = format!("keep the good rows only, then {}", ignore_hint("label"));
    Err(columns.place.error(problem, hint))
}

/// Turns, with what other columns say for the template.
pub(super) fn conversation(
    columns: &mut Columns,
    mut messages: Vec<Message>,
    name: &str,
    data: &DataConfig,
    notes: &mut Notes,
) -> Result<Content, Error> {
    instruction::refuse_what_has_no_place(columns, data)?;
    if let Some(system) = columns.take_one_text(&SYSTEM)?.filter(|text| !text.trim().is_empty()) {
        match messages.first() {
            Some(first) if first.role() == "system" && first.text() == system => {}
            Some(first) if first.role() == "system" => {
                let problem =
                    format!("expected one system text, found another one in `{name}` than in `system`");
                return Err(columns.place.error(problem, ignore_hint("system")));
            }
            _ => {
                notes.merged_system_text = true;
                messages.insert(0, Message::new("system", &system));
            }
        }
    }
    match messages.as_slice() {
        [_, .., last] if last.role() == "assistant" => {}
        others => {
            let found = match others {
                [] => "no turn".into(),
                [one] => format!("only one of `{}`", one.role()),
                [.., last] => format!("`{}`", last.role()),
            };
            let problem = format!("expected `{name}` to end with an answer of `assistant`, found {found}");
            let hint = "a row ends with what is to be learnt; cut the turns behind it, or leave the row out";
            return Err(columns.place.error(problem, hint));
        }
    }
    if data.template() != Some(Template::Chat) {
        refuse_fields(&messages, &columns.place)?;
    }
    notes.turns_not_trained += count(&messages, |message| message.trained == Some(false));
    let tools = objects(columns, "tools")?;
    let documents = objects(columns, "documents")?;
    let variables = variables(columns)?;
    Ok(Content::Conversation(Conversation { messages, tools, documents, variables }))
}

fn count(messages: &[Message], is_one: impl Fn(&Message) -> bool) -> u64 {
    let found = messages.iter().filter(|message| message.role() == "assistant" && is_one(message)).count();
    u64::try_from(found).expect("a length fits 64 bits")
}

/// Fields of a turn that only a chat template can place.
fn refuse_fields(messages: &[Message], place: &Place) -> Result<(), Error> {
    const PLACED: [&str; 6] =
        ["tool_calls", "function_call", "reasoning_content", "reasoning", "thinking", "thought"];
    for (index, message) in messages.iter().enumerate() {
        if let Some((name, _)) =
            message.fields.iter().find(|(name, value)| PLACED.contains(&name.as_str()) && carries(value))
        {
            let problem = format!("expected turns of text alone, found `{name}` in turn {}", index + 1);
            return Err(
                place.error(problem, "set `template = \"chat\"`: a chat template says where it belongs")
            );
        }
    }
    Ok(())
}

/// A list of objects for the template: `tools`, `documents`.
fn objects(columns: &mut Columns, name: &'static str) -> Result<Option<Value>, Error> {
    let Some(value) = columns.take_json(name)? else { return Ok(None) };
    let Value::List(items) = value else { return Err(columns.wrong(name, "a list of objects", &value)) };
    let item = |item: Value| match item {
        Value::Object(_) => Ok(item),
        Value::Text(ref text) => match serde_json::from_str(text) {
            Ok(object @ Value::Object(_)) => Ok(object),
            _ => Err(columns.wrong(name, "objects", &item)),
        },
        other => Err(columns.wrong(name, "objects", &other)),
    };
    Ok(Some(Value::List(items.into_iter().map(item).collect::<Result<_, _>>()?)))
}

/// TRL's `chat_template_kwargs`: variables of the template.
fn variables(columns: &mut Columns) -> Result<Vec<(String, Value)>, Error> {
    const NAME: &str = "chat_template_kwargs";
    const GIVEN: [&str; 6] = [
        "messages",
        "tools",
        "documents",
        "add_generation_prompt",
        "chat_template",
        "continue_final_message",
    ];
    match columns.take_json(NAME)? {
        None => Ok(Vec::new()),
        Some(Value::Object(fields)) => match fields.iter().find(|(name, _)| GIVEN.contains(&name.as_str())) {
            Some((name, _)) => {
                let problem =
                    format!("expected variables of the template in `{NAME}`, found `{name}`, which is given");
                Err(columns.place.error(problem, ignore_hint(NAME)))
            }
            None => Ok(fields),
        },
        Some(other) => Err(columns.wrong(NAME, "an object", &other)),
    }
}
