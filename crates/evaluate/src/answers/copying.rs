//! How much of an answer stands in its source. That is copying, and not faithfulness: a wrong word among copied ones is a small
//! part of an answer, and an abstract one may be true. It can order systems wrongly.

use std::collections::HashSet;

use serde::{Deserialize, Serialize};

use crate::rouge::words;

/// Shares of an answer that its source has too, 0 to 1; none where the answer has nothing of the kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Copying {
    /// Words: runs of ASCII letters and digits, in lower case, as ROUGE has them.
    pub unigrams: Option<f64>,
    /// Three words, one after the other.
    pub trigrams: Option<f64>,
    /// Words that are not among the most usual ones of English grammar.
    pub content_words: Option<f64>,
    /// Words that begin with a capital letter, but for the first one of a sentence, and words with a digit.
    pub names_and_numbers: Option<f64>,
}

/// How much of `answer` stands in `source`. Each word and each three of them counts as often as it stands in the answer.
pub fn copying(source: &str, answer: &str) -> Copying {
    let (source, found) = (words(source), words(answer));
    let known: HashSet<&str> = source.iter().map(String::as_str).collect();
    let trigrams: HashSet<&[String]> = source.windows(3).collect();
    let content = found.iter().filter(|word| !FUNCTION_WORDS.contains(&word.as_str()));
    Copying {
        unigrams: share(found.iter().map(|word| known.contains(word.as_str()))),
        trigrams: share(found.windows(3).map(|three| trigrams.contains(three))),
        content_words: share(content.map(|word| known.contains(word.as_str()))),
        names_and_numbers: share(names_and_numbers(answer).iter().map(|word| known.contains(word.as_str()))),
    }
}

/// One of the shares.
pub type Share = fn(&Copying) -> Option<f64>;

/// Shares that are the floor of any judge of answers, by name.
pub const FLOORS: [(&str, Share); 3] = [
    ("copied words", |copied| copied.unigrams),
    ("copied trigrams", |copied| copied.trigrams),
    ("copied content words", |copied| copied.content_words),
];

/// The share of what is true; none of nothing.
fn share(all: impl Iterator<Item = bool>) -> Option<f64> {
    let (count, true_ones) = all.fold((0u32, 0u32), |(count, ones), one| (count + 1, ones + u32::from(one)));
    (count > 0).then(|| f64::from(true_ones) / f64::from(count))
}

fn names_and_numbers(answer: &str) -> Vec<String> {
    const QUOTES: [char; 10] = ['"', '\'', '(', ')', '[', ']', '‘', '’', '“', '”'];
    let (mut found, mut begins) = (Vec::new(), true);
    for token in answer.split_whitespace() {
        let parts = words(token);
        let bare = token.trim_matches(QUOTES);
        if !parts.is_empty() {
            let is_name = !begins && bare.starts_with(char::is_uppercase);
            if is_name || parts.iter().any(|part| part.contains(|c: char| c.is_ascii_digit())) {
                found.extend(parts);
            }
            begins = false;
        }
        begins |= bare.ends_with(['.', '!', '?']);
    }
    found
}

