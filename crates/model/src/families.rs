//! What each family's `config.json` says, in the fields of [`DecoderConfig`].

use std::path::Path;

use serde_json::{Map, Value, json};

use crate::Error;
use crate::config::{
    Activation, Block, CONFIG, DecoderConfig, Family, FusedQkv, MAX_CONFIG_BYTES, NormKind, Positions,
    RopeScaling,
};
use crate::files::read_text;

/// The window of a Mistral whose file says nothing, as in transformers.
const MISTRAL_WINDOW: usize = 4096;
/// Width of a head of a Qwen3 whose file says nothing, as in transformers.
const QWEN3_HEAD: usize = 128;
const SUPPORTED: &str = "supported: llama, mistral, qwen2, qwen3, gpt_neox, opt, gpt2";

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
        Self::read(&file)
    }

    /// Reads a configuration from a file of any name.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn read(file: &Path) -> Result<Self, Error> {
        let text = read_text(file, MAX_CONFIG_BYTES)?;
        let value = serde_json::from_str(&text).map_err(|error| Error::config(file, error.to_string()))?;
        Self::from_value(value, file)
    }

    /// Checks a configuration given as JSON; `place` is the file that errors name.
    ///
    /// # Errors
    /// A value is missing or out of range, or describes a model that this crate does not compute.
    pub fn from_value(value: Value, place: &Path) -> Result<Self, Error> {
        let Value::Object(original) = value else {
            return Err(Error::config(place, "expected a JSON object"));
        };
        let config = read(&Keys::new(&original, place))?;
        config.check(place)?;
        Ok(config)
    }

    /// The `config.json` of this model in 32-bit floats, keys that were read but not understood included.
    pub fn to_value(&self) -> Value {
        let mut keys = self.original.clone();
        keys.insert("architectures".into(), vec![architecture(self.family)].into());
        // `dtype` is the name in newer files; one of the two names is enough.
        let dtype = if keys.contains_key("dtype") { "dtype" } else { "torch_dtype" };
        keys.insert(dtype.into(), "float32".into());
        // Both libraries' defaults differ between versions: what this model was computed with is written down.
        for (key, value) in written_out(self) {
            keys.entry(key).or_insert(value);
        }
        Value::Object(keys)
    }
}

fn architecture(family: Family) -> &'static str {
    match family {
        Family::Llama => "LlamaForCausalLM",
        Family::Mistral => "MistralForCausalLM",
        Family::Qwen2 => "Qwen2ForCausalLM",
        Family::Qwen3 => "Qwen3ForCausalLM",
        Family::GptNeox => "GPTNeoXForCausalLM",
        Family::Opt => "OPTForCausalLM",
        Family::Gpt2 => "GPT2LMHeadModel",
    }
}

/// The configuration in the file; sizes are checked afterwards.
fn read(keys: &Keys) -> Result<DecoderConfig, Error> {
    if keys.get("quantization_config").is_some() {
        let hint = "use the f32, bf16 or f16 weights of the model";
        return Err(keys.unsupported("quantization_config".into(), hint));
    }
    match keys.get("model_type").and_then(Value::as_str) {
        Some("llama") => llama_like(keys, Family::Llama),
        Some("mistral") => llama_like(keys, Family::Mistral),
        Some("qwen2") => llama_like(keys, Family::Qwen2),
        Some("qwen3") => llama_like(keys, Family::Qwen3),
        Some("gpt_neox") => gpt_neox(keys),
        Some("opt") => opt(keys),
        Some("gpt2") => gpt2(keys),
        Some(other) => Err(keys.unsupported(format!("model_type \"{other}\""), SUPPORTED)),
        None => Err(keys.problem("`model_type`: expected a name such as \"llama\", found nothing")),
    }
}

