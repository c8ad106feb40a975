//! The decoder as one struct of tensors: loading, saving, and what of it learns.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use burn::tensor::{Device, Tensor};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use crate::adapter::Attached;
use crate::builder::{Builder, LayerWeights, Source};
use crate::config::CONFIG;
use crate::layer::Layer;
use crate::linear::{DropoutSeed, Linear, Weight};
use crate::lora::LoraShape;
use crate::names::ParameterKind;
use crate::norm::Norm;
use crate::residency::LoadOptions;
use crate::rope::Rope;
use crate::stream::Stream;
use crate::weights::Checkpoint;
use crate::{DecoderConfig, Error, Precision, files, weights};

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
/// A clone shares the weights.
#[derive(Debug, Clone)]
pub struct Decoder {
    pub(crate) config: DecoderConfig,
    /// Of the folder that it was read from.
    pub(crate) name: Option<String>,
    /// Without autodiff.
    pub(crate) device: Device,
    pub(crate) precision: Precision,
    pub(crate) activations: Precision,
    /// `[V, embedding_size]`.
    pub(crate) embedding: Tensor<2>,
    /// Learned positions, `[rows, D]`.
    pub(crate) positions: Option<Tensor<2>>,
    /// From the embedding's width to D, and back.
    pub(crate) projections: Option<[Linear; 2]>,
    pub(crate) layers: Vec<Layer>,
    pub(crate) norm: Option<Norm>,
    /// Absent if the head is the embedding.
    pub(crate) lm_head: Option<Tensor<2>>,
    /// Absent where positions are learned.
    pub(crate) rope: Option<Rope>,
    /// Where the layers' matrices are read from, if they are not in memory.
    pub(crate) stream: Option<Arc<Stream>>,
    pub(crate) lora: Option<Attached>,
    pub(crate) trainable: Trainable,
    pub(crate) dropout_seed: Option<DropoutSeed>,
}

impl Decoder {
    /// Reads a Hugging Face model folder in 32-bit floats, all of it resident. Nothing is trainable at first.
    ///
    /// # Errors
    /// As [`load_with`](Self::load_with).
    pub fn load(folder: &Path, device: &Device) -> Result<Self, Error> {
        Self::load_with(folder, device, &LoadOptions::default())
    }

    /// Reads a Hugging Face model folder. Memory: the weights in the precision asked for and one tensor more; of streamed
    /// weights only the embedding, the head and the vectors.
    ///
    /// # Errors
    /// A file is missing or torn, the model is of a kind that is not supported, or tensors do not fit `config.json`.
    pub fn load_with(folder: &Path, device: &Device, options: &LoadOptions) -> Result<Self, Error> {
        let config = DecoderConfig::load(folder)?;
        for remark in &config.remarks {
            tracing::warn!("`{}`: {remark}", folder.display());
        }
        let device = device.clone().without_autodiff();
        let checkpoint = Arc::new(Checkpoint::open(folder, &config)?);
        let layers = options.layer_weights(&config, &device)?;
        let source = Source::Files(&checkpoint);
        let mut decoder = Builder::new(&config, source, device, options.precision, layers).build()?;
        decoder.name = folder.file_name().map(|name| name.to_string_lossy().into_owned());
        if layers == LayerWeights::Streamed {
            decoder.stream = Some(Arc::new(Stream::new(checkpoint, &decoder)));
        }
        tracing::debug!(folder = %folder.display(), ?layers, "loaded a model");
        Ok(decoder)
    }

    /// A new model with Hugging Face's initialisation: weights from a normal distribution with standard deviation
    /// `initializer_range`, norms one, biases zero. The same seed gives the same model on every device.
    pub fn random(config: DecoderConfig, seed: u64, device: &Device) -> Self {
        let device = device.clone().without_autodiff();
        let random = ChaCha8Rng::seed_from_u64(seed);
        let source = Source::Random { random, deviation: config.initializer_range };
        let built = Builder::new(&config, source, device, Precision::F32, LayerWeights::Dense).build();
        built.expect("numbers are drawn, nothing is read")
    }

    /// [`random`](Self::random) in any precision, with numbers that the device draws itself, so in seconds where there are billions.
    /// They are others on every device and in every process: for measuring speed. Memory: the weights, and one tensor in f32.
    pub fn random_there(config: DecoderConfig, device: &Device, precision: Precision) -> Self {
        let device = device.clone().without_autodiff();
        let source = Source::Device { deviation: config.initializer_range };
        let built = Builder::new(&config, source, device, precision, LayerWeights::Dense).build();
        built.expect("numbers are drawn, nothing is read")
    }

    /// Writes `config.json` and `model.safetensors` (f32) as `transformers` loads them; a LoRA is not written, and not
    /// merged. Each file appears whole or not at all.
    ///
    /// # Errors
    /// The file system refuses, or weights are not in memory as they were in the files.
    pub fn save(&self, folder: &Path) -> Result<(), Error> {
        let parameters: BTreeMap<_, _> =
            self.config.parameters().into_iter().map(|one| (one.name.clone(), one)).collect();
        let mut shared = self.clone();
        let list = shared.model_parameters_mut();
        if list.len() != parameters.len() {
            return Err(Error::Residency("only a model whose weights are all in memory can be saved".into()));
        }
        let tensors = list.into_iter().map(|(name, tensor)| {
            let parameter = &parameters[&name];
            let tensor = match parameter.kind {
                ParameterKind::Transposed => tensor.clone().transpose(),
                _ => tensor.clone(),
            };
            (name, parameter.shape.clone(), tensor)
        });
        files::write_tensors(&folder.join(weights::SINGLE), tensors)?;
        files::write_json(&folder.join(CONFIG), &self.config.to_value())
    }

