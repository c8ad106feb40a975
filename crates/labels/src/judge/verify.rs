//! Finds all that is wrong with a finished label dataset, rather than the first of it.

use std::collections::BTreeSet;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use serde::Serialize;

use crate::dataset::{LabelsManifest, check_manifest, check_sizes, folder_problems, read_manifest};
use crate::host::{DataFile, parallel};
use crate::observer::{Observer, Progress};
use crate::parquet::guarded;
use crate::shard::{LabelGroup, ShardReader, ShardRecord, ShardSchema, check_record};
use crate::values::{Error, ReadLimits, Validator, json, quoted};

/// One thing that is wrong with a dataset.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// Name of the shard, where one is concerned.
    pub shard: Option<String>,
    /// Row of that shard, from 0, where one is concerned.
    pub row: Option<u64>,
    /// Column, where one is concerned.
    pub column: Option<String>,
    /// File, key-value, row group or value, in words.
    pub place: String,
    /// What the format or the manifest asks for.
    pub expected: String,
    /// What is there.
    pub found: String,
}

/// What [`verify`] looked at and found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Verification {
    /// The dataset.
    pub dir: PathBuf,
    /// BLAKE3 of the manifest, hexadecimal; `None` where there is none that can be read.
    pub manifest_blake3: Option<String>,
    /// Shards of the manifest.
    pub shards: usize,
    /// Sizes of the files that were there.
    pub bytes: u64,
    /// Rows that were decoded and checked.
    pub rows: u64,
    /// Labelled tokens of these rows.
    pub labelled_tokens: u64,
    /// All that is wrong; empty for a good dataset. A row is named once, for the first of its columns that is wrong.
    pub problems: Vec<Problem>,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(shard) = &self.shard {
            write!(f, "shard `{shard}` ")?;
        }
        if let Some(row) = self.row {
            write!(f, "row {row} ")?;
        }
        let named = self.column.as_deref().filter(|column| !self.place.contains(column));
        if let Some(column) = named {
            write!(f, "column {column} ")?;
        }
        write!(f, "{}: expected {}, found {}", self.place, self.expected, self.found)
    }
}

impl Problem {
    /// The parts of an error; one of the file system counts as a file that cannot be read.
    fn new(error: Error, shard: Option<&str>, row: Option<u64>, column: Option<String>) -> Self {
        let (place, expected, found) = match error {
            Error::Bad(bad) => (bad.place, bad.expected, bad.found),
            error => ("file".to_owned(), "one that can be read".to_owned(), error.to_string()),
        };
        Self { shard: shard.map(str::to_owned), row, column, place, expected, found }
    }
}

/// Counts what is done over all threads, and says it in order.
struct Rows<'a> {
    observer: &'a dyn Observer,
    total: u64,
    done: Mutex<[u64; 2]>,
}

impl Rows<'_> {
    fn add(&self, rows: u64, tokens: u64) {
        let mut done = self.done.lock().unwrap_or_else(PoisonError::into_inner);
        *done = [done[0] + rows, done[1] + tokens];
        self.observer.progress(&Progress {
            stage: "verify",
            done: done[0],
            total: self.total,
            unit: "rows",
            tokens: Some(done[1]),
            ..Progress::default()
        });
    }
}

/// What became of a shard.
#[derive(Default)]
struct Checked {
    bytes: u64,
    rows: u64,
    input_tokens: u64,
    labelled_tokens: u64,
    problems: Vec<Problem>,
}

/// Checks a finished dataset in full: manifest, files, hashes, footers, and every row decoded; all shards in parallel.
///
/// Where a hash is wrong it goes on, to name the row groups, rows and columns that are damaged. Memory: one row group a
/// core; local files are mapped.
///
/// # Errors
/// [`Error::Io`] with [`io::ErrorKind::Interrupted`] when `stop` is set. All that is wrong with the dataset is in
/// [`Verification::problems`].
pub fn verify(
    dir: impl AsRef<Path>,
    limits: &ReadLimits,
    stop: &AtomicBool,
    observer: &dyn Observer,
) -> Result<Verification, Error> {
    let dir = dir.as_ref();
    let mut verification = Verification {
        dir: dir.to_owned(),
        manifest_blake3: None,
        shards: 0,
        bytes: 0,
        rows: 0,
        labelled_tokens: 0,
        problems: Vec::new(),
    };
    let manifest = match manifest(dir, limits, &mut verification) {
        Ok(manifest) => manifest,
        Err(error) => {
            verification.problems.push(Problem::new(error, None, None, None));
            return Ok(verification);
        }
    };
    let path = quoted(&dir.join("manifest.json"));
    let schema = manifest.plan.shard_schema();
    let total = manifest.shards.iter().fold(0u64, |sum, shard| sum.saturating_add(shard.rows));
    let progress = Rows { observer, total, done: Mutex::default() };
    let checked = parallel::map(manifest.shards.len(), |index| {
        let record = &manifest.shards[index];
        let checked = match check_record(&path, "labels", (index, manifest.shards.len()), record) {
            // A name that is not ours is not opened.
            Err(error) => {
                Checked { problems: vec![Problem::new(error, None, None, None)], ..Checked::default() }
            }
            Ok(()) => {
                Shard { dir, record, manifest: &manifest, schema: &schema, limits, progress: &progress, stop }
                    .check()?
            }
        };
        let skipped = record.rows.saturating_sub(checked.rows);
        if skipped > 0 {
            progress.add(skipped, 0);
        }
        Ok(checked)
    })?;
    for shard in checked {
        verification.bytes += shard.bytes;
        verification.rows += shard.rows;
        verification.labelled_tokens += shard.labelled_tokens;
        verification.problems.extend(shard.problems);
    }
    Ok(verification)
}

