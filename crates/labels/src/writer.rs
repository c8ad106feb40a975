//! Writes a label dataset: plan first, then one commit for each shard, then the manifest.

use std::collections::VecDeque;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use crate::commit::{COMMITS, CommitFile, commit_file};
use crate::durable::{self, PRIVATE, Scratch};
use crate::error::{HINT_DAMAGED, quoted};
use crate::groups::LabelGroup;
use crate::manifest::{self, file_name, totals};
use crate::output::PLAN;
use crate::page_writer::{EncodedColumn, encode};
use crate::rounding::{round, sort_ties};
use crate::shard_reader::ShardReader;
use crate::shard_schema::ShardSchema;
use crate::shard_writer::{ShardFile, WrittenFile};
use crate::{
    Error, LabelLimits, LabelPlan, LabelsManifest, Output, ReadLimits, SequenceLabels, ShardRecord, card,
    json, parallel,
};

/// A row group is closed early when its sequences hold this many tokens, labelled or not: bounds memory.
const ROW_GROUP_INPUT_TOKENS: usize = 1 << 20;
/// A row group is closed before its values take more than this. A reader takes 512 MiB by default, and counts values, their
/// pages and levels: somewhat more than twice the values.
const ROW_GROUP_BYTES: usize = 128 << 20;
/// A sequence whose values take more is refused: it is a row group at least.
const SEQUENCE_BYTES: usize = 240 << 20;
/// Row groups that are encoded at a time, at most: bounds memory, to about 10 MB each for top-64. Checking labels and
/// hashing bytes, on the thread that pushes, cannot feed more.
const MAX_ENCODING: usize = 4;

/// Writes a label dataset, or goes on with one; any number of processes may write shards of one dataset.
///
/// There are no locks and no clocks: the files are the truth. Cheap to clone and to share between threads.
#[derive(Clone, Debug)]
pub struct LabelWriter {
    job: Arc<Job>,
}

#[derive(Debug)]
struct Job {
    output: Output,
    scratch: Scratch,
    plan: LabelPlan,
    plan_blake3: String,
    schema: ShardSchema,
    limits: LabelLimits,
}

/// How the commit of a shard ended; the shard is safe either way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Commit {
    /// This writer's file is the shard.
    Won(ShardRecord),
    /// Another writer was first: its file is the shard, this writer's was removed.
    Lost(ShardRecord),
}

impl LabelWriter {
    /// Whether there is a plan. Writes to a folder either way, so that one that cannot be written fails here, before a
    /// teacher is loaded, and a teacher that cannot be loaded leaves no plan.
    ///
    /// # Errors
    /// [`Error::Bad`] if the output holds other files and no dataset; I/O.
    pub fn is_begun(output: impl Into<Output>) -> Result<bool, Error> {
        let output = output.into();
        output.check_foreign()?;
        output.prepare(&[PRIVATE, "_softshard/tmp"])?;
        drop(durable::TempFile::create(output.scratch()?.root())?);
        output.is_there(PLAN)
    }

    /// Creates the dataset with its plan, or resumes it if it has the same plan.
    ///
    /// Writes right away, so an output that cannot be written fails here. Temporary files that dead processes of this machine
    /// left are removed.
    ///
    /// # Errors
    /// [`Error::OtherPlan`] naming every key that differs, of a plan or of a finished dataset without one;
    /// [`Error::Bad`] if the plan itself is wrong, or if the output holds a manifest that cannot be read, or other files
    /// and no dataset; I/O. Nothing is written then.
    pub fn create_or_resume(output: impl Into<Output>, plan: LabelPlan) -> Result<Self, Error> {
        plan.validate()?;
        let output = output.into();
        output.check_foreign()?;
        output.has_plan(&plan)?;
        output.finished(&plan)?;
        output.prepare(&["data", PRIVATE, "_softshard/tmp", "_softshard/commits"])?;
        if !output.create(PLAN, &json::to_bytes(&plan))? && !output.has_plan(&plan)? {
            return Err(Error::bad(quoted(&output.path(PLAN)), "a plan", "something that is not read"));
        }
        let scratch = output.scratch()?;
        Ok(Self { job: Arc::new(Job::new(output, scratch, plan)) })
    }

    /// Goes on with the dataset that lies there, by its plan or, where it has none, its manifest.
    ///
    /// # Errors
    /// [`Error::Bad`] if there is neither, or if it is not what a plan may be; see [`LabelWriter::create_or_resume`].
    pub fn open(output: impl Into<Output>) -> Result<Self, Error> {
        let output = output.into();
        let plan = if let Some(bytes) = output.read(PLAN)? {
            json::parse::<LabelPlan>(&output.path(PLAN), &bytes, LabelPlan::FORMAT, LabelPlan::VERSION)?
        } else if let Some((path, bytes)) = output.manifest()? {
            manifest::parse_labels(&path, &bytes, &ReadLimits::default())?.plan
        } else {
            let place = quoted(&output.place());
            let expected = format!("a label dataset that was begun, with `{PLAN}`");
            return Err(Error::bad(place, expected, "none").hint("`softshard teacher-labels` begins it"));
        };
        Self::create_or_resume(output, plan)
    }

