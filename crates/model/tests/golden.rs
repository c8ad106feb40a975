//! A trained model of 260 thousand parameters against a float64 reference.

use std::path::PathBuf;

use burn::tensor::{Device, Int, Tensor, TensorData, activation};
use softshard_model::Decoder;

/// Five layers in 32 bits against 64; the reference is printed with six digits.
const LOG_PROBS: f32 = 1e-4;

/// The reference model and its values, where real data is.
fn folder() -> Option<PathBuf> {
    softshard_e2e::real_data().map(|data| data.join("stories260k"))
}

fn ids(value: &serde_json::Value) -> Vec<i32> {
    value.as_array().unwrap().iter().map(|id| i32::try_from(id.as_i64().unwrap()).unwrap()).collect()
}

#[test]
fn greedy_ids_and_log_probs_equal_the_reference() {
    let Some(folder) = folder() else { return };
    let golden: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(folder.join("golden.json")).unwrap()).unwrap();
    let device = Device::flex();
    let decoder = Decoder::load(&folder.join("hf"), &device).unwrap();
    assert_eq!(decoder.parameter_count(), 260_032);

    let (prompt, greedy) = (ids(&golden["prompt_ids"]), ids(&golden["greedy_ids"]));
    let new = greedy.len() - prompt.len();
    assert_eq!(
        decoder
            .generate(std::slice::from_ref(&prompt), new, &[], |hidden, head| hidden
                .matmul(head.clone().transpose()))
            .unwrap(),
        vec![greedy[prompt.len()..].to_vec()]
    );

    let input = TensorData::new(greedy.clone(), [1, greedy.len()]);
    let hidden = decoder.hidden(Tensor::<2, Int>::from_data(input, &device)).unwrap();
    let logits =
        hidden.reshape([greedy.len(), decoder.config().hidden_size]).matmul(decoder.head().transpose());
    let log_probs = activation::log_softmax(logits, 1).try_into_vec_as::<f32>().unwrap();
    let vocabulary = decoder.config().vocab_size;
    for entry in golden["positions"].as_array().unwrap() {
        let position = usize::try_from(entry["pos"].as_u64().unwrap()).unwrap();
        let row = &log_probs[position * vocabulary..][..vocabulary];
        for (id, expected) in
            ids(&entry["top_ids"]).into_iter().zip(entry["top_logprobs"].as_array().unwrap())
        {
            let (found, expected) = (row[usize::try_from(id).unwrap()], expected.as_f64().unwrap() as f32);
            assert!((found - expected).abs() < LOG_PROBS, "position {position} id {id}: {found} {expected}");
        }
    }
}
