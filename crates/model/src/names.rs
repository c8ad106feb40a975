//! What a family's tensors are called in its files, and which of them a configuration has.

use crate::config::{DecoderConfig, Family, NormKind, Positions};

/// Names of the parts, without `.weight` and `.bias`; those of a layer come after `layers.N.`.
pub(crate) struct Names {
    /// What files of the model without its head leave out.
    pub(crate) base_prefix: &'static str,
    pub(crate) embedding: &'static str,
    /// Learned positions.
    pub(crate) positions: &'static str,
    /// From the embedding's width to the model's, and back.
    pub(crate) projections: [&'static str; 2],
    pub(crate) layers: &'static str,
    pub(crate) attention_norm: &'static str,
    pub(crate) query: &'static str,
    pub(crate) key: &'static str,
    pub(crate) value: &'static str,
    /// In place of the three, where they are one matrix.
    pub(crate) query_key_value: &'static str,
    pub(crate) query_norm: &'static str,
    pub(crate) key_norm: &'static str,
    pub(crate) output: &'static str,
    pub(crate) feed_forward_norm: &'static str,
    pub(crate) gate: &'static str,
    pub(crate) up: &'static str,
    pub(crate) down: &'static str,
    pub(crate) final_norm: &'static str,
    pub(crate) head: &'static str,
}

/// Llama's names; the other families say what differs. Names of parts that a family has not are never asked for.
const LLAMA: Names = Names {
    base_prefix: "model.",
    embedding: "model.embed_tokens",
    positions: "",
    projections: ["", ""],
    layers: "model.layers",
    attention_norm: "input_layernorm",
    query: "self_attn.q_proj",
    key: "self_attn.k_proj",
    value: "self_attn.v_proj",
    query_key_value: "",
    query_norm: "self_attn.q_norm",
    key_norm: "self_attn.k_norm",
    output: "self_attn.o_proj",
    feed_forward_norm: "post_attention_layernorm",
    gate: "mlp.gate_proj",
    up: "mlp.up_proj",
    down: "mlp.down_proj",
    final_norm: "model.norm",
    head: "lm_head",
};

const GPT_NEOX: Names = Names {
    base_prefix: "gpt_neox.",
    embedding: "gpt_neox.embed_in",
    layers: "gpt_neox.layers",
    query_key_value: "attention.query_key_value",
    output: "attention.dense",
    up: "mlp.dense_h_to_4h",
    down: "mlp.dense_4h_to_h",
    final_norm: "gpt_neox.final_layer_norm",
    head: "embed_out",
    ..LLAMA
};

const OPT: Names = Names {
    embedding: "model.decoder.embed_tokens",
    positions: "model.decoder.embed_positions",
    projections: ["model.decoder.project_in", "model.decoder.project_out"],
    layers: "model.decoder.layers",
    attention_norm: "self_attn_layer_norm",
    output: "self_attn.out_proj",
    feed_forward_norm: "final_layer_norm",
    up: "fc1",
    down: "fc2",
    final_norm: "model.decoder.final_layer_norm",
    ..LLAMA
};

const GPT2: Names = Names {
    base_prefix: "transformer.",
    embedding: "transformer.wte",
    positions: "transformer.wpe",
    layers: "transformer.h",
    attention_norm: "ln_1",
    query_key_value: "attn.c_attn",
    output: "attn.c_proj",
    feed_forward_norm: "ln_2",
    up: "mlp.c_fc",
    down: "mlp.c_proj",
    final_norm: "transformer.ln_f",
    ..LLAMA
};

/// A tensor as it stands in a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Parameter {
    pub(crate) name: String,
    /// As in the file: one number for a vector.
    pub(crate) shape: Vec<usize>,
    pub(crate) kind: ParameterKind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ParameterKind {
    /// Embeddings and linear maps `[outputs, inputs]`.
    Matrix,
    /// Linear maps `[inputs, outputs]`.
    Transposed,
    /// Weights of a normalisation.
    Norm,
    /// Of a normalisation.
    NormBias,
    /// Of a linear map.
    Bias,
}

impl Parameter {
    /// Outputs and inputs of a matrix whatever its orientation in the file; of a vector 1 and its length.
    pub(crate) fn outputs_and_inputs(&self) -> [usize; 2] {
        match (self.kind, self.shape.as_slice()) {
            (ParameterKind::Transposed, &[inputs, outputs]) => [outputs, inputs],
            (_, &[outputs, inputs]) => [outputs, inputs],
            (_, shape) => [1, shape.iter().product()],
        }
    }
}

/// Collects parameters below a prefix.
struct List {
    prefix: String,
    parameters: Vec<Parameter>,
}

impl List {
    fn push(&mut self, name: &str, suffix: &str, shape: &[usize], kind: ParameterKind) {
        let name = format!("{}{name}.{suffix}", self.prefix);
        self.parameters.push(Parameter { name, shape: shape.to_vec(), kind });
    }

