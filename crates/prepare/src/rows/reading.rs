//! A reading of all rows, a step at a time: parsed in parallel, counted, and known again by its bytes.

use std::hash::{DefaultHasher, Hasher};
use std::sync::atomic::{AtomicBool, Ordering};

use rayon::prelude::*;

use super::file::{Inputs, Source};
use super::{Place, Row, shape};
use crate::summary::RowCounts;
use crate::value::Value;
use crate::{DataConfig, Error};

/// Rows that are parsed and encoded in one parallel step; the stop flag is looked at in between.
const ROWS_PER_STEP: usize = 1024;
/// A step ends here too, so that long rows do not fill the memory.
const BYTES_PER_STEP: usize = 64 << 20;
/// How often the stop flag is looked at while nothing comes that is a row.
const BLANKS_PER_LOOK: u32 = 4096;

/// A row as it stands in a file.
pub(super) struct Raw {
    pub(super) place: Place,
    pub(super) body: Body,
}

pub(super) enum Body {
    /// The text of an object, not yet parsed.
    Json(String),
    /// A row of a table, and about how many bytes it takes.
    Columns(Vec<(String, Value)>, usize),
    Document(String),
}

impl Raw {
    fn bytes(&self) -> usize {
        match &self.body {
            Body::Json(text) | Body::Document(text) => text.len(),
            Body::Columns(_, bytes) => *bytes,
        }
    }

    /// Tells rows apart that differ by accident, and is fast: it is never written.
    fn hash(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        match &self.body {
            Body::Json(text) | Body::Document(text) => hasher.write(text.as_bytes()),
            Body::Columns(columns, _) => {
                for column in columns {
                    hasher.write(&serde_json::to_vec(column).expect("values are JSON"));
                }
            }
        }
        hasher.finish()
    }
}

/// What a row has beside its content; counted.
#[derive(Debug, Default)]
pub(super) struct Notes {
    pub(super) shape: &'static str,
    pub(super) merged_system_text: bool,
    pub(super) turns_not_trained: u64,
    pub(super) joined_parts: u64,
    pub(super) unused: Vec<String>,
    pub(super) ignored: Vec<String>,
}

/// What was read: to be compared with another reading, and to be told.
pub(crate) struct Reading {
    /// Rows of each file, and a hash of them.
    files: Vec<(u64, DefaultHasher)>,
    /// What they were.
    pub(crate) counts: RowCounts,
}

impl Reading {
    /// All rows.
    pub(crate) fn rows(&self) -> u64 {
        self.files.iter().map(|(rows, _)| rows).sum()
    }

    /// The first reading decided what the second one does, so both must have seen the same.
    ///
    /// # Errors
    /// [`Error::File`] with the first file that changed in between.
    pub(crate) fn check_same(&self, again: &Self, inputs: &Inputs) -> Result<(), Error> {
        for (file, ((rows, hash), (rows_again, hash_again))) in
            self.files.iter().zip(&again.files).enumerate()
        {
            let change = if rows != rows_again {
                format!("{rows} rows, as when it was checked, found {rows_again}")
            } else if hash.finish() != hash_again.finish() {
                "the rows that were checked, found others".to_owned()
            } else {
                continue;
            };
            let hint =
                "the file was written to meanwhile; run the same command again when nothing writes to it";
            return Err(Error::file(inputs.path(file), format!("expected {change}"), hint));
        }
        Ok(())
    }
}

impl Inputs {
    /// Gives all rows to `work`, in their order, a step at a time.
    ///
    /// # Errors
    /// That of the first row that is bad; [`Error::Interrupted`].
    pub(crate) fn for_each_step(
        &self,
        data: &DataConfig,
        stop: &AtomicBool,
        mut work: impl FnMut(&[Row]) -> Result<(), Error>,
    ) -> Result<Reading, Error> {
        let files = (0..self.len()).map(|_| (0, DefaultHasher::new())).collect();
        let mut reading = Reading { files, counts: RowCounts::new(&data.ignore_columns) };
        let mut raws = Raws::new(self, data, stop);
        loop {
            let (step, end) = raws.step();
            let parsed: Vec<_> = step
                .into_par_iter()
                .map(|(file, raw)| {
                    let hash = raw.hash();
                    shape::parse(raw, data).map(|(row, notes)| (file, hash, row, notes))
                })
                .collect();
            let mut rows = Vec::with_capacity(parsed.len());
            for parsed in parsed {
                let (file, hash, row, notes) = parsed?;
                reading.files[file].0 += 1;
                reading.files[file].1.write_u64(hash);
                reading.counts.add(
                    notes.shape,
                    notes.merged_system_text,
                    notes.turns_not_trained,
                    notes.joined_parts,
                );
                reading.counts.add_columns(&notes.unused, &notes.ignored);
                rows.push(row);
            }
            end?;
            if rows.is_empty() {
                return Ok(reading);
            }
            work(&rows)?;
        }
    }
}

/// Rows of one file after another.
pub(super) struct Raws<'a> {
    inputs: &'a Inputs,
    data: &'a DataConfig,
    stop: &'a AtomicBool,
    file: usize,
    source: Option<Source<'a>>,
    /// Rows that the recipe still wants.
    left: Option<usize>,
}

impl<'a> Raws<'a> {
    pub(super) fn new(inputs: &'a Inputs, data: &'a DataConfig, stop: &'a AtomicBool) -> Self {
        Self { inputs, data, stop, file: 0, source: None, left: data.limit }
    }

    /// The next rows, with the number of their file, and what ended them if it is an error; none at the end.
    pub(super) fn step(&mut self) -> (Vec<(usize, Raw)>, Result<(), Error>) {
        let (mut step, mut bytes) = (Vec::new(), 0);
        while step.len() < ROWS_PER_STEP && bytes < BYTES_PER_STEP && self.left != Some(0) {
            match self.next() {
                Ok(Some((file, raw))) => {
                    bytes += raw.bytes();
                    step.push((file, raw));
                    self.left = self.left.map(|left| left - 1);
                }
                Ok(None) => break,
                Err(error) => return (step, Err(error)),
            }
        }
        (step, Ok(()))
    }

    fn next(&mut self) -> Result<Option<(usize, Raw)>, Error> {
        let mut blanks = 0u32;
        loop {
            if blanks.is_multiple_of(BLANKS_PER_LOOK) && self.stop.load(Ordering::Relaxed) {
                return Err(Error::Interrupted);
            }
            let source = match &mut self.source {
                Some(source) => source,
                None if self.file == self.inputs.len() => return Ok(None),
                None => self.source.insert(self.inputs.source(self.file, self.data)?),
            };
            match source.advance().transpose()? {
                Some(Some(raw)) => return Ok(Some((self.file, raw))),
                Some(None) => blanks = blanks.wrapping_add(1),
                None => {
                    self.source = None;
                    self.file += 1;
                }
            }
        }
    }
}
