//! Labels equal to those that transformers gives, by golden files of `tests/peers/make_golden.py`.

use std::{fs, path::Path};

use burn::tensor::Device;
use serde::Deserialize;
use softshard_losses::{HeadOptions, Keep, label_rows};
use softshard_model::{Arrangement, Decoder};

/// Nats; f32 on both sides.
const NATS: f32 = 1e-4;

/// One sequence with its labels, fields as in the label format.
#[derive(Deserialize)]
struct Expected {
    input_ids: Vec<i32>,
    positions: Vec<i32>,
    counts: Vec<i32>,
    token_ids: Vec<i32>,
    log_probs: Vec<f32>,
    log_sum_exp: Vec<f32>,
    tail_log_mass: Vec<f32>,
    entropy: Vec<f32>,
    gold_log_prob: Vec<f32>,
    log_partition_t2: Vec<f32>,
}

#[track_caller]
fn assert_close(column: &str, found: &[f32], expected: &[f32]) {
    assert_eq!(found.len(), expected.len(), "{column}");
    for (row, (found, expected)) in found.iter().zip(expected).enumerate() {
        assert!((found - expected).abs() < NATS, "{column}[{row}]: expected {expected}, found {found}");
    }
}

#[test]
fn labels_are_those_of_transformers() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/peers/golden");
    for name in ["tiny-llama", "tiny-qwen2"] {
        let decoder = Decoder::load(&golden.join(name), &Device::flex()).expect("the model loads");
        let text = fs::read(golden.join(format!("{name}.expected.json"))).expect("golden values");
        let file: serde_json::Value = serde_json::from_slice(&text).expect("JSON");
        let sequences: Vec<Expected> = serde_json::from_value(file["sequences"].clone()).expect("sequences");
        // One padded batch of all of them.
        let ids: Vec<&[i32]> = sequences.iter().map(|sequence| sequence.input_ids.as_slice()).collect();
        let positions: Vec<&[i32]> = sequences.iter().map(|sequence| sequence.positions.as_slice()).collect();
        let at = |sequence: &Expected, position: i32| {
            sequence.input_ids[usize::try_from(position).expect("from 1 on")]
        };
        let gold: Vec<i32> = sequences
            .iter()
            .flat_map(|one| one.positions.iter().map(move |&position| at(one, position)))
            .collect();
        let hidden = decoder.hidden_before(&ids, &positions, Arrangement::Padded).expect("resident");
        let options = HeadOptions {
            keep: Keep::TopK { k: 16 },
            logit_scale: 1.0,
            temperatures: &[2.0],
            rows_per_chunk: 7,
        };
        let found = label_rows(hidden, decoder.head(), &gold, &[], &options).expect("finite logits");

        let all = |column: fn(&Expected) -> &Vec<f32>| {
            sequences.iter().flat_map(column).copied().collect::<Vec<_>>()
        };
        let all_ids = |column: fn(&Expected) -> &Vec<i32>| {
            sequences.iter().flat_map(column).copied().collect::<Vec<_>>()
        };
        assert_eq!(found.counts, all_ids(|one| &one.counts), "{name}");
        assert_eq!(found.token_ids, all_ids(|one| &one.token_ids), "{name}");
        assert_close("log_probs", &found.log_probs, &all(|one| &one.log_probs));
        assert_close("log_sum_exp", &found.log_sum_exp, &all(|one| &one.log_sum_exp));
        assert_close("tail_log_mass", &found.tail_log_mass, &all(|one| &one.tail_log_mass));
        assert_close("entropy", &found.entropy, &all(|one| &one.entropy));
        assert_close("gold_log_prob", &found.gold_log_prob, &all(|one| &one.gold_log_prob));
        assert_close("log_partition_t2", &found.log_partitions[0], &all(|one| &one.log_partition_t2));
    }
}
