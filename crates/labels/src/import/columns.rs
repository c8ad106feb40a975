//! Columns of Parquet files that others wrote: numbers, lists, and lists in lists, row by row.

use std::path::Path;

use half::f16;
use parquet::basic::{Compression, LogicalType, Repetition};
use parquet::column::reader::{ColumnReader, ColumnReaderImpl};
use parquet::data_type::DataType;
use parquet::errors::ParquetError;
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::schema::types::{ColumnDescriptor, Type};

use crate::host::{Links, regular};
use crate::parquet::guarded;
use crate::values::{Error, quoted};

/// A Parquet file of which some columns are read, one row at a time. Memory: a page of each column.
pub(crate) struct ForeignFile {
    pub(crate) place: String,
    pub(crate) name: String,
    reader: SerializedFileReader<std::fs::File>,
    /// Leaf column of each name that was asked for; `None` for one that may lack and does.
    leaves: Vec<Option<usize>>,
    names: Vec<String>,
    columns: Vec<Option<Column>>,
    group: usize,
    rows_left: i64,
    row: u64,
}

/// One column of a row group.
struct Column {
    reader: ColumnReader,
    levels: Levels,
    is_f16: bool,
}

/// Definition levels from which on something is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Levels {
    /// Of an element of the outer and of the inner list, as far as there are such.
    lists: [i16; 2],
    depth: i16,
    value: i16,
}

/// What a column holds in one row.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Cell<T> {
    pub(crate) values: Vec<T>,
    /// For lists in lists: where each inner list ends in `values`.
    pub(crate) ends: Option<Vec<usize>>,
    /// Whether a number lacks; 0 stands for it.
    pub(crate) has_nulls: bool,
}

impl<T> Cell<T> {
    /// Refuses numbers that lack, in a column of this name.
    pub(crate) fn check_nulls(&self, column: &str) -> Result<(), Error> {
        if self.has_nulls {
            return Err(Error::bad(format_args!("column `{column}` values"), "a number everywhere", "null"));
        }
        Ok(())
    }

    /// The inner lists.
    pub(crate) fn lists(&self) -> Option<impl ExactSizeIterator<Item = &[T]>> {
        let ends = self.ends.as_ref()?;
        Some((0..ends.len()).map(move |index| {
            let start = if index == 0 { 0 } else { ends[index - 1] };
            &self.values[start..ends[index]]
        }))
    }
}

impl ForeignFile {
    /// Opens a file for the columns `names`; those in `optional` may lack.
    pub(crate) fn open(path: &Path, names: &[String], optional: &[&str]) -> Result<Self, Error> {
        let place = quoted(path);
        let file = regular::open(path, Links::Followed)?.into_parts().0;
        let reader = guarded(|| {
            SerializedFileReader::new(file).map_err(|error| Error::bad("footer", "a Parquet file", error))
        })
        .map_err(|error| error.within(&place))?;
        let schema = reader.metadata().file_metadata().schema_descr();
        let mut leaves = Vec::new();
        for name in names {
            let mut found =
                (0..schema.num_columns()).filter(|leaf| schema.column(*leaf).path().parts()[0] == *name);
            match (found.next(), found.next()) {
                (Some(leaf), None) => leaves.push(Some(leaf)),
                (None, _) if optional.contains(&name.as_str()) => leaves.push(None),
                (None, _) => {
                    let has: Vec<&str> =
                        schema.root_schema().get_fields().iter().map(|field| field.name()).collect();
                    return Err(Error::bad(
                        place,
                        format_args!("column `{name}`"),
                        format_args!("only {}", has.join(", ")),
                    ));
                }
                (Some(_), Some(_)) => {
                    return Err(Error::bad(
                        place,
                        format_args!("numbers, texts or lists in column `{name}`"),
                        "a struct or a map",
                    ));
                }
            }
        }
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let names = names.to_vec();
        Ok(Self { place, name, reader, leaves, names, columns: Vec::new(), group: 0, rows_left: 0, row: 0 })
    }

    /// Rows of the file, as its footer says.
    pub(crate) fn rows(&self) -> u64 {
        u64::try_from(self.reader.metadata().file_metadata().num_rows()).unwrap_or(0)
    }

