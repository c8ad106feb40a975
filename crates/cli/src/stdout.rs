//! Results to standard output, also when nobody reads on, as behind `| head`, or it is full.

use std::{
    borrow::Cow,
    fmt,
    io::{self, Write},
    sync::OnceLock,
};

use anyhow::Result;
use serde::Serialize;
use softshard_labels::{visible, visible_line};

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

/// A file that grows beyond `ulimit -f` is an error that names it, and no signal that ends the process without a word.
#[cfg(unix)]
#[expect(unsafe_code, reason = "the action of a signal cannot be set without")]
pub(crate) fn long_files_are_errors() {
    use nix::sys::signal::{SigHandler, Signal, signal};

    // SAFETY: to ignore a signal runs no code of ours. It cannot fail: SIGXFSZ is a signal whose action may be set.
    let _ = unsafe { signal(Signal::SIGXFSZ, SigHandler::SigIgn) };
}

#[cfg(not(unix))]
pub(crate) fn long_files_are_errors() {}

/// Why standard output could not be written to, at the first time.
static FAILED: OnceLock<io::Error> = OnceLock::new();

/// Prints to standard output, with what a terminal would obey made visible: much of it was written by strangers. What cannot be
/// printed does not end a stage whose work is worth more; [`end`] says it.
pub(crate) fn print(words: fmt::Arguments<'_>) {
    write(&visible(&words.to_string()));
}

/// Prints a line with colours of ours, in which all that is a stranger's was made visible before.
pub(crate) fn print_painted(line: &str) {
    write(&format!("{line}\n"));
}

fn write(text: &str) {
    if FAILED.get().is_none() {
        keep(io::stdout().write_all(text.as_bytes()));
    }
}

fn keep(written: io::Result<()>) {
    if let Err(error) = written {
        let _ = FAILED.set(error); // the first one counts
    }
}

/// Standard output for data, with errors that name it.
pub(crate) struct Stdout;

impl Write for Stdout {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        io::stdout().write(bytes).map_err(|error| named(&error))
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stdout().flush().map_err(|error| named(&error))
    }
}

fn named(error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("standard output: {error}"))
}

/// Writes what is still to be written. Nobody is to read it is no error.
///
/// # Errors
/// Something could not be printed.
pub(crate) fn end() -> io::Result<()> {
    keep(io::stdout().flush());
    match FAILED.get() {
        Some(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(named(error)),
        _ => Ok(()),
    }
}

/// Prints `value` for programs.
///
/// # Errors
/// It has no JSON.
pub(crate) fn print_json(value: &impl Serialize) -> Result<()> {
    write(&(json_without_control(&serde_json::to_string_pretty(value)?) + "\n"));
    Ok(())
}

/// JSON with what a terminal would obey escaped, where JSON itself leaves it as it is, but for the new lines between its values.
pub(crate) fn json_without_control(json: &str) -> Cow<'_, str> {
    let steers = |letter: char| matches!(visible_line(letter.encode_utf8(&mut [0; 4])), Cow::Owned(_));
    let hides = |letter: char| letter != '\n' && steers(letter);
    if !json.contains(hides) {
        return json.into();
    }
    let show =
        |letter: char| if hides(letter) { format!("\\u{:04x}", u32::from(letter)) } else { letter.into() };
    json.chars().map(show).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_stays_what_it_is_without_control_characters() {
        let text = "a\u{1b}\u{7f}\u{9b}\u{202e}\nb";
        let json = json_without_control(&serde_json::to_string(text).expect("JSON")).into_owned();
        assert!(json.is_ascii() && !json.contains(char::is_control), "{json:?}");
        assert_eq!(serde_json::from_str::<String>(&json).expect("JSON"), text);
    }
}
