//! `adapter_config.json`, as PEFT 0.21 reads it: every field is computed, or refused by its name.

use std::path::Path;

use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};
use serde_json::{Value, json};

use super::modules::{Layers, Modules, Names, Targets};
use super::patterns::{Patterns, check_rank};
use crate::Error;
use crate::lora::{ALL_LINEAR, LoraConfig};

/// What PEFT takes where nothing is said.
const USUAL_RANK: usize = 8;
const USUAL_ALPHA: f64 = 8.0;

/// Ways to begin that leave the base as it is: the factors in the file say all.
const PLAIN_BEGINNINGS: [&str; 4] = ["gaussian", "eva", "orthogonal", "mica"];

/// Fields that do not change what a stored adapter computes: they say who made it, or how its training began. That of
/// `fan_in_fan_out` PEFT sets itself by the class of each map.
const WITHOUT_EFFECT: [&str; 14] = [
    "auto_mapping",
    "base_model_name_or_path",
    "corda_config",
    "ensure_weight_tying",
    "eva_config",
    "fan_in_fan_out",
    "inference_mode",
    "loftq_config",
    "lora_ga_config",
    "megatron_core",
    "peft_version",
    "qalora_group_size",
    "revision",
    "runtime_config",
];

/// Fields that are read below.
const READ: [&str; 17] = [
    "alpha_pattern",
    "bias",
    "exclude_modules",
    "init_lora_weights",
    "layers_pattern",
    "layers_to_transform",
    "lora_alpha",
    "lora_bias",
    "lora_dropout",
    "modules_to_save",
    "peft_type",
    "r",
    "rank_pattern",
    "target_modules",
    "task_type",
    "use_dora",
    "use_rslora",
];

const MERGE_WITH_PEFT: &str = "merge it with PEFT's `merge_and_unload`, and name the merged model instead";
const NOT_MERGEABLE: &str =
    "what it computes differs from token to token, so no weights are those of base and adapter";
const OTHER_BASE: &str = "PEFT changes the base when such a training begins: let PEFT write a plain LoRA with \
                          `save_pretrained(..., path_initial_model_for_weight_conversion=...)`";

/// Fields that change what is computed in a way that is not done here, and what to do instead. A section of settings
/// is on even where it is empty.
const REFUSED: [(&str, &str); 11] = [
    ("alora_invocation_tokens", NOT_MERGEABLE),
    ("arrow_config", NOT_MERGEABLE),
    ("kasa_config", MERGE_WITH_PEFT),
    ("layer_replication", "name a model folder that has the repeated layers"),
    ("megatron_config", "save it from a model of `transformers`"),
    ("monteclora_config", MERGE_WITH_PEFT),
    ("target_parameters", MERGE_WITH_PEFT),
    ("trainable_token_indices", MERGE_WITH_PEFT),
    ("use_bdlora", MERGE_WITH_PEFT),
    ("use_qalora", "train it over the base itself, not over codes of GPTQ"),
    ("velora_config", MERGE_WITH_PEFT),
];

/// What an adapter's configuration decides.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    r: usize,
    alpha: f64,
    rslora: bool,
    ranks: Patterns<usize>,
    alphas: Patterns<f64>,
    pub(crate) dropout: f64,
    /// DoRA (arXiv 2402.09353): outputs have a magnitude of their own.
    pub(crate) dora: bool,
    /// B has a bias.
    pub(crate) lora_bias: bool,
    pub(crate) modules: Modules,
    /// Factors that are not in the file would be drawn at random.
    pub(crate) begins_at_random: bool,
    /// B is never trained.
    pub(crate) is_mica: bool,
    /// Embedding and head change together where the base ties them.
    pub(crate) keeps_tied: bool,
    /// The base model that it names: a path or a name, of which only the shapes can be checked.
    pub(crate) made_for: String,
    /// All fields, as they were read.
    fields: Value,
}

/// The fields as they stand in the file.
#[derive(Deserialize)]
struct Fields {
    peft_type: String,
    r: Option<usize>,
    lora_alpha: Option<f64>,
    lora_dropout: Option<f64>,
    target_modules: Option<Names>,
    exclude_modules: Option<Names>,
    modules_to_save: Option<Vec<String>>,
    layers_to_transform: Option<Layers>,
    layers_pattern: Option<Names>,
    #[serde(default)]
    rank_pattern: InOrder<usize>,
    #[serde(default)]
    alpha_pattern: InOrder<f64>,
    use_rslora: Option<bool>,
    use_dora: Option<bool>,
    lora_bias: Option<bool>,
    ensure_weight_tying: Option<bool>,
    base_model_name_or_path: Option<String>,
}

