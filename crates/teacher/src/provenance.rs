//! What a recipe says now of the labels that it would make, to be compared with those that are there.

use std::path::{Path, PathBuf};

use anyhow::Result;
use softshard_labels::{Artefact, LabelPlan, Provenance, TeacherIdentity};
use softshard_model::{adapter_blake3, config_blake3, weights_blake3};

use crate::{
    config::{LabelsConfig, TeacherConfig},
    teacher::altered,
};

/// What labels of this recipe are made from, as far as it is here: a student's machine need not have the teacher. Of `found`, the plan
/// that is compared with, what a recipe does not say is taken: template, seed, sizes.
///
/// The weights are hashed where they are here, which reads all of them.
///
/// # Errors
/// A file of the teacher that is there cannot be read.
pub fn expected(teacher: &TeacherConfig, labels: &LabelsConfig, found: &LabelPlan) -> Result<Provenance> {
    let identity = TeacherIdentity {
        adapter_blake3: None,
        dtype: teacher.load_options().dtype(),
        altered: altered(teacher, teacher.calibration.map(|_| 1.0)),
        ..found.teacher.clone()
    };
    let plan = LabelPlan {
        teacher: identity,
        selection: labels.selection.clone(),
        mantissa_bits: labels.mantissa_bits,
        position_mantissa_bits: labels.position_mantissa_bits,
        omit: labels.omit.clone(),
        temperatures: labels.temperatures.clone(),
        ..found.clone()
    };
    let mut this = Provenance { kind: Artefact::Labels, ..Provenance::from(&plan) };
    // What is not here says nothing.
    this.inputs.clear();
    if teacher.model.join("config.json").exists() {
        this.input("teacher.config", config_blake3(&teacher.model)?);
    }
    if has_weights(&teacher.model) {
        this.input("teacher.weights", weights_blake3(&teacher.model)?);
    }
    match &teacher.adapter {
        None => this.input("teacher.adapter", Provenance::NONE),
        Some(adapter) if adapter.exists() => this.input("teacher.adapter", adapter_blake3(adapter)?),
        Some(_) if found.teacher.adapter_blake3.is_none() => this.input("teacher.adapter", "one"),
        Some(_) => {}
    }
    Ok(this)
}

/// Whether any weights are there: of what is left of a folder nothing need be read.
fn has_weights(folder: &Path) -> bool {
    let is_weights = |path: PathBuf| path.extension().is_some_and(|extension| extension == "safetensors");
    std::fs::read_dir(folder).is_ok_and(|entries| entries.flatten().any(|entry| is_weights(entry.path())))
}
