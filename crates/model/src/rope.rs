//! Rotary position embedding, the rotate-half variant of Hugging Face.
//!
//! Legend: B batch, T tokens, H heads, E head width, R the part of it that is turned. Head element `i < R/2` is paired
//! with `i + R/2`, and the pair is turned by `position · theta^(-2i/R)` (arXiv 2104.09864, equation 34, with the halves in
//! place of neighbours). Elements from R on stay.

use burn::tensor::{DType, Device, Tensor, TensorData};

use crate::config::RopeScaling;
use crate::precision::cast;

/// Frequencies of the angles, and the half rotation as a matrix.
#[derive(Debug, Clone)]
pub(crate) struct Rope {
    /// `[R/2]`
    inverse_frequencies: Vec<f32>,
    head_width: usize,
    /// `[E, E]`, a signed permutation of the turned part: `x · half_turn = concat(-x₂, x₁, 0)`. A product with it is
    /// exact, and on the CPU it and its gradient are faster than slices and their zero-filled gradients.
    half_turn: Tensor<2>,
}

/// Cosines and sines of a batch's positions, `[B or 1, T, 1, E]` each.
pub(crate) struct Angles {
    cos: Tensor<4>,
    sin: Tensor<4>,
}

impl Rope {
    /// # Panics
    /// `width` is odd or more than `head_width`: a configuration is checked for it.
    pub(crate) fn new(
        theta: f64,
        width: usize,
        scaling: RopeScaling,
        head_width: usize,
        (device, dtype): (&Device, DType),
    ) -> Self {
        let half = width / 2;
        // 32-bit like the peer: a trained model has learnt with these roundings.
        let inverse_frequencies = (0..half)
            .map(|pair| 1.0 / (theta as f32).powf((2 * pair) as f32 / width as f32))
            .map(|frequency| scaled(frequency, scaling))
            .collect();
        let mut matrix = vec![0.0f32; head_width * head_width];
        for i in 0..half {
            matrix[(i + half) * head_width + i] = -1.0;
            matrix[i * head_width + i + half] = 1.0;
        }
        let half_turn = Tensor::from_data(TensorData::new(matrix, [head_width, head_width]), device);
        Self { inverse_frequencies, head_width, half_turn: cast(half_turn, dtype) }
    }

    /// The angles of rows of positions; one row serves a whole batch.
    pub(crate) fn angles(&self, positions: &[Vec<usize>], device: &Device) -> Angles {
        let (rows, tokens) = (positions.len(), positions.first().map_or(0, Vec::len));
        let cells = rows * tokens * self.head_width;
        let (mut cos, mut sin) = (Vec::with_capacity(cells), Vec::with_capacity(cells));
        let still = self.head_width - 2 * self.inverse_frequencies.len();
        for &position in positions.iter().flatten() {
            let turns = self.inverse_frequencies.iter().map(|frequency| position as f32 * frequency);
            for angle in turns.clone().chain(turns) {
                cos.push(angle.cos());
                sin.push(angle.sin());
            }
            cos.extend(std::iter::repeat_n(1.0, still));
            sin.extend(std::iter::repeat_n(0.0, still));
        }
        let tensor = |values| {
            let values = TensorData::new(values, [rows, tokens, 1, self.head_width]);
            cast(Tensor::from_data(values, device), self.half_turn.dtype())
        };
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

/// A frequency as the scaling leaves it, with the roundings of `transformers`' `_compute_llama3_parameters`.
fn scaled(frequency: f32, scaling: RopeScaling) -> f32 {
    match scaling {
        RopeScaling::None => frequency,
        RopeScaling::Linear { factor } => frequency / factor as f32,
        RopeScaling::Llama3 { factor, low, high, original } => {
            let (factor, low, high, original) = (factor as f32, low as f32, high as f32, original as f32);
            let wavelength = std::f32::consts::TAU / frequency;
            if wavelength > original / low {
                frequency / factor
            } else if wavelength < original / high {
                frequency
            } else {
                let kept = (original / wavelength - low) / (high - low);
                (1.0 - kept) * frequency / factor + kept * frequency
            }
        }
    }
}
