//! Texts to token ids, as the scorers' tokenizers make them of one text or of two.

use std::path::{Path, PathBuf};

use tokenizers::utils::truncation::{TruncationParams, TruncationStrategy};
use tokenizers::{Encoding, Tokenizer};

use crate::Error;

/// Three times the largest tokenizer that is known.
const MAX_BYTES: u64 = 100 << 20;

/// Special tokens and a few more: what reads fewer tokens is no scorer.
const LEAST_LIMIT: usize = 16;

/// What is cut off two texts that are too long together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cuts {
    /// The end of the first one.
    First,
    /// The end of the longer one, token by token.
    Longest,
}

/// A tokenizer and the most tokens that a scorer reads.
pub(crate) struct TextTokenizer {
    inner: Tokenizer,
    file: PathBuf,
    /// Ids are below it.
    vocabulary: usize,
    /// Tokens of a text; absent where there may be any number.
    limit: Option<usize>,
}

/// Ids of a text or of two, with all special tokens.
pub(crate) struct Encoded {
    pub(crate) ids: Vec<u32>,
    /// Tokens of the second text that have characters of it.
    pub(crate) answer: Vec<AnswerToken>,
    /// Tokens that were cut off.
    pub(crate) cut: usize,
}

/// A token of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct AnswerToken {
    /// Its place among the ids.
    pub(crate) place: usize,
    /// Its first character, counted from the beginning of the answer.
    pub(crate) start: usize,
    /// One past its last character.
    pub(crate) end: usize,
}

impl TextTokenizer {
    /// Reads `tokenizer.json` of a folder for a model of so many ids, which reads at most `limit` tokens.
    ///
    /// # Errors
    /// There is none, it is broken, or it is that of a larger vocabulary.
    pub(crate) fn load(
        folder: &Path,
        limit: Option<usize>,
        cuts: Cuts,
        vocabulary: usize,
    ) -> Result<Self, Error> {
        const HINT: &str = "`--tokenizer FOLDER` names the folder of another model with the same tokenizer: HHEM-2.1-Open has that of \
                            google/flan-t5-base, FactKB that of roberta-base";
        let file = folder.join("tokenizer.json");
        if !file.exists() {
            let found = if folder.is_dir() { "no such file" } else { "no such folder" };
            return Err(Error::bad(format!("`{}`", file.display()), "a tokenizer", found).hint(HINT));
        }
        if let Some(limit) = limit.filter(|limit| *limit < LEAST_LIMIT) {
            let expected = format!("a model that reads at least {LEAST_LIMIT} tokens");
            return Err(Error::bad(format!("tokenizer `{}`", file.display()), expected, limit));
        }
        let text = softshard_model::read_text(&file, MAX_BYTES)?;
        let bad = |error: tokenizers::Error| {
            Error::bad(format!("`{}`", file.display()), "a tokenizer of Hugging Face", error)
        };
        let mut inner: Tokenizer = text.parse().map_err(bad)?;
        inner.with_padding(None);
        let strategy = match cuts {
            Cuts::First => TruncationStrategy::OnlyFirst,
            Cuts::Longest => TruncationStrategy::LongestFirst,
        };
        let truncation =
            limit.map(|max_length| TruncationParams { max_length, strategy, ..TruncationParams::default() });
        inner.with_truncation(truncation).map_err(bad)?;
        Ok(Self { inner, file, vocabulary, limit })
    }

    /// Whether a special token is known by this name.
    pub(crate) fn has(&self, token: &str) -> bool {
        self.inner.token_to_id(token).is_some()
    }

    pub(crate) fn file(&self) -> &Path {
        &self.file
    }

    /// # Errors
    /// The tokenizer has no token for a part of the text, or one that the model has not.
    pub(crate) fn one(&self, text: &str) -> Result<Encoded, Error> {
        let encoding = self.inner.encode_char_offsets(text, true).map_err(|error| self.refused(&error))?;
        self.checked(&encoding)
    }

    /// Two texts; none where the second alone has too many tokens.
    ///
    /// # Errors
    /// As [`one`](Self::one).
    pub(crate) fn two(&self, first: &str, second: &str) -> Result<Option<Encoded>, Error> {
        match self.inner.encode_char_offsets((first, second), true) {
            Ok(encoding) => self.checked(&encoding).map(Some),
            Err(error) if error.to_string().starts_with("Truncation error") => Ok(None),
            Err(error) => Err(self.refused(&error)),
        }
    }

    /// Tokens of a text, special ones not counted; not more than the scorer reads.
    ///
    /// # Errors
    /// As [`one`](Self::one).
    pub(crate) fn count(&self, text: &str) -> Result<usize, Error> {
        Ok(self.inner.encode_fast(text, false).map_err(|error| self.refused(&error))?.len())
    }

    fn refused(&self, error: &tokenizers::Error) -> Error {
        Error::bad(format!("`{}`", self.file.display()), "tokens for every text", error)
    }

    fn checked(&self, encoding: &Encoding) -> Result<Encoded, Error> {
        let ids = encoding.get_ids().to_vec();
        let foreign = ids.iter().find(|id| usize::try_from(**id).is_ok_and(|id| id >= self.vocabulary));
        if let Some(id) = foreign {
            let expected = format!("ids below {}, which the model has", self.vocabulary);
            return Err(Error::bad(format!("`{}`", self.file.display()), expected, id)
                .hint("this is the tokenizer of another model"));
        }
        let most = self.limit.unwrap_or(usize::MAX);
        if ids.is_empty() || ids.len() > most {
            let expected = format!("1 to {most} tokens for a text");
            return Err(Error::bad(format!("`{}`", self.file.display()), expected, ids.len()));
        }
        let tokens = encoding.get_sequence_ids().into_iter().zip(encoding.get_offsets()).enumerate();
        let answer = tokens.filter_map(|(place, (sequence, &(start, end)))| {
            (sequence == Some(1) && start < end).then_some(AnswerToken { place, start, end })
        });
        let kept = |encoding: &Encoding| {
            encoding.get_special_tokens_mask().iter().filter(|&&is_special| is_special == 0).count()
        };
        // Of two texts each part that was cut off stands beside the other text.
        let cut = encoding.get_overflowing().iter().map(kept).sum();
        Ok(Encoded { answer: answer.collect(), ids, cut })
    }
}
