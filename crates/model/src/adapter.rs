//! LoRA (arXiv 2106.09685) on a decoder, and its files as PEFT lays them out.

use std::collections::BTreeSet;
use std::path::Path;

use burn::tensor::{Tensor, TensorData};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::files::{write_json, write_tensors};
use crate::linear::{Linear, Lora};
use crate::peft::{AdapterFiles, Named};
use crate::{Decoder, Error, Precision, Trainable};

pub(crate) const ADAPTER_CONFIG: &str = "adapter_config.json";
pub(crate) const ADAPTER_WEIGHTS: &str = "adapter_model.safetensors";
/// Stands for every linear map of every layer, as in PEFT.
const ALL_LINEAR: &str = "all-linear";
/// A rank beyond any use: larger ones in a file are not believed.
const MAX_RANK: usize = 1 << 16;

/// A low-rank update `scale · B · A` of some of the linear maps.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LoraConfig {
    /// Rank.
    pub r: usize,
    /// The scale is `alpha / r`.
    pub alpha: f64,
    /// Probability that an input of A is dropped while training.
    #[serde(default)]
    pub dropout: f64,
    /// Ends of module names such as `q_proj` or `layers.0.self_attn.q_proj`, or the one name `all-linear`.
    pub target_modules: Vec<String>,
    /// Rank-stabilised (arXiv 2312.03732): the scale is `alpha / √r` instead.
    #[serde(default)]
    pub rslora: bool,
}

impl LoraConfig {
    /// What the product of the factors is multiplied by.
    pub fn scale(&self) -> f64 {
        let rank = self.r as f64;
        self.alpha / if self.rslora { rank.sqrt() } else { rank }
    }

    pub(crate) fn targets(&self, module: &str) -> bool {
        self.target_modules.iter().any(|target| {
            target == ALL_LINEAR
                || module
                    .strip_suffix(target.as_str())
                    .is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
        })
    }

    /// Refuses targets that name none of a model's linear maps, and a list without any.
    pub(crate) fn check_targets<'a>(
        &self,
        modules: impl Iterator<Item = &'a String> + Clone,
    ) -> Result<(), String> {
        for target in &self.target_modules {
            let one = Self { target_modules: vec![target.clone()], ..self.clone() };
            if !modules.clone().any(|module| one.targets(module)) {
                let names: BTreeSet<&str> = modules.filter_map(|module| module.rsplit('.').next()).collect();
                let names: Vec<&str> = names.into_iter().chain([ALL_LINEAR]).collect();
                let names = names.join(", ");
                return Err(format!("`target_modules`: expected some of {names}, found `{target}`"));
            }
        }
        if self.target_modules.is_empty() {
            return Err("`target_modules`: expected at least one name, found none".into());
        }
        Ok(())
    }

    /// Refuses settings that no model can use.
    ///
    /// # Errors
    /// [`Error::Lora`] naming the field.
    pub fn check(&self) -> Result<(), Error> {
        if self.r == 0 || self.r > MAX_RANK {
            return Err(Error::Lora(format!("`r`: expected 1 to {MAX_RANK}, found {}", self.r)));
        }
        if !(0.0..1.0).contains(&self.dropout) {
            return Err(Error::Lora(format!(
                "`dropout`: expected at least 0 and less than 1, found {}",
                self.dropout
            )));
        }
        if !(self.alpha > 0.0 && self.alpha.is_finite()) {
            return Err(Error::Lora(format!("`alpha`: expected a positive number, found {}", self.alpha)));
        }
        Ok(())
    }
}

