//! Where the weights of a model are, and in which floats.

use burn::tensor::Device;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::builder::LayerWeights;
use crate::memory::free_bytes;
use crate::{Bits, DecoderConfig, Error, Precision};

/// Of the memory that is free, the part that weights may take: the rest is for activations, logits and the system.
const SHARE_OF_FREE_MEMORY: f64 = 0.7;

/// Where the weights of the layers are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Residency {
    /// All in the memory of the device.
    #[default]
    Resident,
    /// Read from the files layer by layer at every pass: memory of two layers.
    Streamed,
    /// Resident if the weights take less than 70 % of the device's free memory, else streamed; quantised ones resident.
    Auto,
}

/// How a model is brought into memory.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LoadOptions {
    /// Type of weights and activations.
    pub precision: Precision,
    /// Where the weights of the layers are.
    pub residency: Residency,
    /// Bits of the layers' matrices, if they are kept as codes. They are then resident.
    pub quantise: Option<Bits>,
}

impl LoadOptions {
    /// Refuses what excludes each other.
    ///
    /// # Errors
    /// A sentence naming the keys below `section`.
    pub fn check(&self, section: &str) -> Result<(), String> {
        if self.quantise.is_some() && self.residency == Residency::Streamed {
            let hint = "hint: quantised weights are resident; choose one of the two";
            return Err(format!(
                "`{section}.quantise`: expected nothing where `residency = \"streamed\"`\n{hint}"
            ));
        }
        Ok(())
    }

    /// What a model computes in, as it stands beside its results: `f32`, or `bf16, layers in 4 bits`.
    pub fn dtype(&self) -> String {
        let precision = self.precision.name();
        match self.quantise {
            None => precision.to_owned(),
            Some(bits) => format!("{precision}, layers in {} bits", u8::from(bits)),
        }
    }

    /// Whether layers of this model would be read at every pass.
    ///
    /// # Errors
    /// `auto` on a device whose free memory is not known.
    pub fn is_streamed(&self, config: &DecoderConfig, device: &Device) -> Result<bool, Error> {
        match (self.quantise, self.residency) {
            (None, Residency::Streamed) => Ok(true),
            (None, Residency::Auto) => Ok(matches!(self.choose(config, device)?, LayerWeights::Streamed)),
            _ => Ok(false),
        }
    }

    /// How the layers of this model are kept; says what `auto` chose and why.
    pub(crate) fn layer_weights(
        &self,
        config: &DecoderConfig,
        device: &Device,
    ) -> Result<LayerWeights, Error> {
        self.check("model").map_err(Error::Residency)?;
        if !device.supports_dtype(self.precision.dtype()) {
            return Err(Error::Residency(format!(
                "precision `{}`: this device does not compute in it\nhint: `precision = \"f32\"`",
                self.precision.name()
            )));
        }
        match (self.quantise, self.residency) {
            (Some(bits), _) => {
                self.refuse_too_large(config, device)?;
                if self.residency == Residency::Auto {
                    tracing::info!("residency auto: resident, as quantised weights are");
                }
                Ok(LayerWeights::Quantised(bits))
            }
            (None, Residency::Resident) => {
                self.refuse_too_large(config, device)?;
                Ok(LayerWeights::Dense)
            }
            (None, Residency::Streamed) => Ok(LayerWeights::Streamed),
            (None, Residency::Auto) => self.choose(config, device),
        }
    }

    /// Says it before the allocator or the system ends the process.
    fn refuse_too_large(&self, config: &DecoderConfig, device: &Device) -> Result<(), Error> {
        let needed = config.resident_bytes(self.precision, self.quantise);
        match free_bytes(device) {
            Some(free) if needed > free => Err(Error::Residency(format!(
                "memory: {:.1} GB of weights, {:.1} GB free\nhint: `residency = \"streamed\"` holds two layers at a time; \
                 bf16 weights and `quantise` take less",
                needed as f64 / 1e9,
                free as f64 / 1e9
            ))),
            _ => Ok(()),
        }
    }

    fn choose(&self, config: &DecoderConfig, device: &Device) -> Result<LayerWeights, Error> {
        let needed = config.resident_bytes(self.precision, None) as f64;
        let Some(free) = free_bytes(device) else {
            let problem = "`residency = \"auto\"`: the free memory of this device is not known";
            return Err(Error::Residency(format!("{problem}\nhint: say `resident` or `streamed`")));
        };
        let fits = needed <= SHARE_OF_FREE_MEMORY * free as f64;
        tracing::info!(
            "residency auto: {} ({:.1} GB of weights, {:.1} GB free, of which weights may take {:.0} %)",
            if fits { "resident" } else { "streamed layer by layer" },
            needed / 1e9,
            free as f64 / 1e9,
            SHARE_OF_FREE_MEMORY * 100.0,
        );
        Ok(if fits { LayerWeights::Dense } else { LayerWeights::Streamed })
    }
}
