//! The weights of a model folder: which files, which tensors, and whether they are those of the configuration.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use burn::tensor::{Device, Tensor};
use serde::Deserialize;

use crate::files::{WeightsFile, expected_floats, read_text};
use crate::{DecoderConfig, Error, Precision, convert};

/// The one weights file of a small model.
pub(crate) const SINGLE: &str = "model.safetensors";
/// The list of the weights files of a large one.
pub(crate) const INDEX: &str = "model.safetensors.index.json";
/// The head of most families, and of all in transformers.
const USUAL_HEAD: &str = "lm_head.weight";
/// Three times the longest index that is known.
pub(crate) const MAX_INDEX_BYTES: u64 = 32 << 20;

/// Files of a folder and, where there is an index, in which of them it says each tensor is.
#[derive(Debug)]
struct Listed {
    files: Vec<PathBuf>,
    /// Tensor names and indices of `files`.
    index: BTreeMap<String, usize>,
}

/// An index file; other keys do not matter.
#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

/// The safetensors files of a folder, in order of their names.
///
/// # Errors
/// There are none, or the index names something else than files of this folder.
pub(crate) fn weight_files(folder: &Path) -> Result<Vec<PathBuf>, Error> {
    Ok(listed(folder)?.files)
}

fn listed(folder: &Path) -> Result<Listed, Error> {
    if folder.join(SINGLE).exists() {
        return Ok(Listed { files: vec![folder.join(SINGLE)], index: BTreeMap::new() });
    }
    let path = folder.join(INDEX);
    if !path.exists() {
        return Err(no_weights(folder));
    }
    let Index { weight_map } = serde_json::from_str(&read_text(&path, MAX_INDEX_BYTES)?)
        .map_err(|error| Error::config(&path, format!("expected names of tensors and files: {error}")))?;
    let mut names = BTreeSet::new();
    for (tensor, name) in &weight_map {
        // A plain name: nothing outside of the folder is opened because a file says so.
        let is_plain = Path::new(name).file_name() == Some(name.as_ref());
        let problem = if !is_plain {
            format!("tensor `{tensor}`: expected a file name, found \"{name}\"")
        } else if names.insert(name) && !folder.join(name).is_file() {
            format!("tensor `{tensor}`: expected a file `{name}` beside the index, found none")
        } else {
            continue;
        };
        return Err(Error::config(&path, problem + "\nhint: copy or download the folder again"));
    }
    if names.is_empty() {
        return Err(Error::config(&path, "`weight_map`: expected at least one tensor, found none"));
    }
    let places: BTreeMap<_, _> = names.iter().enumerate().map(|(place, name)| (*name, place)).collect();
    let files = names.iter().map(|name| folder.join(name)).collect();
    let index = weight_map.iter().map(|(tensor, name)| (tensor.clone(), places[name])).collect();
    Ok(Listed { files, index })
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

/// The files of a folder, open, and nothing of them compared yet.
struct Stored {
    files: Vec<WeightsFile>,
    /// By the name that the configuration gives it: which file has a tensor, and under which name.
    tensors: BTreeMap<String, (usize, String)>,
    /// What contradicts itself.
    problems: Vec<String>,
}

impl Stored {
    /// Files whose tensors have the names that they have there.
    fn read(folder: &Path) -> Result<Self, Error> {
        Self::read_as(folder, |stored| {
            stored.into_iter().map(|(name, place)| (name.clone(), (place, name.clone()))).collect()
        })
    }

    fn open(folder: &Path, config: &DecoderConfig) -> Result<Self, Error> {
        Self::read_as(folder, |stored| named(stored, config))
    }

    fn read_as(
        folder: &Path,
        named: impl FnOnce(BTreeMap<&String, usize>) -> BTreeMap<String, (usize, String)>,
    ) -> Result<Self, Error> {
        let Listed { files, index } = listed(folder)?;
        let files = files.iter().map(|path| WeightsFile::open(path)).collect::<Result<Vec<_>, _>>()?;
        let mut problems = Vec::new();
        let mut stored: BTreeMap<&String, usize> = BTreeMap::new();
        for (place, file) in files.iter().enumerate() {
            for name in file.header().tensors.keys() {
                if let Some(first) = stored.insert(name, place) {
                    let [one, two] = [&files[first], file].map(|file| file.path().display().to_string());
                    problems.push(format!("`{name}`: expected once, found in `{one}` and `{two}`"));
                }
            }
        }
        for (name, place) in &index {
            if !files[*place].header().tensors.contains_key(name) {
                let file = files[*place].path().display();
                problems
                    .push(format!("`{name}`: expected in `{file}` as the index says, found no such tensor"));
            }
        }
        let tensors = named(stored);
        Ok(Self { files, tensors, problems })
    }

    /// Compares the tensors with those that are expected; all differences are reported together.
    fn checked(
        self,
        folder: &Path,
        expected: &[(String, Vec<usize>)],
        may_be_unused: impl Fn(&str) -> bool,
    ) -> Result<Checkpoint, Error> {
        let Self { files, tensors: places, mut problems } = self;
        let shapes: Vec<(&String, &Vec<usize>)> = places
            .iter()
            .map(|(name, (place, stored))| (name, &files[*place].header().tensors[stored].shape))
            .collect();
        problems.extend(differences(expected, shapes.into_iter(), may_be_unused));
        for (name, _) in expected {
            let Some((place, stored)) = places.get(name) else { continue };
            let dtype = files[*place].header().tensors[stored].dtype;
            if !convert::is_readable(dtype) {
                problems.push(format!("`{name}`: {}", expected_floats(dtype)));
            }
        }
        if !problems.is_empty() {
            return Err(Error::Tensors {
                folder: folder.to_owned(),
                against: "config.json".into(),
                problems,
            });
        }
        let checkpoint = Checkpoint { files, places };
        tracing::debug!(folder = %folder.display(), bytes = checkpoint.bytes(), "opened a model");
        Ok(checkpoint)
    }
}

/// Names and shapes of the tensors in a folder.
///
/// # Errors
/// There are no weights, or a file is torn.
pub(crate) fn stored_shapes(folder: &Path) -> Result<BTreeMap<String, Vec<usize>>, Error> {
    let Stored { files, tensors, .. } = Stored::read(folder)?;
    let shape = |(name, (place, stored)): (String, (usize, String))| {
        let shape = files[place].header().tensors[&stored].shape.clone();
        (name, shape)
    };
    Ok(tensors.into_iter().map(shape).collect())
}

/// Whether a folder has a head beside the embedding that has other numbers, or none that could be the embedding's. What
/// keeps its files from being read is for [`Checkpoint::open`] to say.
pub(crate) fn has_another_head(folder: &Path, config: &DecoderConfig) -> bool {
    let Ok(Stored { files, tensors, .. }) = Stored::open(folder, config) else { return false };
    let names = config.names();
    let [embedding, head] = [names.embedding, names.head].map(|name| tensors.get(&format!("{name}.weight")));
    let (Some((file, embedding)), Some((file_of_head, head))) = (embedding, head) else { return false };
    !files[*file].has_equal(embedding, &files[*file_of_head], head)
}

/// An open model folder: its headers fit the configuration, and no weights are in memory.
#[derive(Debug)]
pub(crate) struct Checkpoint {
    files: Vec<WeightsFile>,
    /// By the parameter's name: which file has it, and under which name.
    places: BTreeMap<String, (usize, String)>,
}

impl Checkpoint {
    /// Opens the files of a folder and compares their tensors with the configuration's.
    ///
    /// # Errors
    /// A file is torn; or tensors are missing, fused, unused, of a wrong shape or of no floats, all reported together.
    pub(crate) fn open(folder: &Path, config: &DecoderConfig) -> Result<Self, Error> {
        let expected: Vec<_> =
            config.parameters().into_iter().map(|parameter| (parameter.name, parameter.shape)).collect();
        Stored::open(folder, config)?.checked(folder, &expected, |name| is_known_unused(name, config))
    }

    /// Opens the files of a folder whose tensors are listed, by the names that they have there.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub(crate) fn open_listed(
        folder: &Path,
        expected: &[(String, Vec<usize>)],
        may_be_unused: impl Fn(&str) -> bool,
    ) -> Result<Self, Error> {
        Stored::read(folder)?.checked(folder, expected, may_be_unused)
    }

    /// A parameter: `[rows, columns]` as in the file, a vector as one row. Its bytes alone are mapped meanwhile.
    ///
    /// # Errors
    /// An element is not finite, or too large for the precision; its file, name and index are named.
    ///
    /// # Panics
    /// The configuration has no such parameter.
    pub(crate) fn tensor(
        &self,
        name: &str,
        precision: Precision,
        device: &Device,
    ) -> Result<Tensor<2>, Error> {
        let (file, stored) = self.place(name);
        file.tensor(stored, precision, device)
    }

    /// The file that has a parameter, and its name there.
    ///
    /// # Panics
    /// The configuration has no such parameter.
    pub(crate) fn place(&self, name: &str) -> (&WeightsFile, &str) {
        let (place, stored) = self.places.get(name).expect("open compared the parameters with the files");
        (&self.files[*place], stored)
    }

    /// All files, in order of their names.
    pub(crate) fn files(&self) -> &[WeightsFile] {
        &self.files
    }

    /// Bytes of all tensors, as stored.
    pub(crate) fn bytes(&self) -> u64 {
        self.files.iter().flat_map(|file| file.header().tensors.values()).map(|entry| entry.bytes()).sum()
    }
}

