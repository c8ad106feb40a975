//! Scores that the scorers' authors published: what real weights must give.

use crate::Kind;
use crate::rules::{Pair, Score, Verdict};

/// A pair with its published score.
#[derive(Debug, Clone)]
pub struct Published {
    /// Whose number it is.
    pub source: &'static str,
    /// What is scored.
    pub pair: Pair<'static>,
    /// What comes out.
    pub expected: Expected,
    /// How far it may be from that: digits that were published, and the float formats of others.
    pub tolerance: f64,
}

/// A published score.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Expected {
    /// How consistent the answer is.
    Consistent(f64),
    /// The one unsupported span: its first character, one past its last one, its confidence.
    Span(usize, usize, f64),
}

const HHEM_CARD: &str = "model card of vectara/hallucination_evaluation_model (HHEM-2.1-Open)";
/// Published with 4 digits.
const HHEM_TOLERANCE: f64 = 2e-4;
const HHEM: [(&str, &str, f64); 7] = [
    ("The capital of France is Berlin.", "The capital of France is Paris.", 0.0111),
    ("I am in California", "I am in United States.", 0.6474),
    ("I am in United States", "I am in California.", 0.1290),
    ("A person on a horse jumps over a broken down airplane.", "A person is outdoors, on a horse.", 0.8969),
    (
        "A boy is jumping on skateboard in the middle of a red bridge.",
        "The boy skates down the sidewalk on a red bridge",
        0.1846,
    ),
    (
        "A man with blond-hair, and a brown shirt drinking out of a public water fountain.",
        "A blond man wearing a brown shirt is reading a book.",
        0.0050,
    ),
    ("Mark Wahlberg was a fan of Manny.", "Manny was a fan of Mark Wahlberg.", 0.0543),
];

const STUDENTS: &str =
    "A group of students gather in the school library to study for their upcoming final exams.";
const CLAIMS: [&str; 2] = ["The students are preparing for an examination.", "The students are on vacation."];
/// Computed on a GPU, in floats that are not said.
const MINI_CHECK_TOLERANCE: f64 = 2e-3;
/// Computed by vLLM in 16 bits.
const JUDGE_TOLERANCE: f64 = 1e-2;

/// What was published of a scorer; empty where nothing is known. Of MiniCheck it is Flan-T5-Large, of judges Bespoke-MiniCheck-7B, of
/// LettuceDetect base v1.
pub fn published(kind: Kind) -> Vec<Published> {
    let pair = |document, answer, question| Pair { document, answer, question };
    let claims = |source, scores: [f64; 2], tolerance| {
        let one = |(claim, score)| Published {
            source,
            pair: pair(STUDENTS, claim, None),
            expected: Expected::Consistent(score),
            tolerance,
        };
        CLAIMS.into_iter().zip(scores).map(one).collect()
    };
    match kind {
        Kind::Hhem => HHEM
            .into_iter()
            .map(|(document, answer, score)| Published {
                source: HHEM_CARD,
                pair: pair(document, answer, None),
                expected: Expected::Consistent(score),
                tolerance: HHEM_TOLERANCE,
            })
            .collect(),
        Kind::MiniCheck => claims(
            "README of Liyan06/MiniCheck, Flan-T5-Large",
            [0.980_592_37, 0.007_121_33],
            MINI_CHECK_TOLERANCE,
        ),
        Kind::Judge => claims(
            "README of Liyan06/MiniCheck, Bespoke-MiniCheck-7B",
            [0.984_044_67, 0.010_986_35],
            JUDGE_TOLERANCE,
        ),
        Kind::LettuceDetect => vec![Published {
            source: "README of KRLabsOrg/LettuceDetect, lettucedect-base-modernbert-en-v1",
            pair: pair(
                "France is a country in Europe. The capital of France is Paris. The population of France is 67 million.",
                "The capital of France is Paris. The population of France is 69 million.",
                Some("What is the capital of France? What is the population of France?"),
            ),
            expected: Expected::Span(31, 71, 0.994_441_45),
            tolerance: MINI_CHECK_TOLERANCE,
        }],
        Kind::AlignScore | Kind::FactKb | Kind::Nli => Vec::new(),
    }
}

impl Published {
    /// Whether a verdict is the published one.
    pub fn agrees(&self, verdict: &Verdict) -> bool {
        let Verdict::Scored(Score { consistent, spans, .. }) = verdict else { return false };
        let is_near = |found: f64, expected: f64| (found - expected).abs() <= self.tolerance;
        match (self.expected, spans.as_slice()) {
            (Expected::Consistent(expected), _) => is_near(*consistent, expected),
            (Expected::Span(start, end, confidence), [span]) => {
                (span.start, span.end) == (start, end) && is_near(span.confidence, confidence)
            }
            (Expected::Span(..), _) => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rules::Span;

    #[test]
    fn a_score_is_compared_within_its_tolerance() {
        let scored = |consistent, spans| Verdict::Scored(Score { consistent, spans, chunks: 1, cut: false });
        let first = &published(Kind::Hhem)[0];
        assert!(first.agrees(&scored(0.0112, Vec::new())) && !first.agrees(&scored(0.0115, Vec::new())));
        assert!(!first.agrees(&Verdict::Empty));
        let span = |start, confidence| Span { start, end: 71, confidence };
        let spans = &published(Kind::LettuceDetect)[0];
        assert!(spans.agrees(&scored(0.0, vec![span(31, 0.995)])));
        for other in
            [vec![], vec![span(32, 0.995)], vec![span(31, 0.9)], vec![span(31, 0.995), span(70, 0.6)]]
        {
            assert!(!spans.agrees(&scored(0.0, other)));
        }
    }
}
