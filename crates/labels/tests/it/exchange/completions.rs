//! Responses of servers.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use softshard_labels::{BadRows, ImportTarget, Imported, LabelDataset, OptionalColumn};

use super::{completions, read, read_into, refused, target, vllm};

#[test]
fn responses_of_servers_become_labels() {
    let chat = json!({"custom_id": "question-7", "prompt_token_ids": [4, 5], "response": {"body": {"choices": [{
    "message": {"role": "assistant", "content": " the"},
    "logprobs": {"content": [
        {"token": " the", "logprob": -0.5, "bytes": [32], "top_logprobs": [
            {"token": "token_id:7", "logprob": -1.5, "bytes": null}, {"token": " the", "logprob": -0.5, "bytes": [32]}]}
    ]}}]}}});
    let echoed = json!({"choices": [{"text": "", "logprobs": {
        "tokens": ["token_id:3", "token_id:11", "token_id:12"], "text_offset": [0, 1, 2],
        "token_logprobs": [null, -0.5, -4.0],
        "top_logprobs": [null, {"token_id:11": -0.5, "token_id:7": -1.5}, {"token_id:8": -0.25, "token_id:7": -2.5, "token_id:12": -4.0}]
    }}]});
    let folder = tempfile::tempdir().unwrap();
    let files = completions(folder.path(), &[vllm(), chat, echoed]);
    let out = folder.path().join("out");
    let done = read(&files, 2, &out).unwrap();
    let omitted = &done.manifest.plan.omit;
    assert_eq!(omitted, &[OptionalColumn::LogSumExp, OptionalColumn::Entropy]);
    assert_eq!(done.manifest.plan.teacher.weights_blake3, "unverified: some/teacher");
    let rows: Result<Vec<_>, _> = LabelDataset::open(&out).unwrap().iter().collect();
    let rows = rows.unwrap();
    let [vllm, chat, echoed] = rows.as_slice() else { panic!("{rows:?}") };
    assert_eq!(
        (vllm.input_ids.as_slice(), vllm.token_ids.as_slice()),
        ([3, 11, 12].as_slice(), [11, 7, 8, 7].as_slice())
    );
    assert_eq!(vllm.gold_log_prob, [-0.5, -4.0]);
    let tail = (1.0 - (-0.5f64).exp() - (-1.5f64).exp()).ln();
    assert!((f64::from(vllm.tail_log_mass[0]) - tail).abs() < 1e-3);
    assert_eq!(
        (chat.input_ids.as_slice(), chat.positions.as_slice()),
        ([4, 5, 11].as_slice(), [2].as_slice())
    );
    assert_eq!(chat.token_ids, [11, 7]);
    assert_eq!(chat.source.as_deref(), Some("question-7"));
    assert_eq!(vllm.source.as_deref(), Some("responses.jsonl:1"));
    assert_eq!(
        (&echoed.input_ids, &echoed.token_ids, &echoed.log_probs),
        (&vllm.input_ids, &vllm.token_ids, &vllm.log_probs)
    );
}

#[test]
fn responses_that_say_too_little_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let try_with = |change: &dyn Fn(&mut Value), parts: &[&str]| {
        let mut response = vllm();
        change(&mut response);
        refused(read(&completions(folder.path(), &[vllm(), response]), 2, &out), parts);
    };
    let choice = |response: &mut Value| response["choices"][0].as_object_mut().unwrap().clone();
    try_with(
        &|response| {
            response["choices"][0]["prompt_token_ids"] = json!([11, 12, 3]);
        },
        &[
            "responses.jsonl` line 2 position 1 entries: expected token 12 of the sequence among them",
            "are these its ids?",
        ],
    );
    try_with(
        &|response| {
            response["choices"][0].as_object_mut().unwrap().remove("prompt_token_ids");
        },
        &["line 2 prompt_token_ids: expected the ids of the prompt, found none", "return_token_ids"],
    );
    try_with(
        &|response| {
            response["choices"][0]["prompt_logprobs"][1]["7"]["logprob"] = json!(-9999.0);
        },
        &["position 1 logprob: expected what the teacher said, found -9999, a placeholder"],
    );
    try_with(
        &|response| {
            response["choices"][0]["prompt_logprobs"][1].as_object_mut().unwrap().remove("7");
        },
        &["position 1 entries: expected the 2 most probable tokens, found 1 of them"],
    );
    try_with(
        &|response| {
            response["choices"][0]["prompt_logprobs"][1]["7"]["logprob"] = json!(-0.6);
        },
        &["line 2 position 1 log_probs and tail_log_mass: expected a mass of 1 in all, found 1.1553"],
    );
    let text = |token: &str| {
        let token = token.to_owned();
        move |response: &mut Value| {
            let mut one = choice(response);
            one.remove("prompt_logprobs");
            one.insert(
                "logprobs".to_owned(),
                json!({"content": [{"token": token.clone(), "logprob": -0.5, "top_logprobs": []}]}),
            );
            response["choices"][0] = Value::Object(one);
        }
    };
    try_with(
        &text("é"),
        &[
            "line 2 logprobs.content[0] token \"é\": expected the text of one token, found 2 tokens, among them 5 and 6",
            "return_tokens_as_token_ids",
        ],
    );
    try_with(&text("?"), &["token \"?\": expected the text of one token, found no token"]);
    try_with(
        &|response| *response = json!({"error": {"message": "overloaded"}}),
        &["line 2 choices: expected a list with an answer", "found an error: overloaded", "--bad-rows drop"],
    );
    try_with(&|response| response["choices"] = json!([]), &["line 2 choices: ", "found no answer"]);
    try_with(&|response| *response = json!([vllm()]), &["line 2 choices: ", "found no object", "jq -c"]);
    try_with(
        &|response| *response = json!({"custom_id": "a", "response": null, "error": {"code": "expired"}}),
        &["line 2 choices: ", "found an error: expired"],
    );
    assert!(!out.exists());
}

