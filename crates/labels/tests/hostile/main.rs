//! Bytes that somebody damaged or forged: an error or the truth, no panic, no memory beyond the limits.

#[path = "../it/common.rs"]
#[expect(dead_code, reason = "the other tests use the rest")]
mod common;
#[path = "../../fuzz/entry.rs"]
mod entry;

mod allocations;
mod flips;
mod fuzz;
mod seeds;
