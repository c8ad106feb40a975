//! An adapter added to the weights of its base: a model folder of its own, as `transformers` loads it.
//!
//! Tensors go from file to file, one mapped at a time and in blocks of rows: memory does not grow with the model.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use burn::tensor::{Device, Tensor};
use safetensors::Dtype;
use serde_json::{Value, json};

use crate::config::{CONFIG, MAX_CONFIG_BYTES};
use crate::convert::{self, Refused};
use crate::files::{WeightsFile, read_text};
use crate::header::{Entry, Header};
use crate::names::{Parameter, ParameterKind};
use crate::peft::{AdapterFiles, Named, factor_name};
use crate::weights::{Checkpoint, INDEX, MAX_INDEX_BYTES, SINGLE};
use crate::{DecoderConfig, Error, LoraConfig, Precision};

/// Elements of a tensor that are in memory at a time, as floats.
const BLOCK: usize = 1 << 20;
/// What belongs to a model beside its weights and `config.json`.
const COMPANIONS: [&str; 11] = [
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
];

/// What to merge.
#[derive(Debug)]
pub struct MergeInputs<'a> {
    /// Model folder.
    pub base: &'a Path,
    /// Adapter folder, as PEFT writes it.
    pub adapter: &'a Path,
    /// Folder that is made; it may be there if it is empty.
    pub output: &'a Path,
    /// Number format of the weights; as in the base's files where there is none.
    pub precision: Option<Precision>,
    /// Set by somebody else to stop early.
    pub stop: &'a AtomicBool,
}

/// What was merged.
#[derive(Debug)]
pub struct Merged {
    /// Tensors of the model.
    pub tensors: usize,
    /// Tensors that the adapter changed.
    pub changed: usize,
    /// Bytes of all weights files.
    pub bytes: u64,
    /// The adapter's settings.
    pub lora: LoraConfig,
    /// The base model that the adapter names.
    pub made_for: String,
}

/// Writes the model folder `base + adapter`: `W + scale · B · A` computed in 32-bit floats and rounded to the nearest of the
/// number format, in the same files. All other tensors are the base's, byte for byte unless the number format changes.
///
/// The folder appears whole or not at all.
///
/// # Errors
/// The base is no model, the adapter does not fit it, a number is not finite, the output is there and not empty, the file
/// system refuses; or an [`io::ErrorKind::Interrupted`] because of `stop`.
pub fn merge(inputs: &MergeInputs<'_>) -> Result<Merged, Error> {
    let config = DecoderConfig::load(inputs.base)?;
    let checkpoint = Checkpoint::open(inputs.base, &config)?;
    let linears = linears(&config);
    let adapter = AdapterFiles::open(inputs.adapter, &linears)?;
    let (temporary, parent) = temporary(inputs.output)?;
    fs_err::create_dir_all(&parent)?;
    fs_err::create_dir(&temporary)?;
    let work =
        Merge { inputs, config: &config, checkpoint: &checkpoint, adapter: &adapter, linears: &linears };
    let written = work.write(&temporary).and_then(|merged| {
        fs_err::File::open(&temporary)?.sync_all()?;
        fs_err::rename(&temporary, inputs.output)?;
        fs_err::File::open(&parent)?.sync_all()?;
        Ok(merged)
    });
    if written.is_err() {
        // Nothing more can be done if this fails as well: the first error is the one to tell.
        let _ = fs_err::remove_dir_all(&temporary);
    }
    written
}

/// A name beside the output, and the folder of both.
fn temporary(output: &Path) -> Result<(PathBuf, PathBuf), Error> {
    let refused = |found: &str| Error::Folder {
        kind: "output",
        folder: output.to_owned(),
        found: found.to_owned(),
        hint: "name a folder that is not there yet",
    };
    let Some(name) = output.file_name() else { return Err(refused("no name of a folder")) };
    if output.exists() && fs_err::read_dir(output)?.next().is_some() {
        return Err(refused("it is not empty"));
    }
    let parent = output.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut hidden = std::ffi::OsString::from(".");
    hidden.push(name);
    hidden.push(format!(".tmp-{}", std::process::id()));
    Ok((parent.join(hidden), parent.to_owned()))
}

