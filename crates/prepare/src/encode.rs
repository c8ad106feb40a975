//! One row to one sequence: template, token ids, loss mask.

mod spans;
mod turns;

use std::borrow::Cow;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};

use softshard_labels::Sequence;

use crate::config::{Bos, DataConfig, Mask, Template, TokenizerConfig};
use crate::conversation::Conversation;
use crate::offsets::Tokens;
use crate::rows::{Content, Row};
use crate::template::{ChatTemplate, minillm_prompt, plain_prompt};
use crate::{Error, Tokenizer};
use spans::{Answer, Held, ended, held};
pub(crate) use turns::ending;
use turns::{Rendered, Turn};

/// Turns rows into sequences; what the recipe leaves open is decided here, once.
pub(crate) struct Encoder<'a> {
    tokenizer: &'a Tokenizer,
    template: Option<Template>,
    /// The tokenizer's, with the recipe's date and variables.
    chat_template: Option<ChatTemplate>,
    mask: Mask,
    bos: Option<i32>,
    /// The token that the tokenizer would begin with, where the recipe does not say whether to.
    expected_bos: Option<i32>,
    eos: Option<i32>,
    max_prompt_tokens: usize,
    max_tokens: usize,
    warned: Warned,
}

/// What has been said once.
#[derive(Default)]
struct Warned {
    without_bos: AtomicBool,
    shorter_prompt: AtomicBool,
}

/// What became of a row.
#[derive(Debug)]
pub(crate) enum Outcome {
    Kept {
        sequence: Sequence,
        notes: Notes,
    },
    PromptTooLong,
    EmptyResponse,
    /// The row itself leaves all out that would be labelled.
    LeftOut,
    /// No token is left to label.
    TooShort,
}

/// What is said of a sequence beside its tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Notes {
    /// Tokens beyond `max_tokens`.
    pub(crate) cut_tokens: u64,
    /// Labelled tokens that hold text beside the answer, too.
    pub(crate) straddling: u64,
    /// Turns that the row leaves out of the loss.
    pub(crate) left_out: u64,
    /// Turns that the row takes into the loss and the mask does not.
    pub(crate) not_taken_in: u64,
    /// The answer begins before the generation prompt ends.
    pub(crate) has_shorter_prompt: bool,
    /// The tokenizer would begin with a token that is not there.
    pub(crate) is_without_bos: bool,
    /// Marks of the template whose first or last character no token holds.
    pub(crate) unmatched_marks: u64,
}

/// A row to be answered.
pub(crate) struct Question {
    /// Everything before the answer as text.
    pub(crate) prompt: String,
    /// The ids with which the row's sequence begins, up to the first token that holds something of the answer.
    pub(crate) prompt_ids: Vec<i32>,
    /// The answer as it stands in the sequence, without special tokens.
    pub(crate) answer: String,
}

/// Token ids and the loss mask before the limits.
struct Encoded {
    input_ids: Vec<i32>,
    labelled: Vec<bool>,
    /// The first token that holds something of the last answer.
    answer: usize,
    /// Everything before that answer as text; `None`: what the ids say.
    prompt: Option<String>,
    notes: Notes,
}

