//! Parquet below the level of the Parquet crate: footers, pages and runs of values, read with limits and written as we choose.

mod decoder;
mod encoder;
mod errors;
pub(crate) mod footer;
mod frame;
mod list;
mod page;
mod runs;
mod thrift;

pub(crate) use decoder::{Chunk, PageDecoder, Scratch};
pub(crate) use encoder::{Column, EncodedColumn, encode};
pub(crate) use errors::{failed, guarded};
pub(crate) use list::List;
pub(crate) use page::Word;
