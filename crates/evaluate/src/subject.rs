//! What is evaluated, what its scores are made from, and whose result must not be overwritten.

use std::path::{Path, PathBuf};

use anyhow::Result;
use fs_err as fs;
use serde_json::{Value, json};
use softshard_labels::{
    Artefact, Difference, Door, Error, LabelsManifest, Provenance, SequenceDataset, Split, short,
};
use softshard_model::{LoadOptions, adapter_blake3, config_blake3, hub_name, weights_blake3};

use crate::{EvaluateConfig, EvaluateInputs, Evaluation};

/// The model folder and the adapter over it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Subject {
    pub(crate) model: PathBuf,
    pub(crate) adapter: Option<PathBuf>,
    /// Trained by the recipe: it may be trained anew. Otherwise it is a model that somebody names.
    is_student: bool,
    /// As it is called in results.
    name: String,
}

impl Subject {
    /// What the recipe names, or what `train-student` made.
    ///
    /// # Errors
    /// There is no trained model, or there are two.
    pub(crate) fn chosen(inputs: &EvaluateInputs) -> Result<Self, Error> {
        if let Some(model) = &inputs.config.model {
            let adapter = inputs.config.adapter.clone();
            let name = name_of(adapter.as_deref().unwrap_or(model));
            return Ok(Self { model: model.clone(), adapter, is_student: false, name });
        }
        let place = format!("`{}`", inputs.student.display());
        let (model, adapter) = (inputs.student.join("model"), inputs.student.join("adapter"));
        let name = name_of(inputs.student);
        match (model.exists(), inputs.student_base.filter(|_| adapter.exists())) {
            (true, _) if adapter.exists() => {
                let hint = "two runs wrote there: remove what is not meant, or name it with `evaluate.model`";
                Err(Error::bad(place, "`model/` or `adapter/`", "both").hint(hint))
            }
            (true, _) => Ok(Self { model, adapter: None, is_student: true, name }),
            (false, Some(base)) => {
                Ok(Self { model: base.to_owned(), adapter: Some(adapter), is_student: true, name })
            }
            (false, None) => {
                let hint = "run `softshard train-student` first, or set `evaluate.model`";
                Err(Error::bad(place, "`model/` or `adapter/`", "neither").hint(hint))
            }
        }
    }

    /// Name of its result: the recipe's, or its own, which for `valid` says so: it does not take the place of what is reported.
    pub(crate) fn result_name(&self, config: &EvaluateConfig) -> String {
        let own = match config.split {
            Split::Test => self.name.clone(),
            other => format!("{}-{}", self.name, other.name()),
        };
        config.name.clone().unwrap_or(own)
    }

    /// What its scores are made from whatever the task; hashes its files.
    ///
    /// # Errors
    /// A file cannot be read, or an adapter was trained over another base.
    pub(crate) fn provenance(&self, inputs: &EvaluateInputs, load: &LoadOptions) -> Result<Provenance> {
        let mut this = Provenance::new(Artefact::Evaluation);
        this.input("model.config", config_blake3(&self.model)?);
        this.input("model.weights", weights_blake3(&self.model)?);
        let adapter = self.adapter.as_deref().map(adapter_blake3).transpose()?;
        this.input("adapter", adapter.as_deref().unwrap_or(Provenance::NONE));
        let trained = self.adapter.as_deref().unwrap_or(&self.model);
        if let Some(run) = Provenance::read(trained)? {
            if self.adapter.is_some() {
                this.accept(self.check_base(&this, &run, inputs.accept)?);
            }
            this.accept(run.accepted.iter().cloned());
            this.from.insert("run".to_owned(), run);
        }
        this.dtype = Some(load.dtype());
        this.devices = [softshard_model::device_kind(inputs.device)].into();
        let kind = if self.is_student { "student" } else { "model" };
        let settings = json!({ "subject": { "kind": kind, "name": self.name } });
        this.recipe.insert("evaluate".to_owned(), settings);
        Ok(this)
    }

    /// Refuses an adapter over another base than the one it was trained on.
    fn check_base(
        &self,
        base: &Provenance,
        run: &Provenance,
        accept: &[String],
    ) -> Result<Vec<Difference>, Error> {
        let place = format!("base `{}` of the adapter", self.model.display());
        let hint = "name the base that the adapter was trained over";
        run.check_base(base, &Door { place: &place, hint, accept })
    }
}

/// Adds what scores of held-out rows are made from, and which of them are scored and how; how answers are made is said by
/// [`crate::answers::Decoding::say`].
///
/// # Errors
/// A manifest cannot be read.
pub(crate) fn add_held_out(inputs: &EvaluateInputs, this: &mut Provenance) -> Result<()> {
    if inputs.sequences.exists() {
        let (manifest, blake3) = SequenceDataset::manifest_of(inputs.sequences)?;
        this.input("sequences", blake3);
        this.from.extend(manifest.provenance.map(|one| ("sequences".to_owned(), one)));
    }
    if inputs.labels.exists() {
        let (manifest, blake3) = LabelsManifest::load(inputs.labels)?;
        this.input("labels", blake3);
        this.from.insert("labels".to_owned(), Provenance::from(&manifest.plan));
    }
    this.accept(inputs.accepted.iter().cloned());
    let EvaluateConfig { split, max_answers, rouge, .. } = inputs.config;
    add_settings(this, json!({ "split": split, "max_answers": max_answers, "rouge": rouge }));
    Ok(())
}

