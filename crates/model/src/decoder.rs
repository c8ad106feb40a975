//! The decoder as one struct of tensors.
//!
//! Legend: B batch, T tokens, D model width, V vocabulary, N = B·T rows.

use std::collections::BTreeMap;
use std::path::Path;

use burn::tensor::{Device, Int, Tensor, TensorData};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::adapter::LoraConfig;
use crate::attention::{Attention, Cache, Context, MASKED};
use crate::config::CONFIG;
use crate::layer::{Layer, rms_norm};
use crate::linear::{Dropout, Linear};
use crate::rope::Rope;
use crate::{DecoderConfig, Error, files, weights};

/// Which parameters learn; all others are constants to autodiff.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trainable {
    /// None: no operation leaves a graph.
    Nothing,
    /// The factors of the LoRA that was attached or loaded.
    Adapter,
    /// All of the model itself; a LoRA, if there is one, stays as it is.
    Model,
}

/// A decoder language model, with or without a LoRA.
///
/// A clone shares the weights. Memory: four bytes a parameter.
#[derive(Debug, Clone)]
pub struct Decoder {
    pub(crate) config: DecoderConfig,
    /// Without autodiff.
    pub(crate) device: Device,
    pub(crate) embedding: Tensor<2>,
    pub(crate) layers: Vec<Layer>,
    pub(crate) norm: Tensor<2>,
    /// Absent if the head is the embedding.
    pub(crate) lm_head: Option<Tensor<2>>,
    pub(crate) rope: Rope,
    pub(crate) lora: Option<LoraConfig>,
    trainable: Trainable,
    dropout_seed: Option<u64>,
}

impl Decoder {
    /// Reads a Hugging Face model folder; weights in bf16 and f16 become f32. Nothing is trainable at first.
    ///
    /// # Errors
    /// A file is missing or torn, the model is of a kind that is not supported, or tensors do not fit `config.json`.
    pub fn load(folder: &Path, device: &Device) -> Result<Self, Error> {
        let config = DecoderConfig::load(folder)?;
        let device = device.clone().without_autodiff();
        let tensors = weights::read(folder, &config, &device)?;
        tracing::debug!(folder = %folder.display(), tensors = tensors.len(), "loaded a model");
        Ok(Self::from_tensors(config, tensors, device))
    }

    /// A new model with Hugging Face's initialisation: weights from a normal distribution with standard deviation
    /// `initializer_range`, norms one, biases zero. The same seed gives the same model on every device.
    pub fn random(config: DecoderConfig, seed: u64, device: &Device) -> Self {
        let device = device.clone().without_autodiff();
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let deviation = config.initializer_range;
        let draw = |(name, shape): (String, Vec<usize>)| {
            let columns = shape.last().copied().unwrap_or(1);
            let elements: usize = shape.iter().product();
            let values: Vec<f32> = if name.ends_with("norm.weight") {
                vec![1.0; elements]
            } else if name.ends_with(".bias") {
                vec![0.0; elements]
            } else {
                normal(&mut random, deviation, elements)
            };
            (name, Tensor::from_data(TensorData::new(values, [elements / columns, columns]), &device))
        };
        let tensors = config.parameters().into_iter().map(draw).collect();
        Self::from_tensors(config, tensors, device)
    }

