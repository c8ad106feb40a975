//! Whether a model is as often right as it says it is, by sequence.
//!
//! A position has the probability of the most probable token (its *confidence*), whether that token came, and
//! the negative log-likelihood of the one that came: a [`Positions`] holds them, and [`report`] measures
//! them. [`FullCalibration`] is fed the probabilities of all tokens. Positions of a sequence are not
//! independent, so sequences are drawn for intervals. docs/evaluation.md has the formulas with their sources.
//!
//! ```
//! use softshard_evaluate::{calibration::{Positions, report}, statistics::{Documents, Resampling}};
//!
//! let sequences = Documents::of(&["a", "a", "b", "b", "c"]);
//! let (confidences, correct) = ([0.9, 0.6, 0.8, 0.7, 0.5], [true, false, true, true, false]);
//! let positions = Positions::new(&sequences, &confidences, &correct, &[0.1, 1.2, 0.2, 0.4, 2.0])?;
//! let found = report(&positions, &Resampling { draws: 1_000, ..Resampling::default() })?;
//! assert!((found.ece.value - 0.34).abs() < 1e-12);
//! # Ok::<(), softshard_evaluate::statistics::BadValues>(())
//! ```

mod binned;
mod full;
mod smooth;

#[cfg(test)]
mod golden;

use serde::{Deserialize, Serialize};
use softshard_losses::calibration::Calibration;

use crate::statistics::{
    BadValues, Documents, Estimate, Interval, Part, Resampling, all, estimate, number, same_length,
};

pub use binned::Bar;
pub use full::FullCalibration;
pub use smooth::{Smooth, smooth_error, smooth_error_at};

/// Draws that are enough for intervals of errors of calibration, of which each takes a pass over all positions.
pub const DRAWS: usize = 1_000;

/// What a model said of the positions of some sequences.
#[derive(Debug, Clone, PartialEq)]
pub struct Positions {
    sequences: Documents,
    confidences: Vec<f64>,
    correct: Vec<bool>,
    nll_nats: Vec<f64>,
}

impl Positions {
    /// One value of each for every position: the probability of the most probable token, whether it came, and
    /// the negative log-likelihood of the token that came, nats.
    ///
    /// # Errors
    /// Other lengths, a probability outside 0 to 1, a likelihood that is not finite.
    pub fn new(
        sequences: &Documents,
        confidences: &[f64],
        correct: &[bool],
        nll_nats: &[f64],
    ) -> Result<Self, BadValues> {
        let positions = sequences.of_rows().len();
        same_length("confidences", positions, confidences.len())?;
        same_length("outcomes", positions, correct.len())?;
        same_length("likelihoods", positions, nll_nats.len())?;
        all("confidence", "0 to 1", confidences, |p| (0.0..=1.0).contains(&p))?;
        // Not "at least 0": the last bit of an f32 may be below.
        all("negative log-likelihood", "a finite number", nll_nats, f64::is_finite)?;
        let (sequences, confidences) = (sequences.clone(), confidences.to_vec());
        Ok(Self { sequences, confidences, correct: correct.to_vec(), nll_nats: nll_nats.to_vec() })
    }

    /// What each sequence adds to the mean negative log-likelihood.
    ///
    /// # Errors
    /// None: the values were checked.
    pub fn nll_parts(&self) -> Result<Vec<Part>, BadValues> {
        self.sequences.parts(&self.nll_nats)
    }

    /// What each sequence adds to the Brier score.
    ///
    /// # Errors
    /// None: the values were checked.
    pub fn brier_parts(&self) -> Result<Vec<Part>, BadValues> {
        let error = |(p, y): (&f64, &bool)| (p - outcome(*y)).powi(2);
        let errors: Vec<f64> = self.confidences.iter().zip(&self.correct).map(error).collect();
        self.sequences.parts(&errors)
    }
}

/// A measure of calibration that is no mean, with an interval by sequence.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    /// The measure.
    pub value: f64,
    /// Its interval, of level and draws that were asked for: the quantiles of its resamples, mirrored at the
    /// value.
    pub interval: Interval,
}

