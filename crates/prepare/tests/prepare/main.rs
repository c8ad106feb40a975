//! The stage from the outside: rows to sequence shards.

mod peers;
mod real_data;
mod rows;
mod sequences;
mod support;
mod templates;