    /// The plan of the dataset.
    pub fn plan(&self) -> &LabelPlan {
        &self.job.plan
    }

    /// Shards that have no valid commit, ascending.
    ///
    /// Of a finished dataset the manifest and the sizes of the files are looked at; of another one the files of all committed
    /// shards are hashed, in parallel. An object of a store carries its hash in its name, and only its size is looked at.
    ///
    /// # Errors
    /// I/O.
    pub fn missing(&self) -> Result<Vec<usize>, Error> {
        self.missing_of(0..self.job.plan.shards.len())
    }

    /// The same of some shards: what a worker asks that has these to do.
    ///
    /// # Errors
    /// I/O.
    ///
    /// # Panics
    /// If the plan has no such shards.
    pub fn missing_of(&self, shards: Range<usize>) -> Result<Vec<usize>, Error> {
        if self.job.finished()?.is_some() {
            return Ok(Vec::new());
        }
        let records = self.job.records(shards.clone())?;
        Ok(shards.zip(records).filter_map(|(shard, record)| record.is_none().then_some(shard)).collect())
    }

    /// Shards without a commit, ascending, by the names of the commits alone: one with a damaged file is not among them. A finished dataset
    /// has none.
    ///
    /// # Errors
    /// I/O.
    pub fn uncommitted(&self) -> Result<Vec<usize>, Error> {
        if self.job.finished()?.is_some() {
            return Ok(Vec::new());
        }
        let committed = self.job.output.names(COMMITS)?;
        let shards = 0..self.job.plan.shards.len();
        Ok(shards.filter(|shard| !committed.contains_key(&commit_file(*shard))).collect())
    }

    /// Whether a shard has no valid commit. Hashes its file, as [`LabelWriter::missing`] does.
    ///
    /// # Errors
    /// I/O.
    ///
    /// # Panics
    /// If the plan has no such shard.
    pub fn is_missing(&self, shard: usize) -> Result<bool, Error> {
        Ok(self.job.committed(shard)?.is_none())
    }

    /// Starts a shard, whether or not it is missing.
    ///
    /// # Errors
    /// I/O.
    ///
    /// # Panics
    /// If the plan has no such shard.
    pub fn shard(&self, shard: usize) -> Result<ShardWriter, Error> {
        assert!(shard < self.job.plan.shards.len(), "the plan has no shard {shard}");
        Ok(ShardWriter {
            file: ShardFile::create(self.job.scratch.root(), &self.job.schema)?,
            group: LabelGroup::new(self.job.limits.temperatures),
            group_bytes: 0,
            encoding: VecDeque::new(),
            job: self.job.clone(),
            shard,
            rows: 0,
            input_tokens: 0,
            labelled_tokens: 0,
        })
    }

    /// Commits a copy of a shard of the same plan, after reading all of the copy.
    pub(crate) fn copy_file(&self, shard: usize, from: &Path, record: &ShardRecord) -> Result<Commit, Error> {
        let file = WrittenFile::copy(self.job.scratch.root(), from)?;
        if file.sha256 != record.sha256 {
            let expected = format!("SHA-256 {}", record.sha256);
            return Err(Error::bad(quoted(from), expected, &file.sha256).hint(HINT_DAMAGED));
        }
        self.job.publish(shard, &file, record.clone())
    }

    /// Commits a shard with the row groups of a shard of another plan that was made alike: chunks are copied as they are.
    pub(crate) fn copy_groups(
        &self,
        shard: usize,
        from: &ShardReader,
        record: &ShardRecord,
    ) -> Result<Commit, Error> {
        let mut file = ShardFile::create(self.job.scratch.root(), &self.job.schema)?;
        for group in 0..from.groups() {
            file.copy_group(from, group)?;
        }
        let file = file.finish()?;
        let record = ShardRecord {
            file: self.job.file_name(shard, &file.blake3),
            bytes: file.bytes,
            blake3: file.blake3.clone(),
            sha256: file.sha256.clone(),
            ..record.clone()
        };
        self.job.publish(shard, &file, record)
    }

