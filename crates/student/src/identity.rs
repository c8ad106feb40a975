//! What decides the numbers of a run, so that a checkpoint of another run is refused.

use anyhow::Result;
use serde_json::{Value, json};

use crate::{
    config::{Init, TrainConfig},
    examples::Examples,
    inputs::TrainInputs,
};

/// Keys of a recipe that decide where files lie, what is in memory meanwhile and what is said, but no number.
const WITHOUT_NUMBERS: [&str; 7] = [
    "model",
    "mixture",
    "checkpoint_every_steps",
    "keep_checkpoints",
    "residency",
    "checkpointing",
    "evaluation",
];

/// Everything that decides the numbers of a run.
///
/// # Errors
/// The model's files cannot be read.
pub(crate) fn of_run(inputs: &TrainInputs, examples: &Examples) -> Result<Value> {
    let config = inputs.config;
    let weights = match config.init {
        Init::Pretrained => softshard_model::weights_blake3(&config.model)?,
        Init::Random => softshard_model::config_blake3(&config.model)?,
    };
    Ok(json!({
        "config": without_places(serde_json::to_value(config)?),
        "objective": inputs.objective,
        "data_manifest_blake3": examples.identity(),
        "model_blake3": weights,
    }))
}

/// A stored identity with the keys that its recipe had not yet: what was not said is as it was before there were such keys.
pub(crate) fn completed(mut stored: Value) -> Value {
    if let Some(config) = stored.get_mut("config").filter(|config| config.is_object()) {
        let mut whole = config.clone();
        whole["model"] = json!("");
        if let Ok(whole) = serde_json::from_value::<TrainConfig>(whole).and_then(serde_json::to_value) {
            *config = without_places(whole);
        }
    }
    stored
}

fn without_places(mut recipe: Value) -> Value {
    if let Some(map) = recipe.as_object_mut() {
        WITHOUT_NUMBERS.iter().for_each(|&key| drop(map.remove(key)));
    }
    recipe
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checkpoints_from_before_a_key_was_there_are_of_the_same_run() {
        let config: TrainConfig = serde_json::from_value(json!({"model": "m", "seed": 3})).expect("a recipe");
        let now = without_places(serde_json::to_value(&config).expect("JSON"));
        let mut before = now.clone();
        for key in ["packing", "optimizer", "schedule", "precision"] {
            before.as_object_mut().expect("a map").remove(key).expect("a key of today");
        }
        before["loss"].as_object_mut().expect("a map").remove("divergence").expect("a key of today");
        assert_eq!(completed(json!({ "config": before })), json!({ "config": now }));
        before["seed"] = json!(4);
        assert_ne!(completed(json!({ "config": before })), json!({ "config": now }));
    }
}
