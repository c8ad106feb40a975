//! What happens when nobody reads on, as behind `| head`.

use std::{
    fmt,
    io::{self, Write},
};

use crate::arguments::{Command, Labels, Model};

/// Lets commands that only print end as other Unix tools do when their reader goes away: at once and without a word.
///
/// Stages that write files go on instead, with SIGPIPE ignored as Rust starts every process, and their exit code says what
/// became of the files: their work is worth more than their words.
#[cfg(unix)]
#[expect(unsafe_code, reason = "the action of a signal cannot be set without")]
pub(crate) fn ends(command: &Command) {
    use nix::sys::signal::{SigHandler, Signal, signal};

    if only_prints(command) {
        // SAFETY: the default action runs no code of ours, and nothing was written or locked yet. It cannot fail: SIGPIPE is a
        // signal whose action may be set.
        let _ = unsafe { signal(Signal::SIGPIPE, SigHandler::SigDfl) };
    }
}

#[cfg(not(unix))]
pub(crate) fn ends(_: &Command) {}

#[cfg(unix)]
fn only_prints(command: &Command) -> bool {
    match command {
        Command::Report(_) | Command::Model(Model::Inspect(_)) => true,
        Command::Schema(options) => options.all.is_none(),
        Command::Labels(Labels::Stats(options)) => options.html.is_none(),
        Command::Labels(Labels::Export(options)) => options.is_to_stdout(),
        Command::Labels(Labels::Finalize(_) | Labels::Merge(_) | Labels::Import(_)) => false,
        Command::Labels(_) => true,
        _ => false,
    }
}

/// Prints to standard output.
///
/// # Panics
/// It cannot be written to, for another reason than that nobody reads it.
pub(crate) fn print(words: fmt::Arguments<'_>) {
    if let Err(error) = io::stdout().write_fmt(words) {
        assert!(error.kind() == io::ErrorKind::BrokenPipe, "failed printing to stdout: {error}");
    }
}
