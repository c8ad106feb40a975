//! Rows of Parquet files, as Hugging Face datasets write them: columns put together to rows.

use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::Arc;

use parquet::basic::Compression;
use parquet::column::reader::{ColumnReader, ColumnReaderImpl};
use parquet::data_type::DataType;
use parquet::errors::ParquetError;
use parquet::file::reader::{FileReader, RowGroupReader, SerializedFileReader};

use super::columns::{ignore_hint, is_conversation};
use super::reading::{Body, Raw};
use super::schema::{Builder, Leaf, Node};
use super::{MAX_ROW_BYTES, Place};
use crate::Error;
use crate::value::Value;

/// Rows that are taken out of the columns at once.
const ROWS_PER_BATCH: usize = 64;

const DAMAGED: &str = "the file is damaged, or was not written to its end: fetch or write it again";

/// A Parquet file. Memory: a page of each column, and some rows.
pub(super) struct Table {
    path: Arc<PathBuf>,
    reader: SerializedFileReader<File>,
    columns: Vec<(String, Node)>,
    leaves: Vec<Leaf>,
    /// Columns of the present row group, by leaf; `None` for those that are ignored.
    cursors: Vec<Option<Cursor>>,
    group: usize,
    rows_left: usize,
    in_batch: usize,
    row: u64,
}

/// Why a row cannot be read.
enum Damage {
    Levels,
    Reader(String),
}

impl From<ParquetError> for Damage {
    fn from(error: ParquetError) -> Self {
        Self::Reader(error.to_string())
    }
}

impl Table {
    pub(super) fn open(file: File, path: Arc<PathBuf>, ignored: &[String]) -> Result<Self, Error> {
        let damaged = |found: String| {
            Error::file(&path, format!("expected a whole Parquet file, found {found}"), DAMAGED)
        };
        let reader =
            guarded(|| Ok(SerializedFileReader::new(file)?)).map_err(|damage| damaged(damage.text()))?;
        let schema = reader.metadata().file_metadata().schema();
        let mut builder = Builder::default();
        let mut columns = Vec::new();
        for field in schema.get_fields() {
            let node = builder.node(field, 0, 0, 0).map_err(damaged)?;
            if !ignored.iter().any(|name| name == field.name()) {
                columns.push((field.name().to_owned(), node));
            }
        }
        let leaves = builder.leaves;
        Ok(Self {
            path,
            reader,
            columns,
            leaves,
            cursors: Vec::new(),
            group: 0,
            rows_left: 0,
            in_batch: 0,
            row: 0,
        })
    }

    fn place(&self) -> Place {
        Place { path: Arc::clone(&self.path), line: self.row.max(1), unit: "row" }
    }

    pub(super) fn next_row(&mut self) -> Option<Result<Raw, Error>> {
        match self.is_at_row() {
            Ok(true) => {}
            Ok(false) => return None,
            Err(error) => return Some(Err(error)),
        }
        self.rows_left -= 1;
        self.in_batch -= 1;
        self.row += 1;
        Some(self.read_row())
    }

    /// Goes to the next row group or batch of rows where one is at its end.
    fn is_at_row(&mut self) -> Result<bool, Error> {
        while self.rows_left == 0 {
            if self.group == self.reader.num_row_groups() {
                return Ok(false);
            }
            self.open_group()?;
        }
        if self.in_batch == 0 {
            self.in_batch = self.rows_left.min(ROWS_PER_BATCH);
            for cursor in self.cursors.iter_mut().flatten() {
                let rows = self.in_batch;
                if let Err(damage) = guarded(|| cursor.fill(rows)) {
                    let place = Place { path: Arc::clone(&self.path), line: self.row + 1, unit: "row" };
                    return Err(damage.at(&place));
                }
            }
        }
        Ok(true)
    }

    fn open_group(&mut self) -> Result<(), Error> {
        let place = Place { path: Arc::clone(&self.path), line: self.row + 1, unit: "row" };
        let mut wanted = Vec::new();
        self.columns.iter().for_each(|(_, node)| node.leaves(&mut wanted));
        let (reader, group, leaves) = (&self.reader, self.group, &self.leaves);
        let opened = guarded(|| {
            let group = reader.get_row_group(group)?;
            let mut cursors: Vec<Option<Cursor>> = leaves.iter().map(|_| None).collect();
            for leaf in wanted {
                cursors[leaf] = Some(Cursor::open(&*group, leaf, leaves[leaf])?);
            }
            let rows = usize::try_from(group.metadata().num_rows()).map_err(|_| Damage::Levels)?;
            Ok((cursors, rows))
        });
        (self.cursors, self.rows_left) = opened.map_err(|damage| damage.at(&place))?;
        self.group += 1;
        Ok(())
    }

