//! Values of a row by the names of its columns.

use softshard_prepare::{Error, FileRow, Value};

use super::settings::Texts;

const HINT: &str = "a task is read with the columns that docs/tasks.md lists; `mapping` names others";

/// The value of a column, or one inside of it: `choices.text`.
///
/// # Errors
/// There is none.
pub(crate) fn value<'a>(row: &'a FileRow, path: &str) -> Result<&'a Value, Error> {
    let inside = || path.split('.').try_fold(&row.columns, |value, name| value.get(name));
    match row.columns.get(path).or_else(inside) {
        Some(value) if *value != Value::Null => Ok(value),
        _ => {
            let Value::Object(columns) = &row.columns else { unreachable!("a row is an object") };
            let with_value = columns.iter().filter(|(_, value)| *value != Value::Null);
            let names: Vec<&str> = with_value.map(|(name, _)| name.as_str()).collect();
            let problem = format!("expected a column `{path}` with a value, found {}", names.join(", "));
            Err(row.error(problem, HINT))
        }
    }
}

/// Whether there is such a column with a value.
pub(crate) fn has(row: &FileRow, name: &str) -> bool {
    row.columns.get(name).is_some_and(|value| *value != Value::Null)
}

/// The text of a column.
///
/// # Errors
/// There is none.
pub(crate) fn text<'a>(row: &'a FileRow, path: &str) -> Result<&'a str, Error> {
    let value = value(row, path)?;
    value.as_text().ok_or_else(|| other(row, path, "a text", value))
}

/// The texts that a column lists.
///
/// # Errors
/// It lists none.
pub(crate) fn list(row: &FileRow, path: &str) -> Result<Vec<String>, Error> {
    let value = value(row, path)?;
    let Value::List(items) = value else { return Err(other(row, path, "a list of texts", value)) };
    let text = |item: &Value| {
        Ok(item.as_text().ok_or_else(|| other(row, path, "texts in its list", item))?.to_owned())
    };
    items.iter().map(text).collect()
}

/// A whole number, which may be written as a text.
///
/// # Errors
/// It is none, or not below `end`.
pub(crate) fn index(row: &FileRow, path: &str, end: usize) -> Result<usize, Error> {
    let value = value(row, path)?;
    let number = match value {
        Value::Int(number) => usize::try_from(*number).ok(),
        Value::Bool(one) => Some(usize::from(*one)),
        Value::Text(text) => text.trim().parse().ok(),
        _ => None,
    };
    let expected = || other(row, path, &format!("the number of one of {end} choices, from 0"), value);
    number.filter(|number| *number < end).ok_or_else(expected)
}

/// Texts of a column, or with columns.
///
/// # Errors
/// As [`list`] and [`filled`].
pub(crate) fn texts(row: &FileRow, texts: &Texts) -> Result<Vec<String>, Error> {
    match texts {
        Texts::Column(path) => list(row, path),
        Texts::Each(templates) => templates.iter().map(|template| filled(row, template)).collect(),
    }
}

/// A text with the columns that stand in braces there.
///
/// # Errors
/// A column is missing or no text or number; a brace has no other.
pub(crate) fn filled(row: &FileRow, template: &str) -> Result<String, Error> {
    let mut text = String::new();
    let mut rest = template;
    while let Some(at) = rest.find(['{', '}']) {
        text.push_str(&rest[..at]);
        let (brace, behind) = rest[at..].split_at(1);
        if let Some(behind) = behind.strip_prefix(brace) {
            text.push_str(brace);
            rest = behind;
            continue;
        }
        let Some((name, behind)) = behind.split_once('}').filter(|_| brace == "{") else {
            let problem = format!("expected columns in braces, found a single `{brace}` in {template:?}");
            return Err(row.error(problem, "`{{` and `}}` are braces"));
        };
        match value(row, name)? {
            Value::Text(value) => text.push_str(value),
            Value::Int(value) => text.push_str(&value.to_string()),
            Value::Float(value) => text.push_str(&value.to_string()),
            value => return Err(other(row, name, "a text or a number", value)),
        }
        rest = behind;
    }
    text.push_str(rest);
    Ok(text)
}

/// A column holds something else than is read there.
pub(crate) fn other(row: &FileRow, path: &str, expected: &str, found: &Value) -> Error {
    let found = match found {
        Value::Text(text) => format!("{text:?}"),
        Value::Int(number) => number.to_string(),
        found => found.kind().to_owned(),
    };
    row.error(format!("column `{path}`: expected {expected}, found {found}"), HINT)
}
