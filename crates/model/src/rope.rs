//! Rotary position embedding, the rotate-half variant of Hugging Face.
//!
//! Legend: B batch, T tokens, H heads, E head width, W the width over which the frequencies are spread, P = W/2 rounded up
//! pairs. Head element `i < P` is paired with `i + P`, and the pair is turned by `position · theta^(-2i/W)` (arXiv 2104.09864,
//! equation 34, with the halves in place of neighbours). Elements from 2·P on stay.
//!
//! Frequencies are computed in 32 bits, with the roundings of transformers' `modeling_rope_utils.py`: a trained model has
//! learnt with them.
//!
//! Some scalings go by the length of a text: then it is the length that each text has by itself, as far as it has been read,
//! never that of its batch. So labels do not depend on what they are computed beside, and a token of an answer is turned by
//! the length of the text that ends with it, as in transformers' `generate`: keys in the cache stay as they were turned.

use std::borrow::Cow;
use std::f64::consts::TAU;

use burn::tensor::{DType, Device, Tensor, TensorData};
use softshard_products::on_host;

use crate::config::{Positions, RopeScaling};
use crate::fused;
use crate::layout::Layout;
use crate::precision::cast;

/// Frequencies of the angles, and the half rotation as a matrix.
#[derive(Debug, Clone)]
pub(crate) struct Rope {
    frequencies: Frequencies,
    /// Cosines and sines are multiplied by it.
    attention_factor: f32,
    head_width: usize,
    /// Numbers of a head that turn: 2·P.
    turned: usize,
    /// `[E, E]`, a signed permutation of the turned part: `x · half_turn = concat(-x₂, x₁, 0)`. A product
    /// with it is exact.
    half_turn: Tensor<2>,
}

/// Cosines and sines of a batch's positions, `[B or 1, T, 1, E]` each.
pub(crate) struct Angles {
    cos: Tensor<4>,
    sin: Tensor<4>,
}

/// The angles of one position to the next, `[P]`, as a text of some length has them.
#[derive(Debug, Clone)]
pub(crate) enum Frequencies {
    /// The same for all lengths.
    Fixed(Vec<f32>),
    /// Those of texts up to a length, and those of longer ones.
    Two { up_to: usize, short: Vec<f32>, long: Vec<f32> },
    /// Others for each length above the original one.
    Growing { theta: f64, width: usize, factor: f64, original: usize },
}

impl Rope {
    /// None where positions are learned.
    ///
    /// # Panics
    /// More than `head_width` elements turn: a configuration is checked for it.
    pub(crate) fn of(
        positions: &Positions,
        head_width: usize,
        (device, dtype): (&Device, DType),
    ) -> Option<Self> {
        let Positions::Rotary { theta, width, scaling, attention_factor } = positions else { return None };
        let frequencies = Frequencies::new(*theta, *width, scaling);
        let half = width.div_ceil(2);
        let mut matrix = vec![0.0f32; head_width * head_width];
        for i in 0..half {
            matrix[(i + half) * head_width + i] = -1.0;
            matrix[i * head_width + i + half] = 1.0;
        }
        let half_turn = Tensor::from_data(TensorData::new(matrix, [head_width, head_width]), device);
        let attention_factor = *attention_factor as f32;
        let half_turn = cast(half_turn, dtype);
        Some(Self { frequencies, attention_factor, head_width, turned: 2 * half, half_turn })
    }

    /// The angles of a batch's tokens; one row serves a whole batch where all its texts have the same.
    pub(crate) fn angles(&self, layout: &Layout, device: &Device) -> Angles {
        let positions = layout.positions();
        let lengths = self.frequencies.go_by_length().then(|| layout.text_lengths());
        let (rows, tokens) =
            (lengths.as_ref().map_or(positions.len(), Vec::len), positions.first().map_or(0, Vec::len));
        let cells = rows * tokens * self.head_width;
        let (mut cos, mut sin) = (Vec::with_capacity(cells), Vec::with_capacity(cells));
        let mut current = (0, self.frequencies.of(0));
        for row in 0..rows {
            let lengths = lengths.as_ref().map(|lengths| &lengths[row]);
            for (token, &position) in positions[row.min(positions.len() - 1)].iter().enumerate() {
                let length = lengths.map_or(0, |lengths| lengths[token]);
                if length != current.0 {
                    current = (length, self.frequencies.of(length));
                }
                let turns = current.1.iter().map(|frequency| position as f32 * frequency);
                for angle in turns.clone().chain(turns) {
                    cos.push(angle.cos() * self.attention_factor);
                    sin.push(angle.sin() * self.attention_factor);
                }
                let still = self.head_width - 2 * current.1.len();
                cos.extend(std::iter::repeat_n(1.0, still));
                sin.extend(std::iter::repeat_n(0.0, still));
            }
        }
        let tensor = |values| {
            let values = TensorData::new(values, [rows, tokens, 1, self.head_width]);
            let dtype = if on_host(device) { DType::F32 } else { self.half_turn.dtype() };
            cast(Tensor::from_data(values, device), dtype)
        };
        Angles { cos: tensor(cos), sin: tensor(sin) }
    }

    /// Whether a token is turned by how long its text is.
    pub(crate) fn goes_by_length(&self) -> bool {
        self.frequencies.go_by_length()
    }

