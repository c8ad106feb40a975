//! Sequence keys: labels are found by what a sequence is, never by where it stands.

use std::fmt;
use std::str::FromStr;

use crate::Error;

/// BLAKE3-128 over the token ids of a whole sequence, each as a little-endian `u32`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SequenceKey(pub [u8; 16]);

impl SequenceKey {
    /// The key of a sequence of token ids.
    pub fn of(input_ids: &[i32]) -> Self {
        let mut hasher = blake3::Hasher::new();
        let mut bytes = [[0; 4]; 1024];
        for ids in input_ids.chunks(bytes.len()) {
            bytes.iter_mut().zip(ids).for_each(|(bytes, id)| *bytes = id.to_le_bytes());
            hasher.update(bytes[..ids.len()].as_flattened());
        }
        let mut key = [0; 16];
        hasher.finalize_xof().fill(&mut key);
        Self(key)
    }
}

impl fmt::Display for SequenceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for SequenceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SequenceKey({self})")
    }
}

impl FromStr for SequenceKey {
    type Err = Error;

    /// Reads 32 hexadecimal digits.
    fn from_str(text: &str) -> Result<Self, Error> {
        let bad = || Error::bad("sequence key", "32 hexadecimal digits", format!("`{text}`"));
        if text.len() != 32 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(bad());
        }
        let mut key = [0; 16];
        for (byte, start) in key.iter_mut().zip((0..).step_by(2)) {
            *byte = u8::from_str_radix(&text[start..start + 2], 16).map_err(|_| bad())?;
        }
        Ok(Self(key))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_the_start_of_the_hash_of_the_little_endian_ids() {
        let bytes = [1, 0, 0, 0, 0, 1, 0, 0];
        assert_eq!(SequenceKey::of(&[1, 256]).0[..], blake3::hash(&bytes).as_bytes()[..16]);
    }

    #[test]
    fn text_goes_there_and_back() {
        let key = SequenceKey::of(&[1, 2, 3]);
        assert_eq!(key.to_string().parse::<SequenceKey>().unwrap(), key);
        let message = "xyz".parse::<SequenceKey>().unwrap_err().to_string();
        assert_eq!(message, "sequence key: expected 32 hexadecimal digits, found `xyz`");
    }
}
