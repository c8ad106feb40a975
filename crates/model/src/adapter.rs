//! LoRA (arXiv 2106.09685) on a decoder, and its files as PEFT lays them out.
//!
//! Factors of linear maps stay factors, DoRA's magnitudes become a gain of each output. Factors of the embedding and
//! the head are added to these at once, and whole tensors take the place of the base's.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use burn::tensor::{DType, Device, FloatDType, Tensor, TensorData};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::dora::{Along, Product};
use crate::files::{write_json, write_tensors};
use crate::linear::{Linear, Lora, Weight};
use crate::lora::{LoraConfig, LoraMap, LoraShape};
use crate::names::ParameterKind;
use crate::peft::{ADAPTER_CONFIG, ADAPTER_WEIGHTS, AdapterFiles, Factors, Settings, factor_name};
use crate::precision::cast;
use crate::quantised::Quantised;
use crate::{Decoder, Error, Precision, Trainable};

/// The adapter that a model has.
#[derive(Debug, Clone)]
pub(crate) struct Attached {
    pub(crate) settings: Settings,
    pub(crate) shape: LoraShape,
    /// It is of factors on linear maps alone: it can be taken off, trained and written.
    is_plain: bool,
}

impl Decoder {
    /// Puts a new LoRA on the model, in place of one it may have: A as PEFT draws it, uniform in ±1/√inputs, B zero, so
    /// the model computes what it did before. [`train`](Self::train) makes it learn.
    ///
    /// # Errors
    /// A setting is out of range, or a target names no linear map of this model.
    pub fn attach_lora(&mut self, config: &LoraConfig, seed: u64) -> Result<(), Error> {
        let shape = self.config.lora_shape(config)?;
        debug_assert!(
            (self.clone().linears_mut().into_iter().map(|(module, _)| module)).eq(self.config.linear_maps()),
            "the names that targets are checked against are those of the maps"
        );
        self.check_detachable()?;
        let attached =
            Attached { settings: Settings::of_new(config, self.config.transposed)?, shape, is_plain: true };
        let device = self.device.clone();
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        self.replace_lora(attached, |_, linear, map| {
            let [outputs, inputs] = linear.weight.dims();
            let bound = (inputs as f32).powf(-0.5);
            let values: Vec<f32> = (0..map.r * inputs).map(|_| random.random_range(-bound..bound)).collect();
            Ok(Lora {
                a: Tensor::from_data(TensorData::new(values, [map.r, inputs]), &device),
                b: Tensor::zeros([outputs, map.r], &device),
                scale: map.scale,
                dropout: config.dropout,
                gain: None,
            })
        })
    }

    /// Writes `adapter_config.json` and `adapter_model.safetensors` as PEFT loads them. `base_model` is the name or path
    /// of the model that the adapter belongs to.
    ///
    /// # Errors
    /// There is no LoRA, it is not of factors on linear maps alone, or the file system refuses.
    pub fn save_adapter(&self, folder: &Path, base_model: &str) -> Result<(), Error> {
        let Some(attached) = &self.lora else {
            return Err(Error::Lora("expected an attached adapter to save, found none".into()));
        };
        self.check_detachable()?;
        let mut shared = self.clone();
        let tensors = shared.adapter_parameters_mut().into_iter().map(|(name, tensor)| {
            let shape = tensor.dims().to_vec();
            (name, shape, tensor.clone())
        });
        write_tensors(&folder.join(ADAPTER_WEIGHTS), tensors)?;
        write_json(
            &folder.join(ADAPTER_CONFIG),
            &attached.settings.written(base_model, attached.shape.maps.keys()),
        )
    }

