//! Log-probabilities as inference servers print them: one response per line.
//!
//! `prompt_logprobs` of vLLM, `logprobs.content[].top_logprobs` of chat completions, and `logprobs.top_logprobs` of
//! completions. Entries at a token describe that token, in all of them.

use std::path::PathBuf;

use serde_json::{Map, Value};

use super::lines::Lines;
use super::rows::{ForeignPosition, ForeignRow, Rows, or_bad};
use crate::values::Error;

/// Finds the id of a token that a server printed as text, from it and all texts of its response, which show whether the
/// server keeps the spaces before words; says what is wrong where there is none, or more than one.
pub type Resolve<'a> = &'a dyn Fn(&str, &[&str]) -> Result<i32, String>;

/// What some servers print for "very improbable".
const PLACEHOLDER: f64 = -9999.0;
const HINT_LINES: &str = "one response on each line: `jq -c` writes them so";
const HINT_IDS: &str = "ask the server for ids: `return_tokens_as_token_ids` of vLLM";

/// Turns responses into rows.
#[derive(Clone, Copy)]
pub(crate) struct Reader<'a> {
    pub(crate) top_k: usize,
    pub(crate) resolve: Resolve<'a>,
}

/// Rows of all choices of all lines.
pub(crate) fn rows<'a>(files: &'a [PathBuf], reader: Reader<'a>) -> Rows<'a> {
    let mut files = files.iter();
    let mut open: Option<Lines> = None;
    let mut choices = Vec::new().into_iter();
    let mut next = move || -> Result<Option<_>, Error> {
        loop {
            if let Some(row) = choices.next() {
                return or_bad(row).map(Some);
            }
            let line = match &mut open {
                Some(lines) => or_bad(lines.next::<Value>())?,
                None => Ok(None),
            };
            match line {
                Err(bad) => return Ok(Some(Err(bad))),
                Ok(Some((at, value))) => choices = reader.line(&value, &at.place, &at.source).into_iter(),
                Ok(None) => match files.next() {
                    Some(path) => open = Some(Lines::open(path)?),
                    None => return Ok(None),
                },
            }
        }
    };
    Box::new(std::iter::from_fn(move || next().transpose()))
}

/// A token with its alternatives.
struct Token {
    id: i32,
    log_prob: Option<f64>,
    /// Empty where the server says nothing, as of the first token.
    top: Vec<Entry>,
}

/// Id, log-probability and, from vLLM, rank.
struct Entry {
    id: i32,
    log_prob: f64,
    rank: Option<u64>,
}

