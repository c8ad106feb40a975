//! Atomic checkpoints: a folder `step-00000500/` appears whole or not at all.
//!
//! ```text
//! state.json              where the run stands, what it reads, hashes of the files beside it
//! trainable.safetensors   the trained weights by their Hugging Face or PEFT names
//! moments.safetensors     what the optimizer remembers: `<name>.first` and `<name>.second`, or `<name>.momentum`
//! averages.safetensors    averaged weights, if there are
//! ```
//! Order, dropout and schedule are functions of seed and step, so no generator state is stored.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};
use burn::tensor::{Device, Tensor};
use fs_err as fs;
use serde::{Deserialize, Serialize};
use softshard_labels::differences;

use crate::{
    identity,
    tensor_file::{self, TensorFile},
};

const FORMAT: &str = "softshard-checkpoint";
const VERSION: u32 = 1;
/// The trained weights.
pub(crate) const TRAINABLE: &str = "trainable.safetensors";
/// What the optimizer remembers.
pub(crate) const MOMENTS: &str = "moments.safetensors";
/// Averaged weights.
pub(crate) const AVERAGES: &str = "averages.safetensors";

/// How far a run has come.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Progress {
    /// Optimizer steps taken.
    pub(crate) step: u64,
    /// Bytes of metrics.jsonl that belong to those steps.
    pub(crate) metrics_bytes: u64,
    /// The best evaluation so far.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) best: Option<Best>,
    /// Evaluations since then.
    #[serde(default)]
    pub(crate) evaluations_since_best: u64,
    /// What the best one was the best by.
    #[serde(default, skip_serializing_if = "serde_json::Value::is_null")]
    pub(crate) judged_by: serde_json::Value,
    /// The evaluation after this step is still to be made.
    #[serde(default)]
    pub(crate) evaluation_due: bool,
}

/// The best evaluation so far.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Best {
    /// Steps that were taken before it.
    pub step: u64,
    /// What was found, of the metric that decides.
    pub value: f64,
}

/// Where a run stands.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct State {
    /// Always `softshard-checkpoint`.
    pub(crate) format: String,
    /// Version of this layout.
    pub(crate) version: u32,
    /// How far it has come.
    #[serde(flatten)]
    pub(crate) progress: Progress,
    /// Everything that decides the run, so that a checkpoint of another run is refused key by key.
    pub(crate) run: serde_json::Value,
    /// BLAKE3 of the tensor files by name.
    pub(crate) files: BTreeMap<String, String>,
}

/// A whole checkpoint. Its tensors are read when they are asked for.
pub(crate) struct Checkpoint {
    /// Where the run stood.
    pub(crate) state: State,
    files: BTreeMap<String, TensorFile>,
    device: Device,
}

impl Checkpoint {
    /// Puts the tensors of a file into their places, one after the other.
    ///
    /// # Errors
    /// The file, or one of them, is not there.
    pub(crate) fn fill<'a>(
        &self,
        file: &str,
        places: impl IntoIterator<Item = (String, &'a mut Tensor<2>)>,
    ) -> Result<()> {
        for (name, place) in places {
            *place = self.tensor(file, &name)?;
        }
        Ok(())
    }

    /// One tensor of a file.
    ///
    /// # Errors
    /// The file, or the tensor, is not there.
    pub(crate) fn tensor(&self, file: &str, name: &str) -> Result<Tensor<2>> {
        let step = self.state.progress.step;
        let found = self.files.get(file).context("there is no such file");
        found
            .and_then(|found| found.tensor(name, &self.device))
            .with_context(|| format!("checkpoint of step {step}, `{file}`"))
    }

    /// Whether it has averaged weights.
    pub(crate) fn has_averages(&self) -> bool {
        self.files.contains_key(AVERAGES)
    }
}

