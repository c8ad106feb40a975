//! Errors to people and to schedulers.

use std::{io, process::ExitCode};

use crate::{arguments::LogFormat, commands::DeviceError, recipe::RecipeError};

const FAILED: u8 = 1;
const BAD_RECIPE: u8 = 2;
const BAD_DATA: u8 = 3;
const BAD_DEVICE: u8 = 4;
/// `EX_TEMPFAIL` of sysexits.h: Slurm is asked to requeue it.
const INTERRUPTED: u8 = 75;

/// Prints `error` with its causes and returns the exit code that it stands for.
pub(crate) fn report(error: &anyhow::Error, format: LogFormat) -> ExitCode {
    let code = code(error);
    match format {
        LogFormat::Text => eprintln!("error: {}", message(error)),
        LogFormat::Json => tracing::error!(exit_code = code, "{}", message(error)),
    }
    ExitCode::from(code)
}

/// The causes, outermost first, without those that repeat the one before; hints stand on lines of their own.
fn message(error: &anyhow::Error) -> String {
    let mut parts: Vec<String> = Vec::new();
    for cause in error.chain() {
        let cause = cause.to_string();
        if !parts.iter().any(|part| part.contains(&cause)) {
            parts.push(cause);
        }
    }
    parts.join(": ")
}

fn code(error: &anyhow::Error) -> u8 {
    for cause in error.chain() {
        if cause.is::<RecipeError>() {
            return BAD_RECIPE;
        }
        if cause.is::<DeviceError>() {
            return BAD_DEVICE;
        }
        match cause.downcast_ref::<softshard_prepare::Error>() {
            Some(softshard_prepare::Error::Config(_)) => return BAD_RECIPE,
            Some(softshard_prepare::Error::Interrupted) => return INTERRUPTED,
            _ => {}
        }
        if let Some(io) = cause.downcast_ref::<io::Error>() {
            return match io.kind() {
                io::ErrorKind::Interrupted => INTERRUPTED,
                io::ErrorKind::OutOfMemory => BAD_DEVICE,
                _ => FAILED,
            };
        }
    }
    BAD_DATA
}