/// Llama, Mistral, Qwen2 and Qwen3: RMS norms, a gate, rotary angles on whole heads.
fn llama_like(keys: &Keys, family: Family) -> Result<DecoderConfig, Error> {
    let qwen = matches!(family, Family::Qwen2 | Family::Qwen3);
    if qwen && keys.flag("use_sliding_window", false)? {
        return Err(keys.unsupported("use_sliding_window".into(), "full attention is supported"));
    }
    let bias = keys.flag("attention_bias", false)? && family != Family::Mistral;
    let hidden_size = keys.size("hidden_size")?;
    let heads = keys.size("num_attention_heads")?;
    // As in transformers where the file says nothing.
    let usual = if family == Family::Qwen3 { QWEN3_HEAD } else { hidden_size / heads.max(1) };
    let head_dim = keys.size_or("head_dim", usual)?;
    Ok(DecoderConfig {
        num_key_value_heads: keys.size_or("num_key_value_heads", heads)?,
        head_dim,
        positions: rotary(keys, head_dim, 1.0, "rope_theta")?,
        sliding_window: match family {
            // Absent and null differ.
            Family::Mistral if !keys.map.contains_key("sliding_window") => Some(MISTRAL_WINDOW),
            Family::Mistral => keys.optional_size("sliding_window")?,
            _ => None,
        },
        norm_epsilon: keys.number("rms_norm_eps", 1e-6)?,
        activation: keys.activation("hidden_act", "silu")?,
        qk_norm: family == Family::Qwen3,
        qkv_bias: family == Family::Qwen2 || bias,
        output_bias: family != Family::Qwen2 && bias,
        feed_forward_bias: family == Family::Llama && keys.flag("mlp_bias", false)?,
        tie_word_embeddings: keys.flag("tie_word_embeddings", false)?,
        ..common(keys, family, hidden_size, heads)?
    })
}

fn gpt_neox(keys: &Keys) -> Result<DecoderConfig, Error> {
    let hidden_size = keys.size("hidden_size")?;
    let heads = keys.size("num_attention_heads")?;
    let bias = keys.flag("attention_bias", true)?;
    let part = keys.number("rotary_pct", 0.25)?;
    Ok(DecoderConfig {
        positions: rotary(keys, hidden_size / heads.max(1), part, "rotary_emb_base")?,
        norm: NormKind::Layer,
        norm_epsilon: keys.number("layer_norm_eps", 1e-5)?,
        block: if keys.flag("use_parallel_residual", true)? { Block::Parallel } else { Block::PreNorm },
        activation: keys.activation("hidden_act", "gelu")?,
        gated: false,
        fused_qkv: Some(FusedQkv::PerHead),
        qkv_bias: bias,
        output_bias: bias,
        feed_forward_bias: true,
        tie_word_embeddings: keys.flag("tie_word_embeddings", false)?,
        ..common(keys, Family::GptNeox, hidden_size, heads)?
    })
}

fn opt(keys: &Keys) -> Result<DecoderConfig, Error> {
    for (key, usual) in [("enable_bias", true), ("layer_norm_elementwise_affine", true)] {
        if keys.flag(key, usual)? != usual {
            return Err(keys.unsupported(format!("{key} {}", !usual), "the published OPT models have it"));
        }
    }
    let hidden_size = keys.size("hidden_size")?;
    let heads = keys.size("num_attention_heads")?;
    let norm_first = keys.flag("do_layer_norm_before", true)?;
    let longest = keys.size_or("max_position_embeddings", 2048)?;
    Ok(DecoderConfig {
        embedding_size: keys.size_or("word_embed_proj_dim", hidden_size)?,
        intermediate_size: keys.size("ffn_dim")?,
        // The table has two rows that no token uses.
        positions: Positions::Learned { rows: longest.saturating_add(2), offset: 2 },
        norm: NormKind::Layer,
        norm_epsilon: 1e-5,
        final_norm: norm_first && !keys.flag("_remove_final_layer_norm", false)?,
        block: if norm_first { Block::PreNorm } else { Block::PostNorm },
        activation: keys.activation("activation_function", "relu")?,
        gated: false,
        qkv_bias: true,
        output_bias: true,
        feed_forward_bias: true,
        tie_word_embeddings: keys.flag("tie_word_embeddings", true)?,
        initializer_range: keys.number("init_std", 0.02)?,
        ..common(keys, Family::Opt, hidden_size, heads)?
    })
}

