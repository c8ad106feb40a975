//! What decides the numbers of a run: its provenance, by which a checkpoint, an adapter or a model of another run is refused.

use std::{collections::BTreeMap, path::Path};

use anyhow::Result;
use serde_json::{Value, json};
use softshard_labels::{Artefact, Difference, Door, Error, Provenance};

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

/// Of a provenance's recipe: what is said of an adapter or a model alone.
const EXPORT: &str = "export";

/// What a run is made from.
///
/// # Errors
/// The model's files cannot be read.
pub(crate) fn of_run(inputs: &TrainInputs, examples: &Examples) -> Result<Provenance> {
    let config = inputs.config;
    let mut this = Provenance::new(Artefact::Run);
    this.input("model.config", softshard_model::config_blake3(&config.model)?);
    if config.init == Init::Pretrained {
        this.input("model.weights", softshard_model::weights_blake3(&config.model)?);
    }
    let adapter = config.adapter.as_deref().map(softshard_model::adapter_blake3).transpose()?;
    this.input("adapter", adapter.as_deref().unwrap_or(Provenance::NONE));
    this.tokenizer(inputs.tokenizer);
    let (data, passes) = of_data(&examples.identity());
    this.inputs.extend(data);
    this.recipe = BTreeMap::from([(section(inputs.stage), of_recipe(config, inputs.objective, passes)?)]);
    this.dtype = Some(config.load_options().dtype());
    this.devices = inputs.devices.iter().map(|(device, _)| softshard_model::device_kind(device)).collect();
    this.from = examples.provenances();
    this.accept(inputs.accepted.iter().cloned());
    Ok(this)
}

/// Hashes of the datasets by name, and how often each is read where that is not once.
fn of_data(identity: &Value) -> (BTreeMap<String, String>, Value) {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    match identity {
        Value::Object(parts) => {
            let hash = |(number, part): (&String, &Value)| (format!("data.{number}"), text(&part["blake3"]));
            let weight = |(number, part): (&String, &Value)| (number.clone(), part["weight"].clone());
            (parts.iter().map(hash).collect(), Value::Object(parts.iter().map(weight).collect()))
        }
        one => (BTreeMap::from([("data".to_owned(), text(one))]), json!(1.0)),
    }
}

/// The recipe's section of a stage, which is how its keys are called there.
fn section(stage: &str) -> String {
    stage.strip_prefix("train-").unwrap_or(stage).to_owned()
}

fn of_recipe(config: &TrainConfig, objective: Objective, passes: Value) -> serde_json::Result<Value> {
    let mut training = serde_json::to_value(config)?;
    if let Some(map) = training.as_object_mut() {
        WITHOUT_NUMBERS.iter().for_each(|&key| drop(map.remove(key)));
        // Nobody reads it where there is no teacher.
        if !objective.reads_labels(&config.loss) {
            map.remove("loss");
        }
        map.insert("objective".to_owned(), serde_json::to_value(objective)?);
        map.insert("passes".to_owned(), passes);
    }
    Ok(training)
}

/// What an adapter or a model says beyond its run: which step it is, and what chose it. A run may be resumed with another `evaluation`.
pub(crate) fn exported(mut run: Provenance, config: &TrainConfig, step: u64) -> Result<Provenance> {
    let mut chosen_by = serde_json::to_value(&config.evaluation)?;
    if let Some(keys) = chosen_by.as_object_mut() {
        keys.remove("data");
    }
    run.recipe.insert(EXPORT.to_owned(), json!({ "step": step, "evaluation": chosen_by }));
    Ok(run)
}

/// What a checkpoint says of its run, as this version says it: of earlier versions what they said, with the keys that their recipe had
/// not yet. What was not said is as it was before there were such keys.
fn completed(run: &Provenance, stored: &Value) -> Option<Provenance> {
    let section = run.recipe.keys().next()?;
    let mut this = if stored["format"] == Provenance::FORMAT {
        serde_json::from_value::<Provenance>(stored.clone()).ok()?
    } else {
        of_earlier_version(section, stored)?
    };
    this.recipe.remove(EXPORT);
    let Some(Value::Object(training)) = this.recipe.get(section) else { return Some(this) };
    let mut whole = training.clone();
    whole.insert("model".to_owned(), json!(""));
    let passes = whole.remove("passes").unwrap_or_default();
    let objective = whole.get("objective").cloned().unwrap_or_default();
    let whole = serde_json::from_value::<TrainConfig>(Value::Object(whole));
    if let (Ok(whole), Ok(objective)) = (whole, serde_json::from_value(objective))
        && let Ok(recipe) = of_recipe(&whole, objective, passes)
    {
        this.recipe.insert(section.clone(), recipe);
    }
    Some(this)
}

