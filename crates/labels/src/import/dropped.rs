//! Rows that cannot be read: refused, or left out, counted and listed.

use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::changed;
use crate::host::TempFile;
use crate::values::{Bad, Error};

/// What a row that cannot be read means.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BadRows {
    /// The end of the import, before anything is written.
    #[default]
    Refuse,
    /// One row fewer: it is counted, and listed in a file beside the labels.
    Drop,
}

/// The rows that an import left out.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct DroppedRows {
    /// How many.
    pub count: u64,
    /// What is wrong with the first of them: file, line or row, and reason.
    pub first: Vec<String>,
    /// JSONL with all of them, if there are any.
    pub list: Option<PathBuf>,
}

impl DroppedRows {
    /// Rows whose reasons are kept in memory.
    const SHOWN: usize = 10;
    /// Name of the list, in the folder of the labels.
    const LIST: &'static str = "dropped_rows.jsonl";
}

/// Bad rows as they are found in the first reading.
pub(crate) struct BadRowsFound {
    rule: BadRows,
    rows: DroppedRows,
    /// Their places among all rows.
    places: Vec<u64>,
    row: u64,
}

impl BadRowsFound {
    pub(crate) fn new(rule: BadRows) -> Self {
        Self { rule, rows: DroppedRows::default(), places: Vec::new(), row: 0 }
    }

    /// Counts a row, which is refused or noted if it is bad.
    pub(crate) fn add(&mut self, row: Result<(), Box<Bad>>) -> Result<(), Error> {
        if let Err(bad) = row {
            if self.rule == BadRows::Refuse {
                let hint = "--bad-rows drop leaves out such rows, counts and lists them";
                return Err(Error::Bad(bad).also_hint(hint));
            }
            if self.rows.first.len() < DroppedRows::SHOWN {
                self.rows.first.push(bad.without_hint());
            }
            self.rows.count += 1;
            self.places.push(self.row);
        }
        self.row += 1;
        Ok(())
    }

    /// What to say where no row is left.
    pub(crate) fn explain(&self, error: Error) -> Error {
        let Error::Bad(mut bad) = error else { return error };
        if let Some(first) = self.rows.first.first() {
            bad.found = format!(
                "{}, and {} rows that cannot be read, the first: {first}",
                bad.found, self.rows.count
            );
        }
        Error::Bad(bad)
    }

    /// Writes the list in the second reading, below the labels at `output`.
    pub(crate) fn into_list(self, output: &Path) -> Result<DroppedList, Error> {
        let file = match self.places.is_empty() {
            true => None,
            false => {
                let (temp, file) = TempFile::create(output)?;
                Some((temp, BufWriter::new(file)))
            }
        };
        Ok(DroppedList { to: output.join(DroppedRows::LIST), file, found: self, next: 0, row: 0 })
    }
}

/// The list of the rows that were found to be bad, as it is written.
pub(crate) struct DroppedList {
    to: PathBuf,
    file: Option<(TempFile, BufWriter<fs_err::File>)>,
    found: BadRowsFound,
    /// The next of the places.
    next: usize,
    row: u64,
}

/// A line of the list.
#[derive(Serialize)]
struct Line<'a> {
    place: &'a str,
    expected: &'a str,
    found: &'a str,
}

impl DroppedList {
    /// Whether the next row was found to be bad.
    pub(crate) fn has_next(&self) -> bool {
        self.found.places.get(self.next) == Some(&self.row)
    }

    /// Goes to the next row; one that was found to be bad is written.
    pub(crate) fn add<T>(&mut self, row: Result<T, Box<Bad>>) -> Result<Option<T>, Error> {
        let is_bad = self.has_next();
        self.row += 1;
        match (row, is_bad) {
            (Ok(row), false) => Ok(Some(row)),
            (Err(bad), true) => {
                self.next += 1;
                let Bad { place, expected, found, .. } = &*bad;
                if let Some((_, to)) = &mut self.file {
                    serde_json::to_writer(&mut *to, &Line { place, expected, found })
                        .map_err(std::io::Error::from)?;
                    to.write_all(b"\n")?;
                }
                Ok(None)
            }
            _ => Err(changed()),
        }
    }

    /// Gives the list its name.
    pub(crate) fn finish(self) -> Result<DroppedRows, Error> {
        if self.next != self.found.places.len() {
            return Err(changed());
        }
        let mut rows = self.found.rows;
        if let Some((temp, mut file)) = self.file {
            file.flush()?;
            file.get_ref().sync_all()?;
            temp.rename(&self.to)?;
            rows.list = Some(self.to);
        }
        Ok(rows)
    }
}
