//! `softshard model inspect`: what a model is and what memory it takes, from its `config.json` alone, or, where its weights are there and the
//! file ties the head, from both.

use std::path::{Path, PathBuf};

use anyhow::Result;
use clap::{Args, Subcommand};
use serde::Serialize;
use softshard_model::{Bits, DecoderConfig, Family, Positions, Precision, RopeScaling};

use crate::{numbers::grouped, stdout::print_json, table::aligned};

/// What can be asked of a model.
#[derive(Subcommand)]
pub(crate) enum Model {
    /// Shape, parameters and memory of models from their config.json alone, no weights needed: will it fit, and how?
    Inspect(InspectModel),
}

/// Arguments of `model inspect`.
#[derive(Args)]
pub(crate) struct InspectModel {
    /// Model folders, or their config.json under any name
    #[arg(required = true, value_name = "PATH")]
    paths: Vec<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// What is said of a model.
#[derive(Serialize)]
struct Inspected {
    file: String,
    family: &'static str,
    layers: usize,
    hidden_size: usize,
    heads: usize,
    key_value_heads: usize,
    head_dim: usize,
    vocab_size: usize,
    /// Positions.
    context: usize,
    /// The widest window that a layer has.
    sliding_window: Option<usize>,
    layers_with_window: usize,
    positions: String,
    tied: bool,
    parameters: usize,
    parameters_of_layer: usize,
    bytes: Bytes,
    /// What the file says and the model does not do, as in transformers.
    remarks: Vec<String>,
}

/// Memory; floats are bf16.
#[derive(Serialize)]
struct Bytes {
    bf16: u64,
    quantised_8_bits: u64,
    quantised_4_bits: u64,
    two_layers: u64,
    /// Two layers and all that is outside of the layers.
    streamed: u64,
    cache_per_token: u64,
}

/// Prints one table.
///
/// # Errors
/// A file is not the configuration of a model that we compute.
pub(crate) fn inspect(options: &InspectModel) -> Result<()> {
    let found = options.paths.iter().map(|path| Inspected::of(path)).collect::<Result<Vec<_>>>()?;
    if options.json {
        return print_json(&found);
    }
    let rows: Vec<Vec<String>> = [header()].into_iter().chain(found.iter().map(Inspected::row)).collect();
    print!("{}", aligned(&rows));
    for one in &found {
        one.remarks.iter().for_each(|remark| println!("{}: {remark}", one.file));
    }
    println!(
        "bf16, 8 bits, 4 bits: all weights as they are loaded; in bits are the matrices of the layers alone. f32 takes twice bf16.\n\
         streamed: two layers, and what is outside of the layers; activations come on top of any of these.\n\
         cache: keys and values of a token while text is generated."
    );
    Ok(())
}

fn header() -> Vec<String> {
    let names = [
        "model",
        "family",
        "layers",
        "D",
        "heads",
        "V",
        "context",
        "positions",
        "tied",
        "parameters",
        "bf16",
        "8 bits",
        "4 bits",
        "2 layers",
        "streamed",
        "cache",
    ];
    names.map(str::to_owned).into()
}

impl Inspected {
    fn of(path: &Path) -> Result<Self> {
        let config = if path.is_file() { DecoderConfig::read(path) } else { DecoderConfig::load(path) }?;
        let precision = Precision::Bf16;
        let windows: Vec<usize> = config.layers.iter().filter_map(|layer| layer.window).collect();
        Ok(Self {
            file: path.display().to_string(),
            family: family(config.family),
            layers: config.num_hidden_layers,
            hidden_size: config.hidden_size,
            heads: config.num_attention_heads,
            key_value_heads: config.num_key_value_heads,
            head_dim: config.head_dim,
            vocab_size: config.vocab_size,
            context: config.max_position_embeddings,
            sliding_window: windows.iter().copied().max(),
            layers_with_window: windows.len(),
            positions: positions(&config.positions),
            tied: config.tie_word_embeddings,
            parameters: config.parameter_count(),
            parameters_of_layer: config.layer_parameter_count(),
            bytes: Bytes {
                bf16: config.resident_bytes(precision, None),
                quantised_8_bits: config.resident_bytes(precision, Some(Bits::Eight)),
                quantised_4_bits: config.resident_bytes(precision, Some(Bits::Four)),
                two_layers: config.layer_bytes(precision).saturating_mul(2),
                streamed: config.streamed_bytes(precision),
                cache_per_token: config.cache_bytes_per_token(precision),
            },
            remarks: config.remarks,
        })
    }

    fn row(&self) -> Vec<String> {
        let Bytes { bf16, quantised_8_bits, quantised_4_bits, two_layers, streamed, cache_per_token } =
            self.bytes;
        let mut row = vec![
            self.file.clone(),
            self.family.to_owned(),
            self.layers.to_string(),
            number(self.hidden_size),
            format!("{}/{}", self.heads, self.key_value_heads),
            number(self.vocab_size),
            match self.sliding_window {
                Some(window) if self.layers_with_window == self.layers => {
                    format!("{} (sees {})", number(self.context), number(window))
                }
                Some(window) => format!(
                    "{} ({} of {} layers see {})",
                    number(self.context),
                    self.layers_with_window,
                    self.layers,
                    number(window)
                ),
                None => number(self.context),
            },
            self.positions.clone(),
            if self.tied { "yes" } else { "no" }.to_owned(),
            number(self.parameters),
        ];
        let sizes = [bf16, quantised_8_bits, quantised_4_bits, two_layers, streamed, cache_per_token];
        row.extend(sizes.map(three_digits));
        row
    }
}

/// As `model_type` in files.
fn family(family: Family) -> &'static str {
    match family {
        Family::Llama => "llama",
        Family::Mistral => "mistral",
        Family::Qwen2 => "qwen2",
        Family::Qwen3 => "qwen3",
        Family::GptNeox => "gpt_neox",
        Family::Opt => "opt",
        Family::Gpt2 => "gpt2",
    }
}