/// `logprobs.top_logprobs` of a completion, of whose last token these are the alternatives.
fn legacy(token: i32, log_prob: f64, top: &Value) -> Value {
    json!({"prompt_token_ids": [3], "choices": [{"text": "", "logprobs": {
        "tokens": ["token_id:11", format!("token_id:{token}")], "token_logprobs": [-0.5, log_prob],
        "top_logprobs": [{"token_id:11": -0.5, "token_id:7": -1.5}, top]}}]})
}

/// Ids of the last token's entries.
fn last_entries(response: Value) -> Vec<i32> {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    read(&completions(folder.path(), &[response]), 2, &out).unwrap();
    let labels = LabelDataset::open(&out).unwrap().read(0).unwrap();
    assert_eq!(
        (labels.positions.as_slice(), labels.counts.as_slice()),
        ([1, 2].as_slice(), [2, 2].as_slice())
    );
    let gold = f64::from(*labels.gold_log_prob.last().unwrap());
    assert!((gold + 2.25).abs() < 1e-6, "{gold}");
    labels.token_ids[2..].to_vec()
}

#[test]
fn the_token_beyond_the_k_most_probable_is_dropped_also_where_it_ties() {
    for token in [8, 12, 60] {
        let name = |id: i32| format!("token_id:{id}");
        let top = json!({name(token): -2.25, name(9): -0.4, name(20): -2.25});
        assert_eq!(last_entries(legacy(token, -2.25, &top)), [9, 20], "token {token}");
        // Some servers give tied tokens one rank, others the place behind the last of them.
        for rank in [2, 3, 9] {
            let mut response = vllm();
            let choice = &mut response["choices"][0];
            choice["prompt_token_ids"][2] = json!(token);
            let entry = |log_prob: f64, rank: i32| json!({"logprob": log_prob, "rank": rank});
            choice["prompt_logprobs"][2] =
                json!({token.to_string(): entry(-2.25, rank), "9": entry(-0.4, 1), "20": entry(-2.25, 2)});
            assert_eq!(last_entries(response), [9, 20], "token {token} of rank {rank}");
        }
    }
    // The token is among the k, and another is as probable as it: both are there, and nothing is dropped.
    let top = json!({"token_id:12": -2.25, "token_id:9": -0.4});
    assert_eq!(last_entries(legacy(12, -2.25, &top)), [9, 12]);
}

#[test]
fn more_entries_than_were_asked_for_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let several = json!({"token_id:12": -1.25, "token_id:9": -0.9, "token_id:20": -2.25});
    for response in [
        // One too many, and it is not the token itself.
        legacy(12, -1.25, &several),
        legacy(
            12,
            -2.25,
            &json!({"token_id:12": -2.25, "token_id:9": -1.9, "token_id:20": -2.25, "token_id:21": -2.25}),
        ),
    ] {
        refused(
            read(&completions(folder.path(), &[response]), 2, &out),
            &[
                "position 2 entries: expected the 2 most probable tokens, found ",
                "--top-k",
                "--bad-rows drop",
            ],
        );
    }
}

fn dropping(folder: &Path, file: &[u8]) -> Result<Imported, softshard_labels::Error> {
    let path = folder.join("mixed.jsonl");
    fs::write(&path, file).unwrap();
    let target = ImportTarget { bad_rows: BadRows::Drop, ..target(97) };
    read_into(&[path], 2, &folder.join("out"), &target)
}