    /// Goes to the next row; says its number, from 0.
    pub(crate) fn next_row(&mut self) -> Result<Option<u64>, Error> {
        while self.rows_left == 0 {
            if self.group == self.reader.num_row_groups() {
                return Ok(None);
            }
            let group = self.group;
            let place = format!("{} row group {group}", self.place);
            self.columns = guarded(|| {
                let reader = self.reader.get_row_group(group).map_err(unreadable)?;
                let open = |leaf: usize| {
                    check_codec(reader.metadata().column(leaf).compression())?;
                    let descriptor = reader.metadata().column(leaf).column_descr_ptr();
                    let levels = Levels::of(self.reader.metadata().file_metadata().schema(), &descriptor)?;
                    let is_f16 = descriptor.logical_type_ref() == Some(&LogicalType::Float16);
                    let reader = reader.get_column_reader(leaf).map_err(unreadable)?;
                    Ok(Column { reader, levels, is_f16 })
                };
                self.leaves.iter().map(|leaf| leaf.map(open).transpose()).collect()
            })
            .map_err(|error: Error| error.within(&place))?;
            self.rows_left = self.reader.metadata().row_group(group).num_rows();
            self.group += 1;
        }
        self.rows_left -= 1;
        self.row += 1;
        Ok(Some(self.row - 1))
    }

    /// Whole numbers of a column in this row; `None` for a column that lacks. Each column is read once per row.
    pub(crate) fn ints(&mut self, column: usize) -> Result<Option<Cell<i64>>, Error> {
        self.cell(column, |column| match &mut column.reader {
            ColumnReader::Int32ColumnReader(reader) => read(reader, column.levels, |value| i64::from(*value)),
            ColumnReader::Int64ColumnReader(reader) => read(reader, column.levels, |value| *value),
            _ => Err(Error::bad("type", "whole numbers", "others")),
        })
    }

    /// Numbers of a column in this row.
    pub(crate) fn floats(&mut self, column: usize) -> Result<Option<Cell<f64>>, Error> {
        self.cell(column, |column| match &mut column.reader {
            ColumnReader::FloatColumnReader(reader) => read(reader, column.levels, |value| f64::from(*value)),
            ColumnReader::DoubleColumnReader(reader) => read(reader, column.levels, |value| *value),
            ColumnReader::FixedLenByteArrayColumnReader(reader) if column.is_f16 => {
                read(reader, column.levels, |value| match value.data() {
                    [low, high] => f16::from_le_bytes([*low, *high]).to_f64(),
                    _ => f64::NAN,
                })
            }
            _ => Err(Error::bad("type", "floating-point numbers", "others")),
        })
    }

    /// A text of this row.
    pub(crate) fn text(&mut self, column: usize) -> Result<Option<String>, Error> {
        let cell = self.cell(column, |column| match &mut column.reader {
            ColumnReader::ByteArrayColumnReader(reader) => {
                let cell = read_some(reader, column.levels, |value| {
                    let text = value.as_utf8().map(str::to_owned);
                    text.map_err(|error| Error::bad("text", "UTF-8", error))
                })?;
                cell.values.into_iter().next().flatten().transpose()
            }
            _ => Err(Error::bad("type", "texts", "others")),
        })?;
        Ok(cell.flatten())
    }

    fn cell<T>(
        &mut self,
        column: usize,
        read: impl FnOnce(&mut Column) -> Result<T, Error>,
    ) -> Result<Option<T>, Error> {
        let Some(open) = &mut self.columns[column] else { return Ok(None) };
        let row = self.row - 1;
        guarded(|| read(open)).map(Some).map_err(|error| {
            error.within(format_args!("{} row {row} column `{}`", self.place, self.names[column]))
        })
    }
}

impl Levels {
    /// Which levels mean what, for a leaf of a schema.
    fn of(schema: &Type, column: &ColumnDescriptor) -> Result<Self, Error> {
        let (mut level, mut depth, mut lists) = (0, 0usize, [0i16; 2]);
        let mut node = schema;
        for part in column.path().parts() {
            node = node
                .get_fields()
                .iter()
                .find(|field| field.name() == part)
                .ok_or_else(|| Error::bad("schema", format_args!("field `{part}`"), "none"))?;
            match node.get_basic_info().repetition() {
                Repetition::REQUIRED => {}
                Repetition::OPTIONAL => level += 1,
                Repetition::REPEATED => {
                    level += 1;
                    *lists
                        .get_mut(depth)
                        .ok_or_else(|| Error::bad("type", "at most lists in lists", "deeper ones"))? = level;
                    depth += 1;
                }
            }
        }
        let depth = i16::try_from(depth).expect("at most 2");
        Ok(Self { lists, depth, value: level })
    }
}

