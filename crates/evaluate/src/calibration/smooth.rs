//! The smooth calibration error: no bins, and a bandwidth that the data choose.

use serde::{Deserialize, Serialize};

use super::{Positions, Statistic, binned::times, outcome};
use crate::statistics::{BadValues, all, number, same_length};

/// Points at which it is read, at least.
const READ_AT: usize = 200;
/// Points of a grid, at least, before it is halved.
const GRID: f64 = 2_000.0;
/// Added to the density at each point that is read, so that it is never 0.
const DENSITY: f64 = 1e-4;
/// Smallest bandwidth that is searched for, and the steps from 0 to 1 that ten bisections can end at.
const LEAST: f64 = 1e-3;
const STEPS: usize = 1 << 10;
/// Deviations from its middle from which on a kernel adds nothing that an f64 would keep.
const REACH: f64 = 9.0;

/// The smooth calibration error and the bandwidth that it was measured with.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Smooth {
    /// The error, 0 to 1.
    pub error: f64,
    /// Standard deviation of the Gaussian kernel, in units of confidence.
    pub bandwidth: f64,
}

/// The smooth calibration error (Błasiok and Nakkiran, arXiv 2309.12236) at the bandwidth that equals it,
/// found by ten bisections, as relplot 1.0.3 computes it: docs/evaluation.md has the formula.
///
/// # Errors
/// Other lengths, no predictions, a confidence outside 0 to 1.
pub fn smooth_error(confidences: &[f64], correct: &[bool]) -> Result<Smooth, BadValues> {
    let gaps = gaps(confidences, correct)?;
    Ok(Mass::new(&gaps).searched())
}

/// The smooth calibration error at a given bandwidth.
///
/// # Errors
/// As [`smooth_error`]; a bandwidth below 0.001 or above 1.
pub fn smooth_error_at(confidences: &[f64], correct: &[bool], bandwidth: f64) -> Result<f64, BadValues> {
    all("bandwidth", "0.001 to 1", &[bandwidth], |width| (LEAST..=1.0).contains(&width))?;
    let gaps = gaps(confidences, correct)?;
    Ok(Mass::new(&gaps).error(bandwidth))
}

/// The measure of drawn sequences, each with a bandwidth of its own.
pub(super) fn by_sequence(positions: &Positions) -> Statistic<'_> {
    let Positions { sequences, confidences, correct, .. } = positions;
    let mut of_sequences = vec![Vec::new(); sequences.count()];
    for (row, &sequence) in sequences.of_rows().iter().enumerate() {
        of_sequences[sequence].push(Gap::of(confidences[row], correct[row]));
    }
    let all: Vec<Gap> = of_sequences.iter().flatten().copied().collect();
    let near = if all.is_empty() { 1.0 } else { Mass::new(&all).searched().bandwidth };
    Box::new(move |drawn| {
        let mut gaps = Vec::new();
        for (sequence, times) in times(drawn, of_sequences.len()).into_iter().enumerate() {
            let times = number(times);
            let drawn = |gap: &Gap| Gap { residual: gap.residual * times, weight: times, ..*gap };
            if times > 0.0 {
                gaps.extend(of_sequences[sequence].iter().map(drawn));
            }
        }
        Mass::new(&gaps).searched_near(near).error
    })
}

fn gaps(confidences: &[f64], correct: &[bool]) -> Result<Vec<Gap>, BadValues> {
    same_length("outcomes", confidences.len(), correct.len())?;
    if confidences.is_empty() {
        return Err(BadValues::TooFew { what: "predictions", expected: 1, found: 0 });
    }
    all("confidence", "0 to 1", confidences, |p| (0.0..=1.0).contains(&p))?;
    Ok(confidences.iter().zip(correct).map(|(&confidence, &correct)| Gap::of(confidence, correct)).collect())
}

/// A prediction, or some that are the same.
#[derive(Debug, Clone, Copy)]
struct Gap {
    confidence: f64,
    /// Confidence minus outcome, times the weight.
    residual: f64,
    weight: f64,
}

impl Gap {
    fn of(confidence: f64, correct: bool) -> Self {
        Self { confidence, residual: confidence - outcome(correct), weight: 1.0 }
    }
}

/// Residuals and densities on a grid over 0..=1.
struct Grid {
    residuals: Vec<f64>,
    weights: Vec<f64>,
}

