//! One Parquet file: its schema, its row groups in memory, reading and writing it, and rounding.

mod groups;
mod reader;
mod rounding;
mod row;
mod schema;
mod writer;

pub use groups::LabelGroup;

pub(crate) use groups::{RowSize, SequenceGroup, row_sizes};
pub(crate) use reader::{ShardReader, guarded};
pub(crate) use rounding::{round, sort_ties};
pub(crate) use row::{RowPlace, read_row};
pub(crate) use schema::{COUNTS, INPUT_IDS, SOURCE, ShardSchema, TOKEN_IDS};
pub(crate) use writer::{ShardFile, WrittenFile};