impl Reader<'_> {
    /// A row for each choice, or the one thing that is wrong with the line.
    fn line(&self, line: &Value, place: &str, source: &str) -> Vec<Result<ForeignRow, Error>> {
        // A batch of OpenAI wraps the body; anyone may put `prompt_token_ids` beside the response.
        let response = line.get("response").filter(|response| !response.is_null()).unwrap_or(line);
        let body = response.get("body").filter(|body| !body.is_null()).unwrap_or(response);
        let choices = match choices(line, response, body) {
            Ok(choices) => choices,
            Err(error) => return vec![Err(error.within(place))],
        };
        let id = line.get("custom_id").and_then(Value::as_str);
        let row = |(index, choice): (usize, &Value)| {
            let find = |key: &str| {
                [choice, body, response, line]
                    .into_iter()
                    .find_map(|from| from.get(key).filter(|value| !value.is_null()))
            };
            let place = if choices.len() == 1 { place.to_owned() } else { format!("{place} choice {index}") };
            let source = id.map_or_else(
                || if index == 0 { source.to_owned() } else { format!("{source}:{index}") },
                str::to_owned,
            );
            let row = self.choice(choice, &find).map_err(|error| error.within(&place))?;
            Ok(ForeignRow { place, source, ..row })
        };
        choices.iter().enumerate().map(row).collect()
    }

    fn choice<'v>(
        &self,
        choice: &'v Value,
        find: &dyn Fn(&str) -> Option<&'v Value>,
    ) -> Result<ForeignRow, Error> {
        let prompt = find("prompt_token_ids").map(|ids| id_list("prompt_token_ids", ids)).transpose()?;
        let mut tokens = match find("prompt_logprobs") {
            Some(logprobs) => self.prompt(logprobs, prompt.as_deref())?,
            None => prompt
                .unwrap_or_default()
                .into_iter()
                .map(|id| Token { id, log_prob: None, top: Vec::new() })
                .collect(),
        };
        let logprobs = choice.get("logprobs").filter(|value| !value.is_null());
        if let Some(content) = logprobs.and_then(|logprobs| logprobs.get("content")).and_then(Value::as_array)
        {
            check_prompt(&tokens)?;
            tokens.extend(self.content(content, choice.get("token_ids"))?);
        } else if let Some(logprobs) = logprobs {
            let legacy = self.legacy(logprobs)?;
            if legacy.first().is_some_and(|first| first.log_prob.is_none()) {
                tokens.clear(); // the prompt was echoed
            } else {
                check_prompt(&tokens)?;
            }
            tokens.extend(legacy);
        } else if find("prompt_logprobs").is_none() {
            return Err(Error::bad("logprobs", "`logprobs` or `prompt_logprobs`", "neither"));
        }
        self.row(&tokens)
    }

    fn row(&self, tokens: &[Token]) -> Result<ForeignRow, Error> {
        let mut positions = Vec::new();
        for (position, token) in tokens.iter().enumerate() {
            if token.top.is_empty() {
                continue;
            }
            let one = self.position(position, token);
            positions.push(one.map_err(|error| error.within(format_args!("position {position}")))?);
        }
        let input_ids = tokens.iter().map(|token| token.id).collect();
        Ok(ForeignRow { place: String::new(), source: String::new(), input_ids, positions })
    }

    /// The `top_k` entries; servers add the token itself where it is not among them.
    fn position(&self, position: usize, token: &Token) -> Result<ForeignPosition, Error> {
        if position == 0 {
            return Err(Error::bad("entries", "none of the first token", "some"));
        }
        let mut entries: Vec<&Entry> = token.top.iter().collect();
        entries.sort_by(|one, next| next.log_prob.total_cmp(&one.log_prob).then(one.id.cmp(&next.id)));
        let of_gold = entries.iter().position(|entry| entry.id == token.id);
        let gold = token.log_prob.or_else(|| of_gold.map(|index| entries[index].log_prob));
        let Some(gold) = gold else {
            let hint = "the entries of a prompt hold its own token: are these its ids? entries at t describe token t";
            return Err(Error::bad(
                "entries",
                format_args!("token {} of the sequence among them", token.id),
                "others",
            )
            .hint(hint));
        };
        if entries.iter().all(|entry| entry.rank.is_some()) {
            let top = u64::try_from(self.top_k).unwrap_or(u64::MAX);
            entries.retain(|entry| entry.rank.is_some_and(|rank| rank <= top));
        }
        // One too many is the token itself, where no other is less probable: of equal ones the server's order decided
        // which are among the most probable, and ranks of equal ones may be equal.
        if entries.len() == self.top_k + 1 {
            let least = entries[self.top_k].log_prob;
            entries.retain(|entry| entry.id != token.id || entry.log_prob > least);
        }
        if entries.len() != self.top_k {
            let found = format!("{} of them", entries.len());
            let hint = "give --top-k as the server was asked; texts that are equal become one";
            return Err(Error::bad(
                "entries",
                format_args!("the {} most probable tokens", self.top_k),
                found,
            )
            .hint(hint));
        }
        let entries = entries.into_iter().map(|entry| (entry.id, entry.log_prob)).collect();
        Ok(ForeignPosition { position, entries, gold_log_prob: Some(gold), ..ForeignPosition::default() })
    }

    /// `prompt_logprobs`: null, then `{"id": {"logprob", "rank"}}` for each further token.
    fn prompt(&self, logprobs: &Value, ids: Option<&[i32]>) -> Result<Vec<Token>, Error> {
        let lists = logprobs.as_array().ok_or_else(|| Error::bad("prompt_logprobs", "a list", "none"))?;
        let Some(ids) = ids else {
            let hint = "ask vLLM with `return_token_ids`, or put `prompt_token_ids` into the line";
            return Err(Error::bad("prompt_token_ids", "the ids of the prompt", "none").hint(hint));
        };
        if ids.len() != lists.len() {
            return Err(Error::bad(
                "prompt_logprobs",
                format_args!("{} items, one for each id", ids.len()),
                lists.len(),
            ));
        }
        let mut tokens = Vec::with_capacity(ids.len());
        for (position, (id, list)) in ids.iter().zip(lists).enumerate() {
            let within = |error: Error| error.within(format_args!("prompt_logprobs position {position}"));
            let top = match list {
                Value::Null => Vec::new(),
                Value::Object(entries) => entries
                    .iter()
                    .map(|(id, value)| {
                        let rank = value.get("rank").and_then(Value::as_u64);
                        Ok(Entry { id: parse_id(id)?, log_prob: log_prob(value.get("logprob"))?, rank })
                    })
                    .collect::<Result<_, Error>>()
                    .map_err(within)?,
                _ => return Err(within(Error::bad("entries", "an object or null", "another value"))),
            };
            if position > 0 && top.is_empty() {
                return Err(within(Error::bad("entries", "those of the token", "none")));
            }
            tokens.push(Token { id: *id, log_prob: None, top });
        }
        Ok(tokens)
    }

    /// `logprobs.content`: a list of tokens with `top_logprobs`.
    fn content(&self, content: &[Value], ids: Option<&Value>) -> Result<Vec<Token>, Error> {
        let ids = ids.filter(|ids| !ids.is_null()).map(|ids| id_list("token_ids", ids)).transpose()?;
        if ids.as_ref().is_some_and(|ids| ids.len() != content.len()) {
            return Err(Error::bad(
                "token_ids",
                format_args!("{} ids", content.len()),
                ids.map_or(0, |ids| ids.len()),
            ));
        }
        let tops = content.iter().filter_map(|item| item.get("top_logprobs")?.as_array()).flatten();
        let all: Vec<&str> =
            content.iter().chain(tops).filter_map(|item| item.get("token")?.as_str()).collect();
        let mut tokens = Vec::with_capacity(content.len());
        for (index, item) in content.iter().enumerate() {
            let token = || -> Result<Token, Error> {
                let id = match &ids {
                    Some(ids) => ids[index],
                    None => self.id(item.get("token"), &all)?,
                };
                let top = item.get("top_logprobs").and_then(Value::as_array);
                let top = top.filter(|top| !top.is_empty());
                let top = top.ok_or_else(|| Error::bad("top_logprobs", "entries of the token", "none"))?;
                let entry = |entry: &Value| {
                    Ok(Entry {
                        id: self.id(entry.get("token"), &all)?,
                        log_prob: log_prob(entry.get("logprob"))?,
                        rank: None,
                    })
                };
                let top: Result<Vec<Entry>, Error> = top.iter().map(entry).collect();
                Ok(Token { id, log_prob: Some(log_prob(item.get("logprob"))?), top: top? })
            };
            tokens.push(token().map_err(|error| error.within(format_args!("logprobs.content[{index}]")))?);
        }
        Ok(tokens)
    }

    /// `logprobs.tokens`, `token_logprobs` and `top_logprobs`.
    fn legacy(&self, logprobs: &Value) -> Result<Vec<Token>, Error> {
        let list = |key: &str| {
            let found = logprobs.get(key).and_then(Value::as_array);
            found.ok_or_else(|| Error::bad(format_args!("logprobs.{key}"), "a list", "none"))
        };
        let (texts, own, top) = (list("tokens")?, list("token_logprobs")?, list("top_logprobs")?);
        if texts.len() != own.len() || texts.len() != top.len() {
            let found = format!("{}, {} and {}", texts.len(), own.len(), top.len());
            return Err(Error::bad("logprobs", "lists of equal length", found));
        }
        let none = Map::new();
        let tops = top.iter().filter_map(Value::as_object).flat_map(Map::keys).map(String::as_str);
        let all: Vec<&str> = texts.iter().filter_map(Value::as_str).chain(tops).collect();
        let mut tokens = Vec::with_capacity(texts.len());
        for index in 0..texts.len() {
            let token = || -> Result<Token, Error> {
                let is_first = index == 0 && own[index].is_null();
                let entries = match &top[index] {
                    Value::Object(entries) if !entries.is_empty() => entries,
                    _ if is_first => &none,
                    _ => return Err(Error::bad("top_logprobs", "entries of the token", "none")),
                };
                let entry = |(text, value): (&String, &Value)| {
                    Ok(Entry { id: self.id_of(text, &all)?, log_prob: log_prob(Some(value))?, rank: None })
                };
                let top: Result<Vec<Entry>, Error> = entries.iter().map(entry).collect();
                let own = if is_first { None } else { Some(log_prob(Some(&own[index]))?) };
                Ok(Token { id: self.id(Some(&texts[index]), &all)?, log_prob: own, top: top? })
            };
            tokens.push(token().map_err(|error| error.within(format_args!("logprobs position {index}")))?);
        }
        Ok(tokens)
    }

    fn id(&self, token: Option<&Value>, all: &[&str]) -> Result<i32, Error> {
        let text = token.and_then(Value::as_str);
        self.id_of(text.ok_or_else(|| Error::bad("token", "a text", "none"))?, all)
    }

    /// The id of a token: `token_id:123`, or a text that only one token has.
    fn id_of(&self, text: &str, all: &[&str]) -> Result<i32, Error> {
        match text.strip_prefix("token_id:") {
            Some(id) => parse_id(id),
            None => (self.resolve)(text, all).map_err(|found| {
                Error::bad(format_args!("token {text:?}"), "the text of one token", found).hint(HINT_IDS)
            }),
        }
    }
}