fn unreadable(error: ParquetError) -> Error {
    Error::bad("data", "readable Parquet", error)
}

fn check_codec(codec: Compression) -> Result<(), Error> {
    match codec {
        Compression::UNCOMPRESSED | Compression::SNAPPY | Compression::ZSTD(_) => Ok(()),
        codec => {
            let hint = "write the file again with zstd, for example with pyarrow";
            Err(Error::bad("compression", "none, snappy or zstd", format_args!("{codec}")).hint(hint))
        }
    }
}

/// One row of a column of numbers.
fn read<D: DataType, T: Default>(
    reader: &mut ColumnReaderImpl<D>,
    levels: Levels,
    convert: impl Fn(&D::T) -> T,
) -> Result<Cell<T>, Error> {
    let cell = read_some(reader, levels, convert)?;
    let has_nulls = cell.values.iter().any(Option::is_none);
    let values = cell.values.into_iter().map(Option::unwrap_or_default).collect();
    Ok(Cell { values, ends: cell.ends, has_nulls })
}

/// One row of a column.
fn read_some<D: DataType, T>(
    reader: &mut ColumnReaderImpl<D>,
    levels: Levels,
    convert: impl Fn(&D::T) -> T,
) -> Result<Cell<Option<T>>, Error> {
    let (mut defined, mut repeated, mut values) = (Vec::new(), Vec::new(), Vec::new());
    let (records, ..) =
        reader.read_records(1, Some(&mut defined), Some(&mut repeated), &mut values).map_err(unreadable)?;
    if records != 1 {
        return Err(Error::bad("rows", "as many as the footer says", "fewer"));
    }
    // A column without levels has one value.
    let flat = levels.value == 0;
    if flat {
        let values = values.iter().map(|value| Some(convert(value))).collect();
        return Ok(Cell { values, ends: None, has_nulls: false });
    }
    let ends = (levels.depth == 2).then(Vec::new);
    let mut cell = Cell { values: Vec::with_capacity(defined.len()), ends, has_nulls: false };
    let mut values = values.iter();
    for (index, &definition) in defined.iter().enumerate() {
        if levels.depth > 0 && definition < levels.lists[0] {
            continue; // an empty list
        }
        let starts = repeated.get(index).is_none_or(|repetition| *repetition <= 1);
        if let Some(ends) = &mut cell.ends {
            if starts {
                ends.push(cell.values.len());
            }
            if definition < levels.lists[1] {
                continue;
            }
        }
        cell.values.push(if definition == levels.value { values.next().map(&convert) } else { None });
        if let Some(end) = cell.ends.as_mut().and_then(|ends| ends.last_mut()) {
            *end = cell.values.len();
        }
    }
    Ok(cell)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use parquet::data_type::{ByteArray, ByteArrayType};
    use parquet::file::properties::WriterProperties;
    use parquet::file::writer::SerializedFileWriter;
    use parquet::schema::parser::parse_message_type;

    use super::*;

    #[test]
    fn text_that_is_not_utf_8_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("texts.parquet");
        let message = Arc::new(parse_message_type("message m { required binary source (STRING); }").unwrap());
        let properties = Arc::new(WriterProperties::builder().build());
        let mut file =
            SerializedFileWriter::new(std::fs::File::create(&path).unwrap(), message, properties).unwrap();
        let mut group = file.next_row_group().unwrap();
        let mut column = group.next_column().unwrap().unwrap();
        let texts = [ByteArray::from("é"), ByteArray::from(vec![0xC3, 0x28])];
        column.typed::<ByteArrayType>().write_batch(&texts, None, None).unwrap();
        column.close().unwrap();
        group.close().unwrap();
        file.close().unwrap();

        let mut file = ForeignFile::open(&path, &["source".to_owned()], &[]).unwrap();
        assert_eq!(file.next_row().unwrap(), Some(0));
        assert_eq!(file.text(0).unwrap().as_deref(), Some("é"));
        assert_eq!(file.next_row().unwrap(), Some(1));
        let error = file.text(0).unwrap_err().to_string();
        assert!(
            error.contains("texts.parquet` row 1 column `source` text: expected UTF-8, found "),
            "{error}"
        );
    }
}
