//! Errors to people and to schedulers.

use std::{
    any::Any,
    error::Error,
    io::{self, Write},
    panic::{self, AssertUnwindSafe},
    process::ExitCode,
};

use anyhow::{Result, anyhow};
use softshard_labels::visible;
use softshard_losses::HeadError;
use softshard_model::OutOfMemory;

use crate::{
    device::DeviceError, logging::LogFormat, lost_task, recipe::RecipeError, schema::UnknownSchema,
    terminal::tell,
};

const FAILED: u8 = 1;
const BAD_RECIPE: u8 = 2;
pub(crate) const BAD_DATA: u8 = 3;
const BAD_DEVICE: u8 = 4;
/// `EX_TEMPFAIL` of sysexits.h: Slurm is asked to requeue it.
pub(crate) const INTERRUPTED: u8 = 75;

/// Prints `error` with its causes and returns the exit code that it stands for.
pub(crate) fn report(error: &anyhow::Error, format: LogFormat) -> ExitCode {
    let code = code(error);
    match format {
        LogFormat::Text => tell(&format!("error: {}", message(error))),
        LogFormat::Json => tracing::error!(exit_code = code, "{}", visible(&message(error))),
    }
    ExitCode::from(code)
}

/// Prints help, the version, or what is wrong with the command line; its exit code.
pub(crate) fn of_usage(said: &clap::Error) -> ExitCode {
    let plain = said.render().to_string();
    let printed = if visible(&plain) == plain {
        said.print() // in colour where there is any
    } else {
        tell(plain.trim_end());
        Ok(())
    };
    let code = u8::try_from(said.exit_code()).unwrap_or(FAILED);
    match printed.and_then(|()| io::stdout().flush()) {
        Err(error) if !said.use_stderr() && error.kind() != io::ErrorKind::BrokenPipe => {
            report(&anyhow!("standard output: {error}"), LogFormat::Text)
        }
        _ => ExitCode::from(code),
    }
}

/// Does what is asked for. What the host denies and only a panic says, from the depths of a runtime, is an error; a panic for another
/// reason is a bug of ours and goes on.
pub(crate) fn guarded(work: impl FnOnce() -> Result<()>) -> Result<()> {
    let default = panic::take_hook();
    panic::set_hook(Box::new(move |info| match denied(info.payload()) {
        Some(error) => tracing::debug!("{error:#}"), // whoever catches it says more
        None => default(info),
    }));
    let done = panic::catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| match denied(&*panic) {
        Some(error) => Err(error),
        None => panic::resume_unwind(panic),
    });
    done.map_err(|error| {
        let kinds = error.chain().filter_map(|cause| cause.downcast_ref::<io::Error>()).map(io::Error::kind);
        let is_thread = kinds.into_iter().any(|kind| kind == io::ErrorKind::WouldBlock);
        if is_thread { no_thread(&message(&error)) } else { error }
    })
}

/// The host has no thread left for this process.
fn no_thread(text: &str) -> anyhow::Error {
    anyhow!(
        "a thread could not be started: {text}\n\
         hint: `ulimit -u` and the control group's `pids.max` say how many there may be; RAYON_NUM_THREADS=1 starts fewer"
    )
}

/// The error that a panic stands for, if it says what the host denied.
fn denied(panic: &(dyn Any + Send)) -> Option<anyhow::Error> {
    if let Some(error) = OutOfMemory::of_panic(panic) {
        return Some(DeviceError::from(&error).into());
    }
    let text = panic.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| panic.downcast_ref::<&str>().copied())?;
    let is_thread =
        ["failed to spawn thread", "ThreadPoolBuildError"].iter().any(|words| text.contains(words));
    is_thread.then(|| no_thread(text))
}

/// Ends the process because a device lost a task, for a reason; on another thread than the device's.
pub(crate) fn of_lost_task(reason: String, format: LogFormat) -> ! {
    lost_task::end(move || {
        report(&DeviceError::of_lost_task(&reason).into(), format);
        std::process::exit(i32::from(BAD_DEVICE));
    })
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
    if cause.is::<DeviceError>()
        || cause.is::<OutOfMemory>()
        || matches!(cause.downcast_ref(), Some(HeadError::Device(_)))
    {
        return Some(BAD_DEVICE);
    }
    if let Some(error) = cause.downcast_ref::<softshard_labels::Error>() {
        return error.is_bad_data().then_some(BAD_DATA);
    }
    if let Some(error) = cause.downcast_ref::<softshard_model::Error>() {
        return of_model(error);
    }
    if let Some(error) = cause.downcast_ref::<softshard_scorers::Error>() {
        return match error {
            softshard_scorers::Error::Bad { .. } => Some(BAD_DATA),
            softshard_scorers::Error::Model(error) => of_model(error),
            softshard_scorers::Error::OutOfMemory(_) => Some(BAD_DEVICE),
            softshard_scorers::Error::Interrupted => Some(INTERRUPTED),
            _ => None,
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

fn of_model(error: &softshard_model::Error) -> Option<u8> {
    match error {
        softshard_model::Error::Io(error) => of_io(error),
        softshard_model::Error::Residency(_) | softshard_model::Error::Device(_) => Some(BAD_DEVICE),
        _ => Some(BAD_DATA),
    }
}

fn of_io(error: &io::Error) -> Option<u8> {
    match error.kind() {
        io::ErrorKind::Interrupted => Some(INTERRUPTED),
        io::ErrorKind::OutOfMemory => Some(BAD_DEVICE),
        _ => None,
    }
}

#[cfg(all(test, feature = "wgpu"))]
mod tests {
    use burn::tensor::{Device, DeviceKind, FloatDType, Tensor};

    use super::*;
    use crate::{logging, terminal::Terminal};

    /// The words that a lost task is known by are the runtime's own: this fails if they change.
    #[test]
    fn a_lost_task_is_no_silent_garbage() {
        for (test, words) in
            [("loses_one_as_text", "error: device: "), ("loses_one_as_json", "\"exit_code\":4")]
        {
            let mut child = std::process::Command::new(std::env::current_exe().expect("a test has a path"));
            child.args([&*format!("exit::tests::{test}"), "--exact", "--ignored", "--nocapture"]);
            // Where only errors are to be seen.
            let said = child.env("RUST_LOG", "error").output().expect("it starts");
            let stderr = String::from_utf8_lossy(&said.stderr);
            assert_eq!(said.status.code(), Some(i32::from(BAD_DEVICE)), "{stderr}");
            for part in [words, "what works is no fault", "bf16", "finished work is kept"] {
                assert!(stderr.contains(part), "expected {part:?} in:\n{stderr}");
            }
        }
    }

    #[test]
    #[ignore = "ends its process"]
    fn loses_one_as_text() {
        lose_one(LogFormat::Text);
    }

    #[test]
    #[ignore = "ends its process"]
    fn loses_one_as_json() {
        lose_one(LogFormat::Json);
    }

    fn lose_one(format: LogFormat) {
        logging::start(format, &Terminal::default(), move |reason| of_lost_task(reason, format));
        let device = Device::wgpu(DeviceKind::DefaultDevice);
        let read = |x: Tensor<1>| x.add_scalar(1.0).into_data().convert::<f32>();
        read(Tensor::ones([8], &device));
        eprintln!("what works is no fault");
        // WGSL has no bf16.
        let garbage = read(Tensor::<1>::ones([8], &device).cast(FloatDType::BF16).cast(FloatDType::F32));
        panic!("went on with {garbage:?}");
    }
}