    /// Finishes the dataset: removes leftovers, writes `README.md` and, last, `manifest.json`.
    ///
    /// Finishing again changes nothing.
    ///
    /// # Errors
    /// [`Error::MissingShards`]; [`Error::Bad`] if `data/` holds something foreign; I/O.
    pub fn finish(&self) -> Result<LabelsManifest, Error> {
        let job = &self.job;
        let shards = match job.finished()? {
            Some(manifest) => manifest.shards,
            None => {
                let records = job.records(0..job.plan.shards.len())?;
                let total = records.len();
                let missing: Vec<usize> = (0..total).filter(|shard| records[*shard].is_none()).collect();
                if !missing.is_empty() {
                    let dir = job.output.place();
                    return Err(Error::MissingShards { dir, total, missing });
                }
                records.into_iter().flatten().collect()
            }
        };
        manifest::check_records(
            &job.output.path("manifest.json"),
            "labels",
            &shards,
            &ReadLimits::default(),
        )?;
        job.remove_leftovers(&shards)?;

        let [rows, input_tokens, labelled_tokens] =
            totals(&shards).expect("files on a disk hold fewer tokens");
        let manifest = LabelsManifest {
            format: LabelsManifest::FORMAT.to_owned(),
            version: LabelsManifest::VERSION,
            plan_blake3: job.plan_blake3.clone(),
            plan: job.plan.clone(),
            rows,
            input_tokens,
            labelled_tokens,
            shards,
        };
        job.output.put("README.md", card::of(&manifest).as_bytes())?;
        job.output.put("manifest.json", &json::to_bytes(&manifest))?;
        job.output.clear_temporary()?;
        Ok(manifest)
    }
}

/// For each shard of the plan the record of its commit, if the folder holds a valid one; writes nothing.
pub(crate) fn committed_records(dir: &Path, plan: &LabelPlan) -> Result<Vec<Option<ShardRecord>>, Error> {
    Job::new(dir.into(), Scratch::within(dir), plan.clone()).records(0..plan.shards.len())
}

impl Job {
    fn new(output: Output, scratch: Scratch, plan: LabelPlan) -> Self {
        let (schema, limits, plan_blake3) = (ShardSchema::labels(&plan), plan.limits(), plan.blake3());
        Self { output, scratch, plan, plan_blake3, schema, limits }
    }

    /// The record of each of these shards that has a valid commit. Hashes the files, in parallel.
    fn records(&self, shards: Range<usize>) -> Result<Vec<Option<ShardRecord>>, Error> {
        self.output.map(shards.len(), |index| self.committed(shards.start + index))
    }

