//! `s3://bucket/prefix`, taken apart.

use std::fmt;

use object_store::path::Path;

/// A place of an object store, as a person writes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    pub(crate) bucket: String,
    /// Without a `/` at either end; empty for the whole bucket.
    pub(crate) prefix: String,
}

impl Place {
    /// Whether a text of a recipe names an object store, not a path.
    pub fn is_one(text: &str) -> bool {
        text.contains("://")
    }

    /// Takes `s3://bucket/prefix` apart.
    ///
    /// # Errors
    /// What was expected and what was found.
    pub fn parse(text: &str) -> Result<Self, String> {
        let Some(rest) = text.strip_prefix("s3://") else {
            return Err(format!("expected a path or `s3://bucket/prefix`, found `{text}`"));
        };
        let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        let is_bucket = |byte: u8| byte.is_ascii_alphanumeric() || b".-_".contains(&byte);
        if bucket.is_empty() || !bucket.bytes().all(is_bucket) {
            return Err(format!("expected the name of a bucket after `s3://`, found `{text}`"));
        }
        let prefix = prefix.trim_end_matches('/');
        // The library takes a `/` in front away.
        if Path::parse(prefix).is_err() || prefix.starts_with('/') || prefix.contains(['?', '#']) {
            let expected = "expected a prefix of plain names with one `/` between them";
            return Err(format!("{expected}, found `{text}`"));
        }
        // The library writes other letters as %XX into keys, and shows them so.
        let encoded = |letter: &char| Path::from(letter.to_string()).as_ref() != letter.to_string();
        if Path::from(prefix).as_ref() != prefix {
            let found: String = prefix.chars().filter(|letter| *letter != '/').filter(encoded).collect();
            return Err(format!("expected a prefix without `{found}`, found `{text}`"));
        }
        Ok(Self { bucket: bucket.to_owned(), prefix: prefix.to_owned() })
    }

    /// An object below this place.
    pub(crate) fn path(&self, key: &str) -> Path {
        let parts = self.prefix.split('/').chain(key.split('/'));
        Path::from_iter(parts.filter(|part| !part.is_empty()))
    }
}

impl fmt::Display for Place {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { bucket, prefix } = self;
        if prefix.is_empty() { write!(to, "s3://{bucket}") } else { write!(to, "s3://{bucket}/{prefix}") }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_a_bucket_and_a_prefix() {
        for (text, shown, key) in [
            (
                "s3://labels/llama-70b/run 1/",
                "s3://labels/llama-70b/run 1",
                "llama-70b/run 1/train/plan.json",
            ),
            ("s3://labels", "s3://labels", "train/plan.json"),
            ("s3://labels/", "s3://labels", "train/plan.json"),
        ] {
            let place = Place::parse(text).unwrap();
            assert_eq!(place.to_string(), shown);
            assert_eq!(place.path("train/plan.json").to_string(), key);
        }
        for bad in
            ["gs://labels/a", "s3:///a", "s3://", "s3://la bels", "s3://a//b", "s3://a/../b", "s3://a/b?c"]
        {
            assert!(Place::is_one(bad));
            assert!(Place::parse(bad).is_err(), "{bad}");
        }
        for letter in "~%[]{}^*|<>\"`ä\\".chars() {
            let error = Place::parse(&format!("s3://labels/run{letter}1")).unwrap_err();
            assert!(error.contains(&format!("without `{letter}`")), "{error}");
        }
        assert!(!Place::is_one("run/s3/labels"));
    }
}
