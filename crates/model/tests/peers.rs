//! Equal to transformers and PEFT, by golden files that `tests/peers/make_golden.py` wrote with the real ones.

use std::{
    fs,
    path::{Path, PathBuf},
};

use burn::tensor::{Device, Int, Tensor, TensorData};
use safetensors::SafeTensors;
use softshard_model::Decoder;

/// f32 on both sides: other threads or another attention kernel move PyTorch's own logits by 7e-6.
const LOGITS: f32 = 1e-4;

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/peers/golden").join(name)
}

fn ids(value: &serde_json::Value) -> Vec<i32> {
    serde_json::from_value(value.clone()).expect("a list of token ids")
}

#[test]
fn greedy_answers_are_those_of_transformers() {
    for name in ["tiny-llama", "tiny-qwen2"] {
        let decoder = Decoder::load(&golden(name), &Device::flex()).expect("the model loads");
        let text = fs::read(golden(&format!("{name}.expected.json"))).expect("golden values");
        let expected: serde_json::Value = serde_json::from_slice(&text).expect("JSON");
        let generations = expected["generations"].as_array().expect("a list").clone();
        for stop_ids in [Vec::new(), ids(&generations.last().expect("one")["stop_ids"])] {
            let same: Vec<_> =
                generations.iter().filter(|generation| ids(&generation["stop_ids"]) == stop_ids).collect();
            let prompts: Vec<Vec<i32>> = same.iter().map(|generation| ids(&generation["prompt"])).collect();
            let outputs: Vec<Vec<i32>> = same.iter().map(|generation| ids(&generation["output"])).collect();
            // All prompts of one batch, whatever their lengths.
            assert_eq!(decoder.generate(&prompts, 20, &stop_ids).expect("resident"), outputs, "{name}");
        }
    }
}

#[test]
fn an_adapter_of_peft_gives_its_logits() {
    let bytes = fs::read(golden("lora.expected.safetensors")).expect("golden values");
    let tensors = SafeTensors::deserialize(&bytes).expect("safetensors");
    let words =
        |name: &str| -> Vec<[u8; 4]> { tensors.tensor(name).expect(name).data().as_chunks::<4>().0.to_vec() };
    let input_ids: Vec<i32> = words("input_ids").into_iter().map(i32::from_le_bytes).collect();
    let expected: Vec<f32> = words("logits").into_iter().map(f32::from_le_bytes).collect();

    let device = Device::flex();
    let mut decoder = Decoder::load(&golden("tiny-llama"), &device).expect("the model loads");
    decoder.load_adapter(&golden("lora")).expect("the adapter loads");
    let length = input_ids.len();
    let hidden = decoder
        .hidden(Tensor::<2, Int>::from_data(TensorData::new(input_ids, [1, length]), &device))
        .expect("resident");
    let width = decoder.config().hidden_size;
    let logits = hidden.reshape([length, width]).matmul(decoder.head().transpose());
    let found = logits.into_data().try_into_vec::<f32>().expect("f32 values");
    assert_eq!(found.len(), expected.len());
    let worst =
        found.iter().zip(&expected).map(|(found, expected)| (found - expected).abs()).fold(0.0, f32::max);
    assert!(worst < LOGITS, "worst difference {worst}");
}
