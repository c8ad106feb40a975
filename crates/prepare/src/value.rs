//! Values of a row as JSON gives them, with the order of an object's keys: what a chat template sees.

use std::collections::HashMap;
use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde::ser::{Serialize, SerializeMap, Serializer};

/// A JSON value. Objects keep the order of their keys, as Python's dictionaries do: templates print them.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Value {
    /// `null`, Python's `None`.
    #[default]
    Null,
    /// `true` or `false`.
    Bool(bool),
    /// A number without a fraction or an exponent.
    Int(i128),
    /// Any other number.
    Float(f64),
    /// Text.
    Text(String),
    /// An array.
    List(Vec<Value>),
    /// An object. Of keys that come twice the last value counts, at the place of the first, as in Python.
    Object(Vec<(String, Value)>),
}

impl Value {
    /// The text, if it is one.
    pub fn as_text(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            _ => None,
        }
    }

    /// The value of a key of an object.
    pub fn get(&self, key: &str) -> Option<&Self> {
        match self {
            Self::Object(fields) => fields.iter().find(|(name, _)| name == key).map(|(_, value)| value),
            _ => None,
        }
    }

    /// What kind of value it is, for messages to people.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Null => "null",
            Self::Bool(_) => "a boolean",
            Self::Int(_) | Self::Float(_) => "a number",
            Self::Text(_) => "a text",
            Self::List(_) => "a list",
            Self::Object(_) => "an object",
        }
    }
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(AnyValue)
    }
}

/// Up to this many keys, looking at all of them is faster than hashing.
const SMALL_OBJECT: usize = 16;

struct AnyValue;

impl<'de> Visitor<'de> for AnyValue {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_none<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        Value::deserialize(deserializer)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Int(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Int(value.into()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(Value::Float(value))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::Text(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::Text(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element()? {
            list.push(item);
        }
        Ok(Value::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut fields: Vec<(String, Value)> = Vec::new();
        // Of many keys the places are kept: they may come from anyone.
        let mut places: Option<HashMap<String, usize>> = None;
        while let Some((key, value)) = entries.next_entry::<String, Value>()? {
            let place = match &mut places {
                Some(places) => places.get(&key).copied(),
                None => fields.iter().position(|(name, _)| *name == key),
            };
            match place {
                Some(place) => fields[place].1 = value,
                None => {
                    if let Some(places) = &mut places {
                        places.insert(key.clone(), fields.len());
                    }
                    fields.push((key, value));
                }
            }
            if fields.len() == SMALL_OBJECT && places.is_none() {
                let named = fields.iter().enumerate().map(|(place, (name, _))| (name.clone(), place));
                places = Some(named.collect());
            }
        }
        Ok(Value::Object(fields))
    }
}

impl Serialize for Value {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Null => serializer.serialize_unit(),
            Self::Bool(value) => serializer.serialize_bool(*value),
            Self::Int(value) => serializer.serialize_i128(*value),
            Self::Float(value) => serializer.serialize_f64(*value),
            Self::Text(value) => serializer.serialize_str(value),
            Self::List(items) => serializer.collect_seq(items),
            Self::Object(fields) => {
                let mut map = serializer.serialize_map(Some(fields.len()))?;
                fields.iter().try_for_each(|(key, value)| map.serialize_entry(key, value))?;
                map.end()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_keeps_its_order_and_its_kinds_of_numbers() {
        let text = r#"{"b":1,"a":[1.0,-7,1e3,null,true,"x"],"c":{}}"#;
        let value: Value = serde_json::from_str(text).unwrap();
        let expected = r#"{"b":1,"a":[1.0,-7,1000.0,null,true,"x"],"c":{}}"#;
        assert_eq!(serde_json::to_string(&value).unwrap(), expected);
    }

    #[test]
    fn of_keys_that_come_twice_the_last_value_counts() {
        let value: Value = serde_json::from_str(r#"{"a":1,"b":2,"a":3}"#).unwrap();
        assert_eq!(serde_json::to_string(&value).unwrap(), r#"{"a":3,"b":2}"#);
        let twice: Vec<String> = (0..40).chain(0..40).map(|key| format!("\"{key}\":{key}")).collect();
        let value: Value = serde_json::from_str(&format!("{{{}}}", twice.join(","))).unwrap();
        let Value::Object(fields) = value else { panic!("an object") };
        let found: Vec<String> = fields.into_iter().map(|(name, _)| name).collect();
        assert_eq!(found, (0..40).map(|key| key.to_string()).collect::<Vec<_>>());
    }
}