/// Stored tensors by the names that the configuration gives them. Where no name in the files has the prefix of the
/// model's own names, they are those of a base model: the prefix is put before them. As in transformers, the head may have
/// the name that most families give it, and one that is stored in place of the embedding it is tied to is both.
fn named(stored: BTreeMap<&String, usize>, config: &DecoderConfig) -> BTreeMap<String, (usize, String)> {
    let names = config.names();
    let prefix = names.base_prefix;
    let is_base_model = !stored.keys().any(|name| name.starts_with(prefix));
    let expected: BTreeSet<String> = config.parameters().into_iter().map(|one| one.name).collect();
    let by_name = stored.into_iter().map(|(name, place)| {
        let longer = format!("{prefix}{name}");
        let model = if is_base_model && expected.contains(&longer) { longer } else { name.clone() };
        (model, (place, name.clone()))
    });
    let mut named: BTreeMap<_, _> = by_name.collect();
    let [embedding, head] = [names.embedding, names.head].map(|name| format!("{name}.weight"));
    if !named.contains_key(&head)
        && let Some(place) = named.remove(USUAL_HEAD)
    {
        named.insert(head.clone(), place);
    }
    if config.tie_word_embeddings
        && !named.contains_key(&embedding)
        && let Some(place) = named.remove(&head)
    {
        named.insert(embedding, place);
    }
    named
}