/// Writes `<folder>/step-<step>` and removes all but the last `keep` and the best one.
///
/// # Errors
/// Any failed write; what was there before is untouched.
pub(crate) fn save(
    folder: &Path,
    progress: &Progress,
    run: serde_json::Value,
    tensors: &[(&str, Vec<(String, Tensor<2>)>)],
    keep: usize,
) -> Result<()> {
    fs::create_dir_all(folder)?;
    // One name, as a run has one writer: what a killed one left is replaced.
    let temporary = folder.join(".writing");
    if temporary.exists() {
        fs::remove_dir_all(&temporary)?;
    }
    fs::create_dir(&temporary)?;
    let mut files = BTreeMap::new();
    for (name, tensors) in tensors {
        files.insert((*name).to_owned(), tensor_file::write(&temporary.join(name), tensors)?);
    }
    let progress = progress.clone();
    let (step, best) = (progress.step, progress.best.map(|best| place(folder, best.step)));
    let state = State { format: FORMAT.to_owned(), version: VERSION, progress, run, files };
    write_synced(&temporary.join("state.json"), &serde_json::to_vec_pretty(&state)?)?;
    sync_folder(&temporary)?;
    let finished = place(folder, step);
    if finished.exists() {
        fs::remove_dir_all(&finished)?;
    }
    fs::rename(&temporary, &finished)?;
    sync_folder(folder)?;
    // Later ones are damaged: the run went on from one before them.
    let (mut all, later): (Vec<_>, Vec<_>) = list(folder)?.into_iter().partition(|path| *path <= finished);
    all.truncate(all.len().saturating_sub(keep));
    all.extend(later);
    for old in all.into_iter().filter(|old| Some(old) != best.as_ref()) {
        fs::remove_dir_all(old)?;
    }
    Ok(())
}

fn place(folder: &Path, step: u64) -> PathBuf {
    folder.join(format!("step-{step:08}"))
}

/// Whether there is a checkpoint of a step.
pub(crate) fn is_there(folder: &Path, step: u64) -> bool {
    place(folder, step).join("state.json").exists()
}

/// The checkpoint of a step of this run.
///
/// # Errors
/// It is not there, or damaged.
pub(crate) fn load_step(folder: &Path, step: u64, device: &Device) -> Result<Checkpoint> {
    let path = place(folder, step);
    read(&path, device).with_context(|| format!("checkpoint `{}`", path.display()))
}

/// The newest whole checkpoint in `folder`, if any. A damaged one is reported and the one before it is used.
///
/// # Errors
/// A whole checkpoint of another run: the keys that differ are named.
pub(crate) fn load_last(
    folder: &Path,
    run: &serde_json::Value,
    device: &Device,
) -> Result<Option<Checkpoint>> {
    let all = list(folder)?;
    for path in all.iter().rev() {
        match read(path, device) {
            Ok(checkpoint) => {
                let differences = differences(run, &identity::completed(checkpoint.state.run.clone()));
                if !differences.is_empty() {
                    let found = format!("one of another run:\n  {}", differences.join("\n  "));
                    let hint = "choose another output, or remove the checkpoints to start anew";
                    let place = format!("checkpoint `{}`", path.display());
                    return Err(softshard_labels::Error::bad(place, "one of this run", found)
                        .hint(hint)
                        .into());
                }
                return Ok(Some(checkpoint));
            }
            Err(error) => {
                tracing::warn!(
                    "checkpoint `{}` is damaged, trying the one before: {error:#}",
                    path.display()
                );
            }
        }
    }
    if all.is_empty() {
        return Ok(None);
    }
    // To start anew would overwrite the curve of the run that was.
    let (place, found) = (format!("`{}`", folder.display()), format!("{} damaged ones", all.len()));
    let hint = "remove the checkpoints to start anew";
    Err(softshard_labels::Error::bad(place, "a whole checkpoint", found).hint(hint).into())
}

