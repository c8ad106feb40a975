//! The stage from the outside: rows to sequence shards.

mod compatible;
mod masks;
mod masks_of_peers;
mod peers;
mod real_data;
mod rows;
mod sequences;
mod support;
mod templates;
