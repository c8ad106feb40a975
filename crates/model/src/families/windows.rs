//! Which layers have a window, from `sliding_window`, `layer_types` and what families say besides.

use serde_json::Value;

use super::keys::Keys;
use crate::Error;
use crate::config::{Family, LayerConfig};

/// The window of a file that says nothing, as in transformers.
const USUAL_WINDOW: usize = 4096;
/// Of a Qwen, the layers before the first one that has a window, as in transformers.
const USUAL_FULL_LAYERS: usize = 28;
const HINT: &str = "supported: \"full_attention\", \"sliding_attention\"";

/// One value for each of so many layers.
pub(super) fn read(
    keys: &Keys,
    family: Family,
    layers: usize,
    remarks: &mut Vec<String>,
) -> Result<Vec<LayerConfig>, Error> {
    let some = |window, first: usize| {
        (0..layers).map(|layer| LayerConfig { window: if layer < first { None } else { window } }).collect()
    };
    match family {
        // With `layer_types`, transformers makes it a Ministral, which reads them.
        Family::Mistral => {
            let window = window(keys)?;
            Ok(by_type(keys, layers, window, "where `sliding_window` is null")?
                .unwrap_or_else(|| some(window, 0)))
        }
        Family::Qwen2 | Family::Qwen3 => {
            let windowed = keys.flag("use_sliding_window", false)?;
            let window = if windowed { window(keys)? } else { None };
            let why = if windowed {
                "where `sliding_window` is null"
            } else {
                "where `use_sliding_window` is false"
            };
            let found = match by_type(keys, layers, window, why)? {
                Some(by_type) => by_type,
                None => some(window, keys.size_or("max_window_layers", USUAL_FULL_LAYERS)?),
            };
            if windowed && found.iter().all(|layer| layer.window.is_none()) {
                remarks.push("`use_sliding_window` is true, but no layer has a window".into());
            }
            Ok(found)
        }
        Family::Llama | Family::GptNeox | Family::Opt | Family::Gpt2 => {
            for key in ["sliding_window", "layer_types"] {
                if keys.get(key).is_some() {
                    remarks.push(format!("`{key}` is not used: no layer of this family has a window"));
                }
            }
            Ok(some(None, 0))
        }
    }
}

/// Absent and null differ.
fn window(keys: &Keys) -> Result<Option<usize>, Error> {
    if keys.map.contains_key("sliding_window") {
        keys.optional_size("sliding_window")
    } else {
        Ok(Some(USUAL_WINDOW))
    }
}

/// What `layer_types` says, if it is there; `why` there is no window, if there is none.
fn by_type(
    keys: &Keys,
    layers: usize,
    window: Option<usize>,
    why: &str,
) -> Result<Option<Vec<LayerConfig>>, Error> {
    let Some(types) = keys.get("layer_types") else { return Ok(None) };
    let types = types.as_array().map(Vec::as_slice).unwrap_or_default();
    if types.len() != layers {
        let found = types.len();
        return Err(keys
            .problem(format!("`layer_types`: expected a name for each of {layers} layers, found {found}")));
    }
    let one = |(layer, name): (usize, &Value)| match name.as_str() {
        // The second is its older name.
        Some("full_attention" | "attention") => Ok(LayerConfig { window: None }),
        Some("sliding_attention") if window.is_some() => Ok(LayerConfig { window }),
        Some("sliding_attention") => Err(keys.problem(format!(
            "`layer_types`: expected \"full_attention\" {why}, found \"sliding_attention\" for layer {layer}"
        ))),
        _ => Err(keys.unsupported(format!("`layer_types` {name} for layer {layer}"), HINT)),
    };
    types.iter().enumerate().map(one).collect::<Result<_, _>>().map(Some)
}
