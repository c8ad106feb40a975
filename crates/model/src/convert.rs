//! Between the number formats of weight files and those that are computed with.
//!
//! One pass converts and finds what is not finite; long tensors are shared among threads.

use burn::tensor::f16;
use rayon::prelude::*;
use safetensors::Dtype;

/// Elements that one thread converts at a time: their bytes stay in its cache.
const CHUNK: usize = 1 << 15;

/// An element that cannot be used.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Refused {
    /// Flat.
    pub(crate) index: usize,
    /// As stored: not finite, or too large for the format that was asked for.
    pub(crate) value: f32,
}

/// Whether weights may be stored so.
pub(crate) fn is_readable(dtype: Dtype) -> bool {
    matches!(dtype, Dtype::F32 | Dtype::BF16 | Dtype::F16)
}

/// Little-endian numbers as 32-bit floats, exactly.
///
/// # Panics
/// The format is not [readable](is_readable).
pub(crate) fn to_f32(dtype: Dtype, bytes: &[u8]) -> Result<Vec<f32>, Refused> {
    let converted = match dtype {
        Dtype::F32 => convert(bytes.as_chunks().0, f32_to_f32),
        Dtype::BF16 => convert(bytes.as_chunks().0, bf16_to_f32),
        Dtype::F16 => convert(bytes.as_chunks().0, f16_to_f32),
        other => unreachable!("callers have refused {other}"),
    };
    converted.map_err(|index| refused(dtype, bytes, index))
}

/// The bits of little-endian numbers as bf16: bf16 as it is, others to the nearest, ties to even.
///
/// # Panics
/// The format is not [readable](is_readable).
pub(crate) fn to_bf16(dtype: Dtype, bytes: &[u8]) -> Result<Vec<u16>, Refused> {
    let converted = match dtype {
        Dtype::F32 => convert(bytes.as_chunks().0, |four| bf16_bits(f32::from_le_bytes(four))),
        Dtype::BF16 => convert(bytes.as_chunks().0, |two| {
            let bits = u16::from_le_bytes(two);
            (bits, bits & BF16_EXPONENT == BF16_EXPONENT)
        }),
        Dtype::F16 => convert(bytes.as_chunks().0, |two| {
            let (value, is_bad) = f16_to_f32(two);
            (bf16_bits(value).0, is_bad)
        }),
        other => unreachable!("callers have refused {other}"),
    };
    converted.map_err(|index| refused(dtype, bytes, index))
}

/// Values in the format of a file, to the nearest, ties to even.
///
/// # Panics
/// The format is not [readable](is_readable).
pub(crate) fn to_bytes(values: &[f32], dtype: Dtype) -> Result<Vec<u8>, Refused> {
    let converted = match dtype {
        Dtype::F32 => encode(values, |value| (value.to_le_bytes(), !value.is_finite())),
        Dtype::BF16 => encode(values, |value| {
            let (bits, is_bad) = bf16_bits(value);
            (bits.to_le_bytes(), is_bad)
        }),
        Dtype::F16 => encode(values, |value| {
            let half = f16::from_f32(value);
            (half.to_le_bytes(), !half.is_finite())
        }),
        other => unreachable!("callers have refused {other}"),
    };
    converted.map_err(|index| Refused { index, value: values[index] })
}

/// Converts element by element, or gives the index of the first that the function says must be refused.
fn convert<const N: usize, T: Copy + Default + Send>(
    from: &[[u8; N]],
    to: impl Fn([u8; N]) -> (T, bool) + Sync,
) -> Result<Vec<T>, usize> {
    // The memory comes zeroed from the system: it is not written twice.
    let mut values = vec![T::default(); from.len()];
    let chunk = |(values, from): (&mut [T], &[[u8; N]])| {
        let mut is_bad = false;
        for (value, bytes) in values.iter_mut().zip(from) {
            let (converted, refused) = to(*bytes);
            *value = converted;
            is_bad |= refused;
        }
        is_bad
    };
    let is_bad = if from.len() <= CHUNK {
        chunk((&mut values, from))
    } else {
        let chunks = values.par_chunks_mut(CHUNK).zip(from.par_chunks(CHUNK));
        chunks.map(chunk).reduce(|| false, |one, other| one | other)
    };
    match from.iter().position(|bytes| is_bad && to(*bytes).1) {
        Some(index) => Err(index),
        None => Ok(values),
    }
}

fn encode<const N: usize>(
    values: &[f32],
    to: impl Fn(f32) -> ([u8; N], bool) + Sync,
) -> Result<Vec<u8>, usize> {
    let mut bytes = vec![0; N * values.len()];
    let mut is_bad = false;
    for (bytes, value) in bytes.as_chunks_mut().0.iter_mut().zip(values) {
        let (converted, refused) = to(*value);
        *bytes = converted;
        is_bad |= refused;
    }
    match values.iter().position(|value| is_bad && to(*value).1) {
        Some(index) => Err(index),
        None => Ok(bytes),
    }
}

/// The element of a file that was refused, as it is stored.
fn refused(dtype: Dtype, bytes: &[u8], index: usize) -> Refused {
    let value = match dtype {
        Dtype::F32 => f32_to_f32(bytes.as_chunks().0[index]).0,
        Dtype::BF16 => bf16_to_f32(bytes.as_chunks().0[index]).0,
        _ => f16::from_le_bytes(bytes.as_chunks().0[index]).to_f32(),
    };
    Refused { index, value }
}

