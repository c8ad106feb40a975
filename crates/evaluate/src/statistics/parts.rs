//! Rows to documents, and means of documents.

use std::{collections::HashMap, hash::Hash};

use serde::{Deserialize, Serialize};

use super::{BadValues, Interval, Resampling, all, number, same_length};

/// Which document each row is of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Documents {
    of_rows: Vec<usize>,
    count: usize,
}

impl Documents {
    /// Rows with equal keys are of one document. Documents are numbered in the order of their first rows.
    pub fn of<K: Eq + Hash>(keys: &[K]) -> Self {
        let mut numbers = HashMap::new();
        let mut of_rows = Vec::with_capacity(keys.len());
        for key in keys {
            let next = numbers.len();
            of_rows.push(*numbers.entry(key).or_insert(next));
        }
        Self { count: numbers.len(), of_rows }
    }

    /// Every row is a document of its own.
    pub fn of_single_rows(rows: usize) -> Self {
        Self { of_rows: (0..rows).collect(), count: rows }
    }

    /// How many documents there are.
    pub fn count(&self) -> usize {
        self.count
    }

    /// The number of each row's document.
    pub fn of_rows(&self) -> &[usize] {
        &self.of_rows
    }

    /// What each document adds to the mean over all rows: every row counts alike.
    ///
    /// # Errors
    /// Another number of rows, a score that is not finite.
    pub fn parts(&self, scores: &[f64]) -> Result<Vec<Part>, BadValues> {
        self.weighted_parts(scores, &vec![1.0; scores.len()])
    }

    /// What each document adds to Σ sums / Σ weights, such as supported facts over stated ones.
    ///
    /// # Errors
    /// Another number of rows, a sum that is not finite, a weight that is not finite or below 0.
    pub fn weighted_parts(&self, sums: &[f64], weights: &[f64]) -> Result<Vec<Part>, BadValues> {
        same_length("scores", self.of_rows.len(), sums.len())?;
        same_length("weights", self.of_rows.len(), weights.len())?;
        all("score", "a finite number", sums, f64::is_finite)?;
        all("weight", "a finite number of at least 0", weights, |x| x.is_finite() && x >= 0.0)?;
        let mut parts = vec![Part::default(); self.count];
        for (row, &document) in self.of_rows.iter().enumerate() {
            parts[document].sum += sums[row];
            parts[document].weight += weights[row];
        }
        Ok(parts)
    }
}

/// What one document adds to a mean: the sum of its scores, and how many they are or what they weigh.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Part {
    /// Sum of the scores of its rows.
    pub sum: f64,
    /// Number of its rows, or the sum of their weights.
    pub weight: f64,
}

/// A mean with what is known of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Estimate {
    /// The mean.
    pub value: f64,
    /// Its standard error, by documents.
    pub standard_error: f64,
    /// Its interval, from resampled documents.
    pub interval: Interval,
    /// Documents.
    pub documents: usize,
    /// Rows, or the weight of all documents.
    pub weight: f64,
}

/// The mean with its standard error and interval.
///
/// # Errors
/// Fewer than two documents with a weight, a number that is not finite.
pub fn estimate(parts: &[Part], resampling: &Resampling) -> Result<Estimate, BadValues> {
    check(parts)?;
    let value = ratio(parts.iter());
    let replicates =
        resampling.replicates(parts.len(), |drawn| ratio(drawn.iter().map(|&document| &parts[document])))?;
    Ok(Estimate {
        value,
        standard_error: error_of(&influences(parts)),
        interval: resampling.percentile(replicates, parts.len()),
        documents: parts.len(),
        weight: parts.iter().map(|part| part.weight).sum(),
    })
}

/// Σ sums / Σ weights.
///
/// # Errors
/// As [`estimate`].
pub fn mean(parts: &[Part]) -> Result<f64, BadValues> {
    check(parts)?;
    Ok(ratio(parts.iter()))
}