    fn matrix(&mut self, name: &str, shape: [usize; 2]) {
        self.push(name, "weight", &shape, ParameterKind::Matrix);
    }

    fn norm(&mut self, name: &str, width: usize, kind: NormKind) {
        self.push(name, "weight", &[width], ParameterKind::Norm);
        if kind == NormKind::Layer {
            self.push(name, "bias", &[width], ParameterKind::NormBias);
        }
    }

    fn linear(&mut self, name: &str, [outputs, inputs]: [usize; 2], bias: bool, transposed: bool) {
        if transposed {
            self.push(name, "weight", &[inputs, outputs], ParameterKind::Transposed);
        } else {
            self.matrix(name, [outputs, inputs]);
        }
        if bias {
            self.push(name, "bias", &[outputs], ParameterKind::Bias);
        }
    }
}

impl DecoderConfig {
    pub(crate) fn names(&self) -> &'static Names {
        match self.family {
            Family::Llama | Family::Mistral | Family::Qwen2 | Family::Qwen3 => &LLAMA,
            Family::GptNeox => &GPT_NEOX,
            Family::Opt => &OPT,
            Family::Gpt2 => &GPT2,
        }
    }

    /// All parameters as they are in safetensors files, in the order of the model.
    pub(crate) fn parameters(&self) -> Vec<Parameter> {
        let names = self.names();
        let mut list = List { prefix: String::new(), parameters: Vec::new() };
        list.matrix(names.embedding, [self.vocab_size, self.embedding_size]);
        if let Positions::Learned { rows, .. } = self.positions {
            list.matrix(names.positions, [rows, self.hidden_size]);
        }
        let narrow = self.embedding_size != self.hidden_size;
        if narrow {
            list.matrix(names.projections[0], [self.hidden_size, self.embedding_size]);
        }
        for layer in 0..self.num_hidden_layers {
            list.prefix = format!("{}.{layer}.", names.layers);
            self.layer_parameters(&mut list);
        }
        list.prefix.clear();
        if self.final_norm {
            list.norm(names.final_norm, self.hidden_size, self.norm);
        }
        if narrow {
            list.matrix(names.projections[1], [self.embedding_size, self.hidden_size]);
        }
        if !self.tie_word_embeddings {
            list.matrix(names.head, [self.vocab_size, self.embedding_size]);
        }
        list.parameters
    }

    fn layer_parameters(&self, list: &mut List) {
        let (names, d, f) = (self.names(), self.hidden_size, self.intermediate_size);
        let queries = self.num_attention_heads * self.head_dim;
        let keys = self.num_key_value_heads * self.head_dim;
        list.norm(names.attention_norm, d, self.norm);
        if self.fused_qkv.is_some() {
            list.linear(names.query_key_value, [queries + 2 * keys, d], self.qkv_bias, self.transposed);
        } else {
            for (name, rows) in [(names.query, queries), (names.key, keys), (names.value, keys)] {
                list.linear(name, [rows, d], self.qkv_bias, self.transposed);
            }
        }
        if self.qk_norm {
            list.norm(names.query_norm, self.head_dim, NormKind::Rms);
            list.norm(names.key_norm, self.head_dim, NormKind::Rms);
        }
        list.linear(names.output, [d, queries], self.output_bias, self.transposed);
        list.norm(names.feed_forward_norm, d, self.norm);
        if self.gated {
            list.linear(names.gate, [f, d], self.feed_forward_bias, self.transposed);
        }
        list.linear(names.up, [f, d], self.feed_forward_bias, self.transposed);
        list.linear(names.down, [d, f], self.feed_forward_bias, self.transposed);
    }

    /// Numbers in the model; a tied head counts once. No weights are read or made for it.
    pub fn parameter_count(&self) -> usize {
        numbers(&self.parameters())
    }

    /// Numbers of one layer.
    pub fn layer_parameter_count(&self) -> usize {
        numbers(&self.parameters_of_layer())
    }

    /// Parameters of one layer; their names begin behind its number.
    pub(crate) fn parameters_of_layer(&self) -> Vec<Parameter> {
        let mut list = List { prefix: String::new(), parameters: Vec::new() };
        self.layer_parameters(&mut list);
        list.parameters
    }
}

fn numbers(parameters: &[Parameter]) -> usize {
    // Saturating: the sizes in a file are only known to be below 2^27 each.
    let sizes = parameters.iter().map(|parameter| parameter.shape.iter().product::<usize>());
    sizes.fold(0, usize::saturating_add)
}
