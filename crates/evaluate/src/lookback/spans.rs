//! Which tokens of an answer are judged together, and what is said of them.

use std::ops::Range;

use super::ratios::mean;
use crate::{Judged, Judgement};

/// Spans of an answer with their features, and whether each is factual.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Spans {
    /// `[spans][L·H]`
    pub(super) features: Vec<Vec<f64>>,
    /// None where nobody was asked.
    pub(super) factual: Vec<Option<bool>>,
}

/// What is said of each token: not supported where a span of people's touches it; without spans as of the whole answer.
fn factual(judged: &Judged, characters: &[Range<usize>]) -> Vec<Option<bool>> {
    let touched = |token: &Range<usize>| {
        judged
            .unsupported
            .iter()
            .any(|span| span.start < token.end.max(token.start + 1) && token.start < span.end)
    };
    match judged.judgement.map(Judgement::is_factual) {
        Some(_) if !judged.unsupported.is_empty() => {
            characters.iter().map(|token| Some(!touched(token))).collect()
        }
        whole => vec![whole; characters.len()],
    }
}

/// The whole answer; or, where people marked spans, the text before the first of them, all marked text joined, and the text
/// behind the last. What stands between marked spans is left out, as in Lookback Lens.
pub(super) fn whole(judged: &Judged, ratios: &[Vec<f32>], characters: &[Range<usize>]) -> Spans {
    let factual = factual(judged, characters);
    let bad: Vec<usize> = (0..factual.len()).filter(|&token| factual[token] == Some(false)).collect();
    let (Some(&first), Some(&last), false) = (bad.first(), bad.last(), judged.unsupported.is_empty()) else {
        return Spans {
            features: vec![mean(ratios)],
            factual: vec![judged.judgement.map(Judgement::is_factual)],
        };
    };
    let joined: Vec<Vec<f32>> = bad.iter().map(|&token| ratios[token].clone()).collect();
    let parts = [(&ratios[..first], true), (&joined[..], false), (&ratios[last + 1..], true)];
    let parts = parts.into_iter().filter(|(tokens, _)| !tokens.is_empty());
    let (features, factual) = parts.map(|(tokens, factual)| (mean(tokens), Some(factual))).unzip();
    Spans { features, factual }
}

/// Each run of `size` tokens, or all of them where they are fewer: factual where every token is.
pub(super) fn windows(
    judged: &Judged,
    ratios: &[Vec<f32>],
    characters: &[Range<usize>],
    size: usize,
) -> Spans {
    let factual = factual(judged, characters);
    let size = size.min(ratios.len());
    let all = |tokens: &[Option<bool>]| tokens.iter().try_fold(true, |all, token| Some(all && (*token)?));
    Spans {
        features: ratios.windows(size).map(mean).collect(),
        factual: factual.windows(size).map(all).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(factual: Option<bool>, unsupported: &[Range<usize>]) -> Judged {
        let (id, document, answer) = ("d".to_owned(), "doc".to_owned(), "abcdef".to_owned());
        Judged {
            id,
            document,
            answer,
            judgement: factual.map(Judgement::Factual),
            unsupported: unsupported.to_vec(),
        }
    }

    /// Six tokens of a character each; the ratio of token n is n.
    fn six() -> (Vec<Vec<f32>>, Vec<Range<usize>>) {
        ((0_u8..6).map(|token| vec![f32::from(token)]).collect(), (0..6).map(|at| at..at + 1).collect())
    }

    #[test]
    fn marked_text_is_joined_and_what_is_between_is_left_out() {
        let (ratios, characters) = six();
        let found = whole(&judged(Some(false), &[1..2, 3..4]), &ratios, &characters);
        assert_eq!(found.features, [vec![0.0], vec![2.0], vec![4.5]]);
        assert_eq!(found.factual, [Some(true), Some(false), Some(true)]);
        let found = whole(&judged(Some(false), &[0..3, 3..6]), &ratios, &characters);
        assert_eq!((found.features, found.factual), (vec![vec![2.5]], vec![Some(false)]));
        let found = whole(&judged(Some(true), &[]), &ratios, &characters);
        assert_eq!((found.features, found.factual), (vec![vec![2.5]], vec![Some(true)]));
    }

    #[test]
    fn a_window_is_factual_where_all_of_it_is() {
        let (ratios, characters) = six();
        let found = windows(&judged(Some(false), &[1..2, 1..2]), &ratios, &characters, 2);
        assert_eq!(found.features, [vec![0.5], vec![1.5], vec![2.5], vec![3.5], vec![4.5]]);
        assert_eq!(found.factual, [Some(false), Some(false), Some(true), Some(true), Some(true)]);
        let found = windows(&judged(None, &[]), &ratios, &characters, 8);
        assert_eq!((found.features, found.factual), (vec![vec![2.5]], vec![None]));
    }
}
