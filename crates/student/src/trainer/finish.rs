//! The end of a run: its last checkpoint, then the adapter or the model, and what it did.

use std::{
    io,
    path::{Path, PathBuf},
    time::Instant,
};

use anyhow::Result;
use fs_err as fs;
use serde::Serialize;

use super::{Trainer, checkpoints};
use crate::{
    checkpoint::{self, AVERAGES, Best, TRAINABLE},
    config::Export,
    identity,
    pass::{Breakdown, lap},
};

/// What belongs to a tokenizer in a Hugging Face folder; copied beside a newly trained model.
const TOKENIZER_FILES: [&str; 5] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "generation_config.json",
];

/// What a finished run did.
#[derive(Clone, Debug, Serialize)]
pub struct Summary {
    /// `adapter/` or `model/`.
    pub output: PathBuf,
    /// Optimizer steps of the whole run.
    pub steps: u64,
    /// Steps that it was planned to have: more, if it ended early.
    pub planned_steps: u64,
    /// Sequences in the data.
    pub sequences: usize,
    /// Parameters that were trained, and all.
    pub trained_parameters: usize,
    /// Parameters of the model, without the adapter.
    pub parameters: usize,
    /// Tokens that went through the model in this process, without padding.
    pub tokens: u64,
    /// Loss of the last step, nats per labelled token.
    pub last_loss: Option<f64>,
    /// The best evaluation on held-out data.
    pub best: Option<Best>,
    /// Step whose weights were written.
    pub exported_step: u64,
    /// Where the time went in this process.
    pub seconds: Breakdown,
}

impl Trainer<'_> {
    /// The last checkpoint, then the adapter or the model.
    pub(crate) fn finish(mut self, sequences: usize) -> Result<Summary> {
        let began = Instant::now();
        self.checkpoint()?;
        let exported_step = self.exported_step();
        if exported_step != self.progress.step {
            let first = &self.inputs.devices[0].0;
            let best = checkpoint::load_step(&checkpoints(self.inputs), exported_step, first)?;
            self.put_trained(&best, if best.has_averages() { AVERAGES } else { TRAINABLE })?;
            self.average = None;
        }
        let trained_parameters = self.replicas.first.trainable_count();
        let decoder = self.exported();
        let output = self.inputs.output.join(identity::exported_name(self.inputs.config));
        if self.inputs.config.trains_adapter() {
            decoder.save_adapter(&output, &identity::base_name(&self.inputs.config.model))?;
        } else {
            decoder.save(&output)?;
            copy_tokenizer(self.inputs.tokenizer_folder, &output)?;
        }
        identity::exported(self.provenance, self.inputs.config, exported_step)?.write(&output)?;
        lap(&mut self.seconds.write, began);
        Ok(Summary {
            output,
            steps: self.progress.step,
            planned_steps: self.schedule.total_steps,
            sequences,
            trained_parameters,
            parameters: decoder.parameter_count(),
            tokens: self.tokens,
            last_loss: self.last_loss,
            best: self.progress.best,
            exported_step,
            seconds: self.seconds,
        })
    }

    /// The step whose weights are written.
    fn exported_step(&self) -> u64 {
        match (&self.inputs.config.evaluation, self.progress.best) {
            (Some(evaluation), Some(best)) if evaluation.export == Export::Best => best.step,
            _ => self.progress.step,
        }
    }
}

/// Copies what is in the files and not their modes, to others beside that take their names: read-only ones,
/// of a model cache or of an earlier run, do not stand in the way.
fn copy_tokenizer(from: &Path, to: &Path) -> Result<()> {
    for name in TOKENIZER_FILES {
        if from.join(name).exists() {
            let beside = to.join(format!("{name}.tmp"));
            remove_if_there(&beside)?;
            fs::write(&beside, fs::read(from.join(name))?)?;
            fs::rename(&beside, to.join(name))?;
        }
    }
    Ok(())
}

fn remove_if_there(file: &Path) -> io::Result<()> {
    match fs::remove_file(file) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    /// As an earlier version left them, with the mode of a cache; also for a user who may write everything
    /// the mode is looked at.
    #[test]
    fn read_only_tokenizer_files_are_copied_again() {
        let (from, to) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
        for (folder, text) in [(from.path(), "new"), (to.path(), "old")] {
            for name in ["tokenizer.json", "tokenizer.json.tmp"] {
                fs::write(folder.join(name), text).expect("a file");
                fs::set_permissions(folder.join(name), PermissionsExt::from_mode(0o444)).expect("a mode");
            }
        }
        for _ in 0..2 {
            copy_tokenizer(from.path(), to.path()).expect("copied");
            let copy = to.path().join("tokenizer.json");
            assert_eq!(fs::read_to_string(&copy).expect("a copy"), "new");
            assert_ne!(
                fs::metadata(&copy).expect("a copy").permissions().mode() & 0o200,
                0,
                "its owner may write it"
            );
            assert!(!to.path().join("tokenizer.json.tmp").exists());
        }
    }
}
