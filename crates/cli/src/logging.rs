//! Events to stderr: text for people, JSON lines for machines.

use std::io::IsTerminal;

use clap::ValueEnum;
use tracing_subscriber::{EnvFilter, Layer, fmt, layer::SubscriberExt, util::SubscriberInitExt};

use crate::{
    lost_task::LostTasks,
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

/// Installs the subscriber; a line that cannot be written is lost, as a complaint about it could not be either. `RUST_LOG` filters
/// as usual; the default is `info`. `on_lost_task` gets the reason of each task that a device lost.
pub(crate) fn start(format: LogFormat, on_lost_task: impl Fn(String) + Send + Sync + 'static) {
    let filter = || EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let registry = tracing_subscriber::registry().with(Metrics).with(LostTasks(on_lost_task));
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
