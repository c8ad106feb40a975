//! `softshard`: offline knowledge distillation of language models.
//!
//! sequences → labels → student → scores: each command is one stage, and the stages meet only in files.

mod arguments;
mod commands;
mod exit;
mod inspect;
mod labels;
mod logging;
mod progress;
mod recipe;
mod table;

use std::{
    process::ExitCode,
    sync::atomic::{AtomicBool, Ordering},
};

use clap::Parser;

/// Set by SIGINT or SIGTERM; every stage stops at its next boundary.
static STOP: AtomicBool = AtomicBool::new(false);

fn main() -> ExitCode {
    let arguments = arguments::Arguments::parse();
    logging::start(arguments.log_format);
    if let Err(error) = ctrlc::set_handler(|| STOP.store(true, Ordering::Relaxed)) {
        tracing::warn!("signals will end the process at once: {error}");
    }
    let result = commands::run(&arguments, &STOP);
    progress::clear();
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => exit::report(&error, arguments.log_format),
    }
}