/// Adds settings of a task to those of its subject.
pub(crate) fn add_settings(this: &mut Provenance, settings: Value) {
    let all = this.recipe.entry("evaluate".to_owned()).or_insert_with(|| json!({}));
    if let (Value::Object(all), Value::Object(settings)) = (all, settings) {
        all.extend(settings);
    }
}

/// Refuses to write beside or over the result of another model. A student that was trained anew has its results anew.
///
/// # Errors
/// As [`check_result`]; the folder cannot be read.
pub(crate) fn check_results(folder: &Path, now: &Provenance, accept: &[String]) -> Result<()> {
    results_in(folder)?.iter().try_for_each(|path| check_result(path, now, accept))
}

/// Reads a result by its JSON file.
///
/// # Errors
/// It is none.
pub(crate) fn read_result(path: &Path) -> Result<Evaluation> {
    let bad =
        |error| Error::bad(format_args!("evaluation `{}`", path.display()), "the JSON of a result", error);
    Ok(serde_json::from_slice(&fs::read(path)?).map_err(bad)?)
}

/// The results in the folder of one name, one a task; none where there is no such folder.
///
/// # Errors
/// The folder cannot be read.
pub(crate) fn results_in(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    if folder.exists() {
        for entry in fs::read_dir(folder)? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == "json") {
                files.push(path);
            }
        }
    }
    files.sort();
    Ok(files)
}

/// Refuses the name of a result of another model.
///
/// # Errors
/// Names both models; a result that cannot be read.
fn check_result(path: &Path, now: &Provenance, accept: &[String]) -> Result<()> {
    let before = read_result(path)?;
    if is_same(&before.provenance, now) {
        return Ok(());
    }
    let found = described(&before.provenance);
    let difference = Difference::of("result", described(now), &found);
    if difference.is_accepted(accept) {
        tracing::warn!("`{}`: a result of {found} is there, and its name is taken", path.display());
        return Ok(());
    }
    let place = format!("evaluation `{}`", path.display());
    let hint = "give this result a name with `evaluate.name`, or overwrite that one with `--accept result`";
    Err(Error::bad(place, format_args!("none, or one of {}", described(now)), format_args!("one of {found}"))
        .hint(hint)
        .into())
}

/// Whether two results are of one model: the same student, or the same files.
fn is_same(before: &Provenance, now: &Provenance) -> bool {
    let subject = |one: &Provenance| one.recipe.get("evaluate").map(|settings| settings["subject"].clone());
    let is_student = subject(now).is_some_and(|subject| subject["kind"] == "student");
    let files = ["model.config", "model.weights", "adapter"];
    let same_files = files.iter().all(|name| before.inputs.get(*name) == now.inputs.get(*name));
    if is_student { subject(before) == subject(now) } else { same_files }
}

/// ``student `alpha-1` (adapter 0123456789ab over 0123456789ab)``.
pub(crate) fn described(one: &Provenance) -> String {
    let subject = one.recipe.get("evaluate").map_or(&Value::Null, |settings| &settings["subject"]);
    let text = |key: &str| subject[key].as_str().unwrap_or("unknown");
    let hash = |name: &str| one.inputs.get(name).map_or("unknown", |blake3| short(blake3));
    let files = match hash("adapter") {
        Provenance::NONE => format!("weights {}", hash("model.weights")),
        adapter => format!("adapter {adapter} over weights {}", hash("model.weights")),
    };
    format!("{} `{}` ({files})", text("kind"), text("name"))
}

/// A line for each model, which says what it is.
pub fn made_from(evaluations: &[Evaluation]) -> Vec<String> {
    let line = |one: &Evaluation| {
        let names: Vec<&str> = one.provenance.accepted.iter().map(|one| &*one.name).collect();
        let accepted =
            if names.is_empty() { String::new() } else { format!(", accepted: {}", names.join(", ")) };
        format!("{}: {}{accepted}", one.name, described(&one.provenance))
    };
    let mut lines: Vec<String> = evaluations.iter().map(line).collect();
    lines.dedup(); // tasks of one model
    lines
}

/// What a folder is called by people: `teacher` of `run/teacher/model`, `owner--name` of a snapshot in the Hub's cache.
fn name_of(folder: &Path) -> String {
    if let Some(name) = hub_name(folder) {
        return name.replace('/', "--");
    }
    let named = |path: &Path| path.file_name().map(|name| name.to_string_lossy().into_owned());
    match named(folder) {
        Some(name) if name != "model" && name != "adapter" => name,
        own => folder.parent().and_then(named).or(own).unwrap_or_else(|| "model".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_is_called_by_the_folder_that_tells() {
        let names = [
            ("/run/teacher/model", "teacher"),
            ("/run/student/adapter", "student"),
            ("/run/student", "student"),
            ("/models/Qwen2.5-7B", "Qwen2.5-7B"),
            ("/hub/models--Qwen--Qwen2.5-7B/snapshots/0123abcd", "Qwen--Qwen2.5-7B"),
            ("model", "model"),
        ];
        for (folder, name) in names {
            assert_eq!(name_of(Path::new(folder)), name);
        }
    }
}
