//! LoRA (arXiv 2106.09685) on a decoder, and its files as PEFT lays them out.

use std::path::Path;

use burn::tensor::{Tensor, TensorData};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::files::{write_json, write_tensors};
use crate::linear::{Linear, Lora};
use crate::lora::LoraConfig;
use crate::peft::{ADAPTER_CONFIG, ADAPTER_WEIGHTS, AdapterFiles, Named, factor_name, written_config};
use crate::{Decoder, Error, Precision, Trainable};

impl Decoder {
    /// Puts a new LoRA on the model, in place of one it may have: A as PEFT draws it, uniform in ±1/√inputs, B zero, so
    /// the model computes what it did before. [`train`](Self::train) makes it learn.
    ///
    /// # Errors
    /// A setting is out of range, or a target names no linear map of this model.
    pub fn attach_lora(&mut self, config: &LoraConfig, seed: u64) -> Result<(), Error> {
        self.config.check_lora(config)?;
        debug_assert!(
            (self.clone().linears_mut().into_iter().map(|(module, _)| module)).eq(self.config.linear_maps()),
            "the names that targets are checked against are those of the maps"
        );
        let device = self.device.clone();
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        self.replace_lora(config, |_, linear| {
            let [outputs, inputs] = linear.weight.dims();
            let bound = (inputs as f32).powf(-0.5);
            let values: Vec<f32> =
                (0..config.r * inputs).map(|_| random.random_range(-bound..bound)).collect();
            Ok(Lora {
                a: Tensor::from_data(TensorData::new(values, [config.r, inputs]), &device),
                b: Tensor::zeros([outputs, config.r], &device),
                scale: config.scale(),
                dropout: config.dropout,
            })
        })
    }

    /// Writes `adapter_config.json` and `adapter_model.safetensors` as PEFT loads them. `base_model` is the name or path
    /// of the model that the adapter belongs to.
    ///
    /// # Errors
    /// There is no LoRA, or the file system refuses.
    pub fn save_adapter(&self, folder: &Path, base_model: &str) -> Result<(), Error> {
        let Some(config) = &self.lora else {
            return Err(Error::Lora("expected an attached adapter to save, found none".into()));
        };
        let mut shared = self.clone();
        let tensors = shared.adapter_parameters_mut().into_iter().map(|(name, tensor)| {
            let shape = tensor.dims().to_vec();
            (name, shape, tensor.clone())
        });
        write_tensors(&folder.join(ADAPTER_WEIGHTS), tensors)?;
        write_json(&folder.join(ADAPTER_CONFIG), &written_config(config, self.config.transposed, base_model))
    }

    /// Reads an adapter that PEFT or [`save_adapter`](Self::save_adapter) wrote, in place of one the model may have.
    ///
    /// # Errors
    /// A file is missing or torn, the adapter is not a plain LoRA, or its tensors do not fit this model; the model is then
    /// as before.
    pub fn load_adapter(&mut self, folder: &Path) -> Result<(), Error> {
        let linears: Vec<Named> = (self.clone().linears_mut().into_iter())
            .map(|(module, linear)| (module, linear.weight.dims()))
            .collect();
        let AdapterFiles { lora, weights, made_for } = AdapterFiles::open(folder, &linears)?;
        let base = made_for.rsplit('/').next().unwrap_or_default();
        if let Some(name) = self.name.as_deref().filter(|name| *name != base) {
            // A folder may be renamed, so this is no error.
            tracing::warn!(
                "adapter `{}` was made for `{made_for}`, this model is `{name}`: its shapes fit, its weights may not",
                folder.display()
            );
        }
        let device = self.device.clone();
        self.replace_lora(&lora, |module, _| {
            Ok(Lora {
                a: weights.tensor(&factor_name(module, 'A'), Precision::F32, &device)?,
                b: weights.tensor(&factor_name(module, 'B'), Precision::F32, &device)?,
                scale: lora.scale(),
                dropout: lora.dropout,
            })
        })
    }

    /// Takes the LoRA off: the model is the base model again.
    pub fn detach_lora(&mut self) {
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
        config: &LoraConfig,
        mut make: impl FnMut(&str, &Linear) -> Result<Lora, Error>,
    ) -> Result<(), Error> {
        let mut changed = self.clone();
        for (module, linear) in changed.linears_mut() {
            linear.lora = if config.targets(&module) { Some(make(&module, linear)?) } else { None };
        }
        changed.lora = Some(config.clone());
        changed.train(Trainable::Nothing);
        *self = changed;
        Ok(())
    }
}
