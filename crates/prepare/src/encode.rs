//! One row to one sequence: template, token ids, loss mask.

use std::borrow::Cow;

use softshard_labels::Sequence;

use crate::config::{DataConfig, Mask, Template, TokenizerConfig};
use crate::conversation::Conversation;
use crate::rows::{Content, Row};
use crate::template::{ChatTemplate, minillm_prompt, plain_prompt};
use crate::{Error, Tokenizer};

/// Turns rows into sequences; what the recipe leaves open is decided here, once.
pub(crate) struct Encoder<'a> {
    tokenizer: &'a Tokenizer,
    template: Option<Template>,
    /// The tokenizer's, with the recipe's date and variables.
    chat_template: Option<ChatTemplate>,
    mask: Mask,
    bos: Option<i32>,
    eos: Option<i32>,
    max_prompt_tokens: usize,
    max_tokens: usize,
}

/// What became of a row.
#[derive(Debug)]
pub(crate) enum Outcome {
    Kept {
        sequence: Sequence,
        cut: bool,
    },
    PromptTooLong,
    EmptyResponse,
    /// No token is left to label.
    TooShort,
}

/// Token ids before the loss mask and the limits.
struct Ids {
    input_ids: Vec<i32>,
    /// Where the response begins.
    prompt_tokens: usize,
}

impl<'a> Encoder<'a> {
    pub(crate) fn new(
        data: &DataConfig,
        config: &TokenizerConfig,
        tokenizer: &'a Tokenizer,
    ) -> Result<Self, Error> {
        let refuse = |problem: &str| Err(Error::tokenizer(tokenizer.path(), problem));
        let template = data.template();
        let default_bos = match template {
            Some(Template::MiniLlm | Template::Chat) => false,
            Some(Template::None) | None => tokenizer.adds_bos(),
        };
        let bos = match (config.add_bos.unwrap_or(default_bos), tokenizer.bos()) {
            (false, _) => None,
            (true, None) => return refuse("expected a `bos_token`, as `add_bos` is set, found none"),
            (true, bos) => bos,
        };
        let eos = match (config.add_eos, tokenizer.eos()) {
            (true, None) if template != Some(Template::Chat) => {
                return refuse("expected an `eos_token`, found none\nhint: set it in tokenizer_config.json");
            }
            (true, eos) => eos,
            (false, _) => None,
        };
        if template == Some(Template::Chat) && tokenizer.chat_template().is_none() {
            return refuse("expected a chat template, as `template = \"chat\"`, found none");
        }
        let chat_template = tokenizer.chat_template().map(|template| template.configured(data));
        let (max_prompt_tokens, max_tokens) = (data.max_prompt_tokens, data.max_tokens);
        Ok(Self {
            tokenizer,
            template,
            chat_template,
            mask: data.mask(),
            bos,
            eos,
            max_prompt_tokens,
            max_tokens,
        })
    }

    /// The chat template, where `template = "chat"`.
    pub(crate) fn chat_template(&self) -> &ChatTemplate {
        self.chat_template.as_ref().expect("checked in `new`")
    }

    /// The sequence of a row.
    pub(crate) fn encode(&self, row: &Row) -> Result<Outcome, Error> {
        if row.has_empty_response() {
            return Ok(Outcome::EmptyResponse);
        }
        let Ids { mut input_ids, prompt_tokens } = match (&row.content, self.template) {
            (Content::Document(text), _) => self.join("", text)?,
            (_, Some(Template::Chat)) => self.chat(row)?,
            (Content::Instruction { response, .. }, _) => self.join(&self.prompt(row)?, response)?,
            (Content::Conversation(conversation), _) => {
                self.join(&self.prompt(row)?, conversation.response())?
            }
        };
        if self.template.is_some() && prompt_tokens > self.max_prompt_tokens {
            return Ok(Outcome::PromptTooLong);
        }
        let cut = input_ids.len() > self.max_tokens;
        input_ids.truncate(self.max_tokens);
        let first = match self.mask {
            Mask::Response => prompt_tokens.max(1),
            Mask::All => 1,
        };
        let positions: Vec<i32> = (first..input_ids.len())
            .map(|position| i32::try_from(position).expect("max_tokens is below 2^31"))
            .collect();
        if positions.is_empty() {
            return Ok(Outcome::TooShort);
        }
        let sequence = Sequence { source: Some(row.place.source()), input_ids, positions };
        Ok(Outcome::Kept { sequence, cut })
    }