/// What keeps `found` from being `expected`, one line each: missing and wrongly shaped tensors, then unused ones.
pub(crate) fn differences<'a>(
    expected: &[(String, Vec<usize>)],
    found: impl Iterator<Item = (&'a String, &'a Vec<usize>)>,
    may_be_unused: impl Fn(&str) -> bool,
) -> Vec<String> {
    let mut unused: BTreeMap<&String, &Vec<usize>> = found.collect();
    let mut missing = BTreeMap::new();
    let mut problems = Vec::new();
    for (name, shape) in expected {
        match unused.remove(name) {
            None => drop(missing.insert(name, shape)),
            Some(other) if other != shape => {
                problems.push(format!("`{name}`: expected shape {shape:?}, found {other:?}"));
            }
            Some(_) => {}
        }
    }
    let mut fused = fused(&mut missing, &mut unused);
    let absent = expected.iter().filter(|(name, _)| missing.contains_key(name));
    fused.extend(
        absent.map(|(name, shape)| format!("`{name}`: expected shape {shape:?}, found no such tensor")),
    );
    problems.splice(0..0, fused);
    for (name, shape) in unused {
        if may_be_unused(name) {
            tracing::debug!(tensor = name.as_str(), "tensor is not used");
        } else {
            problems.push(format!("`{name}`: expected no such tensor, found shape {shape:?}"));
        }
    }
    problems
}

type Shapes<'a> = BTreeMap<&'a String, &'a Vec<usize>>;

/// Linear maps that some families keep in one tensor, and the parts that others have.
const FUSED: [(&str, &[&str]); 5] = [
    ("qkv_proj", &["q_proj", "k_proj", "v_proj"]),
    ("W_pack", &["q_proj", "k_proj", "v_proj"]),
    ("query_key_value", &["q_proj", "k_proj", "v_proj"]),
    ("c_attn", &["q_proj", "k_proj", "v_proj"]),
    ("gate_up_proj", &["gate_proj", "up_proj"]),
];

/// One line for each fused tensor where its parts are missing, and for each that is missing where its parts are; what
/// they explain is taken from both lists.
fn fused<'a>(missing: &mut Shapes<'a>, unused: &mut Shapes<'a>) -> Vec<String> {
    let mut problems = Vec::new();
    for (whole, parts) in FUSED {
        let list = parts.join(", ");
        for (name, shape, parts) in pairs(whole, parts, unused, missing) {
            problems
                .push(format!("`{name}`: expected {list} on their own, found them fused in shape {shape:?}"));
            unused.retain(|other, _| **other != name);
            missing.retain(|other, _| !parts.contains(other));
        }
        for (name, shape, parts) in pairs(whole, parts, missing, unused) {
            problems.push(format!("`{name}`: expected shape {shape:?}, found {list} on their own"));
            missing.retain(|other, _| **other != name);
            unused.retain(|other, _| !parts.contains(other));
        }
    }
    problems
}

