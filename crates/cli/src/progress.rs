//! Progress events of the stages, drawn: a bar on a terminal, a plain line every few seconds elsewhere.
//!
//! A stage emits `tracing` events with target [`TARGET`] and the fields `stage`, `done`, `total`, `unit`, `tokens` and,
//! in training, `loss`. The library crates know nothing of terminals.

use std::{
    fmt::Debug,
    io::{self, IsTerminal, Write},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use indicatif::{HumanDuration, ProgressBar, ProgressStyle};
use tracing::{
    Event, Subscriber,
    field::{Field, Visit},
};
use tracing_subscriber::{
    fmt::MakeWriter,
    layer::{Context, Layer},
};

/// Target of progress events.
pub(crate) const TARGET: &str = "softshard::progress";
const BETWEEN_LINES: Duration = Duration::from_secs(10);
const STYLE: &str = "{prefix:>14} {bar:28} {pos}/{len} {msg}  ETA {eta}";

/// The bar that is drawn now.
static BAR: Mutex<Option<ProgressBar>> = Mutex::new(None);

/// Leaves the bar as it stands, before the last words of the process.
pub(crate) fn leave() {
    if let Some(bar) = BAR.lock().unwrap_or_else(PoisonError::into_inner).take() {
        bar.abandon();
    }
}

/// A line above the bar.
pub(crate) fn say(line: &str) {
    above_bar(|| tell(line));
}

/// A line to standard error, in one piece. Whoever read it may have left: that ends no stage.
pub(crate) fn tell(line: &str) {
    let _ = io::stderr().write_all(format!("{line}\n").as_bytes());
}

fn above_bar<R>(write: impl FnOnce() -> R) -> R {
    match &*BAR.lock().unwrap_or_else(PoisonError::into_inner) {
        Some(bar) => bar.suspend(write),
        None => write(),
    }
}

/// What a progress event says.
#[derive(Default)]
struct Fields {
    stage: String,
    unit: String,
    done: u64,
    total: u64,
    tokens: u64,
    loss: Option<f64>,
}

impl Visit for Fields {
    fn record_u64(&mut self, field: &Field, value: u64) {
        match field.name() {
            "done" => self.done = value,
            "total" => self.total = value,
            "tokens" => self.tokens = value,
            _ => {}
        }
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        if field.name() == "loss" {
            self.loss = Some(value);
        }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        match field.name() {
            "stage" => value.clone_into(&mut self.stage),
            "unit" => value.clone_into(&mut self.unit),
            _ => {}
        }
    }

    fn record_debug(&mut self, _: &Field, _: &dyn Debug) {}
}

/// The stage that is drawn now.
struct Current {
    stage: String,
    bar: Option<ProgressBar>,
    began: Instant,
    tokens_at_start: u64,
    done_at_start: u64,
    /// Of the last event.
    done: u64,
    last_line: Instant,
}

/// The layer that draws.
#[derive(Default)]
pub(crate) struct Bars(Mutex<Option<Current>>);

impl<S: Subscriber> Layer<S> for Bars {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        if event.metadata().target() != TARGET {
            return;
        }
        let mut fields = Fields::default();
        event.record(&mut fields);
        let mut current = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // The same stage from the start again: its next split.
        let is_new = current
            .as_ref()
            .is_none_or(|current| current.stage != fields.stage || fields.done < current.done);
        if is_new {
            *current = Some(Current::new(&fields));
        }
        if let Some(current) = current.as_mut() {
            current.draw(&fields, is_new);
        }
    }
}

impl Current {
    fn new(fields: &Fields) -> Self {
        leave();
        let bar = io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new(fields.total);
            let style = ProgressStyle::with_template(STYLE).unwrap_or_else(|_| ProgressStyle::default_bar());
            bar.set_style(style.progress_chars("━╸ "));
            bar.set_prefix(fields.stage.clone());
            bar
        });
        BAR.lock().unwrap_or_else(PoisonError::into_inner).clone_from(&bar);
        let now = Instant::now();
        Current {
            stage: fields.stage.clone(),
            bar,
            began: now,
            tokens_at_start: fields.tokens,
            done_at_start: fields.done,
            done: fields.done,
            last_line: now,
        }
    }

    fn draw(&mut self, fields: &Fields, is_new: bool) {
        self.done = fields.done;
        let seconds = self.began.elapsed().as_secs_f64();
        #[expect(clippy::cast_precision_loss, reason = "for people")]
        let speed = (fields.tokens.saturating_sub(self.tokens_at_start)) as f64 / seconds.max(1e-3);
        let mut message = fields.unit.clone();
        if !is_new && fields.tokens > self.tokens_at_start {
            message.push_str(&format!("  {} tokens/s", grouped(speed)));
        }
        if let Some(loss) = fields.loss {
            message.push_str(&format!("  loss {loss:.4}"));
        }
        if let Some(bar) = &self.bar {
            bar.set_length(fields.total);
            bar.set_position(fields.done);
            bar.set_message(message);
            if fields.done >= fields.total {
                leave();
            }
            return;
        }
        let finished = fields.done >= fields.total;
        if finished || self.last_line.elapsed() >= BETWEEN_LINES {
            self.last_line = Instant::now();
            let rest = if finished { String::new() } else { format!("  ETA {}", self.eta(fields, seconds)) };
            tell(&format!("{:>14} {}/{} {message}{rest}", self.stage, fields.done, fields.total));
        }
    }

    fn eta(&self, fields: &Fields, seconds: f64) -> HumanDuration {
        #[expect(clippy::cast_precision_loss, reason = "for people")]
        let left = fields.total.saturating_sub(fields.done) as f64
            / fields.done.saturating_sub(self.done_at_start).max(1) as f64;
        HumanDuration(Duration::from_secs_f64((seconds * left).clamp(0.0, 1e9)))
    }
}

/// `12345.6` as `12,346`.
pub(crate) fn grouped(value: f64) -> String {
    let digits = format!("{:.0}", value.max(0.0));
    let mut text = String::with_capacity(digits.len() * 4 / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Writes log lines above the bar.
pub(crate) struct AboveBar;

impl Write for AboveBar {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        above_bar(|| io::stderr().write(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

impl MakeWriter<'_> for AboveBar {
    type Writer = AboveBar;

    fn make_writer(&self) -> Self::Writer {
        AboveBar
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn digits_are_grouped_by_three() {
        let grouped: Vec<_> =
            [0.0, 12.4, 999.6, 12_345.6, 1_234_567.0].into_iter().map(super::grouped).collect();
        assert_eq!(grouped, ["0", "12", "1,000", "12,346", "1,234,567"]);
    }
}
