//! Where sentences of English text end.

/// Words with a full stop that do not end a sentence.
const ABBREVIATIONS: [&str; 27] = [
    "mr", "mrs", "ms", "dr", "prof", "st", "sr", "jr", "gen", "sen", "rep", "gov", "lt", "col", "sgt",
    "capt", "rev", "hon", "vs", "fig", "inc", "ltd", "co", "corp", "e.g", "i.e", "etc",
];

/// The sentences of a text, without the white space around them. A line ends one; so does `.`, `!` or `?`, with quotes and brackets
/// behind it, before white space and something else than a small letter. Initials and usual abbreviations do not.
pub fn sentences(text: &str) -> Vec<&str> {
    text.lines().flat_map(of_line).collect()
}

fn of_line(line: &str) -> Vec<&str> {
    let (mut found, mut start) = (Vec::new(), 0);
    let mut ends: Vec<usize> = line
        .char_indices()
        .filter(|(index, c)| {
            c.is_whitespace() && ends_before(&line[start_of(line, *index)..*index], &line[*index..])
        })
        .map(|(index, _)| index)
        .collect();
    ends.push(line.len());
    for end in ends {
        let sentence = line[start..end].trim();
        if !sentence.is_empty() {
            found.push(sentence);
        }
        start = end;
    }
    found
}

/// Where the word begins that ends before `index`.
fn start_of(line: &str, index: usize) -> usize {
    let before = line[..index].char_indices().rev().find(|(_, c)| c.is_whitespace());
    before.map_or(0, |(at, c)| at + c.len_utf8())
}

/// Whether a sentence ends with `word`, and another begins in `rest`.
fn ends_before(word: &str, rest: &str) -> bool {
    let bare = word.trim_end_matches(['"', '\'', ')', ']', '’', '”']);
    let next = rest.trim_start().chars().next();
    if !bare.ends_with(['.', '!', '?']) || next.is_some_and(char::is_lowercase) {
        return false;
    }
    let Some(stem) = bare.strip_suffix('.') else { return true };
    let stem = stem.trim_start_matches(['"', '\'', '(', '[', '‘', '“']);
    let is_initial = stem
        .rsplit('.')
        .next()
        .is_some_and(|last| last.chars().count() == 1 && last.chars().all(char::is_uppercase));
    // "No. 5" is a number, "No." an answer.
    let is_number = stem.eq_ignore_ascii_case("no") && next.is_some_and(|c| c.is_ascii_digit());
    !is_initial && !is_number && !ABBREVIATIONS.contains(&stem.to_lowercase().as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sentences_end_where_they_end() {
        let cases: [(&str, &[&str]); 9] = [
            ("", &[]),
            (" \n\n ", &[]),
            ("One. Two!  Three? Four", &["One.", "Two!", "Three?", "Four"]),
            ("Line one\nline two.\n", &["Line one", "line two."]),
            ("He said \"No.\" She left.", &["He said \"No.\"", "She left."]),
            (
                "Mr. J. Smith of St. Ives paid 3.5 m. to the U.S. Army.",
                &["Mr. J. Smith of St. Ives paid 3.5 m. to the U.S. Army."],
            ),
            ("It was late . Nobody came . ", &["It was late .", "Nobody came ."]),
            ("They live at No. 10. No. They left.", &["They live at No. 10.", "No.", "They left."]),
            // A small letter goes on with the sentence.
            ("Prices rose 3 %. 12 firms fell. été", &["Prices rose 3 %.", "12 firms fell. été"]),
        ];
        for (text, expected) in cases {
            assert_eq!(sentences(text), expected, "{text:?}");
        }
    }
}
