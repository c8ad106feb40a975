//! The floats that a model is kept and computed in.

use burn::tensor::{DType, Device, Tensor};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use softshard_products::{on_host, uses_matrix_units};

/// Type of frozen weights and of activations, which on a CPU without matrix units are f32 all the same. Norms, softmax, sums, adapters and whatever learns are f32 in any case.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Precision {
    /// 32 bits.
    #[default]
    F32,
    /// bfloat16: half the memory. On GPUs and in the matrix units of a CPU faster than f32. A CPU without them
    /// keeps the weights so, and computes in f32. Logits are f32 (`softshard_losses::logits`).
    Bf16,
}

impl Precision {
    pub(crate) fn dtype(self) -> DType {
        match self {
            Self::F32 => DType::F32,
            Self::Bf16 => DType::BF16,
        }
    }

    /// What a model with weights of this type computes in on a device. A CPU without matrix units has no
    /// products of bf16 numbers: weights become f32 where they are multiplied, a part of a matrix at a time,
    /// and activations are f32.
    pub fn of_activations(self, device: &Device) -> Self {
        if on_host(device) && !uses_matrix_units() { Self::F32 } else { self }
    }

    /// As in a recipe.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
        }
    }

    /// Bytes of a number.
    pub fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::Bf16 => 2,
        }
    }
}

/// The same numbers in another type; nothing happens if they are of it.
pub(crate) fn cast<const D: usize>(x: Tensor<D>, dtype: DType) -> Tensor<D> {
    if x.dtype() == dtype { x } else { x.cast(dtype) }
}
