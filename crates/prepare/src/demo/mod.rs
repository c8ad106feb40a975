//! Demo data whose answers can be checked exactly.
//!
//! A short article tells who did what, where, when and before how many people; beside it stands another event with
//! another person, place, day and number. The task is to say in one sentence what happened. A summary that names a
//! person, an event, a place, a day or a number which the article does not give for its main event is wrong, and
//! [`faithfulness`] says so without any model. About one article in four gives no number: then any number is made up.
//!
//! Several wordings of a summary are equally right and drawn evenly, so the distribution that a good teacher learns
//! is truly soft. The language is small enough for a model of half a million parameters.
//!
//! ```
//! use softshard_prepare::demo;
//! let row = demo::rows(7).next().unwrap();
//! assert!(demo::faithfulness(&row.facts, &row.response).faithful);
//! ```

mod article;
mod facts;
mod language;
mod tokenizer;

use std::collections::HashSet;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use crate::Error;

pub use facts::{Fact, Facts, Faithfulness, Happening, StatedFacts, Unparsable, faithfulness, stated_facts};
pub use tokenizer::train_tokenizer;

/// A row of the demo data, as it stands in the JSONL file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DemoRow {
    /// What to do, in a few words.
    pub instruction: String,
    /// The article.
    pub context: String,
    /// One of the right summaries.
    pub response: String,
    /// Always `summarization`.
    pub category: String,
    /// What the article says.
    pub facts: Facts,
}

/// Endless demo rows, no two with the same article; the same for the same seed.
pub fn rows(seed: u64) -> impl Iterator<Item = DemoRow> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let mut seen = HashSet::new();
    std::iter::repeat_with(move || article::row(&mut random))
        .filter(move |row| seen.insert(row.context.clone()))
}

/// Writes `count` rows as JSONL.
///
/// # Errors
/// [`Error::Io`].
pub fn generate(seed: u64, count: usize, path: &Path) -> Result<(), Error> {
    write_jsonl(path, rows(seed).take(count))
}

/// How much demo data [`write_all`] writes.
#[derive(Clone, Debug)]
pub struct DemoOptions {
    /// The seed of all of it.
    pub seed: u64,
    /// Rows of `instructions.jsonl`, each with an article of its own.
    pub rows: usize,
    /// Tokens of the tokenizer.
    pub vocab_size: usize,
}

impl Default for DemoOptions {
    fn default() -> Self {
        Self { seed: 1, rows: 8000, vocab_size: 768 }
    }
}

/// What [`write_all`] wrote.
#[derive(Clone, Debug)]
pub struct DemoFiles {
    /// The rows.
    pub instructions: PathBuf,
    /// The tokenizer's folder.
    pub tokenizer: PathBuf,
}

/// Writes `instructions.jsonl` and the folder `tokenizer`, trained on it. The same options give the same bytes.
///
/// # Errors
/// [`Error::Io`], or [`Error::Tokenizer`] if `vocab_size` is too small.
pub fn write_all(out_dir: &Path, options: &DemoOptions) -> Result<DemoFiles, Error> {
    fs_err::create_dir_all(out_dir)?;
    let files =
        DemoFiles { instructions: out_dir.join("instructions.jsonl"), tokenizer: out_dir.join("tokenizer") };
    write_jsonl(&files.instructions, rows(options.seed).take(options.rows))?;
    train_tokenizer(&files.instructions, options.vocab_size, &files.tokenizer)?;
    Ok(files)
}

fn write_jsonl(path: &Path, rows: impl Iterator<Item = DemoRow>) -> Result<(), Error> {
    write_file(path, |writer| {
        for row in rows {
            serde_json::to_writer(&mut *writer, &row)?;
            writer.write_all(b"\n")?;
        }
        Ok(())
    })
}

/// Writes a temporary sibling, syncs it and renames it over `path`.
fn write_file(
    path: &Path,
    write: impl FnOnce(&mut BufWriter<fs_err::File>) -> std::io::Result<()>,
) -> Result<(), Error> {
    let temporary = path.with_extension("tmp");
    let mut writer = BufWriter::new(fs_err::File::create(&temporary)?);
    write(&mut writer)?;
    writer.into_inner().map_err(|error| error.into_error())?.sync_all()?;
    fs_err::rename(&temporary, path)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_gives_the_same_bytes() {
        let folder = tempfile::tempdir().unwrap();
        let [first, second, other] = ["first", "second", "other"].map(|name| folder.path().join(name));
        let options = DemoOptions { rows: 300, vocab_size: 400, ..DemoOptions::default() };
        let files = write_all(&first, &options).unwrap();
        write_all(&second, &options).unwrap();
        write_all(&other, &DemoOptions { seed: 2, ..options }).unwrap();
        for name in ["instructions.jsonl", "tokenizer/tokenizer.json", "tokenizer/tokenizer_config.json"] {
            let [first, second] = [&first, &second].map(|folder| fs_err::read(folder.join(name)).unwrap());
            assert_eq!(first, second, "{name}");
        }
        assert_ne!(
            fs_err::read(files.instructions).unwrap(),
            fs_err::read(other.join("instructions.jsonl")).unwrap()
        );
        let entries = fs_err::read_dir(&first).unwrap().count();
        assert_eq!(entries, 2, "no temporary file is left");
    }

    #[test]
    fn no_article_comes_twice() {
        let rows: Vec<DemoRow> = rows(3).take(2000).collect();
        let contexts: HashSet<&str> = rows.iter().map(|row| row.context.as_str()).collect();
        assert_eq!(contexts.len(), rows.len());
    }

    /// What a model of a few layers learns quickly: instruction, article, summary and the token that ends it.
    const LONGEST_SEQUENCE_TOKENS: usize = 95;

    #[test]
    fn sequences_are_short() {
        let folder = tempfile::tempdir().unwrap();
        let files = write_all(folder.path(), &DemoOptions { rows: 3000, ..DemoOptions::default() }).unwrap();
        let tokenizer = crate::Tokenizer::load(&files.tokenizer).unwrap();
        let length = |row: &DemoRow| {
            let text = format!("{}\n{}\n{}", row.instruction, row.context, row.response);
            tokenizer.encode(&text).unwrap().len() + 1
        };
        let sample: Vec<DemoRow> = rows(9).take(500).collect();
        let lengths: Vec<usize> = sample.iter().map(length).collect();
        let mean = lengths.iter().sum::<usize>() / lengths.len();
        let longest = *lengths.iter().max().unwrap();
        eprintln!(
            "vocabulary {}, tokens of a sequence: mean {mean}, longest {longest}",
            tokenizer.vocab_size()
        );
        sample.iter().take(8).for_each(|row| eprintln!("{}", serde_json::to_string(row).unwrap()));
        assert!(longest <= LONGEST_SEQUENCE_TOKENS, "{longest}");
        for row in &sample {
            let words = row.context.split_whitespace().count();
            assert!((24..=60).contains(&words), "{words} words: {}", row.context);
        }
    }
}
