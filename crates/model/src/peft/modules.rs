//! Which modules an adapter's configuration names: PEFT's `check_target_module_exists`.

use regex::Regex;
use serde::Deserialize;

use super::patterns::{compiled, whole};
use crate::lora::ALL_LINEAR;

/// A field that is one string or a list of them.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
pub(crate) enum Names {
    One(String),
    Several(Vec<String>),
}

impl Names {
    pub(crate) fn is_empty(&self) -> bool {
        match self {
            Self::One(name) => name.is_empty(),
            Self::Several(names) => names.is_empty(),
        }
    }
}

/// `layers_to_transform`.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
pub(crate) enum Layers {
    One(usize),
    Several(Vec<usize>),
}

/// `target_modules`.
#[derive(Debug, Clone)]
pub(crate) enum Targets {
    /// What PEFT takes for the family.
    Usual,
    AllLinear,
    Names(Vec<String>),
    /// Absent where the expression uses what is not known here.
    Expression(Option<Regex>),
}

impl Targets {
    pub(crate) fn of(names: Option<Names>) -> Self {
        match names {
            None => Self::Usual,
            Some(Names::One(name)) if name.to_lowercase() == ALL_LINEAR => Self::AllLinear,
            Some(Names::One(expression)) => Self::Expression(whole(&expression).ok()),
            // What a recipe may say beside names.
            Some(Names::Several(names)) if names.iter().any(|name| name == ALL_LINEAR) => Self::AllLinear,
            Some(Names::Several(names)) => Self::Names(names),
        }
    }
}

/// The fields that name modules. Tensors decide what an adapter is on: these are compared with them.
#[derive(Debug, Clone)]
pub(crate) struct Modules {
    targets: Targets,
    excluded: Option<Names>,
    to_save: Vec<String>,
    layers: Option<Layers>,
    /// What stands before the number of a layer; none: anything.
    layers_pattern: Vec<String>,
}

impl Modules {
    pub(crate) fn of(
        targets: Targets,
        excluded: Option<Names>,
        to_save: Vec<String>,
        layers: Option<Layers>,
        pattern: Option<Names>,
    ) -> Self {
        let layers_pattern = match pattern {
            None => Vec::new(),
            Some(Names::One(one)) => vec![one],
            Some(Names::Several(several)) => several,
        };
        let layers_pattern = layers_pattern.into_iter().filter(|pattern| !pattern.is_empty()).collect();
        Self { targets, excluded, to_save, layers, layers_pattern }
    }

    /// Whether the configuration puts factors on a module; nothing where it uses expressions that are not known here.
    /// `is_linear` of a linear map that is not the head.
    pub(crate) fn targets(&self, module: &str, is_linear: bool) -> Option<bool> {
        if self.is_excluded(module)? || self.keeps_factors_off(module)? {
            return Some(false);
        }
        match &self.targets {
            Targets::Usual | Targets::Expression(None) => None,
            Targets::AllLinear => Some(is_linear),
            Targets::Expression(Some(expression)) => Some(expression.is_match(module)),
            Targets::Names(names) if names.iter().any(|name| name == module) => Some(true),
            Targets::Names(names) if !names.iter().any(|name| ends_with(module, name)) => Some(false),
            Targets::Names(_) => self.is_in_layers(module),
        }
    }

    fn is_excluded(&self, module: &str) -> Option<bool> {
        match &self.excluded {
            None => Some(false),
            Some(names) if names.is_empty() => Some(false),
            Some(Names::One(expression)) => Some(whole(expression).ok()?.is_match(module)),
            Some(Names::Several(names)) => Some(names.iter().any(|name| ends_with(module, name))),
        }
    }

    /// Modules that are saved as a whole, and their parts, have no factors.
    fn keeps_factors_off(&self, module: &str) -> Option<bool> {
        for name in &self.to_save {
            if compiled(&format!(r"^(?:^|.*\.)(?:{name})(?:$|\..*)")).ok()?.is_match(module) {
                return Some(true);
            }
        }
        Some(false)
    }

    /// Whether `modules_to_save` names a module, or one that it is a part of: by the end of its name, dots or not.
    pub(crate) fn saves(&self, module: &str) -> bool {
        let ends = module.match_indices('.').map(|(index, _)| index).chain([module.len()]);
        ends.into_iter().any(|end| self.to_save.iter().any(|name| module[..end].ends_with(name.as_str())))
    }

