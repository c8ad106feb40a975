//! `scorer`: published scores, people's judgement, and lines of answers. The models have random weights (golden/scorers).

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use softshard_e2e::{Said, real_data, root, softshard};

fn golden(name: &str) -> String {
    root().join("tests/peers/golden/scorers").join(name).display().to_string()
}

/// A command of `scorer` with a golden model and its tokenizer.
fn scorer(command: &str, folder: &str, tokenizer: &str, options: &[&str]) -> Said {
    let (folder, tokenizer) = (golden(folder), golden(&format!("tokenizers/{tokenizer}")));
    let arguments = [&["scorer", command, &folder, "--tokenizer", &tokenizer], options].concat();
    softshard(&arguments)
}

#[test]
fn other_weights_fail_the_published_scores() {
    let failed =
        ["expected the 7 scores that were published of hhem, found ", "hint: these are other weights"];
    let said = scorer("check", "hhem", "t5", &[]).failed(3, &failed);
    for words in ["model card of vectara/", "Manny was a fan of Mark Wahlberg.  ", "0.0543", "  fail\n"] {
        assert!(said.stdout.contains(words), "expected {words:?} in:\n{}", said.stdout);
    }
    let said =
        scorer("check", "t5", "t5", &["--json"]).failed(3, &["2 scores that were published of mini-check"]);
    let found: Value = serde_json::from_str(&said.stdout).expect("JSON");
    assert_eq!((&found["kind"], &found["verdict"]), (&"mini-check".into(), &"fail".into()));
    assert_eq!(found["published"][0]["published"], json!(0.980_592_37));
    assert!(found["published"][0]["found"].is_number() && found["published"][0]["pass"] == false);
    // Spans.
    let said = scorer("check", "modernbert-tokens", "modernbert", &[]).failed(3, &["the 1 scores"]);
    assert!(said.stdout.contains("31..71 0.9944"), "{}", said.stdout);
    // Nobody published any.
    let said = scorer("check", "roberta", "roberta", &["--kind", "fact-kb"]).succeeded();
    assert!(said.stdout.contains("no published scores are known"), "{}", said.stdout);
}

#[test]
fn what_is_no_scorer_is_refused() {
    scorer("check", "roberta", "roberta", &[])
        .failed(3, &["expected a kind: mini-check, fact-kb, nli", "`--kind` does"]);
    scorer("check", "hhem", "nowhere", &[])
        .failed(3, &["nowhere/tokenizer.json`: expected a tokenizer", "google/flan-t5-base"]);
    scorer("check", "hhem", "t5", &["--kind", "truth"]).failed(2, &["expected one of lettuce-detect, hhem"]);
    scorer("check", "hhem", "t5", &["--revision", "v1"]).failed(3, &["`v1`", "a plain folder"]);
    scorer("check", "hhem", "t5", &["--device", "cuda:60000"]).failed(4, &["device `cuda:60000`"]);
    let llama = root().join("tests/peers/golden/tiny-llama").display().to_string();
    softshard(&["scorer", "check", &llama]).failed(3, &["`LlamaForCausalLM`", "`--kind judge`"]);
    softshard(&["scorer", "check", &llama, "--kind", "judge"])
        .failed(3, &["expected `tokenizer.json`, found no file of a tokenizer"]);
}

/// A small judge: a decoder with a tokenizer that has a chat template.
#[test]
fn a_judge_is_asked() {
    let folder = tempfile::tempdir().expect("a folder");
    let world = root().join("tests/peers/golden");
    for name in ["config.json", "model.safetensors"] {
        fs::copy(world.join("tiny-llama").join(name), folder.path().join(name)).expect("a copy");
    }
    let words = ["Yes", "yes", "No", "the", "students"];
    let vocabulary: serde_json::Map<String, Value> = words
        .iter()
        .enumerate()
        .map(|(id, word)| ((*word).to_owned(), (id + 3).into()))
        .chain([("<unk>".to_owned(), 0.into())])
        .collect();
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
        "pre_tokenizer": { "type": "Whitespace" }, "post_processor": null, "decoder": null,
        "model": { "type": "WordLevel", "vocab": vocabulary, "unk_token": "<unk>" },
    });
    fs::write(folder.path().join("tokenizer.json"), tokenizer.to_string()).expect("it is written");
    let path = folder.path().display().to_string();
    let arguments = ["scorer", "check", path.as_str(), "--kind", "judge"];
    softshard(&arguments).failed(3, &["expected a chat template", "follows instructions"]);
    let template = "{% for m in messages %}{{ m.role }} {{ m.content }} {% endfor %}";
    let config = json!({ "chat_template": template, "tokenizer_class": "PreTrainedTokenizerFast" });
    fs::write(folder.path().join("tokenizer_config.json"), config.to_string()).expect("it is written");
    // The prompt has more tokens than this model reads.
    let said = softshard(&arguments).failed(3, &["2 scores that were published of judge, found 2 others"]);
    assert!(
        said.stdout.contains("Bespoke-MiniCheck-7B") && said.stdout.contains("none  fail"),
        "{}",
        said.stdout
    );
}

fn lines(path: &Path) -> Vec<Value> {
    let text = fs::read_to_string(path).expect("scores");
    text.lines().map(|line| serde_json::from_str(line).expect("a line of JSON")).collect()
}

