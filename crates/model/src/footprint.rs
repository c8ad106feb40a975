//! The memory that a model's weights and its key-value cache take, from its shape alone.

use softshard_products::uses_matrix_units;

use crate::layout::{Layout, QUERIES_PER_TILE};
use crate::names::{Parameter, ParameterKind};
use crate::quantised::Packing;
use crate::{Activation, Bits, DecoderConfig, LoraShape, Precision};

/// Normalisations are f32 in any case.
const NORM_BYTES: u64 = 4;

impl DecoderConfig {
    /// Bytes of all weights once they are loaded: the matrices of the layers as codes if `quantise` says so, normalisations in
    /// 32 bits, everything else in `precision`.
    pub fn resident_bytes(&self, precision: Precision, quantise: Option<Bits>) -> u64 {
        let layers = self.names().layers;
        let bytes = |parameter: &Parameter| match quantise {
            Some(bits) if is_matrix(parameter) && parameter.name.starts_with(layers) => {
                Packing::of(bits, parameter.outputs_and_inputs()).bytes() as u64
            }
            _ => dense_bytes(parameter, precision),
        };
        total(self.parameters().iter().map(bytes))
    }

    /// Bytes of the weights that are in memory at most when layers are streamed: the matrices of two layers, and everything
    /// outside of them.
    pub fn streamed_bytes(&self, precision: Precision) -> u64 {
        let all = self.resident_bytes(precision, None);
        let layers = u64::try_from(self.num_hidden_layers).unwrap_or(u64::MAX);
        let of_layer = total(
            self.parameters_of_layer()
                .iter()
                .filter(|parameter| is_matrix(parameter))
                .map(|parameter| dense_bytes(parameter, precision)),
        );
        all.saturating_sub(of_layer.saturating_mul(layers.saturating_sub(2)))
    }

    /// Bytes of one layer's weights.
    pub fn layer_bytes(&self, precision: Precision) -> u64 {
        total(self.parameters_of_layer().iter().map(|parameter| dense_bytes(parameter, precision)))
    }

    /// Bytes that one token takes while it goes through a layer, if nothing is kept for gradients: the wider of attention, with
    /// the scores of a tile of queries in f32, and feed-forward part, temporaries included.
    pub fn activation_bytes_per_token(&self, precision: Precision) -> u64 {
        /// Copies that are in memory together: the scores, their exponentials and probabilities; of the inside of the
        /// feed-forward part the gate before and after its activation, the other half, their product.
        const SCORES: u64 = 3;
        const INSIDE: u64 = 4;
        let bytes = precision.bytes() as u64;
        let width = count(self.hidden_size);
        let heads = count(self.num_attention_heads).saturating_add(2 * count(self.num_key_value_heads));
        let projected = 2 * heads.saturating_mul(count(self.head_dim));
        let scores = SCORES * 4 * count(self.num_attention_heads) * count(QUERIES_PER_TILE);
        let attention = scores.saturating_add(bytes * (3 * width).saturating_add(projected));
        let feed_forward = bytes * (INSIDE * count(self.intermediate_size)).saturating_add(3 * width);
        attention.max(feed_forward)
    }

    /// What a token takes of a training step while `lora` learns, or the whole model where there is none.
    pub fn training_bytes_per_token(&self, precision: Precision, lora: Option<&LoraShape>) -> TrainingBytes {
        let names = self.names();
        let f32_bytes = NORM_BYTES;
        let bytes = precision.bytes() as u64;
        let (width, inside) = (count(self.hidden_size), count(self.intermediate_size));
        let heads = count(self.num_attention_heads) * count(self.head_dim);
        let keys = 2 * count(self.num_key_value_heads) * count(self.head_dim);
        let learns = |parts: &[&str]| {
            let one = |parameter: &Parameter| {
                let module = module_of(parameter);
                // Of the layers one that has most stands for all.
                let has_factors = |lora: &LoraShape| {
                    let of_layer =
                        |map: &String| map.starts_with(names.layers) && map.ends_with(&format!(".{module}"));
                    lora.maps.keys().any(of_layer)
                };
                parts.contains(&module) && lora.is_none_or(has_factors)
            };
            self.parameters_of_layer().iter().filter(|parameter| is_matrix(parameter)).any(one)
        };
        let read_by_attention = learns(&[names.query, names.key, names.value, names.query_key_value]);
        let read_by_feed_forward = learns(&[names.gate, names.up]);
        // Inputs of what learns, which are f32 for the factors of a LoRA.
        let inputs = u64::from(read_by_attention) * width
            + u64::from(learns(&[names.output])) * heads
            + u64::from(read_by_feed_forward) * width
            + u64::from(learns(&[names.down])) * inside;
        // What each of the two reads.
        let norms = 2;
        // A gate and what it meets; else what the steps of the activation read.
        let halves = match (self.gated, self.activation) {
            (true, _) => 2,
            (false, Activation::Relu) => 1,
            (false, Activation::Silu | Activation::Gelu) => 3,
            (false, Activation::GeluTanh) => 6,
        };
        let kept = bytes * (heads + keys + halves * inside) + f32_bytes * (norms * width + inputs);
        // Of the inside of the feed-forward part the gradients of both halves and of their product.
        let casts = if precision == Precision::F32 { 0 } else { 5 * f32_bytes * inside };
        TrainingBytes {
            input: bytes * width,
            kept,
            passing: bytes * (3 * inside + 3 * width) + casts,
            // In matrix units 32 queries at a time: next to nothing.
            scores: if uses_matrix_units() { 0 } else { 3 * f32_bytes * count(self.num_attention_heads) },
        }
    }

