//! Two models on the same documents.

use serde::{Deserialize, Serialize};

use super::{
    BadValues, Interval, Part, Resampling, SignFlip, all,
    distributions::t_quantile,
    mcnemar, number,
    parts::{check, error_of, influences, ratio},
    same_length, sign_flip,
};

/// How often [`Comparison::smallest_difference`] would be seen.
pub const POWER: f64 = 0.8;

/// Which scores are better.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Better {
    /// As of accuracy.
    Higher,
    /// As of a likelihood in nats, negative.
    Lower,
}

/// What a difference is called.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Word {
    /// The candidate is better: the whole interval is on that side of 0.
    Win,
    /// The candidate is worse.
    Loss,
    /// The interval contains 0: no difference was seen, which is not to say that there is none.
    Tie,
    /// The whole interval is inside the stated margin, on either side of 0: no difference that matters.
    Equal,
}

/// How two models are compared.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Question {
    /// How documents are drawn.
    pub resampling: Resampling,
    /// Which scores are better.
    pub better: Better,
    /// Differences below it do not matter, in units of the score.
    pub margin: Option<f64>,
}

impl Default for Question {
    fn default() -> Self {
        Self { resampling: Resampling::default(), better: Better::Higher, margin: None }
    }
}

/// A candidate beside a baseline on the same documents.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Comparison {
    /// Mean of the baseline.
    pub baseline: f64,
    /// Mean of the candidate.
    pub candidate: f64,
    /// Candidate minus baseline.
    pub difference: f64,
    /// Standard error of the difference, by documents.
    pub standard_error: f64,
    /// Interval of the difference: both models on the same drawn documents.
    pub interval: Interval,
    /// Chance of a difference as large were the models the same.
    pub sign_flip: SignFlip,
    /// McNemar's exact p; only where every document has one row and every score is 0 or 1.
    pub mcnemar: Option<f64>,
    /// Correlation of the two over documents; none where one of them has the same score everywhere.
    pub correlation: Option<f64>,
    /// The true difference that would be seen with 80 % power; none where the documents do not differ, of
    /// which nothing can be said.
    pub smallest_difference: Option<f64>,
    /// Documents.
    pub documents: usize,
    /// What the difference is called.
    pub word: Word,
}

/// Compares two models, document by document.
///
/// # Errors
/// Other documents, fewer than two, a number that is not finite, a margin that is not above 0.
pub fn compare(baseline: &[Part], candidate: &[Part], question: &Question) -> Result<Comparison, BadValues> {
    same_length("documents of the candidate", baseline.len(), candidate.len())?;
    check(baseline)?;
    check(candidate)?;
    let (documents, resampling) = (baseline.len(), &question.resampling);
    let replicates = resampling.replicates(documents, |drawn| {
        let of = |parts: &[Part]| ratio(drawn.iter().map(|&document| &parts[document]));
        of(candidate) - of(baseline)
    })?;
    let interval = resampling.percentile(replicates, documents);
    let (from, to) = (influences(baseline), influences(candidate));
    let moves: Vec<f64> = from.iter().zip(&to).map(|(from, to)| to - from).collect();
    let standard_error = error_of(&moves);
    let (mean, other) = (ratio(baseline.iter()), ratio(candidate.iter()));
    Ok(Comparison {
        baseline: mean,
        candidate: other,
        difference: other - mean,
        standard_error,
        interval,
        sign_flip: sign_flip(baseline, candidate, resampling)?,
        mcnemar: discordant(baseline, candidate).map(|(from, to)| mcnemar(from, to)),
        correlation: correlation(&from, &to),
        smallest_difference: smallest_difference(standard_error, number(documents) - 1.0, resampling.level),
        documents,
        word: word(&interval, question.better, question.margin)?,
    })
}

/// What a difference with this interval is called. Equal goes before win and loss: what does not matter is
/// none.
///
/// # Errors
/// A margin that is not above 0.
pub fn word(interval: &Interval, better: Better, margin: Option<f64>) -> Result<Word, BadValues> {
    if let Some(margin) = margin {
        all("margin", "a finite number above 0", &[margin], |margin| margin.is_finite() && margin > 0.0)?;
        if -margin < interval.lower && interval.upper < margin {
            return Ok(Word::Equal);
        }
    }
    Ok(match (interval.contains(0.0), (interval.lower > 0.0) == (better == Better::Higher)) {
        (true, _) => Word::Tie,
        (false, true) => Word::Win,
        (false, false) => Word::Loss,
    })
}

