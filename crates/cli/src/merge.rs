//! `softshard merge`.

use std::path::PathBuf;

use anyhow::Result;
use clap::{Args, ValueEnum};
use serde::Serialize;
use serde_json::json;
use softshard_labels::{Artefact, Door, Observer, Progress, Provenance};
use softshard_model::{
    MergeInputs, Merged, Precision, adapter_blake3, check_merge, config_blake3, weights_blake3,
};

use crate::{doors::Accept, numbers::grouped, session::Session};

/// Arguments of `merge`.
#[derive(Args)]
pub(crate) struct Merge {
    /// Model folder that the adapter was trained on
    base: PathBuf,
    /// Adapter folder, of ours or of PEFT
    adapter: PathBuf,
    /// Model folder to write; it is not there yet, or empty
    out: PathBuf,
    /// Number format of the weights
    #[arg(long, value_enum, default_value_t = Dtype::Keep)]
    dtype: Dtype,
    /// What is taken though it differs
    #[command(flatten)]
    accept: Accept,
}

/// Number format of merged weights.
#[derive(Clone, Copy, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Dtype {
    /// Each tensor as in the base's files
    Keep,
    /// 32-bit floats
    F32,
    /// 16 bits with the range of 32
    Bf16,
}

/// Merges and says what was done.
pub(crate) fn merge(options: &Merge, session: &Session) -> Result<()> {
    let precision = match options.dtype {
        Dtype::Keep => None,
        Dtype::F32 => Some(Precision::F32),
        Dtype::Bf16 => Some(Precision::Bf16),
    };
    let Merge { base, adapter, out, dtype: _, accept: _ } = options;
    let stop = session.stop;
    let mut inputs = MergeInputs { base, adapter, output: out, precision, provenance: None, stop };
    check_merge(&inputs)?;
    let made_from = made_from(options)?.to_json();
    inputs.provenance = Some(&made_from);
    let observer = session.observer();
    let merged = softshard_model::merge(&inputs, &|done, total| {
        let (done, total) = (done as u64, total as u64);
        observer.progress(&Progress { stage: "merge", done, total, unit: "tensors", ..Progress::default() });
    })?;
    drop(observer);
    println!(
        "merged: {} into {} of {} tensors, {} bytes",
        adapter_in_words(&merged),
        grouped(merged.changed as f64),
        grouped(merged.tensors as f64),
        grouped(merged.bytes as f64)
    );
    if merged.untied {
        println!("  embedding and head differ: the base ties them, the merged model has both");
    }
    println!("  the adapter names its base `{}`", merged.made_for);
    println!("model: {}", out.display());
    Ok(())
}

/// What the merged model is made from: the base, which must be the one that the adapter learnt over, and the adapter with its run.
fn made_from(Merge { base, adapter, dtype, accept, .. }: &Merge) -> Result<Provenance> {
    let mut this = Provenance::new(Artefact::Run);
    this.input("model.config", config_blake3(base)?);
    this.input("model.weights", weights_blake3(base)?);
    this.input("adapter", adapter_blake3(adapter)?);
    this.recipe.insert("merge".to_owned(), json!({ "dtype": dtype }));
    this.dtype = Some("f32".to_owned());
    this.devices = ["cpu".to_owned()].into();
    if let Some(run) = Provenance::read(adapter)? {
        let place = format!("base `{}` of the adapter", base.display());
        let hint = "name the base that the adapter was trained over";
        this.accept(run.check_base(&this, &Door { place: &place, hint, accept: &accept.names })?);
        this.accept(run.accepted.iter().cloned());
        this.from.insert("run".to_owned(), run);
    }
    this.from.extend(Provenance::read(base)?.map(|base| ("base".to_owned(), base)));
    Ok(this)
}

/// Its ranks and scales.
fn adapter_in_words(merged: &Merged) -> String {
    let range = |name: &str, values: Vec<f64>| {
        let (least, most) = values
            .into_iter()
            .fold((f64::MAX, f64::MIN), |(least, most), value| (least.min(value), most.max(value)));
        if least < most { format!("{name}s {least} to {most}") } else { format!("{name} {least}") }
    };
    if merged.maps.is_empty() {
        return "an adapter of whole tensors".to_owned();
    }
    let ranks = merged.maps.values().map(|map| map.r as f64).collect();
    let scales = merged.maps.values().map(|map| map.scale).collect();
    format!("an adapter of {}, {},", range("rank", ranks), range("scale", scales))
}