    /// Bytes of the attention masks that a graph over this layout keeps, in f32, where attention goes by
    /// tiles: they grow with the square of the longest text. Layers with the same window share them, and so
    /// do those whose windows hide nothing.
    pub fn mask_bytes(&self, layout: &Layout) -> u64 {
        let numbers = |window: &Option<usize>| count(layout.mask_numbers(&layout.tiles(*window)));
        4 * self.windows(layout).keys().map(numbers).sum::<u64>()
    }

    /// Numbers that a LoRA adds.
    pub fn lora_parameter_count(&self, lora: &LoraShape) -> u64 {
        let numbers = |one: &Parameter| {
            let map = lora.maps.get(module_of(one)).filter(|_| is_matrix(one))?;
            Some(count(map.r) * count(one.outputs_and_inputs().iter().sum()))
        };
        total(self.parameters().iter().filter_map(numbers))
    }

    /// Numbers in the matrices of all layers.
    pub fn numbers_in_matrices_of_layers(&self) -> u64 {
        let matrices = self.parameters_of_layer().into_iter().filter(is_matrix);
        count(self.num_hidden_layers) * matrices.map(|one| dense_bytes(&one, Precision::F32) / 4).sum::<u64>()
    }

    /// Numbers of the largest matrix of the model, embedding and head included.
    pub fn numbers_in_largest_matrix(&self) -> u64 {
        let numbers = |parameter: &Parameter| dense_bytes(parameter, Precision::F32) / 4;
        self.parameters().iter().map(numbers).max().unwrap_or(0)
    }

    /// Bytes of the largest matrix of a layer in `precision`.
    pub fn largest_matrix_bytes(&self, precision: Precision) -> u64 {
        let matrices = self.parameters_of_layer().into_iter().filter(is_matrix);
        matrices.map(|one| dense_bytes(&one, precision)).max().unwrap_or(0)
    }

    /// Bytes of the keys and values that generation keeps for each token.
    pub fn cache_bytes_per_token(&self, precision: Precision) -> u64 {
        let numbers = [2, self.num_hidden_layers, self.num_key_value_heads, self.head_dim, precision.bytes()];
        numbers.into_iter().fold(1, |product, factor| product.saturating_mul(factor as u64))
    }
}

/// What a token takes of a training step, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TrainingBytes {
    /// What a layer reads.
    pub input: u64,
    /// What the graph of one layer keeps for its gradient, its input included.
    pub kept: u64,
    /// What is in memory besides while the gradient of one layer is computed.
    pub passing: u64,
    /// Attention's part of that, for each key that a query of a tile sees.
    pub scores: u64,
}

/// `self_attn.q_proj` of `self_attn.q_proj.weight`.
fn module_of(parameter: &Parameter) -> &str {
    parameter.name.strip_suffix(".weight").unwrap_or(&parameter.name)
}

fn count(size: usize) -> u64 {
    u64::try_from(size).unwrap_or(u64::MAX)
}

fn is_matrix(parameter: &Parameter) -> bool {
    matches!(parameter.kind, ParameterKind::Matrix | ParameterKind::Transposed)
}

fn dense_bytes(parameter: &Parameter, precision: Precision) -> u64 {
    let each = match parameter.kind {
        ParameterKind::Norm | ParameterKind::NormBias => NORM_BYTES,
        ParameterKind::Matrix | ParameterKind::Transposed | ParameterKind::Bias => precision.bytes() as u64,
    };
    parameter.shape.iter().fold(each, |product, &size| product.saturating_mul(size as u64))
}