impl Grid {
    /// Each point's mass goes to its two neighbours, linearly.
    fn of(gaps: &[Gap], points: usize) -> Self {
        let (mut residuals, mut weights) = (vec![0.0; points], vec![0.0; points]);
        for gap in gaps {
            let place = gap.confidence * number(points - 1);
            let lower = floor(place).min(points - 2);
            let share = place - number(lower);
            residuals[lower] += (1.0 - share) * gap.residual;
            residuals[lower + 1] += share * gap.residual;
            weights[lower] += (1.0 - share) * gap.weight;
            weights[lower + 1] += share * gap.weight;
        }
        Self { residuals, weights }
    }
}

/// Predictions, with the grid that all bandwidths from 0.01 on share.
struct Mass<'a> {
    gaps: &'a [Gap],
    usual: Grid,
}

impl<'a> Mass<'a> {
    fn new(gaps: &'a [Gap]) -> Self {
        Self { gaps, usual: Grid::of(gaps, points(1.0)) }
    }

    /// The bandwidth that ten bisections of 0..1 end at, in steps of 1/1024.
    fn searched(&self) -> Smooth {
        self.between(0, STEPS)
    }

    /// The same where the bandwidth is near another one's, as that of a resample is: few and narrow kernels.
    fn searched_near(&self, near: f64) -> Smooth {
        let near = floor(near * number(STEPS)).clamp(1, STEPS);
        let mut reach = 1;
        if self.is_too_small(near) {
            while near + reach < STEPS && self.is_too_small(near + reach) {
                reach *= 2;
            }
            return self.between(near + reach / 2, (near + reach).min(STEPS));
        }
        while near > reach && !self.is_too_small(near - reach) {
            reach *= 2;
        }
        self.between(near.saturating_sub(reach), near - reach / 2)
    }

    /// Bisects steps of which the first is too small a bandwidth, and the last is not.
    fn between(&self, mut too_small: usize, mut large_enough: usize) -> Smooth {
        while large_enough - too_small > 1 {
            let middle = (too_small + large_enough) / 2;
            if self.is_too_small(middle) { too_small = middle } else { large_enough = middle }
        }
        let bandwidth = number(large_enough) / number(STEPS);
        Smooth { error: self.error(bandwidth), bandwidth }
    }

    fn is_too_small(&self, step: usize) -> bool {
        let bandwidth = number(step) / number(STEPS);
        bandwidth < LEAST || bandwidth < self.error(bandwidth)
    }

    fn error(&self, bandwidth: f64) -> f64 {
        let points = points(bandwidth);
        if points == self.usual.weights.len() {
            return smoothed_error(&self.usual, bandwidth);
        }
        smoothed_error(&Grid::of(self.gaps, points), bandwidth)
    }
}

/// Points of the grid for a bandwidth.
fn points(bandwidth: f64) -> usize {
    floor((20.0 / bandwidth).round_ties_even().max(GRID)) / 2 + 1
}

/// Σ |R(t)| / Σ (D(t) + 1e-4) over equally spaced t: R the smoothed residuals, D the smoothed density.
fn smoothed_error(grid: &Grid, bandwidth: f64) -> f64 {
    let points = grid.weights.len();
    let read_at = floor((10.0 / bandwidth).round_ties_even()).max(READ_AT);
    let kernel = Kernel::new(points, bandwidth);
    let (mut residuals, mut density) = (0.0, 0.0);
    let (residuals_there, weights_there) = (kernel.mirrored(&grid.residuals), kernel.mirrored(&grid.weights));
    for index in 0..read_at {
        let place = number(index) / number(read_at - 1) * number(points - 1);
        let lower = floor(place).min(points - 2);
        let share = place - number(lower);
        let read =
            |there: &[f64]| (1.0 - share) * kernel.at(there, lower) + share * kernel.at(there, lower + 1);
        residuals += read(&residuals_there).abs();
        density += read(&weights_there) + DENSITY;
    }
    residuals / density
}

/// The Gaussian density at the distances of grid points, up to half the grid away.
struct Kernel {
    values: Vec<f64>,
    /// Grid points that the first value is to the left.
    left: usize,
}

impl Kernel {
    fn new(points: usize, bandwidth: f64) -> Self {
        let step = 1.0 / number(points - 1);
        let value = |index: usize| {
            let distance = number(index) * step - 0.5;
            let density = (-distance * distance / (2.0 * bandwidth * bandwidth)).exp();
            density / (std::f64::consts::TAU.sqrt() * bandwidth)
        };
        // A grid of an even number of points has no middle: relplot's kernel is half a point off there, and
        // so is this.
        let (middle, reach) = (points / 2, floor((REACH * bandwidth / step).ceil()));
        let (first, last) = (middle.saturating_sub(reach), (middle + reach).min(points - 1));
        // Reversed: the kernel's last value meets the leftmost mass.
        Self { values: (first..=last).rev().map(value).collect(), left: last - middle }
    }

