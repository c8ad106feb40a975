//! Contexts and continuations as tokens, by the rules of lm-evaluation-harness 0.4.13 and of FACTOR.

use softshard_model::DecoderConfig;
use softshard_prepare::{Error, Tokenizer};

/// A continuation behind its context, in tokens. Both have at least one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Pair {
    /// What of the context the model sees.
    pub(crate) context: Vec<i32>,
    /// What is scored.
    pub(crate) continuation: Vec<i32>,
    /// Whether the context lost its beginning.
    pub(crate) is_cut: bool,
}

/// Why texts are no pair.
#[derive(Debug)]
pub(crate) enum NoPair {
    /// What was expected, what was found and what to do.
    Texts(String, &'static str),
    Tokenizer(Error),
}

impl From<Error> for NoPair {
    fn from(error: Error) -> Self {
        Self::Tokenizer(error)
    }
}

/// Makes tokens of texts for one model.
pub(crate) struct Encoder<'a> {
    tokenizer: &'a Tokenizer,
    /// The beginning-of-sequence token, where texts begin with it, and how it is spelled.
    bos: Option<(i32, String)>,
    /// Stands for a context without text: the beginning-of-sequence token, or else the end-of-sequence token.
    prefix: Option<i32>,
    /// Positions that the model has: `max_position_embeddings`, as lm-evaluation-harness reads it.
    window: usize,
}

impl<'a> Encoder<'a> {
    /// For a model of this shape.
    ///
    /// # Errors
    /// The beginning-of-sequence token has no text.
    pub(crate) fn new(tokenizer: &'a Tokenizer, config: &DecoderConfig) -> Result<Self, Error> {
        let bos = tokenizer.bos().filter(|_| tokenizer.adds_bos());
        let bos = bos.map(|bos| Ok::<_, Error>((bos, tokenizer.decode_all(&[bos])?))).transpose()?;
        let prefix = tokenizer.bos().or(tokenizer.eos());
        Ok(Self { tokenizer, bos, prefix, window: config.max_position_embeddings })
    }

    /// As lm-evaluation-harness has it: white space at the end of the context goes to the continuation; the continuation is what
    /// both together have behind the tokens of the context; an empty context is the prefix token; the model reads the last
    /// `window` tokens before the one that it predicts last.
    ///
    /// # Errors
    /// A side has no token, or the continuation is longer than the window.
    pub(crate) fn pair(&self, context: &str, continuation: &str) -> Result<Pair, NoPair> {
        let (context, continuation) = if context.is_empty() {
            self.behind_nothing(continuation)?
        } else {
            let text = context.trim_end_matches(is_python_space);
            let ids = self.encode(text)?;
            let whole = self.encode(&[context, continuation].concat())?;
            let continuation = whole.get(ids.len()..).unwrap_or_default().to_vec();
            (ids, continuation)
        };
        self.fitted(context, continuation, self.window + 1)
    }

    /// As FACTOR has it: no special tokens; the continuation is as many of the last tokens as it has alone; the beginning is left
    /// out where all are more than the window.
    ///
    /// # Errors
    /// As [`Encoder::pair`].
    pub(crate) fn last_tokens(&self, context: &str, continuation: &str) -> Result<Pair, NoPair> {
        let mut whole = self.tokenizer.encode(&[context, continuation].concat())?;
        let count = self.tokenizer.encode(continuation)?.len().min(whole.len());
        let continuation = whole.split_off(whole.len() - count);
        self.fitted(whole, continuation, self.window)
    }

    fn behind_nothing(&self, continuation: &str) -> Result<(Vec<i32>, Vec<i32>), NoPair> {
        let mut ids = self.encode(continuation)?;
        let Some(prefix) = self.prefix else {
            let problem =
                "expected a context, as the tokenizer has no token that begins or ends a text, found none";
            return Err(NoPair::Texts(
                problem.to_owned(),
                "use a tokenizer that has a `bos_token` or `eos_token`",
            ));
        };
        if ids.first() == Some(&prefix) {
            ids.remove(0);
        }
        Ok((vec![prefix], ids))
    }

    /// Leaves the beginning of the context out where both are more than `most` tokens.
    fn fitted(&self, mut context: Vec<i32>, continuation: Vec<i32>, most: usize) -> Result<Pair, NoPair> {
        let refuse = |problem: String, hint| Err(NoPair::Texts(problem, hint));
        if continuation.is_empty() {
            return refuse(
                "expected a choice of at least one token, found none".to_owned(),
                "is a choice empty?",
            );
        }
        if context.is_empty() {
            let problem = "expected a context of at least one token, found none".to_owned();
            return refuse(problem, "is the context blank?");
        }
        if continuation.len() >= most {
            let (expected, found) = (most - 1, continuation.len());
            let problem =
                format!("expected choices of at most {expected} tokens, which the model sees, found {found}");
            return refuse(problem, "leave the row out, or evaluate a model with a longer context");
        }
        let extra = (context.len() + continuation.len()).saturating_sub(most);
        context.drain(..extra);
        Ok(Pair { context, continuation, is_cut: extra > 0 })
    }

    /// With the beginning-of-sequence token where the tokenizer adds it, unless the text spells it.
    fn encode(&self, text: &str) -> Result<Vec<i32>, Error> {
        let mut ids = self.tokenizer.encode(text)?;
        if let Some((bos, spelled)) = &self.bos
            && !text.starts_with(spelled.as_str())
        {
            ids.insert(0, *bos);
        }
        Ok(ids)
    }
}

/// What Python's `str.isspace` says.
fn is_python_space(letter: char) -> bool {
    letter.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&letter)
}
