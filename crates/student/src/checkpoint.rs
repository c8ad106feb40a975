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
    io,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use burn::tensor::{Device, Tensor};
use fs_err as fs;
use serde::{Deserialize, Serialize};
use softshard_labels::{Error, Provenance};

use crate::{
    identity,
    tensor_file::{self, TensorFile, blake3_of},
};

const FORMAT: &str = "softshard-checkpoint";
const VERSION: u32 = 1;
/// Of the names of finished ones.
const PREFIX: &str = "step-";
/// A checkpoint before it has its name, and one that has it no more.
const WRITING: &str = ".writing";
const REMOVING: &str = ".removing";
/// Where the run stands.
const STATE: &str = "state.json";
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

/// Writes `<folder>/step-<step>`. Nothing is removed but a damaged one of this step.
///
/// # Errors
/// Any failed write, or a number that is not finite; what was there before is untouched.
pub(crate) fn save(
    folder: &Path,
    progress: &Progress,
    run: serde_json::Value,
    tensors: &[(&str, Vec<(String, Tensor<2>)>)],
) -> Result<()> {
    if !folder.exists() {
        fs::create_dir_all(folder)?;
        sync_folder(folder.parent().unwrap_or(Path::new(".")))?;
    }
    clean(folder)?;
    let temporary = folder.join(WRITING);
    let written =
        write(&temporary, progress, run, tensors).and_then(|state| publish(folder, &temporary, &state));
    if written.is_err() {
        // Nothing more can be done if this fails as well: the first error is the one to tell.
        let _ = fs::remove_dir_all(&temporary);
    }
    written
}

fn write(
    temporary: &Path,
    progress: &Progress,
    run: serde_json::Value,
    tensors: &[(&str, Vec<(String, Tensor<2>)>)],
) -> Result<State> {
    fs::create_dir(temporary)?;
    let mut files = BTreeMap::new();
    for (name, tensors) in tensors {
        let hash = tensor_file::write(&temporary.join(name), tensors)
            .with_context(|| format!("`{name}` of step {}", progress.step))?;
        files.insert((*name).to_owned(), hash);
    }
    let state = State { format: FORMAT.to_owned(), version: VERSION, progress: progress.clone(), run, files };
    write_synced(&temporary.join(STATE), &serde_json::to_vec_pretty(&state)?)?;
    sync_folder(temporary)?;
    Ok(state)
}

/// Gives a written checkpoint its name. At any moment one that was whole before is whole.
fn publish(folder: &Path, temporary: &Path, state: &State) -> Result<()> {
    let finished = place(folder, state.progress.step);
    if has_files(&finished, &state.files) {
        // The same weights, after an evaluation that was still to be made: only the state is new.
        fs::rename(temporary.join(STATE), finished.join(STATE))?;
        sync_folder(&finished)?;
        return Ok(fs::remove_dir_all(temporary)?);
    }
    if finished.exists() {
        // It is damaged: the run went on from one before it.
        discard(folder, &finished)?;
    }
    fs::rename(temporary, &finished)?;
    sync_folder(folder)
}

/// Removes all but the last `keep` of a run that stands at `step`, and the best one.
///
/// # Errors
/// The file system refuses.
pub(crate) fn prune(folder: &Path, step: u64, best: Option<Best>, keep: usize) -> Result<()> {
    let mut old: Vec<_> = list(folder)?.into_iter().filter(|found| found.0 <= step).collect();
    old.truncate(old.len().saturating_sub(keep));
    for (step, path) in old {
        if best.is_none_or(|best| best.step != step) {
            discard(folder, &path)?;
        }
    }
    Ok(())
}

/// Removes those behind `step`: they are damaged, and the run that went on from one before them has one of its own now.
///
/// # Errors
/// The file system refuses.
pub(crate) fn discard_later(folder: &Path, step: u64) -> Result<()> {
    list(folder)?.into_iter().filter(|found| found.0 > step).try_for_each(|(_, path)| discard(folder, &path))
}

/// Takes a checkpoint's name away before its files go, so that half of one is never taken for one.
fn discard(folder: &Path, checkpoint: &Path) -> Result<()> {
    let removing = folder.join(REMOVING);
    fs::rename(checkpoint, &removing)?;
    Ok(fs::remove_dir_all(&removing)?)
}

