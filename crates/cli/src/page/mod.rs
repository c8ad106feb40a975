//! Pages for people: one file each without scripts, which needs nothing beside it, dark where the reader likes it dark.

pub(crate) mod plot;

use std::{
    fmt::Display,
    path::{Component, Path},
};

use softshard_labels::visible;

const STYLE: &str = include_str!("style.css");
/// Folders of a path that name what lies there: `demo/labels/train`.
const NAMED_BY: usize = 3;

/// A page, all of its parts HTML: `kind` says what it is of, `name` of which, and `sentence` what that is.
pub(crate) fn of(kind: &str, name: &str, sentence: &str, body: &str, foot: &str) -> String {
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n\
         <title>{name}: {}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n\
         <header>\n<p>{kind}</p>\n<h1>{name}</h1>\n<p>{sentence}</p>\n</header>\n{body}\
         <footer>Made by softshard {}. {foot}</footer>\n</body>\n</html>\n",
        kind.to_lowercase(),
        env!("CARGO_PKG_VERSION")
    )
}

/// A plot under its caption.
pub(crate) fn figure(class: &str, title: &str, caption: &str, svg: &str) -> String {
    format!("<figure{class}>\n<figcaption><b>{title}.</b> {caption}</figcaption>\n{svg}</figure>\n")
}

/// The last folders of a path.
pub(crate) fn name_of(dir: &Path) -> String {
    let dir = fs_err::canonicalize(dir).unwrap_or_else(|_| dir.to_owned());
    let folders = dir.components().filter_map(|component| match component {
        Component::Normal(name) => Some(name.to_string_lossy().into_owned()),
        _ => None,
    });
    let folders: Vec<String> = folders.collect();
    folders[folders.len().saturating_sub(NAMED_BY)..].join("/")
}

/// `text` with what HTML would take for its own replaced, and what steers whoever shows it made visible.
pub(crate) fn escape(text: impl Display) -> String {
    let mut escaped = String::new();
    for letter in visible(&text.to_string()).chars() {
        match letter {
            '&' => escaped += "&amp;",
            '<' => escaped += "&lt;",
            '>' => escaped += "&gt;",
            '"' => escaped += "&quot;",
            letter => escaped.push(letter),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strangers_text_stays_text() {
        assert_eq!(escape("<script>\"&\u{202e}"), "&lt;script&gt;&quot;&amp;\\u{202e}");
    }
}
