//! A decoder's shape, from Hugging Face's `config.json`.

use std::path::Path;

use serde::Deserialize;
use serde_json::{Map, Value};

use crate::Error;

pub(crate) const CONFIG: &str = "config.json";

/// More layers than any decoder has: a larger number in a file is not believed.
const MAX_LAYERS: usize = 4096;
/// Larger than any dimension of a decoder: products of two still fit 64 bits.
const MAX_SIZE: usize = 1 << 27;

/// The architecture named by `model_type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// `LlamaForCausalLM`.
    Llama,
    /// `Qwen2ForCausalLM`: query, key and value projections always have a bias.
    Qwen2,
}

impl Family {
    fn architecture(self) -> &'static str {
        match self {
            Self::Llama => "LlamaForCausalLM",
            Self::Qwen2 => "Qwen2ForCausalLM",
        }
    }
}

/// A decoder's shape and constants. Names are those of `config.json`.
#[derive(Debug, Clone, PartialEq)]
pub struct DecoderConfig {
    /// Architecture.
    pub family: Family,
    /// V: rows of the embedding and of the head; may exceed the tokenizer's.
    pub vocab_size: usize,
    /// D: model width.
    pub hidden_size: usize,
    /// F: width inside the feed-forward layer.
    pub intermediate_size: usize,
    /// Number of layers.
    pub num_hidden_layers: usize,
    /// H: query heads.
    pub num_attention_heads: usize,
    /// Key and value heads; divides H.
    pub num_key_value_heads: usize,
    /// Width of a head, D / H unless the file says otherwise.
    pub head_dim: usize,
    /// Added to the mean square in each normalisation.
    pub rms_norm_eps: f64,
    /// Base of the rotary angles.
    pub rope_theta: f64,
    /// The longest sequence the model was made for.
    pub max_position_embeddings: usize,
    /// Whether the head is the embedding.
    pub tie_word_embeddings: bool,
    /// Whether the query, key and value projections have a bias.
    pub qkv_bias: bool,
    /// Whether the output projection of the attention has a bias.
    pub output_bias: bool,
    /// Standard deviation of the weights of a new model.
    pub initializer_range: f64,
    /// Ids that end a text; empty if the file names none.
    pub eos_token_ids: Vec<i32>,
    /// The file as it was read, so that keys unknown here survive a load and a save.
    original: Map<String, Value>,
}

/// The keys read from the file; all others are carried along.
#[derive(Deserialize)]
struct Keys {
    vocab_size: usize,
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    #[serde(default = "default_rms_norm_eps")]
    rms_norm_eps: f64,
    rope_theta: Option<f64>,
    rope_scaling: Option<Map<String, Value>>,
    rope_parameters: Option<Map<String, Value>>,
    #[serde(default = "default_max_position_embeddings")]
    max_position_embeddings: usize,
    #[serde(default)]
    tie_word_embeddings: bool,
    attention_bias: Option<bool>,
    mlp_bias: Option<bool>,
    use_sliding_window: Option<bool>,
    hidden_act: Option<String>,
    #[serde(default = "default_initializer_range")]
    initializer_range: f64,
    quantization_config: Option<Value>,
    eos_token_id: Option<EosTokenId>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum EosTokenId {
    One(i32),
    Several(Vec<i32>),
}

fn default_rms_norm_eps() -> f64 {
    1e-6
}

fn default_max_position_embeddings() -> usize {
    2048
}

fn default_initializer_range() -> f64 {
    0.02
}

impl DecoderConfig {
    /// Reads `config.json` of a Hugging Face model folder.
    ///
    /// # Errors
    /// The file is missing or does not parse, or it describes a model that this crate does not compute.
    pub fn load(folder: &Path) -> Result<Self, Error> {
        let file = folder.join(CONFIG);
        if !file.exists() {
            let found = if folder.exists() { "no config.json" } else { "no such folder" }.to_owned();
            let hint =
                "a model is a folder with config.json and model.safetensors, as `transformers` saves it";
            return Err(Error::Folder { kind: "model", folder: folder.to_owned(), found, hint });
        }
        let text = fs_err::read_to_string(&file)?;
        let value = serde_json::from_str(&text).map_err(|error| Error::config(&file, error.to_string()))?;
        Self::from_value(value, &file)
    }

