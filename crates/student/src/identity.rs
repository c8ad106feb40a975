//! What decides the numbers of a run, so that a checkpoint of another run is refused.

use anyhow::Result;
use serde_json::{Value, json};

use crate::{
    config::{Init, Objective, TrainConfig},
    examples::Examples,
    inputs::TrainInputs,
};

/// Keys of a recipe that decide where files lie, what is in memory meanwhile and what is said, but no number.
const WITHOUT_NUMBERS: [&str; 9] = [
    "model",
    // Its files' hash stands beside the recipe.
    "adapter",
    // The resolved one stands beside the recipe.
    "objective",
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
    let mut identity = json!({
        "config": of_recipe(config, inputs.objective)?,
        "objective": inputs.objective,
        "data_manifest_blake3": examples.identity(),
        "model_blake3": weights,
    });
    // Runs from before there was such a key have none.
    if let Some(adapter) = &config.adapter {
        identity["adapter_blake3"] = json!(softshard_model::adapter_blake3(adapter)?);
    }
    Ok(identity)
}

/// A stored identity with the keys that its recipe had not yet: what was not said is as it was before there were such keys.
pub(crate) fn completed(mut stored: Value) -> Value {
    let objective = serde_json::from_value::<Objective>(stored["objective"].clone());
    if let (Ok(objective), Some(config)) =
        (objective, stored.get_mut("config").filter(|config| config.is_object()))
    {
        let mut whole = config.clone();
        whole["model"] = json!("");
        let whole = serde_json::from_value::<TrainConfig>(whole);
        if let Ok(whole) = whole.and_then(|whole| of_recipe(&whole, objective)) {
            *config = whole;
        }
    }
    stored
}

fn of_recipe(config: &TrainConfig, objective: Objective) -> serde_json::Result<Value> {
    let mut recipe = serde_json::to_value(config)?;
    if let Some(map) = recipe.as_object_mut() {
        WITHOUT_NUMBERS.iter().for_each(|&key| drop(map.remove(key)));
        // Nobody reads it where there is no teacher.
        if !objective.reads_labels(&config.loss) {
            map.remove("loss");
        }
    }
    Ok(recipe)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checkpoints_from_before_a_key_was_there_are_of_the_same_run() {
        let config: TrainConfig = serde_json::from_value(json!({"model": "m", "seed": 3})).expect("a recipe");
        let now = of_recipe(&config, Objective::Distill).expect("JSON");
        let mut before = now.clone();
        for key in ["packing", "optimizer", "schedule", "precision"] {
            before.as_object_mut().expect("a map").remove(key).expect("a key of today");
        }
        before["loss"].as_object_mut().expect("a map").remove("divergence").expect("a key of today");
        let of = |config: &Value| json!({ "config": config, "objective": "distill" });
        assert_eq!(completed(of(&before)), of(&now));
        before["seed"] = json!(4);
        assert_ne!(completed(of(&before)), of(&now));
    }

    #[test]
    fn what_nobody_reads_is_no_part_of_a_run() {
        let config = |alpha: f64| -> TrainConfig {
            serde_json::from_value(json!({"model": "m", "loss": {"alpha": alpha}})).expect("a recipe")
        };
        let [zero, one] =
            [0.0, 1.0].map(|alpha| of_recipe(&config(alpha), Objective::Supervised).expect("JSON"));
        assert_eq!(zero, one);
        let stored =
            json!({ "config": serde_json::to_value(config(1.0)).expect("JSON"), "objective": "supervised" });
        assert_eq!(completed(stored)["config"], zero);
        assert_ne!(of_recipe(&config(1.0), Objective::Distill).expect("JSON"), one);
    }
}
