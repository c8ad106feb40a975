//! Metrics of a run, kept: `tracing` events become lines of JSON, TensorBoard's events and a text file for Prometheus.
//!
//! A stage emits events with target [`TARGET`] and the fields `stage`, `split`, `step`, and scalars of any name; between
//! [`Recorder::start`] and its drop they are written by a thread of their own, so that no disk holds a stage up. What cannot be
//! written is said once and then left: metrics are not worth a run.
//!
//! An event with `mark = "start"` says from which step on a run goes, and one with `mark = "checkpoint"` returns when all that
//! was said before is written: so a killed run that goes on from its checkpoint leaves each step once.

mod lines;
mod prometheus;
mod tensorboard;

use std::{
    fmt::Debug,
    io,
    path::PathBuf,
    sync::{
        Mutex, PoisonError,
        mpsc::{self, Receiver, RecvTimeoutError, Sender},
    },
    thread::{self, JoinHandle},
    time::{Duration, SystemTime},
};

use serde::{Serialize, Serializer};
use serde_json::Value;
use tracing::{
    Event, Subscriber,
    field::{Field, Visit},
};
use tracing_subscriber::layer::{Context, Layer};

use crate::progress;
use lines::Lines;
use prometheus::TextFile;
use tensorboard::EventFile;

/// Target of metrics events.
pub(crate) const TARGET: &str = "softshard::metrics";
/// Target of what is said here: this module's own name is that of the events.
const WORDS: &str = "softshard";
/// How long the thread waits before it looks whether the text file is due.
const TICK: Duration = Duration::from_secs(1);

/// Where the metrics of a run go.
#[derive(Clone)]
pub(crate) struct Places {
    /// Name of the run.
    pub(crate) name: String,
    /// File of JSON lines, where the stage writes none itself.
    pub(crate) lines: Option<PathBuf>,
    /// Folder of TensorBoard's event files.
    pub(crate) tensorboard: PathBuf,
    /// The text file for Prometheus.
    pub(crate) prometheus: Option<PathBuf>,
}

/// The recorder that is at work.
static OPEN: Mutex<Option<Open>> = Mutex::new(None);

struct Open {
    sender: Sender<Message>,
    /// Whether progress is recorded as well.
    wants_progress: bool,
}

/// What the thread is told.
enum Message {
    Record(Record),
    /// Answered when all that was said before is written.
    Checkpoint(Sender<()>),
}

/// Records what events say until it is dropped.
pub(crate) struct Recorder(Option<JoinHandle<()>>);

impl Recorder {
    /// Opens the files and starts to record. A file that cannot be opened is said and done without.
    pub(crate) fn start(places: Places) -> Self {
        let (sender, receiver) = mpsc::channel();
        let wants_progress = places.prometheus.is_some();
        let thread = thread::spawn(move || Recording::start(&places).run(&receiver));
        *OPEN.lock().unwrap_or_else(PoisonError::into_inner) = Some(Open { sender, wants_progress });
        Self(Some(thread))
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        OPEN.lock().unwrap_or_else(PoisonError::into_inner).take();
        if self.0.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::warn!(target: WORDS, "metrics are not complete: their thread panicked");
        }
    }
}

/// The layer that hands events over.
pub(crate) struct Metrics;

impl<S: Subscriber> Layer<S> for Metrics {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let is_progress = match event.metadata().target() {
            TARGET => false,
            progress::TARGET => true,
            _ => return,
        };
        let open = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(at_work) = open.as_ref().filter(|open| open.wants_progress || !is_progress) else { return };
        let mut record = Record { time: now(), is_progress, ..Record::default() };
        event.record(&mut record);
        // The thread ends after this sender only.
        if record.mark == Some(Mark::Checkpoint) {
            let (written, answer) = mpsc::channel();
            let _ = at_work.sender.send(Message::Checkpoint(written));
            drop(open);
            let _ = answer.recv();
        } else {
            let _ = at_work.sender.send(Message::Record(record));
        }
    }
}

fn now() -> f64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

/// What an event without scalars says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mark {
    /// The run goes on from this step.
    Start,
    /// The steps so far are there to stay.
    Checkpoint,
}

