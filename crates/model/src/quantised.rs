//! Frozen weights in 8 or 4 bits: blocks of codes with one scale each, made dense again for each product.
//!
//! Legend: N rows (tokens of a batch), I inputs, O outputs, P inputs rounded up to whole blocks, C codes of a word.
//!
//! A block is 32 neighbouring inputs of one output; a weight is `level(code) · scale`, with the scale in bf16 and levels that are
//! whole numbers up to 127: 4.5 and 8.5 bits a weight. The codes are plain tensors of 32-bit words, so they take as much
//! on every device, and a weight has the same bits there: one multiplication of two numbers that are exact in f32.
//! Why not Burn's schemes, and where the levels come from: docs/decisions/0007-quantised-weights.md.

mod encode;
mod error;
mod product;
#[cfg(test)]
mod tests;

use burn::backend::Dispatch;
use burn::tensor::{DType, Device, FloatDType, Int, Tensor, TensorData};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub(crate) use error::QuantisationError;
use product::QuantisedOps;

use crate::precision::cast;

/// Weights that share a scale: neighbours along the inputs.
const BLOCK: usize = 32;

/// Weights that are compared at once with those they were made of.
const NUMBERS_COMPARED: usize = 1 << 22;

/// How many bits the code of a frozen weight has; in files `4` or `8`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "u8", into = "u8")]
#[schemars(extend("enum" = [4, 8]))]
pub enum Bits {
    /// 8.5 bits a weight with its share of the scale.
    Eight,
    /// 4.5 bits a weight with its share of the scale.
    Four,
}

impl Bits {
    const fn width(self) -> usize {
        match self {
            Self::Eight => 8,
            Self::Four => 4,
        }
    }

    /// Codes in a word of 32 bits; the first has the lowest bits.
    const fn codes_per_word(self) -> usize {
        32 / self.width()
    }

    /// Weights of scale 1, by code.
    fn levels(self) -> Vec<f32> {
        match self {
            Self::Eight => (0..=u8::MAX).map(encode::eight_bit_level).collect(),
            Self::Four => encode::LEVELS.to_vec(),
        }
    }
}

impl TryFrom<u8> for Bits {
    type Error = String;

    fn try_from(bits: u8) -> Result<Self, String> {
        match bits {
            8 => Ok(Self::Eight),
            4 => Ok(Self::Four),
            other => Err(format!("expected 4 or 8 bits, found {other}")),
        }
    }
}

impl From<Bits> for u8 {
    fn from(bits: Bits) -> Self {
        match bits {
            Bits::Eight => 8,
            Bits::Four => 4,
        }
    }
}

/// How the codes of a weight are packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Packing {
    bits: Bits,
    rows: usize,
    columns: usize,
}

impl Packing {
    /// Of a weight `[O, I]`.
    pub(crate) const fn of(bits: Bits, [rows, columns]: [usize; 2]) -> Self {
        Self { bits, rows, columns }
    }

    const fn blocks(self) -> usize {
        self.columns.div_ceil(BLOCK)
    }

    /// Columns with the zeros that fill the last block.
    const fn padded(self) -> usize {
        self.blocks() * BLOCK
    }

    const fn words(self) -> usize {
        self.padded() / self.bits.codes_per_word()
    }

    /// Of codes and scales.
    pub(crate) const fn bytes(self) -> usize {
        self.rows * (4 * self.words() + 2 * self.blocks())
    }
}

/// A weight `[O, I]` in blocks of codes.
#[derive(Debug, Clone)]
pub(crate) struct Quantised {
    /// `[O, P / C]`, 32 bits.
    words: Tensor<2, Int>,
    /// `[O, P / 32]`, bf16; the same numbers in f32 where the device has no bf16.
    scales: Tensor<2>,
    packing: Packing,
}