    fn read_row(&mut self) -> Result<Raw, Error> {
        let place = self.place();
        let mut fields = Vec::with_capacity(self.columns.len());
        let mut bytes = 0;
        for (name, node) in &self.columns {
            let mut row = RowReader { cursors: &mut self.cursors, bytes: &mut bytes, unlike: None };
            let value = row.read(node).map_err(|damage| damage.at(&place))?;
            match row.unlike {
                None => fields.push((name.clone(), value)),
                // What nobody would use does not need to be read.
                Some(found) if is_conversation(name) => {
                    let problem =
                        format!("expected texts, numbers, lists or objects in `{name}`, found {found}");
                    return Err(place.error(problem, ignore_hint(name)));
                }
                Some(_) => {}
            }
        }
        if bytes > MAX_ROW_BYTES {
            let problem = format!("expected at most {MAX_ROW_BYTES} bytes in a row, found {bytes}");
            return Err(place.error(problem, "`data.ignore_columns` leaves columns out, such as images"));
        }
        Ok(Raw { place, body: Body::Columns(fields, bytes) })
    }
}

impl Damage {
    fn text(&self) -> String {
        match self {
            Self::Levels => "columns that do not fit together".into(),
            Self::Reader(problem) => problem.clone(),
        }
    }

    fn at(&self, place: &Place) -> Error {
        place.error(format!("expected a readable row of Parquet, found {}", self.text()), DAMAGED)
    }
}

/// A panic of a decoder on damaged data is an error as others.
fn guarded<T>(decode: impl FnOnce() -> Result<T, Damage>) -> Result<T, Damage> {
    catch_unwind(AssertUnwindSafe(decode)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no message");
        Err(Damage::Reader(format!("what its decoder cannot read: {text}")))
    })
}

/// A leaf column of a row group: some rows of it, and where the next one begins.
struct Cursor {
    reader: ColumnReader,
    leaf: Leaf,
    max_level: i16,
    levels: Vec<i16>,
    repetitions: Vec<i16>,
    values: Vec<Result<Value, &'static str>>,
    at: usize,
    value: usize,
}

impl Cursor {
    fn open(group: &dyn RowGroupReader, leaf: usize, kind: Leaf) -> Result<Self, Damage> {
        let column = group.metadata().column(leaf);
        match column.compression() {
            Compression::UNCOMPRESSED | Compression::SNAPPY | Compression::ZSTD(_) => {}
            codec => {
                let found = format!("columns packed with {codec}; Snappy, zstd and none are read");
                return Err(Damage::Reader(found));
            }
        }
        let max_level = column.column_descr().max_def_level();
        let reader = group.get_column_reader(leaf)?;
        let (levels, repetitions, values) = (Vec::new(), Vec::new(), Vec::new());
        Ok(Self { reader, leaf: kind, max_level, levels, repetitions, values, at: 0, value: 0 })
    }

    /// Reads the next rows.
    fn fill(&mut self, rows: usize) -> Result<(), Damage> {
        self.levels.clear();
        self.repetitions.clear();
        self.values.clear();
        (self.at, self.value) = (0, 0);
        let leaf = self.leaf;
        let (levels, repetitions, values) = (&mut self.levels, &mut self.repetitions, &mut self.values);
        let is_signed = leaf != Leaf::Unsigned;
        let read = match &mut self.reader {
            ColumnReader::BoolColumnReader(reader) => {
                read(reader, rows, levels, repetitions, values, |value| Ok(Value::Bool(*value)))
            }
            ColumnReader::Int32ColumnReader(reader) => {
                read(reader, rows, levels, repetitions, values, |value| {
                    whole(
                        leaf,
                        if is_signed { i128::from(*value) } else { i128::from(value.cast_unsigned()) },
                    )
                })
            }
            ColumnReader::Int64ColumnReader(reader) => {
                read(reader, rows, levels, repetitions, values, |value| {
                    whole(
                        leaf,
                        if is_signed { i128::from(*value) } else { i128::from(value.cast_unsigned()) },
                    )
                })
            }
            ColumnReader::FloatColumnReader(reader) => {
                read(reader, rows, levels, repetitions, values, |value| Ok(Value::Float(f64::from(*value))))
            }
            ColumnReader::DoubleColumnReader(reader) => {
                read(reader, rows, levels, repetitions, values, |value| Ok(Value::Float(*value)))
            }
            ColumnReader::ByteArrayColumnReader(reader) => {
                read(reader, rows, levels, repetitions, values, |value| text(leaf, value.data()))
            }
            ColumnReader::Int96ColumnReader(reader) => {
                read(reader, rows, levels, repetitions, values, |_| Err("times of an old type"))
            }
            ColumnReader::FixedLenByteArrayColumnReader(reader) => {
                read(reader, rows, levels, repetitions, values, |_| Err("bytes"))
            }
        }?;
        let entries = if self.max_level > 0 { self.levels.len() } else { self.values.len() };
        if read != rows || entries < rows {
            return Err(Damage::Reader("fewer rows in a column than the footer says".into()));
        }
        Ok(())
    }

