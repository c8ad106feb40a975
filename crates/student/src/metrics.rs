//! What a run says of itself: a line of metrics.jsonl, and the same to its observer, for every step and every
//! evaluation.

use std::{
    io::{self, Read, Seek, SeekFrom, Write},
    path::Path,
};

use anyhow::Result;
use fs_err as fs;
use serde::{Serialize, Serializer};
use softshard_labels::{Metrics, Observer, Progress, Scalar};

/// A step; losses are nats per labelled token.
#[derive(Clone, Debug)]
pub(crate) struct StepMetrics {
    /// Counted from 1.
    pub(crate) step: u64,
    /// What is minimised.
    pub(crate) loss: f64,
    pub(crate) cross_entropy: f64,
    /// Unweighted, without T²; not computed where alpha is 0.
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
    pub(crate) memory_bytes: Option<u64>,
}

/// How good the model is on held-out data after a step.
#[derive(Clone, Debug)]
pub(crate) struct HeldOut {
    /// Steps taken.
    pub(crate) step: u64,
    /// Mean -log probability of the gold tokens, nats.
    pub(crate) nll: f64,
    /// Mean forward KL from the teacher, nats; only of labels.
    pub(crate) kl: Option<f64>,
    /// Expected calibration error of the most probable token.
    pub(crate) ece: f64,
    /// Share of the gold tokens that are the most probable one.
    pub(crate) accuracy: f64,
    /// Sequences that were looked at.
    pub(crate) sequences: usize,
}

/// Numbers by name.
type Scalars = Vec<(&'static str, Scalar)>;

impl StepMetrics {
    fn scalars(&self) -> Scalars {
        there([
            ("loss", Some(self.loss.into())),
            ("cross_entropy", Some(self.cross_entropy.into())),
            ("divergence", self.divergence.map(Scalar::from)),
            ("alpha", Some(self.alpha.into())),
            ("learning_rate", Some(self.learning_rate.into())),
            ("gradient_norm", Some(self.gradient_norm.into())),
            ("tokens", Some(self.tokens.into())),
            ("labelled_tokens", Some(self.labelled_tokens.into())),
            ("tokens_per_second", Some(self.tokens_per_second.into())),
            ("stall_share", Some(self.stall_share.into())),
            ("memory_bytes", self.memory_bytes.map(Scalar::from)),
        ])
    }
}

impl HeldOut {
    fn scalars(&self) -> Scalars {
        there([
            ("nll", Some(self.nll.into())),
            ("kl", self.kl.map(Scalar::from)),
            ("ece", Some(self.ece.into())),
            ("accuracy", Some(self.accuracy.into())),
            ("sequences", Some(self.sequences.into())),
        ])
    }
}

/// Those that are known.
fn there<const N: usize>(scalars: [(&'static str, Option<Scalar>); N]) -> Scalars {
    scalars.into_iter().filter_map(|(name, scalar)| Some((name, scalar?))).collect()
}

/// A line of metrics.jsonl.
#[derive(Serialize)]
struct Line<'a> {
    split: &'a str,
    step: u64,
    #[serde(flatten)]
    scalars: ByName<'a>,
}

struct ByName<'a>(&'a [(&'static str, Scalar)]);

impl Serialize for ByName<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().copied())
    }
}

/// metrics.jsonl of a run, and those who look on.
pub(crate) struct Curve<'a> {
    stage: &'static str,
    observer: &'a dyn Observer,
    file: fs::File,
    bytes: u64,
    evaluation: Option<HeldOut>,
}

impl<'a> Curve<'a> {
    /// The file as a checkpoint found it: lines behind its first `bytes` belong to an attempt that was cut
    /// off.
    pub(crate) fn open(
        output: &Path,
        stage: &'static str,
        observer: &'a dyn Observer,
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
        observer.start(stage, steps_done + 1);
        Ok(Curve { stage, observer, file, bytes: whole, evaluation: None })
    }

    /// After a step, of `total_steps`; in all of this process `tokens` were read.
    pub(crate) fn step(&mut self, metrics: &StepMetrics, total_steps: u64, tokens: u64) -> Result<()> {
        let StepMetrics { step, loss, cross_entropy, divergence, alpha, learning_rate, .. } = *metrics;
        self.say("train", step, &metrics.scalars())?;
        let last = self.evaluation.as_ref();
        self.observer.progress(&Progress {
            stage: self.stage,
            split: Some("train"),
            worker: None,
            done: step,
            total: total_steps,
            unit: "steps",
            tokens: Some(tokens),
            scalars: &there([
                ("loss", Some(loss.into())),
                ("cross_entropy", Some(cross_entropy.into())),
                ("divergence", divergence.map(Scalar::from)),
                ("alpha", Some(alpha.into())),
                ("learning_rate", Some(learning_rate.into())),
                ("memory_bytes", metrics.memory_bytes.map(Scalar::from)),
                ("valid_step", last.map(|last| last.step.into())),
                ("valid_nll", last.map(|last| last.nll.into())),
                ("valid_kl", last.and_then(|last| last.kl).map(Scalar::from)),
            ]),
        });
        Ok(())
    }

    /// After a look at held-out data.
    pub(crate) fn evaluation(&mut self, held_out: &HeldOut) -> Result<()> {
        self.say("valid", held_out.step, &held_out.scalars())?;
        self.evaluation = Some(held_out.clone());
        Ok(())
    }

    /// Before a checkpoint is written: nothing of its steps is lost any more. Bytes of the file that belong
    /// to them.
    pub(crate) fn sync(&mut self, step: u64) -> Result<u64> {
        self.file.sync_all()?;
        self.observer.checkpoint(self.stage, step);
        Ok(self.bytes)
    }

    fn say(&mut self, split: &str, step: u64, scalars: &[(&'static str, Scalar)]) -> Result<()> {
        let mut line = serde_json::to_vec(&Line { split, step, scalars: ByName(scalars) })?;
        line.push(b'\n');
        self.file.write_all(&line)?;
        self.bytes += line.len() as u64;
        self.observer.metrics(&Metrics { stage: self.stage, split, step, scalars });
        Ok(())
    }
}

/// Bytes of the whole lines among the first `bytes` of a file: less than those only where somebody cut or
/// changed it.
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
            let open = Curve::open(folder.path(), "train-student", &(), 2, bytes);
            let bytes = open.expect("a file").sync(2).expect("synced");
            assert_eq!(fs::read_to_string(&path).expect("lines"), kept);
            assert_eq!(bytes, kept.len() as u64);
        }
    }

    #[test]
    fn lines_behind_a_checkpoint_are_cut_off() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let open =
            |done, bytes| Curve::open(folder.path(), "train-student", &(), done, bytes).expect("a file");
        let mut run = open(0, 0);
        run.step(&metrics(1), 3, 100).expect("written");
        let held_out = HeldOut { step: 1, nll: 1.5, kl: None, ece: 0.25, accuracy: 0.5, sequences: 2 };
        run.evaluation(&held_out).expect("written");
        let bytes = run.sync(1).expect("synced");
        run.step(&metrics(2), 3, 100).expect("written");
        let mut resumed = open(1, bytes);
        resumed.step(&metrics(2), 3, 100).expect("written");
        resumed.step(&metrics(3), 3, 100).expect("written");
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
