//! Two levels: seeds outside, documents inside.

use serde::{Deserialize, Serialize};

use super::{
    BadValues, Interval, Part, all,
    distributions::{t_quantile, t_two_sided},
    number,
    parts::{check, influences, ratio},
    same_length, smallest_difference,
};

/// A difference of two recipes, each trained with some seeds, all evaluated on the same documents.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TwoLevels {
    /// Mean over the baseline's seeds.
    pub baseline: f64,
    /// Mean over the candidate's seeds.
    pub candidate: f64,
    /// Candidate minus baseline.
    pub difference: f64,
    /// Standard error over other documents and other seeds.
    pub standard_error: f64,
    /// The share of its square that is the seeds', 0 to 1.
    pub of_seeds: f64,
    /// Degrees of freedom of the error; few where few seeds decide.
    pub degrees_of_freedom: f64,
    /// Interval by Student's t.
    pub interval: Interval,
    /// Two-sided p by Student's t; none where nothing differs.
    pub p: Option<f64>,
    /// The true difference that would be seen with 80 % power, over such seeds and documents; none where nothing differs.
    pub smallest_difference: Option<f64>,
    /// Seeds of the baseline and of the candidate. What has one seed is taken as it is, as a teacher is.
    pub seeds: [usize; 2],
    /// Documents.
    pub documents: usize,
}

/// Compares two recipes over seeds and documents: `baseline[seed][document]`, `candidate[seed][document]`,
/// seeds unpaired.
///
/// A two-way model with random seeds, random documents and what is left (Searle, Casella and McCulloch,
/// "Variance Components", 1992): error² = documents' + Σ over both (seeds' - what of it the documents' has
/// already), degrees of freedom by Satterthwaite (1946). Seeds are not resampled: three drawn of three see
/// two thirds of their variance.
///
/// # Errors No seed, other documents in one of them, fewer than two documents, a number that is not finite, a
/// level that is none.
pub fn two_levels(
    baseline: &[Vec<Part>],
    candidate: &[Vec<Part>],
    level: f64,
) -> Result<TwoLevels, BadValues> {
    all("level", "above 0 and below 1", &[level], |level| 0.0 < level && level < 1.0)?;
    let documents = baseline.first().map_or(0, Vec::len);
    let (from, to) = (Seeds::of(baseline, documents)?, Seeds::of(candidate, documents)?);
    let difference = to.mean - from.mean;
    let n = number(documents);
    let moves = from.documents.iter().zip(&to.documents).map(|(from, to)| to - from - difference);
    let of_documents = moves.map(|x| x * x).sum::<f64>() / (n - 1.0) / n;
    let of_seeds = from.of_seeds() + to.of_seeds();
    let variance = of_documents + of_seeds;
    let weights = of_documents.powi(2) / (n - 1.0) + from.freedom(documents) + to.freedom(documents);
    let degrees_of_freedom = if variance > 0.0 { variance.powi(2) / weights } else { n - 1.0 };
    let standard_error = variance.sqrt();
    let half = t_quantile((1.0 + level) / 2.0, degrees_of_freedom) * standard_error;
    Ok(TwoLevels {
        baseline: from.mean,
        candidate: to.mean,
        difference,
        standard_error,
        of_seeds: if variance > 0.0 { of_seeds / variance } else { 0.0 },
        degrees_of_freedom,
        interval: Interval { lower: difference - half, upper: difference + half },
        p: (variance > 0.0).then(|| t_two_sided(difference / standard_error, degrees_of_freedom)),
        smallest_difference: smallest_difference(standard_error, degrees_of_freedom, level),
        seeds: [baseline.len(), candidate.len()],
        documents,
    })
}

/// The seeds of one recipe.
struct Seeds {
    mean: f64,
    count: f64,
    /// Mean over seeds of each document.
    documents: Vec<f64>,
    /// Variance of the seeds' means over their number; 0 of one seed.
    between: f64,
    /// Mean square of what is neither seed nor document, over seeds and documents; 0 of one seed.
    left: f64,
}

