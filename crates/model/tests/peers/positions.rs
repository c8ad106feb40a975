//! What config.json says of rotary angles and windows means what it means to transformers, also beyond the original context;
//! and no text depends on its batch, though some angles go by the length of a text.

use std::collections::BTreeMap;
use std::fs;

use burn::tensor::{Device, Tensor};
use serde::Deserialize;
use serde_json::Value;
use softshard_model::{Arrangement, Decoder, Layout, LoadOptions, Residency};

use crate::golden::{assert_close, batch, logits, path, product, tensors};

/// The same sums in another order.
const SUM_ORDER: f32 = 5e-5;

/// `positions.expected.json`: see `tests/peers/golden_positions.py`.
#[derive(Deserialize)]
pub(crate) struct Positions {
    pub(crate) sequences: Vec<Vec<i32>>,
    /// Of each sequence the positions whose logits are stored.
    rows: Vec<Vec<usize>>,
    variants: BTreeMap<String, Variant>,
}

#[derive(Deserialize)]
struct Variant {
    base: String,
    config: Value,
    answer: Answer,
}

#[derive(Deserialize)]
struct Answer {
    prompt: Vec<i32>,
    output: Vec<i32>,
}

impl Positions {
    pub(crate) fn golden() -> Self {
        let text = fs::read(path("positions.expected.json")).expect("golden values");
        serde_json::from_slice(&text).expect("JSON")
    }

    /// The positions of each sequence whose logits are those behind the stored rows.
    fn labelled(&self) -> Vec<Vec<i32>> {
        let after = |row: &usize| i32::try_from(row + 1).expect("short sequences");
        self.rows.iter().map(|rows| rows.iter().map(after).collect()).collect()
    }

    /// Stored logits of all sequences, one after the other.
    fn expected(&self, tensors: &BTreeMap<String, Vec<f32>>, name: &str) -> Vec<f32> {
        (0..self.sequences.len()).flat_map(|index| tensors[&format!("{name}.{index}")].clone()).collect()
    }
}

impl Variant {
    /// Its folder, with the weights of its base.
    fn folder(&self) -> tempfile::TempDir {
        let folder = tempfile::tempdir().expect("a folder");
        let weights = format!("{}/model.safetensors", self.base);
        fs::copy(path(&weights), folder.path().join("model.safetensors")).expect("a copy");
        fs::write(folder.path().join("config.json"), self.config.to_string()).expect("a file");
        folder
    }
}

fn load(folder: &tempfile::TempDir, residency: Residency) -> Decoder {
    let options = LoadOptions { residency, ..LoadOptions::default() };
    Decoder::load_with(folder.path(), &Device::flex(), &options).expect("the model loads")
}

fn by_head(decoder: &Decoder, hidden: Tensor<2>) -> Vec<f32> {
    hidden.matmul(decoder.head().transpose()).try_into_vec_as().expect("numbers")
}

/// Logits at the labelled positions of both sequences together.
fn together(decoder: &Decoder, golden: &Positions, arrangement: Arrangement) -> Vec<f32> {
    let labelled = golden.labelled();
    let sequences: Vec<&[i32]> = golden.sequences.iter().map(Vec::as_slice).collect();
    let positions: Vec<&[i32]> = labelled.iter().map(Vec::as_slice).collect();
    by_head(decoder, decoder.hidden_before(&sequences, &positions, arrangement).expect("weights"))
}

#[test]
fn every_variant_gives_the_logits_of_transformers_in_any_batch() {
    let (golden, tensors) = (Positions::golden(), tensors("positions.expected.safetensors"));
    assert!(golden.variants.len() > 45);
    for (name, variant) in &golden.variants {
        let decoder = load(&variant.folder(), Residency::Resident);
        let expected = golden.expected(&tensors, name);
        for arrangement in [Arrangement::Padded, Arrangement::Ragged, Arrangement::Packed] {
            let found = together(&decoder, &golden, arrangement);
            assert_close(&format!("{name}, {arrangement:?}"), &found, &expected);
        }
        // Padding before the shorter one, as where answers are made.
        let lengths: Vec<usize> = golden.sequences.iter().map(Vec::len).collect();
        let columns = lengths[1];
        let ids = batch(&golden.sequences, columns, |row| columns - row.len());
        let found = logits(&decoder, decoder.hidden_in(ids, &Layout::left_padded(&lengths, columns)));
        let rows = golden.rows.iter().zip(&lengths).enumerate();
        let rows = rows.flat_map(|(index, (rows, length))| {
            rows.iter().map(move |row| (index + 1) * columns - length + row)
        });
        let found: Vec<f32> = rows.flat_map(|row| found[row].clone()).collect();
        assert_close(&format!("{name}, padded on the left"), &found, &expected);
    }
}

#[test]
fn greedy_answers_with_a_cache_are_those_of_transformers() {
    let golden = Positions::golden();
    for (name, variant) in &golden.variants {
        let decoder = load(&variant.folder(), Residency::Resident);
        let Answer { prompt, output } = &variant.answer;
        // Beside a prompt that is longer and one that is shorter.
        let prompts = [golden.sequences[1].clone(), prompt.clone(), prompt[..3].to_vec()];
        let found = decoder.generate(&prompts, output.len(), &[], product).expect("answers");
        assert_eq!(&found[1], output, "{name}");
    }
}

#[test]
fn streamed_and_saved_models_compute_the_same_bit_for_bit() {
    let golden = Positions::golden();
    for (name, variant) in &golden.variants {
        let folder = variant.folder();
        let resident = load(&folder, Residency::Resident);
        let expected = together(&resident, &golden, Arrangement::Ragged);
        let streamed = load(&folder, Residency::Streamed);
        assert!(together(&streamed, &golden, Arrangement::Ragged) == expected, "{name}: streamed");
        let labelled = golden.labelled();
        let one = |index: usize| (vec![&*golden.sequences[index]], vec![&*labelled[index]]);
        let found = streamed.hidden_before_each(&[one(0), one(1)], false).expect("weights");
        let found: Vec<f32> = found.into_iter().flat_map(|hidden| by_head(&streamed, hidden)).collect();
        let off = found.iter().zip(&expected).map(|(one, other)| (one - other).abs()).fold(0.0, f32::max);
        assert!(off < SUM_ORDER, "{name}: a block of batches is off by {off}");
        resident.save(folder.path()).expect("the model is saved");
        let again = load(&folder, Residency::Resident);
        assert!(together(&again, &golden, Arrangement::Ragged) == expected, "{name}: saved");
        assert_eq!(resident.config().positions, again.config().positions, "{name}");
        assert_eq!(resident.config().layers, again.config().layers, "{name}");
    }
}
