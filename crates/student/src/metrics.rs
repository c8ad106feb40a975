//! What a run says of itself: a line of metrics.jsonl and `tracing` events, for every step and every evaluation.
//!
//! Events of target `softshard::metrics` hold the scalars of a line as fields; those with `mark` hold none: `start` says from
//! which step on the run goes, whatever was said of it before, and `checkpoint` that all steps so far are there to stay.

use std::{
    io::{self, Read, Seek, SeekFrom, Write},
    path::Path,
};

use anyhow::Result;
use fs_err as fs;
use serde::Serialize;
use softshard_losses::Divergence;

/// A step; losses are nats per labelled token.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct StepMetrics {
    /// Counted from 1.
    pub(crate) step: u64,
    /// What is minimised.
    pub(crate) loss: f64,
    pub(crate) cross_entropy: f64,
    /// Unweighted, without T²; not computed where alpha is 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) divergence: Option<f64>,
    pub(crate) alpha: f64,
    pub(crate) learning_rate: f64,
    /// Before it is clipped.
    pub(crate) gradient_norm: f64,
    pub(crate) tokens: usize,
    pub(crate) labelled_tokens: usize,
    /// Of all tokens without padding, with the time that the loop waited for them.
    pub(crate) tokens_per_second: f64,
    /// Share of the step's time in which the loop waited for the reader.
    pub(crate) stall_share: f64,
    /// In use on the device at the end of the step.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) memory_bytes: Option<u64>,
}

/// How good the model is on held-out data after a step.
#[derive(Clone, Debug, Serialize)]
pub struct HeldOut {
    /// Steps taken.
    pub step: u64,
    /// Mean -log probability of the gold tokens, nats.
    pub nll: f64,
    /// Mean forward KL from the teacher, nats; only of labels.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kl: Option<f64>,
    /// Expected calibration error of the most probable token.
    pub ece: f64,
    /// Share of the gold tokens that are the most probable one.
    pub accuracy: f64,
    /// Sequences that were looked at.
    pub sequences: usize,
}

/// A line of metrics.jsonl.
#[derive(Serialize)]
struct Line<'a, T> {
    split: &'static str,
    #[serde(flatten)]
    scalars: &'a T,
}

/// How far the run is.
pub(crate) struct Progress {
    pub(crate) total_steps: u64,
    /// Of this process.
    pub(crate) tokens: u64,
}

/// metrics.jsonl of a run, and its events.
pub(crate) struct Metrics {
    stage: &'static str,
    divergence: &'static str,
    file: fs::File,
    bytes: u64,
    evaluation: Option<HeldOut>,
}

impl Metrics {
    /// The file as a checkpoint found it: lines behind its first `bytes` belong to an attempt that was cut off.
    pub(crate) fn open(
        output: &Path,
        stage: &'static str,
        divergence: &Divergence,
        steps_done: u64,
        bytes: u64,
    ) -> Result<Self> {
        let path = output.join("metrics.jsonl");
        let mut file = fs::OpenOptions::new().create(true).read(true).append(true).open(path)?;
        let whole = whole_lines(&mut file, bytes)?;
        if whole < bytes {
            let path = file.path().display();
            tracing::warn!(
                stage,
                "`{path}`: expected {bytes} bytes of the steps before, found {whole}: their curve is lost, the run is not"
            );
        }
        file.set_len(whole)?;
        tracing::info!(target: "softshard::metrics", stage, mark = "start", step = steps_done + 1);
        Ok(Metrics { stage, divergence: divergence.name(), file, bytes: whole, evaluation: None })
    }

    pub(crate) fn step(&mut self, metrics: &StepMetrics, progress: &Progress) -> Result<()> {
        self.write("train", metrics)?;
        let StepMetrics { step, loss, cross_entropy, divergence, alpha, learning_rate, .. } = *metrics;
        let StepMetrics { tokens_per_second, memory_bytes, .. } = *metrics;
        tracing::info!(
            target: "softshard::metrics",
            stage = self.stage,
            split = "train",
            step,
            loss,
            cross_entropy,
            divergence,
            alpha,
            learning_rate,
            gradient_norm = metrics.gradient_norm,
            tokens = metrics.tokens,
            labelled_tokens = metrics.labelled_tokens,
            tokens_per_second,
            stall_share = metrics.stall_share,
            memory_bytes,
        );
        tracing::info!(
            target: "softshard::progress",
            stage = self.stage,
            split = "train",
            done = step,
            total = progress.total_steps,
            unit = "steps",
            tokens = progress.tokens,
            loss,
            cross_entropy,
            divergence,
            divergence_name = self.divergence,
            alpha,
            learning_rate,
            memory_bytes,
            valid_step = self.evaluation.as_ref().map(|last| last.step),
            valid_nll = self.evaluation.as_ref().map(|last| last.nll),
            valid_kl = self.evaluation.as_ref().and_then(|last| last.kl),
        );
        Ok(())
    }

