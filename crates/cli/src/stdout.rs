//! Results to standard output, also when nobody reads on, as behind `| head`.

use std::{
    fmt,
    io::{self, Write},
};

use anyhow::Result;
use serde::Serialize;

use crate::progress;

/// For commands that only print: they end as other Unix tools do when their reader goes away, at once and without a word.
///
/// Stages that write files go on instead, with SIGPIPE ignored as Rust starts every process, and their exit code says what
/// became of the files: their work is worth more than their words.
#[cfg(unix)]
#[expect(unsafe_code, reason = "the action of a signal cannot be set without")]
pub(crate) fn end_with_its_reader() {
    use nix::sys::signal::{SigHandler, Signal, signal};

    // SAFETY: the default action runs no code of ours, and nothing was written or locked yet. It cannot fail: SIGPIPE is a
    // signal whose action may be set.
    let _ = unsafe { signal(Signal::SIGPIPE, SigHandler::SigDfl) };
}

#[cfg(not(unix))]
pub(crate) fn end_with_its_reader() {}

/// Prints to standard output.
///
/// # Panics
/// It cannot be written to, for another reason than that nobody reads it.
pub(crate) fn print(words: fmt::Arguments<'_>) {
    if let Err(error) = io::stdout().write_fmt(words) {
        assert!(error.kind() == io::ErrorKind::BrokenPipe, "failed printing to stdout: {error}");
    }
}

/// Prints `value` for programs.
///
/// # Errors
/// It has no JSON.
pub(crate) fn print_json(value: &impl Serialize) -> Result<()> {
    progress::leave();
    println!("{}", serde_json::to_string_pretty(value)?);
    Ok(())
}