    /// Checks a configuration given as JSON; `place` is the file that errors name.
    ///
    /// # Errors
    /// A value is missing or out of range, or describes a model that this crate does not compute.
    pub fn from_value(value: Value, place: &Path) -> Result<Self, Error> {
        let Value::Object(original) = value else {
            return Err(Error::config(place, "expected a JSON object"));
        };
        let family = family(&original, place)?;
        let keys: Keys = serde_json::from_value(Value::Object(original.clone()))
            .map_err(|error| Error::config(place, error.to_string()))?;
        refuse_unsupported(&keys, family, place)?;
        let rope_theta = rope_theta(&keys, place)?;
        let heads = keys.num_attention_heads;
        let llama_bias = keys.attention_bias.unwrap_or(false);
        let config = Self {
            family,
            vocab_size: keys.vocab_size,
            hidden_size: keys.hidden_size,
            intermediate_size: keys.intermediate_size,
            num_hidden_layers: keys.num_hidden_layers,
            num_attention_heads: heads,
            num_key_value_heads: keys.num_key_value_heads.unwrap_or(heads),
            head_dim: keys.head_dim.unwrap_or(keys.hidden_size / heads.max(1)),
            rms_norm_eps: keys.rms_norm_eps,
            rope_theta,
            max_position_embeddings: keys.max_position_embeddings,
            tie_word_embeddings: keys.tie_word_embeddings,
            qkv_bias: family == Family::Qwen2 || llama_bias,
            output_bias: family == Family::Llama && llama_bias,
            initializer_range: keys.initializer_range,
            eos_token_ids: match keys.eos_token_id {
                None => Vec::new(),
                Some(EosTokenId::One(id)) => vec![id],
                Some(EosTokenId::Several(ids)) => ids,
            },
            original,
        };
        config.check(place)?;
        Ok(config)
    }

    /// The `config.json` of this model in 32-bit floats, keys that were read but not understood included.
    pub fn to_value(&self) -> Value {
        let mut keys = self.original.clone();
        keys.insert("architectures".into(), vec![self.family.architecture()].into());
        // `dtype` is the name in newer files; one of the two names is enough.
        let dtype = if keys.contains_key("dtype") { "dtype" } else { "torch_dtype" };
        keys.insert(dtype.into(), "float32".into());
        keys.entry("hidden_act").or_insert("silu".into());
        keys.entry("num_key_value_heads").or_insert(self.num_key_value_heads.into());
        keys.entry("rms_norm_eps").or_insert(self.rms_norm_eps.into());
        // Both libraries' defaults differ between versions: what this model was computed with is written down.
        keys.entry("max_position_embeddings").or_insert(self.max_position_embeddings.into());
        keys.entry("tie_word_embeddings").or_insert(self.tie_word_embeddings.into());
        if !keys.contains_key("rope_parameters") {
            keys.entry("rope_theta").or_insert(self.rope_theta.into());
        }
        Value::Object(keys)
    }

    /// Names and shapes of all parameters as they are in safetensors files, in the order of the model.
    pub(crate) fn parameters(&self) -> Vec<(String, Vec<usize>)> {
        let (d, f) = (self.hidden_size, self.intermediate_size);
        let queries = self.num_attention_heads * self.head_dim;
        let keys = self.num_key_value_heads * self.head_dim;
        let mut list = vec![("model.embed_tokens.weight".to_owned(), vec![self.vocab_size, d])];
        for layer in 0..self.num_hidden_layers {
            let mut add = |name: &str, shape: &[usize]| {
                list.push((format!("model.layers.{layer}.{name}"), shape.to_vec()));
            };
            add("input_layernorm.weight", &[d]);
            for (name, rows) in [("q_proj", queries), ("k_proj", keys), ("v_proj", keys)] {
                add(&format!("self_attn.{name}.weight"), &[rows, d]);
                if self.qkv_bias {
                    add(&format!("self_attn.{name}.bias"), &[rows]);
                }
            }
            add("self_attn.o_proj.weight", &[d, queries]);
            if self.output_bias {
                add("self_attn.o_proj.bias", &[d]);
            }
            add("post_attention_layernorm.weight", &[d]);
            add("mlp.gate_proj.weight", &[f, d]);
            add("mlp.up_proj.weight", &[f, d]);
            add("mlp.down_proj.weight", &[d, f]);
        }
        list.push(("model.norm.weight".into(), vec![d]));
        if !self.tie_word_embeddings {
            list.push(("lm_head.weight".into(), vec![self.vocab_size, d]));
        }
        list
    }

