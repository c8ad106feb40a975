//! `softshard scorer`: how well documents support answers.

mod check;
mod identity;
mod opened;
mod score;
mod validate;

use std::path::PathBuf;

use anyhow::Result;
use clap::{Args, Subcommand};
use softshard_scorers::Kind;

use crate::session::Session;
use check::Check;
use score::Score;
use validate::Validate;

/// What a scorer can be asked for.
#[derive(Subcommand)]
pub(crate) enum ScorerCommand {
    /// Compare a scorer with the scores that its authors published: pass or fail
    Check(Check),
    /// How well a scorer agrees with people, on answers that they judged
    Validate(Validate),
    /// Score answers: JSONL of document and answer in, JSONL of scores and unsupported spans out; goes on where it was interrupted
    Score(Score),
}

/// Which scorer.
#[derive(Args)]
pub(crate) struct Which {
    /// Scorer folder, or a repository in the Hub's cache (models--OWNER--NAME)
    folder: PathBuf,
    /// Whose rules: lettuce-detect, hhem, mini-check, align-score, fact-kb, nli or judge [default: as its architecture says]
    #[arg(long)]
    kind: Option<Kind>,
    /// Folder with its tokenizer.json [default: the scorer's]
    #[arg(long, value_name = "FOLDER")]
    tokenizer: Option<PathBuf>,
    /// Branch, tag or commit of a repository in the Hub's cache [default: main]
    #[arg(long)]
    revision: Option<String>,
    /// Where tensors live: cpu, cuda:0 or wgpu:0
    #[arg(long, default_value = "cpu")]
    device: String,
}

/// Runs one of the commands.
///
/// # Errors
/// What is no scorer, and texts that are none (exit code 3), which is also how `check` ends when it finds other scores.
pub(crate) fn run(command: &ScorerCommand, session: &Session) -> Result<()> {
    match command {
        ScorerCommand::Check(options) => check::check(options, session),
        ScorerCommand::Validate(options) => validate::validate(options, session),
        ScorerCommand::Score(options) => score::score(options, session),
    }
}