/// The calibration of a model on some positions.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Mean negative log-likelihood, nats.
    pub nll: Estimate,
    /// Mean (confidence - outcome)², 0 to 1.
    pub brier: Estimate,
    /// Smooth calibration error, 0 to 1.
    pub smooth: Measured,
    /// The bandwidth of the kernel that it was measured with.
    pub bandwidth: f64,
    /// Expected calibration error over 15 bins of equal width, 0 to 1.
    pub ece: Measured,
    /// Expected calibration error over 15 bins of equal mass, 0 to 1.
    pub ece_equal_mass: Measured,
    /// Mean confidence, 0 to 1.
    pub confidence: f64,
    /// Share of positions whose most probable token came.
    pub accuracy: f64,
    /// The reliability diagram: bins of equal width.
    pub diagram: Vec<Bar>,
}

/// Measures the calibration.
///
/// # Errors
/// Fewer than two sequences.
pub fn report(positions: &Positions, resampling: &Resampling) -> Result<Report, BadValues> {
    let Positions { confidences, correct, .. } = positions;
    let nll = estimate(&positions.nll_parts()?, resampling)?;
    let binned = Calibration::of(confidences, correct);
    let smooth = smooth_error(confidences, correct)?;
    let measured = |value: f64, measure: Measure| -> Result<Measured, BadValues> {
        let statistic = measure.of(positions);
        let count = positions.sequences.count();
        let replicates = resampling.replicates(count, |drawn| statistic(drawn))?;
        Ok(Measured { value, interval: between_0_and_1(resampling.basic(value, replicates, count)) })
    };
    Ok(Report {
        nll,
        brier: estimate(&positions.brier_parts()?, resampling)?,
        smooth: measured(smooth.error, Measure::Smooth)?,
        bandwidth: smooth.bandwidth,
        ece: measured(binned.ece, Measure::Ece)?,
        ece_equal_mass: measured(binned.ece_equal_mass, Measure::EceEqualMass)?,
        confidence: binned.confidence,
        accuracy: binned.accuracy,
        diagram: binned::diagram(positions, &binned.equal_width, resampling)?,
    })
}

/// What is measured of a resample of sequences.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Measure {
    /// [`Report::smooth`].
    Smooth,
    /// [`Report::ece`].
    Ece,
    /// [`Report::ece_equal_mass`].
    EceEqualMass,
}

type Statistic<'a> = Box<dyn Fn(&[usize]) -> f64 + Sync + 'a>;

impl Measure {
    /// The measure of drawn sequences.
    fn of(self, positions: &Positions) -> Statistic<'_> {
        match self {
            Measure::Smooth => smooth::by_sequence(positions),
            Measure::Ece => binned::equal_width_by_sequence(positions),
            Measure::EceEqualMass => binned::equal_mass_by_sequence(positions),
        }
    }
}

/// A calibration error of two models on the same positions.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct MeasuredDifference {
    /// The baseline's.
    pub baseline: f64,
    /// The candidate's.
    pub candidate: f64,
    /// Candidate minus baseline.
    pub difference: Measured,
}

/// The difference of a calibration error, both models on the same drawn sequences.
///
/// # Errors
/// Other sequences or positions, fewer than two sequences.
pub fn difference(
    baseline: &Positions,
    candidate: &Positions,
    measure: Measure,
    resampling: &Resampling,
) -> Result<MeasuredDifference, BadValues> {
    same_positions(baseline, candidate)?;
    let (from, to) = (measure.of(baseline), measure.of(candidate));
    let count = baseline.sequences.count();
    let replicates = resampling.replicates(count, |drawn| to(drawn) - from(drawn))?;
    let all: Vec<usize> = (0..count).collect();
    let (baseline, candidate) = (from(&all), to(&all));
    let value = candidate - baseline;
    let interval = resampling.basic(value, replicates, count);
    Ok(MeasuredDifference { baseline, candidate, difference: Measured { value, interval } })
}

fn same_positions(baseline: &Positions, candidate: &Positions) -> Result<(), BadValues> {
    let (from, to) = (baseline.sequences.of_rows(), candidate.sequences.of_rows());
    same_length("positions of the candidate", from.len(), to.len())?;
    let differs = from.iter().zip(to).position(|(from, to)| from != to);
    differs.map_or(Ok(()), |index| {
        let (what, expected) = ("sequence of position", "the baseline's");
        Err(BadValues::Value { what, index, expected, found: number(to[index]) })
    })
}

/// 1 for a token that came.
fn outcome(correct: bool) -> f64 {
    f64::from(u8::from(correct))
}

