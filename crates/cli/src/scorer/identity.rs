//! What scores are made of: they are not mixed with those of another scorer or other texts.

use std::path::{Path, PathBuf};

use anyhow::Result;
use fs_err as fs;
use serde::{Deserialize, Serialize};
use softshard_labels::Error;
use softshard_model::{config_blake3, weights_blake3};

use super::opened::Opened;

/// Digests of a scorer and of what it scores.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Identity {
    format: String,
    kind: String,
    config: String,
    weights: String,
    tokenizer: String,
    input: String,
}

/// Format name and version.
const FORMAT: &str = "softshard-scores-1";

impl Identity {
    /// # Errors
    /// A file cannot be read.
    pub(crate) fn of(scorer: &Opened, input: &Path) -> Result<Self> {
        Ok(Self {
            format: FORMAT.to_owned(),
            kind: scorer.kind().name().to_owned(),
            config: config_blake3(&scorer.folder)?,
            weights: weights_blake3(&scorer.folder)?,
            tokenizer: digest(&scorer.tokenizer.join("tokenizer.json"))?,
            input: digest(input)?,
        })
    }

    /// Where it stands beside scores.
    pub(crate) fn file(scores: &Path) -> PathBuf {
        let mut name = scores.as_os_str().to_owned();
        name.push(".made-from.json");
        name.into()
    }

    /// Compares scores that are there with these, or says what the first ones will be made of.
    ///
    /// # Errors
    /// Scores are there of something else, or without a word of what.
    pub(crate) fn check(&self, scores: &Path) -> Result<()> {
        let file = Self::file(scores);
        if !file.exists() {
            if scores.exists() {
                return Err(Error::bad(
                    format!("`{}`", scores.display()),
                    format!("no file, or `{}` beside it", file.display()),
                    "scores of something unknown",
                )
                .hint("name another output, or remove this one")
                .into());
            }
            let temporary = file.with_extension("json.new");
            fs::write(&temporary, serde_json::to_string_pretty(self)? + "\n")?;
            fs::File::open(&temporary)?.sync_all()?;
            return Ok(fs::rename(&temporary, &file)?);
        }
        let text = fs::read_to_string(&file)?;
        let found: Self = serde_json::from_str(&text).map_err(|error| {
            Error::bad(format!("`{}`", file.display()), "what scores were made of", error)
        })?;
        let parts = |one: &Self| {
            let Self { format, kind, config, weights, tokenizer, input } = one;
            [
                ("format", format),
                ("kind", kind),
                ("config", config),
                ("weights", weights),
                ("tokenizer", tokenizer),
                ("input", input),
            ]
            .map(|(name, value)| (name, value.clone()))
        };
        for ((name, expected), (_, found)) in parts(self).into_iter().zip(parts(&found)) {
            if expected != found {
                return Err(Error::bad(
                    format!("`{}`: `{name}`", file.display()),
                    expected,
                    found,
                )
                .hint("these are scores of another scorer or of other texts: name another output, or remove both files")
                .into());
            }
        }
        Ok(())
    }
}

fn digest(file: &Path) -> Result<String> {
    let mut hasher = blake3::Hasher::new();
    hasher.update_reader(fs::File::open(file)?)?;
    Ok(hasher.finalize().to_hex().to_string())
}
