//! What is said of answers by a classifier that never saw their document.

use super::{LogisticRegression, spans::Spans};
use crate::statistics::BadValues;

/// The fold of each document: as many of them in each, whatever their order in the file, the same for the same seed.
pub(super) fn folds(documents: &[String], count: usize, seed: u64) -> Vec<usize> {
    let mut order: Vec<usize> = (0..documents.len()).collect();
    order.sort_by_key(|&document| {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&seed.to_le_bytes()).update(documents[document].as_bytes());
        *hasher.finalize().as_bytes()
    });
    let mut folds = vec![0; documents.len()];
    order.iter().enumerate().for_each(|(place, &document)| folds[document] = place % count);
    folds
}

/// The classifier of all spans that were judged, but for those of one fold.
///
/// # Errors
/// All of them are factual, or none.
pub(super) fn fit<'a>(
    spans: impl IntoIterator<Item = &'a Spans>,
    c: f64,
) -> Result<LogisticRegression, BadValues> {
    let (mut features, mut labels) = (Vec::new(), Vec::new());
    for of_answer in spans {
        for (row, factual) in of_answer.features.iter().zip(&of_answer.factual) {
            if let Some(factual) = factual {
                features.push(row.clone());
                labels.push(*factual);
            }
        }
    }
    LogisticRegression::fit(&features, &labels, c)
}

/// The probability of each span to be factual, by the classifier of the folds that its document is not in.
///
/// # Shapes
/// `spans` and `folds_of_answers` `[answers]`; the result `[answers][spans]`.
///
/// # Errors
/// As [`fit`].
pub(super) fn held_out(
    spans: &[Spans],
    folds_of_answers: &[usize],
    count: usize,
    c: f64,
) -> Result<Vec<Vec<f64>>, BadValues> {
    let mut found = vec![Vec::new(); spans.len()];
    for fold in 0..count {
        let in_fold = |answer: &usize| folds_of_answers[*answer] == fold;
        let others = (0..spans.len()).filter(|answer| !in_fold(answer)).map(|answer| &spans[answer]);
        let classifier = fit(others, c)?;
        for answer in (0..spans.len()).filter(in_fold) {
            found[answer] = spans[answer].features.iter().map(|row| classifier.probability(row)).collect();
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folds_are_alike_and_follow_the_document() {
        let names: Vec<String> = (0..11).map(|number| format!("document {number}")).collect();
        let found = folds(&names, 4, 7);
        let sizes: Vec<usize> = (0..4).map(|fold| found.iter().filter(|&&one| one == fold).count()).collect();
        assert_eq!(sizes, [3, 3, 3, 2]);
        let mut turned = names.clone();
        turned.reverse();
        let mut again = folds(&turned, 4, 7);
        again.reverse();
        assert_eq!(found, again);
        assert_ne!(found, folds(&names, 4, 8));
    }

    #[test]
    fn nobody_is_judged_by_what_learnt_from_it() {
        // A document is told from the others by its feature alone: only who saw it could say.
        let spans = |feature: f64, factual: bool| Spans {
            features: vec![vec![feature, 1.0]],
            factual: vec![Some(factual)],
        };
        let all = [spans(0.0, true), spans(0.0, false), spans(100.0, true), spans(100.0, false)];
        let found = held_out(&all, &[0, 0, 1, 1], 2, 1.0).unwrap();
        for answer in &found {
            assert!((answer[0] - 0.5).abs() < 1e-9, "{found:?}");
        }
    }
}