/// Removes what a run that was killed left half written or half removed; nobody but the run that has the folder may call it.
///
/// # Errors
/// The file system refuses.
pub(crate) fn clean(folder: &Path) -> Result<()> {
    for leftover in [WRITING, REMOVING].map(|name| folder.join(name)) {
        if leftover.exists() {
            fs::remove_dir_all(leftover)?;
        }
    }
    Ok(())
}

fn place(folder: &Path, step: u64) -> PathBuf {
    folder.join(format!("{PREFIX}{step:08}"))
}

/// Whether there is a checkpoint of a step.
pub(crate) fn is_there(folder: &Path, step: u64) -> bool {
    place(folder, step).join(STATE).exists()
}

/// The checkpoint of a step of this run.
///
/// # Errors
/// It is not there, or damaged.
pub(crate) fn load_step(folder: &Path, step: u64, device: &Device) -> Result<Checkpoint> {
    let path = place(folder, step);
    read(&path, step, device).map_err(|error| match error {
        Unread::Damaged(why) => {
            let hint = "`evaluation.export` = \"last\" writes the last step instead of the best one";
            Error::bad(in_text(&path), "a whole checkpoint", format!("{why:#}")).hint(hint).into()
        }
        Unread::Refused(error) => error,
    })
}

/// The newest whole checkpoint in `folder`, if any. A damaged one is reported and the one before it is used.
///
/// # Errors
/// A whole checkpoint of another run: the keys that differ are named. One of another version, or one that the disk does not give
/// back: to go on from one before it would remove it.
pub(crate) fn load_last(folder: &Path, run: &Provenance, device: &Device) -> Result<Option<Checkpoint>> {
    let all = list(folder)?;
    for (step, path) in all.iter().rev() {
        match read(path, *step, device) {
            Ok(checkpoint) => {
                let differences = identity::differences(run, &checkpoint.state.run);
                if !differences.is_empty() {
                    let differences: Vec<_> = differences.iter().map(ToString::to_string).collect();
                    let found = format!("one of another run:\n  {}", differences.join("\n  "));
                    let hint = "choose another output, or remove the checkpoints to start anew";
                    return Err(Error::bad(in_text(path), "one of this run", found).hint(hint).into());
                }
                return Ok(Some(checkpoint));
            }
            Err(Unread::Refused(error)) => return Err(error),
            Err(Unread::Damaged(why)) => {
                tracing::warn!("{} is damaged, trying the one before: {why:#}", in_text(path));
            }
        }
    }
    if all.is_empty() {
        return Ok(None);
    }
    // To start anew would overwrite the curve of the run that was.
    let (place, found) = (format!("`{}`", folder.display()), format!("{} damaged ones", all.len()));
    let hint = "remove the checkpoints to start anew";
    Err(Error::bad(place, "a whole checkpoint", found).hint(hint).into())
}

fn in_text(checkpoint: &Path) -> String {
    format!("checkpoint `{}`", checkpoint.display())
}

/// Checkpoints by step, the first one first.
fn list(folder: &Path) -> Result<Vec<(u64, PathBuf)>> {
    if !folder.exists() {
        return Ok(Vec::new());
    }
    let mut found = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str());
        let step = name.and_then(|name| name.strip_prefix(PREFIX)).and_then(|step| step.parse().ok());
        // A copy that somebody made has another name, and is none of ours.
        found.extend(
            step.filter(|&step| place(folder, step) == path && path.is_dir()).map(|step| (step, path)),
        );
    }
    found.sort();
    Ok(found)
}

/// Why a checkpoint is not read.
enum Unread {
    /// Some of it is not there, or not what was written: the one before it may do.
    Damaged(anyhow::Error),
    /// It may be whole: another program wrote it, or the disk does not give it back.
    Refused(anyhow::Error),
}

/// What the state of every version has.
#[derive(Deserialize)]
struct Header {
    format: String,
    version: u32,
}

