//! Progress events of the stages, drawn: bars on a terminal, a plain line every few seconds elsewhere.
//!
//! A stage emits `tracing` events with target [`TARGET`] and the fields `stage`, `done`, `total`, `unit`, `tokens` and,
//! in training, those of [`Learning`]. In labelling they also say `split`, `worker`, `shards_done`, `shards_total`, `shards_failed` and
//! `retries`: several workers have a line each. All counts are of the whole stage. The library crates know nothing of terminals.

use std::{
    collections::{BTreeMap, VecDeque},
    fmt::{Debug, Write as _},
    io::{self, IsTerminal, Write},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use indicatif::{HumanDuration, MultiProgress, ProgressBar, ProgressStyle};
use softshard_labels::visible;
use tracing::{
    Event, Subscriber,
    field::{Field, Visit},
};
use tracing_subscriber::{
    fmt::MakeWriter,
    layer::{Context, Layer},
};

use crate::{learning::Learning, numbers::grouped};

/// Target of progress events.
pub(crate) const TARGET: &str = "softshard::progress";
const BETWEEN_LINES: Duration = Duration::from_secs(10);
/// A worker's speed is that of this time, so that one that hangs is seen.
const RECENTLY: Duration = Duration::from_secs(30);
const STYLE: &str = "{prefix:>14} {wide_bar} {pos}/{len} {msg}";
const ROW_STYLE: &str = "{prefix:>14} {msg}";

/// What is drawn now.
static DRAWN: Mutex<Option<Drawn>> = Mutex::new(None);

/// Lines of a terminal.
struct Drawn {
    all: MultiProgress,
    total: ProgressBar,
    /// Above the total: of each worker, or of what is learnt.
    rows: Vec<ProgressBar>,
    rows_stay: bool,
}

impl Drawn {
    fn new(stage: &str) -> Self {
        let all = MultiProgress::new();
        let total = all.add(line(STYLE, stage.to_owned()));
        Drawn { all, total, rows: Vec::new(), rows_stay: false }
    }

    fn draw(&mut self, fields: &Fields, message: &str, rows: Vec<(String, String)>) {
        while self.rows.len() < rows.len() {
            self.rows.push(self.all.insert_before(&self.total, line(ROW_STYLE, String::new())));
        }
        for (line, (prefix, message)) in self.rows.iter().zip(rows) {
            line.set_prefix(prefix);
            line.set_message(message);
        }
        self.rows_stay = fields.learning.is_said();
        self.total.set_length(fields.total);
        self.total.set_position(fields.done);
        self.total.set_message(message.to_owned());
    }
}

fn line(style: &str, prefix: String) -> ProgressBar {
    let style = ProgressStyle::with_template(style).unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(0).with_style(style.progress_chars("━╸ ")).with_prefix(prefix)
}

fn drawn<R>(use_it: impl FnOnce(&mut Option<Drawn>) -> R) -> R {
    use_it(&mut DRAWN.lock().unwrap_or_else(PoisonError::into_inner))
}

/// Leaves the total as it stands, before the last words of the process.
pub(crate) fn leave() {
    if let Some(lines) = drawn(Option::take) {
        let end = if lines.rows_stay { ProgressBar::abandon } else { ProgressBar::finish_and_clear };
        lines.rows.iter().for_each(end);
        lines.total.abandon();
    }
}

/// A line above the bars.
pub(crate) fn say(line: &str) {
    above_bars(|| tell(line));
}

/// A line to standard error, in one piece, with what a terminal would obey made visible. Whoever read it may have left: that ends
/// no stage.
pub(crate) fn tell(line: &str) {
    let _ = io::stderr().write_all(format!("{}\n", visible(line)).as_bytes());
}

fn above_bars<R>(write: impl FnOnce() -> R) -> R {
    drawn(|drawn| match drawn {
        // A terminal that has hung up is none any more, and indicatif panics where it cannot draw.
        Some(lines) if io::stderr().is_terminal() => lines.all.suspend(write),
        _ => write(),
    })
}

/// What a progress event says.
#[derive(Clone, Default)]
struct Fields {
    stage: String,
    split: Option<String>,
    unit: String,
    done: u64,
    total: u64,
    tokens: u64,
    learning: Learning,
    worker: u64,
    shards_done: u64,
    shards_total: u64,
    shards_failed: u64,
    retries: u64,
}

impl Visit for Fields {
    fn record_u64(&mut self, field: &Field, value: u64) {
        let place = match field.name() {
            "done" => &mut self.done,
            "total" => &mut self.total,
            "tokens" => &mut self.tokens,
            "worker" => &mut self.worker,
            "shards_done" => &mut self.shards_done,
            "shards_total" => &mut self.shards_total,
            "shards_failed" => &mut self.shards_failed,
            "retries" => &mut self.retries,
            name => return self.learning.record_u64(name, value),
        };
        *place = value;
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.learning.record_f64(field.name(), value);
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        match field.name() {
            "stage" => value.clone_into(&mut self.stage),
            "split" => self.split = Some(value.to_owned()),
            "unit" => value.clone_into(&mut self.unit),
            name => self.learning.record_str(name, value),
        }
    }

    fn record_debug(&mut self, _: &Field, _: &dyn Debug) {}
}

/// Tokens of a worker's last batches, and when they were done.
#[derive(Default)]
struct Worker(VecDeque<(Instant, u64)>);

impl Worker {
    fn add(&mut self, tokens: u64, now: Instant) {
        self.0.push_back((now, tokens));
        // Two batches make a speed, however long they take.
        while self.0.len() > 2 && now.duration_since(self.0[1].0) > RECENTLY {
            self.0.pop_front();
        }
    }

    /// Tokens a second since the oldest batch that is remembered.
    fn speed(&self, now: Instant) -> f64 {
        let Some((first, _)) = self.0.front() else { return 0.0 };
        #[expect(clippy::cast_precision_loss, reason = "for people")]
        let tokens = self.0.iter().skip(1).map(|(_, tokens)| tokens).sum::<u64>() as f64;
        tokens / now.duration_since(*first).as_secs_f64().max(1e-3)
    }
}

/// The stage that is drawn now.
struct Current {
    /// The first event.
    first: Fields,
    began: Instant,
    /// Of the last event.
    done: u64,
    tokens: u64,
    workers: BTreeMap<u64, Worker>,
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
        let now = Instant::now();
        let mut current = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let on_terminal = io::stderr().is_terminal();
        if current.as_ref().is_none_or(|current| !current.is_of(&fields)) {
            leave();
            if on_terminal {
                drawn(|drawn| *drawn = Some(Drawn::new(&fields.stage)));
            }
            *current = Some(Current::new(&fields, now));
        }
        let Some(current) = current.as_mut() else { return };
        current.count(&fields, now);
        if on_terminal {
            let (message, rows) = (current.message(&fields, now), current.rows(&fields, now));
            drawn(|drawn| {
                if let Some(lines) = drawn {
                    lines.draw(&fields, &message, rows);
                }
            });
            if fields.done >= fields.total {
                leave();
            }
        } else if let Some(line) = current.line_if_due(&fields, now) {
            tell(&line);
        }
    }
}

