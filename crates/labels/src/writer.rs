//! Writes a label dataset: plan first, then one commit for each shard, then the manifest.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::durable::{self, PRIVATE};
use crate::error::{HINT_DAMAGED, quoted};
use crate::groups::LabelGroup;
use crate::manifest::{self, file_name, is_data_file, totals};
use crate::output::{check_finished, check_foreign, check_plan};
use crate::page_writer::{EncodedColumn, encode};
use crate::rounding::{round, sort_ties};
use crate::shard_reader::ShardReader;
use crate::shard_schema::ShardSchema;
use crate::shard_writer::{ShardFile, WrittenFile};
use crate::{
    Error, LabelLimits, LabelPlan, LabelsManifest, ReadLimits, SequenceLabels, ShardRecord, card, json,
    parallel,
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
    dir: PathBuf,
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

/// `_softshard/commits/00017.json`: shard 17 is there.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct CommitFile {
    /// Always `softshard-labels-commit`.
    #[schemars(extend("const" = CommitFile::FORMAT))]
    format: String,
    /// Version of the format.
    #[schemars(extend("const" = CommitFile::VERSION))]
    version: u32,
    /// BLAKE3 of `_softshard/plan.json`, hexadecimal.
    #[schemars(regex(pattern = "^[0-9a-f]{64}$"))]
    plan_blake3: String,
    /// Index of the shard.
    shard: usize,
    /// The file that is the shard from now on.
    record: ShardRecord,
    /// BLAKE3 of `record` as JSON: the manifest takes over what the record says.
    #[schemars(regex(pattern = "^[0-9a-f]{64}$"))]
    record_blake3: String,
    /// Names the attempt that won; the only thing that differs between two runs of one plan.
    attempt: String,
}

impl CommitFile {
    const FORMAT: &'static str = "softshard-labels-commit";
    const VERSION: u32 = 1;

    fn hash_of(record: &ShardRecord) -> String {
        blake3::hash(&json::to_bytes(record)).to_hex().to_string()
    }
}

impl LabelWriter {
    /// Whether the folder has a plan. Writes to it either way, so that a folder that cannot be written fails here, before a
    /// teacher is loaded, and a teacher that cannot be loaded leaves no plan.
    ///
    /// # Errors
    /// [`Error::Bad`] if the folder holds other files and no dataset; I/O.
    pub fn is_begun(dir: impl AsRef<Path>) -> Result<bool, Error> {
        let dir = dir.as_ref();
        check_foreign(dir)?;
        durable::create_folders(dir, &[PRIVATE, "_softshard/tmp"])?;
        drop(durable::TempFile::create(dir)?);
        Ok(dir.join(PRIVATE).join("plan.json").exists())
    }

    /// Creates the dataset folder with its plan, or resumes it if it has the same plan.
    ///
    /// Writes to the folder right away, so a folder that cannot be written fails here. Temporary files that dead
    /// processes of this machine left are removed.
    ///
    /// # Errors
    /// [`Error::OtherPlan`] naming every key that differs, of a plan or of a finished dataset without one;
    /// [`Error::Bad`] if the plan itself is wrong, or if the folder holds a manifest that cannot be read, or other files
    /// and no dataset; I/O. Nothing is written then.
    pub fn create_or_resume(dir: impl AsRef<Path>, plan: LabelPlan) -> Result<Self, Error> {
        plan.validate()?;
        let dir = dir.as_ref().to_owned();
        check_foreign(&dir)?;
        let path = dir.join(PRIVATE).join("plan.json");
        if path.exists() {
            check_plan(&path, &plan)?;
        }
        check_finished(&dir, &plan)?;
        durable::create_folders(&dir, &["data", PRIVATE, "_softshard/tmp", "_softshard/commits"])?;
        if !durable::write_new(&dir, &path, &json::to_bytes(&plan))? {
            check_plan(&path, &plan)?;
        }
        durable::remove_dead(&dir)?;
        Ok(Self { job: Arc::new(Job::new(dir, plan)) })
    }

    /// The plan of the dataset.
    pub fn plan(&self) -> &LabelPlan {
        &self.job.plan
    }

