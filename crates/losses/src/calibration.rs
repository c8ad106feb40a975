//! Whether the student is as often right as it says it is.
//!
//! Each prediction has a confidence (the probability of its most probable token) and is correct or not.

use serde::{Deserialize, Serialize};

/// Bins of the usual expected calibration error.
pub const BINS: usize = 15;

/// Predictions of similar confidence: one bar of a reliability diagram.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Bin {
    /// Lower end of the bin's confidences; excluded in bins of equal width, except 0.
    pub lower: f64,
    /// Upper end of the bin's confidences, included.
    pub upper: f64,
    /// Predictions in the bin.
    pub count: usize,
    /// Mean confidence of the predictions, 0 if there are none.
    pub confidence: f64,
    /// Fraction of the predictions that are correct, 0 if there are none.
    pub accuracy: f64,
}

impl Bin {
    fn of(lower: f64, upper: f64, predictions: &[(f64, bool)]) -> Self {
        let count = predictions.len();
        let divisor = count.max(1) as f64;
        let confidence = predictions.iter().map(|(confidence, _)| confidence).sum::<f64>() / divisor;
        let accuracy = predictions.iter().filter(|(_, correct)| *correct).count() as f64 / divisor;
        Self { lower, upper, count, confidence, accuracy }
    }
}

/// How well confidences match what happens.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Calibration {
    /// Number of predictions.
    pub count: usize,
    /// Fraction of correct predictions.
    pub accuracy: f64,
    /// Mean confidence.
    pub confidence: f64,
    /// Expected calibration error over bins of equal width, 0..=1.
    pub ece: f64,
    /// Expected calibration error over bins of equal mass, 0..=1.
    pub ece_equal_mass: f64,
    /// Brier score of the most probable token: mean (confidence - correct)², 0..=1.
    pub brier: f64,
    /// The bins of equal width.
    pub equal_width: Vec<Bin>,
    /// The bins of equal mass.
    pub equal_mass: Vec<Bin>,
}

impl Calibration {
    /// Calibration of predictions over [`BINS`] bins; all zero if there are none.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn of(confidences: &[f64], correct: &[bool]) -> Self {
        let all = Bin::of(0.0, 1.0, &pairs(confidences, correct));
        let (equal_width, equal_mass) =
            (equal_width(confidences, correct, BINS), equal_mass(confidences, correct, BINS));
        Self {
            count: all.count,
            accuracy: all.accuracy,
            confidence: all.confidence,
            ece: expected_calibration_error(&equal_width),
            ece_equal_mass: expected_calibration_error(&equal_mass),
            brier: brier(confidences, correct),
            equal_width,
            equal_mass,
        }
    }
}

/// `bins` bins of equal width over 0..=1, empty ones included; a confidence on a border belongs to the lower bin.
///
/// # Panics
/// If the lengths differ or `bins` is 0.
fn equal_width(confidences: &[f64], correct: &[bool], bins: usize) -> Vec<Bin> {
    assert!(bins > 0, "there is at least one bin");
    let border = |bin: usize| bin as f64 / bins as f64;
    let mut members = vec![Vec::new(); bins];
    for (confidence, correct) in pairs(confidences, correct) {
        let bin = (1..bins).find(|&bin| confidence <= border(bin)).unwrap_or(bins);
        members[bin - 1].push((confidence, correct));
    }
    members.iter().enumerate().map(|(bin, members)| Bin::of(border(bin), border(bin + 1), members)).collect()
}

/// `bins` bins whose counts differ by at most one, by rising confidence; fewer where there are fewer predictions.
///
/// Their ends are the least and the greatest confidence inside. Equal confidences may lie in two bins, those of
/// incorrect predictions first.
///
/// # Panics
/// If the lengths differ or `bins` is 0.
fn equal_mass(confidences: &[f64], correct: &[bool], bins: usize) -> Vec<Bin> {
    assert!(bins > 0, "there is at least one bin");
    let mut sorted = pairs(confidences, correct);
    sorted.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
    let bins = bins.min(sorted.len());
    let members = |bin: usize| &sorted[bin * sorted.len() / bins..(bin + 1) * sorted.len() / bins];
    (0..bins)
        .map(members)
        .map(|members| Bin::of(members[0].0, members[members.len() - 1].0, members))
        .collect()
}