impl Quantised {
    /// Takes the nearest codes. This runs on the CPU wherever the weight is, so that the codes are the same everywhere.
    ///
    /// Scales are between 2^-100 and 2^120: smaller weights become zero, larger ones the largest there is.
    ///
    /// # Shapes
    /// `weight`: `[O, I]`, finite.
    pub(crate) fn of(weight: Tensor<2>, bits: Bits) -> Self {
        let [rows, _] = weight.dims();
        let packing = Packing::of(bits, weight.dims());
        let device = weight.device().without_autodiff();
        let (words, scales) = encode::encode(&values(weight), packing);
        let words = TensorData::new(words, [rows, packing.words()]);
        let dtype = dtype_of_scales(&device);
        // Converted here: a device converts what it was given, and this one may not know it.
        let scales = TensorData::new(scales, [rows, packing.blocks()]).convert_dtype(dtype);
        Self {
            words: Tensor::from_data(words, (&device, DType::I32)),
            scales: Tensor::from_data(scales, (&device, dtype)),
            packing,
        }
    }

    /// `[O, I]`.
    pub(crate) fn dims(&self) -> [usize; 2] {
        [self.packing.rows, self.packing.columns]
    }

    /// Bits of a code.
    pub(crate) fn bits(&self) -> Bits {
        self.packing.bits
    }

    /// Of codes and scales, on the device.
    pub(crate) fn bytes(&self) -> usize {
        self.packing.bytes()
    }

    /// The same codes and scales on another device.
    pub(crate) fn to_device(&self, device: &Device) -> Self {
        let device = device.clone().without_autodiff();
        let Self { words, scales, packing } = self.clone();
        // Where bf16 is known: before they leave, or when they are there.
        let scales = match dtype_of_scales(&device) {
            DType::F32 => cast(scales, DType::F32).to_device(&device),
            dtype => cast(scales.to_device(&device), dtype),
        };
        Self { words: words.to_device(&device), scales, packing }
    }

    /// The weight `[O, I]`: computed in f32, then rounded to `dtype`.
    pub(crate) fn dense(&self, dtype: FloatDType) -> Tensor<2> {
        let Self { words, scales, packing } = self.clone();
        let dense = Dispatch::dequantise(words.into_dispatch(), scales.into_dispatch(), packing, dtype);
        Tensor::from_dispatch(dense)
    }

    /// `x · Wᵀ`. The dense weight lives while it is multiplied only, also if `x` is tracked: the graph keeps the codes,
    /// and the backward pass makes the weight dense once more.
    ///
    /// # Shapes
    /// `x`: `[N, I]`; the result: `[N, O]`.
    pub(crate) fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        let Self { words, scales, packing } = self.clone();
        let (x, words, scales) = (x.into_dispatch(), words.into_dispatch(), scales.into_dispatch());
        Tensor::from_dispatch(Dispatch::quantised_product(x, words, scales, packing))
    }

    /// How far this is from the weight it was made of.
    ///
    /// # Shapes
    /// `weight`: `[O, I]`.
    pub(crate) fn error(&self, weight: Tensor<2>) -> QuantisationError {
        let [rows, columns] = self.dims();
        // Some rows at a time: the dense weight is not there as a whole.
        let at_once = (NUMBERS_COMPARED / columns.max(1)).max(1);
        let mut error = QuantisationError::default();
        for first in (0..rows).step_by(at_once) {
            let rows = first..rows.min(first + at_once);
            let some = Self {
                words: self.words.clone().slice([rows.clone()]),
                scales: self.scales.clone().slice([rows.clone()]),
                packing: Packing { rows: rows.len(), ..self.packing },
            };
            let weight = values(weight.clone().slice([rows]));
            error += QuantisationError::between(&weight, &values(some.dense(FloatDType::F32)));
        }
        error.bytes = self.bytes() as u64;
        error
    }
}

fn dtype_of_scales(device: &Device) -> DType {
    if device.supports_dtype(DType::BF16) { DType::BF16 } else { DType::F32 }
}

fn values(tensor: Tensor<2>) -> Vec<f32> {
    tensor.into_data().convert::<f32>().try_into_vec().expect("these were just converted to f32")
}
