//! An adapter added to the weights of its base: a model folder of its own, as `transformers` loads it.
//!
//! Tensors go from file to file, one mapped at a time and in blocks of rows: memory does not grow with the model.

mod change;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use burn::tensor::{Device, Tensor};
use safetensors::Dtype;
use serde_json::{Value, json};

use change::{Change, write_tensor};

use crate::config::{CONFIG, MAX_CONFIG_BYTES};
use crate::convert;
use crate::dora::{Along, Product};
use crate::files::{WeightsFile, open_file, read_text};
use crate::header::{Entry, Header};
use crate::lora::LoraMap;
use crate::peft::{AdapterFiles, Factors};
use crate::weights::{Checkpoint, INDEX, MAX_INDEX_BYTES, SINGLE};
use crate::{DecoderConfig, Error, Precision};

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
    /// Content of the folder's `provenance.json`.
    pub provenance: Option<&'a [u8]>,
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
    /// Of each module that the adapter has factors for.
    pub maps: BTreeMap<String, LoraMap>,
    /// The base ties its head to the embedding, the merged model does not.
    pub untied: bool,
    /// The base model that the adapter names.
    pub made_for: String,
}

/// Checks what [`merge`] would find out before it writes: reads configurations and headers.
///
/// # Errors
/// As [`merge`].
pub fn check_merge(inputs: &MergeInputs<'_>) -> Result<(), Error> {
    let config = DecoderConfig::load(inputs.base)?;
    let checkpoint = Checkpoint::open(inputs.base, &config)?;
    let adapter = AdapterFiles::open(inputs.adapter, &config)?;
    let work =
        Merge { inputs, tell: &|_, _| (), config: &config, checkpoint: &checkpoint, adapter: &adapter };
    work.check()?;
    temporary(inputs.output).map(drop)
}

/// Writes the model folder `base + adapter`: `W + scale · B · A`, with DoRA's magnitudes if it has them, computed in
/// 32-bit floats and rounded to the nearest of the number format, in the same files; whole tensors of the adapter in
/// place of the base's. All other tensors are the base's, byte for byte unless the number format changes.
///
/// An adapter that changes the embedding or the head of a base that ties them leads to a model that does not.
///
/// The folder appears whole or not at all. `tell` is told how many of all tensors are written.
///
/// # Errors
/// The base is no model, the adapter does not fit it, a number is not finite, the output is there and not empty, the file
/// system refuses; or an [`io::ErrorKind::Interrupted`] because of `stop`.
pub fn merge(inputs: &MergeInputs<'_>, tell: &dyn Fn(usize, usize)) -> Result<Merged, Error> {
    let config = DecoderConfig::load(inputs.base)?;
    let checkpoint = Checkpoint::open(inputs.base, &config)?;
    let adapter = AdapterFiles::open(inputs.adapter, &config)?;
    let work = Merge { inputs, tell, config: &config, checkpoint: &checkpoint, adapter: &adapter };
    work.check()?;
    let (temporary, parent) = temporary(inputs.output)?;
    fs_err::create_dir_all(&parent)?;
    fs_err::create_dir(&temporary)?;
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

struct Merge<'a> {
    inputs: &'a MergeInputs<'a>,
    tell: &'a dyn Fn(usize, usize),
    config: &'a DecoderConfig,
    checkpoint: &'a Checkpoint,
    adapter: &'a AdapterFiles,
}