/// The true difference whose interval would leave out 0 with 80 % power: (t of the level + t of the power) ·
/// standard error, of the error's degrees of freedom: n - 1 for documents (H. S. Bloom, "Minimum detectable
/// effects", 1995; with normal quantiles it is arXiv 2411.00640, solved for the difference). None where the error
/// is 0.
pub fn smallest_difference(standard_error: f64, degrees_of_freedom: f64, level: f64) -> Option<f64> {
    let quantile = |share: f64| t_quantile(share, degrees_of_freedom);
    (standard_error > 0.0).then(|| (quantile((1.0 + level) / 2.0) + quantile(POWER)) * standard_error)
}

/// Documents that only the baseline, and only the candidate, had right, where all have one row that is right
/// or wrong.
fn discordant(baseline: &[Part], candidate: &[Part]) -> Option<(u64, u64)> {
    let right = |part: &Part| match (part.sum, part.weight) {
        (0.0, 1.0) => Some(0),
        (1.0, 1.0) => Some(1),
        _ => None,
    };
    let mut counts = (0, 0);
    for (from, to) in baseline.iter().zip(candidate) {
        let (from, to) = (right(from)?, right(to)?);
        counts.0 += from & (1 - to);
        counts.1 += to & (1 - from);
    }
    Some(counts)
}

/// Pearson's correlation of numbers that sum to 0.
fn correlation(a: &[f64], b: &[f64]) -> Option<f64> {
    let product = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    let scale = product(a, a).sqrt() * product(b, b).sqrt();
    (scale > 0.0).then(|| product(a, b) / scale)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(scores: &[f64]) -> Vec<Part> {
        scores.iter().map(|&sum| Part { sum, weight: 1.0 }).collect()
    }

    #[test]
    fn words() {
        let say = |lower, upper, better, margin| word(&Interval { lower, upper }, better, margin).unwrap();
        assert_eq!(say(0.1, 0.2, Better::Higher, None), Word::Win);
        assert_eq!(say(0.1, 0.2, Better::Lower, None), Word::Loss);
        assert_eq!(say(-0.2, -0.1, Better::Lower, None), Word::Win);
        assert_eq!(say(-0.2, -0.1, Better::Higher, None), Word::Loss);
        assert_eq!(say(-0.1, 0.2, Better::Higher, Some(0.15)), Word::Tie);
        assert_eq!(say(0.0, 0.2, Better::Higher, None), Word::Tie);
        assert_eq!(say(-0.1, 0.2, Better::Higher, Some(0.25)), Word::Equal);
        assert_eq!(say(0.1, 0.2, Better::Higher, Some(0.25)), Word::Equal);
        for margin in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            assert!(word(&Interval { lower: 0.0, upper: 0.0 }, Better::Higher, Some(margin)).is_err());
        }
    }

    #[test]
    fn the_same_answers_are_a_tie_of_which_no_power_is_known() {
        let scores = parts(&[0.0, 1.0, 1.0, 0.0, 1.0]);
        let found = compare(&scores, &scores, &Question::default()).unwrap();
        assert_eq!((found.difference, found.interval), (0.0, Interval { lower: 0.0, upper: 0.0 }));
        assert_eq!((found.word, found.smallest_difference, found.mcnemar), (Word::Tie, None, Some(1.0)));
        assert!((found.correlation.unwrap() - 1.0).abs() < 1e-15);
    }

    #[test]
    fn pairs_see_what_two_samples_do_not() {
        // Documents differ by 100, models by 1 on each of them.
        let baseline: Vec<f64> = (0..40).map(|n| f64::from(n * 37 % 40) * 2.5).collect();
        let candidate: Vec<f64> = baseline.iter().enumerate().map(|(n, x)| x + [0.5, 1.5][n % 2]).collect();
        let found = compare(&parts(&baseline), &parts(&candidate), &Question::default()).unwrap();
        assert_eq!(found.word, Word::Win);
        assert!((found.difference - 1.0).abs() < 1e-12 && found.standard_error < 0.1, "{found:?}");
        assert_eq!((found.mcnemar, found.sign_flip.p), (None, 1.0 / 10_001.0));
        let lower = Question { better: Better::Lower, ..Question::default() };
        assert_eq!(compare(&parts(&baseline), &parts(&candidate), &lower).unwrap().word, Word::Loss);
    }

    #[test]
    fn other_documents_and_too_few_are_refused() {
        let usual = Question::default();
        let message = |a: &[f64], b: &[f64]| compare(&parts(a), &parts(b), &usual).unwrap_err().to_string();
        let found = message(&[1.0, 2.0], &[1.0, 2.0, 3.0]);
        assert_eq!(found, "documents of the candidate: expected 2, as many as beside them, found 3");
        assert_eq!(message(&[1.0], &[1.0]), "expected at least 2 documents, found 1");
        let found = message(&[1.0, 2.0], &[1.0, f64::NAN]);
        assert_eq!(found, "sum of document 1: expected a finite number, found NaN");
    }
}