/// Eighty answers, some of them empty.
fn write_input(folder: &Path) -> PathBuf {
    let row = |index: usize| {
        let answer = if index % 20 == 7 { " ".to_owned() } else { format!("The house was sold in {index}.") };
        json!({ "id": index, "document": format!("The red house was sold. It rained for {index} days."), "answer": answer })
    };
    let text: String = (0..80).map(|index| row(index).to_string() + "\n").collect();
    let path = folder.join("answers.jsonl");
    fs::write(&path, text).expect("it is written");
    path
}

#[test]
fn answers_are_scored_and_gone_on_with() {
    let folder = tempfile::tempdir().expect("a folder");
    let (input, output) = (write_input(folder.path()), folder.path().join("scores.jsonl"));
    let files = ["--input", &input.display().to_string(), "--output", &output.display().to_string()]
        .map(str::to_owned);
    let files: Vec<&str> = files.iter().map(String::as_str).collect();
    let run = || scorer("score", "modernbert-tokens", "modernbert", &files);
    let said = run().succeeded();
    assert!(said.stdout.contains("lettuce-detect: 76 scores, mean 0."), "{}", said.stdout);
    assert!(
        said.stdout.contains("without a score, and not faithful: 4 empty, 0 too long"),
        "{}",
        said.stdout
    );
    let whole = fs::read(&output).expect("scores");
    let scores = lines(&output);
    assert_eq!(scores.len(), 80);
    assert_eq!(
        scores[7],
        json!({ "line": 8, "consistent": null, "why": "empty", "chunks": 0, "cut": false })
    );
    assert_eq!((&scores[8]["line"], &scores[8]["chunks"]), (&9.into(), &1.into()));
    assert!(scores.iter().any(|score| score["spans"][0]["confidence"].as_f64() > Some(0.5)), "spans");
    // Torn in the middle of a line: the same bytes again.
    let torn = whole.iter().enumerate().filter(|(_, byte)| **byte == b'\n').nth(63).expect("64 lines").0 + 10;
    fs::write(&output, &whole[..torn]).expect("it is cut");
    run().succeeded();
    assert_eq!(fs::read(&output).expect("scores"), whole);
    // Another scorer, other texts, scores of nobody knows what.
    scorer("score", "modernbert", "modernbert", &files)
        .failed(3, &["made-from.json`: `kind`", "found lettuce-detect"]);
    fs::write(&input, "{\"document\": \"a\", \"answer\": \"b\"}\n").expect("it is written");
    run().failed(3, &["made-from.json`: `input`", "of other texts"]);
    fs::remove_file(folder.path().join("scores.jsonl.made-from.json")).expect("it is removed");
    run().failed(3, &["scores of something unknown"]);
    for (text, words) in [
        (
            "{\"document\": \"a\"}\n",
            "line 1: expected texts `document` and `answer`, found missing field `answer`",
        ),
        (
            "{\"document\": \" \", \"answer\": \"b\"}\n",
            "line 1: expected a text `document`, found an empty one",
        ),
        ("", "expected lines, found none"),
    ] {
        fs::write(&input, text).expect("it is written");
        run().failed(3, &[words]);
    }
}

#[test]
fn a_scorer_stands_beside_people() {
    let Some(data) = real_data() else { return };
    let data = data.join("summarization");
    let [fib, summeval] =
        ["fib_xsum.jsonl", "summeval_cnndm.jsonl"].map(|name| data.join(name).display().to_string());
    let options = ["--data", &fib, &summeval, "--documents", "4", "--kind", "fact-kb", "--json"];
    let said = scorer("validate", "roberta", "roberta", &options).succeeded();
    let found: Value = serde_json::from_str(&said.stdout).expect("JSON");
    let found = found["fact-kb"].as_array().expect("a list");
    assert_eq!(
        (&found[1]["data"], &found[1]["faithful_from"]),
        (&"summeval_cnndm.jsonl".into(), &5.0.into())
    );
    for one in found {
        assert_eq!(one["documents"], 4);
        let agreement = one["agreement"].as_array().expect("a list");
        assert_eq!((agreement.len(), &agreement[2]["by"]), (4, &"copied trigrams".into()));
        for by in agreement {
            let auc = by["auc"]["value"].as_f64().expect("both sorts");
            let [lower, upper] =
                ["lower", "upper"].map(|end| by["auc"]["interval"][end].as_f64().expect("an interval"));
            assert!(lower <= auc && auc <= upper && (0.0..=1.0).contains(&auc), "{one}");
            assert!(by["ranks"]["spearman"].is_number() && by["ranks"]["kendall"].is_number(), "{one}");
        }
    }
    let table = scorer("validate", "roberta", "roberta", &options[..options.len() - 1]).succeeded();
    assert!(table.stdout.contains("95 % by document"), "{}", table.stdout);
    let folder = tempfile::tempdir().expect("a folder");
    let bad = folder.path().join("bad.jsonl");
    fs::write(&bad, "{\"document\": \"a\", \"summaries\": [{\"summary\": \"b\"}]}\n").expect("it is written");
    let options = ["--data", &bad.display().to_string()];
    scorer("validate", "hhem", "t5", &options)
        .failed(3, &["bad.jsonl` document `1`", "expected a judgement of each answer, found none"]);
}