    /// Shards that have no valid commit, ascending. Hashes the files of all others, in parallel.
    ///
    /// # Errors
    /// I/O.
    pub fn missing(&self) -> Result<Vec<usize>, Error> {
        let records = self.job.records()?.into_iter().enumerate();
        Ok(records.filter_map(|(shard, record)| record.is_none().then_some(shard)).collect())
    }

    /// Whether a shard has no valid commit. Hashes its file.
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
            file: ShardFile::create(&self.job.dir, &self.job.schema)?,
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
        let file = WrittenFile::copy(&self.job.dir, from)?;
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
        let mut file = ShardFile::create(&self.job.dir, &self.job.schema)?;
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
        let records = job.records()?;
        let count = records.len();
        let missing: Vec<usize> = (0..count).filter(|shard| records[*shard].is_none()).collect();
        if !missing.is_empty() {
            return Err(Error::MissingShards { dir: job.dir.clone(), total: count, missing });
        }
        let shards: Vec<ShardRecord> = records.into_iter().flatten().collect();
        let of_data =
            |name: &str| is_data_file("labels", name) && shards.iter().all(|shard| shard.file != name);
        durable::remove_files(&job.dir.join("data"), of_data)?;
        manifest::check_files(&job.dir, "labels", &shards, &ReadLimits::default())?;

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
        durable::put(&job.dir, &job.dir.join("README.md"), card::of(&manifest).as_bytes())?;
        durable::put(&job.dir, &job.dir.join("manifest.json"), &json::to_bytes(&manifest))?;
        durable::remove_files(&job.dir.join(PRIVATE).join("tmp"), |_| true)?;
        Ok(manifest)
    }
}

/// For each shard of the plan the record of its commit, if the folder holds a valid one; writes nothing.
pub(crate) fn committed_records(dir: &Path, plan: &LabelPlan) -> Result<Vec<Option<ShardRecord>>, Error> {
    Job::new(dir.to_owned(), plan.clone()).records()
}

impl Job {
    fn new(dir: PathBuf, plan: LabelPlan) -> Self {
        let (schema, limits, plan_blake3) = (ShardSchema::labels(&plan), plan.limits(), plan.blake3());
        Self { dir, plan, plan_blake3, schema, limits }
    }

    /// The record of each shard that has a valid commit. Hashes the files, in parallel.
    fn records(&self) -> Result<Vec<Option<ShardRecord>>, Error> {
        parallel::map(self.plan.shards.len(), |shard| self.committed(shard))
    }

    fn commit_path(&self, shard: usize) -> PathBuf {
        self.dir.join(PRIVATE).join("commits").join(format!("{shard:05}.json"))
    }

    /// The record of a shard whose commit is valid: it parses, is of this plan, and its file has size and hash.
    fn committed(&self, shard: usize) -> Result<Option<ShardRecord>, Error> {
        let path = self.commit_path(shard);
        let bytes = match json::read(&path) {
            Err(Error::Io(error)) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            bytes => bytes?,
        };
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
        if durable::holds(&self.dir.join("data").join(&record.file), record.bytes, &record.blake3)? {
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

    /// Links a verified file and creates its commit; the loser of a race removes only its own file.
    fn commit(&self, shard: usize, file: &WrittenFile, record: ShardRecord) -> Result<Commit, Error> {
        let data = self.dir.join("data").join(&record.file);
        durable::link_data(&file.temp, &data, record.bytes, &record.blake3)?;
        let commit = CommitFile {
            format: CommitFile::FORMAT.to_owned(),
            version: CommitFile::VERSION,
            plan_blake3: self.plan_blake3.clone(),
            shard,
            record_blake3: CommitFile::hash_of(&record),
            record,
            attempt: file.temp.nonce().to_owned(),
        };
        let (path, bytes) = (self.commit_path(shard), json::to_bytes(&commit));
        if durable::write_new(&self.dir, &path, &bytes)? {
            return Ok(Commit::Won(commit.record));
        }
        match self.committed(shard)? {
            Some(winner) => {
                if winner.file != commit.record.file {
                    durable::remove_if_there(&data)?;
                }
                Ok(Commit::Lost(winner))
            }
            None => {
                durable::put(&self.dir, &path, &bytes)?;
                Ok(Commit::Won(commit.record))
            }
        }
    }
}

fn count(length: usize) -> u64 {
    u64::try_from(length).expect("a length fits 64 bits")
}