impl Seeds {
    fn of(seeds: &[Vec<Part>], documents: usize) -> Result<Self, BadValues> {
        if seeds.is_empty() {
            return Err(BadValues::TooFew { what: "seeds", expected: 1, found: 0 });
        }
        for parts in seeds {
            same_length("documents of a seed", documents, parts.len())?;
            check(parts)?;
        }
        let (count, n) = (number(seeds.len()), number(documents));
        let means: Vec<f64> = seeds.iter().map(|parts| ratio(parts.iter())).collect();
        let mean = means.iter().sum::<f64>() / count;
        // A document's value is such that the mean of all documents is the mean of their rows.
        let value = |seed: usize| influences(&seeds[seed]).into_iter().map(move |u| n * u);
        let values: Vec<Vec<f64>> = (0..seeds.len()).map(|seed| value(seed).collect()).collect();
        let document = |index: usize| values.iter().map(|values| values[index]).sum::<f64>() / count;
        let around: Vec<f64> = (0..documents).map(document).collect();
        let (mut between, mut left) = (0.0, 0.0);
        if seeds.len() > 1 {
            between = means.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / (count - 1.0) / count;
            let squares = values.iter().flat_map(|values| values.iter().zip(&around));
            let squares = squares.map(|(value, document)| (value - document).powi(2)).sum::<f64>();
            left = squares / ((count - 1.0) * (n - 1.0)) / (count * n);
        }
        let documents = around.into_iter().map(|x| mean + x).collect();
        Ok(Self { mean, count, documents, between, left })
    }

    /// What seeds add to the variance of the mean beyond what documents show; 0 where that is all.
    fn of_seeds(&self) -> f64 {
        (self.between - self.left).max(0.0)
    }

    /// Σ square of a mean square over its degrees of freedom.
    fn freedom(&self, documents: usize) -> f64 {
        if self.of_seeds() == 0.0 {
            return 0.0;
        }
        let seeds = self.count - 1.0;
        self.between.powi(2) / seeds + self.left.powi(2) / (seeds * (number(documents) - 1.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::statistics::{Question, compare};

    fn seed(scores: &[f64]) -> Vec<Part> {
        scores.iter().map(|&sum| Part { sum, weight: 1.0 }).collect()
    }

    #[test]
    fn one_seed_each_is_the_paired_difference() {
        let (a, b) = (seed(&[0.1, 0.5, 0.3, 0.9]), seed(&[0.2, 0.9, 0.3, 0.8]));
        let plain = compare(&a, &b, &Question::default()).unwrap();
        let found = two_levels(&[a], &[b], 0.95).unwrap();
        assert!((found.difference - plain.difference).abs() < 1e-15);
        assert!((found.standard_error - plain.standard_error).abs() < 1e-15);
        assert_eq!((found.degrees_of_freedom, found.of_seeds, found.seeds), (3.0, 0.0, [1, 1]));
    }

    #[test]
    fn seeds_that_differ_widen_the_interval() {
        let teacher = vec![seed(&[0.5, 0.6, 0.4, 0.5, 0.7, 0.3])];
        let shifted =
            |by: f64| teacher[0].iter().map(|part| Part { sum: part.sum + by, weight: 1.0 }).collect();
        let students = vec![shifted(0.1), shifted(0.2), shifted(0.6)];
        let found = two_levels(&teacher, &students, 0.95).unwrap();
        // Only seeds differ: 2 degrees of freedom, their deviation over √3.
        assert!((found.difference - 0.3).abs() < 1e-12 && (found.degrees_of_freedom - 2.0).abs() < 1e-9);
        let deviation = ((0.04_f64 + 0.01 + 0.09) / 2.0).sqrt();
        assert!((found.standard_error - deviation / 3.0_f64.sqrt()).abs() < 1e-12);
        assert!((found.of_seeds - 1.0).abs() < 1e-9 && found.interval.contains(0.0), "{found:?}");
    }

    #[test]
    fn bad_seeds() {
        let good = vec![seed(&[0.1, 0.2, 0.3])];
        let message = |seeds: &[Vec<Part>]| two_levels(&good, seeds, 0.95).unwrap_err().to_string();
        assert_eq!(message(&[]), "expected at least 1 seeds, found 0");
        let found = message(&[seed(&[0.1, 0.2])]);
        assert_eq!(found, "documents of a seed: expected 3, as many as beside them, found 2");
        assert!(message(&[seed(&[0.1, 0.2, f64::NAN])]).contains("NaN"));
        assert_eq!(
            two_levels(&[], &good, 0.95).unwrap_err().to_string(),
            "expected at least 1 seeds, found 0"
        );
        // Nothing differs: no p.
        assert_eq!(two_levels(&good, &good, 0.95).unwrap().p, None);
    }
}
