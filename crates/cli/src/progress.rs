//! Progress of a stage, drawn: bars on a terminal, a plain line every few seconds elsewhere.
//!
//! In labelling, where a worker and shards are said, several workers have a line each; in training there is a
//! line of what is learnt. The library crates know nothing of terminals.

use std::{
    collections::{BTreeMap, VecDeque},
    fmt::Write as _,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use indicatif::HumanDuration;
use softshard_labels::{Progress, Scalar};

use crate::{
    learning::Learning,
    numbers::grouped,
    terminal::{Picture, Terminal, tell},
};

const BETWEEN_LINES: Duration = Duration::from_secs(10);
/// A worker's speed is that of this time, so that one that hangs is seen.
const RECENTLY: Duration = Duration::from_secs(30);

/// What is said of a stage at a time.
#[derive(Clone, Default)]
struct Fields {
    stage: String,
    split: Option<String>,
    unit: String,
    done: u64,
    total: u64,
    tokens: u64,
    learning: Option<Learning>,
    worker: u64,
    shards_done: u64,
    shards_total: u64,
    shards_failed: u64,
    retries: u64,
}

impl Fields {
    /// A training names the `divergence` that it lessens.
    fn of(progress: &Progress<'_>, divergence: Option<&'static str>) -> Self {
        let Progress { stage, split, worker, done, total, unit, tokens, .. } = *progress;
        let count = |name| match progress.scalar(name) {
            Some(Scalar::Count(count)) => count,
            _ => 0,
        };
        Fields {
            stage: stage.to_owned(),
            split: split.map(str::to_owned),
            unit: unit.to_owned(),
            done,
            total,
            tokens: tokens.unwrap_or(0),
            learning: Learning::of(progress, divergence),
            worker: worker.unwrap_or(0),
            shards_done: count("shards_done"),
            shards_total: count("shards_total"),
            shards_failed: count("shards_failed"),
            retries: count("retries"),
        }
    }
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

/// Draws what one run says.
pub(crate) struct Bars {
    divergence: Option<&'static str>,
    current: Mutex<Option<Current>>,
}

impl Bars {
    /// A training names the `divergence` that it lessens.
    pub(crate) fn new(divergence: Option<&'static str>) -> Self {
        Self { divergence, current: Mutex::default() }
    }

    /// Draws it on the terminal; where there is none, writes a line when it is time.
    pub(crate) fn show(&self, terminal: &Terminal, progress: &Progress<'_>) {
        let (fields, now) = (Fields::of(progress, self.divergence), Instant::now());
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        let on_terminal = Terminal::is_there();
        if current.as_ref().is_none_or(|current| !current.is_of(&fields)) {
            terminal.leave();
            if on_terminal {
                terminal.begin(&fields.stage);
            }
            *current = Some(Current::new(&fields, now));
        }
        let Some(current) = current.as_mut() else { return };
        current.count(&fields, now);
        if on_terminal {
            terminal.draw(current.picture(&fields, now));
            if fields.done >= fields.total {
                terminal.leave();
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

    /// What stands on a terminal.
    fn picture(&self, fields: &Fields, now: Instant) -> Picture {
        let (message, rows) = (self.message(fields, now), self.rows(fields, now));
        let Fields { done, total, .. } = *fields;
        Picture { done, total, message, rows, rows_stay: fields.learning.is_some() }
    }

    /// What stands above the total.
    fn rows(&self, fields: &Fields, now: Instant) -> Vec<(String, String)> {
        if let Some(learning) = &fields.learning {
            let held_out = learning.held_out().map(|held_out| ("held out".to_owned(), held_out));
            return [(String::new(), learning.to_string())].into_iter().chain(held_out).collect();
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
        if let Some(memory) = fields.learning.as_ref().and_then(Learning::memory) {
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
        if let Some(learning) = &fields.learning {
            let _ = write!(line, "  {learning}");
            if let Some(held_out) = learning.held_out() {
                let _ = write!(line, "  (held out: {held_out})");
            }
        }
        if self.workers.len() > 1 && done < total {
            let speeds: Vec<String> =
                self.workers.values().map(|worker| grouped(worker.speed(now))).collect();
            let _ = write!(line, "  (workers: {} tokens/s)", speeds.join(", "));
        }
        Some(line)
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
            let scalars = [
                ("loss", Scalar::Real(2.5)),
                ("learning_rate", Scalar::Real(1e-5)),
                ("memory_bytes", Scalar::Count(3_210_000_000)),
                ("valid_step", Scalar::Count(10)),
                ("valid_nll", Scalar::Real(2.75)),
            ];
            last.learning = Learning::of(&Progress { scalars: &scalars, ..Progress::default() }, Some("KL"));
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