/// The answers of a server, of which there is at least one.
fn choices<'v>(line: &'v Value, response: &Value, body: &'v Value) -> Result<&'v [Value], Error> {
    let expected = "a list with an answer: the response of a server";
    if let Some(choices) = body.get("choices").and_then(Value::as_array).filter(|found| !found.is_empty()) {
        return Ok(choices);
    }
    let error = [body, response, line]
        .into_iter()
        .find_map(|from| from.get("error").filter(|error| !error.is_null()));
    let (found, hint) = match (error, body) {
        (Some(error), _) => {
            let said = error.get("message").or_else(|| error.get("code")).unwrap_or(error);
            (format!("an error: {}", shown(said)), "ask the server again for this one")
        }
        (None, Value::Object(body)) if body.contains_key("choices") => ("no answer".to_owned(), HINT_LINES),
        (None, Value::Object(_)) => ("none".to_owned(), HINT_LINES),
        _ => ("no object".to_owned(), HINT_LINES),
    };
    Err(Error::bad("choices", expected, found).hint(hint))
}

/// The beginning of what a server said, on one line.
fn shown(value: &Value) -> String {
    const MOST: usize = 200;
    let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let mut letters = text.chars().map(|letter| if letter.is_control() { ' ' } else { letter });
    let start: String = letters.by_ref().take(MOST).collect();
    if letters.next().is_some() { start + "…" } else { start }
}