    /// Reads an adapter that PEFT or [`save_adapter`](Self::save_adapter) wrote, in place of one the model may have.
    /// Memory: its tensors; where it changes the embedding, the head or a matrix, one more of these meanwhile.
    ///
    /// # Errors
    /// A file is missing or torn, the adapter asks for what is not done here, or its tensors do not fit this model;
    /// the model is then as before.
    pub fn load_adapter(&mut self, folder: &Path) -> Result<(), Error> {
        self.check_detachable()?;
        let adapter = Arc::new(AdapterFiles::open(folder, &self.config)?);
        self.warn_of_another_base(folder, &adapter);
        let mut changed = self.clone();
        changed.detach_lora();
        changed.put_whole(&adapter)?;
        changed.add_to_tables(&adapter)?;
        let attached = Attached {
            settings: adapter.settings.clone(),
            shape: adapter.shape(&changed.config),
            is_plain: adapter.check_learns(folder, &changed.config).is_ok(),
        };
        let (stream, device, precision) = (changed.stream.clone(), changed.device.clone(), changed.precision);
        changed.replace_lora(attached, |module, linear, _| {
            let factors = &adapter.factors[module];
            let dense = |linear: &Linear| match &linear.weight {
                Weight::Dense(weight) => Ok(weight.clone()),
                Weight::Quantised(weight) => Ok(weight.dense(FloatDType::F32)),
                Weight::Streamed { .. } => {
                    let stream = stream.as_ref().expect("streamed weights have a stream");
                    stream.matrix(&format!("{module}.weight"), Precision::F32)
                }
            };
            let lora = factors_of(&adapter, factors, &device, || dense(linear))?;
            if let Some(stored) = &factors.bias {
                // A bias of B is one of the map.
                let added = adapter.tensor(stored, &device)? * factors.map.scale;
                let bias = linear.bias.take().map_or(added.clone(), |bias| cast(bias, DType::F32) + added);
                linear.bias = Some(cast(bias, precision.dtype()));
            }
            Ok(lora)
        })?;
        *self = changed;
        Ok(())
    }

    /// Takes the LoRA off: the model is the base model again.
    ///
    /// # Panics
    /// The adapter changed weights that are no longer there.
    pub fn detach_lora(&mut self) {
        assert!(self.check_detachable().is_ok(), "an adapter that changed weights cannot be taken off");
        self.lora = None;
        for (_, linear) in self.linears_mut() {
            linear.lora = None;
        }
        self.train(Trainable::Nothing);
    }

    /// The factors by their names in PEFT's files, in the order of the model.
    pub(crate) fn adapter_parameters_mut(&mut self) -> Vec<(String, &mut Tensor<2>)> {
        let mut list = Vec::new();
        for (module, linear) in self.linears_mut() {
            if let Some(lora) = &mut linear.lora {
                list.push((factor_name(&module, 'A'), &mut lora.a));
                list.push((factor_name(&module, 'B'), &mut lora.b));
            }
        }
        list
    }

    /// Every linear map but the head, by its module name.
    fn linears_mut(&mut self) -> Vec<(String, &mut Linear)> {
        let names = self.config.names();
        let mut list = Vec::new();
        let (project_in, project_out) = match &mut self.projections {
            Some([project_in, project_out]) => (Some(project_in), Some(project_out)),
            None => (None, None),
        };
        list.extend(project_in.map(|linear| (names.projections[0].to_owned(), linear)));
        for (index, layer) in self.layers.iter_mut().enumerate() {
            let named = layer.parts_mut(names).1.into_iter();
            list.extend(named.map(|(name, linear)| (format!("{}.{index}.{name}", names.layers), linear)));
        }
        list.extend(project_out.map(|linear| (names.projections[1].to_owned(), linear)));
        list
    }

    /// Makes all factors before any is put on, so that an error changes nothing.
    fn replace_lora(
        &mut self,
        attached: Attached,
        mut make: impl FnMut(&str, &mut Linear, LoraMap) -> Result<Lora, Error>,
    ) -> Result<(), Error> {
        let mut changed = self.clone();
        for (module, linear) in changed.linears_mut() {
            let map = attached.shape.maps.get(&module);
            linear.lora = map.map(|map| make(&module, linear, *map)).transpose()?;
        }
        changed.lora = Some(attached);
        changed.train(Trainable::Nothing);
        *self = changed;
        Ok(())
    }

    fn check_detachable(&self) -> Result<(), Error> {
        match &self.lora {
            Some(Attached { is_plain: false, .. }) => Err(Error::Lora(
                "expected an adapter of factors on linear maps alone, found one that changed the base's weights".into(),
            )),
            _ => Ok(()),
        }
    }