impl<'a> Encoder<'a> {
    pub(crate) fn new(
        data: &DataConfig,
        config: &TokenizerConfig,
        tokenizer: &'a Tokenizer,
    ) -> Result<Self, Error> {
        let refuse = |problem: &str| Err(Error::tokenizer(tokenizer.path(), problem));
        let template = data.template();
        let has_own_beginning = matches!(template, Some(Template::MiniLlm | Template::Chat));
        let said = data.bos(config)?;
        let adds_bos = match said {
            Some(Bos::Always) => true,
            Some(Bos::Never) => false,
            None if has_own_beginning => false,
            Some(Bos::AsTokenizer) | None => tokenizer.adds_bos(),
        };
        let bos = match (adds_bos, tokenizer.bos()) {
            (false, _) => None,
            (true, None) => return refuse("expected a `bos_token`, as `bos = \"always\"`, found none"),
            (true, bos) => bos,
        };
        let expected_bos = tokenizer.bos().filter(|_| said.is_none() && tokenizer.adds_bos());
        let eos = match (config.add_eos, tokenizer.eos()) {
            (true, None) if template != Some(Template::Chat) => {
                return refuse("expected an `eos_token`, found none\nhint: set it in tokenizer_config.json");
            }
            (true, eos) => eos,
            (false, _) => None,
        };
        if template == Some(Template::Chat) {
            match tokenizer.chat_template() {
                None => return refuse("expected a chat template, as `template = \"chat\"`, found none"),
                Some(chat) if data.mask() == Mask::Generation && !turns::marks_answers(chat.source()) => {
                    return refuse(
                        "expected a chat template that marks answers with `{% generation %}`, as `mask = \
                         \"generation\"`, found none\nhint: `mask = \"all_responses\"` finds them without marks",
                    );
                }
                Some(_) => {}
            }
        }
        let chat_template = tokenizer.chat_template().map(|template| template.configured(data));
        let (max_prompt_tokens, max_tokens) = (data.max_prompt_tokens, data.max_tokens);
        let (mask, warned) = (data.mask(), Warned::default());
        Ok(Self {
            tokenizer,
            template,
            chat_template,
            mask,
            bos,
            expected_bos,
            eos,
            max_prompt_tokens,
            max_tokens,
            warned,
        })
    }

    /// The chat template, where `template = "chat"`.
    fn chat_template(&self) -> &ChatTemplate {
        self.chat_template.as_ref().expect("checked in `new`")
    }

    /// A template that cannot tell prompt and answer of a small conversation apart is refused before anything is written.
    pub(crate) fn check_chat_template(&self) -> Result<(), Error> {
        let conversation = Conversation::short("question", "answer");
        Rendered::new(self.chat_template(), &conversation)?.answer(1).map(|_| ())
    }

    /// The sequence of a row.
    pub(crate) fn encode(&self, row: &Row) -> Result<Outcome, Error> {
        if row.has_empty_response() {
            return Ok(Outcome::EmptyResponse);
        }
        let encoded = self.encoded(row)?;
        if self.is_prompt_too_long(&encoded) {
            return Ok(Outcome::PromptTooLong);
        }
        let Encoded { mut input_ids, labelled, mut notes, .. } = encoded;
        let all = input_ids.len();
        input_ids.truncate(self.max_tokens);
        notes.cut_tokens = u64::try_from(all - input_ids.len()).expect("a length fits 64 bits");
        let positions: Vec<i32> = (1..input_ids.len())
            .filter(|position| labelled[*position])
            .map(|position| i32::try_from(position).expect("max_tokens is below 2^31"))
            .collect();
        if positions.is_empty() {
            let nothing = !labelled.contains(&true) && notes.left_out > 0;
            return Ok(if nothing { Outcome::LeftOut } else { Outcome::TooShort });
        }
        let sequence = Sequence { source: Some(row.place.source()), input_ids, positions };
        Ok(Outcome::Kept { sequence, notes })
    }

    /// The prompt of a row to generate from, and its answer; `None` where the sequence of the row is dropped, or cut before
    /// the answer.
    pub(crate) fn question(&self, row: &Row) -> Result<Option<Question>, Error> {
        if row.has_empty_response() {
            return Ok(None);
        }
        let Encoded { mut input_ids, answer, prompt, .. } = match self.encoded(row)? {
            encoded if self.is_prompt_too_long(&encoded) || encoded.answer >= self.max_tokens => {
                return Ok(None);
            }
            encoded => encoded,
        };
        let answer_ids = input_ids.split_off(answer);
        let prompt = match prompt {
            Some(prompt) => prompt,
            None => self.tokenizer.decode_all(&input_ids)?,
        };
        let answer = self.tokenizer.decode(&answer_ids)?;
        Ok(Some(Question { prompt, prompt_ids: input_ids, answer }))
    }

