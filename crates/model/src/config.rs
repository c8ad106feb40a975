//! A decoder's shape, as [`crate::families`] reads it from Hugging Face's `config.json`.
//!
//! Families differ by the fields here and by the names of their tensors ([`crate::names`]), nowhere else.

use std::path::Path;

use serde_json::{Map, Value};

use crate::Error;

pub(crate) const CONFIG: &str = "config.json";

/// Longer than the configuration of any model or adapter.
pub(crate) const MAX_CONFIG_BYTES: u64 = 1 << 20;
/// More layers than any decoder has: a larger number in a file is not believed.
const MAX_LAYERS: usize = 4096;
/// Larger than any dimension of a decoder: products of two still fit 64 bits.
const MAX_SIZE: usize = 1 << 27;

/// The architecture named by `model_type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// `LlamaForCausalLM`: Llama 1 to 3.2 and what shares their files.
    Llama,
    /// `MistralForCausalLM`: each token sees the last `sliding_window` ones.
    Mistral,
    /// `Qwen2ForCausalLM` (also Qwen1.5 and Qwen2.5): query, key and value projections always have a bias.
    Qwen2,
    /// `Qwen3ForCausalLM`: queries and keys are normalised per head.
    Qwen3,
    /// `GPTNeoXForCausalLM` (Pythia): attention and feed-forward side by side, rotary angles on a part of each head.
    GptNeox,
    /// `OPTForCausalLM`: learned positions, no gate.
    Opt,
    /// `GPT2LMHeadModel`: learned positions, matrices stored `[inputs, outputs]`.
    Gpt2,
}

/// How a layer or the end of the model normalises.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NormKind {
    /// `x / rms(x) · weight` (arXiv 1910.07467).
    Rms,
    /// `(x - mean) / deviation · weight + bias` (arXiv 1607.06450).
    Layer,
}

/// How attention and feed-forward stand in a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Block {
    /// `x + attention(norm(x))`, then `x + feed_forward(norm(x))`.
    PreNorm,
    /// `x + attention(norm(x)) + feed_forward(norm'(x))`.
    Parallel,
    /// `norm(x + attention(x))`, then `norm(x + feed_forward(x))`.
    PostNorm,
}

/// The non-linearity of the feed-forward part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// `x · sigmoid(x)`.
    Silu,
    /// With the error function.
    Gelu,
    /// With tanh in place of the error function.
    GeluTanh,
    /// `max(x, 0)`.
    Relu,
}

/// One matrix that makes queries, keys and values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FusedQkv {
    /// Rows head by head: `[H, 3, E]`.
    PerHead,
    /// Rows in thirds: `[3, H, E]`.
    Thirds,
}

/// How a token's place enters the model.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Positions {
    /// Queries and keys are turned by their positions.
    Rotary {
        /// Base of the angles.
        theta: f64,
        /// The first elements of each head that are turned, an even number; all others stay.
        width: usize,
        /// What stretches the angles for longer texts.
        scaling: RopeScaling,
    },
    /// A learned row is added to the embedding; row `offset` belongs to the first token.
    Learned {
        /// Rows of the table.
        rows: usize,
        /// Rows before the first token's.
        offset: usize,
    },
}

/// What stretches rotary angles for texts longer than those of the first training.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum RopeScaling {
    /// Nothing.
    None,
    /// All frequencies are divided by the factor.
    Linear {
        /// Above 0.
        factor: f64,
    },
    /// Llama 3.1: slow frequencies are divided by the factor, fast ones kept, those between blended.
    Llama3 {
        /// Above 0.
        factor: f64,
        /// Wavelengths over `original / low` are divided.
        low: f64,
        /// Wavelengths under `original / high` are kept.
        high: f64,
        /// Positions of the first training.
        original: usize,
    },
}

