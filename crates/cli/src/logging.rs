//! Events to stderr: text for people, JSON lines for machines.

use std::{
    fmt::{Debug, Result},
    io::{self, Write},
};

use clap::ValueEnum;
use serde_json::Value;
use softshard_labels::{Metrics, Progress, visible};
use tracing::{
    Level,
    field::{Field, Visit},
};
use tracing_subscriber::{
    EnvFilter, Layer,
    field::{RecordFields, VisitOutput},
    filter::Targets,
    fmt::{
        self,
        format::{DefaultVisitor, FormatFields, Writer},
        time::{FormatTime, SystemTime},
    },
    layer::SubscriberExt,
    util::SubscriberInitExt,
};

use crate::{lost_task::LostTasks, metrics, stdout::json_without_control, terminal::Terminal};

/// Targets of what a run says of itself among events.
const PROGRESS: &str = "softshard::progress";
const METRICS: &str = "softshard::metrics";

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
pub(crate) fn start(
    format: LogFormat,
    terminal: &Terminal,
    on_lost_task: impl Fn(String) + Send + Sync + 'static,
) {
    let filter = || EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let registry = tracing_subscriber::registry().with(LostTasks(on_lost_task));
    match format {
        LogFormat::Json => {
            let lines = fmt::layer()
                .json()
                .log_internal_errors(false)
                .flatten_event(true)
                .with_writer(|| JsonLines)
                .with_filter(filter());
            registry.with(lines).init();
        }
        LogFormat::Text => {
            let lines = fmt::layer()
                .fmt_fields(VisibleFields)
                .without_time()
                .log_internal_errors(false)
                .with_target(false)
                .with_ansi(Terminal::is_there())
                .with_writer(terminal.clone())
                .with_filter(filter());
            registry.with(lines).init();
        }
    }
}

/// Fields as they are always written, with what a terminal would obey made visible: messages and errors quote files of strangers.
struct VisibleFields;

impl<'writer> FormatFields<'writer> for VisibleFields {
    fn format_fields<R: RecordFields>(&self, writer: Writer<'writer>, fields: R) -> Result {
        let mut visitor = Visible(DefaultVisitor::new(writer, true));
        fields.record(&mut visitor);
        visitor.0.finish()
    }
}

struct Visible<V>(V);

impl<V: Visit> Visit for Visible<V> {
    fn record_str(&mut self, field: &Field, value: &str) {
        match field.name() {
            "message" => self.record_debug(field, &format_args!("{value}")),
            _ => self.record_debug(field, &value),
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        let text = format!("{value:?}");
        self.0.record_debug(field, &format_args!("{}", visible(&text)));
    }
}

/// Lines of JSON to standard error. JSON itself leaves some control characters as they are.
struct JsonLines;

impl Write for JsonLines {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let text = String::from_utf8_lossy(line);
        io::stderr().write_all(json_without_control(&text).as_bytes())?;
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

/// By name, in order.
type Fields = Vec<(&'static str, Value)>;

/// What a run says of itself, as lines of JSON among those of events, and filtered as they are.
pub(crate) struct RunLines {
    divergence: Option<&'static str>,
    has_progress: bool,
    has_metrics: bool,
}

impl RunLines {
    /// A training names the `divergence` that it lessens.
    pub(crate) fn new(divergence: Option<&'static str>) -> Self {
        let filter = std::env::var(EnvFilter::DEFAULT_ENV).ok().and_then(|text| text.parse::<Targets>().ok());
        let has = |target| filter.as_ref().is_none_or(|filter| filter.would_enable(target, &Level::INFO));
        Self { divergence, has_progress: has(PROGRESS), has_metrics: has(METRICS) }
    }

    pub(crate) fn progress(&self, progress: &Progress<'_>) {
        if !self.has_progress {
            return;
        }
        let Progress { stage, split, worker, done, total, unit, tokens, scalars } = *progress;
        let mut fields: Fields = vec![("stage", stage.into())];
        fields.extend(split.map(|split| ("split", split.into())));
        fields.extend(worker.map(|worker| ("worker", worker.into())));
        fields.extend([("done", done.into()), ("total", total.into()), ("unit", unit.into())]);
        fields.extend(tokens.map(|tokens| ("tokens", tokens.into())));
        fields.extend(scalars.iter().map(|&(name, scalar)| (name, metrics::value(scalar))));
        fields.extend(self.divergence.map(|name| ("divergence_name", name.into())));
        write_line(PROGRESS, fields);
    }

    pub(crate) fn metrics(&self, metrics: &Metrics<'_>) {
        if self.has_metrics {
            let Metrics { stage, split, step, scalars } = *metrics;
            let mut fields: Fields =
                vec![("stage", stage.into()), ("split", split.into()), ("step", step.into())];
            fields.extend(scalars.iter().map(|&(name, scalar)| (name, metrics::value(scalar))));
            write_line(METRICS, fields);
        }
    }

    pub(crate) fn mark(&self, mark: &str, stage: &str, step: u64) {
        if self.has_metrics {
            let fields = vec![("stage", stage.into()), ("mark", mark.into()), ("step", step.into())];
            write_line(METRICS, fields);
        }
    }
}

/// As an event of this target; a line that cannot be written is lost.
fn write_line(target: &str, fields: Fields) {
    let mut time = String::new();
    let _ = SystemTime.format_time(&mut Writer::new(&mut time)); // a string takes everything
    let head = [("timestamp", time.into()), ("level", "INFO".into())];
    let line = head.into_iter().chain(fields).chain([("target", target.into())]);
    let mut bytes = Vec::new();
    let mut serializer = serde_json::Serializer::new(&mut bytes);
    if serde::Serializer::collect_map(&mut serializer, line).is_ok() {
        bytes.push(b'\n');
        let _ = JsonLines.write_all(&bytes);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    /// What was written.
    #[derive(Clone, Default)]
    struct Kept(Arc<Mutex<Vec<u8>>>);

    impl Write for Kept {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().expect("no panic").write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn fields_do_not_steer_a_terminal_and_colours_are_ours() {
        let kept = Kept::default();
        let writer = kept.clone();
        let layer =
            fmt::layer().fmt_fields(VisibleFields).with_ansi(true).with_writer(move || writer.clone());
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), || {
            let hostile = "a\u{1b}[2J\u{9b}b";
            let error = io::Error::other(hostile);
            tracing::warn!(%error, path = %hostile, name = hostile, "{hostile}");
        });
        let text = String::from_utf8(kept.0.lock().expect("no panic").clone()).expect("text");
        assert!(text.contains("\u{1b}[33m") && text.contains("a\\x1b[2J"), "{text:?}");
        assert!(!text.contains("\u{1b}[2J") && !text.contains('\u{9b}'), "{text:?}");
    }
}