    /// Whether too much stands before the first answer that is learnt from; where all is, before the last answer.
    fn is_prompt_too_long(&self, encoded: &Encoded) -> bool {
        let first = encoded.labelled.iter().position(|labelled| *labelled);
        let prompt_tokens = match self.mask {
            Mask::Response | Mask::All => encoded.answer,
            Mask::AllResponses | Mask::Generation => first.unwrap_or(encoded.answer),
        };
        self.template.is_some() && prompt_tokens > self.max_prompt_tokens
    }

    fn encoded(&self, row: &Row) -> Result<Encoded, Error> {
        let mut encoded = match (&row.content, self.template) {
            (Content::Document(text), _) => self.document(text)?,
            (Content::Tokens { input_ids, labelled }, _) => return self.given(row, input_ids, labelled),
            (Content::Completion { prompt, completion }, _) => self.join(prompt, completion)?,
            (_, Some(Template::Chat)) => self.chat(row)?,
            (Content::Instruction { response, .. }, _) => self.join(&self.prompt(row)?, response)?,
            (Content::Conversation(conversation), _) => {
                let mut encoded = self.join(&self.prompt(row)?, conversation.response())?;
                if conversation.messages.last().is_some_and(|last| last.trained == Some(false)) {
                    encoded.labelled.truncate(encoded.answer);
                    encoded.labelled.resize(encoded.input_ids.len(), false);
                    encoded.notes.left_out = 1;
                }
                encoded
            }
        };
        self.begin(&mut encoded);
        Ok(encoded)
    }

    /// The prompt of a row for the templates that are our own.
    fn prompt(&self, row: &Row) -> Result<String, Error> {
        let (instruction, context) = match &row.content {
            Content::Instruction { instruction, context, .. } => (instruction.as_str(), context.as_str()),
            Content::Conversation(conversation) => match conversation.prompt() {
                [message] if message.role() == "user" => (message.text(), ""),
                _ => {
                    let problem =
                        "expected one message of `user` before the answer, found a longer conversation";
                    return Err(row.place.error(problem, "set `template = \"chat\"`"));
                }
            },
            Content::Document(_) | Content::Completion { .. } | Content::Tokens { .. } => ("", ""),
        };
        Ok(match self.template {
            Some(Template::MiniLlm) => minillm_prompt(instruction, context),
            _ => plain_prompt(instruction, context),
        })
    }

    fn document(&self, text: &str) -> Result<Encoded, Error> {
        let mut input_ids = self.tokenizer.encode(text)?;
        input_ids.extend(self.eos);
        let labelled = vec![true; input_ids.len()];
        Ok(Encoded { input_ids, labelled, answer: 0, prompt: Some(String::new()), notes: Notes::default() })
    }

    /// `full = enc(prompt + response) + [eos]`, as in MiniLLM. Where no token holds both, the response is MiniLLM's
    /// `full[len(enc(prompt))..]`.
    fn join(&self, prompt: &str, response: &str) -> Result<Encoded, Error> {
        let text = format!("{prompt}{response}");
        let tokens = self.tokenizer.encode_with_ranges(&text)?;
        let Held { mut mask, straddling } = held(&tokens, &[prompt.len()..text.len()]);
        let answer = tokens.first_behind(prompt.len());
        let mut input_ids = tokens.ids;
        input_ids.extend(self.eos);
        mask.resize(input_ids.len(), true);
        if self.mask == Mask::All {
            mask.fill(true);
        }
        let notes = Notes { straddling, ..Notes::default() };
        Ok(Encoded { input_ids, labelled: mask, answer, prompt: Some(prompt.to_owned()), notes })
    }

