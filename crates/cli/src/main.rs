//! `softshard`: offline knowledge distillation of language models.
//!
//! sequences → labels → student → scores: each command is one stage, and the stages meet only in files.

/// As of the standard library, but that nobody reads on is no panic.
macro_rules! print {
    ($($words:tt)*) => { $crate::stdout::print(format_args!($($words)*)) };
}
macro_rules! println {
    () => { print!("\n") };
    ($($words:tt)*) => { print!("{}\n", format_args!($($words)*)) };
}

mod arguments;
mod cluster;
mod commands;
mod compare;
mod device;
mod devices;
mod diff;
mod doors;
mod exit;
mod labelling_summary;
mod labels;
mod learning;
mod logging;
mod lookback;
mod lost_task;
mod map_fault;
mod merge;
mod metrics;
mod model;
mod numbers;
mod page;
mod progress;
mod recipe;
mod report;
mod schema;
mod scorer;
mod session;
mod shell;
mod stage;
mod stdout;
mod table;
mod teacher_labels;
mod terminal;
mod training_summary;

use std::{
    process::ExitCode,
    sync::atomic::{AtomicBool, Ordering},
};

use anyhow::Context;
use clap::Parser;

use session::Session;
use terminal::Terminal;

/// Set by SIGINT or SIGTERM; every stage stops at its next boundary.
static STOP: AtomicBool = AtomicBool::new(false);

/// The first signal asks for a stop, the second ends the process: nothing is lost either way.
fn stop(terminal: &Terminal) {
    if STOP.swap(true, Ordering::Relaxed) {
        std::process::exit(i32::from(exit::INTERRUPTED));
    }
    terminal.say("stopping at the next boundary; once more to stop now");
}

fn main() -> ExitCode {
    stdout::long_files_are_errors();
    let memory_is_kept = softshard_model::keep_freed_memory();
    let arguments = match arguments::Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(said) => return exit::of_usage(&said),
    };
    if arguments.command.only_prints() {
        stdout::end_with_its_reader();
    }
    let (format, terminal) = (arguments.log_format, Terminal::default());
    logging::start(format, &terminal, move |reason| exit::of_lost_task(reason, format));
    if !memory_is_kept {
        tracing::debug!("the allocator refused a setting: forward passes are slower");
    }
    let shared = terminal.clone();
    if let Err(error) = ctrlc::set_handler(move || stop(&shared)) {
        tracing::warn!("signals will end the process at once: {error}");
    }
    if let Err(error) = map_fault::diagnose() {
        tracing::warn!("a mapped file that is cut short will end the process without a word: {error}");
    }
    if arguments.no_mmap {
        softshard_labels::never_map();
    }
    let session = Session { stop: &STOP, format, terminal };
    let result = exit::guarded(|| commands::run(&arguments, &session));
    let printed = stdout::end().context(match arguments.command.only_prints() {
        true => "what was to be printed is not whole",
        false => "the files of this command are whole, but its words could not be printed",
    });
    match result.and(printed) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => exit::report(&error, format),
    }
}
