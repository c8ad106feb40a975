//! How well a score puts one class above the other, and one order agrees with another.

use serde::{Deserialize, Serialize};

use super::{BadValues, Documents, Interval, Resampling, all, number, same_length};

/// An area under the ROC curve with its interval.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Auroc {
    /// The probability that a positive row has a higher score than a negative one; equal scores count half.
    pub value: f64,
    /// Its interval, from resampled documents.
    pub interval: Interval,
    /// Rows that are positive.
    pub positive: usize,
    /// Rows that are not.
    pub negative: usize,
}

/// The area under the ROC curve (Mann and Whitney 1947; Hanley and McNeil 1982), with an interval by document.
///
/// # Errors
/// Another number of rows, a score that is not finite, rows of one class only, fewer than two documents.
pub fn auroc(
    scores: &[f64],
    positive: &[bool],
    documents: &Documents,
    resampling: &Resampling,
) -> Result<Auroc, BadValues> {
    same_length("classes", scores.len(), positive.len())?;
    same_length("documents of rows", scores.len(), documents.of_rows().len())?;
    all("score", "a finite number", scores, f64::is_finite)?;
    let count = positive.iter().filter(|&&positive| positive).count();
    for (what, found) in [("positive rows", count), ("negative rows", positive.len() - count)] {
        if found == 0 {
            return Err(BadValues::TooFew { what, expected: 1, found });
        }
    }
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|&a, &b| scores[a].total_cmp(&scores[b]));
    let area = |weights: &[f64]| {
        let same = |&a: &usize, &b: &usize| scores[a] == scores[b];
        let (mut below, mut wins) = (0.0, 0.0);
        let (mut all_positive, mut all_negative) = (0.0, 0.0);
        for tied in order.chunk_by(same) {
            let (mut up, mut down) = (0.0, 0.0);
            for &row in tied {
                let weight = weights[documents.of_rows()[row]];
                if positive[row] { up += weight } else { down += weight }
            }
            wins += up * (below + down / 2.0);
            below += down;
            all_positive += up;
            all_negative += down;
        }
        wins / (all_positive * all_negative)
    };
    let value = area(&vec![1.0; documents.count()]);
    let replicates = resampling.replicates(documents.count(), |drawn| {
        let mut weights = vec![0.0; documents.count()];
        drawn.iter().for_each(|&document| weights[document] += 1.0);
        area(&weights)
    })?;
    let interval = resampling.percentile(replicates, documents.count());
    Ok(Auroc { value, interval, positive: count, negative: positive.len() - count })
}

/// Rank correlations, -1 to 1.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct RankCorrelations {
    /// Spearman's: Pearson's of the ranks, equal values having the mean of theirs.
    pub spearman: f64,
    /// Kendall's tau-b: `(concordant - discordant) / √(pairs untied in one · pairs untied in the other)`.
    pub kendall: f64,
}

/// How two orders agree; none where one side has a single value.
///
/// # Errors
/// Lists of other lengths, a value that is not finite.
pub fn rank_correlations(a: &[f64], b: &[f64]) -> Result<Option<RankCorrelations>, BadValues> {
    same_length("values", a.len(), b.len())?;
    for values in [a, b] {
        all("value", "a finite number", values, f64::is_finite)?;
    }
    let centred = |values: &[f64]| {
        let middle = (number(values.len()) + 1.0) / 2.0;
        ranks(values).into_iter().map(|rank| rank - middle).collect::<Vec<_>>()
    };
    let (of_a, of_b) = (centred(a), centred(b));
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    let spread = (dot(&of_a, &of_a) * dot(&of_b, &of_b)).sqrt();
    let found = || RankCorrelations { spearman: dot(&of_a, &of_b) / spread, kendall: tau_b(a, b) };
    Ok((spread > 0.0).then(found))
}

