//! AdamW and Muon over named parameters, and the global gradient norm.
//!
//! Our own lines rather than Burn's optimizers, whose state is keyed by identifiers that a checkpoint of named
//! tensors cannot carry and whose norm clipping is per parameter (docs/decisions/0002-plain-tensors.md).

use burn::tensor::Tensor;
use softshard_products::on_host;

use crate::{
    adamw::{self, BETA1, BETA2, EPSILON, Rates},
    config::OptimizerKind,
    muon,
};

/// AdamW (Loshchilov and Hutter, arXiv 1711.05101, algorithm 2) with PyTorch's defaults: betas 0.9 and 0.999, epsilon 1e-8;
/// for the matrices of the layers Muon, if that is chosen.
pub struct Optimizer {
    weight_decay: f64,
    /// Steps taken so far.
    pub(crate) steps: u64,
    /// Of every parameter, in the parameters' order.
    moments: Vec<Moments>,
}

/// What is remembered of the gradients of a parameter.
#[expect(clippy::large_enum_variant, reason = "nearly all are of the larger variant")]
enum Moments {
    AdamW { first: Tensor<2>, second: Tensor<2> },
    Muon { momentum: Tensor<2> },
}

impl Optimizer {
    /// An optimizer whose moments are zero for `parameters`.
    pub fn new(kind: OptimizerKind, weight_decay: f64, parameters: &[(String, &mut Tensor<2>)]) -> Self {
        let zeros = |(name, parameter): &(String, &mut Tensor<2>)| {
            let zeros = (**parameter).clone().inner().zeros_like();
            match kind {
                OptimizerKind::Muon if is_matrix_of_layer(name) => Moments::Muon { momentum: zeros },
                OptimizerKind::Muon | OptimizerKind::Adamw => {
                    Moments::AdamW { first: zeros.clone(), second: zeros }
                }
            }
        };
        Optimizer { weight_decay, steps: 0, moments: parameters.iter().map(zeros).collect() }
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
        for (((name, parameter), moments), gradient) in
            parameters.iter_mut().zip(&mut self.moments).zip(gradients)
        {
            let decay = if is_decayed(name) { 1.0 - learning_rate * self.weight_decay } else { 1.0 };
            parameter.inplace(|parameter| {
                let value = parameter.inner();
                let value = match moments {
                    Moments::AdamW { first, second } if on_host(&value.device()) => {
                        let rates = Rates { learning_rate, decay, steps: self.steps };
                        adamw::step(value, [first, second], gradient, &rates)
                    }
                    moments => value * decay - moments.update(self.steps, gradient, learning_rate),
                };
                Tensor::from_inner(value).require_grad()
            });
        }
    }

    /// Everything that it remembers, by `<name>.first`, `<name>.second` and `<name>.momentum`, without autodiff.
    pub(crate) fn tensors(&self, names: &[String]) -> Vec<(String, Tensor<2>)> {
        let of_one = |(name, moments): (&String, &Moments)| -> Vec<(String, Tensor<2>)> {
            moments
                .parts()
                .into_iter()
                .map(|(part, tensor)| (format!("{name}.{part}"), tensor.clone()))
                .collect()
        };
        names.iter().zip(&self.moments).flat_map(of_one).collect()
    }

    /// The tensors to fill by the same names.
    pub(crate) fn tensors_mut(&mut self, names: &[String]) -> Vec<(String, &mut Tensor<2>)> {
        let mut tensors = Vec::new();
        for (name, moments) in names.iter().zip(&mut self.moments) {
            match moments {
                Moments::AdamW { first, second } => {
                    tensors.extend([(format!("{name}.first"), first), (format!("{name}.second"), second)]);
                }
                Moments::Muon { momentum } => tensors.push((format!("{name}.momentum"), momentum)),
            }
        }
        tensors
    }
}

impl Moments {
    /// Takes a gradient and returns the step along it; `steps` counts from 1.
    fn update(&mut self, steps: u64, gradient: Tensor<2>, learning_rate: f64) -> Tensor<2> {
        match self {
            Moments::AdamW { first, second } => {
                let exponent = i32::try_from(steps).unwrap_or(i32::MAX);
                let correction1 = 1.0 - BETA1.powi(exponent);
                let correction2 = 1.0 - BETA2.powi(exponent);
                *first = first.clone() * BETA1 + gradient.clone() * (1.0 - BETA1);
                *second = second.clone() * BETA2 + gradient.square() * (1.0 - BETA2);
                let denominator = (second.clone() / correction2).sqrt() + EPSILON;
                first.clone() / denominator * (learning_rate / correction1)
            }
            Moments::Muon { momentum } => {
                let (next, step) = muon::direction(momentum.clone(), gradient);
                *momentum = next;
                step * learning_rate
            }
        }
    }

    fn parts(&self) -> Vec<(&'static str, &Tensor<2>)> {
        match self {
            Moments::AdamW { first, second } => vec![("first", first), ("second", second)],
            Moments::Muon { momentum } => vec![("momentum", momentum)],
        }
    }
}

/// Whether a parameter is a matrix of one of the numbered layers: embedding and head learn by AdamW.
fn is_matrix_of_layer(name: &str) -> bool {
    is_decayed(name) && name.split('.').any(|part| part.parse::<u32>().is_ok())
}

/// Norm scales and biases are left alone, as the Hugging Face trainer does.
fn is_decayed(name: &str) -> bool {
    let is_norm = name.strip_suffix(".weight").is_some_and(|name| {
        name.ends_with("norm") || name.rsplit('.').next().is_some_and(|last| last.starts_with("ln_"))
    });
    !(is_norm || name.ends_with(".bias"))
}

/// Scales `gradients` so that their common L2 norm is at most `largest`; returns the norm before.
pub fn clip_global_norm(gradients: &mut [Tensor<2>], largest: f64) -> f64 {
    let norm = gradients.iter_mut().map(adamw::sum_of_squares).sum::<f64>().sqrt();
    if norm > largest {
        // PyTorch's clip_grad_norm_ adds 1e-6 to the norm.
        let scale = largest / (norm + 1e-6);
        for gradient in gradients {
            adamw::scale(gradient, scale);
        }
    }
    norm
}

#[cfg(test)]
mod tests {
    use burn::tensor::{Device, TensorData};

    use super::*;

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

    #[test]
    fn norms_and_biases_are_not_decayed_and_layers_learn_by_muon() {
        let vectors =
            ["model.norm.weight", "transformer.h.0.ln_1.weight", "model.layers.0.self_attn.q_proj.bias"];
        assert!(vectors.iter().all(|name| !is_decayed(name) && !is_matrix_of_layer(name)));
        let others = ["model.embed_tokens.weight", "lm_head.weight"];
        assert!(others.iter().all(|name| is_decayed(name) && !is_matrix_of_layer(name)));
        assert!(is_matrix_of_layer("model.layers.11.mlp.up_proj.weight"));
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
        let mut parameters =
            vec![("a.weight".to_owned(), &mut weight), ("norm.weight".to_owned(), &mut norm)];
        let mut optimizer = Optimizer::new(OptimizerKind::Adamw, 0.1, &parameters);
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