/// The linear maps but the head: what a LoRA can be on.
fn linears(config: &DecoderConfig) -> Vec<Named> {
    let names = config.names();
    let maps = config.parameters().into_iter().filter_map(|Parameter { name, shape, kind }| {
        let module = name.strip_suffix(".weight")?;
        let is_table = [names.embedding, names.positions, names.head].contains(&module);
        let [rows, columns] = <[usize; 2]>::try_from(shape).ok()?;
        let dims = match kind {
            ParameterKind::Transposed => [columns, rows],
            _ => [rows, columns],
        };
        (!is_table).then(|| (module.to_owned(), dims))
    });
    maps.collect()
}

/// An update of a stored tensor: `scale · left · right` has its shape.
struct Update {
    /// `[rows, R]`.
    left: Tensor<2>,
    /// `[R, columns]`.
    right: Tensor<2>,
    scale: f64,
}

impl Update {
    /// The rows from `first` on, added to `values`.
    fn add(&self, first: usize, values: &mut [f32]) {
        let [rank, columns] = self.right.dims();
        let rows = values.len() / columns;
        let left = self.left.clone().slice([first..first + rows, 0..rank]);
        let update = (left.matmul(self.right.clone()) * self.scale).into_data();
        let update = update.as_slice::<f32>().expect("factors are 32-bit floats");
        for (value, update) in values.iter_mut().zip(update) {
            *value += update;
        }
    }
}

struct Merge<'a> {
    inputs: &'a MergeInputs<'a>,
    config: &'a DecoderConfig,
    checkpoint: &'a Checkpoint,
    adapter: &'a AdapterFiles,
    linears: &'a [Named],
}