fn gpt2(keys: &Keys) -> Result<DecoderConfig, Error> {
    let usual = [
        ("scale_attn_weights", true),
        ("scale_attn_by_inverse_layer_idx", false),
        ("add_cross_attention", false),
    ];
    for (key, usual) in usual {
        if keys.flag(key, usual)? != usual {
            return Err(keys.unsupported(format!("{key} {}", !usual), "the published GPT-2 models differ"));
        }
    }
    let hidden_size = keys.size("n_embd")?;
    let heads = keys.size("n_head")?;
    let longest = keys.size_or("n_positions", 1024)?;
    Ok(DecoderConfig {
        intermediate_size: keys.size_or("n_inner", hidden_size.saturating_mul(4))?,
        num_hidden_layers: keys.size("n_layer")?,
        max_position_embeddings: longest,
        positions: Positions::Learned { rows: longest, offset: 0 },
        norm: NormKind::Layer,
        norm_epsilon: keys.number("layer_norm_epsilon", 1e-5)?,
        activation: keys.activation("activation_function", "gelu_new")?,
        gated: false,
        fused_qkv: Some(FusedQkv::Thirds),
        qkv_bias: true,
        output_bias: true,
        feed_forward_bias: true,
        transposed: true,
        tie_word_embeddings: keys.flag("tie_word_embeddings", true)?,
        ..common(keys, Family::Gpt2, hidden_size, heads)?
    })
}

/// What most families have, in Llama's names; the others' names are read by their own functions.
fn common(keys: &Keys, family: Family, hidden_size: usize, heads: usize) -> Result<DecoderConfig, Error> {
    let own_names = matches!(family, Family::Gpt2);
    Ok(DecoderConfig {
        family,
        vocab_size: keys.size("vocab_size")?,
        hidden_size,
        embedding_size: hidden_size,
        intermediate_size: match family {
            Family::Gpt2 | Family::Opt => 0,
            _ => keys.size("intermediate_size")?,
        },
        num_hidden_layers: if own_names { 0 } else { keys.size("num_hidden_layers")? },
        num_attention_heads: heads,
        num_key_value_heads: heads,
        head_dim: hidden_size / heads.max(1),
        max_position_embeddings: if own_names { 0 } else { keys.size_or("max_position_embeddings", 2048)? },
        positions: Positions::Learned { rows: 0, offset: 0 },
        sliding_window: None,
        norm: NormKind::Rms,
        norm_epsilon: 0.0,
        final_norm: true,
        block: Block::PreNorm,
        activation: Activation::Silu,
        gated: true,
        fused_qkv: None,
        qk_norm: false,
        qkv_bias: false,
        output_bias: false,
        feed_forward_bias: false,
        transposed: false,
        tie_word_embeddings: false,
        initializer_range: keys.number("initializer_range", 0.02)?,
        eos_token_ids: keys.ids("eos_token_id")?,
        original: keys.map.clone(),
    })
}

/// Rotary angles, in the older style (`rope_theta` and `rope_scaling` at the top) or the newer (`rope_parameters`).
fn rotary(keys: &Keys, head_dim: usize, part: f64, theta_key: &str) -> Result<Positions, Error> {
    let mut scaling = RopeScaling::None;
    let mut theta = keys.number(theta_key, 10_000.0)?;
    let mut part = part;
    for key in ["rope_scaling", "rope_parameters"] {
        let Some(settings) = keys.get(key) else { continue };
        let Some(settings) = settings.as_object() else {
            return Err(keys.problem(format!("`{key}`: expected an object, found {settings}")));
        };
        let settings = Keys { map: settings, place: keys.place };
        theta = settings.number("rope_theta", theta)?;
        part = settings.number("partial_rotary_factor", part)?;
        scaling = rope_scaling(&settings, key)?;
    }
    // As transformers rounds it.
    let width = (head_dim as f64 * part) as usize;
    Ok(Positions::Rotary { theta, width, scaling })
}

fn rope_scaling(settings: &Keys, key: &str) -> Result<RopeScaling, Error> {
    let kind = settings.get("rope_type").or_else(|| settings.get("type")).and_then(Value::as_str);
    let factor = || settings.required_number("factor");
    match kind {
        Some("default") => Ok(RopeScaling::None),
        Some("linear") => Ok(RopeScaling::Linear { factor: factor()? }),
        Some("llama3") => Ok(RopeScaling::Llama3 {
            factor: factor()?,
            low: settings.required_number("low_freq_factor")?,
            high: settings.required_number("high_freq_factor")?,
            original: settings.size("original_max_position_embeddings")?,
        }),
        Some(other) => Err(settings
            .unsupported(format!("{key} of type \"{other}\""), "supported: none, default, linear, llama3")),
        None if settings.map.keys().all(|key| ["rope_theta", "partial_rotary_factor"].contains(&&**key)) => {
            Ok(RopeScaling::None)
        }
        None => Err(settings
            .unsupported(format!("{key} without a `rope_type`"), "supported: none, default, linear, llama3")),
    }
}

