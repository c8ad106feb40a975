//! Forward and backward over one micro-batch, and where the time goes.

use std::time::Instant;

use burn::tensor::Tensor;
use serde::Serialize;
use softshard_losses::DistillLoss;
use softshard_model::Decoder;

use crate::{batches::Batch, config::Checkpointing};

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
    /// Held-out data.
    pub evaluate: f64,
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

/// What a pass drops: as a pass over the whole micro-batch does, of which it may be a part.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DropoutOf {
    pub(crate) seed: u64,
    /// Of the micro-batch, before this part.
    pub(crate) tokens_before: usize,
    /// Of the whole micro-batch.
    pub(crate) tokens: usize,
}

/// What forward and backward over some micro-batches gave.
#[derive(Default)]
pub(crate) struct Pass {
    /// Summed over labelled tokens, weighted, not divided.
    pub(crate) loss: f64,
    /// Summed over labelled tokens, nats.
    pub(crate) cross_entropy: f64,
    /// Summed over labelled tokens that have a teacher, nats.
    pub(crate) divergence: f64,
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
        checkpointing: Checkpointing,
        dropout: DropoutOf,
        loss: &DistillLoss,
        divide_by: f64,
    ) -> Result<Self, softshard_model::Error> {
        let mut decoder = decoder.clone();
        let DropoutOf { seed, tokens_before, tokens } = dropout;
        decoder.set_dropout_of_part(seed, tokens_before, tokens);
        match checkpointing {
            Checkpointing::None => Self::whole(batch, decoder, loss, divide_by),
            Checkpointing::Layer => Self::by_layer(batch, &decoder, loss, divide_by),
        }
    }

    /// One graph over the whole model.
    fn whole(
        batch: &Batch,
        mut decoder: Decoder,
        loss: &DistillLoss,
        divide_by: f64,
    ) -> Result<Self, softshard_model::Error> {
        let mut seconds = Breakdown::default();
        let began = Instant::now();
        // Leaves of its own, so that micro-batches share no graph and can run at the same time.
        for (_, parameter) in decoder.parameters_mut() {
            *parameter = Tensor::from_inner(parameter.clone().inner()).require_grad();
        }
        let (sequences, positions) = batch.rows();
        let hidden = decoder.hidden_before(&sequences, &positions, batch.arrangement)?;
        let began = lap(&mut seconds.forward, began);

        let value = loss.compute(hidden, decoder.head(), &batch.targets, divide_by);
        let began = lap(&mut seconds.head, began);

        let found = value.loss.backward();
        let gradient = |(_, parameter): (String, &mut Tensor<2>)| {
            parameter.grad(&found).unwrap_or_else(|| parameter.clone().inner().zeros_like())
        };
        let gradients = decoder.parameters_mut().into_iter().map(gradient).collect();
        lap(&mut seconds.backward, began);
        Ok(Pass::of([value.loss_sum, value.cross_entropy_sum, value.divergence_sum], gradients, seconds))
    }

    /// One graph at a time over each layer.
    fn by_layer(
        batch: &Batch,
        decoder: &Decoder,
        loss: &DistillLoss,
        divide_by: f64,
    ) -> Result<Self, softshard_model::Error> {
        let mut seconds = Breakdown::default();
        let mut began = Instant::now();
        let (sequences, positions) = batch.rows();
        let (gradients, sums) =
            decoder.backward_by_layer(&sequences, &positions, batch.arrangement, |hidden, head| {
                began = lap(&mut seconds.forward, began);
                let value = loss.compute(hidden, head, &batch.targets, divide_by);
                began = lap(&mut seconds.head, began);
                (value.loss, [value.loss_sum, value.cross_entropy_sum, value.divergence_sum])
            })?;
        lap(&mut seconds.backward, began);
        Ok(Pass::of(sums, gradients, seconds))
    }

    fn of(
        [loss, cross_entropy, divergence]: [f64; 3],
        gradients: Vec<Tensor<2>>,
        seconds: Breakdown,
    ) -> Self {
        Pass { loss, cross_entropy, divergence, gradients, seconds }
    }

    pub(crate) fn add(&mut self, other: Pass) {
        self.loss += other.loss;
        self.cross_entropy += other.cross_entropy;
        self.divergence += other.divergence;
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
