//! Forward and backward over one micro-batch, and where the time goes.

use std::time::Instant;

use burn::tensor::Tensor;
use serde::Serialize;
use softshard_losses::DistillLoss;
use softshard_model::Decoder;

use crate::batches::Batch;

/// Seconds by part; `forward`, `head` and `backward` are summed over the workers.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Breakdown {
    /// Waiting for the reader.
    pub read: f64,
    /// Embedding and layers.
    pub forward: f64,
    /// Logits and loss, with the gradient of the hidden states.
    pub head: f64,
    /// Gradients of the layers.
    pub backward: f64,
    /// Clipping and the optimizer.
    pub update: f64,
    /// Checkpoints and metrics.
    pub write: f64,
    /// The loop, from its first step to its last.
    pub total: f64,
}

impl Breakdown {
    /// Adds the parts that workers measure.
    pub(crate) fn add(&mut self, other: &Breakdown) {
        self.forward += other.forward;
        self.head += other.head;
        self.backward += other.backward;
    }
}

/// What forward and backward over some micro-batches gave.
#[derive(Default)]
pub(crate) struct Pass {
    /// Summed over labelled tokens, nats.
    pub(crate) cross_entropy: f64,
    /// Summed over labelled tokens, nats.
    pub(crate) kl: f64,
    /// In the order of the parameters.
    pub(crate) gradients: Vec<Tensor<2>>,
    pub(crate) seconds: Breakdown,
}

impl Pass {
    /// One micro-batch through a trainable decoder; its gradients are divided by `divide_by`, the labelled tokens of the
    /// whole step.
    pub(crate) fn over(
        batch: &Batch,
        decoder: &Decoder,
        dropout_seed: u64,
        loss: &DistillLoss,
        divide_by: f64,
    ) -> Self {
        let mut seconds = Breakdown::default();
        let began = Instant::now();
        // Leaves of its own, so that micro-batches share no graph and can run at the same time.
        let mut decoder = decoder.clone();
        for (_, parameter) in decoder.parameters_mut() {
            *parameter = Tensor::from_inner(parameter.clone().inner()).require_grad();
        }
        decoder.set_dropout_seed(Some(dropout_seed));
        let sequences: Vec<&[i32]> = batch.input_ids.iter().map(Vec::as_slice).collect();
        let positions: Vec<&[i32]> = batch.positions.iter().map(Vec::as_slice).collect();
        let hidden = decoder.hidden_before(&sequences, &positions);
        let began = lap(&mut seconds.forward, began);

        let value = loss.compute(hidden, decoder.head(), &batch.targets, divide_by);
        let began = lap(&mut seconds.head, began);

        let found = value.loss.backward();
        let gradient = |(_, parameter): (String, &mut Tensor<2>)| {
            parameter.grad(&found).unwrap_or_else(|| parameter.clone().inner().zeros_like())
        };
        let gradients = decoder.parameters_mut().into_iter().map(gradient).collect();
        lap(&mut seconds.backward, began);
        Pass { cross_entropy: value.cross_entropy_sum, kl: value.kl_sum, gradients, seconds }
    }

    pub(crate) fn add(&mut self, other: Pass) {
        self.cross_entropy += other.cross_entropy;
        self.kl += other.kl;
        self.gradients = if self.gradients.is_empty() {
            other.gradients
        } else {
            let mine = std::mem::take(&mut self.gradients);
            mine.into_iter().zip(other.gradients).map(|(sum, gradient)| sum + gradient).collect()
        };
        self.seconds.add(&other.seconds);
    }
}

/// Adds the time since `began` to `part` and starts the next lap.
pub(crate) fn lap(part: &mut f64, began: Instant) -> Instant {
    let now = Instant::now();
    *part += now.duration_since(began).as_secs_f64();
    now
}