    pub(crate) fn evaluation(&mut self, held_out: &HeldOut) -> Result<()> {
        self.write("valid", held_out)?;
        let HeldOut { step, nll, kl, ece, accuracy, sequences } = *held_out;
        tracing::info!(
            target: "softshard::metrics",
            stage = self.stage,
            split = "valid",
            step,
            nll,
            kl,
            ece,
            accuracy,
            sequences,
        );
        self.evaluation = Some(held_out.clone());
        Ok(())
    }

    /// Before a checkpoint is written: nothing of its steps is lost any more. Bytes of the file that belong to them.
    pub(crate) fn sync(&mut self, step: u64) -> Result<u64> {
        self.file.sync_all()?;
        tracing::info!(target: "softshard::metrics", stage = self.stage, mark = "checkpoint", step);
        Ok(self.bytes)
    }

    fn write(&mut self, split: &'static str, scalars: &impl Serialize) -> Result<()> {
        let mut line = serde_json::to_vec(&Line { split, scalars })?;
        line.push(b'\n');
        self.file.write_all(&line)?;
        self.bytes += line.len() as u64;
        Ok(())
    }
}

/// Bytes of the whole lines among the first `bytes` of a file: less than those only where somebody cut or changed it.
fn whole_lines(file: &mut fs::File, bytes: u64) -> io::Result<u64> {
    let Some(before) = bytes.checked_sub(1) else { return Ok(0) };
    let mut last = [0];
    file.seek(SeekFrom::Start(before))?;
    if file.read(&mut last)? == 1 && last == *b"\n" {
        return Ok(bytes);
    }
    file.rewind()?;
    let mut kept = Vec::new();
    file.take(bytes).read_to_end(&mut kept)?;
    Ok(kept.iter().rposition(|&byte| byte == b'\n').map_or(0, |last| last as u64 + 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn metrics(step: u64) -> StepMetrics {
        StepMetrics {
            step,
            loss: 2.5,
            cross_entropy: 2.0,
            divergence: None,
            alpha: 0.0,
            learning_rate: 1e-3,
            gradient_norm: 1.5,
            tokens: 100,
            labelled_tokens: 50,
            tokens_per_second: 10.0,
            stall_share: 0.0,
            memory_bytes: None,
        }
    }

    #[test]
    fn a_curve_that_somebody_cut_goes_on_behind_its_last_whole_line() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("metrics.jsonl");
        for (text, bytes, kept) in [
            ("one\ntwo\nthree\n", 8, "one\ntwo\n"),
            ("one\ntwo\nthree\n", 10, "one\ntwo\n"),
            ("one\ntw", 8, "one\n"),
            ("on", 8, ""),
            ("", 8, ""),
        ] {
            fs::write(&path, text).expect("written");
            let open = Metrics::open(folder.path(), "train-student", &Divergence::ForwardKl, 2, bytes);
            let bytes = open.expect("a file").sync(2).expect("synced");
            assert_eq!(fs::read_to_string(&path).expect("lines"), kept);
            assert_eq!(bytes, kept.len() as u64);
        }
    }

    #[test]
    fn lines_behind_a_checkpoint_are_cut_off() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let open = |done, bytes| {
            Metrics::open(folder.path(), "train-student", &Divergence::ForwardKl, done, bytes)
                .expect("a file")
        };
        let progress = Progress { total_steps: 3, tokens: 100 };
        let mut run = open(0, 0);
        run.step(&metrics(1), &progress).expect("written");
        let held_out = HeldOut { step: 1, nll: 1.5, kl: None, ece: 0.25, accuracy: 0.5, sequences: 2 };
        run.evaluation(&held_out).expect("written");
        let bytes = run.sync(1).expect("synced");
        run.step(&metrics(2), &progress).expect("written");
        let mut resumed = open(1, bytes);
        resumed.step(&metrics(2), &progress).expect("written");
        resumed.step(&metrics(3), &progress).expect("written");
        let text = fs::read_to_string(folder.path().join("metrics.jsonl")).expect("lines");
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 4, "{text}");
        assert!(lines[0].starts_with(r#"{"split":"train","step":1,"loss":2.5,"cross_entropy":2.0,"alpha":"#));
        let valid = r#"{"split":"valid","step":1,"nll":1.5,"ece":0.25,"accuracy":0.5,"sequences":2}"#;
        assert_eq!(lines[1], valid);
        assert!(lines[3].starts_with(r#"{"split":"train","step":3,"#), "{text}");
        drop(open(0, 0));
        assert_eq!(fs::metadata(folder.path().join("metrics.jsonl")).expect("a file").len(), 0);
    }
}
