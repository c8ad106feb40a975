//! Captures of DistillKit (arcee-ai/DistillKit, read at commit a61c2e7): bit-packed ids, and log-probabilities of which
//! the first are stored and the others follow a fitted curve.
//!
//! Followed step by step, roundings included, is `decompress_monotonic_logprobs` of its
//! `compression/monotonic_logprobs.py`, and `unpack_from_bytes` of `compression/bitpack.py`.

use std::path::Path;

use half::{bf16, f16};
use serde::Deserialize;

use crate::values::{Error, quoted};

/// `compression_config.yaml` of a capture.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DistillKitConfig {
    /// Size of the teacher's vocabulary.
    pub d: u32,
    /// Entries per position.
    pub k: usize,
    /// How many of them are stored, not fitted.
    pub exact_k: usize,
    /// Type of these.
    #[serde(default)]
    pub exact_dtype: TermType,
    /// Terms of the fitted curve.
    #[serde(default)]
    pub polynomial_terms: Option<Vec<Term>>,
    /// Type of their coefficients.
    #[serde(default)]
    pub term_dtype: TermType,
    /// Corrections of the fitted values.
    pub residual_bins: Vec<ResidualBin>,
    /// Whether values are differences.
    #[serde(default = "yes")]
    pub delta_encoding: bool,
    /// How the writer rounded; nothing to a reader.
    #[serde(default)]
    pub error_diffusion: bool,
    /// Whether the curve runs over 0..1.
    #[serde(default)]
    pub normalize_t: bool,
}

/// A number type of DistillKit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TermType {
    /// IEEE half.
    Float16,
    /// The upper half of a float.
    Bfloat16,
    /// Single.
    #[default]
    Float32,
    /// Double.
    Float64,
}

/// A term of the curve.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
pub enum Term {
    /// A power of t.
    Power(i32),
    /// A function of t.
    Function(Function),
}

/// A function of t.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Function {
    /// The square root.
    Sqrt,
    /// The exponential function.
    Exp,
}

/// Some fitted values, corrected by as many small whole numbers times a scale.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ResidualBin {
    /// Type of the scale.
    pub scale_dtype: TermType,
    /// Bits of a number, 1..=64.
    pub element_bits: u32,
    /// How many.
    pub num_elements: usize,
}

fn yes() -> bool {
    true
}

impl TermType {
    fn bytes(self) -> usize {
        match self {
            Self::Float16 | Self::Bfloat16 => 2,
            Self::Float32 => 4,
            Self::Float64 => 8,
        }
    }

    fn read(self, bytes: &[u8]) -> f64 {
        match (self, bytes) {
            (Self::Float16, [a, b]) => f16::from_le_bytes([*a, *b]).to_f64(),
            (Self::Bfloat16, [a, b]) => bf16::from_le_bytes([*a, *b]).to_f64(),
            (Self::Float32, [a, b, c, d]) => f64::from(f32::from_le_bytes([*a, *b, *c, *d])),
            (Self::Float64, bytes) => bytes.try_into().map_or(f64::NAN, f64::from_le_bytes),
            _ => f64::NAN,
        }
    }

    /// The value as this type has it.
    #[expect(clippy::cast_possible_truncation, reason = "rounding is what is asked for")]
    fn round(self, value: f64) -> f64 {
        match self {
            Self::Float16 => f16::from_f32(value as f32).to_f64(),
            Self::Bfloat16 => bf16::from_f32(value as f32).to_f64(),
            Self::Float32 => f64::from(value as f32),
            Self::Float64 => value,
        }
    }

    /// The wider of two types: what PyTorch computes in, for two of different size.
    fn wider(self, other: Self) -> Self {
        if other.bytes() > self.bytes() { other } else { self }
    }
}

/// Reads the positions of a capture.
#[derive(Debug)]
pub(crate) struct Decoder<'a> {
    config: &'a DistillKitConfig,
    /// Values of the terms at each fitted entry.
    terms: Vec<Vec<f64>>,
    id_bits: u32,
}