/// Names of `wholes` that have all their parts in `rest`.
fn pairs(
    whole: &str,
    parts: &[&str],
    wholes: &Shapes<'_>,
    rest: &Shapes<'_>,
) -> Vec<(String, Vec<usize>, Vec<String>)> {
    let part = format!(".{whole}.");
    let named = wholes.iter().filter(|(name, _)| name.contains(&part)).map(|(name, shape)| {
        let parts = parts.iter().map(|one| name.replace(&part, &format!(".{one}."))).collect();
        ((*name).clone(), (*shape).clone(), parts)
    });
    named.filter(|(_, _, parts): &(_, _, Vec<_>)| parts.iter().all(|name| rest.contains_key(name))).collect()
}

/// Buffers that older files carry, and a head that is tied to the embedding and stored all the same.
fn is_known_unused(name: &str, config: &DecoderConfig) -> bool {
    const BUFFERS: [&str; 5] = [
        ".rotary_emb.inv_freq",
        ".attn.bias",
        ".attn.masked_bias",
        // Causal masks of GPT-NeoX.
        ".attention.bias",
        ".attention.masked_bias",
    ];
    BUFFERS.iter().any(|buffer| name.ends_with(buffer))
        || (config.tie_word_embeddings && matches!(name, USUAL_HEAD | "embed_out.weight"))
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use burn::tensor::DType;

    use super::*;
    use crate::Decoder;
    use crate::names::Parameter;

    fn config() -> DecoderConfig {
        let keys = serde_json::json!({
            "model_type": "llama", "vocab_size": 61, "hidden_size": 24, "intermediate_size": 40,
            "num_hidden_layers": 1, "num_attention_heads": 4, "tie_word_embeddings": true,
        });
        DecoderConfig::from_value(keys, Path::new("config.json")).unwrap()
    }

    #[test]
    fn a_tensor_is_read_in_either_precision() {
        let folder = tempfile::tempdir().unwrap();
        let device = Device::flex();
        Decoder::random(config(), 3, &device).save(folder.path()).unwrap();
        let checkpoint = Checkpoint::open(folder.path(), &config()).unwrap();
        let count: usize = config().parameter_count();
        assert_eq!(checkpoint.bytes(), 4 * u64::try_from(count).unwrap());
        for Parameter { name, shape, .. } in config().parameters() {
            let exact = checkpoint.tensor(&name, Precision::F32, &device).unwrap();
            let rounded = checkpoint.tensor(&name, Precision::Bf16, &device).unwrap();
            assert_eq!((exact.dtype(), rounded.dtype()), (DType::F32, DType::BF16));
            let rows = if shape.len() == 1 { 1 } else { shape[0] };
            assert_eq!(exact.dims(), [rows, *shape.last().unwrap()]);
            let values = |tensor: Tensor<2>| tensor.to_data_as::<f32>().try_into_vec::<f32>().unwrap();
            let expected: Vec<f32> =
                values(exact).into_iter().map(|value| burn::tensor::bf16::from_f32(value).to_f32()).collect();
            assert_eq!(values(rounded), expected);
        }
    }

    /// Run alone: `cargo test --workspace --lib speed_of_loading -- --ignored --nocapture`.
    #[test]
    #[ignore = "a measurement"]
    fn speed_of_loading() {
        const ROWS: usize = 1 << 15;
        const COLUMNS: usize = 1 << 13;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(SINGLE);
        for (name, dtype, width) in [("BF16", DType::BF16, 2), ("F16", DType::F16, 2), ("F32", DType::F32, 4)]
        {
            let bytes = width * ROWS * COLUMNS / if width == 4 { 2 } else { 1 };
            let rows = bytes / width / COLUMNS;
            let header = format!(
                r#"{{"w":{{"dtype":"{name}","shape":[{rows},{COLUMNS}],"data_offsets":[0,{bytes}]}}}}"#
            );
            let data: Vec<u8> = (0..bytes).map(|index| (index * 37 % 61) as u8).collect();
            let length = (header.len() as u64).to_le_bytes();
            std::fs::write(&path, [&length[..], header.as_bytes(), &data].concat()).unwrap();
            let file = WeightsFile::open(&path).unwrap();
            let time = |work: &dyn Fn() -> usize| {
                let mut best = f64::MAX;
                for _ in 0..5 {
                    let start = Instant::now();
                    std::hint::black_box(work());
                    best = best.min(start.elapsed().as_secs_f64());
                }
                bytes as f64 / best / 1e6
            };
            let copy = time(&|| data.to_vec().len());
            let device = Device::flex();
            for precision in [Precision::F32, Precision::Bf16] {
                let load = time(&|| file.tensor("w", precision, &device).unwrap().dims()[0]);
                println!(
                    "{dtype:?} to {precision:?}: {load:.0} MB/s of the file; a copy in memory {copy:.0}"
                );
            }
        }
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        status
            .lines()
            .filter(|line| line.starts_with("VmHWM") || line.starts_with("VmPeak"))
            .for_each(|line| println!("{line}"));
    }
}
