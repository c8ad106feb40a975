//! A scorer as it was asked for: an encoder with its rules, or a decoder that is asked.

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use anyhow::Result;
use softshard_model::Decoder;
use softshard_prepare::{Conversation, Message, Tokenizer};
use softshard_scorers::{
    Asked, Judge, Kind, OpenOptions, Pair, SYSTEM_PROMPT, Scorer, Verdict, snapshot, user_prompt,
};

use super::Which;
use crate::device;

/// A scorer with all that it needs.
pub(crate) struct Opened {
    model: Model,
    /// The folder of its weights.
    pub(crate) folder: PathBuf,
    /// The folder of its tokenizer.
    pub(crate) tokenizer: PathBuf,
}

#[expect(clippy::large_enum_variant, reason = "one a process")]
enum Model {
    Encoder(Scorer),
    Judge { decoder: Decoder, tokenizer: Tokenizer, yes: Vec<i32> },
}

impl Opened {
    /// # Errors
    /// There is no such device; the folder is no scorer.
    pub(crate) fn open(which: &Which) -> Result<Self> {
        let device = device::open(&which.device)?;
        let folder = snapshot(&which.folder, which.revision.as_deref())?;
        let tokenizer = which.tokenizer.clone().unwrap_or_else(|| folder.clone());
        let model = if which.kind == Some(Kind::Judge) {
            let tokenizer = judge_tokenizer(&tokenizer)?;
            let yes = says_yes(&tokenizer)?;
            Model::Judge { decoder: Decoder::load(&folder, &device)?, tokenizer, yes }
        } else {
            let options = OpenOptions { kind: which.kind, tokenizer: Some(tokenizer.clone()) };
            Model::Encoder(Scorer::open(&folder, &options, &device)?)
        };
        Ok(Self { model, folder, tokenizer })
    }

    pub(crate) fn kind(&self) -> Kind {
        match &self.model {
            Model::Encoder(scorer) => scorer.kind(),
            Model::Judge { .. } => Kind::Judge,
        }
    }

    /// # Errors
    /// As [`Scorer::score`].
    pub(crate) fn score(&self, pairs: &[Pair<'_>], stop: &AtomicBool) -> Result<Vec<Verdict>> {
        Ok(match &self.model {
            Model::Encoder(scorer) => scorer.score(pairs, stop)?,
            Model::Judge { decoder, tokenizer, yes } => Judge {
                decoder,
                count: &|text| Ok(tokenizer.encode(text)?.len()),
                prompt: &|document, claim| prompt(tokenizer, document, claim),
                yes,
                logits: &softshard_losses::logits,
            }
            .score(pairs, stop)?,
        })
    }
}

fn judge_tokenizer(path: &Path) -> Result<Tokenizer> {
    let tokenizer = Tokenizer::load(path)?;
    if tokenizer.chat_template().is_none() {
        let place = format!("`{}`", tokenizer.path().display());
        let error =
            softshard_labels::Error::bad(place, "a chat template, with which a judge is asked", "none");
        return Err(error.hint("a judge is a model that follows instructions").into());
    }
    Ok(tokenizer)
}

fn prompt(tokenizer: &Tokenizer, document: &str, claim: &str) -> Asked<Vec<i32>> {
    let user = user_prompt(document, claim);
    let messages = vec![Message::new("system", SYSTEM_PROMPT), Message::new("user", &user)];
    let conversation = Conversation { messages, ..Conversation::default() };
    let template = tokenizer.chat_template().ok_or("expected a chat template, found none")?;
    Ok(tokenizer.encode(&template.render(&conversation, 2, true)?.text)?)
}

/// Tokens that are `yes` in any case, white space around it not counted.
fn says_yes(tokenizer: &Tokenizer) -> Result<Vec<i32>> {
    let ids = 0..i32::try_from(tokenizer.vocab_size()).unwrap_or(i32::MAX);
    let is_yes =
        |id: &i32| tokenizer.decode(&[*id]).is_ok_and(|text| text.trim().eq_ignore_ascii_case("yes"));
    let yes: Vec<i32> = ids.filter(is_yes).collect();
    if yes.is_empty() {
        let place = format!("`{}`", tokenizer.path().display());
        let error = softshard_labels::Error::bad(place, "a token that says yes", "none");
        return Err(error.hint("a judge answers with one token: use another model").into());
    }
    Ok(yes)
}