/// Keys that a written file has even where the one that was read had not.
fn written_out(config: &DecoderConfig) -> Vec<(&'static str, Value)> {
    let mut keys = vec![("tie_word_embeddings", json!(config.tie_word_embeddings))];
    if !matches!(config.family, Family::Gpt2 | Family::Opt | Family::GptNeox) {
        keys.extend([
            ("hidden_act", json!("silu")),
            ("num_key_value_heads", json!(config.num_key_value_heads)),
            ("rms_norm_eps", json!(config.norm_epsilon)),
            ("max_position_embeddings", json!(config.max_position_embeddings)),
        ]);
        if let Positions::Rotary { theta, .. } = config.positions
            && !config.original.contains_key("rope_parameters")
        {
            keys.push(("rope_theta", json!(theta)));
        }
    }
    keys
}

/// The keys of a JSON object; `null` is the same as absent.
struct Keys<'a> {
    map: &'a Map<String, Value>,
    place: &'a Path,
}

impl<'a> Keys<'a> {
    pub(crate) fn new(map: &'a Map<String, Value>, place: &'a Path) -> Self {
        Self { map, place }
    }

    fn get(&self, key: &str) -> Option<&'a Value> {
        self.map.get(key).filter(|value| !value.is_null())
    }

    fn problem(&self, problem: impl Into<String>) -> Error {
        Error::config(self.place, problem)
    }

    fn unsupported(&self, what: String, hint: &'static str) -> Error {
        Error::Unsupported { file: self.place.to_owned(), what, hint }
    }

    fn optional_size(&self, key: &str) -> Result<Option<usize>, Error> {
        let Some(value) = self.get(key) else { return Ok(None) };
        match value.as_u64().and_then(|number| usize::try_from(number).ok()) {
            Some(number) => Ok(Some(number)),
            None => Err(self.problem(format!("`{key}`: expected a whole number, found {value}"))),
        }
    }

    fn size_or(&self, key: &str, default: usize) -> Result<usize, Error> {
        Ok(self.optional_size(key)?.unwrap_or(default))
    }

    fn size(&self, key: &str) -> Result<usize, Error> {
        self.optional_size(key)?
            .ok_or_else(|| self.problem(format!("`{key}`: expected a whole number, found nothing")))
    }

    fn required_number(&self, key: &str) -> Result<f64, Error> {
        match self.get(key) {
            Some(value) => value
                .as_f64()
                .ok_or_else(|| self.problem(format!("`{key}`: expected a number, found {value}"))),
            None => Err(self.problem(format!("`{key}`: expected a number, found nothing"))),
        }
    }

    fn number(&self, key: &str, default: f64) -> Result<f64, Error> {
        if self.get(key).is_some() { self.required_number(key) } else { Ok(default) }
    }

    fn flag(&self, key: &str, default: bool) -> Result<bool, Error> {
        match self.get(key) {
            None => Ok(default),
            Some(Value::Bool(flag)) => Ok(*flag),
            Some(value) => Err(self.problem(format!("`{key}`: expected true or false, found {value}"))),
        }
    }

    fn ids(&self, key: &str) -> Result<Vec<i32>, Error> {
        let values = match self.get(key) {
            None => return Ok(Vec::new()),
            Some(Value::Array(values)) => values.as_slice(),
            Some(value) => std::slice::from_ref(value),
        };
        let id = |value: &Value| value.as_i64().and_then(|id| i32::try_from(id).ok());
        values
            .iter()
            .map(|value| {
                id(value).ok_or_else(|| self.problem(format!("`{key}`: expected token ids, found {value}")))
            })
            .collect()
    }

    fn activation(&self, key: &str, default: &str) -> Result<Activation, Error> {
        let found = match self.get(key) {
            None => default,
            Some(value) => value
                .as_str()
                .ok_or_else(|| self.problem(format!("`{key}`: expected a name, found {value}")))?,
        };
        match found {
            "silu" | "swish" => Ok(Activation::Silu),
            "gelu" => Ok(Activation::Gelu),
            "gelu_new" | "gelu_fast" | "gelu_pytorch_tanh" => Ok(Activation::GeluTanh),
            "relu" => Ok(Activation::Relu),
            other => Err(self.unsupported(
                format!("{key} \"{other}\""),
                "supported: silu, gelu, gelu_new, gelu_fast, gelu_pytorch_tanh, relu",
            )),
        }
    }
}