    /// The model's shape.
    pub fn config(&self) -> &DecoderConfig {
        &self.config
    }

    /// Where it computes.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Type of its weights.
    pub fn precision(&self) -> Precision {
        self.precision
    }

    /// Type of its activations: at first [the one](Precision::of_activations) of its weights and device.
    pub fn activations(&self) -> Precision {
        self.activations
    }

    /// Computes in another type from now on: as another device does, to compare the two.
    pub fn set_activations(&mut self, activations: Precision) {
        self.activations = activations;
    }

    /// The LoRA that is attached: the linear maps that have factors.
    pub fn lora(&self) -> Option<&LoraShape> {
        self.lora.as_ref().map(|attached| &attached.shape)
    }

    /// Whether the layers' matrices are read from the files at every pass.
    pub fn is_streamed(&self) -> bool {
        self.stream.is_some()
    }

    /// The output matrix: logits are `hidden · headᵀ`. It has the type of the weights, hidden states have that of the activations.
    ///
    /// # Shapes
    /// `[V, embedding_size]`.
    pub fn head(&self) -> Tensor<2> {
        self.lm_head.as_ref().unwrap_or(&self.embedding).clone()
    }

    /// Chooses the parameters that learn, and makes all others constants.
    ///
    /// # Panics
    /// The whole model shall learn, but its weights are streamed, quantised or not f32.
    pub fn train(&mut self, trainable: Trainable) {
        self.trainable = trainable;
        let (of_model, of_adapter) = (trainable == Trainable::Model, trainable == Trainable::Adapter);
        assert!(
            !of_model || self.can_train_whole(),
            "all weights are in memory in f32 where all of them learn"
        );
        for (_, tensor) in self.model_parameters_mut() {
            set_trainable(tensor, of_model);
        }
        for (_, tensor) in self.adapter_parameters_mut() {
            set_trainable(tensor, of_adapter);
        }
    }

    /// Whether [`Trainable::Model`] is possible: all weights are in memory in f32.
    pub fn can_train_whole(&self) -> bool {
        let is_dense = |layer: &Layer| {
            let mut layer = layer.clone();
            let (_, linears) = layer.parts_mut(self.config.names());
            linears.iter().all(|(_, linear)| matches!(linear.weight, Weight::Dense(_)))
        };
        self.precision == Precision::F32 && self.layers.iter().all(is_dense)
    }

    /// Draws the dropout of the adapter in the following forward passes from this seed; `None`, as at first, applies
    /// none. Every pass draws the same masks, so a training step gives a seed of its own to every micro-batch.
    pub fn set_dropout_seed(&mut self, seed: Option<u64>) {
        self.dropout_seed = seed.map(|seed| DropoutSeed { seed, part: None });
    }

    /// The same for a part of a batch, of sequences that are not padded: with the tokens before it and the tokens of the whole batch, it
    /// drops what a pass over the whole batch would drop there.
    pub fn set_dropout_of_part(&mut self, seed: u64, tokens_before: usize, tokens: usize) {
        self.dropout_seed = Some(DropoutSeed { seed, part: Some([tokens_before, tokens]) });
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
        self.config.parameter_count()
    }

    /// Numbers that learn.
    pub fn trainable_count(&self) -> usize {
        self.clone().parameters_mut().iter().map(|(_, tensor)| elements(tensor)).sum()
    }

    /// The parameters of the model itself that are in memory as they were in the files, by their names there.
    pub(crate) fn model_parameters_mut(&mut self) -> Vec<(String, &mut Tensor<2>)> {
        let names = self.config.names();
        let mut list = vec![(format!("{}.weight", names.embedding), &mut self.embedding)];
        list.extend(self.positions.as_mut().map(|table| (format!("{}.weight", names.positions), table)));
        let (project_in, project_out) = match &mut self.projections {
            Some([project_in, project_out]) => (Some(project_in), Some(project_out)),
            None => (None, None),
        };
        list.extend(project_in.into_iter().flat_map(|linear| of_linear(names.projections[0], linear)));
        for (index, layer) in self.layers.iter_mut().enumerate() {
            let prefix = format!("{}.{index}", names.layers);
            let (norms, linears) = layer.parts_mut(names);
            list.extend(
                norms.into_iter().flat_map(|(name, norm)| of_norm(&format!("{prefix}.{name}"), norm)),
            );
            let linears = linears.into_iter();
            list.extend(linears.flat_map(|(name, linear)| of_linear(&format!("{prefix}.{name}"), linear)));
        }
        list.extend(self.norm.as_mut().into_iter().flat_map(|norm| of_norm(names.final_norm, norm)));
        list.extend(project_out.into_iter().flat_map(|linear| of_linear(names.projections[1], linear)));
        list.extend(self.lm_head.as_mut().map(|head| (format!("{}.weight", names.head), head)));
        list
    }
}

fn of_norm<'a>(name: &str, norm: &'a mut Norm) -> Vec<(String, &'a mut Tensor<2>)> {
    let mut list = vec![(format!("{name}.weight"), &mut norm.weight)];
    list.extend(norm.bias.as_mut().map(|bias| (format!("{name}.bias"), bias)));
    list
}

fn of_linear<'a>(name: &str, linear: &'a mut Linear) -> Vec<(String, &'a mut Tensor<2>)> {
    let mut list = Vec::new();
    if let Weight::Dense(weight) = &mut linear.weight {
        list.push((format!("{name}.weight"), weight));
    }
    list.extend(linear.bias.as_mut().map(|bias| (format!("{name}.bias"), bias)));
    list
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
