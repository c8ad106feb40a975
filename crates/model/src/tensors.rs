//! The weights of a model that is no decoder: tensors by their names in the files, and the maps and norms made of them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use burn::tensor::{Device, Tensor};
use serde_json::{Map, Value};

use crate::config::{CONFIG, MAX_CONFIG_BYTES};
use crate::files::read_text;
use crate::linear::{Linear, Weight};
use crate::norm::Norm;
use crate::weights::{Checkpoint, stored_shapes};
use crate::{Error, Precision};

/// An open model folder whose tensors were compared with a list; it reads them in 32-bit floats.
#[derive(Debug)]
pub struct Tensors {
    checkpoint: Checkpoint,
    names: BTreeSet<String>,
    device: Device,
}

/// Keys and values of a model folder's `config.json`.
///
/// # Errors
/// There is no such file, it is too long, or holds no JSON object.
pub fn read_config(folder: &Path) -> Result<Map<String, Value>, Error> {
    let file = folder.join(CONFIG);
    if folder.is_dir() && !file.exists() {
        return Err(Error::Folder {
            kind: "model",
            folder: folder.to_owned(),
            found: format!("no {CONFIG}"),
            hint: "point to a folder as `transformers` saves it",
        });
    }
    serde_json::from_str(&read_text(&file, MAX_CONFIG_BYTES)?)
        .map_err(|error| Error::config(&file, format!("expected an object of JSON: {error}")))
}

impl Tensors {
    /// Names and shapes of all tensors in a folder, for models whose configuration does not say them.
    ///
    /// # Errors
    /// There are no safetensors files, or one is torn.
    pub fn shapes(folder: &Path) -> Result<BTreeMap<String, Vec<usize>>, Error> {
        stored_shapes(folder)
    }

    /// Opens a folder that has the `expected` tensors, and no others but those that `may_be_unused`.
    ///
    /// # Errors
    /// A file is torn; or tensors are missing, unused, of a wrong shape or of no floats, all reported together.
    pub fn open(
        folder: &Path,
        expected: &[(String, Vec<usize>)],
        may_be_unused: impl Fn(&str) -> bool,
        device: &Device,
    ) -> Result<Self, Error> {
        let checkpoint = Checkpoint::open_listed(folder, expected, may_be_unused)?;
        let names = expected.iter().map(|(name, _)| name.clone()).collect();
        Ok(Self { checkpoint, names, device: device.clone().without_autodiff() })
    }

    /// A tensor: `[rows, columns]` as in the file, a vector as one row.
    ///
    /// # Errors
    /// An element is not finite.
    ///
    /// # Panics
    /// The tensor is not one of those that were expected.
    pub fn tensor(&self, name: &str) -> Result<Tensor<2>, Error> {
        self.checkpoint.tensor(name, Precision::F32, &self.device)
    }

    /// The linear map of `NAME.weight`, with `NAME.bias` if that was expected.
    ///
    /// # Errors
    /// As [`tensor`](Self::tensor).
    ///
    /// # Panics
    /// As [`tensor`](Self::tensor).
    pub fn linear(&self, name: &str) -> Result<Linear, Error> {
        let weight = Weight::Dense(self.tensor(&format!("{name}.weight"))?);
        let bias = format!("{name}.bias");
        let bias = self.names.contains(&bias).then(|| self.tensor(&bias)).transpose()?;
        Ok(Linear::new(weight, bias))
    }

    /// The layer norm of `NAME.weight`, with `NAME.bias` if that was expected, else without one.
    ///
    /// # Errors
    /// As [`tensor`](Self::tensor).
    ///
    /// # Panics
    /// As [`tensor`](Self::tensor).
    pub fn layer_norm(&self, name: &str, epsilon: f64) -> Result<Norm, Error> {
        let Norm { weight, .. } = self.rms_norm(name, epsilon)?;
        let bias = format!("{name}.bias");
        let bias = if self.names.contains(&bias) { self.tensor(&bias)? } else { weight.zeros_like() };
        Ok(Norm { weight, bias: Some(bias), epsilon })
    }

    /// The root-mean-square norm of `NAME.weight`.
    ///
    /// # Errors
    /// As [`tensor`](Self::tensor).
    ///
    /// # Panics
    /// As [`tensor`](Self::tensor).
    pub fn rms_norm(&self, name: &str, epsilon: f64) -> Result<Norm, Error> {
        Ok(Norm { weight: self.tensor(&format!("{name}.weight"))?, bias: None, epsilon })
    }
}