    /// The prompt of a row as text.
    pub(crate) fn prompt(&self, row: &Row) -> Result<String, Error> {
        let (instruction, context) = match (&row.content, self.template) {
            (Content::Document(_), _) => return Ok(String::new()),
            (_, Some(Template::Chat)) => {
                let conversation = conversation(row);
                let template = self.chat_template();
                let turns = conversation.messages.len() - 1;
                let rendering = template.render(&conversation, turns, true);
                return rendering.map(|rendering| rendering.text).map_err(|error| in_row(row, error));
            }
            (Content::Instruction { instruction, context, .. }, _) => {
                (instruction.as_str(), context.as_str())
            }
            (Content::Conversation(conversation), _) => match conversation.prompt() {
                [message] if message.role() == "user" => (message.text(), ""),
                _ => {
                    let problem =
                        "expected one message of `user` before the answer, found a longer conversation";
                    return Err(row.place.error(problem, "set `template = \"chat\"`"));
                }
            },
        };
        Ok(match self.template {
            Some(Template::MiniLlm) => minillm_prompt(instruction, context),
            _ => plain_prompt(instruction, context),
        })
    }

    /// Ids of a prompt, to generate from: exactly those with which the row's sequence begins in training.
    pub(crate) fn prompt_ids(&self, prompt: &str) -> Result<Vec<i32>, Error> {
        Ok(self.with_bos(self.tokenizer.encode(prompt)?))
    }

    pub(crate) fn max_prompt_tokens(&self) -> usize {
        self.max_prompt_tokens
    }

    /// `full = enc(prompt + response) + [eos]`, and the response is `full[len(enc(prompt))..]`, as in MiniLLM.
    fn join(&self, prompt: &str, response: &str) -> Result<Ids, Error> {
        let prompt_tokens = self.prompt_ids(prompt)?.len();
        let mut input_ids = self.with_bos(self.tokenizer.encode(&format!("{prompt}{response}"))?);
        input_ids.extend(self.eos);
        Ok(Ids { input_ids, prompt_tokens })
    }

    /// The rendered conversation up to the special token that ends the last turn; where the template writes none,
    /// the end-of-sequence token is added.
    fn chat(&self, row: &Row) -> Result<Ids, Error> {
        let template = self.chat_template();
        let rendered = template.conversation(&conversation(row)).map_err(|error| in_row(row, error))?;
        let prompt_tokens = self.prompt_ids(&rendered.text[..rendered.prompt_bytes])?.len();
        let mut input_ids = self.with_bos(self.tokenizer.encode(&rendered.text)?);
        let end = input_ids.iter().rposition(|id| self.tokenizer.is_special(*id)).map_or(0, |last| last + 1);
        if end > prompt_tokens && self.tokenizer.decode(&input_ids[end..])?.trim().is_empty() {
            input_ids.truncate(end);
        } else {
            input_ids.extend(self.eos);
        }
        Ok(Ids { input_ids, prompt_tokens })
    }

    fn with_bos(&self, mut ids: Vec<i32>) -> Vec<i32> {
        if let Some(bos) = self.bos
            && ids.first() != Some(&bos)
        {
            ids.insert(0, bos);
        }
        ids
    }
}

/// A row as a conversation.
fn conversation(row: &Row) -> Cow<'_, Conversation> {
    Cow::Owned(match &row.content {
        Content::Instruction { instruction, context, response } if context.is_empty() => {
            Conversation::short(instruction, response)
        }
        Content::Instruction { instruction, context, response } => {
            Conversation::short(&format!("{instruction}\n\n{context}"), response)
        }
        Content::Conversation(conversation) => return Cow::Borrowed(conversation),
        Content::Document(text) => Conversation::short("", text),
    })
}

fn in_row(row: &Row, error: Error) -> Error {
    row.place.error(error.to_string(), "the template refuses this row: change the row or the template")
}
