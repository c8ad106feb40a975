//! The fingerprint of a tokenizer, which a label dataset carries and a student compares.

use std::{collections::BTreeMap, path::Path};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::error::Error;

/// What must be equal for token ids of two runs to mean the same.
///
/// Made by the stage that has the tokenizer; this crate only stores and compares it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Tokenizer {
    /// BLAKE3 of the vocabulary map, hexadecimal.
    pub vocabulary_blake3: String,
    /// Largest id + 1, added tokens included.
    #[schemars(range(min = 1, max = i32::MAX))]
    pub vocab_size: u32,
    /// Ids of `bos`, `eos`, `pad`, `unk`, where known.
    pub special_ids: BTreeMap<String, i32>,
    /// BLAKE3 of the normaliser and the pre-tokeniser, hexadecimal.
    pub normalizer_blake3: String,
    /// BLAKE3 of the chat template, hexadecimal, if there is one.
    pub chat_template_blake3: Option<String>,
    /// BLAKE3 of how words are split, hexadecimal: the kind of model, its merges, or the scores of its tokens. Data of older versions
    /// do not say it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub merges_blake3: Option<String>,
}

impl Tokenizer {
    /// Says which fields of `other` (found) differ from this one (expected), or `None` if none does.
    pub fn difference(&self, other: &Self) -> Option<String> {
        let differences = super::json::differences(self, other);
        (!differences.is_empty()).then(|| differences.join("; "))
    }

    /// Refuses a model with fewer ids than this tokenizer gives.
    ///
    /// # Errors
    /// [`Error::Bad`] naming the model and both sizes.
    pub fn expect_fits(&self, model: &Path, vocab_size: usize) -> Result<(), Error> {
        if usize::try_from(self.vocab_size).is_ok_and(|ids| ids <= vocab_size) {
            return Ok(());
        }
        let place = format!("tokenizer for model `{}`", model.display());
        Err(Error::bad(place, format_args!("at most the model's {vocab_size} ids"), self.vocab_size)
            .hint("the tokenizer belongs to another model"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_difference_names_the_fields() {
        let special_ids = BTreeMap::from([("eos".to_owned(), 2)]);
        let one = Tokenizer {
            vocabulary_blake3: "aa".to_owned(),
            vocab_size: 512,
            special_ids,
            normalizer_blake3: "bb".to_owned(),
            chat_template_blake3: None,
            merges_blake3: None,
        };
        assert_eq!(one.difference(&one), None);
        let mut other = Tokenizer { vocab_size: 513, ..one.clone() };
        other.special_ids.insert("eos".to_owned(), 3);
        assert_eq!(
            one.difference(&other).unwrap(),
            "special_ids.eos: expected 2, found 3; vocab_size: expected 512, found 513"
        );
    }
}
