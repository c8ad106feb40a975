//! A decoder's shape, as [`crate::families`] reads it from Hugging Face's `config.json`.
//!
//! Families differ by the fields here and by the names of their tensors ([`crate::names`]), nowhere else.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde_json::{Map, Value};

use crate::Error;
use crate::layout::Layout;
use crate::rope::Frequencies;

pub(crate) const CONFIG: &str = "config.json";

/// Longer than the configuration of any model or adapter.
pub(crate) const MAX_CONFIG_BYTES: u64 = 1 << 20;
/// More layers than any decoder has: a larger number in a file is not believed.
pub(crate) const MAX_LAYERS: usize = 4096;
/// More elements than any head has that is turned: the matrix that turns it has the square of them.
const MAX_ROTARY_HEAD: usize = 1 << 12;
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
#[derive(Debug, Clone, PartialEq)]
pub enum Positions {
    /// Queries and keys are turned by their positions.
    Rotary {
        /// Base of the angles.
        theta: f64,
        /// Elements of each head over which the frequencies are spread. They are turned in pairs, `width / 2` rounded up; all
        /// others stay.
        width: usize,
        /// What stretches the angles for longer texts.
        scaling: RopeScaling,
        /// Cosines and sines are multiplied by it: 1 but for YaRN and LongRoPE.
        attention_factor: f64,
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
#[derive(Debug, Clone, PartialEq)]
pub enum RopeScaling {
    /// Nothing.
    None,
    /// All frequencies are divided by the factor.
    Linear {
        /// Above 0.
        factor: f64,
    },
    /// Frequencies of whole heads, of which only the first pairs turn; they are divided by the factor.
    Proportional {
        /// Above 0.
        factor: f64,
        /// Pairs that turn.
        pairs: usize,
    },
    /// A text longer than the first training's gets a larger base, which grows with its length (NTK-aware scaling).
    Dynamic {
        /// Above 0.
        factor: f64,
        /// Positions of the first training.
        original: usize,
    },
    /// Slow frequencies are divided by the factor, fast ones kept, those between blended by their place (arXiv 2309.00071).
    Yarn {
        /// Above 0.
        factor: f64,
        /// Positions of the first training.
        original: usize,
        /// Frequencies that turn more often than this over the original positions are kept.
        beta_fast: f64,
        /// Frequencies that turn less often are divided.
        beta_slow: f64,
        /// Whether the ends of the blend are whole places.
        truncate: bool,
    },
    /// Each frequency is divided by a factor of its own: those of texts up to the original length, or those of longer ones
    /// (arXiv 2402.13753).
    LongRope {
        /// A factor a pair.
        short: Vec<f64>,
        /// A factor a pair.
        long: Vec<f64>,
        /// Positions of the first training.
        original: usize,
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

/// What a layer has that another of the same model may not.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LayerConfig {
    /// Each token sees this many tokens, itself included; absent: all before it.
    pub window: Option<usize>,
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
    /// What differs from layer to layer, one value a layer.
    pub layers: Vec<LayerConfig>,
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
    /// Whether the head is the embedding. Not if the folder has a head of its own that differs, whatever its file says.
    pub tie_word_embeddings: bool,
    /// Standard deviation of the weights of a new model.
    pub initializer_range: f64,
    /// Ids that end a text; empty if the file names none.
    pub eos_token_ids: Vec<i32>,
    /// What the file says and the model does not do, as in transformers; a sentence each.
    pub remarks: Vec<String>,
    /// The file as it was read, so that keys unknown here survive a load and a save.
    pub(crate) original: Map<String, Value>,
}

impl DecoderConfig {
    /// The windows of the layers by what they are to texts that lie so: one that hides nothing of them is none.
    pub(crate) fn windows(&self, layout: &Layout) -> BTreeMap<Option<usize>, Vec<Option<usize>>> {
        let mut windows: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for window in self.layers.iter().map(|layer| layer.window).collect::<BTreeSet<_>>() {
            windows.entry(layout.narrowing(window)).or_default().push(window);
        }
        windows
    }

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
            ("sliding_window", self.layers.iter().filter_map(|one| one.window).min().unwrap_or(1), MAX_SIZE),
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
        self.check_rotary(place)?;
        for (key, found) in
            [("norm epsilon", self.norm_epsilon), ("initializer_range", self.initializer_range)]
        {
            check_positive(place, key, found)?;
        }
        Ok(())
    }

    fn check_rotary(&self, place: &Path) -> Result<(), Error> {
        let Positions::Rotary { theta, width, scaling, attention_factor } = &self.positions else {
            return Ok(());
        };
        let (width, pairs) = (*width, width.div_ceil(2));
        if self.head_dim > MAX_ROTARY_HEAD {
            let problem = format!("`head_dim`: expected 1 to {MAX_ROTARY_HEAD}, found {}", self.head_dim);
            return Err(Error::config(place, problem));
        }
        if width == 0 || 2 * pairs > self.head_dim {
            let most = self.head_dim;
            let problem =
                format!("rotary width of a head: expected an even number up to {most}, found {width}");
            return Err(Error::config(place, problem));
        }
        check_positive(place, "rope_theta", *theta)?;
        check_positive(place, "attention_factor", *attention_factor)?;
        match scaling {
            RopeScaling::None => {}
            RopeScaling::Linear { factor }
            | RopeScaling::Proportional { factor, .. }
            | RopeScaling::Dynamic { factor, .. }
            | RopeScaling::Yarn { factor, .. } => check_positive(place, "factor", *factor)?,
            RopeScaling::LongRope { short, long, .. } => {
                for (key, factors) in [("short_factor", short), ("long_factor", long)] {
                    if factors.len() != pairs {
                        let found = factors.len();
                        let problem =
                            format!("`{key}`: expected {pairs} numbers, one a pair of a head, found {found}");
                        return Err(Error::config(place, problem));
                    }
                    factors.iter().try_for_each(|factor| check_positive(place, key, *factor))?;
                }
            }
            RopeScaling::Llama3 { factor, low, high, original } => {
                check_positive(place, "factor", *factor)?;
                check_positive(place, "low_freq_factor", *low)?;
                check_positive(place, "high_freq_factor - low_freq_factor", high - low)?;
                check_positive(place, "original_max_position_embeddings", *original as f64)?;
            }
        }
        // Whatever else a file may say: no angle is without a value.
        if !Frequencies::new(*theta, width, scaling).are_finite() {
            let problem = "rotary positions: expected finite frequencies, found others with these values";
            return Err(Error::config(place, problem));
        }
        Ok(())
    }
}

fn check_positive(place: &Path, key: &str, found: f64) -> Result<(), Error> {
    if found > 0.0 && found.is_finite() {
        return Ok(());
    }
    Err(Error::config(place, format!("`{key}`: expected a positive number, found {found}")))
}
