//! Reads a finished sequence dataset.

use std::ops::Range;
use std::path::{Path, PathBuf};

use super::manifest::{SequencesManifest, check_files, read_manifest};
use super::plan::check_split;
use crate::host::parallel;
use crate::shard::{SequenceGroup, ShardReader, ShardSchema, totals};
use crate::values::{Error, Example, ReadLimits, Sequence, json, quoted};

/// A finished sequence dataset, mapped if it is local; sequences are decoded when they are read.
#[derive(Debug)]
pub struct SequenceDataset {
    dir: PathBuf,
    manifest: SequencesManifest,
    manifest_blake3: String,
    limits: ReadLimits,
    shards: Vec<ShardReader>,
    len: usize,
}

impl SequenceDataset {
    /// Opens a dataset: reads the manifest, hashes all shards in parallel, checks schema and limits.
    ///
    /// # Errors
    /// [`Error::Bad`] naming what is wrong: not finished, a shard that is damaged, missing or too many; I/O.
    pub fn open(dir: impl AsRef<Path>) -> Result<Self, Error> {
        let (dir, limits) = (dir.as_ref().to_owned(), ReadLimits::default());
        let (manifest, path, bytes) = load(&dir)?;
        check_split(&manifest.info.split).map_err(|error| error.within(quoted(&path)))?;
        let sums = [manifest.rows, manifest.input_tokens, manifest.labelled_tokens];
        let len = usize::try_from(manifest.rows).ok().filter(|_| totals(&manifest.shards) == Some(sums));
        let len = len.ok_or_else(|| {
            let expected = "rows and tokens that are the sums of the shards";
            Error::bad(quoted(&path), expected, format_args!("{sums:?}"))
        })?;
        check_files(&dir, "sequences", &manifest.shards, &limits)?;
        let schema = ShardSchema::sequences(manifest.version);
        let shards = parallel::map(manifest.shards.len(), |index| {
            let record = &manifest.shards[index];
            ShardReader::open(&dir.join("data").join(&record.file), record, &schema, &limits)
        })
        .map_err(|error| error.within(quoted(&dir)))?;
        let manifest_blake3 = blake3::hash(&bytes).to_hex().to_string();
        Ok(Self { dir, manifest, manifest_blake3, limits, shards, len })
    }

    /// The manifest of a finished dataset and its BLAKE3, hexadecimal; no shard is read.
    ///
    /// # Errors
    /// [`Error::Bad`] where there is none, or of another version; I/O.
    pub fn manifest_of(dir: impl AsRef<Path>) -> Result<(SequencesManifest, String), Error> {
        let (manifest, _, bytes) = load(dir.as_ref())?;
        Ok((manifest, blake3::hash(&bytes).to_hex().to_string()))
    }

    /// The manifest: tokenizer, template, sizes, hashes.
    pub fn manifest(&self) -> &SequencesManifest {
        &self.manifest
    }

    /// BLAKE3 of the manifest file, hexadecimal: what a [`LabelPlan`](crate::LabelPlan) refers to.
    pub fn manifest_blake3(&self) -> &str {
        &self.manifest_blake3
    }

    /// Number of sequences.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are no sequences: never, as a writer refuses that.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Sequences of a range of rows; decodes the row groups that the range touches.
    ///
    /// # Errors
    /// [`Error::Bad`] if a row group is damaged, or the range goes beyond the end.
    pub fn read_range(&self, rows: Range<usize>) -> Result<Vec<Sequence>, Error> {
        self.each_row(rows, |group, row| Ok(group.sequence(row)))
    }

    /// Sequences of a range of rows, each with its example where it has one: held-out sequences of version 2 do.
    ///
    /// # Errors
    /// As [`SequenceDataset::read_range`].
    pub fn read_examples(&self, rows: Range<usize>) -> Result<Vec<(Sequence, Option<Example>)>, Error> {
        self.each_row(rows, |group, row| Ok((group.sequence(row), group.example(row)?)))
    }

    fn each_row<T>(
        &self,
        rows: Range<usize>,
        read: impl Fn(&SequenceGroup, usize) -> Result<T, Error>,
    ) -> Result<Vec<T>, Error> {
        if rows.end > self.len {
            let expected = format!("rows below {}", self.len);
            return Err(Error::bad(quoted(&self.dir), expected, format_args!("{rows:?}")));
        }
        let mut sequences = Vec::with_capacity(rows.len());
        let mut start = 0;
        for shard in &self.shards {
            for group in 0..shard.groups() {
                let end = start + shard.group_rows(group);
                if start < rows.end && rows.start < end {
                    let vocab_size = self.manifest.info.tokenizer.vocab_size;
                    let decoded = SequenceGroup::read(shard, group, vocab_size, &self.limits)
                        .map_err(|error| error.within(quoted(&self.dir)))?;
                    let wanted = rows.start.max(start)..rows.end.min(end);
                    for row in wanted {
                        sequences.push(read(&decoded, row - start)?);
                    }
                }
                start = end;
            }
        }
        Ok(sequences)
    }

    /// All sequences.
    ///
    /// # Errors
    /// [`Error::Bad`] if a row group is damaged.
    pub fn read_all(&self) -> Result<Vec<Sequence>, Error> {
        self.read_range(0..self.len)
    }
}

/// Reads the manifest of a dataset of any version that is known; gives its path and its bytes too.
fn load(dir: &Path) -> Result<(SequencesManifest, PathBuf, Vec<u8>), Error> {
    #[derive(serde::Deserialize)]
    struct Head {
        version: Option<u32>,
    }
    let (path, bytes) = read_manifest(dir)?;
    let head = serde_json::from_slice(&bytes).ok();
    let is_first = matches!(head, Some(Head { version: Some(1) }));
    let version = if is_first { 1 } else { SequencesManifest::VERSION };
    let manifest: SequencesManifest = json::parse(&path, &bytes, SequencesManifest::FORMAT, version)?;
    if manifest.provenance.is_some() == is_first {
        let expected = if is_first { "none in version 1" } else { "what the sequences were made from" };
        let found = if is_first { "one" } else { "none" };
        return Err(Error::bad(format_args!("{} provenance", quoted(&path)), expected, found));
    }
    Ok((manifest, path, bytes))
}