/// What follows a prompt cannot be labelled without it.
fn check_prompt(tokens: &[Token]) -> Result<(), Error> {
    if !tokens.is_empty() {
        return Ok(());
    }
    let hint = "ask vLLM with `return_token_ids`, ask with `echo`, or put `prompt_token_ids` into the line";
    Err(Error::bad(
        "prompt_token_ids",
        "the ids of the prompt, as the response holds the answer alone",
        "none",
    )
    .hint(hint))
}

fn parse_id(text: &str) -> Result<i32, Error> {
    let id = text.parse::<i32>().ok().filter(|id| *id >= 0);
    id.ok_or_else(|| Error::bad("token id", "a number in 0..2147483648", format_args!("{text:?}")))
}

fn id_list(name: &str, value: &Value) -> Result<Vec<i32>, Error> {
    let id = |value: &Value| value.as_i64().and_then(|id| i32::try_from(id).ok()).filter(|id| *id >= 0);
    let ids = value.as_array().and_then(|ids| ids.iter().map(id).collect::<Option<Vec<i32>>>());
    ids.ok_or_else(|| Error::bad(name, "a list of ids", "others"))
}

fn log_prob(value: Option<&Value>) -> Result<f64, Error> {
    let number = value.and_then(Value::as_f64);
    let number = number.ok_or_else(|| Error::bad("logprob", "a number", value.unwrap_or(&Value::Null)))?;
    if number <= PLACEHOLDER {
        return Err(Error::bad("logprob", "what the teacher said", format_args!("{number}, a placeholder")));
    }
    Ok(number)
}
