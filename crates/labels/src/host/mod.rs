//! What the machine gives: files that are whole or not there, maps of files, threads, and memory that all threads share.

mod data_file;
pub(crate) mod durable;
mod memory;
pub(crate) mod parallel;
pub(crate) mod regular;

pub use data_file::never_map;
pub use regular::read_if_there;

pub(crate) use data_file::{DataFile, hexadecimal};
pub(crate) use durable::{PRIVATE, Scratch, TempFile, with_suffix, write_failed};
pub(crate) use memory::Share;
pub(crate) use regular::{Links, name_of};
