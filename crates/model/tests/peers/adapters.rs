//! Adapters that PEFT wrote give its logits and its gradients, and leave our hands as they came.

use std::fs;

use burn::tensor::{Device, Int, Tensor, TensorData, activation};
use safetensors::SafeTensors;
use softshard_model::{Arrangement, Decoder, Trainable};

use crate::golden::{Golden, MODELS, assert_close, batch, load, logits, of_tokens, path};

/// Of the norm of a factor's gradient.
const GRADIENT: f64 = 1e-4;
/// Nats, f32 on both sides.
const LOSS: f32 = 1e-5;

/// The models with an adapter.
fn adapted() -> impl Iterator<Item = (&'static str, Golden, Decoder)> {
    MODELS.into_iter().filter_map(|name| {
        let golden = Golden::of(name);
        golden.facts.lora.as_ref()?;
        let mut decoder = load(name);
        decoder
            .load_adapter(&path(&format!("lora-{name}")))
            .unwrap_or_else(|error| panic!("{name}: {error}"));
        Some((name, golden, decoder))
    })
}

fn adapted_logits(decoder: &Decoder, golden: &Golden) -> Vec<f32> {
    let columns = golden.columns();
    let found = logits(decoder, decoder.hidden(batch(&golden.facts.sequences, columns, |_| 0)));
    of_tokens(&found, columns, golden.lengths().into_iter().map(|length| 0..length))
}

#[test]
fn an_adapter_of_a_larger_model_gives_its_logits() {
    let bytes = fs::read(path("lora.expected.safetensors")).expect("golden values");
    let tensors = SafeTensors::deserialize(&bytes).expect("safetensors");
    let words =
        |name: &str| -> Vec<[u8; 4]> { tensors.tensor(name).expect(name).data().as_chunks::<4>().0.to_vec() };
    let input_ids: Vec<i32> = words("input_ids").into_iter().map(i32::from_le_bytes).collect();
    let expected: Vec<f32> = words("logits").into_iter().map(f32::from_le_bytes).collect();

    let mut decoder = load("tiny-llama");
    decoder.load_adapter(&path("lora")).expect("the adapter loads");
    let columns = input_ids.len();
    let found = logits(&decoder, decoder.hidden(batch(&[input_ids], columns, |_| 0)));
    assert_close("lora", &found.concat(), &expected);
}

#[test]
fn adapters_of_every_family_give_the_logits_of_peft() {
    let mut count = 0;
    for (name, golden, decoder) in adapted() {
        let found = adapted_logits(&decoder, &golden);
        assert_close(name, &found, &golden.logits("lora"));
        // Written by us and read again.
        let folder = tempfile::tempdir().expect("a folder");
        decoder.save_adapter(folder.path(), name).expect("the adapter is saved");
        let mut again = load(name);
        again.load_adapter(folder.path()).expect("our own adapter loads");
        assert_eq!(found, adapted_logits(&again, &golden), "{name}");
        count += 1;
    }
    assert_eq!(count, 9);
}

/// The mean cross-entropy of all tokens after the first: LORA_OBJECTIVE of `tests/peers/families.py`.
fn objective(decoder: &Decoder, sequences: &[Vec<i32>]) -> Tensor<1> {
    let rows: Vec<&[i32]> = sequences.iter().map(Vec::as_slice).collect();
    let positions: Vec<Vec<i32>> = sequences
        .iter()
        .map(|row| (1..i32::try_from(row.len()).expect("short sequences")).collect())
        .collect();
    let positions: Vec<&[i32]> = positions.iter().map(Vec::as_slice).collect();
    let golds: Vec<i32> = sequences.iter().flat_map(|row| &row[1..]).copied().collect();
    let count = golds.len();
    let golds = Tensor::<2, Int>::from_data(TensorData::new(golds, [count, 1]), &Device::flex());
    let hidden =
        decoder.hidden_before(&rows, &positions, Arrangement::Padded).expect("the weights are there");
    let logits = hidden.matmul(decoder.head().transpose());
    activation::log_softmax(logits, 1).gather(1, golds).mean().neg()
}

#[test]
fn gradients_of_every_factor_are_those_of_peft() {
    for (name, golden, mut decoder) in adapted() {
        decoder.train(Trainable::Adapter);
        let loss = objective(&decoder, &golden.facts.sequences);
        let gradients = loss.backward();
        let (loss, expected) =
            (loss.into_scalar::<f32>(), golden.facts.lora.as_ref().expect("it has an adapter").loss);
        assert!((loss / expected - 1.0).abs() < LOSS, "{name}: loss {loss}, expected {expected}");
        let mut worst = 0.0f64;
        for (factor, parameter) in decoder.parameters_mut() {
            let found =
                parameter.grad(&gradients).unwrap_or_else(|| panic!("{name}: no gradient of {factor}"));
            let found = found.try_into_vec_as::<f32>().expect("numbers");
            let expected = golden.tensor(&format!("gradient/{factor}"));
            assert_eq!(found.len(), expected.len(), "{name} {factor}");
            let norm = |values: &mut dyn Iterator<Item = f32>| -> f64 {
                values.map(|value| f64::from(value).powi(2)).sum::<f64>().sqrt()
            };
            let off = norm(&mut found.iter().zip(expected).map(|(found, expected)| found - expected));
            let whole = norm(&mut expected.iter().copied());
            assert!(off < GRADIENT * whole, "{name} {factor}: off by {off} of {whole}");
            worst = worst.max(off / whole);
        }
        println!("{name}: gradients within {worst:.1e} of their norms");
    }
}