    /// Ids and a mask that the row brings.
    fn given(&self, row: &Row, input_ids: &[i32], labelled: &[bool]) -> Result<Encoded, Error> {
        let size = self.tokenizer.vocab_size();
        let known = |id: i32| u32::try_from(id).is_ok_and(|id| id < size);
        if let Some((index, id)) = input_ids.iter().enumerate().find(|(_, id)| !known(**id)) {
            let problem = format!("expected token ids from 0 to {}, found {id} at {index}", size - 1);
            return Err(row.place.error(problem, "the ids are of another tokenizer than the recipe's"));
        }
        if labelled.len() != input_ids.len() {
            let problem =
                format!("expected a mask of {} tokens, found one of {}", input_ids.len(), labelled.len());
            return Err(row.place.error(problem, "the mask says of each id whether it is labelled"));
        }
        // The last run of labelled tokens.
        let end = labelled.iter().rposition(|labelled| *labelled).map_or(input_ids.len(), |last| last + 1);
        let answer = labelled[..end].iter().rposition(|labelled| !labelled).map_or(0, |before| before + 1);
        let (input_ids, labelled) = (input_ids.to_vec(), labelled.to_vec());
        Ok(Encoded { input_ids, labelled, answer, prompt: None, notes: Notes::default() })
    }

    /// The rendered conversation. With the mask of the template it is whole, as transformers has it; else it reaches to
    /// the special token that ends the last turn, and where the template writes none, the end-of-sequence token is added.
    fn chat(&self, row: &Row) -> Result<Encoded, Error> {
        let template = self.chat_template();
        let conversation = conversation(row);
        let encoded = Rendered::new(template, &conversation).and_then(|rendered| match self.mask {
            Mask::Generation => self.marked(&rendered, &conversation),
            Mask::Response | Mask::AllResponses | Mask::All => self.answered(&rendered, &conversation),
        });
        encoded.map_err(|error| in_row(row, error))
    }

    fn answered(&self, rendered: &Rendered, conversation: &Conversation) -> Result<Encoded, Error> {
        let messages = &conversation.messages;
        let text = rendered.text.as_str();
        let tokens = self.tokenizer.encode_with_ranges(text)?;
        let Some(last) = messages.iter().rposition(|message| message.role() == "assistant") else {
            let problem = "expected a turn of `assistant`, found none".to_owned();
            return Err(Error::ChatTemplate(problem));
        };
        let last_turn = rendered.answer(last)?;
        let (mut learnt, mut left_out) = (Vec::new(), Vec::new());
        let mut notes = Notes { has_shorter_prompt: last_turn.has_shorter_prompt, ..Notes::default() };
        for (index, message) in messages.iter().enumerate() {
            let is_answer = message.role() == "assistant";
            let turn = match (self.mask, message.trained) {
                (Mask::Response, Some(true)) if index != last => {
                    notes.not_taken_in += 1;
                    continue;
                }
                (Mask::Response, _) if index != last => continue,
                (Mask::All, None | Some(true)) => continue,
                (Mask::AllResponses, None | Some(false)) if !is_answer => continue,
                _ if index == last => last_turn.clone(),
                _ if is_answer => rendered.answer(index)?,
                _ => rendered.said(index)?,
            };
            let answer = self.ended(&tokens, text, &turn, index)?;
            if message.trained == Some(false) { left_out.push(answer.text) } else { learnt.push(answer.text) }
        }
        if self.mask == Mask::All {
            learnt = vec![0..text.len()];
        }
        let Held { mask, straddling } = held(&tokens, &learnt);
        notes.straddling = straddling;
        let Answer { text: answer_text, is_ended } = self.ended(&tokens, text, &last_turn, last)?;
        let mut encoded = Encoded {
            answer: tokens.first_behind(last_turn.start),
            prompt: Some(text[..last_turn.start].to_owned()),
            labelled: mask,
            input_ids: Vec::new(),
            notes,
        };
        encoded.leave_out(&tokens, &left_out);
        let end = tokens.first_behind(answer_text.end - 1) + 1;
        let is_learnt = messages[last].trained != Some(false);
        encoded.input_ids = tokens.ids;
        if last + 1 == messages.len() {
            if is_ended {
                encoded.input_ids.truncate(end);
                encoded.labelled.truncate(end);
            } else {
                encoded.input_ids.extend(self.eos);
                encoded.labelled.resize(encoded.input_ids.len(), is_learnt);
            }
        }
        Ok(encoded)
    }

