//! A decoder put together from its parameters, one after the other in the order of the model.

use std::collections::BTreeMap;

use burn::tensor::{Device, Distribution, Tensor, TensorData};
use rand::Rng;
use rand_chacha::ChaCha8Rng;

use crate::attention::{Attention, Heads, Projections};
use crate::config::{DecoderConfig, Positions};
use crate::layer::{FeedForward, Layer};
use crate::linear::{Linear, Weight};
use crate::names::{Parameter, ParameterKind};
use crate::norm::Norm;
use crate::precision::{Precision, cast};
use crate::quantised::{Bits, QuantisationError, Quantised};
use crate::rope::Rope;
use crate::weights::Checkpoint;
use crate::{Decoder, Error, Trainable};

/// Where the numbers come from, and where they go.
pub(crate) struct Builder<'a> {
    config: &'a DecoderConfig,
    parameters: BTreeMap<String, Parameter>,
    source: Source<'a>,
    device: Device,
    precision: Precision,
    layers: LayerWeights,
    /// Of all matrices that were quantised.
    error: QuantisationError,
}

/// How the matrices of the layers are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LayerWeights {
    Dense,
    Quantised(Bits),
    /// They stay in the files.
    Streamed,
}

#[expect(clippy::large_enum_variant, reason = "one a model, while it is built")]
pub(crate) enum Source<'a> {
    /// Hugging Face's initialisation: matrices normal with this standard deviation, norms one, biases zero.
    Random {
        random: ChaCha8Rng,
        deviation: f64,
    },
    /// As above, drawn by the device.
    Device {
        deviation: f64,
    },
    Files(&'a Checkpoint),
}

impl<'a> Builder<'a> {
    pub(crate) fn new(
        config: &'a DecoderConfig,
        source: Source<'a>,
        device: Device,
        precision: Precision,
        layers: LayerWeights,
    ) -> Self {
        let parameters = config.parameters().into_iter().map(|one| (one.name.clone(), one)).collect();
        Self { config, parameters, source, device, precision, layers, error: QuantisationError::default() }
    }

    /// All parts; nothing is trainable at first.
    pub(crate) fn build(mut self) -> Result<Decoder, Error> {
        let (config, names) = (self.config, self.config.names());
        let embedding = self.matrix(&format!("{}.weight", names.embedding))?;
        let positions = match &config.positions {
            Positions::Learned { .. } => Some(self.matrix(&format!("{}.weight", names.positions))?),
            Positions::Rotary { .. } => None,
        };
        let narrow = config.embedding_size != config.hidden_size;
        let project_in = narrow.then(|| self.resident_linear(names.projections[0])).transpose()?;
        let layers =
            (0..config.num_hidden_layers).map(|layer| self.layer(layer)).collect::<Result<_, _>>()?;
        let norm = config.final_norm.then(|| self.norm(names.final_norm)).transpose()?;
        let project_out = narrow.then(|| self.resident_linear(names.projections[1])).transpose()?;
        let head = format!("{}.weight", names.head);
        let lm_head = (!config.tie_word_embeddings).then(|| self.matrix(&head)).transpose()?;
        let activations = self.precision.of_activations(&self.device);
        let rope = Rope::of(&config.positions, config.head_dim, (&self.device, activations.dtype()));
        if let LayerWeights::Quantised(_) = self.layers {
            tracing::info!("quantised the layers' matrices: {}", self.error);
        }
        Ok(Decoder {
            config: config.clone(),
            name: None,
            device: self.device,
            precision: self.precision,
            activations,
            embedding,
            positions,
            projections: project_in.zip(project_out).map(|(one, two)| [one, two]),
            layers,
            norm,
            lm_head,
            rope,
            stream: None,
            lora: None,
            trainable: Trainable::Nothing,
            dropout_seed: None,
        })
    }