fn read(path: &Path, step: u64, device: &Device) -> Result<Checkpoint, Unread> {
    let bytes = read_file(&path.join(STATE))?;
    let damaged =
        |error: serde_json::Error| Unread::Damaged(Error::bad(STATE, "the state of a run", error).into());
    let Header { format, version } = serde_json::from_slice(&bytes).map_err(damaged)?;
    if format == FORMAT && version != VERSION {
        let expected = format!("version {VERSION} of its format, which this program reads");
        let hint = "go on with the softshard that wrote it, or choose another output to train anew";
        let error = Error::bad(in_text(path), expected, format!("version {version}")).hint(hint);
        return Err(Unread::Refused(error.into()));
    }
    let state: State = serde_json::from_slice(&bytes).map_err(damaged)?;
    let found = (state.format.as_str(), state.progress.step);
    if found != (FORMAT, step) {
        let expected = format!("{FORMAT} of step {step}");
        let found = format!("{} of step {}", found.0, found.1);
        return Err(Unread::Damaged(Error::bad(STATE, expected, found).into()));
    }
    let mut files = BTreeMap::new();
    for (name, written) in &state.files {
        let place = path.join(name);
        let known = [TRAINABLE, MOMENTS, AVERAGES].contains(&name.as_str());
        if !known || blake3_of(&place).map_err(unread)? != *written {
            let error = Error::bad(format!("`{name}`"), "the file that was written", "another one");
            return Err(Unread::Damaged(error.into()));
        }
        let file = TensorFile::open(&place).map_err(|error| match error.downcast::<io::Error>() {
            Ok(error) => unread(error),
            Err(error) => Unread::Damaged(error.context(name.clone())),
        })?;
        files.insert(name.clone(), file);
    }
    Ok(Checkpoint { state, files, device: device.clone() })
}

fn read_file(path: &Path) -> Result<Vec<u8>, Unread> {
    fs::read(path).map_err(unread)
}

fn unread(error: io::Error) -> Unread {
    match error.kind() {
        io::ErrorKind::NotFound => Unread::Damaged(error.into()),
        _ => Unread::Refused(error.into()),
    }
}