    fn is_in_layers(&self, module: &str) -> Option<bool> {
        let layers = match &self.layers {
            None => return Some(true),
            Some(Layers::One(layer)) => &[*layer][..],
            Some(Layers::Several(layers)) if layers.is_empty() => return Some(true),
            Some(Layers::Several(layers)) => layers,
        };
        let anything = [r"[^.]*".to_owned()];
        let patterns = if self.layers_pattern.is_empty() { &anything[..] } else { &self.layers_pattern };
        for pattern in patterns {
            // Without a pattern something stands before it.
            let before = if self.layers_pattern.is_empty() { r".*?\." } else { r"(?:^|.*?\.)" };
            let expression = compiled(&format!(r"^{before}(?:{pattern})\.(?P<layer>\d+)\.")).ok()?;
            if let Some(found) = expression.captures(module) {
                return Some(found["layer"].parse().is_ok_and(|layer| layers.contains(&layer)));
            }
        }
        Some(false)
    }
}

/// Whether a name is another one, or ends with it behind a dot.
fn ends_with(module: &str, name: &str) -> bool {
    module.strip_suffix(name).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn modules(fields: serde_json::Value) -> Modules {
        let field =
            |name: &str| fields.get(name).cloned().map(|value| serde_json::from_value(value).unwrap());
        Modules::of(
            Targets::of(field("target_modules")),
            field("exclude_modules"),
            serde_json::from_value(
                fields.get("modules_to_save").cloned().unwrap_or_else(|| "[]".parse().unwrap()),
            )
            .unwrap(),
            fields.get("layers_to_transform").map(|value| serde_json::from_value(value.clone()).unwrap()),
            field("layers_pattern"),
        )
    }

    /// Expected: PEFT 0.21.2's `check_target_module_exists` of `model.layers.1.self_attn.q_proj`.
    #[test]
    fn targets_are_those_of_peft() {
        for (fields, expected) in [
            (r#"{"target_modules": ["q_proj"]}"#, Some(true)),
            (r#"{"target_modules": ["proj"]}"#, Some(false)),
            (r#"{"target_modules": ["self_attn"]}"#, Some(false)),
            (r#"{"target_modules": ".*q_proj"}"#, Some(true)),
            (r#"{"target_modules": "q_proj"}"#, Some(false)),
            (r#"{"target_modules": "(?!x).*q_proj"}"#, None),
            (r#"{"target_modules": "ALL-linear"}"#, Some(true)),
            (r#"{}"#, None),
            (r#"{"target_modules": ["q_proj"], "layers_to_transform": 1}"#, Some(true)),
            (r#"{"target_modules": ["q_proj"], "layers_to_transform": [0, 2]}"#, Some(false)),
            (r#"{"target_modules": ["q_proj"], "layers_to_transform": []}"#, Some(true)),
            (
                r#"{"target_modules": ["q_proj"], "layers_to_transform": [1], "layers_pattern": "h"}"#,
                Some(false),
            ),
            (
                r#"{"target_modules": ["q_proj"], "layers_to_transform": [1], "layers_pattern": ["h", "layers"]}"#,
                Some(true),
            ),
            // A whole name is there whatever the layers are.
            (
                r#"{"target_modules": ["model.layers.1.self_attn.q_proj"], "layers_to_transform": [0]}"#,
                Some(true),
            ),
            (r#"{"target_modules": ["q_proj"], "exclude_modules": ["self_attn.q_proj"]}"#, Some(false)),
            (r#"{"target_modules": ["q_proj"], "exclude_modules": ["attn.q_proj"]}"#, Some(true)),
            (r#"{"target_modules": ["q_proj"], "exclude_modules": ".*1.*"}"#, Some(false)),
            (r#"{"target_modules": ["q_proj"], "exclude_modules": "layers.1"}"#, Some(true)),
            (r#"{"target_modules": ["q_proj"], "modules_to_save": ["self_attn"]}"#, Some(false)),
            (r#"{"target_modules": ["q_proj"], "modules_to_save": ["norm"]}"#, Some(true)),
        ] {
            let found = modules(serde_json::from_str(fields).unwrap());
            assert_eq!(found.targets("model.layers.1.self_attn.q_proj", true), expected, "{fields}");
        }
    }

    #[test]
    fn what_is_saved_is_named_by_the_end_of_a_name() {
        let saved = |names: &str| modules(serde_json::json!({ "modules_to_save": [names] }));
        for (name, module, expected) in [
            ("norm", "model.layers.0.input_layernorm", true),
            ("mlp", "model.layers.0.mlp.up_proj", true),
            ("embed_tokens", "model.embed_tokens", true),
            ("lm_head", "model.embed_tokens", false),
            ("up", "model.layers.0.mlp.up_proj", false),
        ] {
            assert_eq!(saved(name).saves(module), expected, "{name} {module}");
        }
    }
}