/// A decoder's shape and constants, the same fields for every family.
#[derive(Debug, Clone, PartialEq)]
pub struct DecoderConfig {
    /// Architecture.
    pub family: Family,
    /// V: rows of the embedding and of the head; may exceed the tokenizer's.
    pub vocab_size: usize,
    /// D: model width.
    pub hidden_size: usize,
    /// Width of the embedding and of the states that meet the head: D, or less where two projections lie between.
    pub embedding_size: usize,
    /// F: width inside the feed-forward part.
    pub intermediate_size: usize,
    /// Number of layers.
    pub num_hidden_layers: usize,
    /// H: query heads.
    pub num_attention_heads: usize,
    /// Key and value heads; divides H.
    pub num_key_value_heads: usize,
    /// E: width of a head, D / H unless the file says otherwise.
    pub head_dim: usize,
    /// The longest sequence the model was made for.
    pub max_position_embeddings: usize,
    /// How a token's place enters.
    pub positions: Positions,
    /// Each token sees this many tokens, itself included; absent: all before it.
    pub sliding_window: Option<usize>,
    /// Kind of all normalisations of the stream.
    pub norm: NormKind,
    /// Added to the mean square or the variance in each normalisation.
    pub norm_epsilon: f64,
    /// Whether a normalisation stands before the head.
    pub final_norm: bool,
    /// Order of a layer's parts.
    pub block: Block,
    /// Non-linearity of the feed-forward part.
    pub activation: Activation,
    /// Whether it has a gate: `down(activation(gate(x)) · up(x))` in place of `down(activation(up(x)))`.
    pub gated: bool,
    /// Whether one matrix makes queries, keys and values.
    pub fused_qkv: Option<FusedQkv>,
    /// Whether queries and keys are normalised per head.
    pub qk_norm: bool,
    /// Whether the query, key and value projections have a bias.
    pub qkv_bias: bool,
    /// Whether the output projection of the attention has a bias.
    pub output_bias: bool,
    /// Whether the feed-forward projections have a bias.
    pub feed_forward_bias: bool,
    /// Whether the layers' matrices are stored `[inputs, outputs]`.
    pub transposed: bool,
    /// Whether the head is the embedding.
    pub tie_word_embeddings: bool,
    /// Standard deviation of the weights of a new model.
    pub initializer_range: f64,
    /// Ids that end a text; empty if the file names none.
    pub eos_token_ids: Vec<i32>,
    /// The file as it was read, so that keys unknown here survive a load and a save.
    pub(crate) original: Map<String, Value>,
}

impl DecoderConfig {
    /// Refuses sizes and constants that no decoder has; `place` is the file that errors name.
    pub(crate) fn check(&self, place: &Path) -> Result<(), Error> {
        let sizes = [
            ("vocab_size", self.vocab_size, MAX_SIZE),
            ("hidden_size", self.hidden_size, MAX_SIZE),
            ("word_embed_proj_dim", self.embedding_size, MAX_SIZE),
            ("intermediate_size", self.intermediate_size, MAX_SIZE),
            ("num_hidden_layers", self.num_hidden_layers, MAX_LAYERS),
            ("num_attention_heads", self.num_attention_heads, self.hidden_size),
            ("num_key_value_heads", self.num_key_value_heads, self.num_attention_heads),
            ("head_dim", self.head_dim, MAX_SIZE / self.num_attention_heads.max(1)),
            ("max_position_embeddings", self.max_position_embeddings, MAX_SIZE),
            ("sliding_window", self.sliding_window.unwrap_or(1), MAX_SIZE),
        ];
        for (key, found, most) in sizes {
            if found == 0 || found > most {
                return Err(Error::config(place, format!("`{key}`: expected 1 to {most}, found {found}")));
            }
        }
        let (heads, groups) = (self.num_attention_heads, self.num_key_value_heads);
        if !heads.is_multiple_of(groups) {
            let problem =
                format!("`num_key_value_heads`: expected a divisor of {heads} query heads, found {groups}");
            return Err(Error::config(place, problem));
        }
        let mut positive =
            vec![("norm epsilon", self.norm_epsilon), ("initializer_range", self.initializer_range)];
        if let Positions::Rotary { theta, width, scaling } = self.positions {
            if width == 0 || width > self.head_dim || !width.is_multiple_of(2) {
                let most = self.head_dim;
                let problem =
                    format!("rotary width of a head: expected an even number up to {most}, found {width}");
                return Err(Error::config(place, problem));
            }
            positive.push(("rope_theta", theta));
            match scaling {
                RopeScaling::None => {}
                RopeScaling::Linear { factor } => positive.push(("rope factor", factor)),
                RopeScaling::Llama3 { factor, low, high, original } => {
                    positive.extend([("rope factor", factor), ("low_freq_factor", low)]);
                    positive.push(("high_freq_factor - low_freq_factor", high - low));
                    positive.push(("original_max_position_embeddings", original as f64));
                }
            }
        }
        for (key, found) in positive {
            if !(found > 0.0 && found.is_finite()) {
                return Err(Error::config(
                    place,
                    format!("`{key}`: expected a positive number, found {found}"),
                ));
            }
        }
        Ok(())
    }
}
