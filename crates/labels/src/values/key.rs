//! Sequence keys: labels are found by what a sequence is, never by where it stands.

use std::fmt;
use std::str::FromStr;

use super::error::Error;

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

    /// Where the draws of a position begin, in 0..1: 53 bits of BLAKE3 over the key, the seed (u64 LE) and the position
    /// (u32 LE). So draws depend neither on the batch nor on the shard.
    pub fn uniform(&self, seed: u64, position: i32) -> f64 {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&self.0).update(&seed.to_le_bytes()).update(&position.to_le_bytes());
        let mut bytes = [0; 8];
        hasher.finalize_xof().fill(&mut bytes);
        #[expect(clippy::cast_precision_loss, reason = "53 bits are exact")]
        let bits = (u64::from_le_bytes(bytes) >> 11) as f64;
        bits / (1_u64 << 53) as f64
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
    fn uniform_numbers_are_spread_over_0_to_1() {
        let key = SequenceKey::of(&[5, 6]);
        let numbers: Vec<f64> = (0..1000).map(|position| key.uniform(7, position)).collect();
        assert!(numbers.iter().all(|number| (0.0..1.0).contains(number)));
        let mean = numbers.iter().sum::<f64>() / 1000.0;
        assert!((mean - 0.5).abs() < 4.0 * 0.289 / 1000f64.sqrt(), "{mean}");
        assert_ne!(key.uniform(8, 0).to_bits(), key.uniform(7, 0).to_bits());
    }

    #[test]
    fn text_goes_there_and_back() {
        let key = SequenceKey::of(&[1, 2, 3]);
        assert_eq!(key.to_string().parse::<SequenceKey>().unwrap(), key);
        let message = "xyz".parse::<SequenceKey>().unwrap_err().to_string();
        assert_eq!(message, "sequence key: expected 32 hexadecimal digits, found `xyz`");
    }
}
