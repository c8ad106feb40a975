//! One Parquet file: its schema, its row groups in memory, reading and writing it, and rounding.

mod groups;
mod reader;
mod record;
mod rounding;
mod row;
mod schema;
mod writer;

pub use groups::LabelGroup;
pub use record::ShardRecord;

pub(crate) use groups::{RowSize, SequenceGroup, row_sizes};
pub(crate) use reader::ShardReader;
pub(crate) use record::{Totals, check_record, file_name, is_data_file, totals};
pub(crate) use rounding::{round, sort_ties};
pub(crate) use row::{RowPlace, read_row};
pub(crate) use schema::{LABELS, SEQUENCES, ShardSchema, partition_column, tail_column};
pub(crate) use writer::{ShardFile, WrittenFile};