impl<'a> Decoder<'a> {
    /// Refuses what a capture cannot be, and what this reader does not follow.
    pub(crate) fn new(config: &'a DistillKitConfig) -> Result<Self, Error> {
        let bad = |field: &str, expected: &str, found: String| {
            Err(Error::bad(format_args!("DistillKit's compression config: {field}"), expected, found))
        };
        let fitted = config.k.checked_sub(config.exact_k);
        let Some(fitted) = fitted.filter(|_| config.k > 0 && config.k <= 65_536) else {
            return bad("k", "exact_k..=65536", config.k.to_string());
        };
        if config.d == 0 || i32::try_from(config.d).is_err() {
            return bad("d", "1..=2147483647", config.d.to_string());
        }
        let of_bins =
            config.residual_bins.iter().try_fold(0usize, |sum, bin| sum.checked_add(bin.num_elements));
        if of_bins.is_none_or(|sum| sum > fitted) {
            return bad("residual_bins", "at most k - exact_k elements", format!("{of_bins:?}"));
        }
        if let Some(bin) = config.residual_bins.iter().find(|bin| !(1..=32).contains(&bin.element_bits)) {
            return bad("residual_bins.element_bits", "1..=32", bin.element_bits.to_string());
        }
        let has_terms = config.polynomial_terms.as_ref().is_some_and(|terms| !terms.is_empty());
        if has_terms && config.term_dtype.bytes() < 4 {
            return bad(
                "term_dtype",
                "float32 or float64",
                format!("{:?}", config.term_dtype).to_lowercase(),
            );
        }
        if fitted > 0 && !has_terms && config.residual_bins.is_empty() {
            return bad("polynomial_terms", "terms or residual_bins, as exact_k < k", "none".to_owned());
        }
        let terms = config.polynomial_terms.as_deref().unwrap_or_default();
        let terms =
            (0..fitted).map(|index| terms.iter().map(|term| config.term(*term, index, fitted)).collect());
        Ok(Self { config, terms: terms.collect(), id_bits: id_bits(config.d) })
    }

    /// Bytes of the log-probabilities of a position.
    fn value_bytes(&self) -> usize {
        let config = self.config;
        let terms = config.polynomial_terms.as_ref().map_or(0, Vec::len);
        let bins = config.residual_bins.iter().map(|bin| bin.scale_dtype.bytes() + bin.bytes());
        config.exact_k * config.exact_dtype.bytes() + terms * config.term_dtype.bytes() + bins.sum::<usize>()
    }

    /// Ids and log-probabilities of a position.
    pub(crate) fn entries(&self, ids: &[u8], values: &[u8]) -> Result<Vec<(i32, f64)>, Error> {
        let ids = self.ids(ids)?;
        let log_probs = self.log_probs(values)?;
        Ok(ids.into_iter().zip(log_probs).collect())
    }

    fn ids(&self, bytes: &[u8]) -> Result<Vec<i32>, Error> {
        let bits = usize::try_from(self.id_bits).expect("at most 31");
        let expected = (self.config.k * bits).div_ceil(8);
        if bytes.len() != expected {
            return Err(Error::bad("bytepacked_indices", format_args!("{expected} bytes"), bytes.len()));
        }
        let ids = unpack(bytes, self.id_bits, self.config.k);
        Ok(ids.map(|id| i32::try_from(id).expect("at most 31 bits")).collect())
    }

    fn log_probs(&self, bytes: &[u8]) -> Result<Vec<f64>, Error> {
        let config = self.config;
        let expected = self.value_bytes();
        if bytes.len() != expected {
            return Err(Error::bad("compressed_logprobs", format_args!("{expected} bytes"), bytes.len()));
        }
        let mut rest = bytes;
        let mut take = |count: usize| {
            let (first, after) = rest.split_at(count);
            rest = after;
            first
        };
        let read = |kind: TermType, bytes: &[u8]| -> Vec<f64> {
            bytes.chunks_exact(kind.bytes()).map(|bytes| kind.read(bytes)).collect()
        };
        let out = config.exact_dtype;
        let mut values = read(out, take(config.exact_k * out.bytes()));
        let count = config.polynomial_terms.as_ref().map_or(0, Vec::len);
        let coefficients = read(config.term_dtype, take(count * config.term_dtype.bytes()));
        let mut residuals = Vec::with_capacity(config.k);
        for bin in &config.residual_bins {
            let scale = bin.scale_dtype.read(take(bin.scale_dtype.bytes()));
            let kind = TermType::Float32.wider(bin.scale_dtype);
            let numbers = unpack(take(bin.bytes()), bin.element_bits, bin.num_elements);
            residuals.extend(numbers.map(|number| kind.round(bin.centred(number) * scale)));
        }
        residuals.resize(config.k - config.exact_k, 0.0);

        for (terms, residual) in self.terms.iter().zip(residuals) {
            let residual = out.round(residual);
            values.push(if coefficients.is_empty() {
                residual
            } else {
                let kind = config.term_dtype;
                let products =
                    terms.iter().zip(&coefficients).map(|(term, factor)| kind.round(term * factor));
                let fit = products.fold(0.0, |sum, product| kind.round(sum + product));
                out.wider(kind).round(fit + residual)
            });
        }
        if config.delta_encoding {
            let mut sum = 0.0;
            for value in &mut values {
                // PyTorch adds singles up in double precision, and gives each sum in single.
                sum += TermType::Float32.round(*value);
                *value = out.round(TermType::Float32.round(sum));
            }
        }
        Ok(values)
    }
}

