//! Walks a Parquet footer before the Parquet crate reads it, which believes the sizes, the types and the depth that it finds.

use parquet::file::metadata::{ParquetMetaData, ParquetMetaDataOptions, ParquetMetaDataReader};

use super::thrift::{Kind, Thrift};
use crate::host::Share;
use crate::values::Error;

/// Ours have a column for each temperature, and three levels.
const MAX_CHILDREN: usize = 4096;
const MAX_LEVELS: usize = 8;

/// Parses the metadata of a footer.
pub(crate) fn read(footer: &[u8]) -> Result<ParquetMetaData, Error> {
    let (mut walk, mut thrift) = (Walk::default(), Thrift::new(footer));
    walk.value(&mut thrift, Kind::STRUCT, &FILE).map_err(|error| error.within("footer"))?;
    let _share = Share::of(thrift.list_bytes());
    // As they are, and not in short, so that a merge writes the footer that a run writes.
    let options = ParquetMetaDataOptions::new().with_encoding_stats_as_mask(false);
    ParquetMetaDataReader::decode_metadata_with_options(footer, Some(&options))
        .map_err(|error| Error::bad("footer", "Parquet metadata", error))
}

/// What stands at a place of parquet.thrift. The Parquet crate reads a field that it knows as the type that it should have.
enum Shape {
    Is(Kind),
    Bool,
    List(&'static Shape),
    /// Fields by their ids; others are skipped.
    Struct(&'static [(i16, Shape)]),
    /// Fields by their ids, and no others.
    Closed(&'static [(i16, Shape)]),
    /// An element of the schema, which is a tree in the order of a walk.
    Node,
    /// How many elements of the schema are below this one.
    Children,
}

const I16: Shape = Shape::Is(Kind::I16);
const I32: Shape = Shape::Is(Kind::I32);
const I64: Shape = Shape::Is(Kind::I64);
const BINARY: Shape = Shape::Is(Kind::BINARY);
const EMPTY: Shape = Shape::Closed(&[]);

const FILE: Shape = Shape::Struct(&[
    (1, I32),
    (2, Shape::List(&Shape::Node)),
    (3, I64),
    (4, Shape::List(&ROW_GROUP)),
    (5, Shape::List(&KEY_VALUE)),
    (6, BINARY),
    (7, Shape::List(&Shape::Closed(&[(1, EMPTY), (2, EMPTY)]))), // ColumnOrder
]);
const SCHEMA_ELEMENT: Shape = Shape::Struct(&[
    (1, I32),
    (2, I32),
    (3, I32),
    (4, BINARY),
    (5, Shape::Children),
    (6, I32),
    (7, I32),
    (8, I32),
    (9, I32),
    (10, Shape::Closed(&[(1, EMPTY), (3, EMPTY)])), // LogicalType: STRING and LIST
]);
const KEY_VALUE: Shape = Shape::Struct(&[(1, BINARY), (2, BINARY)]);
const ROW_GROUP: Shape = Shape::Struct(&[
    (1, Shape::List(&COLUMN_CHUNK)),
    (2, I64),
    (3, I64),
    (4, Shape::List(&Shape::Struct(&[(1, I32), (2, Shape::Bool), (3, Shape::Bool)]))), // SortingColumn
    (5, I64),
    (6, I64),
    (7, I16),
]);
const COLUMN_CHUNK: Shape = Shape::Struct(&[
    (1, BINARY),
    (2, I64),
    (3, COLUMN_METADATA),
    (4, I64),
    (5, I32),
    (6, I64),
    (7, I32),
    (8, EMPTY), // encryption: none
    (9, BINARY),
]);
const COLUMN_METADATA: Shape = Shape::Struct(&[
    (1, I32),
    (2, Shape::List(&I32)),
    (3, Shape::List(&BINARY)),
    (4, I32),
    (5, I64),
    (6, I64),
    (7, I64),
    (8, Shape::List(&KEY_VALUE)),
    (9, I64),
    (10, I64),
    (11, I64),
    (12, STATISTICS),
    (13, Shape::List(&Shape::Closed(&[(1, I32), (2, I32), (3, I32)]))), // PageEncodingStats
    (14, I64),
    (15, I32),
    (16, Shape::Struct(&[(1, I64), (2, Shape::List(&I64)), (3, Shape::List(&I64))])), // SizeStatistics
    (17, EMPTY), // of places on the globe: none
]);
const STATISTICS: Shape = Shape::Struct(&[
    (1, BINARY),
    (2, BINARY),
    (3, I64),
    (4, I64),
    (5, BINARY),
    (6, BINARY),
    (7, Shape::Bool),
    (8, Shape::Bool),
]);

#[derive(Default)]
struct Walk {
    /// For each level of the schema that is open, how many children are to come.
    open: Vec<usize>,
    /// Of the element in hand.
    children: usize,
}

impl Walk {
    fn value(&mut self, thrift: &mut Thrift<'_>, kind: Kind, shape: &Shape) -> Result<(), Error> {
        match shape {
            Shape::Is(expected) if kind == *expected => thrift.skip(kind),
            Shape::Bool if kind == Kind::TRUE || kind == Kind::FALSE => Ok(()),
            Shape::Children => thrift.size(kind).map(|size| self.children = size),
            Shape::List(shape) if kind == Kind::LIST => {
                thrift.elements(|thrift, kind| self.value(thrift, kind, shape))
            }
            Shape::Struct(fields) if kind == Kind::STRUCT => self.fields(thrift, fields, true),
            Shape::Closed(fields) if kind == Kind::STRUCT => self.fields(thrift, fields, false),
            Shape::Node => {
                self.children = 0;
                self.value(thrift, kind, &SCHEMA_ELEMENT)?;
                self.node()
            }
            _ => Err(Error::bad("header", "fields of the types of parquet.thrift", "another type")),
        }
    }

    fn fields(
        &mut self,
        thrift: &mut Thrift<'_>,
        fields: &[(i16, Shape)],
        is_open: bool,
    ) -> Result<(), Error> {
        thrift.fields(|thrift, id, kind| match fields.iter().find(|(known, _)| *known == id) {
            Some((_, shape)) => self.value(thrift, kind, shape),
            None if is_open => thrift.skip(kind),
            None => Err(Error::bad("header", "fields that the format uses", format_args!("field {id}"))),
        })
    }

    /// The Parquet crate makes room for as many children as an element says, and calls itself for each level.
    fn node(&mut self) -> Result<(), Error> {
        while self.open.pop_if(|left| *left == 0).is_some() {}
        if let Some(left) = self.open.last_mut() {
            *left -= 1;
        }
        if self.children > 0 {
            self.open.push(self.children);
        }
        if self.children > MAX_CHILDREN || self.open.len() > MAX_LEVELS {
            let expected = format!("at most {MAX_CHILDREN} columns in {MAX_LEVELS} levels");
            return Err(Error::bad("schema", expected, "more"));
        }
        Ok(())
    }
}
