//! A linear map with Hugging Face's orientation, and the low-rank update on top of it.
//!
//! Legend: N rows (tokens of a batch), I inputs, O outputs, R rank.

use burn::tensor::{DType, Tensor};
use rand::{RngCore, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;
use softshard_products::{few_rows_matmul, matmul};

use crate::fused::{self, DropoutMask};
use crate::precision::cast;
use crate::quantised::Quantised;

/// Bytes of a dropout mask that a thread draws: enough to be worth waking it.
const BYTES_AT_ONCE: usize = 1 << 11;

/// `y = x · Wᵀ + bias`, and with LoRA `+ scale · (dropout(x) · Aᵀ) · Bᵀ`; with DoRA (arXiv 2402.09353) all but the
/// bias multiplied by a gain for each output.
#[derive(Debug, Clone)]
pub struct Linear {
    pub(crate) weight: Weight,
    /// `[1, O]`.
    pub(crate) bias: Option<Tensor<2>>,
    pub(crate) lora: Option<Lora>,
    /// Whether a few rows are computed as each of them would be alone: so an answer does not depend on its neighbours.
    pub(crate) row_by_row: bool,
}

/// Rows that are few. More than these are products of their own kind, which are faster.
pub(crate) const FEW_ROWS: usize = 64;

/// Where the numbers of a matrix `[O, I]` are.
#[expect(clippy::large_enum_variant, reason = "a handful a layer")]
#[derive(Debug, Clone)]
pub(crate) enum Weight {
    /// On the device, in the precision of the model.
    Dense(Tensor<2>),
    /// As codes: made dense again for each product.
    Quantised(Quantised),
    /// In the files; the layer is filled before it computes.
    Streamed {
        /// O and I.
        shape: [usize; 2],
    },
}

/// The factors of a low-rank update, in 32-bit floats; `W + scale · B · A` is never formed.
#[derive(Debug, Clone)]
pub(crate) struct Lora {
    /// `[R, I]`.
    pub(crate) a: Tensor<2>,
    /// `[O, R]`.
    pub(crate) b: Tensor<2>,
    pub(crate) scale: f64,
    /// Probability that an input of A is dropped while training.
    pub(crate) dropout: f64,
    /// DoRA's magnitude over the norm of each row of `W + scale · B · A`, `[1, O]`. It is of the factors as they were
    /// read, so they do not learn where there is one.
    pub(crate) gain: Option<Tensor<2>>,
}

impl Weight {
    /// O and I.
    pub(crate) fn dims(&self) -> [usize; 2] {
        match self {
            Self::Dense(weight) => weight.dims(),
            Self::Quantised(weight) => weight.dims(),
            Self::Streamed { shape } => *shape,
        }
    }

    /// `x · Wᵀ`.
    fn product(&self, x: Tensor<2>, row_by_row: bool) -> Tensor<2> {
        match self {
            Self::Dense(weight) if row_by_row => few_rows_product(x, weight),
            Self::Dense(weight) => matmul(x, weight.clone().transpose()),
            Self::Quantised(weight) => weight.forward(x),
            Self::Streamed { .. } => unreachable!("layers are filled before they compute"),
        }
    }
}

impl Linear {
    pub(crate) fn new(weight: Weight, bias: Option<Tensor<2>>) -> Self {
        Self { weight, bias, lora: None, row_by_row: false }
    }

    /// `x · Wᵀ + bias`.
    ///
    /// # Shapes
    /// `x`: `[N, I]`; the result: `[N, O]`, of the type of `x`.
    pub fn apply(&self, x: Tensor<2>) -> Tensor<2> {
        self.forward(x, &mut Dropout::new(None, 0))
    }

    /// # Shapes
    /// `x`: `[N, I]`; the result: `[N, O]`, of the type of `x`.
    pub(crate) fn forward(&self, x: Tensor<2>, dropout: &mut Dropout) -> Tensor<2> {
        let dtype = x.dtype();
        let row_by_row = self.row_by_row && x.dims()[0] <= FEW_ROWS;
        let mut y = self.weight.product(x.clone(), row_by_row);
        let gain = self.lora.as_ref().and_then(|lora| lora.gain.as_ref());
        if let Some(bias) = self.bias.as_ref().filter(|_| gain.is_none()) {
            y = y + cast(bias.clone(), dtype);
        }
        if let Some(lora) = &self.lora {
            let x = cast(x, DType::F32);
            let low = match dropout.draw(x.dims(), lora.dropout) {
                Some(mask) => fused::dropped_product(x, lora.a.clone(), mask),
                None if row_by_row => few_rows_product(x, &lora.a),
                None => x.matmul(lora.a.clone().transpose()),
            };
            let low = low * lora.scale;
            let update = if row_by_row {
                few_rows_product(low, &lora.b)
            } else {
                low.matmul(lora.b.clone().transpose())
            };
            let Some(gain) = gain else { return y + cast(update, dtype) };
            y = cast((cast(y, DType::F32) + update) * gain.clone(), dtype);
            if let Some(bias) = &self.bias {
                y = y + cast(bias.clone(), dtype);
            }
        }
        y
    }
}

/// `x · Wᵀ`, of the type of `x`.
fn few_rows_product(x: Tensor<2>, weight: &Tensor<2>) -> Tensor<2> {
    let dtype = x.dtype();
    cast(few_rows_matmul(cast(x, DType::F32), weight.clone()), dtype)
}

/// The dropout masks of one layer in one forward pass, drawn in the order of its maps; none outside of training.
pub(crate) struct Dropout(Option<(ChaCha8Rng, Option<[usize; 2]>)>);

/// What the dropout of a forward pass is drawn from.
#[derive(Debug, Clone, Copy)]
pub(crate) struct DropoutSeed {
    pub(crate) seed: u64,
    /// The first row of this pass, and the rows of the batch that it is a part of: it drops what a pass over all of them drops there.
    pub(crate) part: Option<[usize; 2]>,
}

impl Dropout {
    /// Each layer draws from a stream of its own: what is computed again is dropped again.
    pub(crate) fn new(seed: Option<DropoutSeed>, layer: usize) -> Self {
        Self(seed.map(|DropoutSeed { seed, part }| {
            let mut random = ChaCha8Rng::seed_from_u64(seed);
            random.set_stream(layer as u64);
            (random, part)
        }))
    }

    /// Drops elements with the given probability and scales the others, so that the expectation stays.
    fn draw(&mut self, [rows, width]: [usize; 2], probability: f64) -> Option<DropoutMask> {
        let (random, part) = self.0.as_mut().filter(|_| probability > 0.0)?;
        let [first_row, all_rows] = part.unwrap_or([0, rows]);
        let threshold = (probability * f64::from(u32::MAX)) as u32;
        let numbers = rows * width;
        let (all, begin) = (&*random, random.get_word_pos());
        let own = begin + (first_row * width) as u128;
        // A word of the stream for each number, so that threads may begin anywhere.
        let draw = |(index, bytes): (usize, &mut [u8])| {
            let first = index * BYTES_AT_ONCE * 8;
            let mut random = all.clone();
            random.set_word_pos(own + first as u128);
            for (byte, number) in bytes.iter_mut().zip((first..).step_by(8)) {
                let bits = 0..(numbers - number).min(8);
                *byte = bits.fold(0, |byte, bit| byte | u8::from(random.next_u32() >= threshold) << bit);
            }
        };
        let mut kept = vec![0u8; numbers.div_ceil(8)];
        kept.par_chunks_mut(BYTES_AT_ONCE).enumerate().for_each(draw);
        random.set_word_pos(begin + (all_rows * width) as u128);
        let kept = kept.into();
        Some(DropoutMask { kept, factor: (1.0 / (1.0 - probability)) as f32 })
    }
}