    fn level(&self) -> Result<i16, Damage> {
        if self.max_level == 0 {
            return Ok(0);
        }
        self.levels.get(self.at).copied().ok_or(Damage::Levels)
    }

    /// Which list the present entry goes on; 0 for a new row.
    fn repetition(&self) -> i16 {
        self.repetitions.get(self.at).copied().unwrap_or(0)
    }

    /// The present entry's value, and goes on.
    fn take(&mut self) -> Result<Result<Value, &'static str>, Damage> {
        let is_there = self.level()? == self.max_level;
        self.at += 1;
        if !is_there {
            return Ok(Ok(Value::Null));
        }
        let value = self.values.get_mut(self.value).ok_or(Damage::Levels)?;
        self.value += 1;
        Ok(std::mem::replace(value, Ok(Value::Null)))
    }
}

fn whole(leaf: Leaf, value: i128) -> Result<Value, &'static str> {
    if leaf == Leaf::Other { Err("decimals") } else { Ok(Value::Int(value)) }
}

fn text(leaf: Leaf, bytes: &[u8]) -> Result<Value, &'static str> {
    match leaf {
        Leaf::Json => serde_json::from_slice(bytes).map_err(|_| "text that is no JSON, as its type says"),
        Leaf::Other => Err("decimals"),
        _ => match std::str::from_utf8(bytes) {
            Ok(text) => Ok(text.into()),
            Err(_) => Err("bytes that are no UTF-8"),
        },
    }
}

fn read<D: DataType>(
    reader: &mut ColumnReaderImpl<D>,
    rows: usize,
    levels: &mut Vec<i16>,
    repetitions: &mut Vec<i16>,
    values: &mut Vec<Result<Value, &'static str>>,
    convert: impl Fn(&D::T) -> Result<Value, &'static str>,
) -> Result<usize, Damage> {
    let mut read = Vec::new();
    let mut total = 0;
    while total < rows {
        let (records, ..) = reader.read_records(rows - total, Some(levels), Some(repetitions), &mut read)?;
        if records == 0 {
            break;
        }
        total += records;
    }
    values.extend(read.iter().map(convert));
    Ok(total)
}

/// Puts the leaves of one row together.
struct RowReader<'a> {
    cursors: &'a mut [Option<Cursor>],
    bytes: &'a mut usize,
    /// A value that has no like in JSON; null stands in its place.
    unlike: Option<&'static str>,
}

impl RowReader<'_> {
    fn cursor(&mut self, leaf: usize) -> Result<&mut Cursor, Damage> {
        self.cursors[leaf].as_mut().ok_or(Damage::Levels)
    }

    fn level(&mut self, node: &Node) -> Result<i16, Damage> {
        let leaf = node.first_leaf().ok_or(Damage::Levels)?;
        self.cursor(leaf)?.level()
    }

    /// Goes on behind a value that is not there: each leaf has one entry for it.
    fn skip(&mut self, node: &Node) -> Result<(), Damage> {
        let mut leaves = Vec::new();
        node.leaves(&mut leaves);
        leaves.into_iter().try_for_each(|leaf| self.cursor(leaf)?.take().map(|_| ()))
    }

    fn read(&mut self, node: &Node) -> Result<Value, Damage> {
        match node {
            Node::Leaf { leaf } => match self.cursor(*leaf)?.take()? {
                Ok(value) => {
                    *self.bytes += value.as_text().map_or(8, str::len);
                    Ok(value)
                }
                Err(found) => {
                    self.unlike = Some(found);
                    Ok(Value::Null)
                }
            },
            Node::Group { level, .. } if self.level(node)? < *level => self.skip(node).map(|()| Value::Null),
            Node::Group { fields, .. } => {
                let mut object = Vec::with_capacity(fields.len());
                for (name, field) in fields {
                    let value = self.read(field)?;
                    // A table has a field in all objects if one has it; only `content` may be null and mean it.
                    if value != Value::Null || name == "content" {
                        object.push((name.clone(), value));
                    }
                }
                Ok(Value::Object(object))
            }
            Node::List { level, .. } if self.level(node)? < *level => self.skip(node).map(|()| Value::Null),
            Node::List { level, repetition, item } => {
                if self.level(node)? == *level {
                    return self.skip(node).map(|()| Value::List(Vec::new()));
                }
                let first = item.first_leaf().ok_or(Damage::Levels)?;
                let mut items = Vec::new();
                loop {
                    items.push(self.read(item)?);
                    if self.cursor(first)?.repetition() < *repetition {
                        return Ok(Value::List(items));
                    }
                }
            }
        }
    }
}
