//! Whether two tokenizers give the same ids, where both are at hand.

use std::fmt::Display;
use std::path::Path;

use serde::Deserialize;
use serde_json::Value;
use softshard_labels::{Error as LabelsError, OwnTokenizer};

use crate::no_tokenizer::has_tokenizer;
use crate::{Error, Tokenizer};

/// How words are split: what of the model in `tokenizer.json` is not its tokens.
#[derive(Debug, PartialEq)]
pub(crate) struct Splitting {
    /// Kind and settings, as JSON.
    settings: serde_json::Map<String, Value>,
    /// Merges by rank, or scores by id.
    ranks: Vec<Value>,
}

#[derive(Deserialize)]
struct File {
    model: serde_json::Map<String, Value>,
}

impl Splitting {
    /// Reads a `tokenizer.json`, of which there are the bytes.
    pub(crate) fn read(path: &Path, bytes: &[u8]) -> Result<Self, Error> {
        let file: File = serde_json::from_slice(bytes).map_err(|error| Error::tokenizer(path, error))?;
        let mut settings = file.model;
        let scores = match settings.remove("vocab") {
            Some(Value::Array(tokens)) => {
                tokens.into_iter().map(|token| token.get(1).cloned().unwrap_or_default()).collect()
            }
            _ => Vec::new(),
        };
        let ranks = match settings.remove("merges") {
            Some(Value::Array(merges)) => merges.into_iter().map(pair).collect(),
            _ => scores,
        };
        // Written or not, they mean the same.
        settings.retain(|_, value| !matches!(value, Value::Null | Value::Bool(false)));
        settings.retain(|_, value| value.as_str() != Some(""));
        Ok(Self { settings, ranks })
    }

    pub(crate) fn blake3(&self) -> String {
        // By name, whatever the order of the file.
        let settings: std::collections::BTreeMap<_, _> = self.settings.iter().collect();
        let json = serde_json::to_vec(&(settings, &self.ranks)).expect("JSON that was read can be written");
        blake3::hash(&json).to_hex().to_string()
    }
}

/// Older files write a merge as one text with a space in it.
fn pair(merge: Value) -> Value {
    match merge.as_str().and_then(|text| text.split_once(' ')) {
        Some((left, right)) => Value::Array(vec![left.into(), right.into()]),
        None => merge,
    }
}

/// All tokens of a tokenizer by id.
pub(crate) fn tokens(inner: &tokenizers::Tokenizer) -> Vec<(u32, String)> {
    let mut tokens: Vec<(u32, String)> =
        inner.get_vocab(true).into_iter().map(|(token, id)| (id, token)).collect();
    tokens.sort_unstable();
    tokens
}

impl Tokenizer {
    /// The tokenizer as a stage compares it with the one that made its data.
    pub fn own(&self) -> OwnTokenizer {
        OwnTokenizer::new(self.fingerprint().clone(), tokens(&self.inner), self.stop_ids().to_vec())
    }

    /// Refuses a model folder whose own tokenizer, if it has one, gives other ids than this one. One with the same tokens and more of
    /// its own is accepted, which is logged.
    ///
    /// # Errors
    /// Names the first difference; a folder whose tokenizer has no `tokenizer.json`; one that cannot be read.
    pub fn expect_ids_of_model(&self, model: &Path) -> Result<(), Error> {
        if !has_tokenizer(model)? {
            return Ok(());
        }
        let own = Self::load(model)?;
        let place = format!("tokenizer of model `{}`", model.display());
        if let Some((what, [expected, found])) = self.first_difference(&own)? {
            let expected = format!("as in the recipe's tokenizer {expected}");
            let hint = "the ids of the data mean something else to this model: set `tokenizer.path` to its folder and prepare again";
            return Err(LabelsError::bad(format!("{place}: {what}"), expected, found).hint(hint).into());
        }
        let more = tokens(&own.inner).into_iter().filter(|(id, _)| *id >= self.vocab_size());
        let more: Vec<(u32, String)> = more.collect();
        if let Some((id, token)) = more.first() {
            tracing::info!(
                "{place}: the same {} ids as the recipe's tokenizer, and {} more, from `{token}` ({id}) on: sequences do not have \
                 them, their texts stay in several tokens",
                self.vocab_size(),
                more.len()
            );
        }
        Ok(())
    }

    /// The first thing in which `other` splits texts otherwise or has another token for an id of this one: its name, and what both have.
    fn first_difference(&self, other: &Self) -> Result<Option<(String, [String; 2])>, Error> {
        let theirs: std::collections::HashMap<u32, String> = tokens(&other.inner).into_iter().collect();
        for (id, token) in tokens(&self.inner) {
            let found = theirs.get(&id);
            if found != Some(&token) {
                let found = found.map_or_else(|| "none".to_owned(), |found| format!("`{found}`"));
                return Ok(Some((format!("id {id}"), [format!("`{token}`"), found])));
            }
        }
        let part = |tokenizer: &Self, name: &str| -> Result<String, Error> {
            let json = match name {
                "normalizer" => serde_json::to_string(&tokenizer.inner.get_normalizer()),
                _ => serde_json::to_string(&tokenizer.inner.get_pre_tokenizer()),
            };
            json.map_err(|error| Error::tokenizer(tokenizer.path(), error))
        };
        for name in ["normalizer", "pre_tokenizer"] {
            let both = [part(self, name)?, part(other, name)?];
            if both[0] != both[1] {
                return Ok(Some((name.to_owned(), both.map(shown))));
            }
        }
        if self.fingerprint().merges_blake3 == other.fingerprint().merges_blake3 {
            return Ok(None);
        }
        let read = |tokenizer: &Self| Splitting::read(tokenizer.path(), &fs_err::read(tokenizer.path())?);
        let [ours, theirs] = [read(self)?, read(other)?];
        let settings = [&ours, &theirs].map(|one| Value::Object(one.settings.clone()));
        if settings[0] != settings[1] {
            return Ok(Some(("model".to_owned(), settings.map(shown))));
        }
        let at = (0..ours.ranks.len().max(theirs.ranks.len()))
            .find(|rank| ours.ranks.get(*rank) != theirs.ranks.get(*rank));
        let at = at.unwrap_or(0);
        let rank =
            |one: &Splitting| one.ranks.get(at).map_or_else(|| "none".to_owned(), |rank| shown(rank.clone()));
        Ok(Some((format!("merge or score {at}"), [rank(&ours), rank(&theirs)])))
    }
}

/// The beginning of a text that may be long.
fn shown(text: impl Display) -> String {
    const SHOWN: usize = 160;
    let text = text.to_string();
    if text.chars().count() <= SHOWN { text } else { text.chars().take(SHOWN).chain(['…']).collect() }
}