impl Settings {
    /// Reads the text of a configuration.
    ///
    /// # Errors
    /// It does not parse, contradicts itself, or asks for something that is not done here: by the field's name.
    pub(crate) fn read(text: &str, file: &Path) -> Result<Self, Error> {
        let fields: Value =
            serde_json::from_str(text).map_err(|error| Error::config(file, error.to_string()))?;
        let read: Fields =
            serde_json::from_str(text).map_err(|error| Error::config(file, error.to_string()))?;
        refuse_unsupported(&fields, &read.peft_type, file)?;
        let bad = |problem: String| Error::config(file, problem);
        read.check().map_err(bad)?;
        let begins = fields.get("init_lora_weights").cloned().unwrap_or(Value::Null);
        let InOrder(ranks) = read.rank_pattern;
        let InOrder(alphas) = read.alpha_pattern;
        let settings = Self {
            r: read.r.unwrap_or(USUAL_RANK),
            alpha: read.lora_alpha.unwrap_or(USUAL_ALPHA),
            rslora: read.use_rslora.unwrap_or(false),
            ranks: Patterns::of("rank_pattern", ranks).map_err(bad)?,
            alphas: Patterns::of("alpha_pattern", alphas).map_err(bad)?,
            dropout: read.lora_dropout.unwrap_or(0.0),
            dora: read.use_dora.unwrap_or(false),
            lora_bias: read.lora_bias.unwrap_or(false),
            modules: Modules::of(
                Targets::of(read.target_modules),
                read.exclude_modules,
                read.modules_to_save.unwrap_or_default(),
                read.layers_to_transform,
                read.layers_pattern,
            ),
            begins_at_random: begins == Value::Bool(false),
            is_mica: begins == "mica",
            keeps_tied: read.ensure_weight_tying.unwrap_or(false),
            made_for: read.base_model_name_or_path.unwrap_or_else(|| "unknown".into()),
            fields,
        };
        settings.check().map_err(bad)?;
        Ok(settings)
    }

    /// Of a new LoRA; `transposed` as of [`DecoderConfig`](crate::DecoderConfig).
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub(crate) fn of_new(lora: &LoraConfig, transposed: bool) -> Result<Self, Error> {
        let all = lora.target_modules.iter().any(|target| target == ALL_LINEAR);
        let fields = json!({
            "base_model_name_or_path": "",
            "bias": "none",
            "fan_in_fan_out": transposed,
            "inference_mode": true,
            "init_lora_weights": true,
            "lora_alpha": lora.alpha,
            "lora_dropout": lora.dropout,
            "modules_to_save": null,
            "peft_type": "LORA",
            "r": lora.r,
            "target_modules": if all { json!(ALL_LINEAR) } else { json!(lora.target_modules) },
            "task_type": "CAUSAL_LM",
            "use_dora": false,
            "use_rslora": lora.rslora,
        });
        Self::read(&fields.to_string(), Path::new("lora"))
    }

    fn check(&self) -> Result<(), String> {
        check_rank("r", self.r)?;
        self.ranks.values().try_for_each(|&rank| check_rank("rank_pattern", rank))?;
        if !(0.0..1.0).contains(&self.dropout) {
            let found = self.dropout;
            return Err(format!("`lora_dropout`: expected at least 0 and less than 1, found {found}"));
        }
        match [self.alpha].iter().chain(self.alphas.values()).find(|alpha| !alpha.is_finite()) {
            Some(alpha) => Err(format!("`lora_alpha`: expected finite numbers, found {alpha}")),
            None => Ok(()),
        }
    }

    /// Rank of the factors of a module.
    pub(crate) fn rank(&self, module: &str) -> usize {
        *self.ranks.of_module(module).unwrap_or(&self.r)
    }

    /// What the product of a module's factors is multiplied by.
    pub(crate) fn scale(&self, module: &str) -> f64 {
        let rank = self.rank(module) as f64;
        self.alphas.of_module(module).unwrap_or(&self.alpha) / if self.rslora { rank.sqrt() } else { rank }
    }

    /// What is written beside factors of this adapter that were trained on; `base_model` as PEFT has it. The patterns
    /// stand in the order of their names: where that would change a rank or a scale of `modules`, these are written
    /// by name.
    pub(crate) fn written<'a>(
        &self,
        base_model: &str,
        modules: impl Iterator<Item = &'a String> + Clone,
    ) -> Value {
        let mut fields = self.fields.clone();
        fields["base_model_name_or_path"] = json!(base_model);
        fields["inference_mode"] = json!(true);
        let again = Self::read(&fields.to_string(), Path::new("adapter_config.json"));
        let same = |module: &String| {
            again.as_ref().is_ok_and(|again| {
                (again.rank(module), again.scale(module).to_bits())
                    == (self.rank(module), self.scale(module).to_bits())
            })
        };
        if !modules.clone().all(same) {
            let name = |module: &String| format!("^{}", module.replace('.', "\\."));
            let alpha = |module: &String| *self.alphas.of_module(module).unwrap_or(&self.alpha);
            let ranks = modules.clone().map(|module| (name(module), json!(self.rank(module))));
            fields["rank_pattern"] = Value::Object(ranks.collect());
            let alphas = modules.map(|module| (name(module), json!(alpha(module))));
            fields["alpha_pattern"] = Value::Object(alphas.collect());
        }
        fields
    }
}

