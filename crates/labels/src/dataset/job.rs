//! Which shards of a label dataset are there, and how a written one becomes part of it.

use std::ops::Range;
use std::path::Path;
use std::sync::OnceLock;

use super::commit::{COMMITS, CommitFile, commit_file};
use super::manifest::{self, LabelsManifest};
use super::output::Output;
use super::plan::LabelPlan;
use crate::host::{Scratch, durable, parallel};
use crate::shard::{LabelGroup, ShardReader, ShardRecord, ShardSchema, Totals, WrittenFile, file_name};
use crate::values::{Error, LabelLimits, ReadLimits, json, quoted};

/// A label dataset that is being made.
#[derive(Debug)]
pub(crate) struct Job {
    pub(crate) output: Output,
    /// Made when it is needed: a finished dataset needs none.
    scratch: OnceLock<Scratch>,
    pub(crate) plan: LabelPlan,
    pub(crate) plan_blake3: String,
    pub(crate) schema: ShardSchema,
    pub(crate) limits: LabelLimits,
}

/// How the commit of a shard ended; the shard is safe either way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Commit {
    /// This writer's file is the shard.
    Won(ShardRecord),
    /// Another writer was first: its file is the shard, this writer's was removed.
    Lost(ShardRecord),
}

/// For each shard of the plan the record of its commit, if the folder holds a valid one; writes nothing.
pub(crate) fn committed_records(dir: &Path, plan: &LabelPlan) -> Result<Vec<Option<ShardRecord>>, Error> {
    Job::new(dir.into(), plan.clone()).records(0..plan.shards.len())
}

impl Job {
    /// Of a plan, in `output`; writes nothing.
    pub(crate) fn new(output: Output, plan: LabelPlan) -> Self {
        let (schema, limits, plan_blake3) = (plan.shard_schema(), plan.limits(), plan.blake3());
        Self { output, scratch: OnceLock::new(), plan, plan_blake3, schema, limits }
    }

    /// Where files are made.
    pub(crate) fn scratch(&self) -> Result<&Scratch, Error> {
        if let Some(scratch) = self.scratch.get() {
            return Ok(scratch);
        }
        let made = self.output.scratch()?;
        Ok(self.scratch.get_or_init(|| made))
    }

    /// The record of each of these shards that has a valid commit. Hashes the files, in parallel.
    pub(crate) fn records(&self, shards: Range<usize>) -> Result<Vec<Option<ShardRecord>>, Error> {
        self.output.map(shards.len(), |index| self.committed(shards.start + index))
    }