/// What an event said.
#[derive(Clone, Debug, Default)]
struct Record {
    /// Seconds since the epoch.
    time: f64,
    is_progress: bool,
    mark: Option<Mark>,
    stage: String,
    split: Option<String>,
    step: u64,
    /// Numbers, `null` where they are not finite.
    scalars: Vec<(&'static str, Value)>,
}

impl Visit for Record {
    fn record_u64(&mut self, field: &Field, value: u64) {
        match field.name() {
            "step" => self.step = value,
            name => self.scalars.push((name, value.into())),
        }
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        match u64::try_from(value) {
            Ok(value) => self.record_u64(field, value),
            Err(_) => self.scalars.push((field.name(), value.into())),
        }
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.scalars.push((field.name(), value.into()));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        match field.name() {
            "stage" => value.clone_into(&mut self.stage),
            "split" => self.split = Some(value.to_owned()),
            "mark" => {
                self.mark = match value {
                    "start" => Some(Mark::Start),
                    "checkpoint" => Some(Mark::Checkpoint),
                    _ => None,
                }
            }
            _ => {}
        }
    }

    fn record_debug(&mut self, _: &Field, _: &dyn Debug) {}
}

impl Serialize for Record {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut head: Vec<(&str, Value)> =
            vec![("time", self.time.into()), ("stage", self.stage.as_str().into())];
        head.extend(self.split.as_deref().map(|split| ("split", split.into())));
        head.push(("step", self.step.into()));
        serializer.collect_map(head.iter().chain(&self.scalars).map(|(name, value)| (name, value)))
    }
}

/// The open files; each is closed at its first error.
struct Recording {
    run: String,
    lines: Option<Lines>,
    tensorboard: Option<EventFile>,
    prometheus: Option<TextFile>,
}

impl Recording {
    fn start(places: &Places) -> Self {
        let Places { name, lines, tensorboard, prometheus } = places;
        Recording {
            run: name.clone(),
            lines: lines.as_deref().and_then(|lines| said(Lines::append_to(lines))),
            tensorboard: Some(EventFile::new(tensorboard)),
            prometheus: prometheus.as_deref().map(TextFile::new),
        }
    }

