//! Products with a weight in codes, as operations of Burn's backends.
//!
//! The default bodies are tensor operations that every backend has. The CPU backend reads the codes itself, to the same bits.

use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::ops::FloatTensorOps;
use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::{Autodiff, Backend, Flex, TensorMetadata, backend_extension};
use burn::tensor::{FloatDType, IntDType, Shape, Slice, TensorData, bf16};
use rayon::prelude::*;
use softshard_products::ProductOps;

use super::{BLOCK, Bits, Packing, encode};

/// What a backend does with codes.
#[backend_extension(Flex, Cube: cfg(feature = "cube"), Autodiff)]
pub(super) trait QuantisedOps: ProductOps {
    /// The dense weight `[O, I]`.
    fn dequantise(
        words: IntTensor<Self>,
        scales: FloatTensor<Self>,
        packing: Packing,
        dtype: FloatDType,
    ) -> FloatTensor<Self> {
        by_tensor_operations::<Self>(words, scales, packing, dtype)
    }

    /// `x · Wᵀ`, `[N, O]`, with the weight in the type of `x`.
    fn quantised_product(
        x: FloatTensor<Self>,
        words: IntTensor<Self>,
        scales: FloatTensor<Self>,
        packing: Packing,
    ) -> FloatTensor<Self> {
        let weight = Self::dequantise(words, scales, packing, x.dtype().into());
        Self::product(x, Self::float_transpose(weight))
    }
}

pub(super) fn by_tensor_operations<B: Backend>(
    words: IntTensor<B>,
    scales: FloatTensor<B>,
    packing: Packing,
    dtype: FloatDType,
) -> FloatTensor<B> {
    let Packing { bits, rows, columns } = packing;
    let (row_words, codes) = (packing.words(), bits.codes_per_word());
    let device = words.device();
    let spread = Shape::from([rows, row_words, codes]);
    let words = B::int_expand(B::int_reshape(words, [rows, row_words, 1].into()), spread.clone());
    let shifts = B::int_arange_step(0..32, bits.width(), &device, IntDType::I32);
    let shifts = B::int_expand(B::int_reshape(shifts, [1, 1, codes].into()), spread);
    let mask = (1i32 << bits.width()) - 1;
    let codes = B::bitwise_and_scalar(B::bitwise_right_shift(words, shifts), mask.into());
    let levels = bits.levels();
    let levels = B::float_from_data(TensorData::from(levels.as_slice()), &device);
    let numbers = B::float_select(levels, 0, B::int_reshape(codes, [rows * packing.padded()].into()));
    let numbers = B::float_reshape(numbers, [rows, packing.blocks(), BLOCK].into());
    let scales = B::float_reshape(B::float_cast(scales, FloatDType::F32), [rows, packing.blocks(), 1].into());
    let dense = B::float_reshape(B::float_mul(numbers, scales), [rows, packing.padded()].into());
    let dense = if columns == packing.padded() {
        dense
    } else {
        B::float_slice(dense, &[Slice::from(0..rows), Slice::from(0..columns)])
    };
    B::float_cast(dense, dtype)
}

#[cfg(feature = "cube")]
impl QuantisedOps for burn::backend::Cube {}

impl QuantisedOps for Flex {
    fn dequantise(
        words: IntTensor<Self>,
        scales: FloatTensor<Self>,
        packing: Packing,
        dtype: FloatDType,
    ) -> FloatTensor<Self> {
        let Packing { bits, rows, columns } = packing;
        let (words, scales) = (words.to_contiguous(), scales.to_contiguous());
        let dense = unpack(
            words.as_slice().expect("words are contiguous, and I32 since they were made"),
            scales.as_slice().expect("scales are contiguous, and BF16 since they were made"),
            packing,
            match bits {
                Bits::Eight => unpack_eight,
                Bits::Four => unpack_four,
            },
        );
        let dense = Self::float_from_data(TensorData::new(dense, [rows, columns]), &Default::default());
        if dtype == FloatDType::F32 { dense } else { Self::float_cast(dense, dtype) }
    }
}

/// Some rows for a thread: as much as a cache of the second level holds.
const NUMBERS_AT_ONCE: usize = 1 << 16;

