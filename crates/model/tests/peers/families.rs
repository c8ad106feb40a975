//! Every family computes what transformers does, whatever the layout of the batch.

use std::fs;
use std::path::Path;

use burn::tensor::Device;
use serde_json::{Map, Value};
use softshard_model::{Decoder, DecoderConfig, Layout, LoadOptions, Precision};

use crate::golden::{
    Golden, MODELS, assert_close, batch, differences, generations, load, logits, of_tokens, path, product,
    tensors,
};

/// Probabilities, f32 on both sides.
const PROBABILITY: f32 = 1e-5;
/// How much further from f32 than transformers' own bf16 ours may be: one bit. Both keep 8 significant bits of every
/// activation, but round in other places; ours once more where a bias is added.
const BF16: f32 = 2.0;

#[test]
fn padding_on_the_right_changes_nothing() {
    for name in MODELS {
        let (golden, decoder) = (Golden::of(name), load(name));
        let columns = golden.columns() + 2;
        let found = logits(&decoder, decoder.hidden(batch(&golden.facts.sequences, columns, |_| 0)));
        let found = of_tokens(&found, columns, golden.lengths().into_iter().map(|length| 0..length));
        assert_close(name, &found, &golden.logits("logits"));
    }
}

#[test]
fn padding_on_the_left_changes_nothing() {
    for name in MODELS {
        let (golden, decoder) = (Golden::of(name), load(name));
        let columns = golden.columns() + 1;
        let ids = batch(&golden.facts.sequences, columns, |row| columns - row.len());
        let lengths = golden.lengths();
        let found = logits(&decoder, decoder.hidden_in(ids, &Layout::left_padded(&lengths, columns)));
        let found = of_tokens(&found, columns, lengths.into_iter().map(|length| columns - length..columns));
        assert_close(name, &found, &golden.logits("logits"));
    }
}

#[test]
fn packed_sequences_do_not_see_each_other() {
    for name in MODELS {
        let (golden, decoder) = (Golden::of(name), load(name));
        let lengths = golden.lengths();
        let [first, second, third] = lengths[..] else { panic!("three sequences") };
        // The second row holds the others in another order, so that each is at a place where it was not.
        let sequences = &golden.facts.sequences;
        let order = [2, 0, 1, 0];
        let rows = [sequences.concat(), order.map(|index| sequences[index].as_slice()).concat()];
        let columns = rows[1].len() + 3;
        let layout = Layout::packed(&[lengths, order.map(|index| sequences[index].len()).to_vec()], columns);
        let found = logits(&decoder, decoder.hidden_in(batch(&rows, columns, |_| 0), &layout));
        let expected = golden.logits("logits");
        assert_close(name, &found[..first + second + third].concat(), &expected);
        let of = |index| golden.tensor(&format!("logits.{index}"));
        let found = found[columns..][..rows[1].len()].concat();
        assert_close(name, &found, &order.map(of).concat());
    }
}

#[test]
fn sequences_that_are_padded_in_attention_alone_do_not_see_each_other() {
    for name in MODELS {
        let (golden, decoder) = (Golden::of(name), load(name));
        let rows = [golden.facts.sequences.concat()];
        let layout = Layout::ragged(golden.lengths());
        let found = logits(&decoder, decoder.hidden_in(batch(&rows, rows[0].len(), |_| 0), &layout));
        assert_close(name, &found.concat(), &golden.logits("logits"));
    }
}

#[test]
fn greedy_answers_are_those_of_transformers() {
    for name in MODELS.into_iter().chain(["tiny-llama", "tiny-qwen2"]) {
        let generations = generations(name);
        let decoder = load(name);
        for stop_ids in [Vec::new(), generations.last().expect("one").stop_ids.clone()] {
            let same = || generations.iter().filter(|generation| generation.stop_ids == stop_ids);
            let prompts: Vec<Vec<i32>> = same().map(|generation| generation.prompt.clone()).collect();
            let outputs: Vec<Vec<i32>> = same().map(|generation| generation.output.clone()).collect();
            // All prompts of one batch, whatever their lengths.
            assert_eq!(
                decoder.generate(&prompts, 20, &stop_ids, product).expect("answers"),
                outputs,
                "{name}"
            );
        }
    }
}