    fn marked(&self, rendered: &Rendered, conversation: &Conversation) -> Result<Encoded, Error> {
        let marked = self.tokenizer.encode_marked(&rendered.text, &rendered.generated)?;
        let mut notes =
            Notes { straddling: marked.straddling, unmatched_marks: marked.unmatched, ..Notes::default() };
        let (mut left_out, mut tokens) = (Vec::new(), None);
        for (index, message) in conversation.messages.iter().enumerate() {
            let is_answer = message.role() == "assistant";
            notes.not_taken_in += u64::from(message.trained == Some(true) && !is_answer);
            if message.trained == Some(false) && is_answer {
                let turn = rendered.answer(index)?;
                if tokens.is_none() {
                    tokens = Some(self.tokenizer.encode_with_ranges(&rendered.text)?);
                }
                let tokens = tokens.as_ref().expect("encoded above");
                left_out.push(self.ended(tokens, &rendered.text, &turn, index)?.text);
            }
        }
        let answer = marked.last_mark.unwrap_or(marked.ids.len());
        let mut encoded =
            Encoded { input_ids: marked.ids, labelled: marked.mask, answer, prompt: None, notes };
        if let Some(tokens) = tokens {
            encoded.leave_out(&tokens, &left_out);
        }
        Ok(encoded)
    }

    fn ended(&self, tokens: &Tokens, text: &str, turn: &Turn, index: usize) -> Result<Answer, Error> {
        ended(self.tokenizer, tokens, text, turn).ok_or_else(|| {
            Error::ChatTemplate(format!(
                "expected a special token that ends turn {}, found none before the next turn",
                index + 1
            ))
        })
    }

    /// Puts the beginning-of-sequence token first, unless it is there.
    fn begin(&self, encoded: &mut Encoded) {
        let first = encoded.input_ids.first().copied();
        if let Some(bos) = self.bos
            && first != Some(bos)
        {
            encoded.input_ids.insert(0, bos);
            encoded.labelled.insert(0, false);
            encoded.answer += 1;
        }
        let first = encoded.input_ids.first().copied();
        encoded.notes.is_without_bos = self.expected_bos.is_some() && self.expected_bos != first;
        if encoded.notes.is_without_bos && !self.warned.without_bos.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                "tokenizer `{}` begins a text with its `bos_token`, and the template writes none: sequences are without it\nhint: \
                 `data.bos = \"as_tokenizer\"` begins with it, `data.bos = \"never\"` says that this is meant",
                self.tokenizer.path().display()
            );
        }
        if encoded.notes.has_shorter_prompt && !self.warned.shorter_prompt.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                "the chat template's generation prompt says more than the answers begin with in conversations: answers \
                 are learnt, and prompts end, where the two part"
            );
        }
    }
}

impl Encoded {
    /// Unlabels the tokens of parts of the text.
    fn leave_out(&mut self, tokens: &Tokens, parts: &[Range<usize>]) {
        self.notes.left_out = u64::try_from(parts.len()).expect("a length fits 64 bits");
        let outside = held(tokens, parts).mask;
        self.labelled.iter_mut().zip(outside).for_each(|(labelled, outside)| *labelled &= !outside);
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
        Content::Completion { prompt, completion } => Conversation::short(prompt, completion),
        Content::Document(text) => Conversation::short("", text),
        Content::Tokens { .. } => Conversation::short("", ""),
    })
}

fn in_row(row: &Row, error: Error) -> Error {
    row.place.error(error.to_string(), "change the row or the template; of a template with `{% generation %}`, `mask = \"generation\"` reads the marks")
}
