//! What the names and shapes of an adapter's tensors say, compared with the modules of a model and the adapter's
//! settings.

use std::collections::{BTreeMap, BTreeSet};

use super::Factors;
use super::settings::Settings;
use crate::DecoderConfig;
use crate::config::Positions;
use crate::lora::LoraMap;
use crate::names::{Parameter, ParameterKind};
use crate::weights::differences;

/// What all names in an adapter's file begin with.
const PREFIX: &str = "base_model.model.";

/// A module that can have factors.
#[derive(Debug)]
pub(crate) struct Module {
    pub(crate) name: String,
    kind: Kind,
    /// As its weight lies in memory: outputs and inputs, or rows and columns.
    dims: [usize; 2],
    /// Its parameters in the model's files: `weight` or `bias`, and the shape.
    parameters: Vec<(&'static str, Vec<usize>)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Linear,
    Head,
    /// An embedding.
    Table,
    /// A normalisation, or a table that PEFT cannot put factors on.
    Other,
}

impl Module {
    /// Whether the settings put factors on it.
    pub(crate) fn is_targeted(&self, settings: &Settings) -> Option<bool> {
        match self.kind {
            Kind::Other => Some(false),
            kind => settings.modules.targets(&self.name, kind == Kind::Linear),
        }
    }

    /// What a file has of its factors, by the end of the name, with the shape that this rank gives.
    fn parts(&self, rank: usize) -> [(&'static str, Vec<usize>); 4] {
        let [rows, columns] = self.dims;
        match self.kind {
            Kind::Table => [
                ("lora_embedding_A", vec![rank, rows]),
                ("lora_embedding_B", vec![columns, rank]),
                ("lora_magnitude_vector", vec![columns]),
                ("lora_embedding_B.bias", vec![columns]),
            ],
            _ => [
                ("lora_A.weight", vec![rank, columns]),
                ("lora_B.weight", vec![rows, rank]),
                ("lora_magnitude_vector", vec![rows]),
                ("lora_B.bias", vec![rows]),
            ],
        }
    }
}

/// Parameters of a model with its head, be it tied or not.
fn parameters(config: &DecoderConfig) -> Vec<Parameter> {
    let mut parameters = config.parameters();
    if config.tie_word_embeddings {
        parameters.push(Parameter {
            name: format!("{}.weight", config.names().head),
            shape: vec![config.vocab_size, config.embedding_size],
            kind: ParameterKind::Matrix,
        });
    }
    parameters
}

/// All modules of a model that have a weight, with their parameters.
pub(crate) fn of_model(config: &DecoderConfig) -> Vec<Module> {
    let names = config.names();
    let mut modules: Vec<Module> = Vec::new();
    for parameter in parameters(config) {
        let dims = parameter.outputs_and_inputs();
        let Parameter { name, shape, kind } = parameter;
        if let Some(name) = name.strip_suffix(".bias") {
            // It stands behind the weight of its module.
            let module = modules.last_mut().filter(|module| module.name == name);
            module.expect("a bias follows its weight").parameters.push(("bias", shape));
            continue;
        }
        let name = name.strip_suffix(".weight").expect("parameters are weights and biases").to_owned();
        let kind = match kind {
            ParameterKind::Norm | ParameterKind::NormBias | ParameterKind::Bias => Kind::Other,
            _ if name == names.embedding => Kind::Table,
            // Those of OPT have a class of their own, with rows before the first position.
            _ if name == names.positions => match config.positions {
                Positions::Learned { offset: 0, .. } => Kind::Table,
                _ => Kind::Other,
            },
            _ if name == names.head => Kind::Head,
            _ => Kind::Linear,
        };
        modules.push(Module { name, kind, dims, parameters: vec![("weight", shape)] });
    }
    modules
}

/// What a file has for the modules of a model.
#[derive(Debug, Default)]
pub(crate) struct Found {
    /// By the module's name.
    pub(crate) factors: BTreeMap<String, Factors>,
    /// By the parameter's name.
    pub(crate) whole: BTreeMap<String, String>,
    /// What keeps the file from fitting, one line each.
    pub(crate) problems: Vec<String>,
}

/// Compares a file's tensors with the modules that they name, and with the settings.
pub(crate) fn compare(
    modules: &[Module],
    settings: &Settings,
    shapes: &BTreeMap<String, Vec<usize>>,
) -> Found {
    let mut found = Found::default();
    let mut stored = BTreeMap::new();
    for name in shapes.keys() {
        if let Some(other) = stored.insert(without_adapter_name(name), name) {
            found.problems.push(format!("`{name}`: expected once, found beside `{other}`"));
        }
    }
    let mut expected = Vec::new();
    for module in modules {
        module.compare(settings, &stored, &mut expected, &mut found);
    }
    let canonical: BTreeMap<&String, &Vec<usize>> =
        stored.iter().map(|(name, stored)| (name, &shapes[*stored])).collect();
    found.problems.extend(differences(&expected, canonical.into_iter(), |_| true));
    let expected: BTreeSet<&String> = expected.iter().map(|(name, _)| name).collect();
    for (name, stored) in stored.iter().filter(|(name, _)| !expected.contains(name)) {
        let why = why_unused(name, settings).map(|why| format!(" ({why})")).unwrap_or_default();
        let shape = &shapes[*stored];
        found.problems.push(format!("`{stored}`: expected no such tensor, found shape {shape:?}{why}"));
    }
    if shapes.is_empty() {
        found.problems.push("expected at least one tensor, found none".into());
    }
    found
}

impl Module {
    /// Adds what a file must have of this module, as it has some of it.
    fn compare(
        &self,
        settings: &Settings,
        stored: &BTreeMap<String, &String>,
        expected: &mut Vec<(String, Vec<usize>)>,
        found: &mut Found,
    ) {
        let prefix = format!("{PREFIX}{}.", self.name);
        let stored_name = |name: &String| stored.get(name).map_or(name, |stored| *stored).clone();
        let parts =
            self.parts(settings.rank(&self.name)).map(|(part, shape)| (format!("{prefix}{part}"), shape));
        let has_factors = self.kind != Kind::Other && parts.iter().any(|(name, _)| stored.contains_key(name));
        if has_factors {
            let [a, b, magnitude, bias] = parts.each_ref().map(|(name, _)| stored_name(name));
            let map = LoraMap { r: settings.rank(&self.name), scale: settings.scale(&self.name) };
            let [has_magnitude, has_bias] = [settings.dora, settings.lora_bias && self.kind != Kind::Table];
            if self.is_targeted(settings) == Some(false) {
                found.problems.push(format!(
                    "`{a}`: expected no such tensor, as the modules that adapter_config.json names leave `{}` out, and \
                     PEFT would ignore it",
                    self.name
                ));
            }
            if has_bias && self.kind == Kind::Head {
                let hint = "hint: merge it with PEFT, or train without `lora_bias`";
                found.problems.push(format!("`{bias}`: a bias of the head is not supported\n{hint}"));
            }
            let wanted = [true, true, has_magnitude, has_bias];
            expected
                .extend(parts.into_iter().zip(wanted).filter(|(_, wanted)| *wanted).map(|(part, _)| part));
            let magnitude = has_magnitude.then_some(magnitude);
            let factors = Factors { a, b, bias: has_bias.then_some(bias), magnitude, map };
            found.factors.insert(self.name.clone(), factors);
        } else if settings.begins_at_random && self.is_targeted(settings) == Some(true) {
            let rank = settings.rank(&self.name);
            expected.extend(
                self.parts(rank).into_iter().take(2).map(|(part, shape)| (format!("{prefix}{part}"), shape)),
            );
        }
        for (suffix, shape) in &self.parameters {
            let name = format!("{prefix}{}{suffix}", if has_factors { "base_layer." } else { "" });
            if stored.contains_key(&name) || settings.modules.saves(&self.name) {
                found.whole.insert(format!("{}.{suffix}", self.name), stored_name(&name));
                expected.push((name, shape.clone()));
            }
        }
    }
}

/// The name under which PEFT saves a tensor, of one that a whole state of a model has: there the adapter is called
/// `default`.
fn without_adapter_name(stored: &str) -> String {
    let Some((module, part)) = stored.rsplit_once(".lora_") else { return stored.to_owned() };
    let parts: Vec<&str> = part.split('.').collect();
    let part = match parts.as_slice() {
        [factor, "default", rest @ ..] => [&[*factor][..], rest].concat().join("."),
        _ => part.to_owned(),
    };
    let part = if part == "magnitude_vector.weight" { "magnitude_vector" } else { &part };
    format!("{module}.lora_{part}")
}

/// What a tensor that fits no module may be, and what to do then.
fn why_unused(name: &str, settings: &Settings) -> Option<&'static str> {
    let wrapped = ["_orig_mod.", "_fsdp_wrapped_module.", "module."];
    if wrapped.iter().any(|wrapper| name.starts_with(wrapper) || name.contains(&format!(".{wrapper}"))) {
        return Some("it was saved from a wrapped model: take the wrapper out of the names");
    }
    if !name.starts_with(PREFIX) {
        return Some("PEFT's names begin with `base_model.model.`");
    }
    if name.contains(".token_adapter.") || name.ends_with("trainable_tokens_delta") {
        return Some("trainable tokens are not supported: merge the adapter with PEFT's `merge_and_unload`");
    }
    if name.contains(".modules_to_save.") || name.contains(".original_module.") {
        return Some("it was saved from a whole state of a model: save the adapter with `save_pretrained`");
    }
    if name.ends_with("lora_magnitude_vector") && !settings.dora {
        return Some("it is DoRA's, and `use_dora` is false");
    }
    if name.ends_with(".lora_B.bias") && !settings.lora_bias {
        return Some("`lora_bias` is false");
    }
    if name.ends_with(".bias") || name.ends_with(".weight") && !name.contains(".lora_") {
        return Some(
            "PEFT 0.21 has it under `base_layer` where a module has factors, and ignores other names",
        );
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_of_the_adapter_is_taken_out_where_peft_puts_it() {
        for (stored, expected) in [
            ("m.q.lora_A.default.weight", "m.q.lora_A.weight"),
            ("m.q.lora_A.weight", "m.q.lora_A.weight"),
            ("m.q.lora_B.default.bias", "m.q.lora_B.bias"),
            ("m.q.lora_A.other.weight", "m.q.lora_A.other.weight"),
            ("m.e.lora_embedding_A.default", "m.e.lora_embedding_A"),
            ("m.q.lora_magnitude_vector.default.weight", "m.q.lora_magnitude_vector"),
            ("m.q.lora_magnitude_vector.weight", "m.q.lora_magnitude_vector"),
            ("m.default.weight", "m.default.weight"),
        ] {
            assert_eq!(without_adapter_name(stored), expected);
        }
    }
}
