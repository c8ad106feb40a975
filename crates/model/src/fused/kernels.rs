//! Passes over numbers that the CPU makes in one go, on all cores.

use burn::backend::ops::{ActivationOps, FloatTensorOps};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, Flex, TensorMetadata};
use burn::tensor::{DType, FloatDType, Shape, Slice, TensorData};
use rayon::prelude::*;

use super::{DropoutMask, passes};

/// Numbers for a thread: enough to be worth waking it.
const NUMBERS_AT_ONCE: usize = 1 << 14;

/// Passes over numbers, on the CPU in f32 inside.
///
/// The default bodies are tensor operations that every backend has; those of gates are in the type of their inputs.
pub(super) trait Kernels: Backend {
    /// `softmax(scores + mask)` over the last axis.
    ///
    /// # Shapes
    /// `scores` and the result: `[B, K, G, T, S]`; `mask`: `[B or 1, 1, 1, T, S]`, or all ones.
    fn masked_softmax(scores: FloatTensor<Self>, mask: FloatTensor<Self>) -> FloatTensor<Self> {
        let masked = Self::float_add(scores, mask);
        Self::softmax(masked, 4)
    }

    /// The gradient by the scores, given that by the probabilities: `p · (d - Σ p·d)`.
    ///
    /// # Shapes
    /// All: `[B, K, G, T, S]`.
    fn softmax_gradient(
        probabilities: FloatTensor<Self>,
        d_probabilities: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        let products = Self::float_mul(d_probabilities, probabilities.clone());
        let sums = Self::float_sum_dim(products.clone(), 4);
        Self::float_sub(products, Self::float_mul(probabilities, sums))
    }

    /// `silu(gate) · up`.
    fn gated(gate: FloatTensor<Self>, up: FloatTensor<Self>) -> FloatTensor<Self> {
        let sigmoid = Self::sigmoid(gate.clone());
        Self::float_mul(Self::float_mul(gate, sigmoid), up)
    }

    /// `x`, f32, with a dropout mask, whose bits become numbers on the device.
    fn dropped(x: FloatTensor<Self>, mask: &DropoutMask) -> FloatTensor<Self> {
        dropped_there::<Self>(x, mask)
    }

    /// The gradients by gate and by up.
    fn gated_gradient(
        gate: FloatTensor<Self>,
        up: FloatTensor<Self>,
        d_output: FloatTensor<Self>,
    ) -> [FloatTensor<Self>; 2] {
        let sigmoid = Self::sigmoid(gate.clone());
        let silu = Self::float_mul(gate, sigmoid.clone());
        let d_up = Self::float_mul(d_output.clone(), silu.clone());
        // silu' = σ + silu · (1 - σ)
        let rest =
            Self::float_mul(silu, Self::float_sub_scalar(Self::float_neg(sigmoid.clone()), (-1.0).into()));
        let slope = Self::float_add(sigmoid, rest);
        [Self::float_mul(Self::float_mul(d_output, up), slope), d_up]
    }
}

/// `x` with a mask by tensor operations that every backend has: a bit for each number goes to the device.
pub(super) fn dropped_there<B: Backend>(x: FloatTensor<B>, mask: &DropoutMask) -> FloatTensor<B> {
    let (shape, device) = (x.shape(), x.device());
    let word = |bytes: &[u8]| {
        let mut four = [0; 4];
        four[..bytes.len()].copy_from_slice(bytes);
        i32::from_le_bytes(four)
    };
    let words: Vec<i32> = mask.kept.chunks(4).map(word).collect();
    let (count, numbers) = (words.len(), shape.num_elements());
    let spread = |values: Vec<i32>, of: [usize; 2]| {
        let values = B::int_from_data(TensorData::new(values, of), &device);
        B::int_expand(values, Shape::from([count, 32]))
    };
    let bits = B::bitwise_right_shift(spread(words, [count, 1]), spread((0..32).collect(), [1, 32]));
    let kept = B::int_into_float(B::bitwise_and_scalar(bits, 1.into()), FloatDType::F32);
    let mut kept = B::float_reshape(kept, Shape::from([count * 32]));
    if numbers < count * 32 {
        kept = B::float_slice(kept, &[Slice::from(0..numbers)]);
    }
    B::float_mul(B::float_mul_scalar(x, mask.factor.into()), B::float_reshape(kept, shape))
}

#[cfg(feature = "cube")]
impl Kernels for burn::backend::Cube {}

impl Kernels for Flex {
    fn masked_softmax(scores: FloatTensor<Self>, mask: FloatTensor<Self>) -> FloatTensor<Self> {
        let (shape, mask) = (scores.shape(), mask.to_contiguous());
        let tile = shape[3] * shape[4];
        let mut masked = scores.to_contiguous();
        drop(scores);
        let hidden: &[f32] = mask.as_slice().expect("masks are contiguous f32");
        if hidden.len() > 1 {
            let tiles_of_mask = hidden.len() / tile;
            let tiles_of_row = shape[1] * shape[2];
            let numbers: &mut [f32] = masked.storage_mut();
            numbers.par_chunks_mut(tile).enumerate().for_each(|(index, scores)| {
                let row = (index / tiles_of_row) % tiles_of_mask;
                for (score, hidden) in scores.iter_mut().zip(&hidden[row * tile..]) {
                    *score += hidden;
                }
            });
        }
        Self::softmax(masked, 4)
    }