    /// Turns each head by its position, and multiplies it.
    ///
    /// # Shapes
    /// `x` and the result: `[B, T, H, E]`.
    pub(crate) fn turn(&self, x: Tensor<4>, angles: &Angles, scale: f64) -> Tensor<4> {
        if on_host(&x.device()) {
            let (dtype, angles) = (x.dtype(), [angles.cos.clone(), angles.sin.clone()]);
            return cast(fused::turned(cast(x, DType::F32), angles, self.turned, scale), dtype);
        }
        let x = if scale == 1.0 { x } else { x * scale };
        let [batch, tokens, heads, width] = x.dims();
        let halves = x.clone().reshape([batch * tokens * heads, width]).matmul(self.half_turn.clone());
        x * angles.cos.clone() + halves.reshape([batch, tokens, heads, width]) * angles.sin.clone()
    }
}

impl Frequencies {
    pub(crate) fn new(theta: f64, width: usize, scaling: &RopeScaling) -> Self {
        let plain = || powers(theta as f32, width).map(|power| 1.0 / power);
        let divided = |factors: &[f64]| {
            powers(theta as f32, width)
                .zip(factors)
                .map(|(power, &factor)| 1.0 / (factor as f32 * power))
                .collect()
        };
        match *scaling {
            RopeScaling::None => Self::Fixed(plain().collect()),
            RopeScaling::Linear { factor } => {
                Self::Fixed(plain().map(|frequency| frequency / factor as f32).collect())
            }
            RopeScaling::Proportional { factor, pairs } => {
                let turned = plain().take(pairs).map(|frequency| frequency / factor as f32);
                Self::Fixed(turned.chain(std::iter::repeat(0.0)).take(width / 2).collect())
            }
            RopeScaling::Dynamic { factor, original } => Self::Growing { theta, width, factor, original },
            RopeScaling::Yarn { .. } => Self::Fixed(yarn(theta, width, scaling)),
            RopeScaling::LongRope { ref short, ref long, original } => {
                Self::Two { up_to: original, short: divided(short), long: divided(long) }
            }
            RopeScaling::Llama3 { .. } => {
                Self::Fixed(plain().map(|frequency| llama3(frequency, scaling)).collect())
            }
        }
    }

    /// Whether texts of different lengths have different frequencies.
    fn go_by_length(&self) -> bool {
        !matches!(self, Self::Fixed(_))
    }

    /// Those of a text of this length; the length does not matter to most.
    fn of(&self, length: usize) -> Cow<'_, [f32]> {
        match self {
            Self::Fixed(all) => all.into(),
            Self::Two { up_to, short, long } => if length > *up_to { long } else { short }.into(),
            Self::Growing { theta, width, factor, original } => {
                let exponent = *width as f64 / (*width as f64 - 2.0);
                let theta = if length > *original {
                    // The peer has the length in a tensor: 32 bits.
                    let stretched = *factor as f32 * length as f32 / *original as f32 - (factor - 1.0) as f32;
                    *theta as f32 * stretched.powf(exponent as f32)
                } else {
                    (theta * (factor - (factor - 1.0)).powf(exponent)) as f32
                };
                powers(theta, *width).map(|power| 1.0 / power).collect()
            }
        }
    }

    /// Whether all are numbers, for short and for long texts.
    pub(crate) fn are_finite(&self) -> bool {
        const LONG: usize = 1 << 27;
        [0, LONG].iter().all(|&length| self.of(length).iter().all(|frequency| frequency.is_finite()))
    }
}

/// `theta^(2i/W)` of each pair.
fn powers(theta: f32, width: usize) -> impl Iterator<Item = f32> + Clone {
    (0..width).step_by(2).map(move |place| theta.powf(place as f32 / width as f32))
}

/// As `_compute_yarn_parameters`.
fn yarn(theta: f64, width: usize, scaling: &RopeScaling) -> Vec<f32> {
    let &RopeScaling::Yarn { factor, original, beta_fast, beta_slow, truncate } = scaling else {
        unreachable!("it is called for YaRN alone")
    };
    // The pair that turns this often over the original positions.
    let place = |turns: f64| width as f64 * (original as f64 / (turns * TAU)).ln() / (2.0 * theta.ln());
    let (low, high) = (place(beta_fast), place(beta_slow));
    let (low, high) = if truncate { (low.floor(), high.ceil()) } else { (low, high) };
    let (low, high) = (low.max(0.0), high.min(width as f64 - 1.0));
    let high = if low == high { high + 0.001 } else { high };
    let blend = |(pair, power): (usize, f32)| {
        let divided = ((pair as f32 - low as f32) / (high - low) as f32).clamp(0.0, 1.0);
        let kept = 1.0 - divided;
        1.0 / (factor as f32 * power) * (1.0 - kept) + 1.0 / power * kept
    };
    powers(theta as f32, width).enumerate().map(blend).collect()
}

/// As `_compute_llama3_parameters`.
fn llama3(frequency: f32, scaling: &RopeScaling) -> f32 {
    let &RopeScaling::Llama3 { factor, low, high, original } = scaling else {
        unreachable!("it is called for Llama 3 alone")
    };
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
