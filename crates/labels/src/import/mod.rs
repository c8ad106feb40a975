//! Makes label datasets of what other programs wrote.
//!
//! Everything is read twice: once to check every row and to learn what the plan must say, before anything is written,
//! and once to write. Memory: a row group of ours, and of the input a row of a JSON file or a page of each column of a Parquet
//! file, as large as the file made them. Parquet files of others are read by the Parquet crate, which trusts their sizes
//! more than our own reader does: a hostile one may ask for much memory. A panic of the crate becomes an error.

mod captures;
mod columns;
mod completions;
mod distillkit;
mod dropped;
mod lines;
mod rows;
mod softshard;
mod survey;
mod tables;
mod yaml;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use serde::Serialize;

pub use completions::Resolve;
pub use distillkit::{DistillKitConfig, Function, ResidualBin, Term, TermType};
pub use dropped::{BadRows, DroppedRows};
pub use rows::PositionRule;
pub use softshard::import_jsonl;
pub use tables::ColumnMap;

use dropped::BadRowsFound;
use rows::{Kind, Rows, RowsHash, or_bad};
use survey::Survey;

use crate::dataset::{Commit, LabelWriter, LabelsManifest, ShardWriter, TeacherIdentity};
use crate::observer::{Observer, Progress};
use crate::shard::ShardRecord;
use crate::values::{Error, OptionalColumn, SequenceLabels, Tokenizer};

/// What labels are made of.
pub enum ImportSource<'a> {
    /// Parquet files of a DistillKit capture.
    DistillKit {
        /// In order.
        files: &'a [PathBuf],
        /// Its `compression_config.yaml`.
        config: &'a DistillKitConfig,
    },
    /// JSONL files with one response of an inference server per line.
    Completions {
        /// In order.
        files: &'a [PathBuf],
        /// Entries per position that the server was asked for.
        top_k: u32,
        /// Finds the ids of tokens that are printed as texts.
        resolve: Resolve<'a>,
    },
    /// Any Parquet files.
    Parquet {
        /// In order.
        files: &'a [PathBuf],
        /// Which column holds what.
        columns: &'a ColumnMap,
    },
}

/// What the files do not say.
#[derive(Clone, Debug)]
pub struct ImportTarget {
    /// The tokenizer of the ids.
    pub tokenizer: Tokenizer,
    /// Name of the prompt template.
    pub template: String,
    /// The split, as `train`.
    pub split: String,
    /// The teacher, see [`TeacherIdentity::unverified`].
    pub teacher: TeacherIdentity,
    /// Where positions have different numbers of entries: the mass that these reach.
    pub top_p: Option<f64>,
    /// Whether `tail_log_mass` may be computed of log-probabilities that are not exact.
    pub approximate_tail: bool,
    /// Mantissa bits kept of `log_probs`.
    pub mantissa_bits: u32,
    /// Rows of a shard.
    pub sequences_per_shard: u64,
    /// What a row that cannot be read means.
    pub bad_rows: BadRows,
}

/// What an import did.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Imported {
    /// The finished dataset.
    pub manifest: LabelsManifest,
    /// Shards that were written now; the others were there.
    pub written: usize,
    /// Rows without a labelled position, which are not in the dataset.
    pub passed_over: u64,
    /// Rows that cannot be read, which are not in the dataset either.
    pub dropped: DroppedRows,
    /// Positions whose rounded or fitted log-probabilities have a mass above 1.001; nothing is left for their tail.
    pub mass_above_one: u64,
}

