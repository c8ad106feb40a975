//! An adapter folder as PEFT 0.21 lays it out: read, and compared with the modules of a model.
//!
//! The names, shapes and ranks of its tensors decide what it is on; its configuration decides the scales and is
//! compared with them. Whatever is not computed as PEFT computes it is refused by the name of its field or tensor.

mod modules;
mod patterns;
mod settings;
mod tensors;

use std::collections::BTreeMap;
use std::path::Path;

use crate::config::MAX_CONFIG_BYTES;
use crate::convert;
use crate::files::{WeightsFile, expected_floats, read_text};
use crate::lora::{LoraMap, LoraShape};
use crate::{DecoderConfig, Error, Precision};

use burn::tensor::{Device, Tensor};
pub(crate) use settings::Settings;
use tensors::{Module, of_model};

pub(crate) const ADAPTER_CONFIG: &str = "adapter_config.json";
pub(crate) const ADAPTER_WEIGHTS: &str = "adapter_model.safetensors";
/// What PEFT wrote before there was safetensors.
const PICKLED_WEIGHTS: &str = "adapter_model.bin";

/// The factors of one module, by their names in the file.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Factors {
    /// `[r, inputs]`; of a table `[r, rows]`.
    pub(crate) a: String,
    /// `[outputs, r]`; of a table `[columns, r]`.
    pub(crate) b: String,
    /// Of B, `[outputs]`.
    pub(crate) bias: Option<String>,
    /// DoRA's, `[outputs]`; of a table `[columns]`.
    pub(crate) magnitude: Option<String>,
    pub(crate) map: LoraMap,
}

/// An open adapter that fits the model.
#[derive(Debug)]
pub(crate) struct AdapterFiles {
    pub(crate) settings: Settings,
    pub(crate) weights: WeightsFile,
    /// By the module's name: linear maps, the head, and tables.
    pub(crate) factors: BTreeMap<String, Factors>,
    /// Parameters of the model that the file has as a whole, and their names there. Where the base ties its head,
    /// embedding and head stand here as [`untied`](Self::untied) says.
    pub(crate) whole: BTreeMap<String, String>,
    /// The base ties its head to the embedding, and with this adapter they differ.
    pub(crate) untied: bool,
}

impl AdapterFiles {
    /// Opens an adapter and compares it with a model.
    ///
    /// # Errors
    /// A file is missing or torn, the adapter computes what is not done here, or its tensors do not fit.
    pub(crate) fn open(folder: &Path, config: &DecoderConfig) -> Result<Self, Error> {
        check_files(folder)?;
        let file = folder.join(ADAPTER_CONFIG);
        let settings = Settings::read(&read_text(&file, MAX_CONFIG_BYTES)?, &file)?;
        let weights = WeightsFile::open(&folder.join(ADAPTER_WEIGHTS))?;
        let modules = of_model(config);
        let mut found = tensors::compare(&modules, &settings, &weights.shapes());
        for (name, entry) in &weights.header().tensors {
            if !convert::is_readable(entry.dtype) {
                found.problems.push(format!("`{name}`: {}", expected_floats(entry.dtype)));
            }
        }
        if !found.problems.is_empty() {
            let against = format!("this model (the adapter was made for `{}`)", settings.made_for);
            return Err(Error::Tensors { folder: folder.to_owned(), against, problems: found.problems });
        }
        warn_of_absent(folder, &settings, &modules, &found.factors);
        let mut adapter =
            Self { settings, weights, factors: found.factors, whole: found.whole, untied: false };
        adapter.settle_tied(config);
        Ok(adapter)
    }

    /// Says of embedding and head what each becomes where the base ties them. PEFT keeps one tensor under both names,
    /// which `modules_to_save` copies for a module of its own; other whole tensors are read into the shared one.
    fn settle_tied(&mut self, config: &DecoderConfig) {
        if !config.tie_word_embeddings {
            return;
        }
        let names = config.names();
        let [embedding, head] = [names.embedding, names.head];
        let [embedding_whole, head_whole] =
            [embedding, head].map(|module| self.whole.remove(&format!("{module}.weight")));
        let saves = |module: &str| self.settings.modules.saves(module);
        let has_factors = [embedding, head].iter().any(|module| self.factors.contains_key(*module));
        let stays_tied = self.settings.keeps_tied && !has_factors && embedding_whole.is_some();
        self.untied = !stays_tied && (saves(embedding) || saves(head) || has_factors);
        let shared = match (&head_whole, &embedding_whole) {
            (Some(head_whole), _) if !saves(head) => Some(head_whole.clone()),
            (_, Some(embedding_whole)) if !saves(embedding) => Some(embedding_whole.clone()),
            _ => None,
        };
        let becomes = |module: &str, own: Option<String>| if saves(module) { own } else { shared.clone() };
        let of_embedding = if stays_tied { embedding_whole } else { becomes(embedding, embedding_whole) };
        let of_head = becomes(head, head_whole).filter(|_| self.untied);
        for (module, stored) in [(embedding, of_embedding), (head, of_head)] {
            self.whole.extend(stored.map(|stored| (format!("{module}.weight"), stored)));
        }
    }

