//! `softshard merge`.

use std::path::PathBuf;

use anyhow::Result;
use clap::{Args, ValueEnum};
use softshard_labels::{Observer, Progress};
use softshard_model::{MergeInputs, Merged, Precision};

use crate::{numbers::grouped, session::Session};

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
}

/// Number format of merged weights.
#[derive(Clone, Copy, ValueEnum)]
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
    let Merge { base, adapter, out, dtype: _ } = options;
    let inputs = MergeInputs { base, adapter, output: out, precision, stop: session.stop };
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