    /// Takes records until there are no more.
    fn run(mut self, records: &Receiver<Message>) {
        loop {
            match records.recv_timeout(TICK) {
                Ok(Message::Record(record)) => self.take(&record),
                Ok(Message::Checkpoint(answer)) => {
                    keep(&mut self.tensorboard, EventFile::sync);
                    let _ = answer.send(()); // nobody waits for it if the run was stopped meanwhile
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
            keep(&mut self.prometheus, TextFile::write_if_due);
        }
        keep(&mut self.prometheus, TextFile::write);
    }

    fn take(&mut self, record: &Record) {
        if record.mark == Some(Mark::Start) {
            keep(&mut self.tensorboard, |file| file.write_start(record.time, record.step));
            return;
        }
        if let Some(file) = &mut self.prometheus {
            gauge(file, &self.run, record);
        }
        if record.is_progress {
            return;
        }
        keep(&mut self.lines, |lines| lines.write(record));
        let tag =
            |name: &str| record.split.iter().map(String::as_str).chain([name]).collect::<Vec<_>>().join("/");
        #[expect(clippy::cast_possible_truncation, reason = "TensorBoard keeps f32")]
        let scalar = |value: &Value| value.as_f64().unwrap_or(f64::NAN) as f32;
        let scalars: Vec<_> = record.scalars.iter().map(|(name, value)| (tag(name), scalar(value))).collect();
        keep(&mut self.tensorboard, |file| file.write_scalars(record.time, record.step, &scalars));
    }
}

/// Numbers are of the whole run, whichever worker says them, but those called `worker_...`.
fn gauge(file: &mut TextFile, run: &str, record: &Record) {
    let mut labels = vec![("run", run), ("stage", &record.stage)];
    labels.extend(record.split.as_deref().map(|split| ("split", split)));
    let worker =
        record.scalars.iter().find(|(name, _)| *name == "worker").map(|(_, worker)| worker.to_string());
    let of_worker: Vec<_> =
        labels.iter().copied().chain(worker.as_deref().map(|worker| ("worker", worker))).collect();
    for (name, value) in record.scalars.iter().filter(|(name, _)| *name != "worker") {
        let labels = if name.starts_with("worker_") { &of_worker } else { &labels };
        file.set(name, labels, value.as_f64().unwrap_or(f64::NAN));
    }
    file.set("updated_seconds", &labels, record.time);
}

/// Uses the file if it is still open. Its first error is said and closes it; errors of files name them.
fn keep<T>(file: &mut Option<T>, write: impl FnOnce(&mut T) -> io::Result<()>) {
    if let Some(open) = file {
        let written = write(open);
        if said(written).is_none() {
            *file = None;
        }
    }
}

fn said<T>(result: io::Result<T>) -> Option<T> {
    result
        .inspect_err(
            |error| tracing::warn!(target: WORDS, "metrics: {error}; the run goes on without this file"),
        )
        .ok()
}

#[cfg(test)]
mod tests {
    use fs_err as fs;
    use tracing_subscriber::layer::SubscriberExt;

    use super::*;

    fn recorded(places: &Places, say: impl FnOnce()) {
        let recorder = Recorder::start(places.clone());
        tracing::subscriber::with_default(tracing_subscriber::registry().with(Metrics), say);
        drop(recorder);
    }

    fn shard(step: u64, entropy: f64) {
        tracing::info!(target: TARGET, stage = "teacher-labels", split = "train", step, tokens = 80_u64, entropy);
    }

    /// One test, as there is one recorder in a process.
    #[test]
    fn events_reach_all_files_and_resumed_runs_go_on() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let places = Places {
            name: "teacher-labels".to_owned(),
            lines: Some(folder.path().join("metrics/teacher-labels.jsonl")),
            tensorboard: folder.path().join("metrics/tensorboard/teacher-labels"),
            prometheus: Some(folder.path().join("softshard.prom")),
        };
        recorded(&places, || shard(1, 0.5));
        let lines = folder.path().join("metrics/teacher-labels.jsonl");
        let first = fs::read_to_string(&lines).expect("lines");
        fs::write(&lines, format!("{first}{{\"time\":1")).expect("torn");
        recorded(&places, || {
            tracing::info!(target: progress::TARGET, stage = "teacher-labels", split = "train", done = 7, worker = 1, worker_tokens = 5);
            shard(2, f64::NAN);
            tracing::info!(target: TARGET, stage = "teacher-labels", mark = "checkpoint", step = 2_u64);
            let written = fs::read_to_string(&lines).expect("lines");
            assert!(written.contains(r#""step":2,"#), "written before the checkpoint is: {written}");
        });

        let read = fs::read_to_string(&lines).expect("lines");
        assert!(read.starts_with(&first), "{read}");
        let ends = [
            r#","stage":"teacher-labels","split":"train","step":1,"tokens":80,"entropy":0.5}"#,
            r#""step":2,"tokens":80,"entropy":null}"#,
        ];
        assert_eq!(read.lines().count(), 2, "{read}");
        assert!(
            read.lines().zip(ends).all(|(line, end)| line.starts_with("{\"time\":") && line.ends_with(end)),
            "{read}"
        );
        let events = fs::read_dir(&places.tensorboard).expect("a folder").count();
        assert_eq!(events, 2);
        let text = fs::read_to_string(folder.path().join("softshard.prom")).expect("the text file");
        let labels = r#"{run="teacher-labels",stage="teacher-labels",split="train"}"#;
        for value in ["done", "tokens", "entropy"].into_iter().zip(["7", "80", "NaN"]) {
            assert!(text.contains(&format!("softshard_{}{labels} {}\n", value.0, value.1)), "{text}");
        }
        assert!(text.contains(r#"softshard_worker_tokens{run="teacher-labels",stage="teacher-labels",split="train",worker="1"} 5"#), "{text}");
        assert_eq!(text.matches("worker").count(), 3, "{text}");
    }

    #[test]
    fn a_file_that_cannot_be_written_is_done_without() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let (name, tensorboard) = ("run".to_owned(), folder.path().join("tensorboard"));
        fs::write(&tensorboard, "a file, not a folder").expect("written");
        let lines = Some(folder.path().join("run.jsonl"));
        let places = Places { name, lines, tensorboard, prometheus: None };
        let mut recording = Recording::start(&places);
        recording.take(&Record::default());
        assert!(recording.tensorboard.is_none() && recording.lines.is_some());
        let text = fs::read_to_string(folder.path().join("run.jsonl")).expect("lines");
        assert_eq!(text.lines().count(), 1);
        let mut full = Some(());
        keep(&mut full, |()| Err(io::Error::other("no space left on device")));
        assert!(full.is_none());
    }
}