impl Merge<'_> {
    fn write(&self, folder: &Path) -> Result<Merged, Error> {
        let mut merged = Merged {
            tensors: 0,
            changed: 0,
            bytes: 0,
            lora: self.adapter.lora.clone(),
            made_for: self.adapter.made_for.clone(),
        };
        let updates = self.updates();
        let mut data_bytes = 0;
        for file in self.checkpoint.files() {
            let name = file.path().file_name().expect("a weights file has a name");
            let target = fs_err::File::create(folder.join(name))?;
            data_bytes += self.write_file(file, target, &updates, &mut merged)?;
        }
        self.write_index(folder, data_bytes)?;
        for name in COMPANIONS {
            if self.inputs.base.join(name).is_file() {
                copy(&self.inputs.base.join(name), &folder.join(name))?;
            }
        }
        self.write_config(folder)?;
        Ok(merged)
    }

    /// Modules that change, by file and name of their stored weight.
    fn updates(&self) -> BTreeMap<(PathBuf, String), &str> {
        let targeted = self.linears.iter().filter(|(module, _)| self.adapter.lora.targets(module));
        let places = targeted.map(|(module, _)| {
            let (file, stored) = self.checkpoint.place(&format!("{module}.weight"));
            ((file.path().to_owned(), stored.to_owned()), module.as_str())
        });
        places.collect()
    }

    /// Returns the bytes of the tensors.
    fn write_file(
        &self,
        file: &WeightsFile,
        mut target: fs_err::File,
        updates: &BTreeMap<(PathBuf, String), &str>,
        merged: &mut Merged,
    ) -> Result<u64, Error> {
        let tensors = converted(&file.header().tensors, self.inputs.precision);
        target.write_all(&Header::to_bytes(&tensors, &file.header().metadata))?;
        let mut data_bytes = 0;
        let total: usize = self.checkpoint.files().iter().map(|file| file.header().tensors.len()).sum();
        let mut in_order: Vec<_> = tensors.into_iter().collect();
        in_order.sort_by_key(|(_, entry)| entry.data_offsets);
        for (name, entry) in in_order {
            if self.inputs.stop.load(Ordering::Relaxed) {
                return Err(io::Error::new(io::ErrorKind::Interrupted, "interrupted while merging").into());
            }
            let module = updates.get(&(file.path().to_owned(), name.clone()));
            let update = module.map(|module| self.update(module)).transpose()?;
            merged.changed += usize::from(update.is_some());
            write_tensor(file, &name, entry.dtype, update.as_ref(), &mut target)?;
            data_bytes += entry.bytes();
            merged.tensors += 1;
            let done = merged.tensors;
            tracing::info!(target: "softshard::progress", stage = "merge", done, total, unit = "tensors");
        }
        target.sync_all()?;
        merged.bytes += target.metadata()?.len();
        Ok(data_bytes)
    }

    fn update(&self, module: &str) -> Result<Update, Error> {
        let device = Device::flex();
        let factor =
            |letter| self.adapter.weights.tensor(&factor_name(module, letter), Precision::F32, &device);
        let (a, b) = (factor('A')?, factor('B')?);
        let (left, right) = if self.config.transposed { (a.transpose(), b.transpose()) } else { (b, a) };
        Ok(Update { left, right, scale: self.adapter.lora.scale() })
    }

    /// The base's index, with the size of what was written.
    fn write_index(&self, folder: &Path, data_bytes: u64) -> Result<(), Error> {
        if self.inputs.base.join(SINGLE).exists() {
            return Ok(());
        }
        let (from, to) = (self.inputs.base.join(INDEX), folder.join(INDEX));
        if self.inputs.precision.is_none() {
            return copy(&from, &to);
        }
        let mut index: Value = serde_json::from_str(&read_text(&from, MAX_INDEX_BYTES)?)
            .map_err(|error| Error::config(&from, error.to_string()))?;
        if let Some(metadata) = index.get_mut("metadata").and_then(Value::as_object_mut) {
            metadata.insert("total_size".into(), data_bytes.into());
        }
        write_synced(&to, format!("{index:#}\n").as_bytes())
    }

    /// Comes last: without it the folder is no model.
    fn write_config(&self, folder: &Path) -> Result<(), Error> {
        let (from, to) = (self.inputs.base.join(CONFIG), folder.join(CONFIG));
        let Some(precision) = self.inputs.precision else { return copy(&from, &to) };
        let mut config: Value = serde_json::from_str(&read_text(&from, MAX_CONFIG_BYTES)?)
            .map_err(|error| Error::config(&from, error.to_string()))?;
        let dtype = match precision {
            Precision::F32 => "float32",
            Precision::Bf16 => "bfloat16",
        };
        // `dtype` is the name in newer files.
        for key in ["dtype", "torch_dtype"] {
            if config.get(key).is_some() {
                config[key] = json!(dtype);
            }
        }
        if config.get("dtype").is_none() && config.get("torch_dtype").is_none() {
            config["torch_dtype"] = json!(dtype);
        }
        write_synced(&to, format!("{config:#}\n").as_bytes())
    }
}

/// The tensors of a file in another number format, in the same order. What is not of floats stays as it is.
fn converted(tensors: &BTreeMap<String, Entry>, precision: Option<Precision>) -> BTreeMap<String, Entry> {
    let mut in_order: Vec<_> = tensors.clone().into_iter().collect();
    in_order.sort_by_key(|(_, entry)| entry.data_offsets);
    let mut end = 0;
    for (_, entry) in &mut in_order {
        let bytes = match precision.filter(|_| convert::is_readable(entry.dtype)) {
            None => entry.bytes(),
            Some(precision) => {
                let is_wide = entry.dtype == Dtype::F32;
                let elements = entry.bytes() / if is_wide { 4 } else { 2 };
                let (dtype, width) = match precision {
                    Precision::F32 => (Dtype::F32, 4),
                    Precision::Bf16 => (Dtype::BF16, 2),
                };
                entry.dtype = dtype;
                elements * width
            }
        };
        entry.data_offsets = (end, end + bytes);
        end += bytes;
    }
    in_order.into_iter().collect()
}