#[test]
fn bf16_is_as_near_to_f32_as_that_of_transformers() {
    let options = LoadOptions { precision: Precision::Bf16, ..LoadOptions::default() };
    for name in MODELS {
        let golden = Golden::of(name);
        let decoder = Decoder::load_with(&path(name), &Device::flex(), &options).expect("the model loads");
        let columns = golden.columns();
        let all = |decoder: &Decoder| {
            let found = logits(decoder, decoder.hidden(batch(&golden.facts.sequences, columns, |_| 0)));
            of_tokens(&found, columns, golden.lengths().into_iter().map(|length| 0..length))
        };
        if decoder.activations() == Precision::F32 {
            // A CPU without matrix units; the weights of these models are bf16 numbers.
            assert_close(name, &all(&decoder), &golden.logits("logits"));
            continue;
        }
        let found = all(&decoder);
        let (largest, root_mean_square) = differences(&found, &golden.logits("logits"));
        let theirs = (golden.facts.bf16_largest_difference, golden.facts.bf16_root_mean_square_difference);
        let (_, between) = differences(&found, &golden.logits("bf16"));
        println!(
            "{name}: from f32 {root_mean_square:.3} (largest {largest:.3}), transformers' {:.3} ({:.3}), from its bf16 \
             {between:.3}",
            theirs.1, theirs.0
        );
        assert!(largest < BF16 * theirs.0, "{name}: {largest} where theirs is {}", theirs.0);
        assert!(
            root_mean_square < BF16 * theirs.1,
            "{name}: {root_mean_square} where theirs is {}",
            theirs.1
        );
        // Two independent errors, theirs and ours.
        assert!(between < (1.0 + BF16.powi(2)).sqrt() * theirs.1, "{name}: {between}");
        assert!(root_mean_square > 0.0, "{name}: it was computed in f32");
    }
}

#[test]
fn configurations_in_older_words_are_the_same_model() {
    for name in ["tiny-llama3", "tiny-neox"] {
        let folder = tempfile::tempdir().expect("a folder");
        for (from, to) in [
            (format!("{name}/model.safetensors"), "model.safetensors"),
            (format!("{name}.older-config.json"), "config.json"),
        ] {
            fs::copy(path(&from), folder.path().join(to)).expect("a golden file");
        }
        let older = Decoder::load(folder.path(), &Device::flex()).expect("the model loads");
        let sequences = Golden::of(name).facts.sequences;
        let all = |decoder: &Decoder| {
            logits(decoder, decoder.hidden(batch(&sequences[2..], sequences[2].len(), |_| 0)))
        };
        assert_eq!(all(&older), all(&load(name)), "{name}");
        // What we write is read again as the same model.
        older.save(folder.path()).expect("the model is saved");
        let again = Decoder::load(folder.path(), &Device::flex()).expect("the model loads");
        assert_eq!(all(&older), all(&again), "{name}");
    }
}

#[test]
fn other_words_on_the_same_weights_are_understood() {
    let text = fs::read(path("variants.expected.json")).expect("golden values");
    let golden: Value = serde_json::from_slice(&text).expect("JSON");
    let ids: Vec<i32> = serde_json::from_value(golden["input_ids"].clone()).expect("token ids");
    let expected = tensors("variants.expected.safetensors");
    let variants = golden["variants"].as_object().expect("an object");
    assert_eq!(variants.len(), expected.len());
    for (name, variant) in variants {
        let folder = tempfile::tempdir().expect("a folder");
        let weights = format!("{}/model.safetensors", variant["base"].as_str().expect("a model"));
        fs::copy(path(&weights), folder.path().join("model.safetensors")).expect("a copy");
        fs::write(folder.path().join("config.json"), variant["config"].to_string()).expect("a file");
        let decoder = Decoder::load(folder.path(), &Device::flex()).expect("the model loads");
        let found = logits(&decoder, decoder.hidden(batch(std::slice::from_ref(&ids), ids.len(), |_| 0)));
        assert_close(name, &found.concat(), &expected[name]);
    }
}

#[test]
fn attention_probabilities_are_those_of_transformers() {
    for name in MODELS {
        let (golden, decoder) = (Golden::of(name), load(name));
        let longest = golden.facts.sequences.last().expect("there are sequences");
        let layers = decoder.attention(longest, &golden.facts.attention_rows).expect("probabilities");
        assert_eq!(layers.len(), 2, "{name}");
        for (layer, found) in layers.into_iter().enumerate() {
            let [_, rows, tokens] = found.dims();
            assert_eq!((rows, tokens), (golden.facts.attention_rows.len(), longest.len()), "{name}");
            let found = found.try_into_vec_as::<f32>().expect("numbers");
            let (largest, _) = differences(&found, golden.tensor(&format!("attention.{layer}")));
            assert!(largest < PROBABILITY, "{name} layer {layer}: {largest}");
        }
    }
}

#[test]
fn a_mistral_whose_file_names_no_window_has_that_of_transformers() {
    let text = fs::read(path("tiny-mistral/config.json")).expect("golden configuration");
    let mut config: Value = serde_json::from_slice(&text).expect("JSON");
    let mut window = |change: fn(&mut Map<String, Value>)| {
        change(config.as_object_mut().expect("an object"));
        let config = DecoderConfig::from_value(config.clone(), Path::new("config.json"));
        let layers = config.expect("a configuration").layers;
        assert_eq!(layers.len(), 2);
        assert!(layers[0] == layers[1]);
        layers[0].window
    };
    assert_eq!(window(|_| ()), Some(6));
    assert_eq!(window(|keys| keys["sliding_window"] = Value::Null), None);
    assert_eq!(window(|keys| drop(keys.remove("sliding_window"))), Some(4096));
}