/// The manifest, with the problems that leave its shards worth a look.
fn manifest(
    dir: &Path,
    limits: &ReadLimits,
    verification: &mut Verification,
) -> Result<LabelsManifest, Error> {
    let (path, bytes) = read_manifest(dir)?;
    let manifest: LabelsManifest =
        json::parse(&path, &bytes, LabelsManifest::FORMAT, LabelsManifest::NEWEST_VERSION)?;
    check_sizes(&path, &manifest, limits)?;
    manifest.plan.validate().map_err(|error| error.within(quoted(&path)))?;
    verification.manifest_blake3 = Some(blake3::hash(&bytes).to_hex().to_string());
    verification.shards = manifest.shards.len();
    let mut problems: Vec<Error> = check_manifest(&path, &manifest, limits).err().into_iter().collect();
    problems.extend(folder_problems(&dir.join("data"), &manifest.shards)?);
    verification.problems = problems.into_iter().map(|error| Problem::new(error, None, None, None)).collect();
    Ok(manifest)
}

/// A shard and what it is checked against.
struct Shard<'a> {
    dir: &'a Path,
    record: &'a ShardRecord,
    manifest: &'a LabelsManifest,
    schema: &'a ShardSchema,
    limits: &'a ReadLimits,
    progress: &'a Rows<'a>,
    stop: &'a AtomicBool,
}

