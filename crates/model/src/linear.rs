//! A linear map with Hugging Face's orientation, and the low-rank update on top of it.
//!
//! Legend: N rows (tokens of a batch), I inputs, O outputs, R rank.

use burn::tensor::{Tensor, TensorData};
use rand::{RngCore, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// `y = x · Wᵀ + bias`, and with LoRA `+ scale · (dropout(x) · Aᵀ) · Bᵀ`.
#[derive(Debug, Clone)]
pub(crate) struct Linear {
    /// `[O, I]`.
    pub(crate) weight: Tensor<2>,
    /// `[1, O]`.
    pub(crate) bias: Option<Tensor<2>>,
    pub(crate) lora: Option<Lora>,
}

/// The factors of a low-rank update; `W + scale · B · A` is never formed.
#[derive(Debug, Clone)]
pub(crate) struct Lora {
    /// `[R, I]`.
    pub(crate) a: Tensor<2>,
    /// `[O, R]`.
    pub(crate) b: Tensor<2>,
    pub(crate) scale: f64,
    /// Probability that an input of A is dropped while training.
    pub(crate) dropout: f64,
}

impl Linear {
    pub(crate) fn new(weight: Tensor<2>, bias: Option<Tensor<2>>) -> Self {
        Self { weight, bias, lora: None }
    }

    /// # Shapes
    /// `x`: `[N, I]`; the result: `[N, O]`.
    pub(crate) fn forward(&self, x: Tensor<2>, dropout: &mut Dropout) -> Tensor<2> {
        let mut y = x.clone().matmul(self.weight.clone().transpose());
        if let Some(bias) = &self.bias {
            y = y + bias.clone();
        }
        if let Some(lora) = &self.lora {
            let x = dropout.apply(x, lora.dropout);
            let low = x.matmul(lora.a.clone().transpose()) * lora.scale;
            y = y + low.matmul(lora.b.clone().transpose());
        }
        y
    }
}

/// The dropout masks of one forward pass, drawn in the order of the model; none outside of training.
pub(crate) struct Dropout(Option<ChaCha8Rng>);

impl Dropout {
    pub(crate) fn new(seed: Option<u64>) -> Self {
        Self(seed.map(ChaCha8Rng::seed_from_u64))
    }

    /// Zeroes elements with the given probability and scales the others, so that the expectation stays.
    fn apply(&mut self, x: Tensor<2>, probability: f64) -> Tensor<2> {
        let Some(random) = self.0.as_mut().filter(|_| probability > 0.0) else { return x };
        let [rows, width] = x.dims();
        let threshold = (probability * f64::from(u32::MAX)) as u32;
        let kept = (1.0 / (1.0 - probability)) as f32;
        let mask: Vec<f32> =
            (0..rows * width).map(|_| if random.next_u32() < threshold { 0.0 } else { kept }).collect();
        let mask = Tensor::from_data(TensorData::new(mask, [rows, width]), &x.device().without_autodiff());
        x * mask
    }
}
