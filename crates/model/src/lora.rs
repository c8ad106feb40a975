//! What a LoRA (arXiv 2106.09685) is: its rank, scale and targets.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::names::ParameterKind;
use crate::peft::AdapterFiles;
use crate::{DecoderConfig, Error};

/// Stands for every linear map of every layer, as in PEFT.
pub(crate) const ALL_LINEAR: &str = "all-linear";
/// A rank beyond any use: larger ones in a file are not believed.
pub(crate) const MAX_RANK: usize = 1 << 16;

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
    fn scale(&self) -> f64 {
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

/// A LoRA on one linear map.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LoraMap {
    /// Rank.
    pub r: usize,
    /// What the product of the factors is multiplied by.
    pub scale: f64,
}

/// A LoRA on a model.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct LoraShape {
    /// Of each linear map that has factors, by its name.
    pub maps: BTreeMap<String, LoraMap>,
    /// Probability that an input of A is dropped while training.
    pub dropout: f64,
}

impl DecoderConfig {
    /// What a new LoRA is on a model of this shape; weights are not read.
    ///
    /// # Errors
    /// [`Error::Lora`]: a setting is out of range, or a target names no linear map.
    pub fn lora_shape(&self, lora: &LoraConfig) -> Result<LoraShape, Error> {
        lora.check()?;
        let modules: Vec<String> = self.linear_maps().collect();
        lora.check_targets(modules.iter()).map_err(Error::Lora)?;
        let map = LoraMap { r: lora.r, scale: lora.scale() };
        let targeted = modules.into_iter().filter(|module| lora.targets(module));
        Ok(LoraShape { maps: targeted.map(|module| (module, map)).collect(), dropout: lora.dropout })
    }

    /// What an adapter is on a model of this shape, if its training can go on: only its header is read.
    ///
    /// # Errors
    /// As [`Decoder::load_adapter`](crate::Decoder::load_adapter); or the adapter is not of factors on linear maps
    /// alone.
    pub fn adapter_shape(&self, folder: &Path) -> Result<LoraShape, Error> {
        let adapter = AdapterFiles::open(folder, self)?;
        adapter.check_learns(folder, self)?;
        Ok(adapter.shape(self))
    }

    /// Names of the linear maps but the head, in the order of the model.
    pub(crate) fn linear_maps(&self) -> impl Iterator<Item = String> {
        let names = self.names();
        let others = [names.embedding, names.positions, names.head];
        let matrices = self
            .parameters()
            .into_iter()
            .filter(|parameter| matches!(parameter.kind, ParameterKind::Matrix | ParameterKind::Transposed));
        let modules = matrices.filter_map(|matrix| matrix.name.strip_suffix(".weight").map(str::to_owned));
        modules.filter(move |module| !others.contains(&module.as_str()))
    }
}