/// Writes one tensor, updated and in another number format where asked for.
fn write_tensor(
    file: &WeightsFile,
    name: &str,
    dtype: Dtype,
    update: Option<&Update>,
    target: &mut fs_err::File,
) -> Result<(), Error> {
    let entry = &file.header().tensors[name];
    let map = file.map(entry)?;
    if update.is_none() && dtype == entry.dtype {
        return Ok(target.write_all(map.bytes())?);
    }
    let columns = entry.shape.last().copied().unwrap_or(1).max(1);
    let rows = (BLOCK / columns).max(1);
    let block_bytes = rows * columns * entry.dtype.bitsize() / 8;
    for (block, bytes) in map.bytes().chunks(block_bytes).enumerate() {
        let first = block * rows;
        let refused = |dtype| {
            move |Refused { index, value }| {
                file.refused(name, dtype, Refused { index: first * columns + index, value })
            }
        };
        let mut values = convert::to_f32(entry.dtype, bytes).map_err(refused(entry.dtype))?;
        if let Some(update) = update {
            update.add(first, &mut values);
        }
        target.write_all(&convert::to_bytes(&values, dtype).map_err(refused(dtype))?)?;
    }
    Ok(())
}

/// Copies what is in a file and not its mode: a read-only one could not be written the next time.
fn copy(from: &Path, to: &Path) -> Result<(), Error> {
    let (mut from, mut to) = (fs_err::File::open(from)?, fs_err::File::create(to)?);
    std::io::copy(&mut from, &mut to)?;
    Ok(to.sync_all()?)
}

fn write_synced(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    let mut file = fs_err::File::create(path)?;
    file.write_all(bytes)?;
    Ok(file.sync_all()?)
}

#[cfg(test)]
mod tests {
    use burn::tensor::TensorData;

    use super::*;

    /// By hand: `2 · [[1], [3]] · [[10, 20, 30]]`, its second row alone.
    #[test]
    fn an_update_adds_the_rows_that_it_is_asked_for() {
        let tensor =
            |values: Vec<f32>, shape| Tensor::from_data(TensorData::new(values, shape), &Device::flex());
        let update = Update {
            left: tensor(vec![1.0, 3.0], [2, 1]),
            right: tensor(vec![10.0, 20.0, 30.0], [1, 3]),
            scale: 2.0,
        };
        let mut values = [0.5; 3];
        update.add(1, &mut values);
        assert_eq!(values, [60.5, 120.5, 180.5]);
    }

    #[test]
    fn tensors_of_another_format_lie_one_after_the_other() {
        let entry =
            |dtype, shape: &[usize], data_offsets| Entry { dtype, shape: shape.to_vec(), data_offsets };
        let tensors = BTreeMap::from([
            ("a".to_owned(), entry(Dtype::F16, &[3], (8, 14))),
            ("b".to_owned(), entry(Dtype::I64, &[1], (0, 8))),
            ("c".to_owned(), entry(Dtype::F32, &[2], (14, 22))),
        ]);
        let offsets = |precision| {
            let converted = converted(&tensors, precision);
            ["b", "a", "c"].map(|name| converted[name].data_offsets)
        };
        assert_eq!(offsets(None), [(0, 8), (8, 14), (14, 22)]);
        assert_eq!(offsets(Some(Precision::F32)), [(0, 8), (8, 20), (20, 28)]);
        assert_eq!(offsets(Some(Precision::Bf16)), [(0, 8), (8, 14), (14, 18)]);
    }
}
