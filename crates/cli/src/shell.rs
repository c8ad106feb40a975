//! Words of commands that a person types: a path with a space or a quote in it stays one word.

use std::{fmt::Write as _, os::unix::ffi::OsStrExt, path::Path};

use softshard_labels::visible_line;

/// A word as a shell reads it: plain ones stay as they are.
pub(crate) fn word(text: &str) -> String {
    let is_plain = |letter: char| letter.is_ascii_alphanumeric() || "/._-+=:,@%".contains(letter);
    if !text.is_empty() && text.chars().all(is_plain) {
        return text.to_owned();
    }
    if visible_line(text) == text {
        return format!("'{}'", text.replace('\'', r"'\''"));
    }
    bytes(text.as_bytes())
}

/// A path as a word.
pub(crate) fn path(path: &Path) -> String {
    path.to_str().map_or_else(|| bytes(path.as_os_str().as_bytes()), word)
}

/// What no terminal shows, as bash, zsh and ksh read it.
fn bytes(bytes: &[u8]) -> String {
    let mut word = String::from("$'");
    for &byte in bytes {
        match byte {
            b'\'' | b'\\' => word.extend(['\\', char::from(byte)]),
            b' '..=b'~' => word.push(char::from(byte)),
            byte => write!(word, "\\x{byte:02x}").expect("a String takes any text"),
        }
    }
    word + "'"
}

#[cfg(test)]
mod tests {
    use std::{ffi::OsStr, process::Command};

    use super::*;

    #[test]
    fn a_shell_reads_back_what_was_meant() {
        for text in [
            "/a/b-c_d.toml",
            "a b",
            "it's",
            "",
            "~",
            "$HOME",
            "`id`",
            "a;b&c|d",
            "ä",
            "a\nb\u{1b}[31m'\\",
            "*?[",
        ] {
            let script = format!("printf %s {}", word(text));
            let said = Command::new("bash").args(["-c", &script]).output().expect("bash runs");
            assert_eq!(String::from_utf8_lossy(&said.stdout), text, "{script}");
            assert_eq!(visible_line(&script), script);
        }
        assert_eq!(word("/a/b.toml"), "/a/b.toml");
        assert_eq!(word("/a b/it's"), r"'/a b/it'\''s'");
        assert_eq!(path(Path::new(OsStr::from_bytes(b"/a\xff"))), r"$'/a\xff'");
    }
}
