//! A tokenizer that is at hand, compared with one of which there is only the fingerprint.

use std::fmt::Display;
use std::ops::Deref;

use super::error::Error;
use super::tokenizer::Tokenizer;

/// A tokenizer that is at hand: its fingerprint and its tokens, which say whether data of another one mean the same to it.
///
/// A tokenizer with the same tokens and more of its own reads the data of the other: Qwen3's has 151,669, of which the first 151,665
/// are Qwen2.5's.
#[derive(Clone, Debug)]
pub struct OwnTokenizer {
    fingerprint: Tokenizer,
    /// By id.
    tokens: Vec<(u32, String)>,
    stop_ids: Vec<i32>,
}

impl OwnTokenizer {
    /// `tokens` are all of them with their ids, in any order; answers end at `stop_ids`.
    pub fn new(fingerprint: Tokenizer, mut tokens: Vec<(u32, String)>, stop_ids: Vec<i32>) -> Self {
        tokens.sort_unstable();
        Self { fingerprint, tokens, stop_ids }
    }

    /// BLAKE3 of tokens that are sorted by id, hexadecimal: `vocabulary_blake3` of a fingerprint.
    pub fn vocabulary_blake3<'a>(tokens: impl IntoIterator<Item = &'a (u32, String)>) -> String {
        let mut hasher = blake3::Hasher::new();
        for (id, token) in tokens {
            hasher.update(&id.to_le_bytes());
            hasher.update(&u64::try_from(token.len()).expect("a length fits 64 bits").to_le_bytes());
            hasher.update(token.as_bytes());
        }
        hasher.finalize().to_hex().to_string()
    }

    /// Whether ids of `data` stand for the same tokens here.
    pub fn has_tokens_of(&self, data: &Tokenizer) -> bool {
        if data.vocabulary_blake3 == self.vocabulary_blake3 && data.vocab_size == self.vocab_size {
            return true;
        }
        let shared = self.tokens.iter().filter(|(id, _)| *id < data.vocab_size);
        data.vocab_size <= self.vocab_size && Self::vocabulary_blake3(shared) == data.vocabulary_blake3
    }

    /// Refuses data at `place` whose ids mean something else here; logs what differs and does not matter.
    ///
    /// What matters is the tokens of all ids of the data, normaliser and pre-tokeniser, the merges where both say them, that answers
    /// stop at the end-of-sequence token of the data, and, where `with_template` says so, the chat template.
    ///
    /// # Errors
    /// [`Error::Bad`] naming every field that differs.
    pub fn expect_reads(
        &self,
        data: &Tokenizer,
        with_template: bool,
        place: impl Display,
    ) -> Result<(), Error> {
        let Some(difference) = self.difference(data) else { return Ok(()) };
        let is_same = |ours: &Option<String>, theirs: &Option<String>| {
            ours.as_ref().zip(theirs.as_ref()).is_none_or(|(ours, theirs)| ours == theirs)
        };
        let stops = data
            .special_ids
            .get("eos")
            .is_none_or(|eos| self.special_ids.get("eos") == Some(eos) || self.stop_ids.contains(eos));
        let reads = self.has_tokens_of(data)
            && data.normalizer_blake3 == self.normalizer_blake3
            && is_same(&self.merges_blake3, &data.merges_blake3)
            && stops
            && (!with_template || self.chat_template_blake3 == data.chat_template_blake3);
        if !reads {
            let hint = "use the tokenizer that the data was made with, or make the data again";
            let found = format_args!("another: {difference}");
            return Err(Error::bad(place, "the recipe's tokenizer", found).hint(hint));
        }
        let own = Tokenizer { merges_blake3: data.merges_blake3.clone(), ..self.fingerprint.clone() };
        if let Some(difference) = own.difference(data) {
            tracing::info!(
                "{place}: made with another tokenizer, whose ids all mean the same in the recipe's: {difference}"
            );
        }
        Ok(())
    }
}

impl Deref for OwnTokenizer {
    type Target = Tokenizer;

    fn deref(&self) -> &Tokenizer {
        &self.fingerprint
    }
}

impl From<Tokenizer> for OwnTokenizer {
    /// Of a tokenizer whose tokens are not at hand: it reads data of its own only.
    fn from(fingerprint: Tokenizer) -> Self {
        Self::new(fingerprint, Vec::new(), Vec::new())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own(tokens: &[&str]) -> OwnTokenizer {
        let tokens: Vec<(u32, String)> = (0..).zip(tokens.iter().map(|&token| token.to_owned())).collect();
        let fingerprint = Tokenizer {
            vocabulary_blake3: OwnTokenizer::vocabulary_blake3(&tokens),
            vocab_size: u32::try_from(tokens.len()).unwrap(),
            special_ids: [("eos".to_owned(), 1)].into(),
            normalizer_blake3: "n".to_owned(),
            chat_template_blake3: Some("t".to_owned()),
            merges_blake3: Some("m".to_owned()),
        };
        OwnTokenizer::new(fingerprint, tokens, vec![1])
    }

    fn problem(own: &OwnTokenizer, data: &Tokenizer, with_template: bool) -> String {
        own.expect_reads(data, with_template, "`labels`")
            .err()
            .map_or_else(String::new, |error| error.to_string())
    }

    #[test]
    fn a_tokenizer_with_more_tokens_reads_the_data_of_one_with_fewer() {
        let (few, more, other) = (own(&["a", "b"]), own(&["a", "b", "c"]), own(&["a", "x", "c"]));
        assert_eq!(problem(&more, &few, true), "");
        assert!(problem(&few, &more, true).contains("vocab_size: expected 2, found 3"));
        assert!(problem(&other, &few, true).contains("vocabulary_blake3: expected"));
        assert!(problem(&other, &more, true).contains("vocabulary_blake3: expected"));
    }

    #[test]
    fn what_matters_of_the_rest_is_refused_by_field() {
        let own = own(&["a", "b"]);
        let data = own.fingerprint.clone();
        let old = Tokenizer { merges_blake3: None, ..data.clone() };
        assert_eq!(problem(&own, &old, true), "");
        let merges = Tokenizer { merges_blake3: Some("x".to_owned()), ..data.clone() };
        assert!(problem(&own, &merges, true).contains("merges_blake3: expected \"m\", found \"x\""));
        let normalizer = Tokenizer { normalizer_blake3: "x".to_owned(), ..data.clone() };
        assert!(problem(&own, &normalizer, true).contains("normalizer_blake3"));
        let template = Tokenizer { chat_template_blake3: None, ..data.clone() };
        assert!(problem(&own, &template, true).contains("chat_template_blake3"));
        assert_eq!(problem(&own, &template, false), "");
        let eos = Tokenizer { special_ids: [("eos".to_owned(), 0)].into(), ..data.clone() };
        assert!(problem(&own, &eos, true).contains("special_ids.eos: expected 1, found 0"));
        let pad = Tokenizer { special_ids: [("eos".to_owned(), 1), ("pad".to_owned(), 0)].into(), ..data };
        assert_eq!(problem(&own, &pad, true), "");
    }
}