    fn from_tensors(config: DecoderConfig, mut tensors: BTreeMap<String, Tensor<2>>, device: Device) -> Self {
        let mut take = |name: &str| tensors.remove(name).expect("the list of parameters covers the model");
        let embedding = take("model.embed_tokens.weight");
        let layers = (0..config.num_hidden_layers)
            .map(|layer| {
                let mut linear = |name: &str, with_bias: bool| {
                    let name = format!("model.layers.{layer}.{name}");
                    let weight = take(&format!("{name}.weight"));
                    Linear::new(weight, with_bias.then(|| take(&format!("{name}.bias"))))
                };
                let query = linear("self_attn.q_proj", config.qkv_bias);
                let key = linear("self_attn.k_proj", config.qkv_bias);
                let value = linear("self_attn.v_proj", config.qkv_bias);
                let output = linear("self_attn.o_proj", config.output_bias);
                let [gate, up, down] =
                    ["mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"].map(|name| linear(name, false));
                Layer {
                    input_norm: take(&format!("model.layers.{layer}.input_layernorm.weight")),
                    attention: Attention::new(&config, query, key, value, output),
                    post_attention_norm: take(&format!(
                        "model.layers.{layer}.post_attention_layernorm.weight"
                    )),
                    gate,
                    up,
                    down,
                    epsilon: config.rms_norm_eps,
                }
            })
            .collect();
        let norm = take("model.norm.weight");
        let lm_head = (!config.tie_word_embeddings).then(|| take("lm_head.weight"));
        let rope = Rope::new(&config, &device);
        let (trainable, dropout_seed) = (Trainable::Nothing, None);
        Self { config, device, embedding, layers, norm, lm_head, rope, lora: None, trainable, dropout_seed }
    }

    /// Writes `config.json` and `model.safetensors` (f32) as `transformers` loads them; a LoRA is not written, and not
    /// merged. Each file appears whole or not at all.
    ///
    /// # Errors
    /// The file system refuses.
    pub fn save(&self, folder: &Path) -> Result<(), Error> {
        let shapes: BTreeMap<_, _> = self.config.parameters().into_iter().collect();
        let mut shared = self.clone();
        let tensors = shared.model_parameters_mut().into_iter().map(|(name, tensor)| {
            let shape = shapes[&name].clone();
            (name, shape, tensor.clone())
        });
        files::write_tensors(&folder.join(weights::SINGLE), tensors)?;
        files::write_json(&folder.join(CONFIG), &self.config.to_value())
    }

    /// The model's shape.
    pub fn config(&self) -> &DecoderConfig {
        &self.config
    }

    /// The LoRA that is attached.
    pub fn lora(&self) -> Option<&LoraConfig> {
        self.lora.as_ref()
    }

    /// Hidden states after the final normalisation. Causal: what follows a token does not change its row, so padding on
    /// the right is harmless.
    ///
    /// # Shapes
    /// `ids`: `[B, T]`, each in `0..V`; the result: `[B, T, D]`.
    pub fn hidden(&self, ids: Tensor<2, Int>) -> Tensor<3> {
        let ids = ids.without_autodiff();
        let [batch, tokens] = ids.dims();
        let mut context = Context {
            rope: &self.rope,
            angles: self.rope.angles(&[(0..tokens).collect()], &self.device),
            mask: (tokens > 1).then(|| self.causal_mask(tokens)),
            dropout: Dropout::new(self.dropout_seed),
        };
        self.forward(ids, &mut context, None).reshape([batch, tokens, self.config.hidden_size])
    }

    /// The output matrix: logits are `hidden · headᵀ`.
    ///
    /// # Shapes
    /// `[V, D]`.
    pub fn head(&self) -> Tensor<2> {
        self.lm_head.as_ref().unwrap_or(&self.embedding).clone()
    }

    /// Chooses the parameters that learn, and makes all others constants.
    pub fn train(&mut self, trainable: Trainable) {
        self.trainable = trainable;
        let (of_model, of_adapter) = (trainable == Trainable::Model, trainable == Trainable::Adapter);
        for (_, tensor) in self.model_parameters_mut() {
            set_trainable(tensor, of_model);
        }
        for (_, tensor) in self.adapter_parameters_mut() {
            set_trainable(tensor, of_adapter);
        }
    }

    /// Draws the dropout of the adapter in the following forward passes from this seed; `None`, as at first, applies
    /// none. Every pass draws the same masks, so a training step gives a seed of its own to every micro-batch.
    pub fn set_dropout_seed(&mut self, seed: Option<u64>) {
        self.dropout_seed = seed;
    }

    /// The same weights, nothing trainable, without dropout: for evaluation between training steps.
    pub fn frozen(&self) -> Self {
        let mut frozen = self.clone();
        frozen.train(Trainable::Nothing);
        frozen.dropout_seed = None;
        frozen
    }

