//! `softshard labels export`.

use std::{
    io::{BufWriter, Write},
    path::{Path, PathBuf},
};

use anyhow::Result;
use clap::{Args, ValueEnum};
use softshard_labels::{LabelDataset, export_hf, export_jsonl, write_jsonl};

use crate::{numbers::count, session::Session, stdout::Stdout};

/// Arguments of `labels export`.
#[derive(Args)]
pub(crate) struct Export {
    /// Folder of the labels, which holds manifest.json
    pub(crate) dir: PathBuf,
    /// What to write
    #[arg(long, value_enum)]
    pub(crate) to: To,
    /// New folder (hf) or file (jsonl; - is stdout)
    #[arg(short, long, value_name = "PATH")]
    pub(crate) output: PathBuf,
}

impl Export {
    /// Whether nothing is written but to standard output.
    pub(crate) fn is_to_stdout(&self) -> bool {
        self.to == To::Jsonl && self.output == Path::new("-")
    }
}

/// What others read.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum To {
    /// A folder for `datasets.load_dataset`: input_ids, labels with -100, the teacher's entries as lists in lists
    Hf,
    /// One JSON object per sequence with all that the labels hold; `import --from softshard` reads it back
    Jsonl,
}

/// Exports and says where to.
pub(super) fn export(options: &Export, session: &Session) -> Result<()> {
    let (stop, observer) = (session.stop, session.observer());
    let dataset = LabelDataset::open(&options.dir)?;
    match options.to {
        To::Hf => export_hf(&dataset, &options.output, stop, &observer)?,
        To::Jsonl if options.is_to_stdout() => {
            let mut to = BufWriter::new(Stdout);
            write_jsonl(&dataset, &mut to, stop, &observer)?;
            to.flush()?;
            return Ok(());
        }
        To::Jsonl => export_jsonl(&dataset, &options.output, stop, &observer)?,
    }
    drop(observer);
    println!("exported {} sequences: {}", count(dataset.manifest().rows), options.output.display());
    Ok(())
}
