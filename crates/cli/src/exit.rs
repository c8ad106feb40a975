//! Errors to people and to schedulers.

use std::{error::Error, io, process::ExitCode};

use softshard_losses::HeadError;

use crate::{device::DeviceError, logging::LogFormat, progress, recipe::RecipeError, schema::UnknownSchema};

const FAILED: u8 = 1;
const BAD_RECIPE: u8 = 2;
pub(crate) const BAD_DATA: u8 = 3;
pub(crate) const BAD_DEVICE: u8 = 4;
/// `EX_TEMPFAIL` of sysexits.h: Slurm is asked to requeue it.
pub(crate) const INTERRUPTED: u8 = 75;

/// Prints `error` with its causes and returns the exit code that it stands for.
pub(crate) fn report(error: &anyhow::Error, format: LogFormat) -> ExitCode {
    let code = code(error);
    match format {
        LogFormat::Text => progress::tell(&format!("error: {}", message(error))),
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

/// The first cause that has a code of its own decides; anything else is a failure.
fn code(error: &anyhow::Error) -> u8 {
    error.chain().find_map(of_cause).unwrap_or(FAILED)
}

fn of_cause(cause: &(dyn Error + 'static)) -> Option<u8> {
    if cause.is::<RecipeError>() || cause.is::<UnknownSchema>() {
        return Some(BAD_RECIPE);
    }
    if cause.is::<DeviceError>() || matches!(cause.downcast_ref(), Some(HeadError::Device(_))) {
        return Some(BAD_DEVICE);
    }
    if let Some(error) = cause.downcast_ref::<softshard_labels::Error>() {
        return error.is_bad_data().then_some(BAD_DATA);
    }
    if let Some(error) = cause.downcast_ref::<softshard_model::Error>() {
        return match error {
            softshard_model::Error::Io(error) => of_io(error),
            softshard_model::Error::Residency(_) => Some(BAD_DEVICE),
            _ => Some(BAD_DATA),
        };
    }
    if let Some(error) = cause.downcast_ref::<softshard_prepare::Error>() {
        return match error {
            softshard_prepare::Error::Config(_) => Some(BAD_RECIPE),
            softshard_prepare::Error::Interrupted => Some(INTERRUPTED),
            error => error.is_bad_data().then_some(BAD_DATA),
        };
    }
    of_io(cause.downcast_ref::<io::Error>()?)
}

fn of_io(error: &io::Error) -> Option<u8> {
    match error.kind() {
        io::ErrorKind::Interrupted => Some(INTERRUPTED),
        io::ErrorKind::OutOfMemory => Some(BAD_DEVICE),
        _ => None,
    }
}