fn total(bytes: impl Iterator<Item = u64>) -> u64 {
    bytes.fold(0, u64::saturating_add)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use burn::tensor::Device;
    use serde_json::{Value, json};

    use super::*;
    use crate::layer::Layer;
    use crate::linear::Weight;
    use crate::{Decoder, LoadOptions, Residency};

    fn configs() -> Vec<DecoderConfig> {
        let qwen2 = json!({
            "model_type": "qwen2", "vocab_size": 61, "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 3,
            "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "tie_word_embeddings": true,
        });
        // Biases everywhere, learned positions, matrices the other way round.
        let gpt2 = json!({ "model_type": "gpt2", "vocab_size": 61, "n_embd": 24, "n_layer": 3, "n_head": 4, "n_positions": 50 });
        let read = |value: Value| DecoderConfig::from_value(value, Path::new("config.json")).unwrap();
        vec![read(qwen2), read(gpt2)]
    }

    fn bytes_in_memory(mut decoder: Decoder) -> u64 {
        let names = decoder.config.names();
        let codes = |layer: &mut Layer| {
            let of_linear = |weight: &Weight| match weight {
                Weight::Quantised(quantised) => quantised.bytes(),
                _ => 0,
            };
            layer.parts_mut(names).1.into_iter().map(|(_, linear)| of_linear(&linear.weight)).sum::<usize>()
        };
        let codes: usize = decoder.layers.iter_mut().map(codes).sum();
        let dense = decoder.model_parameters_mut().into_iter();
        let dense: usize =
            dense.map(|(_, tensor)| tensor.shape().num_elements() * tensor.dtype().size()).sum();
        (codes + dense) as u64
    }

    #[test]
    fn loaded_weights_take_what_the_shape_says() {
        for config in configs() {
            let folder = tempfile::tempdir().unwrap();
            Decoder::random(config.clone(), 1, &Device::flex()).save(folder.path()).unwrap();
            for precision in [Precision::F32, Precision::Bf16] {
                let load = |residency, quantise| {
                    let options = LoadOptions { precision, residency, quantise };
                    bytes_in_memory(Decoder::load_with(folder.path(), &Device::flex(), &options).unwrap())
                };
                for quantise in [None, Some(Bits::Eight), Some(Bits::Four)] {
                    assert_eq!(
                        load(Residency::Resident, quantise),
                        config.resident_bytes(precision, quantise)
                    );
                }
                let layer = config.parameters_of_layer();
                let matrices =
                    total(layer.iter().filter(|one| is_matrix(one)).map(|one| dense_bytes(one, precision)));
                assert_eq!(load(Residency::Streamed, None) + 2 * matrices, config.streamed_bytes(precision));
            }
            assert_eq!(
                config.resident_bytes(Precision::F32, None) - config.resident_bytes(Precision::Bf16, None),
                2 * (config.parameter_count() as u64 - norms(&config)),
            );
        }
    }

    /// Numbers that are f32 in any case.
    fn norms(config: &DecoderConfig) -> u64 {
        let is_norm = |one: &&Parameter| matches!(one.kind, ParameterKind::Norm | ParameterKind::NormBias);
        total(config.parameters().iter().filter(is_norm).map(|one| dense_bytes(one, Precision::F32) / 4))
    }

    #[test]
    fn masks_are_of_what_a_tile_of_queries_may_see() {
        let [qwen2, _] = configs().try_into().unwrap();
        assert_eq!(qwen2.mask_bytes(&Layout::causal(100)), 4 * 100 * 100);
        let (tile, columns) = (QUERIES_PER_TILE as u64, QUERIES_PER_TILE + 30);
        let keys = 30 + tile;
        assert_eq!(qwen2.mask_bytes(&Layout::causal(columns)), 4 * (tile * tile + 30 * keys));
        // The second tile sees its own text alone.
        let packed = Layout::packed(&[vec![QUERIES_PER_TILE, 30]], columns);
        assert_eq!(qwen2.mask_bytes(&packed), 4 * (tile * tile + 30 * 30));
    }

    #[test]
    fn a_cache_holds_keys_and_values() {
        let [qwen2, gpt2] = configs().try_into().unwrap();
        assert_eq!(qwen2.cache_bytes_per_token(Precision::Bf16), 2 * 3 * 2 * 8 * 2);
        assert_eq!(gpt2.cache_bytes_per_token(Precision::F32), 2 * 3 * 24 * 4);
    }
}
