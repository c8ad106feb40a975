//! An adapter folder as PEFT lays it out: read, compared with the linear maps of a model, and written.

use std::path::Path;

use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::Error;
use crate::config::MAX_CONFIG_BYTES;
use crate::files::{WeightsFile, read_text};
use crate::lora::{ALL_LINEAR, LoraConfig};
use crate::weights::differences;

pub(crate) const ADAPTER_CONFIG: &str = "adapter_config.json";
pub(crate) const ADAPTER_WEIGHTS: &str = "adapter_model.safetensors";

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
        let lora = read_config(&keys, &file)?;
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

/// What PEFT reads of a LoRA on `base_model`; `transposed` as of [`DecoderConfig`](crate::DecoderConfig).
pub(crate) fn written_config(config: &LoraConfig, transposed: bool, base_model: &str) -> Value {
    let all = config.target_modules.iter().any(|target| target == ALL_LINEAR);
    json!({
        "base_model_name_or_path": base_model,
        "bias": "none",
        "fan_in_fan_out": transposed,
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

/// Name of factor `A` or `B` of a linear map.
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

fn read_config(keys: &Value, file: &Path) -> Result<LoraConfig, Error> {
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