    fn warn_of_another_base(&self, folder: &Path, adapter: &AdapterFiles) {
        let made_for = &adapter.settings.made_for;
        let base = made_for.rsplit('/').next().unwrap_or_default();
        if let Some(name) = self.name.as_deref().filter(|name| *name != base) {
            // A folder may be renamed, so this is no error.
            tracing::warn!(
                "adapter `{}` was made for `{made_for}`, this model is `{name}`: its shapes fit, its weights may not",
                folder.display()
            );
        }
    }

    /// Puts the adapter's whole tensors in the place of the base's.
    fn put_whole(&mut self, adapter: &Arc<AdapterFiles>) -> Result<(), Error> {
        if adapter.untied {
            self.lm_head = Some(self.embedding.clone());
            self.config.tie_word_embeddings = false;
        }
        let parameters = self.config.parameters().into_iter();
        let transposed: BTreeMap<String, bool> =
            parameters.map(|one| (one.name, one.kind == ParameterKind::Transposed)).collect();
        let device = self.device.clone();
        let read = |name: &str, precision, device: &Device| {
            let stored = adapter.whole.get(name)?;
            let tensor = adapter.weights.tensor(stored, precision, device);
            Some(tensor.map(|tensor| if transposed[name] { tensor.transpose() } else { tensor }))
        };
        for (name, tensor) in self.model_parameters_mut() {
            let precision = if tensor.dtype() == DType::F32 { Precision::F32 } else { Precision::Bf16 };
            if let Some(whole) = read(&name, precision, &device) {
                *tensor = whole?;
            }
        }
        let mut streamed = BTreeMap::new();
        for (module, linear) in self.linears_mut() {
            let name = format!("{module}.weight");
            match &mut linear.weight {
                Weight::Dense(_) => {}
                Weight::Quantised(weight) => {
                    if let Some(whole) = read(&name, Precision::F32, &Device::flex()) {
                        *weight = Quantised::of(whole?, weight.bits()).to_device(&device);
                    }
                }
                Weight::Streamed { .. } => {
                    streamed.extend(adapter.whole.get(&name).map(|stored| (name, stored.clone())));
                }
            }
        }
        if let Some(stream) = self.stream.as_ref().filter(|_| !streamed.is_empty()) {
            self.stream = Some(Arc::new(stream.replaced(adapter, streamed)));
        }
        Ok(())
    }

    /// Adds the factors of embedding, positions and head to these.
    fn add_to_tables(&mut self, adapter: &AdapterFiles) -> Result<(), Error> {
        let (names, device) = (self.config.names(), self.device.clone());
        let tables = [
            (names.embedding, Some(&mut self.embedding)),
            (names.positions, self.positions.as_mut()),
            (names.head, self.lm_head.as_mut()),
        ];
        for (module, table) in tables {
            let (Some(factors), Some(table)) = (adapter.factors.get(module), table) else { continue };
            let [a, b] = [&factors.a, &factors.b].map(|stored| adapter.tensor(stored, &device));
            let (a, b, scale) = (a?, b?, factors.map.scale);
            let (product, along) = if module == names.head {
                (Product { left: b, right: a, scale }, Along::Rows)
            } else {
                (Product { left: a.transpose(), right: b.transpose(), scale }, Along::Columns)
            };
            let gain = factors.magnitude.as_ref().map(|stored| {
                let magnitude = adapter.tensor(stored, &device)?;
                Ok::<_, Error>((product.gain(table, magnitude, along), along))
            });
            *table = product.added_to(table, gain.transpose()?);
        }
        Ok(())
    }
}

/// The factors of one linear map, whose weight is made `dense` where it has a magnitude.
fn factors_of(
    adapter: &AdapterFiles,
    factors: &Factors,
    device: &Device,
    dense: impl FnOnce() -> Result<Tensor<2>, Error>,
) -> Result<Lora, Error> {
    let scale = factors.map.scale;
    let (a, b) = (adapter.tensor(&factors.a, device)?, adapter.tensor(&factors.b, device)?);
    let gain = factors.magnitude.as_ref().map(|stored| {
        let magnitude = adapter.tensor(stored, device)?;
        let product = Product { left: b.clone(), right: a.clone(), scale };
        Ok::<_, Error>(product.gain(&dense()?, magnitude, Along::Rows))
    });
    Ok(Lora { a, b, scale, dropout: adapter.settings.dropout, gain: gain.transpose()? })
}
