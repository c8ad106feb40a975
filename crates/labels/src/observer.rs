//! What a stage says while it works, to whoever started it.

use serde::Serialize;

/// Looks on while a stage works. Whoever wants none of it passes `&()`.
///
/// A stage calls it from any of its threads and waits for it, so a method should return soon. Nothing that is
/// said goes anywhere else: two runs in one process have an observer each, and neither hears of the other.
///
/// ```
/// use softshard_labels::{Observer, Progress, ReadLimits, verify};
///
/// struct Lines;
///
/// impl Observer for Lines {
///     fn progress(&self, now: &Progress<'_>) {
///         eprintln!("{}: {} of {} {}", now.stage, now.done, now.total, now.unit);
///     }
/// }
///
/// # fn main() -> Result<(), softshard_labels::Error> {
/// let found = verify("no/such/folder", &ReadLimits::default(), &false.into(), &Lines)?;
/// assert_eq!(found.problems.len(), 1);
/// # Ok(())
/// # }
/// ```
pub trait Observer: Sync {
    /// A piece of work was done.
    fn progress(&self, _: &Progress<'_>) {}

    /// A step, a shard or an evaluation is over: numbers to keep.
    fn metrics(&self, _: &Metrics<'_>) {}

    /// The first step to come of a stage that may have been interrupted: what was said before of it, and of
    /// later ones, no longer holds.
    fn start(&self, _stage: &str, _step: u64) {}

    /// The stage is about to write a checkpoint of this step, and would not say again what it said so far: an
    /// observer that keeps metrics returns when they are there to stay.
    fn checkpoint(&self, _stage: &str, _step: u64) {}
}

impl Observer for () {}

/// How far a stage is.
#[derive(Clone, Copy, Debug, Default)]
pub struct Progress<'a> {
    /// What is done, as `teacher-labels`.
    pub stage: &'a str,
    /// Which part of the data, where the stage comes by several times.
    pub split: Option<&'a str>,
    /// Which of several workers did this piece, where they are told apart; all other numbers are of the whole
    /// stage.
    pub worker: Option<u64>,
    /// Done so far.
    pub done: u64,
    /// To be done in all.
    pub total: u64,
    /// Of what, as `rows`.
    pub unit: &'a str,
    /// Tokens of that, where they are counted.
    pub tokens: Option<u64>,
    /// What else is known, by name; those that begin with `worker_` are of the worker alone.
    pub scalars: &'a [(&'static str, Scalar)],
}

impl Progress<'_> {
    /// The scalar of this name, if it is said.
    pub fn scalar(&self, name: &str) -> Option<Scalar> {
        self.scalars.iter().find(|(said, _)| *said == name).map(|(_, scalar)| *scalar)
    }
}

/// What a step, a shard or an evaluation came to.
#[derive(Clone, Copy, Debug)]
pub struct Metrics<'a> {
    /// What is done, as `train-student`.
    pub stage: &'a str,
    /// Of which data, as `train`.
    pub split: &'a str,
    /// Counted from 1, over all runs that went on with each other.
    pub step: u64,
    /// Numbers by name, with their units.
    pub scalars: &'a [(&'static str, Scalar)],
}

/// A number of a run.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Scalar {
    /// A whole number.
    Count(u64),
    /// Any other; it may be one that is not finite.
    Real(f64),
}

impl Scalar {
    /// The nearest number with a fraction.
    #[expect(clippy::cast_precision_loss, reason = "counts are far below 2^53, or for people")]
    pub fn as_f64(self) -> f64 {
        match self {
            Self::Count(count) => count as f64,
            Self::Real(real) => real,
        }
    }
}

impl From<u64> for Scalar {
    fn from(count: u64) -> Self {
        Self::Count(count)
    }
}

impl From<usize> for Scalar {
    fn from(count: usize) -> Self {
        Self::Count(count as u64)
    }
}

impl From<f64> for Scalar {
    fn from(real: f64) -> Self {
        Self::Real(real)
    }
}