/// The standard error of the mean, clustered by document: √(n/(n-1) · Σ (sum - mean · weight)²) / Σ weights
/// over n documents. With one row each it is the sample's deviation over √n.
///
/// # Errors
/// As [`estimate`].
pub fn standard_error(parts: &[Part]) -> Result<f64, BadValues> {
    check(parts)?;
    Ok(error_of(&influences(parts)))
}

/// Numbers that have a mean and a spread.
pub(super) fn check(parts: &[Part]) -> Result<(), BadValues> {
    let found = parts.iter().filter(|part| part.weight > 0.0).count();
    if found < 2 {
        return Err(BadValues::TooFew { what: "documents", expected: 2, found });
    }
    for (index, &Part { sum, weight }) in parts.iter().enumerate() {
        if !sum.is_finite() {
            let expected = "a finite number";
            return Err(BadValues::Value { what: "sum of document", index, expected, found: sum });
        }
        if !(weight.is_finite() && weight >= 0.0) {
            let expected = "a finite number of at least 0";
            return Err(BadValues::Value { what: "weight of document", index, expected, found: weight });
        }
    }
    Ok(())
}

/// Σ sums / Σ weights; not a number where nothing has a weight.
pub(super) fn ratio<'a>(parts: impl Iterator<Item = &'a Part>) -> f64 {
    let (mut sum, mut weight) = (0.0, 0.0);
    for part in parts {
        sum += part.sum;
        weight += part.weight;
    }
    sum / weight
}

/// How far each document moves the mean: (sum - mean · weight) / Σ weights. They sum to 0.
pub(super) fn influences(parts: &[Part]) -> Vec<f64> {
    let weight: f64 = parts.iter().map(|part| part.weight).sum();
    let mean = ratio(parts.iter());
    parts.iter().map(|part| (part.sum - mean * part.weight) / weight).collect()
}

/// √(n/(n-1) · Σ u²), u how far each of n documents moves a mean.
pub(super) fn error_of(influences: &[f64]) -> f64 {
    let n = number(influences.len());
    (n / (n - 1.0) * influences.iter().map(|u| u * u).sum::<f64>()).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_added_up_by_document() {
        let documents = Documents::of(&["b", "a", "b"]);
        assert_eq!((documents.count(), documents.of_rows()), (2, [0, 1, 0].as_slice()));
        let parts = documents.parts(&[1.0, 5.0, 2.0]).unwrap();
        assert_eq!(parts, [Part { sum: 3.0, weight: 2.0 }, Part { sum: 5.0, weight: 1.0 }]);
        assert_eq!(mean(&parts).unwrap(), 8.0 / 3.0);
        // u = (3 - 16/3)/3 and (5 - 8/3)/3: ±7/9; √(2 · 2 · (7/9)²).
        assert!((standard_error(&parts).unwrap() - 14.0 / 9.0).abs() < 1e-15);
    }

    #[test]
    fn what_is_no_score_is_refused() {
        let documents = Documents::of_single_rows(3);
        let message = |error: BadValues| error.to_string();
        let nan = documents.parts(&[0.0, f64::NAN, 1.0]).map_err(message);
        assert_eq!(nan.unwrap_err(), "score 1: expected a finite number, found NaN");
        let short = documents.parts(&[0.0, 1.0]).map_err(message);
        assert_eq!(short.unwrap_err(), "scores: expected 3, as many as beside them, found 2");
        let below = documents.weighted_parts(&[0.0; 3], &[1.0, 1.0, -1.0]).map_err(message);
        assert_eq!(below.unwrap_err(), "weight 2: expected a finite number of at least 0, found -1");
        let one = [Part { sum: 1.0, weight: 1.0 }, Part::default()];
        let few = estimate(&one, &Resampling::default()).map_err(message);
        assert_eq!(few.unwrap_err(), "expected at least 2 documents, found 1");
        assert!(mean(&[]).is_err() && standard_error(&one).is_err());
        let infinite = [Part { sum: f64::INFINITY, weight: 1.0 }, one[0]];
        assert!(mean(&infinite).is_err());
    }
}