/// Articles, pronouns, prepositions, conjunctions, auxiliary verbs, and what is left of them where an apostrophe is a blank.
static FUNCTION_WORDS: [&str; 153] = [
    "a",
    "about",
    "above",
    "after",
    "again",
    "against",
    "all",
    "also",
    "am",
    "an",
    "and",
    "any",
    "are",
    "aren",
    "as",
    "at",
    "be",
    "because",
    "been",
    "before",
    "being",
    "below",
    "between",
    "both",
    "but",
    "by",
    "can",
    "d",
    "did",
    "didn",
    "do",
    "does",
    "doing",
    "don",
    "down",
    "during",
    "each",
    "few",
    "for",
    "from",
    "further",
    "had",
    "has",
    "have",
    "having",
    "he",
    "her",
    "here",
    "hers",
    "herself",
    "him",
    "himself",
    "his",
    "how",
    "i",
    "if",
    "in",
    "into",
    "is",
    "isn",
    "it",
    "its",
    "itself",
    "just",
    "ll",
    "m",
    "may",
    "me",
    "might",
    "mine",
    "more",
    "most",
    "must",
    "my",
    "myself",
    "no",
    "nor",
    "not",
    "o",
    "of",
    "off",
    "on",
    "once",
    "only",
    "or",
    "other",
    "our",
    "ours",
    "ourselves",
    "out",
    "over",
    "own",
    "re",
    "s",
    "same",
    "shall",
    "she",
    "should",
    "so",
    "some",
    "such",
    "t",
    "than",
    "that",
    "the",
    "their",
    "theirs",
    "them",
    "themselves",
    "then",
    "there",
    "these",
    "they",
    "this",
    "those",
    "through",
    "to",
    "too",
    "under",
    "until",
    "up",
    "us",
    "ve",
    "very",
    "was",
    "wasn",
    "we",
    "were",
    "weren",
    "what",
    "when",
    "where",
    "which",
    "while",
    "who",
    "whom",
    "whose",
    "why",
    "will",
    "with",
    "won",
    "would",
    "yet",
    "you",
    "your",
    "yours",
    "yourself",
    "yourselves",
    "could",
    "themself",
    "upon",
    "within",
    "without",
];

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;
    use crate::{
        Judgement, read_judged,
        statistics::{Documents, Resampling, auroc},
    };

    #[test]
    fn shares_are_those_of_the_words() {
        let source = "The mayor of Oslo, Anna Berg, opened the library on 3 May. It has 12,000 books.";
        let found = copying(source, "Anna Berg opened the library in Bergen on 4 May.");
        // anna berg opened the library [in bergen] on [4] may
        assert_eq!(found.unigrams, Some(0.7));
        // Of eight: anna berg opened, berg opened the, opened the library.
        assert_eq!(found.trigrams, Some(0.375));
        // anna berg opened library [bergen 4]; "may" is a word of grammar too.
        assert_eq!(found.content_words, Some(4.0 / 6.0));
        // Berg [Bergen 4] May; Anna begins the sentence.
        assert_eq!(found.names_and_numbers, Some(0.5));
    }

    /// The same sums of whole numbers, divided.
    const GOLDEN: f64 = 1e-12;

    #[derive(Deserialize)]
    struct Golden {
        function_words: Vec<String>,
        cases: Vec<Case>,
        areas: HashMap<String, HashMap<String, Area>>,
    }

    #[derive(Deserialize)]
    struct Case {
        source: String,
        answer: String,
        #[serde(flatten)]
        shares: HashMap<String, Option<f64>>,
    }

    #[derive(Deserialize)]
    struct Area {
        area: f64,
        answers: usize,
    }

    fn golden() -> Golden {
        let path = softshard_e2e::root().join("tests/peers/golden/copying.json");
        serde_json::from_str(&fs_err::read_to_string(path).unwrap()).unwrap()
    }

    fn by_name(found: Copying) -> [(&'static str, Option<f64>); 4] {
        [
            ("unigrams", found.unigrams),
            ("trigrams", found.trigrams),
            ("content_words", found.content_words),
            ("names_and_numbers", found.names_and_numbers),
        ]
    }

    fn are_close(a: Option<f64>, b: Option<f64>) -> bool {
        match (a, b) {
            (Some(a), Some(b)) => (a - b).abs() <= GOLDEN,
            (a, b) => a.is_none() && b.is_none(),
        }
    }

    #[test]
    fn shares_are_those_of_scikit_learn() {
        let golden = golden();
        assert!(golden.function_words == FUNCTION_WORDS);
        for case in golden.cases {
            for (name, found) in by_name(copying(&case.source, &case.answer)) {
                let expected = case.shares[name];
                assert!(are_close(found, expected), "{name} of {:?}: {found:?}, {expected:?}", case.answer);
            }
        }
    }

    /// What copying says of faithfulness: docs/evaluation.md has these areas.
    #[test]
    fn areas_under_the_curve_are_those_of_scikit_learn() {
        let Some(data) = softshard_e2e::real_data() else { return };
        for (name, areas) in golden().areas {
            let path = data.join(format!("summarization/{name}.jsonl"));
            let mut values: HashMap<&str, (Vec<f64>, Vec<bool>)> = HashMap::new();
            for judged in read_judged(&path, None).unwrap() {
                let good = judged.judgement.is_some_and(Judgement::is_factual);
                for (kind, share) in by_name(copying(&judged.document, &judged.answer)) {
                    let (shares, all_good) = values.entry(kind).or_default();
                    shares.extend(share);
                    all_good.extend(share.map(|_| good));
                }
            }
            let few = Resampling { draws: 1, ..Resampling::default() };
            for (kind, expected) in areas {
                let (shares, good) = &values[kind.as_str()];
                assert_eq!(shares.len(), expected.answers, "{name} {kind}");
                let documents = Documents::of_single_rows(shares.len());
                let area = auroc(shares, good, &documents, &few).unwrap().value;
                assert!((area - expected.area).abs() <= GOLDEN, "{name} {kind}: {area}, {}", expected.area);
            }
        }
    }

    #[test]
    fn of_nothing_there_is_no_share() {
        assert_eq!(copying("some text", ""), Copying::default());
        assert_eq!(copying("some text", " .\n"), Copying::default());
        let found = copying("", "It was so.");
        assert_eq!((found.unigrams, found.trigrams), (Some(0.0), Some(0.0)));
        assert_eq!((found.content_words, found.names_and_numbers), (None, None));
    }
}
