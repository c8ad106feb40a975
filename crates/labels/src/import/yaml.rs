//! As much YAML as DistillKit's configuration is: names with scalars, lists of scalars, and lists of such names.

use serde_json::{Map, Value};

use crate::values::Error;

/// The document as JSON; what is more than that is refused by line.
pub(super) fn parse(text: &str) -> Result<Value, Error> {
    let mut document = Map::new();
    // The list that `- ` lines belong to, by its name.
    let mut open: Option<String> = None;
    for (index, line) in text.lines().enumerate() {
        let place = || format!("line {}", index + 1);
        let line = without_comment(line);
        let (indent, rest) = (line.len() - line.trim_start().len(), line.trim());
        if rest.is_empty() || rest == "---" {
            continue;
        }
        let item = rest.strip_prefix("- ");
        if indent == 0 && item.is_none() {
            let (name, value) = pair(rest).ok_or_else(|| bad(place(), rest))?;
            open = value.is_empty().then(|| name.to_owned());
            let value = if value.is_empty() { Value::Null } else { scalar_or_list(value) };
            if document.insert(name.to_owned(), value).is_some() {
                return Err(Error::bad(place(), "every name once", format_args!("`{name}` twice")));
            }
            continue;
        }
        let list = open.as_ref().and_then(|name| document.get_mut(name)).ok_or_else(|| bad(place(), rest))?;
        if list.is_null() {
            *list = Value::Array(Vec::new());
        }
        let list = list.as_array_mut().ok_or_else(|| bad(place(), rest))?;
        match (item, list.last_mut()) {
            (Some(item), _) => list.push(match pair(item) {
                Some((name, value)) => Value::Object(Map::from_iter([(name.to_owned(), scalar(value))])),
                None => scalar(item),
            }),
            (None, Some(Value::Object(fields))) => {
                let (name, value) = pair(rest).ok_or_else(|| bad(place(), rest))?;
                fields.insert(name.to_owned(), scalar(value));
            }
            _ => return Err(bad(place(), rest)),
        }
    }
    Ok(Value::Object(document))
}

fn bad(place: String, line: &str) -> Error {
    Error::bad(place, "`name: value`, or an item of a list", format_args!("`{line}`"))
}

/// A line up to a `#` that stands alone.
fn without_comment(line: &str) -> &str {
    if line.trim_start().starts_with('#') {
        return "";
    }
    line.split_once(" #").map_or(line, |(line, _)| line)
}

/// `name: value`, and `name:`.
fn pair(text: &str) -> Option<(&str, &str)> {
    let (name, value) = text.split_once(':')?;
    let is_name = name.chars().all(|letter| letter.is_ascii_alphanumeric() || letter == '_');
    (is_name && !name.is_empty() && (value.is_empty() || value.starts_with(' ')))
        .then(|| (name, value.trim()))
}

/// A value, or `[a, b]`.
fn scalar_or_list(text: &str) -> Value {
    let inner = text.strip_prefix('[').and_then(|text| text.strip_suffix(']'));
    let Some(inner) = inner else { return scalar(text) };
    let items = inner.split(',').map(str::trim).filter(|item| !item.is_empty());
    Value::Array(items.map(scalar).collect())
}

/// A number, a truth, nothing, or a text with or without quotes.
fn scalar(text: &str) -> Value {
    match text {
        "null" | "~" | "" => Value::Null,
        text => match serde_json::from_str(text) {
            Ok(value @ (Value::Number(_) | Value::Bool(_) | Value::String(_))) => value,
            _ => Value::String(text.trim_matches('\'').to_owned()),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn configurations_by_hand_and_by_program_are_read() {
        let text = "# by hand\nd: 1000 # ids\nexact_dtype: 'float16'\npolynomial_terms: [0, 1, \"sqrt\"]\n\
                    residual_bins:\n  - scale_dtype: float16\n    element_bits: 8\n  - scale_dtype: float32\nother: []\n\
                    terms:\n- 0\n- sqrt\ndelta_encoding: false\nlast: null\n";
        let expected = serde_json::json!({
            "d": 1000, "exact_dtype": "float16", "polynomial_terms": [0, 1, "sqrt"],
            "residual_bins": [{"scale_dtype": "float16", "element_bits": 8}, {"scale_dtype": "float32"}],
            "other": [], "terms": [0, "sqrt"], "delta_encoding": false, "last": null
        });
        assert_eq!(parse(text).unwrap(), expected);
        for (text, message) in [
            ("a: 1\na: 2", "line 2: expected every name once, found `a` twice"),
            ("a: 1\n  b: 2", "line 2: expected `name: value`, or an item of a list, found `b: 2`"),
            ("- 1", "line 1: expected `name: value`, or an item of a list, found `- 1`"),
        ] {
            assert_eq!(parse(text).unwrap_err().to_string(), message);
        }
    }
}
