//! Scores of small encoders with random weights, as transformers gives them: tests/peers/golden_scorers.py.

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use burn::tensor::{Device, Tensor};
use serde_json::Value;
use softshard_e2e::root;
use softshard_model::Decoder;
use softshard_scorers::{Error, Judge, Kind, OpenOptions, Pair, Score, Scorer, Verdict};

/// Sums in another order, and their exponentials.
const SAME: f64 = 1e-4;

fn golden() -> PathBuf {
    root().join("tests/peers/golden/scorers")
}

fn expected() -> Value {
    let text = std::fs::read_to_string(golden().join("expected.json")).expect("the golden file");
    serde_json::from_str(&text).expect("JSON")
}

fn list(value: &Value) -> &[Value] {
    value.as_array().expect("a list")
}

fn text(value: &Value) -> &str {
    value.as_str().expect("a text")
}

fn number(value: &Value) -> f64 {
    value.as_f64().expect("a number")
}

fn pairs(expected: &Value) -> Vec<Pair<'_>> {
    let all = list(&expected["pairs"]).iter();
    all.map(|pair| Pair {
        document: text(&pair["document"]),
        answer: text(&pair["answer"]),
        question: pair["question"].as_str(),
    })
    .collect()
}

/// A folder of the golden ones; NAME.OTHER is NAME with the configuration of that name.
fn folder(name: &str, kept: &tempfile::TempDir) -> PathBuf {
    let Some((base, other)) = name.split_once('.') else { return golden().join(name) };
    let to = kept.path().join(name);
    std::fs::create_dir_all(&to).expect("a folder");
    let from = golden();
    std::fs::copy(from.join(base).join("model.safetensors"), to.join("model.safetensors")).expect("a copy");
    std::fs::copy(from.join(format!("{base}.{other}-config.json")), to.join("config.json")).expect("a copy");
    to
}

fn open(folder: &Path, kind: &str, tokenizer: &str) -> Result<Scorer, Error> {
    let tokenizer = Some(golden().join("tokenizers").join(tokenizer));
    let kind = Some(kind.parse::<Kind>().expect("a kind"));
    Scorer::open(folder, &OpenOptions { kind, tokenizer }, &Device::flex())
}

