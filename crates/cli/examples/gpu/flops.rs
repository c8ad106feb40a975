//! What a pass has to compute, counted: a multiplication and an addition are two.
//!
//! Legend: L tokens of a sequence, D model width, F inside of the feed-forward part, H heads, E head width, V vocabulary.

use softshard_model::DecoderConfig;

/// Of some sequences without their padding. Norms, activations, rotations and the selection are not counted.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Flops {
    /// Matrix products of the layers, on all tokens.
    pub(crate) layers: f64,
    /// Scores and weighted values of the causal half: token t looks at t tokens and itself.
    pub(crate) attention: f64,
    /// The head's product, on labelled rows.
    pub(crate) head: f64,
}

impl Flops {
    /// Of a forward pass over sequences of so many tokens, so many of them labelled.
    pub(crate) fn forward<'a>(
        config: &DecoderConfig,
        lengths: impl IntoIterator<Item = &'a [usize; 2]>,
    ) -> Self {
        let layers = config.num_hidden_layers as f64;
        let attention_width = (config.num_attention_heads * config.head_dim) as f64;
        let head = (config.embedding_size * config.vocab_size) as f64;
        let mut sum = Self::default();
        for &[tokens, labelled] in lengths {
            let (tokens, labelled) = (tokens as f64, labelled as f64);
            sum.layers += 2.0 * layers * matrices_of_layer(config) * tokens;
            // L (L + 1) / 2 pairs, a dot product for the score and a row of values for each.
            sum.attention += 2.0 * layers * attention_width * tokens * (tokens + 1.0);
            sum.head += 2.0 * head * labelled;
        }
        sum
    }

    /// Of forward and backward of an adapter over frozen weights: the gradient by every input, not by the weights. What is computed
    /// again for want of memory is not counted.
    pub(crate) fn step(self) -> f64 {
        2.0 * self.layers + 3.0 * self.attention + 2.0 * self.head
    }

    pub(crate) fn body(self) -> f64 {
        self.layers + self.attention
    }

    pub(crate) fn all(self) -> f64 {
        self.body() + self.head
    }
}

/// Numbers in the matrices of one layer.
fn matrices_of_layer(config: &DecoderConfig) -> f64 {
    let width = config.hidden_size;
    let queries = config.num_attention_heads * config.head_dim;
    let keys = config.num_key_value_heads * config.head_dim;
    let inside = if config.gated { 3 } else { 2 } * config.intermediate_size;
    (width * (2 * queries + 2 * keys + inside)) as f64
}
