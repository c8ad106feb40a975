//! What a command has of its process: the terminal, the form of its log, and the word to stop.

use std::sync::atomic::AtomicBool;

use softshard_labels::{Metrics, Observer, Progress};

use crate::{
    logging::{LogFormat, RunLines},
    metrics::{Places, Recorder},
    progress::Bars,
    terminal::Terminal,
};

/// What a command has of its process.
pub(crate) struct Session<'a> {
    pub(crate) stop: &'a AtomicBool,
    pub(crate) format: LogFormat,
    pub(crate) terminal: Terminal,
}

impl Session<'_> {
    /// Shows how far a run is, until it is dropped.
    pub(crate) fn observer(&self) -> Onlooker<'_> {
        self.onlooker(None, None)
    }

    /// The same, and records its metrics. A training names the `divergence` that it lessens.
    pub(crate) fn recording(&self, places: Places, divergence: Option<&'static str>) -> Onlooker<'_> {
        self.onlooker(Some(Recorder::start(places)), divergence)
    }

    fn onlooker(&self, recorder: Option<Recorder>, divergence: Option<&'static str>) -> Onlooker<'_> {
        let (bars, lines) = match self.format {
            LogFormat::Text => (Some(Bars::new(divergence)), None),
            LogFormat::Json => (None, Some(RunLines::new(divergence))),
        };
        Onlooker { terminal: &self.terminal, bars, lines, recorder }
    }
}

/// Of one run: what it says is drawn for people or written as lines of JSON, and recorded.
pub(crate) struct Onlooker<'a> {
    terminal: &'a Terminal,
    bars: Option<Bars>,
    lines: Option<RunLines>,
    recorder: Option<Recorder>,
}

impl Observer for Onlooker<'_> {
    fn progress(&self, progress: &Progress<'_>) {
        if let Some(bars) = &self.bars {
            bars.show(self.terminal, progress);
        }
        if let Some(lines) = &self.lines {
            lines.progress(progress);
        }
        if let Some(recorder) = &self.recorder {
            recorder.progress(progress);
        }
    }

    fn metrics(&self, metrics: &Metrics<'_>) {
        if let Some(lines) = &self.lines {
            lines.metrics(metrics);
        }
        if let Some(recorder) = &self.recorder {
            recorder.metrics(metrics);
        }
    }

    fn start(&self, stage: &str, step: u64) {
        if let Some(lines) = &self.lines {
            lines.mark("start", stage, step);
        }
        if let Some(recorder) = &self.recorder {
            recorder.begin(step);
        }
    }

    fn checkpoint(&self, stage: &str, step: u64) {
        if let Some(lines) = &self.lines {
            lines.mark("checkpoint", stage, step);
        }
        if let Some(recorder) = &self.recorder {
            recorder.checkpoint();
        }
    }
}

impl Drop for Onlooker<'_> {
    fn drop(&mut self) {
        self.terminal.leave();
    }
}