fn unpack(
    words: &[i32],
    scales: &[bf16],
    packing: Packing,
    block: fn(&[i32], f32, &mut [f32; BLOCK]),
) -> Vec<f32> {
    let Packing { bits, rows, columns } = packing;
    let block_words = BLOCK / bits.codes_per_word();
    let mut dense = vec![0.0; rows * columns];
    let some_rows = (NUMBERS_AT_ONCE / columns.max(1)).max(1);
    dense.par_chunks_mut((some_rows * columns).max(1)).enumerate().for_each(|(chunk, dense)| {
        let first = chunk * some_rows;
        let words = words[first * packing.words()..].chunks(packing.words());
        let scales = scales[first * packing.blocks()..].chunks(packing.blocks());
        for ((dense, words), scales) in dense.chunks_mut(columns).zip(words).zip(scales) {
            let blocks = words.chunks(block_words).zip(scales);
            let (whole, rest) = dense.as_chunks_mut();
            let mut blocks = blocks.map(|(words, &scale)| (words, f32::from(scale)));
            for (dense, (words, scale)) in whole.iter_mut().zip(&mut blocks) {
                block(words, scale, dense);
            }
            if let Some((words, scale)) = blocks.next() {
                let mut last = [0.0; BLOCK];
                block(words, scale, &mut last);
                rest.copy_from_slice(&last[..rest.len()]);
            }
        }
    });
    dense
}

fn unpack_eight(words: &[i32], scale: f32, dense: &mut [f32; BLOCK]) {
    for (dense, word) in dense.as_chunks_mut::<4>().0.iter_mut().zip(words) {
        *dense = word.to_le_bytes().map(|code| encode::eight_bit_level(code) * scale);
    }
}

fn unpack_four(words: &[i32], scale: f32, dense: &mut [f32; BLOCK]) {
    for (dense, word) in dense.as_chunks_mut::<8>().0.iter_mut().zip(words) {
        for (dense, byte) in dense.as_chunks_mut::<2>().0.iter_mut().zip(word.to_le_bytes()) {
            *dense = PAIRS[usize::from(byte)].map(|level| level * scale);
        }
    }
}

/// The two levels of each byte of 4-bit codes.
static PAIRS: [[f32; 2]; 256] = pairs();

const fn pairs() -> [[f32; 2]; 256] {
    let mut pairs = [[0.0; 2]; 256];
    let mut byte = 0;
    while byte < pairs.len() {
        pairs[byte] = [encode::LEVELS[byte & 15], encode::LEVELS[byte >> 4]];
        byte += 1;
    }
    pairs
}

impl<B: QuantisedOps, C: CheckpointStrategy> QuantisedOps for Autodiff<B, C> {
    fn quantised_product(
        x: FloatTensor<Self>,
        words: IntTensor<Self>,
        scales: FloatTensor<Self>,
        packing: Packing,
    ) -> FloatTensor<Self> {
        let (x, node) = x.into_parts();
        let scales = scales.into_primitive();
        match Product.prepare::<C>([node]).compute_bound().stateful() {
            OpsKind::Tracked(prepared) => {
                let state = (words.clone(), scales.clone(), packing);
                prepared.finish(state, B::quantised_product(x, words, scales, packing))
            }
            OpsKind::UnTracked(prepared) => prepared.finish(B::quantised_product(x, words, scales, packing)),
        }
    }
}

/// The step of the graph that keeps codes and scales: `dx = dy · W`.
#[derive(Debug)]
struct Product;

impl<B: QuantisedOps> Backward<B, 1> for Product {
    type State = (IntTensor<B>, FloatTensor<B>, Packing);

    fn backward(self, ops: Ops<Self::State, 1>, gradients: &mut Gradients, _: &mut Checkpointer) {
        let gradient = gradients.consume::<B>(&ops.node);
        let ([parent], (words, scales, packing)) = (ops.parents, ops.state);
        if let Some(parent) = parent {
            let weight = B::dequantise(words, scales, packing, gradient.dtype().into());
            gradients.register::<B>(parent.id, B::product(gradient, weight));
        }
    }
}
