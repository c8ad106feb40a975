//! Real tokenizers and the Dolly data set, where the folder of real data is present.

use std::sync::atomic::AtomicBool;

use serde_json::json;
use softshard_labels::SequenceDataset;
use softshard_prepare::{Split, Tokenizer, run};

use crate::sequences::labelled;
use crate::support::{Workshop, data_config, real_data, tokenizer_config};

/// Separates the test strings of llama.cpp's vocabulary files.
const SEPARATOR: &str = "\n__ggml_vocab_test__\n";
/// The published totals have three digits, and 15 duplicates are not in ours.
const ROUNDED_TOTAL: f64 = 5e-3;

#[test]
fn real_tokenizers_give_the_published_ids() {
    let Some(folder) = real_data() else { return };
    for (tokenizer, vectors) in [("gpt2", "ggml-vocab-gpt-2"), ("qwen2.5", "ggml-vocab-qwen2")] {
        let tokenizer = Tokenizer::load(&folder.join("tokenizers").join(tokenizer)).unwrap();
        let read = |ending: &str| {
            fs_err::read_to_string(folder.join(format!("tokenizers/vectors/{vectors}.gguf.{ending}")))
                .unwrap()
        };
        let (texts, ids) = (read("inp"), read("out"));
        let texts: Vec<&str> = texts.split(SEPARATOR).collect();
        let ids: Vec<&str> = ids.lines().collect();
        assert!(ids.len() > 20 && texts.len() >= ids.len());
        for (text, ids) in texts.iter().zip(ids) {
            let expected: Vec<i32> = ids.split_whitespace().map(|id| id.parse().unwrap()).collect();
            let found = tokenizer.encode(text).unwrap();
            assert_eq!(found, expected, "{text:?}");
            assert_eq!(tokenizer.decode(&found).unwrap(), *text);
        }
    }
}

#[test]
fn special_ids_come_from_the_neighbours() {
    let Some(folder) = real_data() else { return };
    let load = |path: &str| Tokenizer::load(&folder.join(path)).unwrap();
    let gpt2 = load("tokenizers/gpt2");
    assert_eq!(
        (gpt2.bos(), gpt2.eos(), gpt2.pad(), gpt2.vocab_size()),
        (Some(50256), Some(50256), None, 50257)
    );
    let qwen = load("tokenizers/qwen2.5/tokenizer.json");
    assert_eq!((qwen.eos(), qwen.pad(), qwen.vocab_size()), (Some(151643), Some(151643), 151665));
    assert!(!qwen.adds_bos());
    assert_eq!(qwen.stop_ids(), [151643, 151645]);
    let stories = load("stories260k/hf");
    assert_eq!((stories.bos(), stories.eos(), stories.vocab_size()), (Some(1), Some(2), 512));
    assert!(stories.adds_bos());
    assert_eq!(stories.stop_ids(), [2, 1]);
    let difference = qwen.fingerprint().difference(gpt2.fingerprint()).unwrap();
    assert!(difference.contains("vocab_size: expected 151665, found 50257"), "{difference}");
}

#[test]
fn qwen_labels_the_answer_and_the_end_of_its_turn() {
    let Some(folder) = real_data() else { return };
    let workshop = Workshop::new();
    let row = json!({ "instruction": "Say hello.", "context": "To all.", "response": "Hello!" }).to_string();
    let data = data_config(json!({ "instructions": workshop.file("a.jsonl", row), "template": "chat" }));
    let path = folder.join("tokenizers/qwen2.5");
    run(&data, &tokenizer_config(&path), &workshop.path("sequences"), &AtomicBool::new(false), &()).unwrap();
    let sequence = workshop.sequences(Split::Train).remove(0);
    let tokenizer = Tokenizer::load(&path).unwrap();
    assert_eq!(labelled(&sequence, &tokenizer), "Hello!<|im_end|>");
    let text = tokenizer.decode_all(&sequence.input_ids).unwrap();
    let expected =
        "<|im_start|>user\nSay hello.\n\nTo all.<|im_end|>\n<|im_start|>assistant\nHello!<|im_end|>";
    assert!(text.ends_with(expected), "{text}");
}

#[test]
fn stories_begin_and_end_with_their_tokens() {
    let Some(folder) = real_data() else { return };
    let workshop = Workshop::new();
    let data =
        data_config(json!({ "text": folder.join("corpora/tinystories_sample_2MiB.txt"), "max_tokens": 512 }));
    let config = tokenizer_config(&folder.join("stories260k/hf"));
    let summary = run(&data, &config, &workshop.path("sequences"), &AtomicBool::new(false), &()).unwrap();
    assert_eq!((summary.rows, summary.train.longest_tokens), (2317, 512));
    let sequence =
        workshop.sequences(Split::Train).into_iter().find(|one| one.input_ids.len() < 512).unwrap();
    assert_eq!((sequence.input_ids[0], *sequence.input_ids.last().unwrap()), (1, 2));
    let text = Tokenizer::load(&config.path).unwrap().decode(&sequence.input_ids).unwrap();
    let story = fs_err::read_to_string(&data.text[0]).unwrap();
    assert!(story.contains(text.trim()), "{text}");
}

#[test]
fn dolly_has_the_known_totals() {
    let Some(folder) = real_data() else { return };
    let out_dir = tempfile::tempdir().unwrap();
    let data = data_config(json!({
        "instructions": folder.join("dolly/databricks-dolly-15k.jsonl"),
        "max_prompt_tokens": 50_000,
        "max_tokens": 100_000,
        "split": { "valid_rows": 1000, "seed": 10 },
    }));
    let config = tokenizer_config(&folder.join("tokenizers/qwen2.5"));
    let summary = run(&data, &config, out_dir.path(), &AtomicBool::new(false), &()).unwrap();
    eprintln!("{summary}");
    assert_eq!(summary.rows, 15_011);
    assert_eq!((summary.dropped.total(), summary.dropped.duplicate), (15, 15));
    assert_eq!((summary.train.cut, summary.valid.sequences), (0, 1000));
    // The published totals are without the end-of-sequence token of each row.
    let sequences = summary.train.sequences + summary.valid.sequences;
    let labelled = summary.train.labelled_tokens + summary.valid.labelled_tokens - sequences;
    let tokens = summary.tokens() - sequences;
    let close = |found: u64, expected: f64| (found as f64 / expected - 1.0).abs() < ROUNDED_TOTAL;
    assert!(close(tokens, 3.08e6) && close(labelled, 1.20e6), "{tokens} {labelled}");
    let mut lengths = Vec::new();
    for split in ["train", "valid"] {
        let sequences = SequenceDataset::open(out_dir.path().join(split)).unwrap().read_all().unwrap();
        lengths.extend(sequences.iter().map(|sequence| sequence.input_ids.len() - 1));
    }
    let over = |limit: usize| lengths.iter().filter(|length| **length > limit).count();
    // Published: 1,026 and 223; two and one of them are among the duplicates.
    assert_eq!((over(512), over(1024)), (1024, 222));
}
