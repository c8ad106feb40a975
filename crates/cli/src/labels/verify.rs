//! `softshard labels verify`.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use softshard_labels::{Error, ReadLimits, verify as verify_labels};

use crate::{
    numbers::{count, number},
    recipe::local,
    session::Session,
    stdout::print_json,
};

/// A label dataset, and how to speak of it.
#[derive(Args)]
pub(crate) struct Dataset {
    /// Folder of the labels, which holds manifest.json
    #[arg(value_parser = local)]
    pub(super) dir: PathBuf,
    /// Print JSON
    #[arg(long)]
    pub(super) json: bool,
}

/// Prints all that is wrong.
pub(super) fn verify(Dataset { dir, json }: &Dataset, session: &Session) -> Result<()> {
    let found = verify_labels(dir, &ReadLimits::default(), session.stop, &session.observer())?;
    if *json {
        print_json(&found)?;
    } else {
        for problem in &found.problems {
            println!("{problem}");
        }
    }
    if !found.problems.is_empty() {
        let place = format!("`{}`", dir.display());
        let count = match found.problems.len() {
            1 => "1 problem".to_owned(),
            count => format!("{} problems", number(count)),
        };
        let hint = "copy the shards that are named again, or write them again";
        return Err(Error::bad(place, "sound labels", count).hint(hint).into());
    }
    if !json {
        println!(
            "sound: {} shards, {} sequences, {} labelled tokens, {} bytes; every hash and every row is right",
            number(found.shards),
            count(found.rows),
            count(found.labelled_tokens),
            count(found.bytes)
        );
    }
    Ok(())
}