impl Merge<'_> {
    /// Refuses what no file can hold, before one is written.
    fn check(&self) -> Result<(), Error> {
        let parameters: BTreeSet<String> = self.config.parameters().into_iter().map(|one| one.name).collect();
        let unbiased = |(module, factors): (&String, &Factors)| {
            let stored = factors.bias.as_ref()?;
            (!parameters.contains(&format!("{module}.bias"))).then(|| (module.clone(), stored.clone()))
        };
        let mut problems = Vec::new();
        if let Some((module, stored)) = self.adapter.factors.iter().find_map(unbiased) {
            let expected = format!("expected a bias of `{module}` in the base, to add it to, found none");
            problems.push(format!("`{stored}`: {expected}"));
        }
        let embedding = format!("{}.weight", self.config.names().embedding);
        let (_, stored) = self.checkpoint.place(&embedding);
        if self.adapter.untied && stored != embedding {
            let hint = "hint: load the base with transformers and save it again, with its head";
            problems.push(format!("`{stored}`: expected `{embedding}` beside a head of its own\n{hint}"));
        }
        if problems.is_empty() {
            return Ok(());
        }
        let against = format!("`{}`, to be merged with it", self.inputs.base.display());
        Err(Error::Tensors { folder: self.inputs.adapter.to_owned(), against, problems })
    }

    fn write(&self, folder: &Path) -> Result<Merged, Error> {
        let maps = self.adapter.factors.iter().map(|(module, factors)| (module.clone(), factors.map));
        let mut merged = Merged {
            tensors: 0,
            changed: 0,
            bytes: 0,
            maps: maps.collect(),
            untied: self.adapter.untied,
            made_for: self.adapter.settings.made_for.clone(),
        };
        let places = self.places();
        let mut data_bytes = 0;
        for file in self.checkpoint.files() {
            let name = file.path().file_name().expect("a weights file has a name");
            let target = fs_err::File::create(folder.join(name))?;
            data_bytes += self.write_file(file, target, &places, &mut merged)?;
        }
        self.write_index(folder, data_bytes)?;
        for name in COMPANIONS {
            if self.inputs.base.join(name).is_file() {
                copy(&self.inputs.base.join(name), &folder.join(name))?;
            }
        }
        if let Some(provenance) = self.inputs.provenance {
            write_synced(&folder.join("provenance.json"), provenance)?;
        }
        self.write_config(folder)?;
        Ok(merged)
    }

    fn head(&self) -> String {
        format!("{}.weight", self.config.names().head)
    }

    /// The file that has the embedding, and its name there.
    fn embedding(&self) -> (&WeightsFile, &str) {
        self.checkpoint.place(&format!("{}.weight", self.config.names().embedding))
    }

    /// The file that gets a head of its own: the one that has it, read or not, else that of the embedding.
    fn file_of_new_head(&self) -> &WeightsFile {
        let head = self.head();
        let has = |file: &&WeightsFile| file.header().tensors.contains_key(&head);
        self.checkpoint.files().iter().find(has).unwrap_or(self.embedding().0)
    }

    /// Parameters that the adapter changes, by file and name of their stored tensors.
    fn places(&self) -> BTreeMap<(PathBuf, String), String> {
        let changes = |parameter: &String| {
            let (module, part) = parameter.rsplit_once('.').expect("a parameter of a module");
            let factors = self.adapter.factors.get(module);
            self.adapter.whole.contains_key(parameter)
                || factors.is_some_and(|factors| part == "weight" || factors.bias.is_some())
        };
        let parameters = self.config.parameters().into_iter().map(|parameter| parameter.name);
        let mut places: BTreeMap<_, _> = parameters
            .filter(changes)
            .map(|name| {
                let (file, stored) = self.checkpoint.place(&name);
                ((file.path().to_owned(), stored.to_owned()), name)
            })
            .collect();
        if self.adapter.untied {
            places.insert((self.file_of_new_head().path().to_owned(), self.head()), self.head());
        }
        places
    }

    /// The tensors of a file as they will be, before their number format changes.
    fn tensors_of(&self, file: &WeightsFile) -> BTreeMap<String, Entry> {
        let mut tensors = file.header().tensors.clone();
        if self.adapter.untied && file.path() == self.file_of_new_head().path() {
            let (with_embedding, stored) = self.embedding();
            let embedding = &with_embedding.header().tensors[stored];
            let end = tensors.values().map(|entry| entry.data_offsets.1).max().unwrap_or(0);
            tensors.entry(self.head()).or_insert_with(|| Entry {
                data_offsets: (end, end + embedding.bytes()),
                ..embedding.clone()
            });
        }
        tensors
    }

    /// Returns the bytes of the tensors.
    fn write_file(
        &self,
        file: &WeightsFile,
        mut target: fs_err::File,
        places: &BTreeMap<(PathBuf, String), String>,
        merged: &mut Merged,
    ) -> Result<u64, Error> {
        let tensors = converted(&self.tensors_of(file), self.inputs.precision);
        target.write_all(&Header::to_bytes(&tensors, &file.header().metadata))?;
        let mut data_bytes = 0;
        let total: usize = self.checkpoint.files().iter().map(|file| self.tensors_of(file).len()).sum();
        let mut in_order: Vec<_> = tensors.into_iter().collect();
        in_order.sort_by_key(|(_, entry)| entry.data_offsets);
        for (name, entry) in in_order {
            if self.inputs.stop.load(Ordering::Relaxed) {
                return Err(io::Error::new(io::ErrorKind::Interrupted, "interrupted while merging").into());
            }
            let parameter = places.get(&(file.path().to_owned(), name.clone()));
            let change = parameter.map(|parameter| self.change(parameter, (file, &name))).transpose()?;
            merged.changed += usize::from(change.is_some());
            write_tensor(file, &name, entry.dtype, change.as_ref(), &mut target)?;
            data_bytes += entry.bytes();
            merged.tensors += 1;
            (self.tell)(merged.tensors, total);
        }
        target.sync_all()?;
        merged.bytes += target.metadata()?.len();
        Ok(data_bytes)
    }

    /// What becomes of a parameter that is stored there.
    fn change(&self, parameter: &str, (file, stored): (&WeightsFile, &str)) -> Result<Change<'_>, Error> {
        let (adapter, device) = (self.adapter, Device::flex());
        let whole = adapter.whole.get(parameter).map(|stored| (&adapter.weights, stored.clone()));
        // A head that becomes one of its own begins as the embedding.
        let tied = (adapter.untied && parameter == self.head()).then(|| {
            let (file, stored) = self.embedding();
            (file, stored.to_owned())
        });
        let mut change = Change { from: whole.or(tied), product: None, gain: None };
        let (module, part) = parameter.rsplit_once('.').expect("a parameter of a module");
        let Some(factors) = adapter.factors.get(module) else { return Ok(change) };
        let scale = factors.map.scale;
        if part == "bias" {
            let added = factors.bias.as_ref().map(|stored| adapter.tensor(stored, &device)).transpose()?;
            let one = Tensor::ones([1, 1], &device);
            change.product = added.map(|right| Product { left: one, right, scale });
            return Ok(change);
        }
        let (a, b) = (adapter.tensor(&factors.a, &device)?, adapter.tensor(&factors.b, &device)?);
        let names = self.config.names();
        let is_table = [names.embedding, names.positions].contains(&module);
        let (product, along) = if is_table || (self.config.transposed && module != names.head) {
            (Product { left: a.transpose(), right: b.transpose(), scale }, Along::Columns)
        } else {
            (Product { left: b, right: a, scale }, Along::Rows)
        };
        change.product = Some(product);
        if let Some(magnitude) = &factors.magnitude {
            let magnitude = adapter.tensor(magnitude, &device)?.into_data();
            let magnitude = magnitude.as_slice::<f32>().expect("read as 32-bit floats");
            let (file, stored) =
                change.from.as_ref().map_or((file, stored), |(file, stored)| (*file, stored));
            change.gain = Some((change.norms(file, stored, magnitude, along)?, along));
        }
        Ok(change)
    }

    /// The base's index, with the size of what was written.
    fn write_index(&self, folder: &Path, data_bytes: u64) -> Result<(), Error> {
        if self.inputs.base.join(SINGLE).exists() {
            return Ok(());
        }
        let (from, to) = (self.inputs.base.join(INDEX), folder.join(INDEX));
        if self.inputs.precision.is_none() && !self.adapter.untied {
            return copy(&from, &to);
        }
        let mut index: Value = serde_json::from_str(&read_text(&from, MAX_INDEX_BYTES)?)
            .map_err(|error| Error::config(&from, error.to_string()))?;
        if let Some(metadata) = index.get_mut("metadata").and_then(Value::as_object_mut) {
            metadata.insert("total_size".into(), data_bytes.into());
        }
        if self.adapter.untied {
            let file = self.file_of_new_head().path().file_name().expect("a weights file has a name");
            index["weight_map"][self.head()] = json!(file.to_string_lossy());
        }
        write_synced(&to, format!("{index:#}\n").as_bytes())
    }

    /// Comes last: without it the folder is no model.
    fn write_config(&self, folder: &Path) -> Result<(), Error> {
        let (from, to) = (self.inputs.base.join(CONFIG), folder.join(CONFIG));
        if self.inputs.precision.is_none() && !self.adapter.untied {
            return copy(&from, &to);
        }
        let mut config: Value = serde_json::from_str(&read_text(&from, MAX_CONFIG_BYTES)?)
            .map_err(|error| Error::config(&from, error.to_string()))?;
        if self.adapter.untied {
            config["tie_word_embeddings"] = json!(false);
        }
        let dtype = match self.inputs.precision {
            None => return write_synced(&to, format!("{config:#}\n").as_bytes()),
            Some(Precision::F32) => "float32",
            Some(Precision::Bf16) => "bfloat16",
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

/// Copies what is in a file and not its mode: a read-only one could not be written the next time.
fn copy(from: &Path, to: &Path) -> Result<(), Error> {
    let (mut from, mut to) = (open_file(from)?, fs_err::File::create(to)?);
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
    use super::*;

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