    /// The linear maps that it is on, without tables and head.
    pub(crate) fn shape(&self, config: &DecoderConfig) -> LoraShape {
        let linears = config.linear_maps();
        let maps = linears.filter_map(|module| {
            let map = self.factors.get(&module)?.map;
            Some((module, map))
        });
        LoraShape { maps: maps.collect(), dropout: self.settings.dropout }
    }

    /// Refuses an adapter whose training cannot go on: one that is not of factors on linear maps alone.
    ///
    /// # Errors
    /// Names what it is besides, by its tensors.
    pub(crate) fn check_learns(&self, folder: &Path, config: &DecoderConfig) -> Result<(), Error> {
        let linears: Vec<String> = config.linear_maps().collect();
        let named = |what: &str, stored: &str| format!("{what}: `{stored}`");
        let of_factors = |(module, factors): (&String, &Factors)| {
            let magnitude = factors.magnitude.as_ref().map(|stored| named("a magnitude of DoRA", stored));
            let bias = factors.bias.as_ref().map(|stored| named("a bias of B (`lora_bias`)", stored));
            let table = (!linears.contains(module))
                .then(|| named("factors of an embedding or of the head", &factors.a));
            magnitude.or(bias).or(table)
        };
        let whole = || self.whole.values().next().map(|stored| named("a whole tensor", stored));
        let frozen =
            self.settings.is_mica.then(|| "`init_lora_weights` \"mica\", whose B never learns".to_owned());
        let Some(found) = frozen.or_else(|| self.factors.iter().find_map(of_factors)).or_else(whole) else {
            return Ok(());
        };
        Err(Error::Folder {
            kind: "adapter",
            folder: folder.to_owned(),
            found: format!(
                "expected factors of linear maps alone, to go on with their training, found {found}"
            ),
            hint: "merge it with `softshard merge`, and train a new adapter over the merged model",
        })
    }

    /// A tensor of the file in 32-bit floats; a vector as one row.
    pub(crate) fn tensor(&self, stored: &str, device: &Device) -> Result<Tensor<2>, Error> {
        self.weights.tensor(stored, Precision::F32, device)
    }
}

/// Name of factor `A` or `B` of a linear map.
pub(crate) fn factor_name(module: &str, factor: char) -> String {
    format!("base_model.model.{module}.lora_{factor}.weight")
}

fn check_files(folder: &Path) -> Result<(), Error> {
    let refused =
        |found: String, hint| Err(Error::Folder { kind: "adapter", folder: folder.to_owned(), found, hint });
    for name in [ADAPTER_CONFIG, ADAPTER_WEIGHTS] {
        if folder.join(name).exists() {
            continue;
        }
        if name == ADAPTER_WEIGHTS && folder.join(PICKLED_WEIGHTS).exists() {
            let hint = "load it with PEFT and save it again with `save_pretrained`, which writes safetensors";
            return refused(format!("no {name}, but {PICKLED_WEIGHTS}, a pickle"), hint);
        }
        let hint = "an adapter is a folder with adapter_config.json and adapter_model.safetensors";
        return refused(format!("no {name}"), hint);
    }
    Ok(())
}

/// PEFT adds factors that change nothing where the file has none, and says so.
fn warn_of_absent(
    folder: &Path,
    settings: &Settings,
    modules: &[Module],
    factors: &BTreeMap<String, Factors>,
) {
    let absent: Vec<&str> = (modules.iter())
        .filter(|module| !factors.contains_key(&module.name) && module.is_targeted(settings) == Some(true))
        .map(|module| module.name.as_str())
        .collect();
    if let Some(first) = absent.first() {
        tracing::warn!(
            "adapter `{}`: adapter_config.json names {} modules without tensors, `{first}` first: they stay as they are",
            folder.display(),
            absent.len()
        );
    }
}
