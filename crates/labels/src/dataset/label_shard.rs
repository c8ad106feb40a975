//! Writes one shard of a label dataset: checks, rounds and groups the labels of its sequences.

use std::collections::VecDeque;
use std::sync::Arc;
use std::thread::JoinHandle;

use super::job::{Commit, Job};
use crate::host::parallel;
use crate::parquet::{EncodedColumn, encode};
use crate::shard::{LabelGroup, ShardFile, ShardRecord, Totals, WrittenFile, round, sort_ties};
use crate::values::{Error, SequenceLabels};

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
    totals: Totals,
}

impl ShardWriter {
    /// Begins shard `shard` of the plan.
    pub(crate) fn create(job: Arc<Job>, shard: usize) -> Result<Self, Error> {
        Ok(Self {
            file: ShardFile::create(job.scratch()?.root(), &job.schema)?,
            group: LabelGroup::new(&job.limits),
            group_bytes: 0,
            encoding: VecDeque::new(),
            job,
            shard,
            totals: Totals::default(),
        })
    }

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
            error.within(format_args!("labels of shard {} row {}{source}", self.shard, self.totals.rows))
        })?;
        round(&mut labels, self.job.plan.mantissa_bits, self.job.plan.position_mantissa_bits);
        sort_ties(&mut labels, &self.job.limits);
        let bytes = labels.value_bytes();
        if bytes > SEQUENCE_BYTES {
            let place = format!("labels of shard {} row {}", self.shard, self.totals.rows);
            let hint = "keep fewer entries per position, or label shorter sequences";
            let expected = format!("at most {SEQUENCE_BYTES} bytes of values, which readers take");
            return Err(Error::bad(place, expected, bytes).hint(hint));
        }
        if self.group_bytes + bytes > ROW_GROUP_BYTES && !self.group.is_empty() {
            self.write_group()?;
        }
        self.group_bytes += bytes;
        self.group.push(&labels);
        self.totals.add(&labels.input_ids, &labels.positions);
        let sequences = &self.group.sequences;
        let full = sequences.labelled_tokens()
            >= usize::try_from(self.job.plan.row_group_tokens).expect("at most 65,536");
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
        if self.totals.rows != end - start {
            let place = format!("labels of shard {}", self.shard);
            return Err(Error::bad(place, format_args!("{} sequences", end - start), self.totals.rows));
        }
        if self.group.sequences.rows() > 0 {
            self.write_group()?;
        }
        self.append_encoded(0)?;
        let Self { job, shard, file, totals, .. } = self;
        let file = file.finish()?;
        let record = job.record(&file, shard, &totals);
        Ok(WrittenShard { job, shard, file, record })
    }

    /// Gives the row group in hand to a thread that encodes it; with as many threads as cores, waits for the oldest.
    fn write_group(&mut self) -> Result<(), Error> {
        self.group_bytes = 0;
        let group = std::mem::replace(&mut self.group, LabelGroup::new(&self.job.limits));
        self.append_encoded(parallel::threads().min(MAX_ENCODING) - 1)?;
        let schema = self.file.schema();
        let job = self.job.clone();
        let encoding = parallel::spawn(move || encode(&schema, &group.columns(&job.limits)))?;
        self.encoding.push_back(encoding);
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