impl DistillKitConfig {
    /// Reads `compression_config.yaml` of a capture.
    ///
    /// # Errors
    /// [`Error::Bad`] naming file and line or key; I/O.
    pub fn load(path: &Path) -> Result<Self, Error> {
        let text = fs_err::read_to_string(path)?;
        let value = super::yaml::parse(&text).map_err(|error| error.within(quoted(path)))?;
        serde_json::from_value(value)
            .map_err(|error| Error::bad(quoted(path), "a compression config of DistillKit", error))
    }

    /// Whether every log-probability is as the teacher gave it.
    pub(crate) fn is_exact(&self) -> bool {
        self.exact_k == self.k && self.exact_dtype.bytes() >= 4 && !self.delta_encoding
    }

    /// A term at a fitted entry.
    #[expect(clippy::cast_precision_loss, reason = "at most 65536 entries")]
    fn term(&self, term: Term, index: usize, count: usize) -> f64 {
        let kind = self.term_dtype;
        let at = if self.normalize_t { index as f64 / (count.max(2) - 1) as f64 } else { index as f64 };
        let at = kind.round(at);
        kind.round(match term {
            Term::Power(power) => at.powi(power),
            Term::Function(Function::Sqrt) => at.sqrt(),
            Term::Function(Function::Exp) => at.exp(),
        })
    }
}

impl ResidualBin {
    fn bytes(&self) -> usize {
        (self.num_elements * usize::try_from(self.element_bits).expect("at most 32")).div_ceil(8)
    }

    /// What a stored number stands for, before its scale.
    fn centred(&self, number: u64) -> f64 {
        let number = f64::from(u32::try_from(number).expect("at most 32 bits"));
        if self.element_bits == 1 {
            number * 2.0 - 1.0
        } else {
            number - 2f64.powi(i32::try_from(self.element_bits - 1).expect("at most 31"))
        }
    }
}

/// Bits of an id: ⌈log2 d⌉ in single precision, as there.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "0..=31, as there"
)]
fn id_bits(vocab_size: u32) -> u32 {
    (vocab_size as f32).log2().ceil() as u32
}

/// Numbers of `bits` bits each, the highest bit first, behind each other.
fn unpack(bytes: &[u8], bits: u32, count: usize) -> impl Iterator<Item = u64> + '_ {
    let (mut buffer, mut held, mut next) = (0u64, 0u32, bytes.iter());
    (0..count).map(move |_| {
        while held < bits {
            buffer = (buffer << 8) | u64::from(*next.next().unwrap_or(&0));
            held += 8;
        }
        held -= bits;
        let number = (buffer >> held) & ((1u64 << bits) - 1);
        buffer &= (1u64 << held) - 1;
        number
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_packed_highest_bit_first() {
        let packed = [0b0000_1011, 0b0100_0011, 0b0000_0000];
        assert_eq!(unpack(&packed, 5, 4).collect::<Vec<_>>(), [1, 13, 1, 16]);
        assert_eq!(unpack(&[0xAB, 0xCD], 8, 2).collect::<Vec<_>>(), [0xAB, 0xCD]);
        assert_eq!(id_bits(128_256), 17);
        assert_eq!(id_bits(131_072), 17);
        assert_eq!(id_bits(131_073), 18);
        assert_eq!(id_bits(1), 0);
    }
}
