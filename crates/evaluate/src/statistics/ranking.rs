//! How well a score puts one class above the other.

use serde::{Deserialize, Serialize};

use super::{BadValues, Documents, Interval, Resampling, all, same_length};

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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::statistics::golden::{close, floats, golden, list};

    #[test]
    fn areas_are_those_of_scikit_learn() {
        let usual = Resampling { draws: 200, ..Resampling::default() };
        for case in list(&golden("ranking")) {
            let scores = floats(&case["scores"]);
            let positive: Vec<bool> = floats(&case["positive"]).iter().map(|&one| one > 0.5).collect();
            let documents = Documents::of_single_rows(scores.len());
            let found = auroc(&scores, &positive, &documents, &usual).unwrap();
            close(found.value, &case["auroc"]);
            assert!(found.interval.contains(found.value), "{found:?}");
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
    fn one_class_has_no_area() {
        let documents = Documents::of_single_rows(2);
        let found = auroc(&[0.1, 0.2], &[true, true], &documents, &Resampling::default());
        assert_eq!(found.unwrap_err().to_string(), "expected at least 1 negative rows, found 0");
    }
}