/// From 1; equal values have the mean of their ranks.
fn ranks(values: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|&a, &b| values[a].total_cmp(&values[b]));
    let mut ranks = vec![0.0; values.len()];
    let mut before = 0;
    for tied in order.chunk_by(|&a, &b| values[a] == values[b]) {
        let rank = number(before) + (number(tied.len()) + 1.0) / 2.0;
        tied.iter().for_each(|&row| ranks[row] = rank);
        before += tied.len();
    }
    ranks
}

/// By counting all pairs.
fn tau_b(a: &[f64], b: &[f64]) -> f64 {
    let (mut balance, mut untied) = (0.0, [0usize; 2]);
    let sign = |from: f64, to: f64| if from == to { 0.0 } else { (to - from).signum() };
    for one in 0..a.len() {
        for other in 0..one {
            let signs = [sign(a[one], a[other]), sign(b[one], b[other])];
            balance += signs[0] * signs[1];
            untied[0] += usize::from(signs[0] != 0.0);
            untied[1] += usize::from(signs[1] != 0.0);
        }
    }
    balance / (number(untied[0]).sqrt() * number(untied[1]).sqrt())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// scikit-learn 1.9.1 `roc_auc_score`, scipy 1.17.1 `spearmanr` and `kendalltau`: tests/peers/golden_agreement.py.
    const SAME: f64 = 1e-12;

    #[test]
    fn areas_and_correlations_are_those_of_the_peers() {
        let golden = softshard_e2e::root().join("tests/peers/golden/agreement.json");
        let text = fs_err::read_to_string(golden).expect("golden/agreement.json is there");
        let all: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        let cases = all["cases"].as_array().expect("a list");
        assert!(cases.len() >= 6);
        let usual = Resampling { draws: 200, ..Resampling::default() };
        for case in cases {
            let floats = |key: &str| -> Vec<f64> {
                case[key]
                    .as_array()
                    .expect("a list")
                    .iter()
                    .map(|one| one.as_f64().expect("a number"))
                    .collect()
            };
            let (scores, judgements) = (floats("scores"), floats("judgements"));
            let faithful = case["faithful"].as_f64().expect("a number");
            let positive: Vec<bool> = judgements.iter().map(|one| *one >= faithful).collect();
            let found = auroc(&scores, &positive, &Documents::of_single_rows(scores.len()), &usual).ok();
            let ranks = rank_correlations(&scores, &judgements).expect("finite numbers");
            for (key, found) in [
                ("auc", found.as_ref().map(|found| found.value)),
                ("spearman", ranks.map(|found| found.spearman)),
                ("kendall", ranks.map(|found| found.kendall)),
            ] {
                match (found, case[key].as_f64()) {
                    (Some(found), Some(expected)) => {
                        assert!((found - expected).abs() < SAME, "{key}: {found}")
                    }
                    (found, expected) => assert_eq!(found, expected, "{key}"),
                }
            }
            assert!(found.is_none_or(|found| found.interval.contains(found.value)));
        }
    }

    #[test]
    fn a_document_that_is_drawn_twice_counts_twice() {
        // Rows of one document always come together, so the interval of two documents is wide.
        let documents = Documents::of(&["a", "a", "b", "b"]);
        let (scores, positive) = ([0.1, 0.4, 0.3, 0.2], [false, true, false, true]);
        let found = auroc(&scores, &positive, &documents, &Resampling::default()).unwrap();
        assert_eq!((found.value, found.interval), (0.75, Interval { lower: 0.0, upper: 1.0 }));
    }

    #[test]
    fn what_says_nothing_is_refused() {
        let documents = Documents::of_single_rows(2);
        let found = auroc(&[0.1, 0.2], &[true, true], &documents, &Resampling::default());
        assert_eq!(found.unwrap_err().to_string(), "expected at least 1 negative rows, found 0");
        let found = rank_correlations(&[0.1, f64::NAN], &[0.0, 1.0]);
        assert_eq!(found.unwrap_err().to_string(), "value 1: expected a finite number, found NaN");
    }
}