    /// The trainable parameters by their names in Hugging Face's or PEFT's files, in the order of the model. After a step,
    /// the new value is written back with `require_grad()`.
    pub fn parameters_mut(&mut self) -> Vec<(String, &mut Tensor<2>)> {
        match self.trainable {
            Trainable::Nothing => Vec::new(),
            Trainable::Adapter => self.adapter_parameters_mut(),
            Trainable::Model => self.model_parameters_mut(),
        }
    }

    /// Numbers in the model itself; a tied head counts once.
    pub fn parameter_count(&self) -> usize {
        self.clone().model_parameters_mut().iter().map(|(_, tensor)| elements(tensor)).sum()
    }

    /// Numbers that learn.
    pub fn trainable_count(&self) -> usize {
        self.clone().parameters_mut().iter().map(|(_, tensor)| elements(tensor)).sum()
    }

    /// All parameters of the model itself, by their names in files.
    pub(crate) fn model_parameters_mut(&mut self) -> Vec<(String, &mut Tensor<2>)> {
        let mut list = vec![("model.embed_tokens.weight".to_owned(), &mut self.embedding)];
        for (index, layer) in self.layers.iter_mut().enumerate() {
            let prefix = format!("model.layers.{index}");
            let (norms, linears) = layer.parts_mut();
            list.extend(norms.map(|(name, norm)| (format!("{prefix}.{name}.weight"), norm)));
            for (name, linear) in linears {
                list.push((format!("{prefix}.{name}.weight"), &mut linear.weight));
                list.extend(linear.bias.as_mut().map(|bias| (format!("{prefix}.{name}.bias"), bias)));
            }
        }
        list.push(("model.norm.weight".into(), &mut self.norm));
        list.extend(self.lm_head.as_mut().map(|head| ("lm_head.weight".into(), head)));
        list
    }

    /// All layers and the final normalisation, `[N, D]`.
    pub(crate) fn forward(
        &self,
        ids: Tensor<2, Int>,
        context: &mut Context<'_>,
        mut caches: Option<&mut [Option<Cache>]>,
    ) -> Tensor<2> {
        let [batch, tokens] = ids.dims();
        let mut x = self.embedding.clone().select(0, ids.reshape([batch * tokens]));
        for (index, layer) in self.layers.iter().enumerate() {
            let cache = caches.as_deref_mut().map(|caches| &mut caches[index]);
            x = layer.forward(x, [batch, tokens], context, cache);
        }
        rms_norm(x, &self.norm, self.config.rms_norm_eps)
    }

    /// Hides the tokens that follow: `[1, 1, 1, T, T]`.
    fn causal_mask(&self, tokens: usize) -> Tensor<5> {
        let masked = |row: usize, column: usize| if column > row { MASKED } else { 0.0 };
        let values: Vec<f32> =
            (0..tokens).flat_map(|row| (0..tokens).map(move |column| masked(row, column))).collect();
        Tensor::from_data(TensorData::new(values, [1, 1, 1, tokens, tokens]), &self.device)
    }
}

fn set_trainable(tensor: &mut Tensor<2>, trainable: bool) {
    tensor.inplace(|tensor| {
        let constant = tensor.without_autodiff();
        if trainable { constant.autodiff().require_grad() } else { constant }
    });
}

fn elements(tensor: &Tensor<2>) -> usize {
    let [rows, columns] = tensor.dims();
    rows * columns
}

/// Box and Muller's transform, two numbers at a time.
fn normal(random: &mut ChaCha8Rng, deviation: f64, count: usize) -> Vec<f32> {
    let mut values = Vec::with_capacity(count + 1);
    while values.len() < count {
        // In (0, 1]: the logarithm stays finite.
        let radius = deviation * (-2.0 * (1.0 - random.random::<f64>()).ln()).sqrt();
        let (sin, cos) = (std::f64::consts::TAU * random.random::<f64>()).sin_cos();
        values.extend([(radius * cos) as f32, (radius * sin) as f32]);
    }
    values.truncate(count);
    values
}
