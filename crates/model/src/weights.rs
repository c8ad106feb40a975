//! The weights of a model folder: which files, which tensors, and whether they are those of the configuration.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use burn::tensor::{Device, Tensor};
use serde_json::Value;

use crate::files::WeightsFile;
use crate::{DecoderConfig, Error, Precision};

/// The one weights file of a small model.
pub(crate) const SINGLE: &str = "model.safetensors";
/// The list of the weights files of a large one.
pub(crate) const INDEX: &str = "model.safetensors.index.json";

/// The safetensors files of a folder, in order of their names.
///
/// # Errors
/// There are none, or the index names something else than files of this folder.
pub(crate) fn weight_files(folder: &Path) -> Result<Vec<PathBuf>, Error> {
    if folder.join(SINGLE).exists() {
        return Ok(vec![folder.join(SINGLE)]);
    }
    let index = folder.join(INDEX);
    if !index.exists() {
        return Err(no_weights(folder));
    }
    let text = fs_err::read_to_string(&index)?;
    let value: Value =
        serde_json::from_str(&text).map_err(|error| Error::config(&index, error.to_string()))?;
    let Some(map) = value.get("weight_map").and_then(Value::as_object) else {
        return Err(Error::config(&index, "`weight_map`: expected an object of tensor names and file names"));
    };
    let mut names = BTreeSet::new();
    for (tensor, file) in map {
        // A plain name: nothing outside of the folder is opened because a file says so.
        let plain = file.as_str().filter(|name| Path::new(name).file_name() == Some(name.as_ref()));
        let Some(name) = plain else {
            return Err(Error::config(
                &index,
                format!("tensor `{tensor}`: expected a file name, found {file}"),
            ));
        };
        names.insert(name.to_owned());
    }
    Ok(names.into_iter().map(|name| folder.join(name)).collect())
}

fn no_weights(folder: &Path) -> Error {
    let has = |extension: &str| {
        std::fs::read_dir(folder).is_ok_and(|entries| {
            entries.flatten().any(|entry| entry.path().extension().is_some_and(|found| found == extension))
        })
    };
    let (found, hint) = if has("gguf") {
        ("weights in GGUF only", "use the original safetensors weights of the model")
    } else if has("bin") || has("pt") || has("pth") {
        (
            "weights as PyTorch pickles only",
            "convert them with `save_pretrained(..., safe_serialization=True)`",
        )
    } else {
        (
            "no model.safetensors and no model.safetensors.index.json",
            "point to a folder as `transformers` saves it",
        )
    };
    Error::Folder { kind: "model", folder: folder.to_owned(), found: found.to_owned(), hint }
}

/// An opened model folder: headers checked, no weights in memory.
#[derive(Debug)]
pub(crate) struct Checkpoint {
    files: Vec<WeightsFile>,
    /// Which file has a tensor.
    places: BTreeMap<String, usize>,
}

impl Checkpoint {
    /// # Errors
    /// A file is torn, or tensors are missing, unused or wrongly shaped; all of these are reported together.
    pub(crate) fn open(folder: &Path, config: &DecoderConfig) -> Result<Self, Error> {
        let files = weight_files(folder)?
            .iter()
            .map(|path| WeightsFile::open(path))
            .collect::<Result<Vec<_>, _>>()?;
        let mut found = BTreeMap::new();
        let mut problems = Vec::new();
        for (index, file) in files.iter().enumerate() {
            for (name, shape) in file.shapes() {
                if let Some((_, first)) = found.insert(name.clone(), (shape, index)) {
                    let [one, two] = [&files[first], file].map(|file| file.path().display().to_string());
                    problems.push(format!("`{name}`: expected once, found in `{one}` and `{two}`"));
                }
            }
        }
        let expected: Vec<_> =
            config.parameters().into_iter().map(|parameter| (parameter.name, parameter.shape)).collect();
        problems.extend(differences(
            &expected,
            found.iter().map(|(name, (shape, _))| (name, shape)),
            |name| is_known_unused(name, config),
        ));
        if !problems.is_empty() {
            return Err(Error::Tensors {
                folder: folder.to_owned(),
                against: "config.json".into(),
                problems,
            });
        }
        let places = found.into_iter().map(|(name, (_, file))| (name, file)).collect();
        Ok(Self { files, places })
    }

    pub(crate) fn tensor(
        &self,
        name: &str,
        precision: Precision,
        device: &Device,
    ) -> Result<Tensor<2>, Error> {
        self.files[self.places[name]].tensor(name, precision, device)
    }
}

/// What keeps `found` from being `expected`, one line each: missing and wrongly shaped tensors, then unused ones.
pub(crate) fn differences<'a>(
    expected: &[(String, Vec<usize>)],
    found: impl Iterator<Item = (&'a String, &'a Vec<usize>)>,
    may_be_unused: impl Fn(&str) -> bool,
) -> Vec<String> {
    let mut found: BTreeMap<&String, &Vec<usize>> = found.collect();
    let mut problems = Vec::new();
    for (name, shape) in expected {
        match found.remove(name) {
            None => problems.push(format!("`{name}`: expected shape {shape:?}, found no such tensor")),
            Some(other) if other != shape => {
                problems.push(format!("`{name}`: expected shape {shape:?}, found {other:?}"));
            }
            Some(_) => {}
        }
    }
    for (name, shape) in found {
        if may_be_unused(name) {
            tracing::debug!(tensor = name.as_str(), "tensor is not used");
        } else {
            problems.push(format!("`{name}`: expected no such tensor, found shape {shape:?}"));
        }
    }
    problems
}

/// Buffers that older files carry, and a head that is tied to the embedding and stored all the same.
fn is_known_unused(name: &str, config: &DecoderConfig) -> bool {
    name.ends_with(".rotary_emb.inv_freq")
        || name.ends_with(".masked_bias")
        || (config.tie_word_embeddings && name == "lm_head.weight")
}
