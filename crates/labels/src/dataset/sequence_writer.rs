//! Writes a sequence dataset.

use std::path::{Path, PathBuf};

use super::manifest::{self, SequencesInfo, SequencesManifest};
use super::plan::check_split;
use super::provenance::{Artefact, Provenance};
use super::sequence_dataset::SequenceDataset;
use crate::host::{Links, PRIVATE, durable, regular};
use crate::shard::{
    SequenceGroup, ShardFile, ShardReader, ShardRecord, ShardSchema, Totals, WrittenFile, is_data_file,
    totals,
};
use crate::values::{Error, Example, ReadLimits, Sequence, json};

/// Tokens of a row group.
const ROW_GROUP_TOKENS: usize = 1 << 18;
/// Totals of a row group.
const ROW_GROUP_ROWS: usize = 1 << 14;
/// Bytes of the examples of a row group; one alone may have more.
const ROW_GROUP_EXAMPLE_BYTES: usize = 16 << 20;

/// Writes sequences into shards; nothing is to be seen in the dataset before [`SequenceWriter::finish`].
#[derive(Debug)]
pub struct SequenceWriter {
    dir: PathBuf,
    info: SequencesInfo,
    provenance: Provenance,
    sequences_per_shard: u64,
    schema: ShardSchema,
    /// The shard in hand.
    open: Option<ShardFile>,
    group: SequenceGroup,
    totals: Totals,
    /// Complete files that do not have their names yet: these say how many there are.
    written: Vec<(WrittenFile, Totals)>,
    pushed: u64,
}

impl SequenceWriter {
    /// Starts a dataset; one that is there already stays until [`SequenceWriter::finish`].
    ///
    /// # Errors
    /// [`Error::Bad`] if `sequences_per_shard` is 0, or the split is no name for files; I/O.
    pub fn create(
        dir: impl AsRef<Path>,
        info: SequencesInfo,
        sequences_per_shard: usize,
    ) -> Result<Self, Error> {
        if sequences_per_shard == 0 {
            return Err(Error::bad("sequences_per_shard", "at least 1", 0));
        }
        check_split(&info.split)?;
        let dir = dir.as_ref().to_owned();
        durable::create_folders(&dir, &["data", PRIVATE, "_softshard/tmp"])?;
        durable::remove_dead(&dir)?;
        Ok(Self {
            dir,
            info,
            provenance: Provenance::new(Artefact::Sequences),
            sequences_per_shard: u64::try_from(sequences_per_shard).expect("a count fits 64 bits"),
            schema: ShardSchema::sequences(SequencesManifest::VERSION),
            open: None,
            group: SequenceGroup::default(),
            totals: Totals::default(),
            written: Vec::new(),
            pushed: 0,
        })
    }

    /// The same, with what its sequences are made from.
    #[must_use]
    pub fn made_from(self, provenance: Provenance) -> Self {
        Self { provenance, ..self }
    }

    /// Adds a sequence.
    ///
    /// # Errors
    /// [`Error::Bad`] naming the sequence and what is wrong with it; I/O.
    pub fn push(&mut self, sequence: Sequence) -> Result<(), Error> {
        self.push_example(sequence, None)
    }

    /// Adds a sequence, and for one that is held out what its prompt is answered and judged by.
    ///
    /// # Errors
    /// As [`SequenceWriter::push`].
    pub fn push_example(&mut self, sequence: Sequence, example: Option<&Example>) -> Result<(), Error> {
        let example = sequence
            .validate(self.info.tokenizer.vocab_size)
            .and_then(|()| example.map(|example| example.to_text(&sequence)).transpose())
            .map_err(|error| {
                let source = sequence.source.as_ref();
                let source = source.map(|source| format!(" ({source})")).unwrap_or_default();
                error.within(format_args!("sequence {}{source}", self.pushed))
            })?;
        self.totals.add(&sequence.input_ids, &sequence.positions);
        self.pushed += 1;
        self.group.push(sequence.source, &sequence.input_ids, &sequence.positions);
        self.group.push_example(example);
        if self.group.input_tokens() >= ROW_GROUP_TOKENS
            || self.group.rows() >= ROW_GROUP_ROWS
            || self.group.example_bytes() >= ROW_GROUP_EXAMPLE_BYTES
        {
            self.write_group()?;
        }
        if self.totals.rows == self.sequences_per_shard { self.close_shard() } else { Ok(()) }
    }

    /// Completes the shards and, if the dataset that is there has another content, takes its manifest away: from here until
    /// [`SequenceWriter::finish`] it is not finished. Of several datasets that belong together all are retracted before the
    /// first one is finished, so that none of an earlier run stands beside one of this run.
    ///
    /// # Errors
    /// [`Error::Bad`] if there are no sequences; I/O.
    pub fn retract(&mut self) -> Result<(), Error> {
        let bytes = json::to_bytes(&self.manifest()?);
        if regular::read(&self.dir.join("manifest.json"), Links::Refused).ok().as_ref() != Some(&bytes) {
            durable::remove_files(&self.dir, |name| name == "manifest.json")?;
        }
        Ok(())
    }

