//! Golden files, and logits of ours to compare with them.
//!
//! Legend: B rows of a batch, T columns, V vocabulary.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use burn::tensor::{Device, Int, Tensor, TensorData};
use safetensors::{Dtype, SafeTensors};
use serde::Deserialize;
use softshard_model::{Decoder, Error};

/// f32 on both sides: other threads or another attention kernel move PyTorch's own logits by 2e-5.
pub(crate) const LOGITS: f32 = 1e-4;

/// One model of every family and of every difference within one; see `tests/peers/families.py`.
pub(crate) const MODELS: [&str; 10] = [
    "tiny-llama3",
    "tiny-mistral",
    "tiny-qwen2-untied",
    "tiny-qwen3",
    "tiny-qwen3-windows",
    "tiny-neox",
    "tiny-neox-sequential",
    "tiny-opt",
    "tiny-opt-post-norm",
    "tiny-gpt2",
];

/// `NAME.expected.json` and `NAME.expected.safetensors`.
pub(crate) struct Golden {
    pub(crate) facts: Facts,
    tensors: BTreeMap<String, Vec<f32>>,
}

#[derive(Deserialize)]
pub(crate) struct Facts {
    pub(crate) sequences: Vec<Vec<i32>>,
    pub(crate) attention_rows: Vec<usize>,
    pub(crate) bf16_largest_difference: f32,
    pub(crate) bf16_root_mean_square_difference: f32,
    pub(crate) lora: Option<Lora>,
}

#[derive(Deserialize)]
pub(crate) struct Generation {
    pub(crate) prompt: Vec<i32>,
    pub(crate) stop_ids: Vec<i32>,
    pub(crate) output: Vec<i32>,
}

#[derive(Deserialize)]
pub(crate) struct Lora {
    pub(crate) loss: f32,
}

impl Golden {
    pub(crate) fn of(model: &str) -> Self {
        let text = fs::read(path(&format!("{model}.expected.json"))).expect("golden values");
        let facts = serde_json::from_slice(&text).expect("JSON");
        Self { facts, tensors: tensors(&format!("{model}.expected.safetensors")) }
    }

    pub(crate) fn tensor(&self, name: &str) -> &[f32] {
        self.tensors.get(name).unwrap_or_else(|| panic!("no golden tensor {name}"))
    }

    /// Logits of all sequences under this name, one after the other.
    pub(crate) fn logits(&self, name: &str) -> Vec<f32> {
        let one = |index| self.tensor(&format!("{name}.{index}"));
        (0..self.facts.sequences.len()).flat_map(one).copied().collect()
    }

    pub(crate) fn lengths(&self) -> Vec<usize> {
        self.facts.sequences.iter().map(Vec::len).collect()
    }

    /// Columns of the longest sequence.
    pub(crate) fn columns(&self) -> usize {
        self.lengths().into_iter().max().expect("there are sequences")
    }
}

/// Greedy answers in `NAME.expected.json`, whatever else is in it.
pub(crate) fn generations(model: &str) -> Vec<Generation> {
    let text = fs::read(path(&format!("{model}.expected.json"))).expect("golden values");
    let mut facts: serde_json::Value = serde_json::from_slice(&text).expect("JSON");
    serde_json::from_value(facts["generations"].take()).expect("a list of generations")
}

pub(crate) fn path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/peers/golden").join(name)
}

pub(crate) fn load(model: &str) -> Decoder {
    Decoder::load(&path(model), &Device::flex()).unwrap_or_else(|error| panic!("{model}: {error}"))
}

/// Tensors of a file by name; bf16 is the upper half of f32.
pub(crate) fn tensors(file: &str) -> BTreeMap<String, Vec<f32>> {
    let words = |dtype: Dtype, data: &[u8]| -> Vec<f32> {
        match dtype {
            Dtype::F32 => data.as_chunks::<4>().0.iter().map(|&word| f32::from_le_bytes(word)).collect(),
            Dtype::BF16 => {
                let halves = data.as_chunks::<2>().0.iter();
                halves.map(|&half| f32::from_bits(u32::from(u16::from_le_bytes(half)) << 16)).collect()
            }
            other => panic!("expected f32 or bf16, found {other:?}"),
        }
    };
    let bytes = fs::read(path(file)).expect("golden values");
    let tensors = SafeTensors::deserialize(&bytes).expect("safetensors");
    tensors.iter().map(|(name, view)| (name.to_owned(), words(view.dtype(), view.data()))).collect()
}

/// Rows of ids as a tensor `[B, T]`, every row with its own number of columns before it; the rest is id 0.
pub(crate) fn batch(rows: &[Vec<i32>], columns: usize, before: impl Fn(&[i32]) -> usize) -> Tensor<2, Int> {
    let mut ids = vec![0; rows.len() * columns];
    for (index, row) in rows.iter().enumerate() {
        let start = index * columns + before(row);
        ids[start..start + row.len()].copy_from_slice(row);
    }
    Tensor::from_data(TensorData::new(ids, [rows.len(), columns]), &Device::flex())
}

/// Logits `[B, T, V]` as lists of V for every row and column.
pub(crate) fn logits(decoder: &Decoder, hidden: Result<Tensor<3>, Error>) -> Vec<Vec<f32>> {
    let hidden = hidden.expect("the weights are there");
    let [rows, columns, width] = hidden.dims();
    let head = decoder.head().cast(hidden.dtype());
    let logits = hidden.reshape([rows * columns, width]).matmul(head.transpose());
    let vocabulary = logits.dims()[1];
    let values = logits.try_into_vec_as::<f32>().expect("numbers");
    values.chunks(vocabulary).map(<[f32]>::to_vec).collect()
}

/// Of logits of a batch those of its tokens: `tokens` says for every row which columns.
pub(crate) fn of_tokens(
    logits: &[Vec<f32>],
    columns: usize,
    tokens: impl IntoIterator<Item = std::ops::Range<usize>>,
) -> Vec<f32> {
    let rows = tokens.into_iter().enumerate();
    rows.flat_map(|(row, tokens)| logits[row * columns..][tokens].concat()).collect()
}

/// The largest and the root mean square difference.
pub(crate) fn differences(found: &[f32], expected: &[f32]) -> (f32, f32) {
    assert_eq!(found.len(), expected.len());
    let differences = || found.iter().zip(expected).map(|(found, expected)| (found - expected).abs());
    // `max` would pass over a NaN.
    let largest = differences().fold(0.0, |most: f32, one| if one <= most { most } else { one });
    let squares: f64 = differences().map(|one| f64::from(one).powi(2)).sum();
    (largest, (squares / found.len() as f64).sqrt() as f32)
}

#[track_caller]
pub(crate) fn assert_close(what: &str, found: &[f32], expected: &[f32]) {
    let (largest, _) = differences(found, expected);
    println!("{what}: logits within {largest:.1e}");
    assert!(largest < LOGITS, "{what}: largest difference {largest}");
}

/// `hidden · headᵀ`, of numbers that are f32 already.
pub(crate) fn product(hidden: Tensor<2>, head: &Tensor<2>) -> Tensor<2> {
    hidden.matmul(head.clone().transpose())
}