    fn layer(&mut self, index: usize) -> Result<Layer, Error> {
        let (config, names) = (self.config, self.config.names());
        let full = |name: &str| format!("{}.{index}.{name}", names.layers);
        let attention_norm = self.norm(&full(names.attention_norm))?;
        let projections = match config.fused_qkv {
            Some(order) => Projections::Fused { all: self.linear(&full(names.query_key_value))?, order },
            None => Projections::Separate {
                query: self.linear(&full(names.query))?,
                key: self.linear(&full(names.key))?,
                value: self.linear(&full(names.value))?,
            },
        };
        let head_norms = if config.qk_norm {
            Some([self.norm(&full(names.query_norm))?, self.norm(&full(names.key_norm))?])
        } else {
            None
        };
        let output = self.linear(&full(names.output))?;
        Ok(Layer {
            block: config.block,
            attention_norm,
            attention: Attention {
                projections,
                head_norms,
                output,
                heads: Heads::of(config),
                window: config.layers[index].window,
            },
            feed_forward_norm: self.norm(&full(names.feed_forward_norm))?,
            feed_forward: FeedForward {
                gate: config.gated.then(|| self.linear(&full(names.gate))).transpose()?,
                up: self.linear(&full(names.up))?,
                down: self.linear(&full(names.down))?,
                activation: config.activation,
            },
        })
    }

    fn norm(&mut self, name: &str) -> Result<Norm, Error> {
        let bias = format!("{name}.bias");
        Ok(Norm {
            weight: self.tensor(&format!("{name}.weight"), Precision::F32)?,
            bias: self.has(&bias).then(|| self.tensor(&bias, Precision::F32)).transpose()?,
            epsilon: self.config.norm_epsilon,
        })
    }

    /// A linear map of a layer.
    fn linear(&mut self, name: &str) -> Result<Linear, Error> {
        let weight = format!("{name}.weight");
        let weight = match self.layers {
            LayerWeights::Dense => Weight::Dense(self.matrix(&weight)?),
            LayerWeights::Quantised(bits) => Weight::Quantised(self.quantised(&weight, bits)?),
            LayerWeights::Streamed => {
                Weight::Streamed { shape: self.parameters[&weight].outputs_and_inputs() }
            }
        };
        self.with_bias(name, weight)
    }

    /// A linear map outside of the layers.
    fn resident_linear(&mut self, name: &str) -> Result<Linear, Error> {
        let weight = Weight::Dense(self.matrix(&format!("{name}.weight"))?);
        self.with_bias(name, weight)
    }

    fn with_bias(&mut self, name: &str, weight: Weight) -> Result<Linear, Error> {
        let bias = format!("{name}.bias");
        let bias = self.has(&bias).then(|| self.matrix(&bias)).transpose()?;
        Ok(Linear::new(weight, bias))
    }

    fn has(&self, name: &str) -> bool {
        self.parameters.contains_key(name)
    }

    fn matrix(&mut self, name: &str) -> Result<Tensor<2>, Error> {
        self.tensor(name, self.precision)
    }

    /// Codes are made on the CPU, from the numbers in the file.
    fn quantised(&mut self, name: &str, bits: Bits) -> Result<Quantised, Error> {
        let device = std::mem::replace(&mut self.device, Device::flex());
        let weight = self.tensor(name, Precision::F32);
        self.device = device;
        let weight = weight?;
        let quantised = Quantised::of(weight.clone(), bits);
        self.error += quantised.error(weight);
        Ok(quantised.to_device(&self.device))
    }

    /// Outputs × inputs whatever the file's orientation, or one row.
    fn tensor(&mut self, name: &str, precision: Precision) -> Result<Tensor<2>, Error> {
        let Parameter { shape, kind, .. } = &self.parameters[name];
        let elements: usize = shape.iter().product();
        let columns = shape.last().copied().unwrap_or(1);
        let rows_and_columns = [elements / columns, columns];
        let tensor = match &mut self.source {
            Source::Files(checkpoint) => checkpoint.tensor(name, precision, &self.device)?,
            Source::Device { deviation } => {
                let drawn = match kind {
                    ParameterKind::Norm => Tensor::ones(rows_and_columns, &self.device),
                    ParameterKind::Bias | ParameterKind::NormBias => {
                        Tensor::zeros(rows_and_columns, &self.device)
                    }
                    ParameterKind::Matrix | ParameterKind::Transposed => {
                        Tensor::random(rows_and_columns, Distribution::Normal(0.0, *deviation), &self.device)
                    }
                };
                cast(drawn, precision.dtype())
            }
            Source::Random { random, deviation } => {
                let values = match kind {
                    ParameterKind::Norm => vec![1.0; elements],
                    ParameterKind::NormBias | ParameterKind::Bias => vec![0.0; elements],
                    ParameterKind::Matrix | ParameterKind::Transposed => normal(random, *deviation, elements),
                };
                let values = TensorData::new(values, rows_and_columns);
                Tensor::from_data(values, (&self.device, precision.dtype()))
            }
        };
        Ok(if *kind == ParameterKind::Transposed { tensor.transpose() } else { tensor })
    }
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
