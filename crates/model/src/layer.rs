//! One decoder layer: attention and a gated feed-forward layer, each behind a normalisation and a residual.
//!
//! Legend: N rows (tokens of a batch), D model width, F feed-forward width.

use burn::tensor::{Tensor, activation};

use crate::attention::{Attention, Cache, Context};
use crate::linear::Linear;

#[derive(Debug, Clone)]
pub(crate) struct Layer {
    /// `[1, D]`.
    pub(crate) input_norm: Tensor<2>,
    pub(crate) attention: Attention,
    /// `[1, D]`.
    pub(crate) post_attention_norm: Tensor<2>,
    pub(crate) gate: Linear,
    pub(crate) up: Linear,
    pub(crate) down: Linear,
    pub(crate) epsilon: f64,
}

impl Layer {
    /// # Shapes
    /// `x` and the result: `[N, D]` with `N = batch · tokens`.
    pub(crate) fn forward(
        &self,
        x: Tensor<2>,
        shape: [usize; 2],
        context: &mut Context<'_>,
        cache: Option<&mut Option<Cache>>,
    ) -> Tensor<2> {
        let normed = rms_norm(x.clone(), &self.input_norm, self.epsilon);
        let x = x + self.attention.forward(normed, shape, context, cache);
        let normed = rms_norm(x.clone(), &self.post_attention_norm, self.epsilon);
        let gate = activation::silu(self.gate.forward(normed.clone(), &mut context.dropout));
        let up = self.up.forward(normed, &mut context.dropout);
        x + self.down.forward(gate * up, &mut context.dropout)
    }

    /// The normalisations and the linear maps by their names in files.
    pub(crate) fn parts_mut(&mut self) -> ([Named<'_, Tensor<2>>; 2], [Named<'_, Linear>; 7]) {
        let Self { input_norm, attention, post_attention_norm, gate, up, down, epsilon: _ } = self;
        let norms = [("input_layernorm", input_norm), ("post_attention_layernorm", post_attention_norm)];
        let linears = [
            ("self_attn.q_proj", &mut attention.query),
            ("self_attn.k_proj", &mut attention.key),
            ("self_attn.v_proj", &mut attention.value),
            ("self_attn.o_proj", &mut attention.output),
            ("mlp.gate_proj", gate),
            ("mlp.up_proj", up),
            ("mlp.down_proj", down),
        ];
        (norms, linears)
    }
}

type Named<'a, T> = (&'static str, &'a mut T);

/// `x / sqrt(mean(x²) + epsilon) · weight` (arXiv 1910.07467, equation 4).
///
/// # Shapes
/// `x` and the result: `[N, D]`; `weight`: `[1, D]`.
pub(crate) fn rms_norm(x: Tensor<2>, weight: &Tensor<2>, epsilon: f64) -> Tensor<2> {
    let mean_square = x.clone().square().mean_dim(1);
    x * (mean_square + epsilon).sqrt().recip() * weight.clone()
}
