//! Events to stderr: text for people, JSON lines for machines.

use std::{
    fmt::{Debug, Result},
    io::{self, IsTerminal, Write},
};

use clap::ValueEnum;
use softshard_labels::visible;
use tracing::field::{Field, Visit};
use tracing_subscriber::{
    EnvFilter, Layer,
    field::{RecordFields, VisitOutput},
    fmt::{
        self,
        format::{DefaultVisitor, FormatFields, Writer},
    },
    layer::SubscriberExt,
    util::SubscriberInitExt,
};

use crate::{
    lost_task::LostTasks,
    metrics::{self, Metrics},
    progress,
    stdout::json_without_control,
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
                .with_writer(|| JsonLines)
                .with_filter(filter());
            registry.with(lines).init();
        }
        LogFormat::Text => {
            let not_drawn = tracing_subscriber::filter::filter_fn(|metadata| {
                ![progress::TARGET, metrics::TARGET].contains(&metadata.target())
            });
            let lines = fmt::layer()
                .fmt_fields(VisibleFields)
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