impl Fields {
    /// What PEFT itself refuses.
    fn check(&self) -> Result<(), String> {
        let is_expression = matches!(self.target_modules, Some(Names::One(_)));
        let layers = self.layers_to_transform.is_some();
        let pattern = self.layers_pattern.as_ref().is_some_and(|names| !names.is_empty());
        if is_expression && layers {
            return Err("`layers_to_transform`: expected none where `target_modules` is one string".into());
        }
        if pattern && !layers {
            return Err("`layers_pattern`: expected none without `layers_to_transform`".into());
        }
        if self.lora_bias == Some(true) && self.use_dora == Some(true) {
            return Err("`lora_bias`: expected false where `use_dora` is true".into());
        }
        Ok(())
    }
}

/// Names the first field that asks for something that is not done here.
fn refuse_unsupported(fields: &Value, peft_type: &str, file: &Path) -> Result<(), Error> {
    let refused =
        |what: String, hint: &'static str| Err(Error::Unsupported { file: file.to_owned(), what, hint });
    if peft_type != "LORA" {
        return refused(
            format!("peft_type \"{peft_type}\""),
            "of PEFT's adapters LoRA is supported, DoRA with it",
        );
    }
    for (name, value) in fields.as_object().into_iter().flatten() {
        let what = || format!("{name} {value}");
        let known = READ.contains(&name.as_str()) || WITHOUT_EFFECT.contains(&name.as_str());
        match REFUSED.iter().find(|(field, _)| field == name) {
            Some((_, hint)) if !is_off(value, value.is_array()) => return refused(what(), hint),
            None if !known && !is_off(value, true) => {
                return refused(what(), "PEFT 0.21 has no such field: remove it if it is a remark only");
            }
            _ => {}
        }
    }
    let string = |name: &str| fields.get(name).and_then(Value::as_str);
    if let Some(task) = string("task_type").filter(|task| *task != "CAUSAL_LM") {
        return refused(format!("task_type \"{task}\""), "adapters of causal language models are supported");
    }
    if let Some(bias) = string("bias").filter(|bias| !["none", "all", "lora_only"].contains(bias)) {
        return refused(format!("bias \"{bias}\""), "PEFT has \"none\", \"all\" and \"lora_only\"");
    }
    match fields.get("init_lora_weights") {
        None | Some(Value::Null | Value::Bool(_)) => Ok(()),
        Some(Value::String(way)) if PLAIN_BEGINNINGS.contains(&way.as_str()) => Ok(()),
        Some(way) if way == "loftq" => refused(format!("init_lora_weights {way}"), MERGE_WITH_PEFT),
        Some(way) => refused(format!("init_lora_weights {way}"), OTHER_BASE),
    }
}

/// Whether a field has the value of one that is not there. An empty section may be one, or ask for its usual
/// settings.
fn is_off(value: &Value, or_empty: bool) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::String(text) => or_empty && (text.is_empty() || text == "none"),
        Value::Array(list) => or_empty && list.is_empty(),
        Value::Object(map) => or_empty && map.is_empty(),
        Value::Bool(true) | Value::Number(_) => false,
    }
}

/// A JSON object whose order counts.
#[derive(Debug)]
struct InOrder<T>(Vec<(String, T)>);

impl<T> Default for InOrder<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for InOrder<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Pairs<T>(std::marker::PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for Pairs<T> {
            type Value = InOrder<T>;

            fn expecting(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                formatter.write_str("names of modules with a number each")
            }

            fn visit_unit<E>(self) -> Result<Self::Value, E> {
                Ok(InOrder::default())
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut pairs: Vec<(String, T)> = Vec::new();
                while let Some((name, value)) = map.next_entry()? {
                    // As in a Python dict: a name that comes again keeps its place and has the last value.
                    match pairs.iter_mut().find(|(other, _)| *other == name) {
                        Some((_, old)) => *old = value,
                        None => pairs.push((name, value)),
                    }
                }
                Ok(InOrder(pairs))
            }
        }
        deserializer.deserialize_any(Pairs(std::marker::PhantomData))
    }
}