    /// Gives the shards their names and writes the manifest, last.
    ///
    /// A finished dataset with the same content stays as it is, byte for byte; one with another content is replaced.
    /// Leftovers of unfinished runs are removed.
    ///
    /// # Errors
    /// [`Error::Bad`] if there are no sequences, or `data/` holds something foreign; I/O.
    pub fn finish(mut self) -> Result<SequencesManifest, Error> {
        self.retract()?;
        let manifest = self.manifest()?;
        let data = self.dir.join("data");
        for ((file, _), record) in self.written.iter().zip(&manifest.shards) {
            durable::link_data(&file.temp, &data.join(&record.file), record.bytes, &record.blake3)?;
        }
        let shards = &manifest.shards;
        let leftover =
            |name: &str| is_data_file("sequences", name) && shards.iter().all(|shard| shard.file != name);
        durable::remove_files(&data, leftover)?;
        manifest::check_files(&self.dir, "sequences", shards, &ReadLimits::default())?;
        durable::put(&self.dir, &self.dir.join("manifest.json"), &json::to_bytes(&manifest))?;
        durable::remove_files(&self.dir.join(PRIVATE).join("tmp"), |_| true)?;
        fs_err::remove_dir_all(self.dir.join(PRIVATE))?;
        Ok(manifest)
    }

    /// Removes a sequence dataset, or what a run that was killed left of one; anything else beside it stays.
    ///
    /// # Errors
    /// I/O.
    pub fn remove(dir: impl AsRef<Path>) -> Result<(), Error> {
        let (dir, data) = (dir.as_ref(), dir.as_ref().join("data"));
        if SequenceDataset::manifest_of(dir).is_ok() {
            durable::remove_files(dir, |name| name == "manifest.json")?;
        }
        let is_ours = dir.exists()
            && has_only(dir, |name| name == "data" || name == PRIVATE)?
            && has_only(&data, |name| is_data_file("sequences", name))?;
        if is_ours { Ok(fs_err::remove_dir_all(dir)?) } else { Ok(()) }
    }

    /// The manifest of all that was pushed; completes the shard in hand.
    fn manifest(&mut self) -> Result<SequencesManifest, Error> {
        self.close_shard()?;
        if self.written.is_empty() {
            return Err(Error::bad(crate::values::quoted(&self.dir), "at least one sequence", "none"));
        }
        let files = self.written.len();
        let named = self.written.iter().enumerate();
        let shards: Vec<_> = named
            .map(|(index, (file, totals))| ShardRecord::of(file, "sequences", (index, files), totals))
            .collect();
        let [rows, input_tokens, labelled_tokens] =
            totals(&shards).expect("files on a disk hold fewer tokens");
        Ok(SequencesManifest {
            format: SequencesManifest::FORMAT.to_owned(),
            version: SequencesManifest::VERSION,
            info: self.info.clone(),
            provenance: Some(self.provenance.clone()),
            rows,
            input_tokens,
            labelled_tokens,
            shards,
        })
    }

    fn write_group(&mut self) -> Result<(), Error> {
        let group = std::mem::take(&mut self.group);
        let file = match &mut self.open {
            Some(file) => file,
            None => self.open.insert(ShardFile::create(&self.dir, &self.schema)?),
        };
        file.write_group(&group.all_columns())
    }

    /// Completes the shard in hand and reads all of it back.
    fn close_shard(&mut self) -> Result<(), Error> {
        if self.group.rows() > 0 {
            self.write_group()?;
        }
        let Some(file) = self.open.take() else { return Ok(()) };
        let (file, totals) = (file.finish()?, std::mem::take(&mut self.totals));
        let limits = ReadLimits::default();
        let record = ShardRecord::of(&file, "sequences", (0, 1), &totals);
        let reader = ShardReader::open(file.temp.path(), &record, &self.schema, &limits)?;
        for group in 0..reader.groups() {
            SequenceGroup::read(&reader, group, self.info.tokenizer.vocab_size, &limits)?;
        }
        self.written.push((file, totals));
        Ok(())
    }
}

/// Whether a folder holds nothing but files of these names; one that is not there holds nothing.
fn has_only(folder: &Path, is_known: impl Fn(&str) -> bool) -> Result<bool, Error> {
    if !folder.exists() {
        return Ok(true);
    }
    for entry in fs_err::read_dir(folder)? {
        if !entry?.file_name().to_str().is_some_and(&is_known) {
            return Ok(false);
        }
    }
    Ok(true)
}