fn between_0_and_1(interval: Interval) -> Interval {
    Interval { lower: interval.lower.clamp(0.0, 1.0), upper: interval.upper.clamp(0.0, 1.0) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::statistics::mean;

    /// 40 sequences of 1 to 7 positions, sharper than they should be by `excess`.
    fn positions(excess: f64) -> Positions {
        let keys: Vec<usize> = (0..160).map(|n| n * n % 41).collect();
        let of = |n: usize| (0.05 + 0.9 * number(n * 61 % 160) / 160.0 + excess).min(1.0);
        let confidences: Vec<f64> = (0..160).map(of).collect();
        let correct: Vec<bool> = (0..160).map(|n| number(n * 77 % 160) / 160.0 < of(n) - excess).collect();
        let nll: Vec<f64> = confidences.iter().map(|p| 1.2 - p).collect();
        Positions::new(&Documents::of(&keys), &confidences, &correct, &nll).unwrap()
    }

    #[test]
    fn each_sequence_drawn_once_gives_the_measure() {
        let positions = positions(0.2);
        let all: Vec<usize> = (0..positions.sequences.count()).collect();
        let found = report(&positions, &Resampling { draws: 50, ..Resampling::default() }).unwrap();
        let expected = [
            (Measure::Smooth, found.smooth.value),
            (Measure::Ece, found.ece.value),
            (Measure::EceEqualMass, found.ece_equal_mass.value),
        ];
        for (measure, value) in expected {
            assert!((measure.of(&positions)(&all) - value).abs() < 1e-12, "{measure:?}");
        }
        // Twice as many of each: the same distribution.
        let twice = [all.clone(), all].concat();
        assert!((Measure::Ece.of(&positions)(&twice) - found.ece.value).abs() < 1e-12);
        assert!((Measure::Smooth.of(&positions)(&twice) - found.smooth.value).abs() < 1e-4);
    }

    #[test]
    fn a_model_that_says_too_much_is_worse() {
        let (good, bold) = (positions(0.0), positions(0.25));
        let resampling = Resampling { draws: 120, ..Resampling::default() };
        for measure in [Measure::Smooth, Measure::Ece, Measure::EceEqualMass] {
            let found = difference(&good, &bold, measure, &resampling).unwrap();
            assert!(found.difference.interval.lower > 0.0, "{measure:?}: {found:?}");
            let same = difference(&good, &good, measure, &resampling).unwrap().difference;
            assert_eq!((same.value, same.interval), (0.0, Interval { lower: 0.0, upper: 0.0 }));
        }
        let mean = |parts: Result<Vec<Part>, BadValues>| mean(&parts.unwrap()).unwrap();
        assert!(mean(bold.nll_parts()) < mean(good.nll_parts()));
        assert!(mean(bold.brier_parts()) > mean(good.brier_parts()));
    }

    #[test]
    fn what_is_no_probability_is_refused() {
        let three = Documents::of(&[0, 1, 1]);
        let new = |confidences: &[f64], correct: &[bool], nll: &[f64]| {
            Positions::new(&three, confidences, correct, nll).map_err(|error| error.to_string())
        };
        let [good, right, nll] = [[0.1, 0.2, 0.3], [0.0; 3], [1.0; 3]];
        let right = right.map(|x| x > 0.0);
        let nan = new(&[0.1, f64::NAN, 0.3], &right, &nll);
        assert_eq!(nan.unwrap_err(), "confidence 1: expected 0 to 1, found NaN");
        assert!(new(&[0.1, 1.5, 0.3], &right, &nll).is_err() && new(&good[..2], &right, &nll).is_err());
        assert!(new(&good, &right[..1], &nll).is_err() && new(&good, &right, &nll[..2]).is_err());
        assert!(new(&good, &right, &[1.0, f64::INFINITY, 0.0]).is_err());
        let one = Positions::new(&Documents::of(&[0, 0, 0]), &good, &right, &nll).unwrap();
        let found = report(&one, &Resampling::default()).unwrap_err().to_string();
        assert_eq!(found, "expected at least 2 documents, found 1");
        let other = Positions::new(&Documents::of(&[0, 0, 1]), &good, &right, &nll).unwrap();
        let found = difference(&one, &other, Measure::Ece, &Resampling::default()).unwrap_err().to_string();
        assert_eq!(found, "sequence of position 2: expected the baseline's, found 1");
        let nothing = Positions::new(&Documents::of(&[0; 0]), &[], &[], &[]).unwrap();
        assert!(report(&nothing, &Resampling::default()).is_err());
    }
}