impl Decoder {
    /// Puts a new LoRA on the model, in place of one it may have: A as PEFT draws it, uniform in ±1/√inputs, B zero, so
    /// the model computes what it did before. [`train`](Self::train) makes it learn.
    ///
    /// # Errors
    /// A setting is out of range, or a target names no linear map of this model.
    pub fn attach_lora(&mut self, config: &LoraConfig, seed: u64) -> Result<(), Error> {
        config.check()?;
        let modules: Vec<String> = self.clone().linears_mut().into_iter().map(|(module, _)| module).collect();
        config.check_targets(modules.iter()).map_err(Error::Lora)?;
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
        write_json(&folder.join(ADAPTER_CONFIG), &self.peft_config(config, base_model))
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

    /// What PEFT reads.
    fn peft_config(&self, config: &LoraConfig, base_model: &str) -> Value {
        let all = config.target_modules.iter().any(|target| target == ALL_LINEAR);
        json!({
            "base_model_name_or_path": base_model,
            "bias": "none",
            "fan_in_fan_out": self.config.transposed,
            "inference_mode": true,
            "init_lora_weights": true,
            "lora_alpha": config.alpha,
            "lora_dropout": config.dropout,
            "modules_to_save": null,
            "peft_type": "LORA",
            "r": config.r,
            "target_modules": if all { json!(ALL_LINEAR) } else { json!(config.target_modules) },
            "task_type": "CAUSAL_LM",
            "use_dora": false,
            "use_rslora": config.rslora,
        })
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

pub(crate) fn factor_name(module: &str, factor: char) -> String {
    format!("base_model.model.{module}.lora_{factor}.weight")
}

/// The keys of PEFT's configuration that a plain LoRA needs.
#[derive(Deserialize)]
struct PeftKeys {
    peft_type: String,
    r: usize,
    lora_alpha: f64,
    #[serde(default)]
    lora_dropout: f64,
    target_modules: Value,
    #[serde(default)]
    use_rslora: bool,
}

pub(crate) fn read_peft_config(keys: &Value, file: &Path) -> Result<LoraConfig, Error> {
    let peft: PeftKeys =
        serde_json::from_value(keys.clone()).map_err(|error| Error::config(file, error.to_string()))?;
    let unsupported = |what: String| {
        let hint = "plain LoRA without biases, patterns or saved modules is supported";
        Error::Unsupported { file: file.to_owned(), what, hint }
    };
    if peft.peft_type != "LORA" {
        return Err(unsupported(format!("peft_type \"{}\"", peft.peft_type)));
    }
    // Some ways to begin change the base as well: the factors alone do not say what was trained.
    let begins_plainly = match keys.get("init_lora_weights") {
        None | Some(Value::Null | Value::Bool(_)) => true,
        Some(Value::String(way)) => way == "gaussian" || way == "eva",
        Some(_) => false,
    };
    if !begins_plainly {
        return Err(unsupported(format!("init_lora_weights {}", keys["init_lora_weights"])));
    }
    let plain = Map::new();
    for (key, value) in keys.as_object().unwrap_or(&plain) {
        let changes_the_sum = matches!(
            key.as_str(),
            "use_dora"
                | "use_qalora"
                | "use_bdlora"
                | "alora_invocation_tokens"
                | "lora_bias"
                | "modules_to_save"
                | "rank_pattern"
                | "alpha_pattern"
                | "layers_to_transform"
                | "layer_replication"
                | "trainable_token_indices"
                | "target_parameters"
                | "exclude_modules"
                | "bias"
        );
        let is_off = match value {
            Value::Null | Value::Bool(false) => true,
            Value::String(text) => text == "none",
            Value::Array(list) => list.is_empty(),
            Value::Object(map) => map.is_empty(),
            _ => false,
        };
        if changes_the_sum && !is_off {
            return Err(unsupported(format!("{key} {value}")));
        }
    }
    let target_modules = match &peft.target_modules {
        Value::Array(names) if names.iter().all(Value::is_string) => {
            names.iter().filter_map(Value::as_str).map(str::to_owned).collect()
        }
        Value::String(name) if name == ALL_LINEAR => vec![name.clone()],
        other => return Err(unsupported(format!("target_modules {other}"))),
    };
    let PeftKeys { r, lora_alpha: alpha, lora_dropout: dropout, use_rslora: rslora, .. } = peft;
    Ok(LoraConfig { r, alpha, dropout, target_modules, rslora })
}
