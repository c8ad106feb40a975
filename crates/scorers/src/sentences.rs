//! Sentences of a text by a plain rule.
//!
//! The scorers' own code splits with NLTK's Punkt, a trained model. Here a sentence ends at `.`, `!` or `?`, with the quotes and
//! brackets that close behind it, before white space, unless the period belongs to an abbreviation of a short list or to a single
//! letter, or, where a lower-case letter follows, to a word with periods inside (`U.S.`) or an ellipsis.

/// Words with a period behind which no sentence ends, in lower case.
const TITLES: [&str; 31] = [
    "mr", "mrs", "ms", "dr", "prof", "rev", "hon", "st", "lt", "col", "gen", "sgt", "capt", "cmdr", "maj",
    "gov", "sen", "pres", "supt", "insp", "messrs", "vs", "approx", "dept", "univ", "jan", "feb", "aug",
    "sept", "oct", "nov",
];
/// Words with a period behind which a sentence may end: before a capital it does.
const ENDINGS: [&str; 9] = ["etc", "inc", "ltd", "co", "corp", "bros", "jr", "sr", "al"];
/// Words whose period belongs to a number behind them.
const BEFORE_NUMBERS: [&str; 6] = ["no", "nos", "fig", "vol", "p", "pp"];

/// What may close behind the end of a sentence.
const CLOSING: [char; 8] = ['"', '\'', ')', ']', '}', '\u{201d}', '\u{2019}', '\u{bb}'];

/// The sentences of a text, without white space around them; none where there is nothing else.
pub fn sentences(text: &str) -> Vec<&str> {
    let mut found = Vec::new();
    let mut start = 0;
    let mut letters = text.char_indices().peekable();
    while let Some((place, letter)) = letters.next() {
        if !matches!(letter, '.' | '!' | '?' | '\u{2026}') {
            continue;
        }
        let mut end = place + letter.len_utf8();
        while let Some((place, letter)) = letters
            .next_if(|(_, letter)| CLOSING.contains(letter) || matches!(letter, '.' | '!' | '?' | '\u{2026}'))
        {
            end = place + letter.len_utf8();
        }
        let is_followed = letters.peek().is_none_or(|(_, letter)| letter.is_whitespace());
        if is_followed && ends(&text[start..end], text[end..].trim_start()) {
            found.push(text[start..end].trim());
            start = end;
        }
    }
    found.push(text[start..].trim());
    found.retain(|sentence| !sentence.is_empty());
    found
}

/// Whether a sentence ends here, and the period belongs to no word.
fn ends(before: &str, rest: &str) -> bool {
    let word = before.rsplit(char::is_whitespace).next().unwrap_or(before);
    let is_lower = rest.chars().next().is_some_and(char::is_lowercase);
    let bare = word.trim_end_matches(CLOSING);
    let Some(stem) = bare.strip_suffix('.') else {
        // Of an ellipsis the case behind it decides; `!` and `?` end a sentence, but for what is quoted within it.
        return !(is_lower && (bare.ends_with('\u{2026}') || bare.len() < word.len()));
    };
    if stem.ends_with('.') {
        return !is_lower;
    }
    let stem = stem.trim_start_matches(|letter: char| !letter.is_alphanumeric());
    if stem.contains('.') && stem.chars().any(char::is_alphabetic) {
        return !is_lower;
    }
    if rest.is_empty() {
        return true;
    }
    let word = stem.to_lowercase();
    let is = |list: &[&str]| list.contains(&word.as_str());
    if is(&BEFORE_NUMBERS) {
        return !rest.starts_with(|letter: char| letter.is_ascii_digit());
    }
    if is(&ENDINGS) {
        return !is_lower;
    }
    let is_initial = stem != "I" && stem.chars().count() == 1 && stem.chars().all(char::is_alphabetic);
    !is_initial && !is(&TITLES)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sentences_end_where_they_end() {
        let cases: [(&str, &[&str]); 13] = [
            ("One. Two!  Three?\nFour", &["One.", "Two!", "Three?", "Four"]),
            (
                "Mr. Smith met Dr. J. Jones in the U.S. army. He left.",
                &["Mr. Smith met Dr. J. Jones in the U.S. army.", "He left."],
            ),
            ("It cost 3.5 pounds. 12 were sold.", &["It cost 3.5 pounds.", "12 were sold."]),
            (
                "\"Is it?\" he asked. \"It is.\" She left.",
                &["\"Is it?\" he asked.", "\"It is.\"", "She left."],
            ),
            (
                "a draw with Burnley on Sunday . 'Just been there , ' he said .",
                &["a draw with Burnley on Sunday .", "'Just been there , ' he said ."],
            ),
            ("Well... maybe. Well... Maybe.", &["Well... maybe.", "Well...", "Maybe."]),
            ("ends with Inc.", &["ends with Inc."]),
            ("He and I. They went.", &["He and I.", "They went."]),
            (
                "She said no. No. 5 won. Apple Inc. fell. Then etc. It rose.",
                &["She said no.", "No. 5 won.", "Apple Inc. fell.", "Then etc.", "It rose."],
            ),
            ("lower case follows. as here.", &["lower case follows.", "as here."]),
            ("caf\u{e9}. \u{c9}t\u{e9}\u{2026} fini", &["caf\u{e9}.", "\u{c9}t\u{e9}\u{2026} fini"]),
            ("...", &["..."]),
            (" \n\t", &[]),
        ];
        for (text, expected) in cases {
            assert_eq!(sentences(text), expected, "{text:?}");
        }
    }

    #[test]
    fn nothing_is_lost() {
        let text = "A (b.) c? d!\" E... f. No. 5 is i.e. this one.)  Last";
        let squeezed = |text: &str| text.split_whitespace().collect::<String>();
        assert_eq!(squeezed(&sentences(text).concat()), squeezed(text));
    }
}
