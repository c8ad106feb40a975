//! The shapes that are measured: those of public models, with random weights.
//!
//! Legend: B batch, T tokens.

use serde_json::{Value, json};

/// A model's shape, and the batches that it is measured on.
pub(crate) struct Shape {
    pub(crate) name: &'static str,
    config: fn() -> Value,
    /// `[B, T]`.
    batches: &'static [[usize; 2]],
}

pub(crate) const SMALL: Shape = Shape {
    name: "Qwen2.5-0.5B shape",
    config: || qwen2(896, 4864, 24, 14, 2, 151_936, true),
    batches: &[[1, 512], [8, 512], [64, 512], [8, 2048]],
};

pub(crate) const LARGE: Shape = Shape {
    name: "Qwen2.5-7B shape",
    config: || qwen2(3584, 18_944, 28, 28, 4, 152_064, false),
    batches: &[[1, 512], [8, 512], [32, 512], [8, 2048]],
};

fn qwen2(
    hidden: usize,
    feed_forward: usize,
    layers: usize,
    heads: usize,
    key_heads: usize,
    vocabulary: usize,
    tied: bool,
) -> Value {
    json!({
        "model_type": "qwen2", "vocab_size": vocabulary, "hidden_size": hidden, "intermediate_size": feed_forward,
        "num_hidden_layers": layers, "num_attention_heads": heads, "num_key_value_heads": key_heads,
        "hidden_act": "silu", "initializer_range": 0.02, "max_position_embeddings": 32_768, "rms_norm_eps": 1e-6,
        "rope_theta": 1_000_000.0, "tie_word_embeddings": tied, "use_sliding_window": false,
    })
}

impl Shape {
    /// `quick`: the same kind of model, a thousandth of the size.
    pub(crate) fn config(&self, quick: bool) -> Value {
        let mut config = (self.config)();
        if quick {
            for (key, value) in [
                ("vocab_size", 512),
                ("hidden_size", 64),
                ("intermediate_size", 160),
                ("num_hidden_layers", 2),
            ] {
                config[key] = json!(value);
            }
            config["num_attention_heads"] = json!(4);
            config["num_key_value_heads"] = json!(2);
        }
        config
    }

    pub(crate) fn batches(&self, quick: bool) -> &'static [[usize; 2]] {
        if quick { &[[1, 16], [2, 16]] } else { self.batches }
    }

    /// By which the measurements of two programs are brought together.
    pub(crate) fn key(&self, [batch, tokens]: [usize; 2]) -> String {
        format!("{} B={batch} T={tokens}", self.name)
    }
}
