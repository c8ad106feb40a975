//! How well scores agree with the judgement of people.

use crate::Error;

/// Scores beside what people said of the same answers.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Agreement {
    /// The probability that of a faithful and an unfaithful answer the faithful one has the greater score, ties counted half (the area
    /// under the ROC curve); absent where all are of one sort.
    pub auc: Option<f64>,
    /// Spearman's rank correlation, ties at their mean rank; absent where all scores or all judgements are the same.
    pub spearman: Option<f64>,
    /// Kendall's rank correlation tau-b; absent where Spearman's is.
    pub kendall: Option<f64>,
}

impl Agreement {
    /// `judgements`: greater is more faithful; those of at least `faithful` are the faithful ones.
    ///
    /// # Errors
    /// There are fewer than two, lists of unlike lengths, or what is no finite number.
    pub fn of(scores: &[f64], judgements: &[f64], faithful: f64) -> Result<Self, Error> {
        if scores.len() != judgements.len() || scores.len() < 2 {
            let found = format!("{} scores and {} judgements", scores.len(), judgements.len());
            return Err(Error::bad("agreement", "as many scores as judgements, two at least", found));
        }
        if let Some(value) = scores.iter().chain(judgements).find(|value| !value.is_finite()) {
            return Err(Error::bad("agreement", "finite numbers", value));
        }
        let [of_scores, of_judgements] = [scores, judgements].map(ranks);
        let spearman = correlation(&of_scores, &of_judgements);
        let kendall = spearman.map(|_| tau_b(scores, judgements));
        Ok(Self { auc: of_ranks(&of_scores, judgements, faithful), spearman, kendall })
    }
}

/// Ranks from 1, ties at their mean rank.
fn ranks(values: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|&one, &other| values[one].total_cmp(&values[other]));
    let mut ranks = vec![0.0; values.len()];
    let mut before = 0;
    for same in order.chunk_by(|&one, &other| values[one] == values[other]) {
        for &index in same {
            ranks[index] = before as f64 + (same.len() as f64 + 1.0) / 2.0;
        }
        before += same.len();
    }
    ranks
}

/// The area under the ROC curve: [`Agreement::auc`] alone.
///
/// # Panics
/// There are not as many judgements as scores.
pub fn auc(scores: &[f64], judgements: &[f64], faithful: f64) -> Option<f64> {
    assert_eq!(scores.len(), judgements.len(), "a judgement of each score");
    of_ranks(&ranks(scores), judgements, faithful)
}

/// Mann and Whitney's U over all pairs of a faithful and an unfaithful one.
fn of_ranks(ranks: &[f64], judgements: &[f64], faithful: f64) -> Option<f64> {
    let of_faithful = ranks.iter().zip(judgements).filter(|(_, judgement)| **judgement >= faithful);
    let (count, sum) = of_faithful.fold((0usize, 0.0), |(count, sum), (rank, _)| (count + 1, sum + rank));
    let others = ranks.len() - count;
    if count == 0 || others == 0 {
        return None;
    }
    let (count, others) = (count as f64, others as f64);
    Some((sum - count * (count + 1.0) / 2.0) / (count * others))
}

/// Pearson's.
fn correlation(left: &[f64], right: &[f64]) -> Option<f64> {
    let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
    let (of_left, of_right) = (mean(left), mean(right));
    let (mut both, mut squares) = (0.0, [0.0, 0.0]);
    for (left, right) in left.iter().zip(right) {
        let (left, right) = (left - of_left, right - of_right);
        both += left * right;
        squares[0] += left * left;
        squares[1] += right * right;
    }
    (squares[0] > 0.0 && squares[1] > 0.0).then(|| both / (squares[0] * squares[1]).sqrt())
}

/// `(concordant - discordant) / √(pairs untied in one · pairs untied in the other)`, by counting all pairs.
fn tau_b(left: &[f64], right: &[f64]) -> f64 {
    let (mut balance, mut untied) = (0i64, [0u64, 0u64]);
    for one in 0..left.len() {
        for other in 0..one {
            let of_left = left[one].total_cmp(&left[other]) as i64 * i64::from(left[one] != left[other]);
            let of_right = right[one].total_cmp(&right[other]) as i64 * i64::from(right[one] != right[other]);
            balance += of_left * of_right;
            untied[0] += of_left.unsigned_abs();
            untied[1] += of_right.unsigned_abs();
        }
    }
    balance as f64 / ((untied[0] as f64).sqrt() * (untied[1] as f64).sqrt())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// scikit-learn 1.9.1 `roc_auc_score`, scipy 1.17.1 `spearmanr` and `kendalltau`: tests/peers/golden_agreement.py.
    const SAME: f64 = 1e-12;

    #[test]
    fn agreement_is_that_of_the_peers() {
        let golden = softshard_e2e::root().join("tests/peers/golden/agreement.json");
        let cases: serde_json::Value =
            serde_json::from_str(&std::fs::read_to_string(golden).unwrap()).unwrap();
        let cases = cases["cases"].as_array().unwrap();
        assert!(cases.len() >= 6);
        for case in cases {
            let list = |key: &str| -> Vec<f64> {
                case[key].as_array().unwrap().iter().map(|value| value.as_f64().unwrap()).collect()
            };
            let found =
                Agreement::of(&list("scores"), &list("judgements"), case["faithful"].as_f64().unwrap())
                    .unwrap();
            for (key, found) in [("auc", found.auc), ("spearman", found.spearman), ("kendall", found.kendall)]
            {
                match (found, case[key].as_f64()) {
                    (Some(found), Some(expected)) => {
                        assert!((found - expected).abs() < SAME, "{key}: {found} {expected}");
                    }
                    (found, expected) => assert_eq!(found, expected, "{key}"),
                }
            }
        }
    }

    #[test]
    fn what_is_none_is_refused() {
        for (scores, judgements) in
            [(&[0.1][..], &[1.0][..]), (&[0.1, 0.2], &[1.0]), (&[0.1, f64::NAN], &[1.0, 0.0])]
        {
            assert!(Agreement::of(scores, judgements, 0.5).is_err());
        }
    }
}
