//! Metrics of a run, kept: lines of JSON, TensorBoard's events and a text file for Prometheus.
//!
//! What a stage says between [`Recorder::start`] and its drop is written by a thread of its own, so that no
//! disk holds a stage up. What cannot be written is said once and then left: metrics are not worth a run. A
//! killed run that goes on from its checkpoint leaves each step once: [`Recorder::checkpoint`] waits until
//! all that was said before is written, and [`Recorder::begin`] says from which step on a run goes.

mod lines;
mod prometheus;
mod tensorboard;

use std::{
    io,
    path::PathBuf,
    sync::mpsc::{self, Receiver, RecvTimeoutError, Sender},
    thread::{self, JoinHandle},
    time::{Duration, SystemTime},
};

use serde::{Serialize, Serializer};
use serde_json::Value;
use softshard_labels::{Metrics, Progress, Scalar};

use lines::Lines;
use prometheus::TextFile;
use tensorboard::EventFile;

/// Target of what is said here: this module's own name is that of the numbers in a log of JSON.
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

/// What the thread is told.
enum Message {
    Metrics(Record),
    /// For the text file alone, whose step is none.
    Progress(Record),
    /// The run goes on from this step; seconds since the epoch.
    Begin(f64, u64),
    /// Answered when all that was said before is written.
    Checkpoint(Sender<()>),
    End,
}

/// Records what it is told until it is dropped.
pub(crate) struct Recorder {
    sender: Sender<Message>,
    thread: Option<JoinHandle<()>>,
    /// Whether progress is recorded as well.
    wants_progress: bool,
}

impl Recorder {
    /// Opens the files and starts to record. A file that cannot be opened is said and done without.
    pub(crate) fn start(places: Places) -> Self {
        let (sender, receiver) = mpsc::channel();
        let wants_progress = places.prometheus.is_some();
        let thread = thread::spawn(move || Recording::start(&places).run(&receiver));
        Self { sender, thread: Some(thread), wants_progress }
    }

    /// Keeps numbers.
    pub(crate) fn metrics(&self, metrics: &Metrics<'_>) {
        let Metrics { stage, split, step, scalars } = *metrics;
        self.tell(Message::Metrics(Record::new(stage, Some(split), step, scalars)));
    }

    /// Shows how far a stage is.
    pub(crate) fn progress(&self, progress: &Progress<'_>) {
        if !self.wants_progress {
            return;
        }
        let Progress { stage, split, worker, done, total, tokens, scalars, .. } = *progress;
        let mut record = Record::new(stage, split, 0, scalars);
        record.worker = worker;
        record.scalars.extend([("done", done.into()), ("total", total.into())]);
        record.scalars.extend(tokens.map(|tokens| ("tokens", tokens.into())));
        self.tell(Message::Progress(record));
    }

    /// The first step to come.
    pub(crate) fn begin(&self, step: u64) {
        self.tell(Message::Begin(now(), step));
    }

    /// Returns when all that was said before is written.
    pub(crate) fn checkpoint(&self) {
        let (written, answer) = mpsc::channel();
        self.tell(Message::Checkpoint(written));
        let _ = answer.recv(); // none comes of a thread that panicked, which is said at the end
    }

    /// A thread that panicked hears nothing.
    fn tell(&self, message: Message) {
        let _ = self.sender.send(message);
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        self.tell(Message::End);
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::warn!(target: WORDS, "metrics are not complete: their thread panicked");
        }
    }
}

fn now() -> f64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

/// What was said at a time.
#[derive(Clone, Debug, Default)]
struct Record {
    /// Seconds since the epoch.
    time: f64,
    stage: String,
    split: Option<String>,
    worker: Option<u64>,
    step: u64,
    /// Numbers, `null` where they are not finite.
    scalars: Vec<(&'static str, Value)>,
}

impl Record {
    fn new(stage: &str, split: Option<&str>, step: u64, scalars: &[(&'static str, Scalar)]) -> Self {
        Record {
            time: now(),
            stage: stage.to_owned(),
            split: split.map(str::to_owned),
            worker: None,
            step,
            scalars: scalars.iter().map(|&(name, scalar)| (name, value(scalar))).collect(),
        }
    }
}

/// As JSON has it.
pub(crate) fn value(scalar: Scalar) -> Value {
    match scalar {
        Scalar::Count(count) => count.into(),
        Scalar::Real(real) => real.into(),
    }
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
                Ok(Message::Metrics(record)) => self.take(&record),
                Ok(Message::Progress(record)) => self.show(&record),
                Ok(Message::Begin(time, step)) => {
                    keep(&mut self.tensorboard, |file| file.write_start(time, step));
                }
                Ok(Message::Checkpoint(answer)) => {
                    keep(&mut self.tensorboard, EventFile::sync);
                    let _ = answer.send(()); // nobody waits for it if the run was stopped meanwhile
                }
                Err(RecvTimeoutError::Timeout) => {}
                Ok(Message::End) | Err(RecvTimeoutError::Disconnected) => break,
            }
            keep(&mut self.prometheus, TextFile::write_if_due);
        }
        keep(&mut self.prometheus, TextFile::write);
    }

