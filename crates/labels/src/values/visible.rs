//! Text of strangers, as it may be shown: datasets, templates and file names are made by others, and a terminal obeys what they hold.

use std::borrow::Cow;
use std::fmt::Write;

/// Lines of text with what a terminal would obey made visible: an escape character becomes `\x1b`. New lines and tabs stay.
pub fn visible(text: &str) -> Cow<'_, str> {
    shown(text, |letter| matches!(letter, '\n' | '\t'))
}

/// The same for one line, such as a cell of a table: new lines and tabs become `\n` and `\t`.
pub fn visible_line(text: &str) -> Cow<'_, str> {
    shown(text, |_| false)
}

fn shown(text: &str, stays: impl Fn(char) -> bool) -> Cow<'_, str> {
    let hides = |letter: char| steers(letter) && !stays(letter);
    if !text.contains(hides) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len() + 8);
    for letter in text.chars() {
        match letter {
            letter if !hides(letter) => shown.push(letter),
            '\n' => shown += "\\n",
            '\r' => shown += "\\r",
            '\t' => shown += "\\t",
            letter if u32::from(letter) < 0x100 => {
                write!(shown, "\\x{:02x}", u32::from(letter)).expect("a String takes any text");
            }
            letter => shown.extend(letter.escape_unicode()),
        }
    }
    shown.into()
}

/// Whether a terminal does something else than to show it: control characters, line separators, and those that turn the
/// direction of a line.
fn steers(letter: char) -> bool {
    letter.is_control()
        || matches!(letter, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_steers_a_terminal_is_shown() {
        let hostile = "a\u{1b}[31m\r\u{7f}\u{9b}2J\u{202e}b\n\tä";
        assert_eq!(visible(hostile), "a\\x1b[31m\\r\\x7f\\x9b2J\\u{202e}b\n\tä");
        assert_eq!(visible_line(hostile), "a\\x1b[31m\\r\\x7f\\x9b2J\\u{202e}b\\n\\tä");
        assert!(matches!(visible("plain – text\n"), Cow::Borrowed(_)));
    }
}
