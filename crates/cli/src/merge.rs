//! `softshard merge`.

use std::{path::PathBuf, sync::atomic::AtomicBool};

use anyhow::Result;
use clap::{Args, ValueEnum};
use softshard_model::{MergeInputs, Precision};

use crate::{numbers::grouped, progress};

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
pub(crate) fn merge(options: &Merge, stop: &AtomicBool) -> Result<()> {
    let precision = match options.dtype {
        Dtype::Keep => None,
        Dtype::F32 => Some(Precision::F32),
        Dtype::Bf16 => Some(Precision::Bf16),
    };
    let Merge { base, adapter, out, dtype: _ } = options;
    let merged = softshard_model::merge(&MergeInputs { base, adapter, output: out, precision, stop })?;
    progress::leave();
    println!(
        "merged: an adapter of rank {}, scale {}, into {} of {} tensors, {} bytes",
        merged.lora.r,
        merged.lora.scale(),
        grouped(merged.changed as f64),
        grouped(merged.tensors as f64),
        grouped(merged.bytes as f64)
    );
    println!("  the adapter names its base `{}`", merged.made_for);
    println!("model: {}", out.display());
    Ok(())
}
