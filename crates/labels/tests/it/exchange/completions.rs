//! Responses of servers.

use serde_json::{Value, json};
use softshard_labels::{LabelDataset, OptionalColumn};

use super::{completions, read, refused, vllm};

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
        &["line 2 choices: expected a list"],
    );
    assert!(!out.exists());
}