const F32_EXPONENT: u32 = 0x7f80_0000;
const BF16_EXPONENT: u16 = 0x7f80;
const F16_EXPONENT: u16 = 0x7c00;

/// Each of these also says whether the number is not finite: its exponent has all bits set.
fn f32_to_f32(four: [u8; 4]) -> (f32, bool) {
    let value = f32::from_le_bytes(four);
    (value, value.to_bits() & F32_EXPONENT == F32_EXPONENT)
}

fn bf16_to_f32(two: [u8; 2]) -> (f32, bool) {
    let bits = u16::from_le_bytes(two);
    (f32::from_bits(u32::from(bits) << 16), bits & BF16_EXPONENT == BF16_EXPONENT)
}

/// Right for finite numbers, without a branch: bits in the places of 32-bit ones, whose exponent is then too small by 112.
fn f16_to_f32(two: [u8; 2]) -> (f32, bool) {
    let bits = u16::from_le_bytes(two);
    let two_to_the_112 = f32::from_bits((112 + 127) << 23);
    let magnitude = f32::from_bits(u32::from(bits & 0x7fff) << 13) * two_to_the_112;
    let sign = u32::from(bits & 0x8000) << 16;
    (f32::from_bits(magnitude.to_bits() | sign), bits & F16_EXPONENT == F16_EXPONENT)
}

/// To the nearest, ties to even. What is not finite, or becomes so, has all bits of the exponent set.
fn bf16_bits(value: f32) -> (u16, bool) {
    let bits = value.to_bits();
    let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16;
    let rounded = u16::try_from(rounded).expect("32 bits shifted by 16");
    (rounded, bits & F32_EXPONENT == F32_EXPONENT || rounded & BF16_EXPONENT == BF16_EXPONENT)
}

#[cfg(test)]
mod tests {
    use burn::tensor::bf16;

    use super::*;

    /// All 65,536 of them, finite or not, agree with another implementation.
    #[test]
    fn every_half_is_converted_as_the_peer_does() {
        for bits in 0..=u16::MAX {
            let bytes = bits.to_le_bytes();
            let cases =
                [(Dtype::BF16, bf16::from_bits(bits).to_f32()), (Dtype::F16, f16::from_bits(bits).to_f32())];
            for (dtype, expected) in cases {
                let narrow = if dtype == Dtype::BF16 { bits } else { bf16::from_f32(expected).to_bits() };
                match to_f32(dtype, &bytes) {
                    Ok(found) => {
                        assert_eq!(found[0].to_bits(), expected.to_bits(), "{dtype} {bits:#06x}");
                        assert_eq!(to_bf16(dtype, &bytes), Ok(vec![narrow]));
                        assert_eq!(to_bytes(&found, dtype), Ok(bytes.to_vec()));
                    }
                    Err(Refused { index, value }) => {
                        assert!(!expected.is_finite() && index == 0, "{dtype} {bits:#06x}");
                        assert!(value.is_nan() && expected.is_nan() || value == expected);
                        assert!(to_bf16(dtype, &bytes).is_err());
                    }
                }
            }
        }
    }

    #[test]
    fn floats_are_rounded_to_the_nearest_and_ties_to_even() {
        let mut bits = 1u32;
        let values: Vec<f32> = (0..200_000)
            .map(|_| {
                bits = bits.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                f32::from_bits(bits)
            })
            .chain([0x3f80_8000, 0x3f81_8000, 0x0080_0000, 0x8000_0000].map(f32::from_bits))
            .filter(|value| bf16::from_f32(*value).is_finite())
            .collect();
        let expected: Vec<u16> = values.iter().map(|value| bf16::from_f32(*value).to_bits()).collect();
        let bytes = to_bytes(&values, Dtype::F32).unwrap();
        assert_eq!(to_bf16(Dtype::F32, &bytes).unwrap(), expected);
        let expected: Vec<u8> = expected.iter().flat_map(|bits| bits.to_le_bytes()).collect();
        assert_eq!(to_bytes(&values, Dtype::BF16).unwrap(), expected);
    }

    #[test]
    fn the_first_element_that_cannot_be_used_is_named_with_its_value() {
        let mut values = vec![1f32; 3 * CHUNK];
        values[2 * CHUNK + 5] = f32::MAX;
        let bytes = |values: &[f32]| values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<_>>();
        let too_large = Refused { index: 2 * CHUNK + 5, value: f32::MAX };
        assert!(to_f32(Dtype::F32, &bytes(&values)).is_ok());
        assert_eq!(to_bf16(Dtype::F32, &bytes(&values)), Err(too_large));
        assert_eq!(to_bytes(&values, Dtype::BF16), Err(too_large));
        assert_eq!(to_bytes(&values, Dtype::F16), Err(too_large));
        values[CHUNK + 7] = f32::NEG_INFINITY;
        let infinite = Refused { index: CHUNK + 7, value: f32::NEG_INFINITY };
        assert_eq!(to_f32(Dtype::F32, &bytes(&values)), Err(infinite));
        assert_eq!(to_bf16(Dtype::F32, &bytes(&values)), Err(infinite));
    }
}
