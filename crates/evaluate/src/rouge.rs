//! ROUGE: how much of a reference's text an answer has, word by word, in pairs, and in the reference's order.
//!
//! The same numbers as `rouge_score` 0.1.2, the package that published results are computed with (C.-Y. Lin,
//! "ROUGE: a package for automatic evaluation of summaries", 2004).

use std::collections::{BTreeSet, HashMap};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::porter;

/// What an answer and a reference have in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Unit {
    /// Words, each at most as often as in either text: rouge1.
    #[serde(rename = "rouge1")]
    Words,
    /// Two words, one after the other, in the same way: rouge2.
    #[serde(rename = "rouge2")]
    Pairs,
    /// The longest common subsequence of the whole text: rougeL.
    #[serde(rename = "rougeL")]
    Text,
    /// That of each line of the reference, against the union of all lines of the answer: rougeLsum.
    #[serde(rename = "rougeLsum")]
    Lines,
}

/// One way to compute ROUGE; a score means nothing without it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Rouge {
    /// What is compared.
    pub unit: Unit,
    /// Whether tokens longer than three letters are replaced by their stem.
    pub stemmer: bool,
    /// Whether `" . "` ends a line.
    pub lines_end_at_full_stops: bool,
}

impl Rouge {
    /// As MiniLLM reports it: rougeL with stems.
    pub const MINILLM: Self = Self { unit: Unit::Text, stemmer: true, lines_end_at_full_stops: false };
    /// As lm-evaluation-harness reports it: rougeLsum without stems, lines ending at `" . "`.
    pub const HARNESS: Self = Self { unit: Unit::Lines, stemmer: false, lines_end_at_full_stops: true };

    /// The score of an answer against one reference.
    pub fn score(&self, reference: &str, answer: &str) -> Score {
        let mut tokens = Tokens { stemmer: self.stemmer, ids: HashMap::new() };
        match self.unit {
            Unit::Text => {
                let (reference, answer) = (tokens.of(reference), tokens.of(answer));
                Score::of(common_length(&reference, &answer), reference.len(), answer.len())
            }
            Unit::Words => grams_score(1, &tokens.of(reference), &tokens.of(answer)),
            Unit::Pairs => grams_score(2, &tokens.of(reference), &tokens.of(answer)),
            Unit::Lines => lines_score(&self.lines(reference, &mut tokens), &self.lines(answer, &mut tokens)),
        }
    }

    /// F-measures of an answer in all units, with this one's stems and lines.
    pub fn all(&self, reference: &str, answer: &str) -> Rouges {
        let f_measure = |unit| Rouge { unit, ..*self }.score(reference, answer).f_measure;
        Rouges {
            rouge1: f_measure(Unit::Words),
            rouge2: f_measure(Unit::Pairs),
            rouge_l: f_measure(Unit::Text),
            rouge_lsum: f_measure(Unit::Lines),
        }
    }

    /// The score against the reference with the highest F-measure, the first of equal ones; zero without references.
    pub fn best<'a>(&self, references: impl IntoIterator<Item = &'a str>, answer: &str) -> Score {
        let scores = references.into_iter().map(|reference| self.score(reference, answer));
        scores
            .reduce(|best, score| if score.f_measure > best.f_measure { score } else { best })
            .unwrap_or_default()
    }

    fn lines(&self, text: &str, tokens: &mut Tokens) -> Vec<Vec<u32>> {
        let mut lines = |text: &str| text.split('\n').map(|line| tokens.of(line)).collect();
        if self.lines_end_at_full_stops { lines(&text.replace(" . ", ".\n")) } else { lines(text) }
    }
}

/// F-measures of an answer in all units, of one way to take stems and lines; each in 0..=1.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Rouges {
    /// Words.
    pub rouge1: f64,
    /// Pairs of words.
    pub rouge2: f64,
    /// Longest common subsequence.
    #[serde(rename = "rougeL")]
    pub rouge_l: f64,
    /// The same by line.
    #[serde(rename = "rougeLsum")]
    pub rouge_lsum: f64,
}

