//! The errors of this crate: each names the place, what was expected, what was found and, where known, a hint.

use std::fmt::Display;

use softshard_model::OutOfMemory;

/// A scorer that cannot be opened, or texts that cannot be scored.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A folder is no scorer of the kind, or a text is none that it scores.
    #[error("{place}: expected {expected}, found {found}{}", hint.map(|hint| format!("\nhint: {hint}")).unwrap_or_default())]
    Bad {
        /// File, folder, key or text.
        place: String,
        /// What is asked for there.
        expected: String,
        /// What is there.
        found: String,
        /// What to do about it.
        hint: Option<&'static str>,
    },
    /// Configuration or weights cannot be read.
    #[error(transparent)]
    Model(#[from] softshard_model::Error),
    /// The device has no memory for a single text.
    #[error("the device is out of memory: {0}")]
    OutOfMemory(#[from] OutOfMemory),
    /// What asks a judge, a chat template or its tokenizer, refuses a text.
    #[error("judge: {0}")]
    Prompt(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// Somebody asked for a stop.
    #[error("interrupted")]
    Interrupted,
}

impl Error {
    pub(crate) fn bad(place: impl Display, expected: impl Display, found: impl Display) -> Self {
        let (place, expected, found) = (place.to_string(), expected.to_string(), found.to_string());
        Self::Bad { place, expected, found, hint: None }
    }

    /// The same error with a hint, where it carries one.
    #[must_use]
    pub(crate) fn hint(mut self, text: &'static str) -> Self {
        if let Self::Bad { hint, .. } = &mut self {
            *hint = Some(text);
        }
        self
    }
}
