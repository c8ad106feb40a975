//! Tokenizers of models beside the recipe's, and folders without a `tokenizer.json`.

use serde_json::{Value, json};
use softshard_prepare::Tokenizer;

use crate::masks::Chat;

fn chat() -> Chat {
    Chat::new("qwen-like", "")
}

/// What the recipe's tokenizer says of a model that has `model` as its own.
fn said(model: &Chat) -> String {
    let refused = chat().tokenizer().expect_ids_of_model(model.path("tokenizer.json").parent().unwrap());
    refused.err().map_or_else(String::new, |error| {
        assert!(error.is_bad_data());
        error.to_string()
    })
}

#[test]
fn a_model_may_have_more_tokens_and_no_other_ones() {
    let more = chat().with_tokens(&["<think>", "</think>"]);
    assert_eq!(said(&more), "");
    assert!(more.tokenizer().own().has_tokens_of(chat().tokenizer().fingerprint()));
    assert!(!chat().tokenizer().own().has_tokens_of(more.tokenizer().fingerprint()));
    let few = chat();
    let error = more.tokenizer().expect_ids_of_model(few.path("").as_path()).unwrap_err().to_string();
    assert!(error.contains("`<think>`, found none"), "{error}");
}

#[test]
fn what_differs_first_is_named() {
    let edited = |edit: fn(&mut Value)| {
        let model = chat();
        model.edit("tokenizer.json", edit);
        said(&model)
    };
    let token = edited(|file| {
        let vocabulary = file["model"]["vocab"].as_object_mut().unwrap();
        let id = vocabulary.remove("Ġstudent").unwrap();
        vocabulary.insert("Ġpupil".to_owned(), id);
        let merges = file["model"]["merges"].as_array_mut().unwrap();
        merges.retain(|merge| !merge.to_string().contains("tudent"));
    });
    assert!(token.contains(": id ") && token.contains("`Ġstudent`, found `Ġpupil`"), "{token}");
    let merges = edited(|file| file["model"]["merges"].as_array_mut().unwrap().swap(3, 4));
    assert!(merges.contains(": merge or score 3: expected"), "{merges}");
    let normalizer = edited(|file| file["normalizer"] = json!({ "type": "NFD" }));
    assert!(normalizer.contains(": normalizer: expected") && normalizer.contains("NFD"), "{normalizer}");
    let words = edited(|file| file["pre_tokenizer"] = json!({ "type": "Whitespace" }));
    assert!(words.contains(": pre_tokenizer: expected"), "{words}");
    let ignore = edited(|file| file["model"]["ignore_merges"] = json!(true));
    assert!(ignore.contains(": model: expected"), "{ignore}");
    // Written in the older way they are the same merges.
    let older = edited(|file| {
        for merge in file["model"]["merges"].as_array_mut().unwrap() {
            if let Value::Array(pair) = merge {
                *merge = json!(format!("{} {}", pair[0].as_str().unwrap(), pair[1].as_str().unwrap()));
            }
        }
    });
    assert_eq!(older, "");
}

#[test]
fn a_place_without_tokenizer_json_says_how_to_make_it() {
    let cases: [(&[&str], &str, &str); 6] = [
        (
            &["vocab.json", "merges.txt"],
            "found `vocab.json` and `merges.txt`",
            "AutoTokenizer.from_pretrained(",
        ),
        (&["tokenizer.model"], "found `tokenizer.model`", "pip install sentencepiece"),
        (&["vocab.txt"], "found `vocab.txt`", "AutoTokenizer.from_pretrained("),
        (&["tekken.json"], "found `tekken.json` of Mistral", "convert_tekken_tokenizer"),
        (&["model-q4.gguf"], "found a GGUF file", "name the Hugging Face folder"),
        (&["config.json"], "found no file of a tokenizer", "a tokenizer is a Hugging Face model folder"),
    ];
    for (files, found, hint) in cases {
        let folder = tempfile::tempdir().unwrap();
        for file in files {
            fs_err::write(folder.path().join(file), "{}").unwrap();
        }
        let error = Tokenizer::load(folder.path()).unwrap_err();
        let text = error.to_string();
        assert!(error.is_bad_data() && text.contains(found) && text.contains(hint), "{text}");
        // As a model's own: what cannot be compared is not taken for the same.
        let own = chat().tokenizer().expect_ids_of_model(folder.path());
        assert_eq!(
            own.is_err(),
            text.contains(".json`") && !text.contains("no file") && !text.contains("GGUF"),
            "{text}"
        );
    }
    let folder = tempfile::tempdir().unwrap();
    fs_err::write(folder.path().join("model.gguf"), b"GGUF\x03").unwrap();
    let error = Tokenizer::load(&folder.path().join("model.gguf")).unwrap_err().to_string();
    assert!(error.contains("found a GGUF file"), "{error}");
}
