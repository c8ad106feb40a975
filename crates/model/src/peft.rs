//! An adapter folder as PEFT lays it out, compared with the linear maps of a model.

use std::path::Path;

use serde_json::Value;

use crate::Error;
use crate::adapter::{ADAPTER_CONFIG, ADAPTER_WEIGHTS, LoraConfig, factor_name, read_peft_config};
use crate::config::MAX_CONFIG_BYTES;
use crate::files::{WeightsFile, read_text};
use crate::weights::differences;

/// A linear map of a model: its module's name, outputs and inputs.
pub(crate) type Named = (String, [usize; 2]);

/// An open adapter whose factors fit the model.
#[derive(Debug)]
pub(crate) struct AdapterFiles {
    pub(crate) lora: LoraConfig,
    pub(crate) weights: WeightsFile,
    /// The base model that its configuration names: a path or a name, of which only the shapes can be checked.
    pub(crate) made_for: String,
}

impl AdapterFiles {
    /// Opens an adapter and compares its factors with the linear maps of a model.
    ///
    /// # Errors
    /// A file is missing or torn, the adapter is not a plain LoRA, or its tensors do not fit.
    pub(crate) fn open(folder: &Path, linears: &[Named]) -> Result<Self, Error> {
        let file = folder.join(ADAPTER_CONFIG);
        for name in [ADAPTER_CONFIG, ADAPTER_WEIGHTS] {
            if !folder.join(name).exists() {
                return Err(Error::Folder {
                    kind: "adapter",
                    folder: folder.to_owned(),
                    found: format!("no {name}"),
                    hint: "an adapter is a folder with adapter_config.json and adapter_model.safetensors",
                });
            }
        }
        let text = read_text(&file, MAX_CONFIG_BYTES)?;
        let keys = serde_json::from_str(&text).map_err(|error| Error::config(&file, error.to_string()))?;
        let lora = read_peft_config(&keys, &file)?;
        lora.check()?;
        let made_for = keys.get("base_model_name_or_path").and_then(Value::as_str);
        let made_for = made_for.unwrap_or("unknown").to_owned();
        lora.check_targets(linears.iter().map(|(module, _)| module)).map_err(|problem| {
            Error::Lora(format!("`{}`: {problem} (the adapter was made for `{made_for}`)", file.display()))
        })?;
        let targeted: Vec<&Named> = linears.iter().filter(|(module, _)| lora.targets(module)).collect();
        let weights = WeightsFile::open(&folder.join(ADAPTER_WEIGHTS))?;
        let factors = targeted.iter().flat_map(|(module, [outputs, inputs])| {
            let a = (factor_name(module, 'A'), vec![lora.r, *inputs]);
            [a, (factor_name(module, 'B'), vec![*outputs, lora.r])]
        });
        let expected: Vec<_> = factors.collect();
        let problems = differences(&expected, weights.shapes().iter(), |_| false);
        if !problems.is_empty() {
            let against = format!("this model (the adapter was made for `{made_for}`)");
            return Err(Error::Tensors { folder: folder.to_owned(), against, problems });
        }
        Ok(Self { lora, weights, made_for })
    }
}
