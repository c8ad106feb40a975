//! The file of a classifier.

use std::path::Path;

use anyhow::Result;
use fs_err as fs;
use serde::{Deserialize, Serialize};
use softshard_labels::{Difference, Door, Error, Provenance};

use super::LogisticRegression;

/// What was learnt of a model's heads, and how to ask it again.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lookback {
    /// Always `softshard-lookback`.
    pub format: String,
    /// Version of the format.
    pub version: u32,
    /// The prompt with its answer.
    pub template: String,
    /// Tokens of a window.
    pub window: usize,
    /// Inverse strength of the penalty.
    pub c: f64,
    /// Layers of the model: features come layer by layer.
    pub layers: usize,
    /// Heads of a layer.
    pub heads: usize,
    /// Of whole answers, or of marked spans.
    pub spans: LogisticRegression,
    /// Of windows of tokens.
    pub windows: LogisticRegression,
    /// Which model and which judged answers.
    pub provenance: Provenance,
}

impl Lookback {
    pub(super) const FORMAT: &'static str = "softshard-lookback";
    pub(super) const VERSION: u32 = 1;

    /// Reads one.
    ///
    /// # Errors
    /// It cannot be read, is none, is of another version, or does not have a weight for each head.
    pub fn read(path: &Path) -> Result<Self> {
        let bytes = fs::read(path)?;
        let place = format!("`{}`", path.display());
        let hint = "make it with `softshard lookback train`";
        let expected = "a classifier of `softshard lookback train`, version 1";
        let bad = |found: String| Error::bad(&place, expected, found).hint(hint);
        let value: serde_json::Value =
            serde_json::from_slice(&bytes).map_err(|error| bad(error.to_string()))?;
        if value["format"] != Self::FORMAT || value["version"] != Self::VERSION {
            return Err(bad(format!("format {} version {}", value["format"], value["version"])).into());
        }
        let this: Self = serde_json::from_value(value).map_err(|error| bad(error.to_string()))?;
        let features = this.layers.saturating_mul(this.heads);
        for one in [&this.spans, &this.windows] {
            let finite = one.weights.iter().chain([&one.intercept]).all(|weight| weight.is_finite());
            if one.weights.len() != features || !finite || this.window == 0 {
                return Err(bad(format!(
                    "{} weights of {} layers with {} heads",
                    one.weights.len(),
                    this.layers,
                    this.heads
                ))
                .into());
            }
        }
        Ok(this)
    }

    /// Refuses another model than the one whose heads it knows. Gives what the user takes.
    ///
    /// # Errors
    /// A difference that is not accepted.
    pub(super) fn check_model(
        &self,
        place: &str,
        model: &Provenance,
        accept: &[String],
    ) -> Result<Vec<Difference>, Error> {
        let hint = "it knows the heads of one model: train one for this model";
        let only_model = |from: &Provenance| {
            let mut only = Provenance::new(from.kind);
            let of_model = from.inputs.iter().filter(|(name, _)| name.as_str() != "data");
            only.inputs = of_model.map(|(name, blake3)| (name.clone(), blake3.clone())).collect();
            only
        };
        only_model(model).check(&only_model(&self.provenance), &Door { place, hint, accept })
    }
}