    /// The manifest, if the dataset is finished: it is of this plan, and `data/` holds files of the sizes that it names, and
    /// no others. What is in them is not read (docs/decisions/0008-resume-by-size.md).
    pub(crate) fn finished(&self) -> Result<Option<LabelsManifest>, Error> {
        let Some(found) = self.output.finished(&self.plan)? else { return Ok(None) };
        let path = self.output.path("manifest.json");
        let limits = ReadLimits::default();
        let checked = manifest::check_manifest(&path, &found, &limits)
            .and_then(|()| manifest::check_records(&path, "labels", &found.shards, &limits))
            .and_then(|()| self.output.data_problems(&found.shards)?.into_iter().next().map_or(Ok(()), Err));
        match checked {
            Ok(()) => Ok(Some(found)),
            Err(error) if error.is_bad_data() => {
                tracing::warn!(%error, "looking at every shard of a dataset that is not as its manifest says");
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// The record of a shard whose commit is valid: it parses, is of this plan, and its file has size and hash.
    pub(crate) fn committed(&self, shard: usize) -> Result<Option<ShardRecord>, Error> {
        let name = format!("{COMMITS}/{}", commit_file(shard));
        let Some(bytes) = self.output.read(&name)? else { return Ok(None) };
        let path = self.output.path(&name);
        let commit = json::parse::<CommitFile>(&path, &bytes, CommitFile::FORMAT, CommitFile::VERSION);
        let commit = match commit {
            Ok(commit) if commit.plan_blake3 == self.plan_blake3 && commit.shard == shard => commit,
            Ok(_) => {
                tracing::warn!(path = %path.display(), "ignoring the commit of another plan or shard");
                return Ok(None);
            }
            Err(error) => {
                tracing::warn!(%error, "ignoring a damaged commit");
                return Ok(None);
            }
        };
        let record = commit.record;
        if commit.record_blake3 != CommitFile::hash_of(&record)
            || record.blake3.len() != 64
            || !record.blake3.is_ascii()
            || record.file != self.file_name(shard, &record.blake3)
        {
            tracing::warn!(path = %path.display(), "ignoring a damaged commit");
            return Ok(None);
        }
        if self.output.holds(&record)? {
            return Ok(Some(record));
        }
        tracing::warn!(shard = record.file, "ignoring a commit whose file is damaged or gone");
        Ok(None)
    }

    /// The record of a shard's file.
    pub(crate) fn record(&self, file: &WrittenFile, shard: usize, totals: &Totals) -> ShardRecord {
        ShardRecord::of(file, "labels", (shard, self.plan.shards.len()), totals)
    }

    /// Name of a shard's file below `data/`.
    fn file_name(&self, shard: usize, blake3_hex: &str) -> String {
        file_name("labels", shard, self.plan.shards.len(), blake3_hex)
    }

    /// Reads all of a written file back.
    fn verify(&self, file: &WrittenFile, record: &ShardRecord) -> Result<(), Error> {
        let limits = ReadLimits::default();
        let reader = ShardReader::open(file.temp.path(), record, &self.schema, &limits)?;
        let threads = parallel::threads().min(reader.groups());
        parallel::map(threads, |thread| {
            let (_share, mut decoded) = (reader.largest_share(), LabelGroup::default());
            for group in (thread..reader.groups()).step_by(threads) {
                decoded.read(&reader, group, &self.limits, &limits)?;
            }
            Ok(())
        })?;
        Ok(())
    }

    /// Reads a written file back and makes it the shard.
    pub(crate) fn publish(
        &self,
        shard: usize,
        file: &WrittenFile,
        record: ShardRecord,
    ) -> Result<Commit, Error> {
        let verified = self.verify(file, &record).map_err(|error| error.within(quoted(file.temp.path())));
        match verified.and_then(|()| self.commit(shard, file, record)) {
            Ok(commit) => Ok(commit),
            // Another writer was first and finished the dataset, which clears temporary files. Any other error stays one: if the
            // commit is there it may be our own, whose folder could not be synced.
            Err(error) if !durable::is_not_found(&error) => Err(error),
            Err(error) => match self.committed(shard)? {
                Some(winner) => {
                    tracing::warn!(%error, shard, "another writer committed this shard");
                    Ok(Commit::Lost(winner))
                }
                None => Err(error),
            },
        }
    }

    /// Leaves nothing in `data/` but these shards.
    pub(crate) fn remove_leftovers(&self, shards: &[ShardRecord]) -> Result<(), Error> {
        self.output.remove_leftovers(shards)?;
        if self.output.data_problems(shards)?.is_empty() {
            return Ok(());
        }
        // Another writer, which is late, has named its file in between.
        self.output.remove_leftovers(shards)?;
        self.output.data_problems(shards)?.into_iter().next().map_or(Ok(()), Err)
    }

    /// Links a verified file and creates its commit; the loser of a race removes only its own file.
    fn commit(&self, shard: usize, file: &WrittenFile, record: ShardRecord) -> Result<Commit, Error> {
        // Late: nothing is named, or sent to a store, only to be removed.
        if let Some(winner) = self.committed(shard)? {
            return Ok(Commit::Lost(winner));
        }
        self.output.publish(file, &record)?;
        let commit = CommitFile::new(&self.plan_blake3, shard, record, file.temp.nonce());
        let (name, bytes) = (format!("{COMMITS}/{}", commit_file(shard)), json::to_bytes(&commit));
        if self.output.create(&name, &bytes)? {
            return Ok(Commit::Won(commit.record));
        }
        match self.committed(shard)? {
            Some(winner) => {
                if winner.file != commit.record.file {
                    self.output.remove_data(&commit.record.file)?;
                }
                Ok(Commit::Lost(winner))
            }
            None => {
                self.output.put(&name, &bytes)?;
                Ok(Commit::Won(commit.record))
            }
        }
    }
}