/// Σ count/total · |accuracy - confidence| over the bins (Guo et al., arXiv 1706.04599, equation 3); 0 without
/// predictions.
fn expected_calibration_error(bins: &[Bin]) -> f64 {
    let total: usize = bins.iter().map(|bin| bin.count).sum();
    let gap = |bin: &Bin| bin.count as f64 * (bin.accuracy - bin.confidence).abs();
    bins.iter().map(gap).sum::<f64>() / total.max(1) as f64
}

/// Mean (confidence - correct)², where correct is 0 or 1; 0 without predictions.
///
/// # Panics
/// If the lengths differ.
fn brier(confidences: &[f64], correct: &[bool]) -> f64 {
    let predictions = pairs(confidences, correct);
    let error = |&(confidence, correct): &(f64, bool)| (confidence - f64::from(u8::from(correct))).powi(2);
    predictions.iter().map(error).sum::<f64>() / predictions.len().max(1) as f64
}

fn pairs(confidences: &[f64], correct: &[bool]) -> Vec<(f64, bool)> {
    assert_eq!(confidences.len(), correct.len(), "one confidence and one outcome per prediction");
    confidences.iter().copied().zip(correct.iter().copied()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sums of a few f64.
    const EXACT: f64 = 1e-12;

    const CONFIDENCES: [f64; 6] = [0.05, 0.45, 0.5, 0.55, 0.95, 1.0];
    const CORRECT: [bool; 6] = [false, true, false, true, true, false];

    fn assert_close(found: f64, expected: f64) {
        assert!((found - expected).abs() < EXACT, "expected {expected}, found {found}");
    }

    #[test]
    fn by_hand() {
        // Two bins: (.05 .45 .5): mean 1/3, right 1/3. (.55 .95 1): mean 2.5/3, right 2/3.
        let bins = equal_width(&CONFIDENCES, &CORRECT, 2);
        assert_eq!((bins[0].count, bins[1].count), (3, 3));
        assert_eq!((bins[0].lower, bins[0].upper, bins[1].upper), (0.0, 0.5, 1.0));
        assert_close(bins[0].confidence, 1.0 / 3.0);
        assert_close(bins[1].accuracy, 2.0 / 3.0);
        assert_close(expected_calibration_error(&bins), 0.5 / 6.0);
        // .0025 + .3025 + .25 + .2025 + .0025 + 1
        assert_close(brier(&CONFIDENCES, &CORRECT), 1.76 / 6.0);
    }

    #[test]
    fn fifteen_bins() {
        // Bins 1, 7, 8, 9 and 15: |0-.05| + |1-.45| + |0-.5| + |1-.55| + 2·|.5-.975|
        let found = Calibration::of(&CONFIDENCES, &CORRECT);
        assert_eq!((found.count, found.equal_width.len()), (6, 15));
        assert_close(found.ece, (0.05 + 0.55 + 0.5 + 0.45 + 0.95) / 6.0);
        assert_close(found.accuracy, 0.5);
        assert_close(found.confidence, 3.5 / 6.0);
        // Six predictions fill six bins of equal mass.
        assert_eq!(found.equal_mass.len(), 6);
        assert_close(found.ece_equal_mass, (0.05 + 0.55 + 0.5 + 0.45 + 0.05 + 1.0) / 6.0);
        let filled: Vec<usize> = (0..15).filter(|&bin| found.equal_width[bin].count > 0).collect();
        assert_eq!(filled, [0, 6, 7, 8, 14]);
    }

    #[test]
    fn equal_mass_by_hand() {
        let bins = equal_mass(&CONFIDENCES, &CORRECT, 4);
        let counts: Vec<usize> = bins.iter().map(|bin| bin.count).collect();
        assert_eq!(counts, [1, 2, 1, 2]);
        assert_eq!((bins[1].lower, bins[1].upper), (0.45, 0.5));
        // .05 + |1 - .95| + |1 - .55| + |1 - 1.95|
        assert_close(expected_calibration_error(&bins), (0.05 + 0.05 + 0.45 + 0.95) / 6.0);
    }

    #[test]
    fn borders_and_nothing() {
        let bins = equal_width(&[0.0, 0.2, 0.2000001, 1.0], &[true; 4], 5);
        assert_eq!(bins.iter().map(|bin| bin.count).collect::<Vec<_>>(), [2, 1, 0, 0, 1]);
        let nothing = Calibration::of(&[], &[]);
        assert_eq!(
            (nothing.ece, nothing.ece_equal_mass, nothing.brier, nothing.equal_mass.len()),
            (0.0, 0.0, 0.0, 0)
        );
    }
}
