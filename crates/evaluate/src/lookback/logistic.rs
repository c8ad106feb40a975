//! Logistic regression with an L2 penalty, as scikit-learn's `LogisticRegression` has it by default.
//!
//! Legend: N rows, D features.

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::statistics::{BadValues, number, same_length};

/// Newton steps before it is given up; ten or so are usual.
const MOST_STEPS: usize = 100;
/// The largest number of the gradient at the end, for each row.
const FLAT: f64 = 1e-12;
/// What a step must gain of what its slope promises (Armijo).
const ENOUGH: f64 = 1e-4;

/// `p(1 | x) = 1 / (1 + exp(-(w·x + b)))`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LogisticRegression {
    /// w, one for each feature.
    pub weights: Vec<f64>,
    /// b, which is not penalised.
    pub intercept: f64,
}

impl LogisticRegression {
    /// The minimum of `|w|²/2 + C · Σ log(1 + exp(-y·(w·x + b)))`, y being 1 or -1: found by Newton's method, so it is that
    /// of any solver that has come to the end. The same bits on any number of threads.
    ///
    /// # Shapes
    /// `features` `[N][D]`, `labels` `[N]`.
    ///
    /// # Errors
    /// Rows of other lengths, a feature that is not finite, labels of one class only, a penalty that is none.
    pub fn fit(features: &[Vec<f64>], labels: &[bool], c: f64) -> Result<Self, BadValues> {
        let columns = columns(features, labels, c)?;
        let signs: Vec<f64> = labels.iter().map(|&label| if label { 1.0 } else { -1.0 }).collect();
        let problem = Problem { columns, signs, c };
        // The intercept is the last of them: its column has ones.
        let mut found = vec![0.0; problem.columns.len()];
        let mut value = problem.value(&found);
        for _ in 0..MOST_STEPS {
            let (gradient, curvature) = problem.slopes(&found);
            let largest = gradient.iter().fold(0.0_f64, |most, part| most.max(part.abs()));
            if largest <= FLAT * c.max(1.0) * number(labels.len()) {
                break;
            }
            let Some(step) = solve(curvature, &gradient) else { break };
            let slope: f64 = step.iter().zip(&gradient).map(|(step, part)| step * part).sum();
            let mut size = 1.0;
            let moved = loop {
                let there: Vec<f64> = found.iter().zip(&step).map(|(at, step)| at - size * step).collect();
                let reached = problem.value(&there);
                if reached <= value - ENOUGH * size * slope {
                    break Some((there, reached));
                }
                size /= 2.0;
                if size < f64::EPSILON {
                    break None;
                }
            };
            let Some((there, reached)) = moved else { break };
            (found, value) = (there, reached);
        }
        let intercept = found.pop().unwrap_or_default();
        Ok(Self { weights: found, intercept })
    }

    /// The probability of 1.
    ///
    /// # Panics
    /// Another number of features.
    pub fn probability(&self, features: &[f64]) -> f64 {
        assert_eq!(features.len(), self.weights.len(), "features of one row");
        let score: f64 = self.weights.iter().zip(features).map(|(weight, feature)| weight * feature).sum();
        sigmoid(score + self.intercept)
    }
}

/// The columns of all features, and one of ones.
fn columns(features: &[Vec<f64>], labels: &[bool], c: f64) -> Result<Vec<Vec<f64>>, BadValues> {
    same_length("labels", features.len(), labels.len())?;
    crate::statistics::all("penalty C", "a finite number above 0", &[c], |c| c.is_finite() && c > 0.0)?;
    for (what, found) in [
        ("rows of class 1", labels.iter().filter(|&&label| label).count()),
        ("rows of class 0", labels.iter().filter(|&&label| !label).count()),
    ] {
        if found == 0 {
            return Err(BadValues::TooFew { what, expected: 1, found });
        }
    }
    let width = features[0].len();
    for row in features {
        same_length("features of a row", width, row.len())?;
        crate::statistics::all("feature", "a finite number", row, f64::is_finite)?;
    }
    let column = |index: usize| features.iter().map(|row| row.get(index).copied().unwrap_or(1.0)).collect();
    Ok((0..=width).map(column).collect())
}

/// What is minimised.
struct Problem {
    /// `[D + 1][N]`, the last of ones.
    columns: Vec<Vec<f64>>,
    signs: Vec<f64>,
    c: f64,
}

impl Problem {
    /// `y·(w·x + b)` of each row.
    fn margins(&self, at: &[f64]) -> Vec<f64> {
        let mut margins = vec![0.0; self.signs.len()];
        for (column, weight) in self.columns.iter().zip(at) {
            margins.iter_mut().zip(column).for_each(|(margin, feature)| *margin += weight * feature);
        }
        margins.iter_mut().zip(&self.signs).for_each(|(margin, sign)| *margin *= sign);
        margins
    }

    fn value(&self, at: &[f64]) -> f64 {
        let penalty: f64 = at[..at.len() - 1].iter().map(|weight| weight * weight).sum();
        // log(1 + exp(-m)) without an overflow.
        let loss = |m: &f64| (-m).max(0.0) + libm::log1p(libm::exp(-m.abs()));
        penalty / 2.0 + self.c * self.margins(at).iter().map(loss).sum::<f64>()
    }

