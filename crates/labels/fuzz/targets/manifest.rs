#![no_main]

#[path = "../entry.rs"]
#[expect(dead_code, reason = "the other targets use the rest")]
mod entry;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| entry::manifest(bytes));
