//! What a `config.json` says, key by key.

use std::fmt::Display;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::Error;

/// Larger than any dimension of an encoder: products of two still fit 64 bits.
const MAX_SIZE: usize = 1 << 27;
/// More layers than any encoder has.
pub(crate) const MAX_LAYERS: usize = 4096;
/// More classes than any scorer has.
const MAX_CLASSES: usize = 1 << 10;

/// A model folder's configuration.
pub(crate) struct Config {
    file: PathBuf,
    keys: Map<String, Value>,
}

impl Config {
    /// # Errors
    /// There is no configuration, or it is no JSON object.
    pub(crate) fn read(folder: &Path) -> Result<Self, Error> {
        Ok(Self { file: folder.join("config.json"), keys: softshard_model::read_config(folder)? })
    }

    fn place(&self, key: &str) -> String {
        format!("`{}`: `{key}`", self.file.display())
    }

    pub(crate) fn bad(&self, key: &str, expected: impl Display, found: impl Display) -> Error {
        Error::bad(self.place(key), expected, found)
    }

    /// A value; null is none.
    pub(crate) fn value(&self, key: &str) -> Option<&Value> {
        self.keys.get(key).filter(|value| !value.is_null())
    }

    /// The class in `transformers` that the weights were saved from.
    pub(crate) fn architecture(&self) -> Result<&str, Error> {
        let first = self.value("architectures").and_then(|list| list.get(0)).and_then(Value::as_str);
        first.ok_or_else(|| {
            let found = self.value("architectures").map_or("nothing".to_owned(), Value::to_string);
            self.bad("architectures", "the name of a class", found)
        })
    }

    /// # Errors
    /// There is none, or it is no number from 1 that a model can have.
    pub(crate) fn size(&self, key: &str) -> Result<usize, Error> {
        self.optional_size(key)?.ok_or_else(|| self.bad(key, "a whole number", "nothing"))
    }

    /// # Errors
    /// It is no number from 1 that a model can have.
    pub(crate) fn optional_size(&self, key: &str) -> Result<Option<usize>, Error> {
        let Some(value) = self.value(key) else { return Ok(None) };
        let size = value.as_u64().and_then(|size| usize::try_from(size).ok());
        let most = if key.contains("layers") { MAX_LAYERS } else { MAX_SIZE };
        match size.filter(|size| (1..=most).contains(size)) {
            Some(size) => Ok(Some(size)),
            None => Err(self.bad(key, format!("a whole number from 1 to {most}"), value)),
        }
    }

    /// A number above 0, or what it is where the file does not say it.
    ///
    /// # Errors
    /// It is none.
    pub(crate) fn number(&self, key: &str, default: f64) -> Result<f64, Error> {
        let Some(value) = self.value(key) else { return Ok(default) };
        let number = value.as_f64().filter(|number| number.is_finite() && *number > 0.0);
        number.ok_or_else(|| self.bad(key, "a number above 0", value))
    }

    /// Refuses a setting with another value than the one that is computed.
    ///
    /// # Errors
    /// The file has another one.
    pub(crate) fn only(&self, key: &str, supported: &Value) -> Result<(), Error> {
        match self.value(key) {
            Some(found) if found != supported => Err(self.bad(key, supported, found)),
            _ => Ok(()),
        }
    }

    /// The number of classes that a classifier tells apart.
    ///
    /// # Errors
    /// The file has a number that no scorer has.
    pub(crate) fn classes(&self) -> Result<usize, Error> {
        let named = self.value("id2label").and_then(Value::as_object).map(Map::len);
        let count = match named {
            Some(count) => count,
            None => self.optional_size("num_labels")?.unwrap_or(2),
        };
        if (1..=MAX_CLASSES).contains(&count) {
            return Ok(count);
        }
        Err(self.bad("id2label", format!("1 to {MAX_CLASSES} classes"), count))
    }

    /// The index of the class that has this name, in any case.
    pub(crate) fn class(&self, name: &str) -> Option<usize> {
        let names = self.value("id2label")?.as_object()?;
        let is_it = |label: &Value| label.as_str().is_some_and(|label| label.eq_ignore_ascii_case(name));
        names.iter().find(|(_, label)| is_it(label)).and_then(|(index, _)| index.parse().ok())
    }

    /// Refuses a width that its heads do not divide.
    ///
    /// # Errors
    /// They do not.
    pub(crate) fn heads(&self, key: &str, width: usize) -> Result<usize, Error> {
        let heads = self.size(key)?;
        if width.is_multiple_of(heads) {
            return Ok(heads);
        }
        Err(self.bad(key, format!("a number that divides the width {width}"), heads))
    }
}