    fn softmax_gradient(
        probabilities: FloatTensor<Self>,
        d_probabilities: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        let shape = probabilities.shape();
        let keys = shape[4].max(1);
        let (probabilities, d_probabilities) =
            (probabilities.to_contiguous(), d_probabilities.to_contiguous());
        let (p, d) = (floats(&probabilities), floats(&d_probabilities));
        let mut d_scores = vec![0.0f32; p.len()];
        let some = (NUMBERS_AT_ONCE / keys).max(1) * keys;
        let chunks = d_scores.par_chunks_mut(some).zip(p.par_chunks(some)).zip(d.par_chunks(some));
        chunks.for_each(|((d_scores, p), d)| {
            let rows = d_scores.chunks_mut(keys).zip(p.chunks(keys)).zip(d.chunks(keys));
            for ((d_scores, p), d) in rows {
                let sum = dot(p, d);
                for ((d_score, p), d) in d_scores.iter_mut().zip(p).zip(d) {
                    *d_score = p * (d - sum);
                }
            }
        });
        from_f32(d_scores, shape, DType::F32)
    }

    fn dropped(x: FloatTensor<Self>, mask: &DropoutMask) -> FloatTensor<Self> {
        let mut dropped = x.to_contiguous();
        drop(x);
        let numbers: &mut [f32] = dropped.storage_mut();
        let chunks = numbers.par_chunks_mut(NUMBERS_AT_ONCE).zip(mask.kept.par_chunks(NUMBERS_AT_ONCE / 8));
        chunks.for_each(|(numbers, kept)| {
            for (numbers, kept) in numbers.chunks_mut(8).zip(kept) {
                for (bit, number) in numbers.iter_mut().enumerate() {
                    *number *= if kept >> bit & 1 == 1 { mask.factor } else { 0.0 };
                }
            }
        });
        dropped
    }

    fn gated(gate: FloatTensor<Self>, up: FloatTensor<Self>) -> FloatTensor<Self> {
        let (shape, dtype) = (gate.shape(), gate.dtype());
        let [gate, up] = [gate, up].map(|x| in_f32(x).to_contiguous());
        let (gate, up) = (floats(&gate), floats(&up));
        let mut output = vec![0.0f32; gate.len()];
        let chunks = output
            .par_chunks_mut(NUMBERS_AT_ONCE)
            .zip(gate.par_chunks(NUMBERS_AT_ONCE))
            .zip(up.par_chunks(NUMBERS_AT_ONCE));
        chunks.for_each(|((output, gate), up)| {
            passes::gated(gate, up, output);
        });
        from_f32(output, shape, dtype)
    }

    fn gated_gradient(
        gate: FloatTensor<Self>,
        up: FloatTensor<Self>,
        d_output: FloatTensor<Self>,
    ) -> [FloatTensor<Self>; 2] {
        let (shape, dtype) = (gate.shape(), gate.dtype());
        let [gate, up, d_output] = [gate, up, d_output].map(|x| in_f32(x).to_contiguous());
        let (gate, up, d) = (floats(&gate), floats(&up), floats(&d_output));
        let (mut d_gate, mut d_up) = (vec![0.0f32; d.len()], vec![0.0f32; d.len()]);
        let outputs = d_gate.par_chunks_mut(NUMBERS_AT_ONCE).zip(d_up.par_chunks_mut(NUMBERS_AT_ONCE));
        let inputs = gate.par_chunks(NUMBERS_AT_ONCE).zip(up.par_chunks(NUMBERS_AT_ONCE));
        outputs.zip(inputs).zip(d.par_chunks(NUMBERS_AT_ONCE)).for_each(
            |(((d_gate, d_up), (gate, up)), d)| {
                passes::gated_gradient(gate, up, d, d_gate, d_up);
            },
        );
        [d_gate, d_up].map(|values| from_f32(values, shape.clone(), dtype))
    }
}

fn in_f32(x: FloatTensor<Flex>) -> FloatTensor<Flex> {
    if x.dtype() == DType::F32 { x } else { Flex::float_cast(x, DType::F32.into()) }
}

fn from_f32(values: Vec<f32>, shape: Shape, dtype: DType) -> FloatTensor<Flex> {
    let values = Flex::float_from_data(TensorData::new(values, shape), &Default::default());
    if dtype == DType::F32 { values } else { Flex::float_cast(values, dtype.into()) }
}

fn floats(tensor: &FloatTensor<Flex>) -> &[f32] {
    tensor.as_slice().expect("these were made contiguous f32")
}

/// In eight partial sums, which the compiler keeps in one vector.
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [0.0f32; 8];
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<8>(), b.as_chunks::<8>());
    for (a, b) in a.iter().zip(b) {
        for lane in 0..8 {
            sums[lane] += a[lane] * b[lane];
        }
    }
    let rest: f32 = a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum();
    sums.iter().sum::<f32>() + rest
}
