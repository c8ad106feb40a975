//! Events to stderr: text for people, JSON lines for machines.

use std::io::IsTerminal;

use clap::ValueEnum;
use tracing_subscriber::{EnvFilter, Layer, fmt, layer::SubscriberExt, util::SubscriberInitExt};

#[cfg(any(feature = "cuda", feature = "wgpu"))]
use crate::{
    device::DeviceError,
    exit,
    lost_task::{self, LostTasks},
};
use crate::{
    metrics::{self, Metrics},
    progress,
};

/// How events are written to stderr.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    /// For people: bars on a terminal, plain lines elsewhere.
    Text,
    /// One JSON object a line.
    Json,
}

/// Installs the subscriber; a line that cannot be written is lost, as a complaint about it could not be either. `RUST_LOG` filters as usual; the default is `info`.
pub(crate) fn start(format: LogFormat) {
    let filter = || EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let registry = tracing_subscriber::registry().with(Metrics);
    #[cfg(any(feature = "cuda", feature = "wgpu"))]
    let registry = registry.with(lost_tasks(format));
    match format {
        LogFormat::Json => {
            let lines = fmt::layer()
                .json()
                .log_internal_errors(false)
                .flatten_event(true)
                .with_writer(std::io::stderr)
                .with_filter(filter());
            registry.with(lines).init();
        }
        LogFormat::Text => {
            let not_drawn = tracing_subscriber::filter::filter_fn(|metadata| {
                ![progress::TARGET, metrics::TARGET].contains(&metadata.target())
            });
            let lines = fmt::layer()
                .without_time()
                .log_internal_errors(false)
                .with_target(false)
                .with_ansi(std::io::stderr().is_terminal())
                .with_writer(progress::AboveBars)
                .with_filter(filter())
                .with_filter(not_drawn);
            registry.with(lines).with(progress::Bars::default()).init();
        }
    }
}

/// A lost task ends the process as an error of the device.
#[cfg(any(feature = "cuda", feature = "wgpu"))]
fn lost_tasks(format: LogFormat) -> LostTasks<impl Fn(String)> {
    LostTasks(move |reason: String| {
        lost_task::end(move || {
            exit::report(&DeviceError::of_lost_task(&reason).into(), format);
            std::process::exit(i32::from(exit::BAD_DEVICE));
        })
    })
}

#[cfg(all(test, feature = "wgpu"))]
mod tests {
    use burn::tensor::{Device, DeviceKind, FloatDType, Tensor};

    use super::*;

    /// The words that a lost task is known by are the runtime's own: this fails if they change.
    #[test]
    fn a_lost_task_is_no_silent_garbage() {
        for (test, words) in
            [("loses_one_as_text", "error: device: "), ("loses_one_as_json", "\"exit_code\":4")]
        {
            let mut child = std::process::Command::new(std::env::current_exe().expect("a test has a path"));
            child.args([&*format!("logging::tests::{test}"), "--exact", "--ignored", "--nocapture"]);
            // Where only errors are to be seen.
            let said = child.env("RUST_LOG", "error").output().expect("it starts");
            let stderr = String::from_utf8_lossy(&said.stderr);
            assert_eq!(said.status.code(), Some(i32::from(exit::BAD_DEVICE)), "{stderr}");
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
        start(format);
        let device = Device::wgpu(DeviceKind::DefaultDevice);
        let read = |x: Tensor<1>| x.add_scalar(1.0).into_data().convert::<f32>();
        read(Tensor::ones([8], &device));
        eprintln!("what works is no fault");
        // WGSL has no bf16.
        let garbage = read(Tensor::<1>::ones([8], &device).cast(FloatDType::BF16).cast(FloatDType::F32));
        panic!("went on with {garbage:?}");
    }
}
