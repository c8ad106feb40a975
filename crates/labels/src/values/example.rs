//! What a held-out sequence was made from, for whoever answers its prompt.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::error::Error;
use super::sequence::Sequence;

/// The row behind a held-out sequence: where its prompt ends, and what an answer is compared with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Example {
    /// Tokens of the sequence that are the prompt: its first ones.
    pub prompt_tokens: usize,
    /// The instruction; the last message of the user in a conversation.
    pub instruction: String,
    /// The text that the instruction is about; empty if there is none.
    pub context: String,
    /// The reference answer, whole, also where the sequence was cut.
    pub reference: String,
    /// The row's category, if it has one.
    pub category: Option<String>,
    /// What the row says is true, if it does.
    pub facts: Option<Value>,
}

impl Example {
    /// Most bytes of an example as text: more is no prompt that anybody answers.
    pub const MAX_BYTES: usize = 64 << 20;

    /// The prompt's token ids: those with which the sequence begins in training.
    ///
    /// # Panics
    /// If the example is not of this sequence, which writer and reader refuse.
    pub fn prompt<'a>(&self, sequence: &'a Sequence) -> &'a [i32] {
        &sequence.input_ids[..self.prompt_tokens]
    }

    /// As it stands in a shard.
    pub(crate) fn to_text(&self, sequence: &Sequence) -> Result<String, Error> {
        self.check(sequence.input_ids.len())?;
        let text = serde_json::to_string(self).expect("an example has text keys and finite numbers");
        if text.len() > Self::MAX_BYTES {
            return Err(Error::bad("example", format_args!("at most {} bytes", Self::MAX_BYTES), text.len()));
        }
        Ok(text)
    }

    /// From a shard, for a sequence of so many tokens.
    pub(crate) fn from_text(text: &str, tokens: usize) -> Result<Self, Error> {
        let example: Self = serde_json::from_str(text)
            .map_err(|error| Error::bad("example", "the JSON of an example", error))?;
        example.check(tokens)?;
        Ok(example)
    }

    fn check(&self, tokens: usize) -> Result<(), Error> {
        if self.prompt_tokens <= tokens {
            return Ok(());
        }
        let expected = format!("at most the {tokens} tokens of the sequence");
        Err(Error::bad("example prompt_tokens", expected, self.prompt_tokens))
    }
}