/// Finished checkpoints, oldest first.
fn list(folder: &Path) -> Result<Vec<PathBuf>> {
    if !folder.exists() {
        return Ok(Vec::new());
    }
    let mut found = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.starts_with("step-")) {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

fn read(path: &Path, device: &Device) -> Result<Checkpoint> {
    let state: State = serde_json::from_slice(&fs::read(path.join("state.json"))?).context("state.json")?;
    ensure!(
        state.format == FORMAT && state.version == VERSION,
        "expected {FORMAT} version {VERSION}, found {} version {}",
        state.format,
        state.version
    );
    let mut files = BTreeMap::new();
    for (name, written) in &state.files {
        ensure!(
            [TRAINABLE, MOMENTS, AVERAGES].contains(&name.as_str()),
            "`{name}` is no file of a checkpoint"
        );
        let file = TensorFile::open(&path.join(name), written).with_context(|| format!("`{name}`"))?;
        files.insert(name.clone(), file);
    }
    Ok(Checkpoint { state, files, device: device.clone() })
}

fn write_synced(path: &Path, bytes: &[u8]) -> Result<()> {
    use std::io::Write;
    let mut file = fs::File::create(path)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    Ok(())
}

fn sync_folder(path: &Path) -> Result<()> {
    Ok(fs::File::open(path)?.sync_all()?)
}

#[cfg(test)]
mod tests {
    use burn::tensor::TensorData;
    use serde_json::json;

    use super::*;

    fn tensor(values: &[f32]) -> Tensor<2> {
        Tensor::from_data(TensorData::new(values.to_vec(), [1, values.len()]), &Device::flex())
    }

    fn save_step(folder: &Path, step: u64) {
        let weights =
            [("w".to_owned(), tensor(&[1.0, f32::from(u8::try_from(step).expect("a small step"))]))];
        let best = (step > 1).then_some(Best { step: 2, value: 0.5 });
        let progress =
            Progress { step, metrics_bytes: 7, best, evaluations_since_best: 0, ..Progress::default() };
        let files = [(TRAINABLE, weights.to_vec())];
        save(folder, &progress, json!({"seed": 1}), &files, 2).expect("a checkpoint is written");
    }

    #[test]
    fn the_newest_whole_one_is_used_and_older_ones_go() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        for step in [1, 2, 3] {
            save_step(folder.path(), step);
        }
        assert_eq!(list(folder.path()).expect("a list").len(), 2);
        let torn = folder.path().join("step-00000003/trainable.safetensors");
        let bytes = fs::read(&torn).expect("the file is there");
        fs::write(&torn, &bytes[..bytes.len() - 2]).expect("the file is cut");
        let last = load_last(folder.path(), &json!({"seed": 1}), &Device::flex())
            .expect("no error")
            .expect("one is left");
        assert_eq!(last.state.progress.step, 2);
        fs::write(folder.path().join("step-00000002/state.json"), "{").expect("the other one is torn");
        let error =
            load_last(folder.path(), &json!({"seed": 1}), &Device::flex()).err().expect("none is whole");
        assert!(error.to_string().contains("expected a whole checkpoint, found 2 damaged ones"), "{error}");
        assert_eq!(
            last.tensor(TRAINABLE, "w")
                .expect("it is there")
                .to_data()
                .try_to_vec::<f32>()
                .expect("f32 values"),
            [1.0, 2.0]
        );
    }

    #[test]
    fn the_best_one_stays() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        (1..=5).for_each(|step| save_step(folder.path(), step));
        let names: Vec<_> =
            list(folder.path()).expect("a list").into_iter().map(|path| path.display().to_string()).collect();
        assert_eq!(names.len(), 3, "{names:?}");
        assert!(
            names.iter().zip([2, 4, 5]).all(|(name, step)| name.ends_with(&format!("step-0000000{step}")))
        );
        let best = load_step(folder.path(), 2, &Device::flex()).expect("the best one");
        assert_eq!(best.state.progress.best, Some(Best { step: 2, value: 0.5 }));
        assert!(!best.has_averages());
        let error = load_step(folder.path(), 3, &Device::flex()).err().expect("it went");
        assert!(error.to_string().contains("step-00000003"), "{error}");
    }

    #[test]
    fn a_checkpoint_of_another_run_is_refused_by_key() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        save_step(folder.path(), 1);
        let error = load_last(folder.path(), &json!({"seed": 2}), &Device::flex())
            .err()
            .expect("another run is refused");
        assert!(error.to_string().contains("seed: expected 2, found 1"), "{error}");
    }
}
