//! AdamW over named parameters, the global gradient norm, and the learning-rate schedule.
//!
//! Our own forty lines rather than Burn's optimizer, whose state is keyed by identifiers that a checkpoint of named
//! tensors cannot carry and whose norm clipping is per parameter (docs/decisions/0002-plain-tensors.md).

use burn::tensor::Tensor;

const BETA1: f64 = 0.9;
const BETA2: f64 = 0.999;
const EPSILON: f64 = 1e-8;

/// AdamW (Loshchilov and Hutter, arXiv 1711.05101, algorithm 2) with PyTorch's defaults: betas 0.9 and 0.999, epsilon 1e-8.
pub struct AdamW {
    weight_decay: f64,
    /// Steps taken so far.
    pub(crate) steps: u64,
    /// First and second moment of every parameter, in the parameters' order.
    pub(crate) moments: Vec<(Tensor<2>, Tensor<2>)>,
}

impl AdamW {
    /// An optimizer whose moments are zero for `parameters`.
    pub fn new<'a>(weight_decay: f64, parameters: impl IntoIterator<Item = &'a Tensor<2>>) -> Self {
        let zeros = |parameter: &Tensor<2>| {
            let zeros = parameter.clone().inner().zeros_like();
            (zeros.clone(), zeros)
        };
        AdamW { weight_decay, steps: 0, moments: parameters.into_iter().map(zeros).collect() }
    }

    /// One step of every parameter along its gradient. `gradients` stand in the order of `parameters`.
    ///
    /// # Panics
    /// When the number of parameters is not the one that the optimizer was made for: a bug of the caller.
    pub fn step(
        &mut self,
        learning_rate: f64,
        parameters: &mut [(String, &mut Tensor<2>)],
        gradients: Vec<Tensor<2>>,
    ) {
        assert_eq!(parameters.len(), self.moments.len(), "the optimizer was made for other parameters");
        assert_eq!(parameters.len(), gradients.len(), "every parameter has a gradient");
        self.steps += 1;
        let exponent = i32::try_from(self.steps).unwrap_or(i32::MAX);
        let correction1 = 1.0 - BETA1.powi(exponent);
        let correction2 = 1.0 - BETA2.powi(exponent);
        for (((name, parameter), moments), gradient) in
            parameters.iter_mut().zip(&mut self.moments).zip(gradients)
        {
            let first = moments.0.clone() * BETA1 + gradient.clone() * (1.0 - BETA1);
            let second = moments.1.clone() * BETA2 + gradient.square() * (1.0 - BETA2);
            let denominator = (second.clone() / correction2).sqrt() + EPSILON;
            let update = first.clone() / denominator * (learning_rate / correction1);
            let decay = if is_decayed(name) { 1.0 - learning_rate * self.weight_decay } else { 1.0 };
            let value = (**parameter).clone().inner() * decay - update;
            **parameter = Tensor::from_inner(value).require_grad();
            *moments = (first, second);
        }
    }
}

/// Norm scales and biases are left alone, as the Hugging Face trainer does.
fn is_decayed(name: &str) -> bool {
    !(name.ends_with("norm.weight") || name.ends_with(".bias"))
}

/// Scales `gradients` so that their common L2 norm is at most `largest`; returns the norm before.
pub fn clip_global_norm(gradients: &mut [Tensor<2>], largest: f64) -> f64 {
    let squares =
        gradients.iter().map(|gradient| f64::from(gradient.clone().square().sum().into_scalar::<f32>()));
    let norm = squares.sum::<f64>().sqrt();
    if norm > largest {
        // PyTorch's clip_grad_norm_ adds 1e-6 to the norm.
        let scale = largest / (norm + 1e-6);
        for gradient in gradients {
            *gradient = gradient.clone() * scale;
        }
    }
    norm
}

/// Linear warm-up to `peak`, then a half cosine down to `last` at the final step.
#[derive(Clone, Copy, Debug)]
pub struct Cosine {
    /// Learning rate after the warm-up.
    pub peak: f64,
    /// Learning rate that the cosine ends at.
    pub last: f64,
    /// Steps of the warm-up.
    pub warmup_steps: u64,
    /// Steps of the whole run.
    pub total_steps: u64,
}

impl Cosine {
    /// The learning rate of step `step`, counted from 0.
    #[expect(clippy::cast_precision_loss, reason = "step counts are far below 2^53")]
    pub fn at(&self, step: u64) -> f64 {
        if step < self.warmup_steps {
            return self.peak * (step + 1) as f64 / self.warmup_steps as f64;
        }
        let length = self.total_steps.saturating_sub(self.warmup_steps).max(1);
        let done = (step - self.warmup_steps).min(length) as f64 / length as f64;
        self.last + (self.peak - self.last) * 0.5 * (1.0 + (std::f64::consts::PI * done).cos())
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::{Device, TensorData};

    use super::*;

    #[test]
    fn cosine_rises_then_falls_to_its_last_value() {
        let schedule = Cosine { peak: 1.0, last: 0.1, warmup_steps: 2, total_steps: 12 };
        assert!((schedule.at(0) - 0.5).abs() < 1e-12);
        assert!((schedule.at(1) - 1.0).abs() < 1e-12);
        assert!((schedule.at(2) - 1.0).abs() < 1e-12);
        assert!((schedule.at(7) - 0.55).abs() < 1e-12);
        assert!((schedule.at(12) - 0.1).abs() < 1e-12);
    }

    #[test]
    fn clipping_scales_all_gradients_by_one_factor() {
        let device = Device::flex();
        let gradient =
            |values: [f32; 2]| Tensor::<2>::from_data(TensorData::new(values.to_vec(), [1, 2]), &device);
        let mut gradients = vec![gradient([3.0, 0.0]), gradient([0.0, 4.0])];
        assert!((clip_global_norm(&mut gradients, 1.0) - 5.0).abs() < 1e-6);
        let first = gradients[0].to_data().try_to_vec::<f32>().expect("f32 values");
        assert!((first[0] - 0.6).abs() < 1e-5);
    }

    /// `p ← p(1 - lr·wd) - lr·m̂/(√v̂ + ε)` by hand for the first step, where m̂ = g and v̂ = g².
    #[test]
    fn first_step_moves_by_the_learning_rate_against_the_sign() {
        let device = Device::flex().autodiff();
        let mut weight =
            Tensor::<2>::from_data(TensorData::new(vec![1.0f32, -2.0], [1, 2]), &device).require_grad();
        let mut norm = weight.clone();
        let gradient =
            || Tensor::<2>::from_data(TensorData::new(vec![0.5f32, -0.25], [1, 2]), &device).inner();
        let mut optimizer = AdamW::new(0.1, [&weight, &norm]);
        let mut parameters =
            vec![("a.weight".to_owned(), &mut weight), ("norm.weight".to_owned(), &mut norm)];
        optimizer.step(0.01, &mut parameters, vec![gradient(), gradient()]);
        let values = |tensor: &Tensor<2>| tensor.to_data().try_to_vec::<f32>().expect("f32 values");
        let expected = [(values(&weight), [0.999 - 0.01, -1.998 + 0.01]), (values(&norm), [0.99, -1.99])];
        for (found, expected) in expected {
            assert!(
                found.iter().zip(expected).all(|(f, e)| (f - e).abs() < 1e-6),
                "{found:?} != {expected:?}"
            );
        }
    }
}