impl Current {
    fn new(fields: &Fields, now: Instant) -> Self {
        let (done, tokens) = (fields.done, fields.tokens);
        Current { first: fields.clone(), began: now, done, tokens, workers: BTreeMap::new(), last_line: now }
    }

    /// Where no split is named, the same stage from the start again is its next one.
    fn is_of(&self, fields: &Fields) -> bool {
        self.first.stage == fields.stage
            && self.first.split == fields.split
            && (fields.split.is_some() || fields.done >= self.done)
    }

    /// What came since the last event is the work of the worker that says so.
    fn count(&mut self, fields: &Fields, now: Instant) {
        self.workers.entry(fields.worker).or_default().add(fields.tokens.saturating_sub(self.tokens), now);
        self.done = self.done.max(fields.done);
        self.tokens = self.tokens.max(fields.tokens);
    }

    /// What stands above the total on a terminal.
    fn rows(&self, fields: &Fields, now: Instant) -> Vec<(String, String)> {
        if fields.learning.is_said() {
            let held_out = fields.learning.held_out().map(|held_out| ("held out".to_owned(), held_out));
            return [(String::new(), fields.learning.to_string())].into_iter().chain(held_out).collect();
        }
        // With one worker the total says it all.
        let workers = self.workers.iter().filter(|_| self.workers.len() > 1);
        let row = |(index, worker): (&u64, &Worker)| {
            (format!("worker {index}"), format!("{} tokens/s", grouped(worker.speed(now))))
        };
        workers.map(row).collect()
    }

