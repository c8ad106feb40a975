//! Tests of the label and sequence formats from the outside.

mod bad;
mod commit;
mod common;
mod exchange;
mod golden;
mod golden_sequences;
mod judge;
mod merge;
mod observer;
mod round_trip;
mod store;