/// Makes a label dataset of foreign files, or goes on with it.
///
/// What the files lack is not made up: `log_sum_exp`, `entropy` and `gold_log_prob` are omitted where they are not
/// there. `tail_log_mass` is 1 - Σp in f64, of log-probabilities as they are; where these were rounded before, only if
/// `approximate_tail` says so, and then the plan's `config_blake3` ends with `, approximate tail`. The plan's `sequences` is
/// the BLAKE3 of all that the rows hold, in order: an import goes on only with the same labels. With [`BadRows::Drop`] rows that
/// cannot be read are left out, and listed in `dropped_rows.jsonl` in the folder of the labels; what is wrong with a whole file
/// still ends the import.
///
/// # Errors
/// [`Error::Bad`] naming file, row and column, before anything is written, or if a file changed between the readings;
/// [`Error::OtherPlan`]; I/O, [`io::ErrorKind::Interrupted`] when `stop` is set.
pub fn import(
    output: &Path,
    source: &ImportSource<'_>,
    target: &ImportTarget,
    stop: &AtomicBool,
    observer: &dyn Observer,
) -> Result<Imported, Error> {
    let kind = source.kind(target)?;
    let mut survey = Survey::new(source, target, &kind, observer)?;
    let mut bad_rows = BadRowsFound::new(target.bad_rows);
    for row in source.rows()? {
        check_stop(stop)?;
        let added = match row? {
            Ok(row) => or_bad(survey.add(&row))?,
            Err(bad) => Err(bad),
        };
        bad_rows.add(added)?;
    }
    let plan = survey.plan().map_err(|error| bad_rows.explain(error))?;
    let writer = LabelWriter::create_or_resume(output, plan)?;
    let mut shards = Shards::new(&writer, kind.is_approximate, survey.shard_hashes(), observer)?;
    let mut dropped = bad_rows.into_list(output)?;
    for row in source.rows()? {
        check_stop(stop)?;
        let row = match row? {
            // What is wrong with it is only seen by looking at its labels.
            Ok(row) if dropped.has_next() => or_bad(survey.labels(&row).map(|_| row))?,
            row => row,
        };
        if let Some(row) = dropped.add(row)?.filter(|row| !row.positions.is_empty()) {
            shards.push(row.labels(&kind)?)?;
        }
    }
    let written = shards.finish()?;
    let dropped = dropped.finish()?;
    Ok(Imported {
        manifest: writer.finish()?,
        written,
        passed_over: survey.passed_over(),
        dropped,
        mass_above_one: survey.above_one(),
    })
}

impl ImportSource<'_> {
    /// All rows, from the first.
    fn rows(&self) -> Result<Rows<'_>, Error> {
        Ok(match self {
            Self::DistillKit { files, config } => {
                captures::captured(files, distillkit::Decoder::new(config)?)
            }
            Self::Completions { files, top_k, resolve } => {
                let top_k = usize::try_from(*top_k).unwrap_or(usize::MAX);
                completions::rows(files, completions::Reader { top_k, resolve: *resolve })
            }
            Self::Parquet { files, columns } => tables::mapped(files, columns),
        })
    }

    /// Rows that the files say they have; 0 where they do not say.
    fn row_count(&self) -> Result<u64, Error> {
        match self {
            Self::DistillKit { files, .. } | Self::Parquet { files, .. } => tables::count_rows(files),
            Self::Completions { .. } => Ok(0),
        }
    }

    /// What the rows have in common; refuses what cannot be taken.
    fn kind(&self, target: &ImportTarget) -> Result<Kind, Error> {
        let vocab_size = target.teacher.vocab_size;
        let all = [OptionalColumn::LogSumExp, OptionalColumn::Entropy, OptionalColumn::GoldLogProb];
        let (omit, is_approximate) = match self {
            Self::DistillKit { files, config } => {
                captures::check_capture(files)?;
                (all.to_vec(), !config.is_exact())
            }
            Self::Completions { .. } => (all[..2].to_vec(), false),
            Self::Parquet { columns, .. } => {
                let names = ["log_sum_exp", "entropy", "gold_log_prob"];
                let lacking = all.into_iter().zip(names).filter(|(_, name)| !columns.has(name));
                (lacking.map(|(column, _)| column).collect(), target.approximate_tail)
            }
        };
        if is_approximate && !target.approximate_tail {
            let hint = "--approximate-tail computes it of them";
            let found = "log-probabilities that were rounded or fitted";
            return Err(
                Error::bad("tail_log_mass", "exact log-probabilities to compute it of", found).hint(hint)
            );
        }
        Ok(Kind { omit, is_approximate, vocab_size })
    }
}