    /// `sequences  12,346 tokens/s  3/10 shards  ETA 5m`.
    fn message(&self, fields: &Fields, now: Instant) -> String {
        let mut message = fields.unit.clone();
        let seconds = now.duration_since(self.began).as_secs_f64();
        let tokens = fields.tokens.saturating_sub(self.first.tokens);
        if tokens > 0 {
            #[expect(clippy::cast_precision_loss, reason = "for people")]
            let speed = tokens as f64 / seconds.max(1e-3);
            let _ = write!(message, "  {} tokens/s", grouped(speed)); // a string takes everything
        }
        if let Some(memory) = fields.learning.memory() {
            let _ = write!(message, "  {memory}");
        }
        // The last ones are committed after the last batch, when nothing is drawn any more.
        if fields.shards_total > 0
            && (fields.done < fields.total || fields.shards_done == fields.shards_total)
        {
            let _ = write!(message, "  {}/{} shards", fields.shards_done, fields.shards_total);
        }
        for (count, what) in [(fields.shards_failed, "failed"), (fields.retries, "retried")] {
            if count > 0 {
                let _ = write!(message, ", {count} {what}");
            }
        }
        let done = fields.done.saturating_sub(self.first.done);
        if fields.done < fields.total && done > 0 {
            #[expect(clippy::cast_precision_loss, reason = "for people")]
            let left = seconds * (fields.total - fields.done) as f64 / done as f64;
            let _ =
                write!(message, "  ETA {:#}", HumanDuration(Duration::from_secs_f64(left.clamp(0.0, 1e9))));
        }
        message
    }

    /// A line for a file, every few seconds and at the end.
    fn line_if_due(&mut self, fields: &Fields, now: Instant) -> Option<String> {
        let is_early = now.duration_since(self.last_line) < BETWEEN_LINES;
        if fields.done < fields.total && is_early && fields.shards_failed == 0 {
            return None;
        }
        self.last_line = now;
        let Fields { stage, done, total, .. } = fields;
        let mut line = format!("{stage:>14} {done}/{total} {}", self.message(fields, now));
        if fields.learning.is_said() {
            let _ = write!(line, "  {}", fields.learning);
        }
        if let Some(held_out) = fields.learning.held_out() {
            let _ = write!(line, "  (held out: {held_out})");
        }
        if self.workers.len() > 1 && done < total {
            let speeds: Vec<String> =
                self.workers.values().map(|worker| grouped(worker.speed(now))).collect();
            let _ = write!(line, "  (workers: {} tokens/s)", speeds.join(", "));
        }
        Some(line)
    }
}

/// Writes log lines above the bars.
pub(crate) struct AboveBars;