    /// In the text file.
    fn show(&mut self, record: &Record) {
        if let Some(file) = &mut self.prometheus {
            gauge(file, &self.run, record);
        }
    }

    fn take(&mut self, record: &Record) {
        self.show(record);
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
    let worker = record.worker.map(|worker| worker.to_string());
    let of_worker: Vec<_> =
        labels.iter().copied().chain(worker.as_deref().map(|worker| ("worker", worker))).collect();
    for (name, value) in &record.scalars {
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

    use super::*;

    fn places(folder: &std::path::Path, name: &str) -> Places {
        Places {
            name: name.to_owned(),
            lines: Some(folder.join(format!("metrics/{name}.jsonl"))),
            tensorboard: folder.join("metrics/tensorboard").join(name),
            prometheus: Some(folder.join(format!("{name}.prom"))),
        }
    }

    fn shard(to: &Recorder, step: u64, entropy: f64) {
        let scalars = [("tokens", Scalar::Count(80)), ("entropy", Scalar::Real(entropy))];
        to.metrics(&Metrics { stage: "teacher-labels", split: "train", step, scalars: &scalars });
    }

    #[test]
    fn what_is_said_reaches_all_files_and_resumed_runs_go_on() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let places = places(folder.path(), "teacher-labels");
        shard(&Recorder::start(places.clone()), 1, 0.5);
        let lines = folder.path().join("metrics/teacher-labels.jsonl");
        let first = fs::read_to_string(&lines).expect("lines");
        fs::write(&lines, format!("{first}{{\"time\":1")).expect("torn");
        let again = Recorder::start(places.clone());
        again.progress(&Progress {
            stage: "teacher-labels",
            split: Some("train"),
            worker: Some(1),
            done: 7,
            scalars: &[("worker_tokens", Scalar::Count(5))],
            ..Progress::default()
        });
        shard(&again, 2, f64::NAN);
        again.checkpoint();
        let written = fs::read_to_string(&lines).expect("lines");
        assert!(written.contains(r#""step":2,"#), "written before the checkpoint is: {written}");
        drop(again);

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
        let text = fs::read_to_string(folder.path().join("teacher-labels.prom")).expect("the text file");
        let labels = r#"{run="teacher-labels",stage="teacher-labels",split="train"}"#;
        for value in ["done", "tokens", "entropy"].into_iter().zip(["7", "80", "NaN"]) {
            assert!(text.contains(&format!("softshard_{}{labels} {}\n", value.0, value.1)), "{text}");
        }
        assert!(text.contains(r#"softshard_worker_tokens{run="teacher-labels",stage="teacher-labels",split="train",worker="1"} 5"#), "{text}");
        assert_eq!(text.matches("worker").count(), 3, "{text}");
    }

    #[test]
    fn two_runs_at_a_time_are_recorded_each_for_itself() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let recorders = ["one", "two"].map(|name| Recorder::start(places(folder.path(), name)));
        for step in 1..=50 {
            shard(&recorders[0], step, 1.0);
            shard(&recorders[1], 2 * step, 2.0);
        }
        drop(recorders);
        for (name, factor) in [("one", 1), ("two", 2)] {
            let lines = fs::read_to_string(folder.path().join(format!("metrics/{name}.jsonl")));
            let lines = lines.expect("lines");
            let step = |line: &str| serde_json::from_str::<Value>(line).expect("JSON")["step"].as_u64();
            let expected: Vec<_> = (1..=50).map(|step| Some(factor * step)).collect();
            assert_eq!(lines.lines().map(step).collect::<Vec<_>>(), expected);
        }
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
