//! Every family, tiny and random: files, padding, packing, streaming, gradients by layer.

use std::path::Path;

use burn::tensor::{Device, Int, Tensor, TensorData};
use serde_json::{Value, json};
use softshard_model::{
    Arrangement, Bits, Decoder, DecoderConfig, Layout, LoadOptions, LoraConfig, Precision, Residency,
    Trainable,
};

/// The same sums in another order.
const SUM_ORDER: f32 = 1e-5;

/// Of every family what makes it different from the others.
fn families() -> Vec<(&'static str, Value)> {
    let llama = json!({
        "model_type": "llama", "vocab_size": 61, "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 3,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "initializer_range": 0.3,
        "max_position_embeddings": 600,
    });
    let with = |changes: Value| {
        let mut config = llama.clone();
        let changes = changes.as_object().unwrap().clone();
        config.as_object_mut().unwrap().extend(changes);
        config
    };
    let llama3 = json!({ "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16 });
    let opt = json!({
        "model_type": "opt", "vocab_size": 61, "hidden_size": 24, "ffn_dim": 40, "num_hidden_layers": 3,
        "num_attention_heads": 4, "initializer_range": 0.3, "init_std": 0.3, "max_position_embeddings": 600,
    });
    let mut narrow = opt.clone();
    narrow["word_embed_proj_dim"] = 16.into();
    narrow["do_layer_norm_before"] = false.into();
    let neox = json!({
        "model_type": "gpt_neox", "vocab_size": 61, "hidden_size": 32, "intermediate_size": 40,
        "num_hidden_layers": 3, "num_attention_heads": 4, "rotary_pct": 0.25, "initializer_range": 0.3,
    });
    let mut sequential = neox.clone();
    sequential["use_parallel_residual"] = false.into();
    vec![
        ("llama", with(json!({ "rope_scaling": llama3, "tie_word_embeddings": true, "mlp_bias": true }))),
        ("mistral", with(json!({ "model_type": "mistral", "sliding_window": 5 }))),
        ("qwen2", with(json!({ "model_type": "qwen2" }))),
        ("qwen3", with(json!({ "model_type": "qwen3" }))),
        ("opt", opt),
        ("narrow opt", narrow),
        ("gpt_neox", neox),
        ("sequential gpt_neox", sequential),
        (
            "gpt2",
            json!({ "model_type": "gpt2", "vocab_size": 61, "n_embd": 24, "n_layer": 3, "n_head": 4,
                "n_positions": 600, "initializer_range": 0.3 }),
        ),
    ]
}

fn random(config: Value, seed: u64) -> Decoder {
    let config = DecoderConfig::from_value(config, Path::new("config.json")).unwrap();
    Decoder::random(config, seed, &Device::flex())
}

fn ids(rows: &[Vec<i32>]) -> Tensor<2, Int> {
    Tensor::from_data(TensorData::new(rows.concat(), [rows.len(), rows[0].len()]), &Device::flex())
}

fn largest(values: &[f32]) -> f32 {
    values.iter().fold(0.0, |largest, value| largest.max(value.abs()))
}

fn values<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.try_into_vec_as::<f32>().unwrap()
}

fn text(length: usize, salt: usize) -> Vec<i32> {
    (0..length).map(|index| i32::try_from((index * 7 + salt * 13 + index * index) % 61).unwrap()).collect()
}

fn far_apart(left: &[f32], right: &[f32]) -> f32 {
    assert_eq!(left.len(), right.len());
    left.iter().zip(right).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

/// Hidden states of one text alone, `[T, D]`.
fn alone(decoder: &Decoder, text: &[i32]) -> Vec<f32> {
    values(decoder.hidden(ids(&[text.to_vec()])).unwrap())
}

/// An adapter on all maps whose B is not zero.
fn with_lora(mut decoder: Decoder, dropout: f64) -> Decoder {
    let target_modules = vec!["all-linear".into()];
    let config = LoraConfig { r: 2, alpha: 4.0, dropout, target_modules, rslora: false };
    decoder.attach_lora(&config, 5).unwrap();
    decoder.train(Trainable::Adapter);
    for (index, (_, tensor)) in decoder.parameters_mut().into_iter().enumerate() {
        let [rows, columns] = tensor.dims();
        let values: Vec<f32> =
            (0..rows * columns).map(|i| ((i * 37 + index * 11) % 17) as f32 / 34.0 - 0.25).collect();
        let values = Tensor::from_data(TensorData::new(values, [rows, columns]), &Device::flex());
        *tensor = values.autodiff().require_grad();
    }
    decoder
}

#[test]
fn a_saved_model_computes_the_same() {
    for (name, config) in families() {
        let folder = tempfile::tempdir().unwrap();
        let decoder = random(config, 3);
        decoder.save(folder.path()).unwrap();
        let loaded = Decoder::load(folder.path(), &Device::flex()).unwrap();
        assert_eq!(alone(&decoder, &text(11, 1)), alone(&loaded, &text(11, 1)), "{name}");
    }
}

#[test]
fn padding_and_packing_do_not_matter() {
    for (name, config) in families() {
        let decoder = random(config, 4);
        let width = decoder.config().embedding_size;
        let (one, two) = (text(9, 1), text(14, 2));
        let expected = [alone(&decoder, &one), alone(&decoder, &two)];

        let padded = [[vec![0; 5], one.clone()].concat(), two.clone()];
        let hidden = decoder.hidden_in(ids(&padded), &Layout::left_padded(&[9, 14], 14)).unwrap();
        let hidden = values(hidden);
        let rows = [&hidden[5 * width..14 * width], &hidden[14 * width..]];
        for (found, expected) in rows.into_iter().zip(&expected) {
            assert!(far_apart(found, expected) < SUM_ORDER, "{name}: left padding");
        }

        let packed = [[two.clone(), one.clone(), vec![0; 3]].concat()];
        let hidden = decoder.hidden_in(ids(&packed), &Layout::packed(&[vec![14, 9]], 26)).unwrap();
        let hidden = values(hidden);
        let rows = [&hidden[14 * width..23 * width], &hidden[..14 * width]];
        for (found, expected) in rows.into_iter().zip(&expected) {
            assert!(far_apart(found, expected) < SUM_ORDER, "{name}: packing");
        }
    }
}

#[test]
fn several_tiles_are_one_attention() {
    for (name, config) in families() {
        let decoder = random(config, 5);
        let width = decoder.config().embedding_size;
        let long = text(530, 3);
        let whole = alone(&decoder, &long);
        for length in [1, 255, 256, 257, 513] {
            let prefix = alone(&decoder, &long[..length]);
            assert!(far_apart(&prefix, &whole[..length * width]) < SUM_ORDER, "{name}: {length} tokens");
        }
    }
}

/// `hidden · headᵀ`, of numbers that are f32 already.
fn product(hidden: Tensor<2>, head: &Tensor<2>) -> Tensor<2> {
    hidden.matmul(head.clone().transpose())
}

#[test]
fn generation_equals_reading_again() {
    for (name, config) in families() {
        let decoder = with_lora(random(config, 6), 0.0).frozen();
        let prompts = [text(1, 1), text(17, 2), text(6, 3)];
        let found = decoder.generate(&prompts, 12, &[], product).unwrap();
        for (prompt, found) in prompts.iter().zip(found) {
            let mut tokens = prompt.clone();
            for _ in 0..12 {
                let hidden = decoder.hidden(ids(std::slice::from_ref(&tokens))).unwrap();
                let last = hidden.narrow(1, tokens.len() - 1, 1).squeeze_dim::<2>(1);
                let logits = values(last.matmul(decoder.head().transpose()));
                let best = (0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b])).unwrap();
                tokens.push(i32::try_from(best).unwrap());
            }
            assert_eq!(found, tokens[prompt.len()..], "{name}");
        }
    }
}

