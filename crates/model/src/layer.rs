//! One decoder layer: attention and feed-forward, in the order that the family has.
//!
//! Legend: N rows (tokens of a batch), D model width, F width inside the feed-forward part.

use burn::tensor::{Tensor, activation};

use crate::attention::{Attention, Context, Projections};
use crate::cache::Cache;
use crate::config::{Activation, Block};
use crate::fused;
use crate::linear::{Dropout, Linear, Weight};
use crate::names::Names;
use crate::norm::Norm;

#[derive(Debug, Clone)]
pub(crate) struct Layer {
    pub(crate) block: Block,
    pub(crate) attention_norm: Norm,
    pub(crate) attention: Attention,
    pub(crate) feed_forward_norm: Norm,
    pub(crate) feed_forward: FeedForward,
}

/// `down(activation(gate(x)) · up(x))`, or `down(activation(up(x)))` without a gate.
#[derive(Debug, Clone)]
pub(crate) struct FeedForward {
    pub(crate) gate: Option<Linear>,
    pub(crate) up: Linear,
    pub(crate) down: Linear,
    pub(crate) activation: Activation,
}

type Named<'a, T> = (&'static str, &'a mut T);

impl Layer {
    /// # Shapes
    /// `x` and the result: `[N, D]`.
    pub(crate) fn forward(
        &self,
        x: Tensor<2>,
        context: &Context<'_>,
        dropout: &mut Dropout,
        cache: Option<&mut Option<Cache>>,
    ) -> Tensor<2> {
        match self.block {
            Block::PreNorm => {
                let normed = self.attention_norm.forward(x.clone());
                let x = x + self.attention.forward(normed, context, dropout, cache);
                let normed = self.feed_forward_norm.forward(x.clone());
                x + self.feed_forward.forward(normed, context, dropout)
            }
            Block::Parallel => {
                let normed = self.attention_norm.forward(x.clone());
                let attended = self.attention.forward(normed, context, dropout, cache);
                let normed = self.feed_forward_norm.forward(x.clone());
                x + attended + self.feed_forward.forward(normed, context, dropout)
            }
            Block::PostNorm => {
                let attended = self.attention.forward(x.clone(), context, dropout, cache);
                let x = self.attention_norm.forward(x + attended);
                self.feed_forward_norm.forward(x.clone() + self.feed_forward.forward(x, context, dropout))
            }
        }
    }

    /// What the attention of this layer reads.
    ///
    /// # Shapes
    /// `x` and the result: `[N, D]`.
    pub(crate) fn attention_input(&self, x: Tensor<2>) -> Tensor<2> {
        match self.block {
            Block::PostNorm => x,
            Block::PreNorm | Block::Parallel => self.attention_norm.forward(x),
        }
    }

    /// The normalisations and the linear maps by their names in files, in the order of the model.
    pub(crate) fn parts_mut(&mut self, names: &Names) -> (Vec<Named<'_, Norm>>, Vec<Named<'_, Linear>>) {
        let Self { attention_norm, attention, feed_forward_norm, feed_forward, block: _ } = self;
        let mut norms = vec![(names.attention_norm, attention_norm)];
        if let Some([query, key]) = &mut attention.head_norms {
            norms.extend([(names.query_norm, query), (names.key_norm, key)]);
        }
        norms.push((names.feed_forward_norm, feed_forward_norm));

        let mut linears = match &mut attention.projections {
            Projections::Separate { query, key, value } => {
                vec![(names.query, query), (names.key, key), (names.value, value)]
            }
            Projections::Fused { all, .. } => vec![(names.query_key_value, all)],
        };
        linears.push((names.output, &mut attention.output));
        linears.extend(feed_forward.gate.as_mut().map(|gate| (names.gate, gate)));
        linears.extend([(names.up, &mut feed_forward.up), (names.down, &mut feed_forward.down)]);
        (norms, linears)
    }

    /// The same layer with the matrices of its linear maps, given in their order.
    pub(crate) fn filled(&self, names: &Names, weights: Vec<Tensor<2>>) -> Self {
        let mut layer = self.clone();
        for ((_, linear), weight) in layer.parts_mut(names).1.into_iter().zip(weights) {
            linear.weight = Weight::Dense(weight);
        }
        layer
    }
}

impl FeedForward {
    fn forward(&self, x: Tensor<2>, context: &Context<'_>, dropout: &mut Dropout) -> Tensor<2> {
        let inner = match &self.gate {
            None => self.activation.apply(self.up.forward(x, dropout)),
            Some(gate) if context.fuses && self.activation == Activation::Silu => {
                let gate = gate.forward(x.clone(), dropout);
                fused::gated(gate, self.up.forward(x, dropout))
            }
            Some(gate) => {
                let gate = self.activation.apply(gate.forward(x.clone(), dropout));
                gate * self.up.forward(x, dropout)
            }
        };
        self.down.forward(inner, dropout)
    }
}

impl Activation {
    /// The function of each element.
    ///
    /// # Shapes
    /// `x` and the result: `[N, D]`.
    pub fn apply(self, x: Tensor<2>) -> Tensor<2> {
        match self {
            Self::Silu => activation::silu(x),
            Self::Gelu => activation::gelu(x),
            Self::GeluTanh => gelu_tanh(x),
            Self::Relu => activation::relu(x),
        }
    }
}

/// `x/2 · (1 + tanh(√(2/π) · (x + 0.044715 x³)))` (arXiv 1606.08415). Burn's takes the cube by a general power.
fn gelu_tanh(x: Tensor<2>) -> Tensor<2> {
    let scale = (2.0 / std::f64::consts::PI).sqrt();
    let inner = (x.clone().square() * 0.044_715 + 1.0) * x.clone() * scale;
    x * (inner.tanh() + 1.0) * 0.5
}