/// Each in 0..=1.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Score {
    /// Common tokens, as a part of the answer.
    pub precision: f64,
    /// Common tokens, as a part of the reference.
    pub recall: f64,
    /// Harmonic mean of both.
    pub f_measure: f64,
}

impl Score {
    fn of(common: usize, reference: usize, answer: usize) -> Self {
        if common == 0 {
            return Self::default();
        }
        let (precision, recall) = (common as f64 / answer as f64, common as f64 / reference as f64);
        Self { precision, recall, f_measure: 2.0 * precision * recall / (precision + recall) }
    }
}

/// Numbers the distinct tokens of the texts of one score.
struct Tokens {
    stemmer: bool,
    ids: HashMap<String, u32>,
}

impl Tokens {
    /// Runs of lower-case ASCII letters and digits, stemmed if longer than three.
    fn of(&mut self, text: &str) -> Vec<u32> {
        let mut ids = Vec::new();
        for word in words(text) {
            let word = if self.stemmer && word.len() > 3 { porter::stem(&word) } else { word };
            let next = u32::try_from(self.ids.len()).expect("fewer than 2^32 distinct tokens fit in memory");
            ids.push(*self.ids.entry(word).or_insert(next));
        }
        ids
    }
}

/// Runs of ASCII letters and digits, in lower case.
pub(crate) fn words(text: &str) -> Vec<String> {
    let text = text.to_lowercase();
    let words = text.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty());
    words.map(str::to_owned).collect()
}

/// Length of the longest common subsequence, 64 tokens of `a` at a time.
///
/// Source: H. Hyyrö, "Bit-parallel LCS-length computation revisited" (2004). A zero bit i of `rows` says that token i
/// of `a` makes the common subsequence one longer.
fn common_length(a: &[u32], b: &[u32]) -> usize {
    let words = a.len().div_ceil(64);
    let mut positions: HashMap<u32, Vec<u64>> = HashMap::new();
    for (i, &token) in a.iter().enumerate() {
        positions.entry(token).or_insert_with(|| vec![0; words])[i / 64] |= 1 << (i % 64);
    }
    let mut rows = vec![u64::MAX; words];
    for matches in b.iter().filter_map(|token| positions.get(token)) {
        let mut carry = false;
        for (row, &matches) in rows.iter_mut().zip(matches) {
            let matched = *row & matches;
            let (sum, overflow) = row.overflowing_add(matched);
            let (sum, carried) = sum.overflowing_add(u64::from(carry));
            carry = overflow || carried;
            *row = sum | (*row & !matches);
        }
    }
    // Bits beyond the end of `a` never match, so they stay one.
    rows.iter().map(|row| usize::try_from(row.count_zeros()).expect("at most 64")).sum()
}

/// Runs of `size` tokens that both texts have, each at most as often as in either.
fn grams_score(size: usize, reference: &[u32], answer: &[u32]) -> Score {
    let (reference, answer): (Vec<&[u32]>, Vec<&[u32]>) =
        (reference.windows(size).collect(), answer.windows(size).collect());
    let mut left: HashMap<&[u32], usize> = HashMap::new();
    for gram in &reference {
        *left.entry(gram).or_default() += 1;
    }
    let mut common = 0;
    for gram in &answer {
        if let Some(count) = left.get_mut(gram).filter(|count| **count > 0) {
            *count -= 1;
            common += 1;
        }
    }
    Score::of(common, reference.len(), answer.len())
}

/// Union of the longest common subsequences of each reference line; a token counts at most as often as in either text.
fn lines_score(reference: &[Vec<u32>], answer: &[Vec<u32>]) -> Score {
    let mut left = counts(reference);
    let mut left_in_answer = counts(answer);
    let mut common = 0;
    for line in reference {
        let union: BTreeSet<usize> = answer.iter().flat_map(|other| common_positions(line, other)).collect();
        for position in union {
            let token = line[position];
            let (a, b) = (left.entry(token).or_default(), left_in_answer.entry(token).or_default());
            if *a > 0 && *b > 0 {
                (*a, *b) = (*a - 1, *b - 1);
                common += 1;
            }
        }
    }
    Score::of(common, reference.iter().map(Vec::len).sum(), answer.iter().map(Vec::len).sum())
}

