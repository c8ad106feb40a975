//! The small JSON files: pretty-printed, deterministic, without time stamps, compared key by key.

use std::collections::BTreeMap;
use std::path::Path;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::error::{Error, quoted};

/// Pretty-printed JSON with a newline at its end.
pub(crate) fn to_bytes(value: &impl Serialize) -> Vec<u8> {
    let mut bytes =
        serde_json::to_vec_pretty(value).expect("our own structs have text keys and finite floats");
    bytes.push(b'\n');
    bytes
}

/// What every file of ours says of itself. Not a `Value` of the whole file: that can take 17 times its bytes.
#[derive(Deserialize)]
struct Head {
    format: Option<String>,
    version: Option<u64>,
}

/// Checks `format` and `version`, which is at most the newest, then parses the rest.
pub(crate) fn parse<T: DeserializeOwned>(
    path: &Path,
    bytes: &[u8],
    format: &str,
    newest: u32,
) -> Result<T, Error> {
    let bad = |error: serde_json::Error| Error::bad(quoted(path), format_args!("a {format} file"), error);
    let head: Head = serde_json::from_slice(bytes).map_err(bad)?;
    if head.format.as_deref() != Some(format) {
        let found = head.format.map(Value::from);
        return Err(Error::bad(quoted(path), format_args!("format \"{format}\""), show(found.as_ref())));
    }
    if !head.version.is_some_and(|version| (1..=newest.into()).contains(&version)) {
        let found = head.version.map(Value::from);
        let expected = if newest == 1 { "version 1".to_owned() } else { format!("version 1 to {newest}") };
        return Err(Error::bad(quoted(path), expected, show(found.as_ref())));
    }
    serde_json::from_slice(bytes).map_err(bad)
}

/// One line for each key whose value differs, by dotted path: `a.b: expected 1, found 2`.
///
/// # Panics
/// If a value cannot be JSON: a map with keys that are no text, or a float that is not finite.
pub fn differences<T: Serialize>(expected: &T, found: &T) -> Vec<String> {
    let line = |[key, expected, found]: [String; 3]| format!("{key}: expected {expected}, found {found}");
    changes(expected, found).into_iter().map(line).collect()
}

/// Dotted path and both values of each key that differs.
pub(crate) fn changes<T: Serialize>(expected: &T, found: &T) -> Vec<[String; 3]> {
    let flat = |value: &T| {
        let mut keys = BTreeMap::new();
        let value = serde_json::to_value(value).expect("our own structs have text keys and finite floats");
        flatten("", value, &mut keys);
        keys
    };
    let (expected, found) = (flat(expected), flat(found));
    let mut keys: Vec<&String> = expected.keys().chain(found.keys()).collect();
    keys.sort_unstable();
    keys.dedup();
    keys.into_iter()
        .filter(|key| expected.get(*key) != found.get(*key))
        .map(|key| [key.clone(), show(expected.get(key)), show(found.get(key))])
        .collect()
}

/// Objects become dotted keys; arrays stay one value.
fn flatten(prefix: &str, value: Value, keys: &mut BTreeMap<String, Value>) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                let key = if prefix.is_empty() { name } else { format!("{prefix}.{name}") };
                flatten(&key, value, keys);
            }
        }
        value => {
            keys.insert(prefix.to_owned(), value);
        }
    }
}

/// A value in a message; long ones are cut.
fn show(value: Option<&Value>) -> String {
    const SHOWN: usize = 100;
    let text = value.map_or_else(|| "nothing".to_owned(), Value::to_string);
    if text.chars().count() <= SHOWN { text } else { text.chars().take(SHOWN).chain(['…']).collect() }
}