fn positions(positions: &Positions) -> String {
    match positions {
        Positions::Learned { .. } => "learned".to_owned(),
        Positions::Rotary { theta, scaling, attention_factor, .. } => {
            let kind = match scaling {
                RopeScaling::None => String::new(),
                RopeScaling::Linear { factor } => format!(", linear ×{factor}"),
                RopeScaling::Proportional { factor, pairs } => {
                    format!(", proportional ×{factor}, {pairs} pairs of a head")
                }
                RopeScaling::Dynamic { factor, original } => {
                    format!(", dynamic ×{factor} beyond {}", number(*original))
                }
                RopeScaling::Yarn { factor, original, .. } => {
                    format!(", yarn ×{} from {}", three_decimals(*factor), number(*original))
                }
                RopeScaling::LongRope { original, .. } => {
                    format!(", longrope, long factors beyond {}", number(*original))
                }
                RopeScaling::Llama3 { factor, .. } => format!(", llama3 ×{factor}"),
            };
            let attention = if *attention_factor == 1.0 {
                String::new()
            } else {
                format!(", cos and sin ×{}", three_decimals(*attention_factor))
            };
            format!("rope {}{kind}{attention}", grouped(*theta))
        }
    }
}

/// Without zeros at the end.
fn three_decimals(number: f64) -> f64 {
    (number * 1e3).round() / 1e3
}

/// `7.79 GB`, `524 kB`: three digits, which is what tells one model from another.
#[expect(clippy::cast_precision_loss, reason = "for people")]
fn three_digits(bytes: u64) -> String {
    // Rounded first, so that 999.6 MB is 1.00 GB.
    let rounded: f64 = format!("{:.2e}", bytes as f64).parse().expect("a number is written as one");
    let units = [(1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")];
    let Some((unit, name)) = units.into_iter().find(|(unit, _)| rounded >= *unit) else {
        return format!("{bytes} B");
    };
    let value = rounded / unit;
    let decimals = if value < 10.0 { 2 } else { usize::from(value < 100.0) };
    format!("{value:.decimals$} {name}")
}

#[expect(clippy::cast_precision_loss, reason = "far below 2^53, or absurd")]
fn number(count: usize) -> String {
    grouped(count as f64)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn sizes_have_three_digits() {
        assert_eq!(
            [999, 1_234, 999_600_000, 7_793_900_000, 141_100_000_000].map(three_digits),
            ["999 B", "1.23 kB", "1.00 GB", "7.79 GB", "141 GB"]
        );
    }

    #[test]
    fn a_row_says_what_matters() {
        let folder = tempfile::tempdir().unwrap();
        let config = json!({
            "model_type": "mistral", "vocab_size": 1000, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3,
            "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 4096, "sliding_window": 512,
            "rope_scaling": { "rope_type": "linear", "factor": 2.0 }, "tie_word_embeddings": false,
        });
        std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
        let found = Inspected::of(folder.path()).unwrap();
        // 2 · 1000 · 64 outside of the layers; 64 · (64 + 32 + 32 + 64) + 3 · 64 · 128 in a layer; 64 for each normalisation, one of them at the end.
        assert_eq!((found.parameters, found.parameters_of_layer), (239_040, 36_992));
        let expected = [
            "mistral",
            "3",
            "64",
            "4/2",
            "1,000",
            "4,096 (sees 512)",
            "rope 10,000, linear ×2",
            "no",
            "239,040",
            "479 kB",
            "375 kB",
            "320 kB",
            "148 kB",
            "405 kB",
            "384 B",
        ];
        assert_eq!(found.row()[1..], expected);
        assert_eq!(found.row().len(), header().len());
    }

    #[test]
    fn what_is_not_plain_is_said() {
        let base = json!({
            "model_type": "qwen2", "vocab_size": 1000, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3,
            "num_attention_heads": 4, "max_position_embeddings": 4096,
        });
        let row = |changes: serde_json::Value| {
            let file = tempfile::NamedTempFile::new().unwrap();
            let mut config = base.clone();
            config.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
            std::fs::write(file.path(), config.to_string()).unwrap();
            let found = Inspected::of(file.path()).unwrap();
            (found.row()[6..8].to_vec(), found.remarks)
        };
        let yarn = json!({ "type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024 });
        let (found, remarks) = row(json!({
            "rope_scaling": yarn, "use_sliding_window": true, "sliding_window": 512, "max_window_layers": 1,
        }));
        assert_eq!(
            found,
            ["4,096 (2 of 3 layers see 512)", "rope 10,000, yarn ×4 from 1,024, cos and sin ×1.139"]
        );
        assert!(remarks.is_empty());
        let (found, remarks) =
            row(json!({ "use_sliding_window": true, "rope_parameters": { "factor": 2.0 } }));
        assert_eq!(found, ["4,096", "rope 10,000"]);
        assert_eq!(
            remarks,
            [
                "`rope_parameters.factor` is not used by type \"default\"",
                "`use_sliding_window` is true, but no layer has a window"
            ]
        );
    }
}