    /// The grid with as much of its mirror image on both sides as the kernel meets.
    fn mirrored(&self, grid: &[f64]) -> Vec<f64> {
        let right = self.values.len() - 1 - self.left;
        let before = grid[1..=self.left].iter().rev();
        let behind = grid[grid.len() - 1 - right..grid.len() - 1].iter().rev();
        before.chain(grid).chain(behind).copied().collect()
    }

    /// The smoothed value at a point of the grid.
    fn at(&self, mirrored: &[f64], point: usize) -> f64 {
        let met = &mirrored[point..point + self.values.len()];
        // Four sums side by side: one alone would wait for each addition.
        let mut sums = [0.0; 4];
        let (met, values) = (met.chunks_exact(4), self.values.chunks_exact(4));
        let rest: f64 = met.remainder().iter().zip(values.remainder()).map(|(a, b)| a * b).sum();
        for (met, values) in met.zip(values) {
            for lane in 0..4 {
                sums[lane] += met[lane] * values[lane];
            }
        }
        (sums[0] + sums[1]) + (sums[2] + sums[3]) + rest
    }
}

/// The whole number below a number that is not negative.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "below 20,000 and not negative")]
fn floor(value: f64) -> usize {
    value as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    /// relplot 1.0.3's values are given with eight digits.
    const EIGHT_DIGITS: f64 = 1e-8;

    fn close(found: f64, expected: f64) {
        assert!((found - expected).abs() < EIGHT_DIGITS, "expected {expected}, found {found}");
    }

    /// The vectors of relplot.
    #[test]
    fn vectors() {
        let f = [0.05, 0.45, 0.5, 0.55, 0.95, 1.0];
        let y = [0, 1, 0, 1, 1, 0].map(|y| y == 1);
        let found = smooth_error(&f, &y).unwrap();
        close(found.error, 0.148_089_15);
        close(found.bandwidth, 0.149_414_06);
        close(smooth_error_at(&f, &y, 0.05).unwrap(), 0.183_199_61);
        close(smooth_error_at(&f, &y, 0.1).unwrap(), 0.175_175_33);
        let f: Vec<f64> = (0..1000).map(|i| (f64::from(i) + 0.5) / 1000.0).collect();
        let drawn = |i: usize| number(7919 * i % 1000) / 1000.0;
        let squared: Vec<bool> = (0..1000).map(|i| drawn(i) < f[i] * f[i]).collect();
        let found = smooth_error(&f, &squared).unwrap();
        close(found.error, 0.164_008_70);
        close(found.bandwidth, 0.164_062_5);
        close(smooth_error_at(&f, &squared, 0.05).unwrap(), 0.163_637_27);
        let calibrated: Vec<bool> = (0..1000).map(|i| drawn(i) < f[i]).collect();
        let found = smooth_error(&f, &calibrated).unwrap();
        close(found.error, 0.010_936_47);
        close(found.bandwidth, 0.012_695_31);
        close(smooth_error_at(&f, &calibrated, 0.05).unwrap(), 0.005_351_02);
    }

    #[test]
    fn near_any_bandwidth_the_same_is_found() {
        let f: Vec<f64> = (0..200).map(|i| number(i * i % 199) / 200.0).collect();
        let y: Vec<bool> = (0..200).map(|i| number(7919 * i % 200) / 200.0 < 0.7 * f[i]).collect();
        let gaps = gaps(&f, &y).unwrap();
        let mass = Mass::new(&gaps);
        let expected = mass.searched();
        for near in [0.0, 0.001, 0.05, expected.bandwidth, 0.1, 0.3, 1.0] {
            assert_eq!(mass.searched_near(near), expected, "{near}");
        }
    }

    #[test]
    fn bad_predictions() {
        let message = |f: &[f64], y: &[bool]| smooth_error(f, y).unwrap_err().to_string();
        assert_eq!(message(&[], &[]), "expected at least 1 predictions, found 0");
        assert_eq!(message(&[0.5, -0.1], &[true; 2]), "confidence 1: expected 0 to 1, found -0.1");
        assert_eq!(message(&[0.5], &[true; 2]), "outcomes: expected 1, as many as beside them, found 2");
        assert!(smooth_error_at(&[0.5], &[true], 0.0).is_err());
    }
}