fn counts(lines: &[Vec<u32>]) -> HashMap<u32, usize> {
    let mut counts = HashMap::new();
    for &token in lines.iter().flatten() {
        *counts.entry(token).or_default() += 1;
    }
    counts
}

/// Positions in `a` of one longest common subsequence: the one that `rouge_score` reads out of its table.
///
/// Which one it is decides what a union holds, so the order of the comparisons is part of the metric. Memory: 4 bytes
/// per pair of tokens.
fn common_positions(a: &[u32], b: &[u32]) -> Vec<usize> {
    let width = b.len() + 1;
    let mut lengths = vec![0_u32; (a.len() + 1) * width];
    for (i, x) in a.iter().enumerate() {
        let (above, row) = lengths[i * width..(i + 2) * width].split_at_mut(width);
        for (j, y) in b.iter().enumerate() {
            row[j + 1] = if x == y { above[j] + 1 } else { above[j + 1].max(row[j]) };
        }
    }
    let (mut i, mut j, mut positions) = (a.len(), b.len(), Vec::new());
    while i > 0 && j > 0 {
        if a[i - 1] == b[j - 1] {
            positions.push(i - 1);
            (i, j) = (i - 1, j - 1);
        } else if lengths[i * width + j - 1] > lengths[(i - 1) * width + j] {
            j -= 1;
        } else {
            i -= 1;
        }
    }
    positions
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: Rouge = Rouge { unit: Unit::Text, stemmer: false, lines_end_at_full_stops: false };
    const LINES: Rouge = Rouge { unit: Unit::Lines, ..PLAIN };

    /// The published numbers have five digits.
    const FIVE_DIGITS: f64 = 5e-6;
    /// The golden scores come from another summation order of the same fractions.
    const GOLDEN: f64 = 1e-6;

    fn assert_score(found: Score, expected: [f64; 3], tolerance: f64, what: &str) {
        let found = [found.precision, found.recall, found.f_measure];
        let close = found.iter().zip(expected).all(|(a, b)| (a - b).abs() <= tolerance);
        assert!(close, "{what}: expected {expected:?}, found {found:?}");
    }

    #[test]
    fn vectors_of_the_package() {
        let fox = "The quick brown fox jumps over the lazy dog";
        let score = PLAIN.score(fox, "The quick brown dog jumps on the log.");
        assert_score(score, [0.625, 0.555_56, 0.588_24], FIVE_DIGITS, "rougeL");
        let score = LINES.score("w1 w2 w3 w4 w5", "w1 w2 w6 w7 w8\nw1 w3 w8 w9 w5");
        assert_score(score, [0.4, 0.8, 0.533_33], FIVE_DIGITS, "rougeLsum");
        let harness = Rouge::HARNESS.score("w1 w2 w3 w4 w5", "w1 w2 w6 w7 w8 . w1 w3 w8 w9 w5");
        assert_eq!(harness, score);
        assert_eq!(PLAIN.score(fox, fox), Score { precision: 1.0, recall: 1.0, f_measure: 1.0 });
    }

    #[test]
    fn nothing_in_common() {
        for rouge in [PLAIN, LINES, Rouge::MINILLM, Rouge::HARNESS] {
            for (reference, answer) in
                [("", ""), ("a", ""), ("", "a"), ("a b", "c"), ("\n.\n", "a"), ("é", "é")]
            {
                assert_eq!(rouge.score(reference, answer), Score::default());
            }
        }
        assert_eq!(PLAIN.best([], "a"), Score::default());
    }

    #[test]
    fn stems_only_of_long_words() {
        assert_eq!(PLAIN.score("testing running", "tested runs").f_measure, 0.0);
        assert_eq!(Rouge::MINILLM.score("testing running", "tested runs").f_measure, 1.0);
        assert_eq!(Rouge::MINILLM.score("ran its way", "rans it ways").recall, 2.0 / 3.0);
    }

    #[test]
    fn the_best_reference() {
        let score = PLAIN.best(["a b c d", "a b c", "x"], "a b c");
        assert_eq!(score.f_measure, 1.0);
        // Equal F-measures: the first reference decides precision and recall.
        let score = PLAIN.best(["a", "a"], "a b");
        assert_eq!((score.precision, score.recall), (0.5, 1.0));
    }

    #[test]
    fn both_common_subsequences_are_equally_long() {
        let mut state = 1_u64;
        let mut token = |below: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            u32::try_from((state >> 33) % below).unwrap()
        };
        for length in [0, 1, 5, 63, 64, 65, 128, 200] {
            for alphabet in [2, 5, 50] {
                let a: Vec<u32> = (0..length).map(|_| token(alphabet)).collect();
                let b: Vec<u32> = (0..length + 7).map(|_| token(alphabet)).collect();
                assert_eq!(common_length(&a, &b), common_positions(&a, &b).len());
                assert_eq!(common_length(&b, &a), common_positions(&b, &a).len());
            }
        }
    }

    #[derive(Deserialize)]
    struct Article {
        id: String,
        reference: String,
        summaries: Vec<Summary>,
    }

    #[derive(Deserialize)]
    struct Summary {
        system: String,
        summary: String,
    }

    #[derive(Deserialize)]
    struct Golden {
        id: String,
        system: String,
        nostem: Expected,
        stem: Expected,
    }

    #[derive(Deserialize)]
    struct Expected {
        rouge1: [f64; 3],
        rouge2: [f64; 3],
        #[serde(rename = "rougeL")]
        text: [f64; 3],
        #[serde(rename = "rougeLsum")]
        lines: [f64; 3],
    }

    fn read<T: serde::de::DeserializeOwned>(path: &std::path::Path) -> Vec<T> {
        let text = fs_err::read_to_string(path).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// 1,600 real summaries, scored by rouge_score 0.1.2.
    #[test]
    fn golden_scores() {
        let Some(data) = softshard_e2e::real_data() else { return };
        let golden = data.join("rouge/rouge_score-0.1.2_summeval_golden.jsonl");
        let articles = data.join("summarization/summeval_cnndm.jsonl");
        let articles: Vec<Article> = read(&articles);
        let texts: HashMap<(&str, &str), (&str, &str)> = articles
            .iter()
            .flat_map(|a| {
                a.summaries.iter().map(move |s| ((a, s), (a.reference.as_str(), s.summary.as_str())))
            })
            .map(|((a, s), texts)| ((a.id.as_str(), s.system.as_str()), texts))
            .collect();
        let golden: Vec<Golden> = read(&golden);
        assert_eq!(golden.len(), 1600);
        for row in &golden {
            let (reference, summary) = texts[&(row.id.as_str(), row.system.as_str())];
            for (stemmer, expected) in [(false, &row.nostem), (true, &row.stem)] {
                let what = format!("{} {} stemmer {stemmer}", row.id, row.system);
                let score = Rouge { stemmer, ..PLAIN }.score(reference, summary);
                assert_score(score, expected.text, GOLDEN, &what);
                let score = Rouge { stemmer, ..LINES }.score(reference, summary);
                assert_score(score, expected.lines, GOLDEN, &what);
                for (unit, expected) in [(Unit::Words, expected.rouge1), (Unit::Pairs, expected.rouge2)] {
                    let score = Rouge { stemmer, unit, ..PLAIN }.score(reference, summary);
                    assert_score(score, expected, GOLDEN, &what);
                }
                let all = Rouge { stemmer, ..PLAIN }.all(reference, summary);
                let of = [expected.rouge1[2], expected.rouge2[2], expected.text[2], expected.lines[2]];
                let found = [all.rouge1, all.rouge2, all.rouge_l, all.rouge_lsum];
                assert!(found.iter().zip(of).all(|(a, b)| (a - b).abs() <= GOLDEN), "{what}: {found:?}");
            }
        }
    }
}