    /// The gradient, and the lower half of the matrix of second derivatives.
    fn slopes(&self, at: &[f64]) -> (Vec<f64>, Vec<Vec<f64>>) {
        let margins = self.margins(at);
        let pull: Vec<f64> =
            margins.iter().zip(&self.signs).map(|(m, sign)| -self.c * sign * sigmoid(-m)).collect();
        let bend: Vec<f64> = margins.iter().map(|m| self.c * sigmoid(*m) * sigmoid(-m)).collect();
        let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
        let is_weight = |index: usize| index + 1 < self.columns.len();
        let row = |index: usize| {
            let column = &self.columns[index];
            let bent: Vec<f64> = column.iter().zip(&bend).map(|(feature, bend)| feature * bend).collect();
            let mut second: Vec<f64> = self.columns[..=index].iter().map(|other| dot(&bent, other)).collect();
            let mut first = dot(column, &pull);
            if is_weight(index) {
                second[index] += 1.0;
                first += at[index];
            }
            (first, second)
        };
        (0..self.columns.len()).into_par_iter().map(row).unzip()
    }
}

fn sigmoid(x: f64) -> f64 {
    let small = libm::exp(-x.abs());
    if x >= 0.0 { 1.0 / (1.0 + small) } else { small / (1.0 + small) }
}

/// The solution of a symmetric positive definite system by Cholesky's decomposition; none where it is not one.
///
/// # Shapes
/// `lower`: row i has i + 1 numbers.
fn solve(mut lower: Vec<Vec<f64>>, right: &[f64]) -> Option<Vec<f64>> {
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    for row in 0..lower.len() {
        let (above, from) = lower.split_at_mut(row);
        let this = &mut from[0];
        for (column, other) in above.iter().enumerate() {
            this[column] = (this[column] - dot(&this[..column], &other[..column])) / other[column];
        }
        let rest = this[row] - dot(&this[..row], &this[..row]);
        if rest <= 0.0 || !rest.is_finite() {
            return None;
        }
        this[row] = rest.sqrt();
    }
    let mut found = Vec::with_capacity(right.len());
    for (row, value) in lower.iter().zip(right) {
        let known = found.len();
        found.push((value - dot(&row[..known], &found)) / row[known]);
    }
    for row in (0..found.len()).rev() {
        let later: f64 = (row + 1..found.len()).map(|below| lower[below][row] * found[below]).sum();
        found[row] = (found[row] - later) / lower[row][row];
    }
    Some(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::statistics::golden::{float, floats, golden, list};

    /// scikit-learn's solver stopped at a gradient of 1e-12.
    const PEER: f64 = 1e-6;

    #[test]
    fn the_weights_are_those_of_scikit_learn() {
        for case in list(&golden("logistic_regression")) {
            let features: Vec<Vec<f64>> = list(&case["features"]).iter().map(floats).collect();
            let labels: Vec<bool> = floats(&case["labels"]).iter().map(|&label| label > 0.5).collect();
            let found = LogisticRegression::fit(&features, &labels, float(&case["c"])).unwrap();
            let expected = floats(&case["weights"]);
            assert_eq!(found.weights.len(), expected.len());
            for (found, expected) in found.weights.iter().zip(&expected) {
                assert!((found - expected).abs() < PEER, "{found} {expected}");
            }
            assert!((found.intercept - float(&case["intercept"])).abs() < PEER, "{found:?}");
            for (row, expected) in features.iter().zip(floats(&case["probabilities"])) {
                assert!((found.probability(row) - expected).abs() < PEER);
            }
        }
    }

    #[test]
    fn any_number_of_threads_finds_the_same_bits() {
        let features: Vec<Vec<f64>> = (0..60)
            .map(|row| (0..7).map(|column| f64::from((row * 31 + column * 17) % 23) / 23.0).collect())
            .collect();
        let labels: Vec<bool> = (0..60).map(|row| row % 3 == 0).collect();
        let with = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| LogisticRegression::fit(&features, &labels, 1.0)).unwrap()
        };
        assert_eq!(with(1), with(4));
    }

    #[test]
    fn what_cannot_be_learnt_from_is_refused() {
        let fit = |features: &[Vec<f64>], labels: &[bool], c: f64| {
            LogisticRegression::fit(features, labels, c).unwrap_err().to_string()
        };
        let rows = [vec![0.5], vec![0.25]];
        assert_eq!(fit(&rows, &[true, true], 1.0), "expected at least 1 rows of class 0, found 0");
        assert_eq!(fit(&[], &[], 1.0), "expected at least 1 rows of class 1, found 0");
        assert_eq!(fit(&rows, &[true], 1.0), "labels: expected 2, as many as beside them, found 1");
        assert_eq!(fit(&rows, &[true, false], 0.0), "penalty C 0: expected a finite number above 0, found 0");
        let nan = [vec![f64::NAN], vec![0.25]];
        assert_eq!(fit(&nan, &[true, false], 1.0), "feature 0: expected a finite number, found NaN");
    }
}
