//! Rotary position embedding, the rotate-half variant of Hugging Face.
//!
//! Legend: B batch, T tokens, H heads, E head width. Head element `i` is paired with `i + E/2`, and the pair is turned by
//! `position · theta^(-2i/E)` (arXiv 2104.09864, equation 34, with the halves in place of neighbours).

use burn::tensor::{Device, Tensor, TensorData};

use crate::config::DecoderConfig;

/// Frequencies of the angles, and the half rotation as a matrix.
#[derive(Debug, Clone)]
pub(crate) struct Rope {
    inverse_frequencies: Vec<f32>,
    /// `[E, E]`, a signed permutation: `x · half_turn = concat(-x₂, x₁)`. A product with it is exact, and on the CPU it
    /// and its gradient are faster than slices and their zero-filled gradients.
    half_turn: Tensor<2>,
}

/// Cosines and sines of a batch's positions, `[B or 1, T, 1, E]` each.
pub(crate) struct Angles {
    cos: Tensor<4>,
    sin: Tensor<4>,
}

impl Rope {
    pub(crate) fn new(config: &DecoderConfig, device: &Device) -> Self {
        let width = config.head_dim;
        let half = width / 2;
        // 32-bit like the peer: a trained model has learnt with these roundings.
        let inverse_frequencies = (0..half)
            .map(|pair| 1.0 / (config.rope_theta as f32).powf((2 * pair) as f32 / width as f32))
            .collect();
        let mut matrix = vec![0.0f32; width * width];
        for i in 0..half {
            matrix[(i + half) * width + i] = -1.0;
            matrix[i * width + i + half] = 1.0;
        }
        let half_turn = Tensor::from_data(TensorData::new(matrix, [width, width]), device);
        Self { inverse_frequencies, half_turn }
    }

    /// The angles of rows of positions; one row serves a whole batch.
    pub(crate) fn angles(&self, positions: &[Vec<usize>], device: &Device) -> Angles {
        let (rows, tokens) = (positions.len(), positions.first().map_or(0, Vec::len));
        let width = 2 * self.inverse_frequencies.len();
        let (mut cos, mut sin) =
            (Vec::with_capacity(rows * tokens * width), Vec::with_capacity(rows * tokens * width));
        for &position in positions.iter().flatten() {
            let turns = self.inverse_frequencies.iter().map(|frequency| position as f32 * frequency);
            for angle in turns.clone().chain(turns) {
                cos.push(angle.cos());
                sin.push(angle.sin());
            }
        }
        let tensor = |values| Tensor::from_data(TensorData::new(values, [rows, tokens, 1, width]), device);
        Angles { cos: tensor(cos), sin: tensor(sin) }
    }

    /// Turns each head by its position.
    ///
    /// # Shapes
    /// `x` and the result: `[B, T, H, E]`.
    pub(crate) fn turn(&self, x: Tensor<4>, angles: &Angles) -> Tensor<4> {
        let [batch, tokens, heads, width] = x.dims();
        let halves = x.clone().reshape([batch * tokens * heads, width]).matmul(self.half_turn.clone());
        x * angles.cos.clone() + halves.reshape([batch, tokens, heads, width]) * angles.sin.clone()
    }
}