/// Writes rows into the shards that are missing, and passes over those of the others.
struct Shards<'a> {
    writer: &'a LabelWriter,
    missing: Vec<usize>,
    open: Option<ShardWriter>,
    shard: usize,
    row: u64,
    /// Whether rows were rounded before, so that what only exact values show is not asked of them.
    are_rounded: bool,
    written: usize,
    /// What was read so far, and what it was behind each shard when it was checked.
    content: RowsHash,
    expected: Vec<blake3::Hash>,
    /// What the shards must be, where that is known.
    records: Option<&'a [ShardRecord]>,
    observer: &'a dyn Observer,
}

impl<'a> Shards<'a> {
    fn new(
        writer: &'a LabelWriter,
        are_rounded: bool,
        expected: Vec<blake3::Hash>,
        observer: &'a dyn Observer,
    ) -> Result<Self, Error> {
        let missing = writer.missing()?;
        Ok(Self {
            writer,
            missing,
            open: None,
            shard: 0,
            row: 0,
            are_rounded,
            written: 0,
            content: RowsHash::default(),
            expected,
            records: None,
            observer,
        })
    }

    fn push(&mut self, labels: SequenceLabels) -> Result<(), Error> {
        let ranges = &self.writer.plan().shards;
        let first = ranges[0][0];
        let Some([start, end]) = ranges.get(self.shard).copied() else { return Err(changed()) };
        let row = first + self.row;
        if row == start && self.missing.binary_search(&self.shard).is_ok() {
            self.open = Some(self.writer.shard(self.shard)?);
        }
        self.content.add(&labels);
        if let Some(open) = &mut self.open {
            if self.are_rounded { open.push_rounded(labels)? } else { open.push(labels)? }
        }
        if row + 1 == end {
            self.close()?;
        }
        self.row += 1;
        progress(self.observer, "import", self.row, ranges[ranges.len() - 1][1] - first);
        Ok(())
    }

    /// Commits the shard in hand, if its rows are those that were checked.
    fn close(&mut self) -> Result<(), Error> {
        if self.expected.get(self.shard) != Some(&self.content.so_far()) {
            return Err(changed());
        }
        if let Some(open) = self.open.take() {
            let written = open.finish()?;
            self.check_record(written.record())?;
            let (Commit::Won(record) | Commit::Lost(record)) = written.commit()?;
            self.check_record(&record)?;
            self.written += 1;
        }
        self.shard += 1;
        Ok(())
    }

    fn check_record(&self, found: &ShardRecord) -> Result<(), Error> {
        match self.records.map(|records| &records[self.shard]) {
            Some(expected) if expected != found => Err(softshard::other_bytes(self.shard, expected, found)),
            _ => Ok(()),
        }
    }

    /// Number of shards that were written.
    fn finish(self) -> Result<usize, Error> {
        if self.shard == self.expected.len() { Ok(self.written) } else { Err(changed()) }
    }
}

fn changed() -> Error {
    let hint = "a file changed while it was read: run again when nobody writes it";
    Error::bad("rows", "what was there when they were checked", "others").hint(hint)
}

fn check_stop(stop: &AtomicBool) -> Result<(), Error> {
    if stop.load(Ordering::Relaxed) {
        let message = "import stopped\nhint: run again to go on with the shards that are missing";
        return Err(io::Error::new(io::ErrorKind::Interrupted, message).into());
    }
    Ok(())
}

fn progress(observer: &dyn Observer, stage: &str, done: u64, total: u64) {
    let total = total.max(done);
    observer.progress(&Progress { stage, done, total, unit: "rows", ..Progress::default() });
}