/// Whether a checkpoint has exactly these files, by their hashes.
fn has_files(checkpoint: &Path, files: &BTreeMap<String, String>) -> bool {
    let is_file = |(name, hash): (&String, &String)| {
        blake3_of(&checkpoint.join(name)).is_ok_and(|found| found == *hash)
    };
    files.iter().all(is_file)
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

    fn run(seed: u64) -> Provenance {
        let mut run = Provenance::new(softshard_labels::Artefact::Run);
        run.recipe.insert("training".to_owned(), json!({ "made_up": seed }));
        run
    }

    fn tensor(values: &[f32]) -> Tensor<2> {
        Tensor::from_data(TensorData::new(values.to_vec(), [1, values.len()]), &Device::flex())
    }

    fn save_step(folder: &Path, step: u64) {
        let weights =
            [("w".to_owned(), tensor(&[1.0, f32::from(u8::try_from(step).expect("a small step"))]))];
        let best = (step > 1).then_some(Best { step: 2, value: 0.5 });
        let progress =
            Progress { step, metrics_bytes: 7, best, evaluations_since_best: 0, ..Progress::default() };
        let run = serde_json::to_value(run(1)).expect("JSON");
        save(folder, &progress, run, &[(TRAINABLE, weights.to_vec())]).expect("it is written");
        prune(folder, step, best, 2).expect("older ones go");
    }

    fn load(folder: &Path) -> Result<Option<Checkpoint>> {
        load_last(folder, &run(1), &Device::flex())
    }

    /// Names in a folder, in order.
    fn names(folder: &Path) -> Vec<String> {
        let name = |entry: std::io::Result<fs::DirEntry>| entry.expect("an entry").file_name();
        let names = fs::read_dir(folder).expect("a folder").map(name);
        let mut names: Vec<_> = names.map(|name| name.into_string().expect("ASCII")).collect();
        names.sort();
        names
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
        let last = load(folder.path()).expect("no error").expect("one is left");
        assert_eq!(last.state.progress.step, 2);
        fs::write(folder.path().join("step-00000002/state.json"), "{").expect("the other one is torn");
        let error = load(folder.path()).err().expect("none is whole");
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
        assert_eq!(names(folder.path()), ["step-00000002", "step-00000004", "step-00000005"]);
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
        let error = load_last(folder.path(), &run(2), &Device::flex()).err().expect("another run is refused");
        assert!(error.to_string().contains("training.made_up: expected 2, found 1"), "{error}");
    }

    /// Covers what a kill leaves between any two calls of a save, and copies that somebody made.
    #[test]
    fn half_a_checkpoint_is_never_taken_for_one_and_goes() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        (1..=3).for_each(|step| save_step(folder.path(), step));
        let newest = folder.path().join("step-00000003");
        for half in [WRITING, REMOVING] {
            let half = folder.path().join(half);
            fs::create_dir(&half).expect("a folder");
            fs::copy(newest.join(TRAINABLE), half.join(TRAINABLE)).expect("a file");
        }
        for copy in ["step-00000009.bak", "step-9", "step-00000009 (copy)"] {
            fs::create_dir(folder.path().join(copy)).expect("a folder");
        }
        let last = load(folder.path()).expect("no error").expect("a checkpoint");
        assert_eq!(last.state.progress.step, 3);
        clean(folder.path()).expect("leftovers go");
        save_step(folder.path(), 4);
        let expected = ["step-00000002", "step-00000003", "step-00000004"];
        let copies = ["step-00000009 (copy)", "step-00000009.bak", "step-9"];
        assert_eq!(names(folder.path()), [&expected[..], &copies].concat());
        // One that lies under the name of another step.
        fs::rename(folder.path().join("step-00000004"), folder.path().join("step-00000007")).expect("moved");
        let last = load(folder.path()).expect("no error").expect("a checkpoint");
        assert_eq!(last.state.progress.step, 3);
    }

    #[test]
    fn a_step_that_is_saved_again_is_whole_at_every_moment() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        save_step(folder.path(), 1);
        let path = folder.path().join("step-00000001");
        let inode =
            |name: &str| std::os::unix::fs::MetadataExt::ino(&fs::metadata(path.join(name)).expect("a file"));
        let (weights, state) = (inode(TRAINABLE), inode(STATE));
        save_step(folder.path(), 1);
        assert_eq!(inode(TRAINABLE), weights, "the weights that are there are not touched");
        assert_ne!(inode(STATE), state);
        // Damaged weights are replaced, though the state says that they are these.
        fs::write(path.join(TRAINABLE), "torn").expect("written");
        save_step(folder.path(), 1);
        assert!(load(folder.path()).expect("no error").is_some());
        assert_eq!(names(folder.path()), ["step-00000001"]);
    }

    #[test]
    fn one_of_another_version_or_that_cannot_be_read_is_left_alone() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        (1..=2).for_each(|step| save_step(folder.path(), step));
        let state = folder.path().join("step-00000002/state.json");
        let text = fs::read_to_string(&state).expect("a state");
        // Nothing else of another version's state need be known here.
        fs::write(&state, r#"{"format": "softshard-checkpoint", "version": 2}"#).expect("written");
        let error = load(folder.path()).err().expect("it is refused").to_string();
        let parts =
            ["step-00000002`: expected version 1", "found version 2", "hint: go on with the softshard that"];
        assert!(parts.iter().all(|part| error.contains(part)), "{error}");
        // A disk that fails: here a folder in the place of a file.
        fs::write(&state, text).expect("written");
        let weights = folder.path().join("step-00000002").join(TRAINABLE);
        fs::remove_file(&weights).expect("a file");
        fs::create_dir(&weights).expect("a folder");
        assert!(load(folder.path()).is_err(), "it may be whole");
        fs::remove_dir(&weights).expect("a folder");
        let last = load(folder.path()).expect("no error").expect("a checkpoint");
        assert_eq!(last.state.progress.step, 1, "a file that is not there is damage");
    }

    #[test]
    fn what_is_not_finite_is_not_stored() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        save_step(folder.path(), 1);
        let progress = Progress { step: 2, ..Progress::default() };
        let files = [(TRAINABLE, vec![("w".to_owned(), tensor(&[1.0, f32::INFINITY]))])];
        let error = save(folder.path(), &progress, json!({}), &files).expect_err("it is refused");
        assert!(format!("{error:#}").contains("`w`: expected finite numbers, found inf"), "{error:#}");
        assert_eq!(names(folder.path()), ["step-00000001"]);
    }
}