    fn check(&self, place: &Path) -> Result<(), Error> {
        let sizes = [
            ("vocab_size", self.vocab_size, MAX_SIZE),
            ("hidden_size", self.hidden_size, MAX_SIZE),
            ("intermediate_size", self.intermediate_size, MAX_SIZE),
            ("num_hidden_layers", self.num_hidden_layers, MAX_LAYERS),
            ("num_attention_heads", self.num_attention_heads, self.hidden_size),
            ("num_key_value_heads", self.num_key_value_heads, self.num_attention_heads),
            ("head_dim", self.head_dim, MAX_SIZE / self.num_attention_heads.max(1)),
            ("max_position_embeddings", self.max_position_embeddings, MAX_SIZE),
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
        if !self.head_dim.is_multiple_of(2) {
            let problem = format!("`head_dim`: expected an even number, found {}", self.head_dim);
            return Err(Error::config(place, problem));
        }
        let positive = [
            ("rms_norm_eps", self.rms_norm_eps),
            ("rope_theta", self.rope_theta),
            ("initializer_range", self.initializer_range),
        ];
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

fn family(keys: &Map<String, Value>, place: &Path) -> Result<Family, Error> {
    match keys.get("model_type").and_then(Value::as_str) {
        Some("llama") => Ok(Family::Llama),
        Some("qwen2") => Ok(Family::Qwen2),
        Some(other) => Err(unsupported(place, format!("model_type \"{other}\""), "supported: llama, qwen2")),
        None => Err(Error::config(place, "`model_type`: expected \"llama\" or \"qwen2\", found nothing")),
    }
}

fn unsupported(place: &Path, what: String, hint: &'static str) -> Error {
    Error::Unsupported { file: place.to_owned(), what, hint }
}

fn refuse_unsupported(keys: &Keys, family: Family, place: &Path) -> Result<(), Error> {
    if let Some(activation) = keys.hidden_act.as_deref().filter(|name| *name != "silu") {
        return Err(unsupported(place, format!("hidden_act \"{activation}\""), "supported: silu"));
    }
    if keys.mlp_bias == Some(true) {
        return Err(unsupported(place, "mlp_bias".into(), "feed-forward layers without bias are supported"));
    }
    if family == Family::Qwen2 && keys.use_sliding_window == Some(true) {
        return Err(unsupported(place, "use_sliding_window".into(), "full attention is supported"));
    }
    if keys.quantization_config.is_some() {
        return Err(unsupported(
            place,
            "quantization_config".into(),
            "use the f32, bf16 or f16 weights of the model",
        ));
    }
    Ok(())
}

/// The base of the rotary angles; any scaling of them is refused by its name.
fn rope_theta(keys: &Keys, place: &Path) -> Result<f64, Error> {
    for (key, settings) in [("rope_scaling", &keys.rope_scaling), ("rope_parameters", &keys.rope_parameters)]
    {
        let Some(settings) = settings else { continue };
        let kind = settings.get("rope_type").or_else(|| settings.get("type")).and_then(Value::as_str);
        if let Some(kind) = kind.filter(|kind| *kind != "default") {
            return Err(unsupported(place, format!("{key} of type \"{kind}\""), "supported: none, default"));
        }
        if kind.is_none() && settings.keys().any(|key| key != "rope_theta") {
            return Err(unsupported(
                place,
                format!("{key} without a `rope_type`"),
                "supported: none, default",
            ));
        }
    }
    let newer = keys.rope_parameters.as_ref().and_then(|settings| settings.get("rope_theta"));
    match newer {
        Some(value) => value
            .as_f64()
            .ok_or_else(|| Error::config(place, format!("`rope_theta`: expected a number, found {value}"))),
        None => Ok(keys.rope_theta.unwrap_or(10_000.0)),
    }
}