#[test]
fn attention_probabilities_are_those_of_what_is_seen() {
    for (name, config) in families() {
        let window = config.get("sliding_window").and_then(Value::as_u64).unwrap_or(600);
        let decoder = random(config, 7);
        let found = decoder.attention(&text(12, 1), &[0, 5, 11]).unwrap();
        assert_eq!(found.len(), 3, "{name}");
        for layer in found {
            assert_eq!(layer.dims(), [4, 3, 12], "{name}");
            for (row, line) in values(layer).chunks(12).enumerate() {
                let token = [0, 5, 11][row % 3];
                let seen = |key: usize| key <= token && token - key < usize::try_from(window).unwrap();
                assert!((line.iter().sum::<f32>() - 1.0).abs() < SUM_ORDER, "{name}");
                assert!((0..12).all(|key| (line[key] > 0.0) == seen(key)), "{name}: {line:?}");
            }
        }
    }
}

const ARRANGEMENTS: [Arrangement; 3] = [Arrangement::Padded, Arrangement::Ragged, Arrangement::Packed];

/// Token ids of sequences, their labelled positions, and how they lie.
type Batch<'a> = (&'a [&'a [i32]], &'a [&'a [i32]], Arrangement);

/// Loss and gradients of a batch, over one graph.
fn whole_graph(decoder: &Decoder, (rows, positions, arrangement): Batch) -> (f32, Vec<Vec<f32>>) {
    let mut decoder = decoder.clone();
    let loss = objective(decoder.hidden_before(rows, positions, arrangement).unwrap(), decoder.head());
    let value = loss.clone().into_scalar::<f32>();
    let found = loss.backward();
    let gradient = |(_, parameter): (String, &mut Tensor<2>)| values(parameter.grad(&found).unwrap());
    (value, decoder.parameters_mut().into_iter().map(gradient).collect())
}

/// Depends on hidden states and head.
fn objective(hidden: Tensor<2>, head: Tensor<2>) -> Tensor<1> {
    hidden.matmul(head.transpose()).tanh().square().sum()
}

fn by_layer(decoder: &Decoder, (rows, positions, arrangement): Batch) -> (f32, Vec<Vec<f32>>) {
    let (gradients, value) = decoder
        .backward_by_layer(rows, positions, arrangement, |hidden, head| {
            let loss = objective(hidden, head);
            (loss.clone(), loss.into_scalar::<f32>())
        })
        .unwrap();
    (value, gradients.into_iter().map(values).collect())
}

#[test]
fn gradients_by_layer_and_streamed_are_those_of_the_whole_bit_for_bit() {
    let texts = [text(13, 1), text(300, 2), text(4, 3)];
    let rows: Vec<&[i32]> = texts.iter().map(Vec::as_slice).collect();
    let positions: [&[i32]; 3] = [&[1, 5, 12], &[7, 299], &[3]];
    for (name, config) in families() {
        let base = random(config, 8);
        let folder = tempfile::tempdir().unwrap();
        base.save(folder.path()).unwrap();
        let streamed = LoadOptions { residency: Residency::Streamed, ..LoadOptions::default() };
        let streamed = Decoder::load_with(folder.path(), &Device::flex(), &streamed).unwrap();
        assert!(streamed.is_streamed() && streamed.parameter_count() == base.parameter_count());
        assert!(alone(&streamed, &text(20, 4)) == alone(&base, &text(20, 4)), "{name}");

        for dropout in [0.0, 0.3] {
            let [mut resident, mut streamed] =
                [&base, &streamed].map(|decoder| with_lora(decoder.clone(), dropout));
            resident.set_dropout_seed(Some(9));
            streamed.set_dropout_seed(Some(9));
            for arrangement in ARRANGEMENTS {
                let batch: Batch = (&rows, &positions, arrangement);
                let expected = whole_graph(&resident, batch);
                assert!(by_layer(&resident, batch) == expected, "{name}: resident, {arrangement:?}");
                assert!(by_layer(&streamed, batch) == expected, "{name}: streamed, {arrangement:?}");
            }
        }
    }
}

#[test]
fn arrangements_give_the_same_states_and_gradients() {
    // Several tiles of queries, of which some see the end of one text and the start of the next.
    let texts = [text(13, 1), text(300, 2), text(4, 3), text(230, 4)];
    let rows: Vec<&[i32]> = texts.iter().map(Vec::as_slice).collect();
    let positions: [&[i32]; 4] = [&[1, 5, 12], &[7, 299], &[3], &[]];
    for (name, config) in families() {
        for trainable in [Trainable::Adapter, Trainable::Model] {
            let mut decoder = with_lora(random(config.clone(), 8), 0.0);
            decoder.train(trainable);
            let states = |arrangement| values(decoder.hidden_before(&rows, &positions, arrangement).unwrap());
            let [expected, others @ ..] =
                ARRANGEMENTS.map(|arrangement| whole_graph(&decoder, (&rows, &positions, arrangement)));
            // Some gradients are zero but for roundings, as those of the biases of keys are.
            let floor = 1e-2 * largest(&expected.1.concat());
            for (found, arrangement) in others.into_iter().zip(&ARRANGEMENTS[1..]) {
                let place = format!("{name}: {arrangement:?}, {trainable:?}");
                let error = far_apart(&states(*arrangement), &states(Arrangement::Padded));
                assert!(error < SUM_ORDER, "{place}: states differ by {error}");
                assert!((found.0 - expected.0).abs() <= SUM_ORDER * expected.0.abs(), "{place}");
                for (found, expected) in found.1.iter().zip(&expected.1) {
                    let (error, largest) = (far_apart(found, expected), largest(expected).max(floor));
                    assert!(error <= SUM_ORDER * largest, "{place}: {error} where the largest is {largest}");
                }
            }
        }
    }
}

#[test]
fn a_whole_model_learns_by_layer_as_in_one_graph() {
    let texts = [text(13, 1), text(20, 2)];
    let rows: Vec<&[i32]> = texts.iter().map(Vec::as_slice).collect();
    let positions: [&[i32]; 2] = [&[1, 5, 12], &[7, 19]];
    for (name, config) in families() {
        let mut decoder = random(config, 9);
        decoder.train(Trainable::Model);
        let batch: Batch = (&rows, &positions, Arrangement::Padded);
        let (loss, expected) = whole_graph(&decoder, batch);
        let (same, found) = by_layer(&decoder, batch);
        assert_eq!(loss, same, "{name}");
        for (found, expected) in found.iter().zip(&expected) {
            let largest = largest(expected);
            // A tied head's gradient is summed with the embedding's in another order.
            let error = far_apart(found, expected);
            assert!(error <= SUM_ORDER * largest, "{name}: {error} where the largest is {largest}");
        }
    }
}

#[test]
fn a_block_of_batches_gives_what_each_gives() {
    for (name, config) in families() {
        let decoder = random(config, 10);
        let texts = [text(13, 1), text(20, 2), text(9, 3)];
        let batch = |rows: &[usize]| {
            let sequences: Vec<&[i32]> = rows.iter().map(|&row| texts[row].as_slice()).collect();
            let positions: Vec<&[i32]> = rows.iter().map(|_| &[1, 3, 8][..]).collect();
            (sequences, positions)
        };
        let batches = [batch(&[0, 2]), batch(&[1])];
        for in_parallel in [false, true] {
            let found = decoder.hidden_before_each(&batches, in_parallel).unwrap();
            for ((sequences, positions), found) in batches.iter().zip(found) {
                let expected =
                    values(decoder.hidden_before(sequences, positions, Arrangement::Padded).unwrap());
                assert!(values(found) == expected, "{name}");
            }
        }
    }
}

#[test]
fn bf16_is_near() {
    // bf16 keeps 8 significant bits; three layers of sums add some of their errors up.
    const BF16: f32 = 0.03;
    for (name, config) in families() {
        let folder = tempfile::tempdir().unwrap();
        let decoder = random(config, 11);
        decoder.save(folder.path()).unwrap();
        let options = LoadOptions { precision: Precision::Bf16, ..LoadOptions::default() };
        let half = Decoder::load_with(folder.path(), &Device::flex(), &options).unwrap();
        let (expected, found) = (alone(&decoder, &text(30, 1)), alone(&half, &text(30, 1)));
        let size = (expected.iter().map(|x| x * x).sum::<f32>() / expected.len() as f32).sqrt();
        let off =
            found.iter().zip(&expected).map(|(a, b)| (a - b).powi(2)).sum::<f32>() / expected.len() as f32;
        let error = off.sqrt() / size;
        assert!(error > 0.0 && error < BF16, "{name}: {error}");
    }
}

#[test]
fn quantised_layers_are_near_and_learn_by_layer_as_in_one_graph() {
    let texts = [text(13, 1), text(20, 2)];
    let rows: Vec<&[i32]> = texts.iter().map(Vec::as_slice).collect();
    let positions: [&[i32]; 2] = [&[1, 5, 12], &[7, 19]];
    for (name, config) in families() {
        let folder = tempfile::tempdir().unwrap();
        let decoder = random(config, 12);
        decoder.save(folder.path()).unwrap();
        let expected = alone(&decoder, &text(30, 1));
        let size = expected.iter().map(|x| x * x).sum::<f32>().sqrt();
        // Relative errors of the weights are 0.5 and 7.5 %; three layers and their softmax multiply them.
        for (bits, most) in [(Bits::Eight, 0.06), (Bits::Four, 0.8)] {
            let options = LoadOptions { quantise: Some(bits), ..LoadOptions::default() };
            let coded = Decoder::load_with(folder.path(), &Device::flex(), &options).unwrap();
            assert!(!coded.can_train_whole() && coded.save(folder.path()).is_err());
            let found = alone(&coded, &text(30, 1));
            let error = found.iter().zip(&expected).map(|(a, b)| (a - b).powi(2)).sum::<f32>().sqrt() / size;
            assert!(error > 0.0 && error < most, "{name}: {error} with {bits:?}");
            let coded = with_lora(coded, 0.0);
            let batch: Batch = (&rows, &positions, Arrangement::Padded);
            assert!(by_layer(&coded, batch) == whole_graph(&coded, batch), "{name} with {bits:?}");
        }
    }
}

#[test]
fn an_answer_ends_with_the_positions_and_not_with_its_neighbours() {
    let config = json!({ "model_type": "gpt2", "vocab_size": 61, "n_embd": 24, "n_layer": 1, "n_head": 4,
        "n_positions": 20, "initializer_range": 0.3 });
    let decoder = random(config, 13);
    let prompts = [text(17, 1), text(5, 2), text(20, 3)];
    let found = decoder.generate(&prompts, 10, &[], product).unwrap();
    // The last token that is read gives one more.
    assert_eq!(found.iter().map(Vec::len).collect::<Vec<_>>(), [4, 10, 1]);
    for (prompt, found) in prompts.iter().zip(found) {
        assert_eq!(decoder.generate(std::slice::from_ref(prompt), 10, &[], product).unwrap(), [found]);
    }
}

#[test]
fn long_texts_make_their_masks_tile_by_tile() {
    let config = json!({
        "model_type": "mistral", "vocab_size": 61, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1,
        "num_attention_heads": 1, "sliding_window": 300, "initializer_range": 0.5,
    });
    let decoder = random(config, 14);
    // The masks of 4,200 tokens have 9.4 M numbers, over what is kept; those of 1,000 are kept.
    let long = text(4_200, 1);
    let whole = alone(&decoder, &long);
    let kept = alone(&decoder, &long[..1_000]);
    assert!(far_apart(&whole[..kept.len()], &kept) < SUM_ORDER);
}
