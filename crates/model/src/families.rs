//! What each family's `config.json` says, in the fields of [`DecoderConfig`]: what transformers 5.23 makes of it.

mod keys;
mod rotary;
mod windows;

use std::path::Path;

use serde_json::{Value, json};

use crate::Error;
use crate::config::{
    Activation, Block, CONFIG, DecoderConfig, Family, FusedQkv, LayerConfig, MAX_CONFIG_BYTES, MAX_LAYERS,
    NormKind, Positions,
};
use crate::files::read_text;
use crate::weights::has_another_head;
use keys::Keys;

/// Width of a head of a Qwen3 whose file says nothing, as in transformers.
const QWEN3_HEAD: usize = 128;
const SUPPORTED: &str = "supported: llama, mistral, qwen2, qwen3, gpt_neox, opt, gpt2";

impl DecoderConfig {
    /// Reads `config.json` of a Hugging Face model folder, and whether its weights have a head that is not the embedding
    /// although the file ties both: then the one that is stored counts. Two heads that seem equal are compared, so
    /// both are read once.
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
        let mut config = Self::read(&file)?;
        if config.tie_word_embeddings && has_another_head(folder, &config) {
            config.tie_word_embeddings = false;
            config.remarks.push(format!(
                "`tie_word_embeddings` is true, but the weights have a `{}` that is not the embedding: it is the head",
                config.names().head
            ));
        }
        Ok(config)
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
        keys.insert("architectures".into(), vec![architecture(self)].into());
        // `dtype` is the name in newer files; one of the two names is enough.
        let dtype = if keys.contains_key("dtype") { "dtype" } else { "torch_dtype" };
        keys.insert(dtype.into(), "float32".into());
        // A stored head counts, whatever the file said.
        keys.insert("tie_word_embeddings".into(), self.tie_word_embeddings.into());
        // Both libraries' defaults differ between versions: what this model was computed with is written down.
        for (key, value) in written_out(self) {
            keys.entry(key).or_insert(value);
        }
        Value::Object(keys)
    }
}

fn architecture(config: &DecoderConfig) -> &'static str {
    match config.family {
        Family::Mistral if config.original.get("model_type") == Some(&json!("ministral")) => {
            "MinistralForCausalLM"
        }
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
    let not_computed = [
        ("quantization_config", "use the f32, bf16 or f16 weights of the model"),
        ("per_layer_config", "all layers have the same sizes; `layer_types` says which have a window"),
    ];
    for (key, hint) in not_computed {
        if keys.get(key).is_some() {
            return Err(keys.unsupported(key.into(), hint));
        }
    }
    match keys.get("model_type").and_then(Value::as_str) {
        Some("llama") => llama_like(keys, Family::Llama),
        // What transformers makes of a Mistral with `layer_types` has the second name.
        Some("mistral" | "ministral") => llama_like(keys, Family::Mistral),
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
    let bias = keys.flag("attention_bias", false)? && family != Family::Mistral;
    let hidden_size = keys.size("hidden_size")?;
    let heads = keys.size("num_attention_heads")?;
    // As in transformers where the file says nothing.
    let usual = if family == Family::Qwen3 { QWEN3_HEAD } else { hidden_size / heads.max(1) };
    let head_dim = keys.size_or("head_dim", usual)?;
    let shared = common(keys, family, hidden_size, heads)?;
    let mut remarks = shared.remarks;
    let positions = rotary::read(keys, family, [head_dim, shared.max_position_embeddings], &mut remarks)?;
    let layers = windows::read(keys, family, shared.layers.len(), &mut remarks)?;
    Ok(DecoderConfig {
        num_key_value_heads: keys.size_or("num_key_value_heads", heads)?,
        head_dim,
        positions,
        layers,
        remarks,
        norm_epsilon: keys.number("rms_norm_eps", 1e-6)?,
        activation: keys.activation("hidden_act", "silu")?,
        qk_norm: family == Family::Qwen3,
        qkv_bias: family == Family::Qwen2 || bias,
        output_bias: family != Family::Qwen2 && bias,
        feed_forward_bias: family == Family::Llama && keys.flag("mlp_bias", false)?,
        tie_word_embeddings: keys.flag("tie_word_embeddings", false)?,
        ..shared
    })
}

fn gpt_neox(keys: &Keys) -> Result<DecoderConfig, Error> {
    let hidden_size = keys.size("hidden_size")?;
    let heads = keys.size("num_attention_heads")?;
    let bias = keys.flag("attention_bias", true)?;
    let shared = common(keys, Family::GptNeox, hidden_size, heads)?;
    let mut remarks = shared.remarks;
    let sizes = [shared.head_dim, shared.max_position_embeddings];
    Ok(DecoderConfig {
        positions: rotary::read(keys, Family::GptNeox, sizes, &mut remarks)?,
        remarks,
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
        ..shared
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
    let layers = if own_names { keys.size("n_layer")? } else { keys.size("num_hidden_layers")? };
    Ok(DecoderConfig {
        family,
        vocab_size: keys.size("vocab_size")?,
        hidden_size,
        embedding_size: hidden_size,
        intermediate_size: match family {
            Family::Gpt2 | Family::Opt => 0,
            _ => keys.size("intermediate_size")?,
        },
        num_hidden_layers: layers,
        num_attention_heads: heads,
        num_key_value_heads: heads,
        head_dim: hidden_size / heads.max(1),
        max_position_embeddings: if own_names {
            0
        } else {
            keys.size_or("max_position_embeddings", usual_context(family))?
        },
        positions: Positions::Learned { rows: 0, offset: 0 },
        // A larger number is refused with the other sizes.
        layers: vec![LayerConfig::default(); layers.min(MAX_LAYERS)],
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
        remarks: Vec::new(),
        original: keys.map.clone(),
    })
}

/// The context of a model whose file says nothing, as in transformers: some rotary angles go by it.
fn usual_context(family: Family) -> usize {
    match family {
        Family::Llama | Family::GptNeox | Family::Opt | Family::Gpt2 => 2048,
        Family::Qwen2 | Family::Qwen3 => 32_768,
        Family::Mistral => 131_072,
    }
}

/// Keys that a written file has even where the one that was read had not.
fn written_out(config: &DecoderConfig) -> Vec<(&'static str, Value)> {
    let mut keys = Vec::new();
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
            // What is in `rope_scaling` goes before it.
            keys.push(("rope_theta", json!(theta)));
        }
    }
    keys
}