impl Shard<'_> {
    fn problem(&self, error: Error, row: Option<u64>, column: Option<String>) -> Problem {
        Problem::new(error, Some(&self.record.file), row, column)
    }

    fn check(&self) -> Result<Checked, Error> {
        let mut checked = Checked::default();
        let path = self.dir.join("data").join(&self.record.file);
        // A missing file or a link was named by the look at the folder.
        if !fs_err::symlink_metadata(&path).is_ok_and(|metadata| metadata.is_file()) {
            return Ok(checked);
        }
        let opened = DataFile::open(&path, self.limits.memory_map);
        let (file, [blake3, sha256]) =
            match opened.and_then(|file| file.hashes().map(|hashes| (file, hashes))) {
                Ok(opened) => opened,
                Err(error) => {
                    checked.problems.push(self.problem(error, None, None));
                    return Ok(checked);
                }
            };
        checked.bytes = u64::try_from(file.len()).unwrap_or(u64::MAX);
        let mut differs = |place: &str, expected: String, found: String| {
            if expected != found {
                checked.problems.push(self.problem(Error::bad(place, expected, found), None, None));
            }
        };
        differs("file", format!("{} bytes", self.record.bytes), format!("{} bytes", file.len()));
        differs("file", format!("BLAKE3 {}", self.record.blake3), format!("BLAKE3 {blake3}"));
        differs("file", format!("SHA-256 {}", self.record.sha256), format!("SHA-256 {sha256}"));
        let reader = match ShardReader::from_file(file, self.record, self.schema, self.limits) {
            Ok(reader) => reader,
            Err(error) => {
                checked.problems.push(self.problem(error, None, None));
                return Ok(checked);
            }
        };
        let mut first_row = 0;
        for group in 0..reader.groups() {
            if self.stop.load(Ordering::Relaxed) {
                return Err(io::Error::new(io::ErrorKind::Interrupted, "interrupted while verifying").into());
            }
            self.check_group(&reader, group, first_row, &mut checked);
            first_row += u64::try_from(reader.group_rows(group)).expect("a count fits 64 bits");
        }
        self.check_sums(&mut checked);
        Ok(checked)
    }

    /// Hash, then each column, then each row.
    fn check_group(&self, reader: &ShardReader, group: usize, first_row: u64, checked: &mut Checked) {
        let _share = reader.share(group);
        let rows = u64::try_from(reader.group_rows(group)).expect("a count fits 64 bits");
        let place = format!("row group {group} (rows {first_row}..{})", first_row + rows);
        match reader.wrong_hash(group) {
            Ok(None) => {}
            Ok(Some([expected, found])) => {
                let error = Error::bad(place, format_args!("BLAKE3 {expected}"), found);
                checked.problems.push(self.problem(error, None, None));
            }
            Err(error) => checked.problems.push(self.problem(error.within(place), None, None)),
        }
        let limits = self.manifest.plan.limits();
        let labels = match reader.decode_unverified(group, |pages, chunks| {
            let mut labels = LabelGroup::default();
            labels.decode(pages, chunks, &limits).map(|()| labels)
        }) {
            Ok(labels) => labels,
            Err(error) => {
                let before = checked.problems.len();
                for column in 0..self.schema.message.get_fields().len() {
                    let decoded = reader.decode_unverified(group, |pages, chunks| {
                        LabelGroup::try_column(pages, chunks, column, &limits)
                    });
                    if let Err(error) = decoded {
                        let error = error.within(format_args!("row group {group}"));
                        checked.problems.push(self.problem(error, None, Some(reader.column_name(column))));
                    }
                }
                if checked.problems.len() == before {
                    checked.problems.push(self.problem(error, None, None));
                }
                return;
            }
        };
        let mut validator = Validator::new(&limits);
        for row in 0..labels.sequences.rows() {
            if let Err(error) = guarded(|| labels.check_row(row, &mut validator, self.limits)) {
                let column = self.column_of(&error);
                let row = first_row + u64::try_from(row).expect("a row fits 64 bits");
                checked.problems.push(self.problem(error, Some(row), column));
                // What an error leaves behind in the scratch memory is not for the next row.
                validator = Validator::new(&limits);
            }
        }
        let count = |count: usize| u64::try_from(count).expect("a count fits 64 bits");
        let tokens = count(labels.sequences.labelled_tokens());
        checked.rows += rows;
        checked.input_tokens += count(labels.sequences.input_tokens());
        checked.labelled_tokens += tokens;
        self.progress.add(rows, tokens);
    }

    /// The column that the place of an error begins with or holds.
    fn column_of(&self, error: &Error) -> Option<String> {
        let Error::Bad(bad) = error else { return None };
        let words: BTreeSet<&str> =
            bad.place.split(|letter: char| !letter.is_alphanumeric() && letter != '_').collect();
        if words.contains("count") {
            return Some("counts".to_owned());
        }
        let plan = &self.manifest.plan;
        for (field, columns) in
            [("log_partitions", plan.partition_columns()), ("tail_log_masses", plan.tail_columns())]
        {
            if let Some(index) = temperature_of(&bad.place, field) {
                return columns.into_iter().nth(index);
            }
        }
        let fields = self.schema.message.get_fields();
        fields.iter().map(|field| field.name()).find(|name| words.contains(name)).map(str::to_owned)
    }

    /// Tokens of the manifest, where every row was decoded.
    fn check_sums(&self, checked: &mut Checked) {
        if checked.rows != self.record.rows {
            return;
        }
        let found = [checked.input_tokens, checked.labelled_tokens];
        let expected = [self.record.input_tokens, self.record.labelled_tokens];
        if found != expected {
            let [expected, found] = [expected, found].map(|sums| format!("{sums:?}"));
            let error = Error::bad("input and labelled tokens", expected, found);
            checked.problems.push(self.problem(error, None, None));
        }
    }
}

/// Which extra temperature the place of an error names, if it is in this field.
fn temperature_of(place: &str, field: &str) -> Option<usize> {
    let (_, rest) = place.split_once(field)?;
    let rest = rest.strip_prefix('[')?;
    rest.split_once(']')?.0.parse().ok()
}

#[cfg(test)]
mod tests {
    use crate::values::Validator;
    use crate::values::{LabelLimits, SequenceLabels};

    #[test]
    fn the_column_of_a_temperature_is_found() {
        let limits = LabelLimits {
            input_vocab_size: 9,
            label_vocab_size: 9,
            entries_per_position: [1, 9],
            exact_entries: 9,
            draws: None,
            omit: Vec::new(),
            temperatures: 2,
            tails: true,
        };
        let good = SequenceLabels {
            input_ids: vec![1, 2],
            positions: vec![1],
            counts: vec![1],
            token_ids: vec![2],
            log_probs: vec![-0.5],
            log_sum_exp: vec![0.0],
            tail_log_mass: vec![-1.0],
            entropy: vec![0.7],
            gold_log_prob: vec![-0.5],
            log_partitions: vec![vec![1.0]; 2],
            tail_log_masses: vec![vec![-1.0]; 2],
            ..SequenceLabels::default()
        };
        for column in [vec![f32::NAN], vec![]] {
            let mut bad = good.clone();
            bad.log_partitions[1] = column;
            let error = Validator::new(&limits).labels(&(&bad).into()).unwrap_err().to_string();
            assert_eq!(super::temperature_of(&error, "log_partitions"), Some(1), "{error}");
        }
        for column in [vec![f32::NAN], vec![0.5], vec![]] {
            let mut bad = good.clone();
            bad.tail_log_masses[1] = column;
            let error = Validator::new(&limits).labels(&(&bad).into()).unwrap_err().to_string();
            assert_eq!(super::temperature_of(&error, "tail_log_masses"), Some(1), "{error}");
        }
        assert_eq!(super::temperature_of("log_sum_exp[0]", "log_partitions"), None);
    }
}
