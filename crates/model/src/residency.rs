//! Where the weights of a model are, and in which floats.

use burn::tensor::Device;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::memory::free_bytes;
use crate::{DecoderConfig, Error, Precision};

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
    /// Resident if the weights take less than 70 % of the device's free memory, else streamed.
    Auto,
}

/// How a model is brought into memory.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LoadOptions {
    /// Type of weights and activations.
    pub precision: Precision,
    /// Where the weights of the layers are.
    pub residency: Residency,
}

impl LoadOptions {
    /// Whether the layers of this model are streamed; says what `auto` chose and why.
    pub(crate) fn is_streamed(&self, config: &DecoderConfig, device: &Device) -> Result<bool, Error> {
        match self.residency {
            Residency::Resident => Ok(false),
            Residency::Streamed => Ok(true),
            Residency::Auto => {
                let needed = config.parameter_count() as f64 * self.precision.bytes() as f64;
                let Some(free) = free_bytes(device) else {
                    let problem = "`residency = \"auto\"`: the free memory of this device is not known";
                    let hint = "hint: say `resident` or `streamed`";
                    return Err(Error::Residency(format!("{problem}\n{hint}")));
                };
                let streamed = needed > SHARE_OF_FREE_MEMORY * free as f64;
                tracing::info!(
                    weights_gb = format_args!("{:.1}", needed / 1e9),
                    free_gb = format_args!("{:.1}", free as f64 / 1e9),
                    "residency auto: {}",
                    if streamed { "streamed, layer by layer" } else { "resident" }
                );
                Ok(streamed)
            }
        }
    }
}
