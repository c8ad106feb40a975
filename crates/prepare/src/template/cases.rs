//! Methods of Python's `str` that take no arguments: upper and lower case, and what a text consists of.

use super::lexer::is_space;
use super::limits::{Outcome, refused};
use super::value::{Str, Val};

fn text<'t>(text: impl Into<std::rc::Rc<str>>) -> Outcome<Val<'t>> {
    Ok(Val::text(text))
}

/// Methods that take no arguments.
pub(super) fn without_arguments<'t>(of: &Str<'t>, name: &str) -> Outcome<Val<'t>> {
    let is = |answer: bool| Ok(Val::Bool(answer));
    let some = !of.is_empty();
    match name {
        "upper" => text(of.to_uppercase()),
        "lower" => text(of.to_lowercase()),
        "capitalize" => text(capitalized(of)),
        "title" => text(titled(of)),
        "isspace" => is(some && of.chars().all(is_space)),
        "isascii" => is(of.is_ascii()),
        "islower" => is(is_lower(of)),
        "isupper" => is(is_upper(of)),
        "isprintable" => is(of.chars().all(super::printing::is_printable)),
        "casefold" if of.is_ascii() => text(of.to_ascii_lowercase()),
        "isalpha" if of.is_ascii() => is(some && of.bytes().all(|byte| byte.is_ascii_alphabetic())),
        "isalnum" if of.is_ascii() => is(some && of.bytes().all(|byte| byte.is_ascii_alphanumeric())),
        "isdigit" | "isdecimal" | "isnumeric" if of.is_ascii() => {
            is(some && of.bytes().all(|byte| byte.is_ascii_digit()))
        }
        "istitle" if of.is_ascii() => {
            is(some && titled(of) == **of && of.bytes().any(|byte| byte.is_ascii_alphabetic()))
        }
        "swapcase" if of.is_ascii() => {
            let swap = |character: char| {
                if character.is_ascii_lowercase() {
                    character.to_ascii_uppercase()
                } else {
                    character.to_ascii_lowercase()
                }
            };
            text(of.chars().map(swap).collect::<String>())
        }
        _ => refused(format_args!("`{name}` of a text that is not ASCII")),
    }
}

/// `str.islower`.
pub(super) fn is_lower(text: &str) -> bool {
    text.chars().any(char::is_lowercase)
        && !text.chars().any(|character| character.is_uppercase() || is_digraph(character))
}

/// `str.isupper`.
pub(super) fn is_upper(text: &str) -> bool {
    text.chars().any(char::is_uppercase)
        && !text.chars().any(|character| character.is_lowercase() || is_digraph(character))
}

/// Title-case letters, which are neither.
fn is_digraph(character: char) -> bool {
    matches!(character, 'ǅ' | 'ǈ' | 'ǋ' | 'ǲ')
}

/// A character as it begins a title.
fn title_case(character: char) -> String {
    match character {
        'Ǆ' | 'ǅ' | 'ǆ' => "ǅ".into(),
        'Ǉ' | 'ǈ' | 'ǉ' => "ǈ".into(),
        'Ǌ' | 'ǋ' | 'ǌ' => "ǋ".into(),
        'Ǳ' | 'ǲ' | 'ǳ' => "ǲ".into(),
        _ => {
            let upper: String = character.to_uppercase().collect();
            let mut characters = upper.chars();
            let first: String = characters.by_ref().take(1).collect();
            first + &characters.as_str().to_lowercase()
        }
    }
}

/// `str.capitalize`.
pub(super) fn capitalized(text: &str) -> String {
    let mut characters = text.chars();
    characters
        .next()
        .map_or_else(String::new, |first| title_case(first) + &characters.as_str().to_lowercase())
}

/// `str.title`.
fn titled(text: &str) -> String {
    let mut result = String::with_capacity(text.len());
    let mut inside = false;
    for character in text.chars() {
        if inside {
            result.extend(character.to_lowercase());
        } else {
            result.push_str(&title_case(character));
        }
        inside = character.is_lowercase() || character.is_uppercase() || is_digraph(character);
    }
    result
}
