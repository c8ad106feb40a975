//! Values of a JSON object by their keys, with errors that name key, expected and found.

use std::path::Path;

use serde_json::{Map, Value};

use crate::Error;
use crate::config::Activation;

/// The keys of a JSON object; `null` is the same as absent.
pub(super) struct Keys<'a> {
    pub(super) map: &'a Map<String, Value>,
    pub(super) place: &'a Path,
}

impl<'a> Keys<'a> {
    pub(super) fn new(map: &'a Map<String, Value>, place: &'a Path) -> Self {
        Self { map, place }
    }

    pub(super) fn get(&self, key: &str) -> Option<&'a Value> {
        self.map.get(key).filter(|value| !value.is_null())
    }

    pub(super) fn problem(&self, problem: impl Into<String>) -> Error {
        Error::config(self.place, problem)
    }

    pub(super) fn unsupported(&self, what: String, hint: &'static str) -> Error {
        Error::Unsupported { file: self.place.to_owned(), what, hint }
    }

    pub(super) fn optional_size(&self, key: &str) -> Result<Option<usize>, Error> {
        let Some(value) = self.get(key) else { return Ok(None) };
        match value.as_u64().and_then(|number| usize::try_from(number).ok()) {
            Some(number) => Ok(Some(number)),
            None => Err(self.problem(format!("`{key}`: expected a whole number, found {value}"))),
        }
    }

    pub(super) fn size_or(&self, key: &str, default: usize) -> Result<usize, Error> {
        Ok(self.optional_size(key)?.unwrap_or(default))
    }

    pub(super) fn size(&self, key: &str) -> Result<usize, Error> {
        self.optional_size(key)?
            .ok_or_else(|| self.problem(format!("`{key}`: expected a whole number, found nothing")))
    }

    pub(super) fn required_number(&self, key: &str) -> Result<f64, Error> {
        match self.get(key) {
            Some(value) => value
                .as_f64()
                .ok_or_else(|| self.problem(format!("`{key}`: expected a number, found {value}"))),
            None => Err(self.problem(format!("`{key}`: expected a number, found nothing"))),
        }
    }

    pub(super) fn number(&self, key: &str, default: f64) -> Result<f64, Error> {
        if self.get(key).is_some() { self.required_number(key) } else { Ok(default) }
    }

    pub(super) fn numbers(&self, key: &str) -> Result<Vec<f64>, Error> {
        let list = self.get(key).and_then(Value::as_array);
        let numbers = list.and_then(|list| list.iter().map(Value::as_f64).collect());
        numbers.ok_or_else(|| {
            let found = self.get(key).map_or("nothing".to_owned(), Value::to_string);
            self.problem(format!("`{key}`: expected a list of numbers, found {found}"))
        })
    }

    pub(super) fn flag(&self, key: &str, default: bool) -> Result<bool, Error> {
        match self.get(key) {
            None => Ok(default),
            Some(Value::Bool(flag)) => Ok(*flag),
            Some(value) => Err(self.problem(format!("`{key}`: expected true or false, found {value}"))),
        }
    }

    pub(super) fn ids(&self, key: &str) -> Result<Vec<i32>, Error> {
        let values = match self.get(key) {
            None => return Ok(Vec::new()),
            Some(Value::Array(values)) => values.as_slice(),
            Some(value) => std::slice::from_ref(value),
        };
        let id = |value: &Value| value.as_i64().and_then(|id| i32::try_from(id).ok());
        values
            .iter()
            .map(|value| {
                id(value).ok_or_else(|| self.problem(format!("`{key}`: expected token ids, found {value}")))
            })
            .collect()
    }

    pub(super) fn activation(&self, key: &str, default: &str) -> Result<Activation, Error> {
        let found = match self.get(key) {
            None => default,
            Some(value) => value
                .as_str()
                .ok_or_else(|| self.problem(format!("`{key}`: expected a name, found {value}")))?,
        };
        match found {
            "silu" | "swish" => Ok(Activation::Silu),
            "gelu" => Ok(Activation::Gelu),
            "gelu_new" | "gelu_fast" | "gelu_pytorch_tanh" => Ok(Activation::GeluTanh),
            "relu" => Ok(Activation::Relu),
            other => Err(self.unsupported(
                format!("{key} \"{other}\""),
                "supported: silu, gelu, gelu_new, gelu_fast, gelu_pytorch_tanh, relu",
            )),
        }
    }
}