fn score(scorer: &Scorer, pairs: &[Pair<'_>]) -> Vec<Score> {
    let verdicts = scorer.score(pairs, &AtomicBool::new(false)).expect("scores");
    let score = |verdict| match verdict {
        Verdict::Scored(score) => score,
        other => panic!("{other:?}"),
    };
    verdicts.into_iter().map(score).collect()
}

#[test]
fn every_scorer_gives_what_transformers_gives() {
    let (expected, kept) = (expected(), tempfile::tempdir().expect("a folder"));
    let pairs = pairs(&expected);
    let cases = list(&expected["cases"]);
    assert_eq!(cases.len(), 10);
    for case in cases {
        let (name, kind) = (text(&case["folder"]), text(&case["kind"]));
        let scorer = open(&folder(name, &kept), kind, text(&case["tokenizer"])).expect("a scorer");
        let scores = list(&case["scores"]);
        compare(&format!("{name} {kind}"), &score(&scorer, &pairs[..scores.len()]), scores);
    }
    // The same model in the words of published folders.
    let scorer =
        open(&folder("modernbert-tokens.older", &kept), "lettuce-detect", "modernbert").expect("a scorer");
    compare("older", &score(&scorer, &pairs), list(&cases[4]["scores"]));
}

fn compare(place: &str, found: &[Score], expected: &[Value]) {
    assert_eq!(found.len(), expected.len(), "{place}");
    for (index, (found, expected)) in found.iter().zip(expected).enumerate() {
        let place = format!("{place}, pair {index}");
        let (own, peers) = (found.consistent, number(&expected["consistent"]));
        assert!((own - peers).abs() < SAME, "{place}: {own}, transformers {peers}");
        assert_eq!(Some(found.chunks as u64), expected["chunks"].as_u64(), "{place}");
        let spans = expected["spans"].as_array().map(Vec::as_slice).unwrap_or_default();
        assert_eq!(found.spans.len(), spans.len(), "{place}");
        for (span, expected) in found.spans.iter().zip(spans) {
            let place_of = (expected["start"].as_u64(), expected["end"].as_u64());
            assert_eq!((Some(span.start as u64), Some(span.end as u64)), place_of, "{place}");
            let confidence = number(&expected["confidence"]);
            assert!((span.confidence - confidence).abs() < SAME, "{place}: {span:?}, {confidence}");
        }
    }
}

/// The same alone and in company, and the same again.
#[test]
fn a_score_does_not_depend_on_its_batch() {
    let expected = expected();
    let pairs = pairs(&expected);
    for case in [&expected["cases"][4], &expected["cases"][9]] {
        let scorer =
            open(&golden().join(text(&case["folder"])), text(&case["kind"]), text(&case["tokenizer"]))
                .expect("opens");
        let pairs = &pairs[..list(&case["scores"]).len()];
        let together = score(&scorer, pairs);
        assert_eq!(together, score(&scorer, pairs));
        for (pair, of_all) in pairs.iter().zip(&together) {
            let alone = &score(&scorer, std::slice::from_ref(pair))[0];
            assert!((alone.consistent - of_all.consistent).abs() < 1e-5);
            assert_eq!(alone.spans.len(), of_all.spans.len());
        }
    }
}

#[test]
fn a_judge_says_yes_as_often_as_transformers() {
    let expected = expected();
    let decoder =
        Decoder::load(&root().join("tests/peers/golden/tiny-llama"), &Device::flex()).expect("a model");
    let logits = |hidden: Tensor<2>, head: &Tensor<2>| hidden.matmul(head.clone().transpose());
    for row in list(&expected["judge"]) {
        let ids = |key: &str| -> Vec<i32> {
            let id = |id: &Value| i32::try_from(id.as_i64().expect("an id")).expect("an id");
            list(&row[key]).iter().map(id).collect()
        };
        let (prompt, yes) = (ids("prompt"), ids("yes"));
        let judge = Judge {
            decoder: &decoder,
            count: &|text| Ok(text.len()),
            prompt: &|_, _| Ok(prompt.clone()),
            yes: &yes,
            logits: &logits,
        };
        let pair = Pair { document: "a", answer: "b", question: None };
        let empty = Pair { answer: " ", ..pair };
        let verdicts = judge.score(&[empty, pair], &AtomicBool::new(false)).expect("verdicts");
        let [Verdict::Empty, Verdict::Scored(score)] = verdicts.as_slice() else { panic!("{verdicts:?}") };
        let (own, peers) = (score.consistent, number(&row["consistent"]));
        assert!((own - peers).abs() < SAME, "{own}, transformers {peers}");
    }
}

#[test]
fn what_is_cut_off_is_said() {
    let long = "one word after another and no end ".repeat(400);
    let pair = Pair { document: &long, answer: "It goes on.", question: None };
    for (name, kind, tokenizer, is_cut) in [
        ("roberta", "mini-check", "roberta", true),
        ("roberta", "fact-kb", "roberta", true),
        ("modernbert-tokens", "lettuce-detect", "modernbert", true),
        ("t5", "mini-check", "t5", true),
        ("hhem", "hhem", "t5", false),
    ] {
        let scorer = open(&golden().join(name), kind, tokenizer).expect("a scorer");
        let score = &score(&scorer, &[pair])[0];
        assert_eq!((score.cut, score.chunks), (is_cut, 1), "{name} {kind}");
    }
    let scorer = open(&golden().join("hhem"), "hhem", "t5").expect("a scorer");
    let longer = long.repeat(6);
    let pair = Pair { document: &longer, answer: "It goes on.", question: None };
    let verdicts = scorer.score(&[pair], &AtomicBool::new(false)).expect("verdicts");
    assert_eq!(verdicts, [Verdict::TooLong]);
    // An answer that leaves no room for a document has no score.
    let scorer = open(&golden().join("modernbert-tokens"), "lettuce-detect", "modernbert").expect("a scorer");
    let pair = Pair { document: "Short.", answer: &long, question: None };
    let verdicts = scorer.score(&[pair], &AtomicBool::new(false)).expect("verdicts");
    assert_eq!(verdicts, [Verdict::TooLong]);
    // MiniCheck cuts the document and never the claim behind it: another claim is another score.
    let scorer = open(&golden().join("roberta"), "mini-check", "roberta").expect("a scorer");
    let pairs = ["It goes on.", "Nobody knew why students read old books."].map(|answer| Pair {
        document: &long,
        answer,
        question: None,
    });
    let scores = score(&scorer, &pairs);
    assert!((scores[0].consistent - scores[1].consistent).abs() > 1e-3, "{scores:?}");
}

#[test]
fn nothing_is_a_score_of_nothing() {
    let scorer = open(&golden().join("hhem"), "hhem", "t5").expect("a scorer");
    let pair = Pair { document: "A text.", answer: " \n", question: None };
    let stop = AtomicBool::new(false);
    assert_eq!(scorer.score(&[pair], &stop).expect("a verdict"), [Verdict::Empty]);
    assert!(scorer.score(&[], &stop).expect("no verdict").is_empty());
    let bad = Pair { document: " ", answer: "An answer.", ..pair };
    let error = scorer.score(&[pair, bad], &stop).expect_err("no document").to_string();
    assert_eq!(error, "pair 2: document: expected text, found none");
    let asked = Pair { question: Some("Why?"), answer: "So.", ..pair };
    let error = scorer.score(&[asked], &stop).expect_err("a question").to_string();
    assert!(error.contains("pair 1: question: expected none, or lettuce-detect"), "{error}");
    let answered = Pair { answer: "An answer.", ..pair };
    let error = scorer.score(&[answered], &AtomicBool::new(true)).expect_err("stopped");
    assert!(matches!(error, Error::Interrupted), "{error}");
}

#[test]
fn a_foreign_folder_is_named() {
    let kept = tempfile::tempdir().expect("a folder");
    let changed = |name: &str, key: &str, value: Value| {
        let to = kept.path().join(format!("{name}-{key}"));
        std::fs::create_dir_all(&to).expect("a folder");
        let from = golden().join(name);
        std::fs::copy(from.join("model.safetensors"), to.join("model.safetensors")).expect("a copy");
        let config = std::fs::read_to_string(from.join("config.json")).expect("a configuration");
        let mut config: Value = serde_json::from_str(&config).expect("JSON");
        config[key] = value;
        std::fs::write(to.join("config.json"), config.to_string()).expect("it is written");
        to
    };
    let refused = |folder: &Path, kind: Option<Kind>, tokenizer: &str| {
        let tokenizer = Some(golden().join("tokenizers").join(tokenizer));
        let opened = Scorer::open(folder, &OpenOptions { kind, tokenizer }, &Device::flex());
        opened.err().expect("refused").to_string()
    };
    let cases: [(PathBuf, Option<Kind>, &str, &[&str]); 16] = [
        (
            golden().join("roberta"),
            None,
            "roberta",
            &["expected a kind: mini-check, fact-kb, nli", "`--kind`"],
        ),
        (
            golden().join("roberta"),
            Some(Kind::Hhem),
            "roberta",
            &["a scorer of kind hhem, found one of mini-check"],
        ),
        (
            golden().join("roberta"),
            Some(Kind::Nli),
            "roberta",
            &["`id2label`: expected a class called `entailment`"],
        ),
        (golden().join("roberta-nli"), Some(Kind::MiniCheck), "roberta", &["expected 2 classes", "found 3"]),
        (
            golden().join("roberta"),
            Some(Kind::AlignScore),
            "roberta",
            &["`tri_layer.weight`", "no such tensor"],
        ),
        (golden().join("nowhere"), None, "roberta", &["nowhere"]),
        (
            root().join("tests/peers/golden/tiny-llama"),
            None,
            "roberta",
            &["LlamaForCausalLM", "a decoder", "`--kind judge`"],
        ),
        (
            golden().join("hhem"),
            None,
            "nowhere",
            &["tokenizer.json`: expected a tokenizer, found no such folder", "--tokenizer"],
        ),
        (golden().join("hhem"), None, "roberta", &["expected ids below 250", "another model"]),
        (
            changed("roberta", "hidden_size", 25.into()),
            Some(Kind::FactKb),
            "roberta",
            &["`num_attention_heads`", "divides the width 25"],
        ),
        (
            changed("roberta", "num_hidden_layers", 3.into()),
            Some(Kind::FactKb),
            "roberta",
            &["encoder.layer.2", "no such tensor"],
        ),
        (
            changed("roberta", "hidden_act", "relu".into()),
            Some(Kind::FactKb),
            "roberta",
            &["`hidden_act`: expected \"gelu\", found \"relu\""],
        ),
        (
            changed("modernbert-tokens", "layer_types", serde_json::json!(["full_attention"])),
            None,
            "modernbert",
            &["`layer_types`: expected 4"],
        ),
        (
            changed("t5", "relative_attention_max_distance", 1.into()),
            None,
            "t5",
            &["`relative_attention_max_distance`: expected more than 8", "found 1"],
        ),
        (
            changed("t5", "d_kv", 7.into()),
            None,
            "t5",
            &["`d_kv`: expected 5, as the tensors have it, found 7"],
        ),
        (
            changed("roberta", "pad_token_id", 510.into()),
            Some(Kind::FactKb),
            "roberta",
            &["at least 16 tokens", "found 3"],
        ),
    ];
    for (folder, kind, tokenizer, words) in cases {
        // A tokenizer is compared with the model where it is used.
        let error = if tokenizer == "roberta" && folder.ends_with("hhem") {
            let scorer = open(&folder, "hhem", tokenizer).expect("opens");
            let pair = Pair { document: "東京 \u{1f642}", answer: "ÿþ", question: None };
            scorer.score(&[pair], &AtomicBool::new(false)).expect_err("refused").to_string()
        } else {
            refused(&folder, kind, tokenizer)
        };
        for word in words {
            assert!(error.contains(word), "expected {word:?} in:\n{error}");
        }
    }
}