impl Write for AboveBars {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        above_bars(|| io::stderr().write(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

impl MakeWriter<'_> for AboveBars {
    type Writer = AboveBars;

    fn make_writer(&self) -> Self::Writer {
        AboveBars
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch(worker: u64, done: u64, tokens: u64) -> Fields {
        Fields {
            stage: "teacher-labels".to_owned(),
            split: Some("train".to_owned()),
            unit: "sequences".to_owned(),
            done,
            total: 100,
            tokens,
            worker,
            shards_total: 10,
            shards_done: done / 10,
            ..Fields::default()
        }
    }

    /// Batches as (second, worker, sequences, tokens) so far; what stands there after the last one.
    fn after(batches: &[(u64, u64, u64, u64)], change: impl FnOnce(&mut Fields)) -> Option<String> {
        let began = Instant::now();
        let mut current = Current::new(&batch(0, 0, 0), began);
        let mut line = None;
        let mut change = Some(change);
        for (index, &(second, worker, done, tokens)) in batches.iter().enumerate() {
            let mut fields = batch(worker, done, tokens);
            if index + 1 == batches.len() {
                change.take().into_iter().for_each(|change| change(&mut fields));
            }
            assert!(current.is_of(&fields));
            let now = began + Duration::from_secs(second);
            current.count(&fields, now);
            line = current.line_if_due(&fields, now);
        }
        line
    }

    #[test]
    fn a_line_says_speed_shards_and_how_long_it_takes() {
        assert_eq!(after(&[(0, 0, 1, 10), (9, 0, 20, 2_000)], |_| ()), None, "not yet");
        let line = after(&[(0, 0, 1, 10), (20, 0, 20, 50_000)], |_| ()).expect("it is due");
        assert_eq!(line, "teacher-labels 20/100 sequences  2,500 tokens/s  2/10 shards  ETA 80s");
        let line = after(&[(20, 0, 20, 50_000)], |last| (last.shards_failed, last.retries) = (1, 3));
        assert!(line.expect("it is due").contains("  2/10 shards, 1 failed, 3 retried  ETA"));
        let line = after(&[(2, 0, 100, 3_000)], |_| ()).expect("the end is said");
        assert_eq!(line, "teacher-labels 100/100 sequences  1,500 tokens/s  10/10 shards");
    }

    #[test]
    fn every_worker_has_its_share_and_one_that_hangs_is_seen() {
        let both = [(0, 0, 1, 100), (0, 1, 2, 200), (10, 0, 10, 1_200), (20, 1, 20, 6_200)];
        let line = after(&both, |_| ()).expect("it is due");
        assert!(
            line.ends_with("  310 tokens/s  2/10 shards  ETA 80s  (workers: 50, 250 tokens/s)"),
            "{line}"
        );
        let hangs = [&both[..], &[(1_000, 1, 21, 6_300), (1_010, 1, 22, 16_300)]].concat();
        let line = after(&hangs, |_| ()).expect("it is due");
        assert!(line.ends_with("(workers: 1, 10 tokens/s)"), "{line}");
    }

    #[test]
    fn a_training_says_what_it_learns() {
        let line = after(&[(20, 0, 20, 50_000)], |last| {
            last.shards_total = 0;
            last.unit = "steps".to_owned();
            last.learning.record_f64("loss", 2.5);
            last.learning.record_f64("learning_rate", 1e-5);
            last.learning.record_u64("memory_bytes", 3_210_000_000);
            last.learning.record_u64("valid_step", 10);
            last.learning.record_f64("valid_nll", 2.75);
        });
        let expected = "teacher-labels 20/100 steps  2,500 tokens/s  3.2 GB  ETA 80s  loss 2.500  lr 1.00e-5  \
                        (held out: NLL 2.750 after step 10)";
        assert_eq!(line.expect("it is due"), expected);
    }

    #[test]
    fn another_split_begins_anew() {
        let current = Current::new(&batch(0, 50, 0), Instant::now());
        assert!(current.is_of(&batch(1, 49, 0)), "another worker was a little faster");
        assert!(!current.is_of(&Fields { split: Some("valid".to_owned()), ..batch(0, 60, 0) }));
        let no_split = |done| Fields { split: None, ..batch(0, done, 0) };
        let current = Current::new(&no_split(50), Instant::now());
        assert!(current.is_of(&no_split(51)) && !current.is_of(&no_split(2)));
    }
}