/// Before runs had a provenance a checkpoint said `config`, `objective`, `data_manifest_blake3` and `model_blake3`, which was the hash
/// of the weights, or of the configuration where there were none.
fn of_earlier_version(section: &str, stored: &Value) -> Option<Provenance> {
    let mut this = Provenance::new(Artefact::Run);
    let mut training = stored["config"].as_object()?.clone();
    let model = if training.get("init") == Some(&json!("random")) { "model.config" } else { "model.weights" };
    this.input(model, stored["model_blake3"].as_str()?);
    this.input("adapter", stored["adapter_blake3"].as_str().unwrap_or(Provenance::NONE));
    let (data, passes) = of_data(&stored["data_manifest_blake3"]);
    this.inputs.extend(data);
    training.insert("objective".to_owned(), stored["objective"].clone());
    training.insert("passes".to_owned(), passes);
    this.recipe.insert(section.to_owned(), Value::Object(training));
    Some(this)
}

/// Compares this run with the one of a checkpoint, key by key; nothing where they are the same.
pub(crate) fn differences(run: &Provenance, stored: &Value) -> Vec<Difference> {
    match completed(run, stored) {
        Some(stored) => {
            let gone = stored.inputs.keys().filter(|name| !run.inputs.contains_key(*name));
            let gone = gone.map(|name| Difference::of(name, "nothing", "an input")).collect();
            [run.differences(&stored), gone].concat()
        }
        None => vec![Difference::of("run", "what a run is made from", "something else")],
    }
}

/// Takes over what a checkpoint of this run says beyond it: where it was computed before, and what was accepted. Says which inputs
/// an earlier version did not write down.
pub(crate) fn resumed(run: &mut Provenance, stored: &Value, stage: &str) {
    let Some(stored) = completed(run, stored) else { return };
    let unsaid: Vec<&str> =
        run.inputs.keys().filter(|name| !stored.inputs.contains_key(*name)).map(String::as_str).collect();
    if !unsaid.is_empty() {
        tracing::warn!(
            stage,
            "the checkpoint is of an earlier version, which did not write down {}: taken to be what is there now",
            unsaid.join(", ")
        );
    }
    run.devices.extend(stored.devices);
    run.accept(stored.accepted);
}

/// Refuses to train beside an `adapter/` or a `model/` that another run made: whoever reads the output could not tell which is meant.
///
/// # Errors
/// Names what is there, and in which values its run differs.
pub(crate) fn check_output(inputs: &TrainInputs, run: &Provenance, is_resumed: bool) -> Result<()> {
    let own = exported_name(inputs.config);
    for name in ["adapter", "model"] {
        let folder = inputs.output.join(name);
        if !folder.exists() {
            continue;
        }
        let place = format!("`{}`", folder.display());
        let other =
            || Error::bad(&place, "nothing, or what this run makes", "what another run made").hint(HINT);
        match Provenance::read(&folder)? {
            _ if name != own => return Err(other().into()),
            // An earlier version wrote none; the checkpoint says that the run is this one.
            None if is_resumed => {}
            None => return Err(other().into()),
            Some(found) => {
                let found = serde_json::to_value(found)?;
                let door = Door { place: &place, hint: HINT, accept: &[] };
                let differences = differences(run, &found);
                if !differences.is_empty() {
                    return Err(refused(&door, &differences).into());
                }
            }
        }
    }
    Ok(())
}

const HINT: &str = "name another output, or remove it";

/// What is there is of another run, which no `--accept` makes this one.
fn refused(door: &Door, differences: &[Difference]) -> Error {
    Error::OtherProvenance {
        place: door.place.to_owned(),
        differences: differences.iter().map(Difference::to_string).collect(),
        hint: door.hint.to_owned(),
    }
}

/// The folder that a run of this recipe makes.
pub(crate) fn exported_name(config: &TrainConfig) -> &'static str {
    if config.trains_adapter() { "adapter" } else { "model" }
}