#[test]
fn bad_rows_are_left_out_counted_and_listed() {
    let folder = tempfile::tempdir().unwrap();
    let placeholder = legacy(12, -9999.0, &json!({"token_id:9": -0.4, "token_id:20": -2.25}));
    let [last_empty, last_null] = [json!({}), Value::Null].map(|top| legacy(12, -2.25, &top));
    let above_one = legacy(12, -2.25, &json!({"token_id:9": -0.1, "token_id:20": -0.2}));
    let two = json!({"choices": [{"index": 0}, vllm()["choices"][0]]});
    let bad = [
        json!({"error": {"message": "overloaded\nnow", "code": 503}}),
        json!({"choices": []}),
        json!({"id": "b", "custom_id": "x", "response": {"status_code": 400, "body": {"error": {"message": "too long"}}}, "error": null}),
        placeholder,
        last_empty,
        last_null,
        above_one,
        two,
    ];
    // A byte order mark, lines that end as on Windows, an empty one, an infinity as Python prints it, and a last line that was cut.
    let mut file = b"\xEF\xBB\xBF".to_vec();
    file.extend(format!("{}\r\n\r\n", vllm()).bytes());
    bad.iter().for_each(|line| file.extend(format!("{line}\r\n").bytes()));
    file.extend(format!("{}\n", vllm().to_string().replace("-0.25", "-Infinity")).bytes());
    file.extend(
        format!("{}\n", legacy(20, -2.25, &json!({"token_id:9": -0.4, "token_id:20": -2.25}))).bytes(),
    );
    file.extend(&b"{\"choices\": [{"[..]);

    let done = dropping(folder.path(), &file).unwrap();
    assert_eq!((done.manifest.rows, done.dropped.count, done.passed_over), (3, 10, 0));
    let labels: Result<Vec<_>, _> = LabelDataset::open(folder.path().join("out")).unwrap().iter().collect();
    let sources: Vec<_> = labels.unwrap().into_iter().map(|one| one.source.unwrap()).collect();
    assert_eq!(sources, ["mixed.jsonl:1", "mixed.jsonl:10:1", "mixed.jsonl:12"]);
    let list = fs::read_to_string(done.dropped.list.unwrap()).unwrap();
    let list: Vec<Value> = list.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let places = list.iter().map(|line| line["place"].as_str().unwrap());
    let reasons = [
        ("line 3 choices", "an error: overloaded now"),
        ("line 4 choices", "no answer"),
        ("line 5 choices", "an error: too long"),
        ("line 6 logprobs position 1 logprob", "-9999, a placeholder"),
        ("line 7 logprobs position 1 top_logprobs", "none"),
        ("line 8 logprobs position 1 top_logprobs", "none"),
        ("line 9 position 2 log_probs and tail_log_mass", "1.7236"),
        ("line 10 choice 0 logprobs", "neither"),
        ("line 11", "invalid number at line 1 column"),
        ("line 13", "EOF while parsing"),
    ];
    for (((place, line), (expected, found)), first) in places.zip(&list).zip(reasons).zip(&done.dropped.first)
    {
        assert!(place.contains("mixed.jsonl`") && place.ends_with(expected), "{place}, not {expected}");
        assert!(line["found"].as_str().unwrap().starts_with(found), "{line}");
        assert!(first.starts_with(place), "{first}");
    }
    assert_eq!((list.len(), done.dropped.first.len()), (10, 10));

    // Again with the labels that are there.
    let again = dropping(folder.path(), &file).unwrap();
    assert_eq!((again.written, again.dropped.count), (0, 10));
}

#[test]
fn files_without_a_row_that_can_be_read_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let lines = "{}\n".repeat(30);
    refused(
        dropping(folder.path(), lines.as_bytes()),
        &[
            "files: expected at least one labelled position, found none, and 30 rows",
            "mixed.jsonl` line 1 choices",
        ],
    );
    for (start, what) in [
        (&b"\x1F\x8B\x08\0"[..], "a gzip file"),
        (b"\x28\xB5\x2F\xFD\0", "a zstd file"),
        (b"PAR1\x15\x04", "a Parquet file"),
        (b"\xFF\xFE{\0}\0", "UTF-16"),
        (b"\xFE\xFF\0{\0}", "UTF-16"),
    ] {
        let expected = format!("mixed.jsonl`: expected lines of JSON in UTF-8, found {what}");
        refused(dropping(folder.path(), start), &[&expected]);
    }
    assert!(!folder.path().join("out").exists());
}
