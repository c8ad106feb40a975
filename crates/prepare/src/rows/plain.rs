//! Rows as they stand in a file, whatever their columns mean.

use std::path::Path;
use std::sync::atomic::AtomicBool;

use super::file::Inputs;
use super::reading::{Raw, Raws};
use super::{Place, shape};
use crate::value::Value;
use crate::{DataConfig, Error};

/// A row of a file, which says nothing but its columns.
#[derive(Clone, Debug)]
pub struct FileRow {
    place: Place,
    /// An object: its columns by their names.
    pub columns: Value,
}

impl FileRow {
    /// `file.jsonl:12`: without the folder, so that the same data gives the same bytes on every machine.
    pub fn source(&self) -> String {
        self.place.source()
    }

    /// An error that names the row: what was expected and what was found, and what to do.
    pub fn error(&self, problem: impl Into<String>, hint: &'static str) -> Error {
        self.place.error(problem, hint)
    }
}

/// The rows of a file (JSONL, a JSON array or Parquet, packed or not), the first `limit` of them if there is one.
///
/// # Errors
/// The file cannot be read, is of another kind, or has a row that is no object.
pub fn file_rows(path: &Path, limit: Option<usize>) -> Result<Vec<FileRow>, Error> {
    let data = DataConfig::of_file(path.to_owned(), limit);
    let never = AtomicBool::new(false);
    let inputs = Inputs::open(&data, None, &never)?;
    let mut raws = Raws::new(&inputs, &data, &never);
    let mut rows = Vec::new();
    loop {
        let (step, end) = raws.step();
        let is_last = step.is_empty();
        for (_, Raw { place, body }) in step {
            let columns = Value::Object(shape::columns(body, &place)?);
            rows.push(FileRow { place, columns });
        }
        end?;
        if is_last {
            return Ok(rows);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_what_the_file_says() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("rows.jsonl");
        fs_err::write(&path, "{\"a\": 1, \"question\": \"x\"}\n\n{\"b\": [\"y\"]}\n").expect("written");
        let rows = file_rows(&path, None).expect("rows");
        let sources: Vec<String> = rows.iter().map(FileRow::source).collect();
        assert_eq!(sources, ["rows.jsonl:1", "rows.jsonl:3"]);
        assert_eq!(rows[0].columns.get("question").and_then(Value::as_text), Some("x"));
        assert_eq!(file_rows(&path, Some(1)).expect("rows").len(), 1);
        fs_err::write(&path, "{\"a\": 1}\n[2]\n").expect("written");
        let error = file_rows(&path, None).expect_err("no row").to_string();
        assert!(error.contains("rows.jsonl` line 2: expected one JSON object"), "{error}");
        fs_err::write(&path, "a,b\n1,2\n").expect("written");
        assert!(file_rows(&path, None).expect_err("a table").to_string().contains("(CSV)"));
        assert!(file_rows(&folder.path().join("none"), None).expect_err("none").to_string().contains("none"));
    }
}