/// What an adapter says of its base: the name on the Hub, where the folder is a snapshot in the Hub's cache, which is a path that no
/// other machine has; elsewhere the path.
pub(crate) fn base_name(model: &Path) -> String {
    softshard_model::hub_name(model).unwrap_or_else(|| model.to_string_lossy().into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn training(value: Value, objective: Objective) -> Value {
        let config: TrainConfig = serde_json::from_value(value).expect("a recipe");
        of_recipe(&config, objective, json!(1.0)).expect("JSON")
    }

    fn run(training: Value) -> Provenance {
        let recipe = BTreeMap::from([("student".to_owned(), training)]);
        let mut run = Provenance { recipe, ..Provenance::new(Artefact::Run) };
        run.input("model.weights", "w");
        run.input("model.config", "c");
        run.input("adapter", Provenance::NONE);
        run.input("data", "d");
        run
    }

    /// As checkpoints of earlier versions have it.
    fn earlier(mut config: Value, objective: &str) -> Value {
        config.as_object_mut().expect("a map").remove("model");
        json!({ "config": config, "objective": objective, "data_manifest_blake3": "d", "model_blake3": "w" })
    }

    #[test]
    fn checkpoints_from_before_a_key_was_there_are_of_the_same_run() {
        let now = run(training(json!({"model": "m", "seed": 3}), Objective::Distill));
        let whole: TrainConfig = serde_json::from_value(json!({"model": "m", "seed": 3})).expect("a recipe");
        let mut before = serde_json::to_value(whole).expect("JSON");
        for key in ["packing", "optimizer", "schedule", "precision"] {
            before.as_object_mut().expect("a map").remove(key).expect("a key of today");
        }
        before["loss"].as_object_mut().expect("a map").remove("divergence").expect("a key of today");
        assert_eq!(differences(&now, &earlier(before.clone(), "distill")), []);
        before["seed"] = json!(4);
        let found = differences(&now, &earlier(before, "distill"));
        assert_eq!(found, [Difference::of("student.seed", 3, 4)]);
        // Those of today, of which a key was not there yet.
        let mut stored = serde_json::to_value(&now).expect("JSON");
        stored["recipe"]["student"]
            .as_object_mut()
            .expect("a map")
            .remove("packing")
            .expect("a key of today");
        assert_eq!(differences(&now, &stored), []);
        stored["inputs"]["model.config"] = json!("another");
        assert_eq!(differences(&now, &stored), [Difference::of("model.config", "c", "another")]);
    }

    #[test]
    fn what_an_earlier_version_did_not_say_is_filled_in() {
        let config = json!({"model": "m"});
        let mut now = run(training(config.clone(), Objective::Distill));
        let stored = earlier(config.clone(), "distill");
        assert_eq!(differences(&now, &stored), []);
        resumed(&mut now, &stored, "test");
        assert_eq!(now.inputs["model.config"], "c");
        let other = json!({ "model_blake3": "other", "config": stored["config"], "objective": "distill", "data_manifest_blake3": "d" });
        assert_eq!(differences(&now, &other), [Difference::of("model.weights", "w", "other")]);
        let random = json!({"model": "m", "init": "random"});
        let mut of_shape = earlier(random.clone(), "pretrain");
        of_shape["model_blake3"] = json!("c");
        let mut now = run(training(random, Objective::Pretrain));
        now.inputs.remove("model.weights");
        assert_eq!(differences(&now, &of_shape), []);
        // Another number of datasets is another run, though no name is on both sides.
        let mixed = json!({ "0": { "blake3": "d", "weight": 1.0 }, "1": { "blake3": "e", "weight": 0.5 } });
        of_shape["data_manifest_blake3"] = mixed;
        assert!(!differences(&now, &of_shape).is_empty());
    }

    #[test]
    fn what_nobody_reads_is_no_part_of_a_run() {
        let of = |alpha: f64, objective| training(json!({"model": "m", "loss": {"alpha": alpha}}), objective);
        assert_eq!(of(0.0, Objective::Supervised), of(1.0, Objective::Supervised));
        assert_ne!(of(0.0, Objective::Distill), of(1.0, Objective::Distill));
        let stored = earlier(json!({"model": "m", "loss": {"alpha": 1.0}}), "supervised");
        assert_eq!(differences(&run(of(0.0, Objective::Supervised)), &stored), []);
    }
}