    /// The manifest, if the dataset is finished: it is of this plan, and `data/` holds files of the sizes that it names, and
    /// no others. What is in them is not read (docs/decisions/0008-resume-by-size.md).
    fn finished(&self) -> Result<Option<LabelsManifest>, Error> {
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
    fn committed(&self, shard: usize) -> Result<Option<ShardRecord>, Error> {
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

    fn file_name(&self, shard: usize, blake3_hex: &str) -> String {
        file_name("labels", shard, self.plan.shards.len(), blake3_hex)
    }

    /// Reads all of a written file back.
    fn verify(&self, file: &WrittenFile, record: &ShardRecord) -> Result<(), Error> {
        let limits = ReadLimits::default();
        let reader = ShardReader::open(file.temp.path(), record, &self.schema, &limits)?;
        let threads = parallel::threads().min(reader.groups());
        parallel::map(threads, |thread| {
            let mut decoded = LabelGroup::default();
            for group in (thread..reader.groups()).step_by(threads) {
                decoded.read(&reader, group, &self.limits, &limits)?;
            }
            Ok(())
        })?;
        Ok(())
    }
}

/// Writes one shard; dropped without a commit it leaves nothing behind.
#[derive(Debug)]
pub struct ShardWriter {
    job: Arc<Job>,
    shard: usize,
    file: ShardFile,
    group: LabelGroup,
    /// Decoded size of the lists in `group`.
    group_bytes: usize,
    /// Row groups that are encoded on threads of their own, in order.
    encoding: VecDeque<JoinHandle<Result<Vec<EncodedColumn>, Error>>>,
    rows: u64,
    input_tokens: u64,
    labelled_tokens: u64,
}

impl ShardWriter {
    /// Adds the labels of the next sequence of the shard's range, rounded as the plan says.
    ///
    /// Entries that are or become equal by rounding are put in the order of their ids. The same sequence may come twice.
    ///
    /// # Errors
    /// [`Error::Bad`] naming row, position and field if the labels are not valid; I/O.
    pub fn push(&mut self, labels: SequenceLabels) -> Result<(), Error> {
        self.push_checked(labels, SequenceLabels::validate_exact)
    }

    /// Adds labels that were rounded before, as the plan says: a dataset had them. What only exact values show is not
    /// checked again.
    pub(crate) fn push_rounded(&mut self, labels: SequenceLabels) -> Result<(), Error> {
        self.push_checked(labels, |_| Ok(()))
    }

    fn push_checked(
        &mut self,
        mut labels: SequenceLabels,
        exact: impl Fn(&SequenceLabels) -> Result<(), Error>,
    ) -> Result<(), Error> {
        sort_ties(&mut labels, &self.job.limits);
        labels.validate(&self.job.limits).and_then(|()| exact(&labels)).map_err(|error| {
            let source = labels.source.as_ref().map(|source| format!(" ({source})")).unwrap_or_default();
            error.within(format_args!("labels of shard {} row {}{source}", self.shard, self.rows))
        })?;
        round(&mut labels, &self.job.plan);
        sort_ties(&mut labels, &self.job.limits);
        let bytes = labels.value_bytes();
        if bytes > SEQUENCE_BYTES {
            let place = format!("labels of shard {} row {}", self.shard, self.rows);
            let hint = "keep fewer entries per position, or label shorter sequences";
            let expected = format!("at most {SEQUENCE_BYTES} bytes of values, which readers take");
            return Err(Error::bad(place, expected, bytes).hint(hint));
        }
        if self.group_bytes + bytes > ROW_GROUP_BYTES && !self.group.is_empty() {
            self.write_group()?;
        }
        self.group_bytes += bytes;
        self.group.push(&labels);
        self.rows += 1;
        self.input_tokens += count(labels.input_ids.len());
        self.labelled_tokens += count(labels.positions.len());
        let sequences = &self.group.sequences;
        let full = count(sequences.labelled_tokens()) >= u64::from(self.job.plan.row_group_tokens);
        if full || sequences.input_tokens() >= ROW_GROUP_INPUT_TOKENS { self.write_group() } else { Ok(()) }
    }

    /// Makes the shard part of the dataset: [`ShardWriter::finish`], then [`WrittenShard::commit`].
    ///
    /// # Errors
    /// See there. After an error nothing is committed.
    pub fn commit(self) -> Result<Commit, Error> {
        self.finish()?.commit()
    }

    /// Writes what is left and syncs; nothing is committed yet.
    ///
    /// # Errors
    /// [`Error::Bad`] if rows of the range are missing; I/O.
    pub fn finish(mut self) -> Result<WrittenShard, Error> {
        let [start, end] = self.job.plan.shards[self.shard];
        if self.rows != end - start {
            let place = format!("labels of shard {}", self.shard);
            return Err(Error::bad(place, format_args!("{} sequences", end - start), self.rows));
        }
        if self.group.sequences.rows() > 0 {
            self.write_group()?;
        }
        self.append_encoded(0)?;
        let Self { job, shard, file, rows, input_tokens, labelled_tokens, .. } = self;
        let file = file.finish()?;
        let record = ShardRecord {
            file: job.file_name(shard, &file.blake3),
            rows,
            input_tokens,
            labelled_tokens,
            bytes: file.bytes,
            blake3: file.blake3.clone(),
            sha256: file.sha256.clone(),
        };
        Ok(WrittenShard { job, shard, file, record })
    }

    /// Gives the row group in hand to a thread that encodes it; with as many threads as cores, waits for the oldest.
    fn write_group(&mut self) -> Result<(), Error> {
        self.group_bytes = 0;
        let group = std::mem::replace(&mut self.group, LabelGroup::new(self.job.limits.temperatures));
        self.append_encoded(parallel::threads().min(MAX_ENCODING) - 1)?;
        let schema = self.file.schema();
        let job = self.job.clone();
        self.encoding.push_back(thread::spawn(move || encode(&schema, &group.columns(&job.limits))));
        Ok(())
    }

    /// Writes encoded row groups until `left` are not written; the order is that of their rows.
    fn append_encoded(&mut self, left: usize) -> Result<(), Error> {
        while self.encoding.len() > left {
            let Some(oldest) = self.encoding.pop_front() else { break };
            self.file.append(oldest.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?)?;
        }
        Ok(())
    }
}

/// A shard that is complete and synced, and not part of the dataset yet; dropped it leaves nothing behind.
#[derive(Debug)]
pub struct WrittenShard {
    job: Arc<Job>,
    shard: usize,
    file: WrittenFile,
    record: ShardRecord,
}

impl WrittenShard {
    /// What the manifest will say of the shard.
    pub(crate) fn record(&self) -> &ShardRecord {
        &self.record
    }

    /// Makes the shard part of the dataset: reads all of it back, links it, commits.
    ///
    /// # Errors
    /// [`Error::Bad`] if what was read back is not what was written; I/O. After an error nothing is committed.
    pub fn commit(self) -> Result<Commit, Error> {
        let Self { job, shard, file, record } = self;
        job.publish(shard, &file, record)
    }
}

impl Job {
    /// Reads a written file back and makes it the shard.
    fn publish(&self, shard: usize, file: &WrittenFile, record: ShardRecord) -> Result<Commit, Error> {
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
    fn remove_leftovers(&self, shards: &[ShardRecord]) -> Result<(), Error> {
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

fn count(length: usize) -> u64 {
    u64::try_from(length).expect("a length fits 64 bits")
}
