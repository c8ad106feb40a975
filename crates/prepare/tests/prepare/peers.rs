//! Ids, texts and conversations as transformers gives them, by golden files that `tests/peers/make_golden.py` wrote.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::DeserializeOwned;
use softshard_prepare::{ChatTemplate, Conversation, Message, Tokenizer, Value};

use crate::support::real_data;

#[derive(Deserialize)]
struct Answers {
    tokenizer: String,
    rows: Vec<Answer>,
}

#[derive(Deserialize)]
struct Answer {
    text: String,
    ids: Vec<i32>,
    ids_with_special: Vec<i32>,
    decoded: String,
    decoded_all: String,
}

#[derive(Deserialize)]
struct Rendered {
    messages: Vec<Value>,
    add_generation_prompt: bool,
    text: String,
}

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/peers/golden/tokenizers").join(name)
}

fn expected<T: DeserializeOwned>(name: &str) -> Vec<T> {
    serde_json::from_slice(&fs_err::read(golden(name)).unwrap()).unwrap()
}

fn check(tokenizer: &Tokenizer, answers: &Answers) {
    assert!(answers.rows.len() > 3);
    for answer in &answers.rows {
        let place = format!("{} {:?}", answers.tokenizer, answer.text);
        let ids = tokenizer.encode(&answer.text).unwrap();
        assert_eq!(ids, answer.ids, "{place}");
        let bos = tokenizer.bos().filter(|_| tokenizer.adds_bos());
        let with_special: Vec<i32> = bos.into_iter().chain(ids.iter().copied()).collect();
        assert_eq!(with_special, answer.ids_with_special, "{place}");
        assert_eq!(tokenizer.decode(&ids).unwrap(), answer.decoded, "{place}");
        assert_eq!(tokenizer.decode_all(&ids).unwrap(), answer.decoded_all, "{place}");
    }
}

#[test]
fn ids_first_tokens_and_added_tokens_are_those_of_transformers() {
    let begins = expected::<Answers>("expected.json").into_iter().map(|answers| {
        let tokenizer = Tokenizer::load(&golden(&answers.tokenizer)).unwrap();
        check(&tokenizer, &answers);
        tokenizer.adds_bos()
    });
    assert_eq!(begins.collect::<Vec<_>>(), [true, true, false]);
}

#[test]
fn real_tokenizers_read_added_tokens_inside_of_texts() {
    let Some(folder) = real_data() else { return };
    for answers in expected::<Answers>("real.expected.json") {
        let tokenizer = Tokenizer::load(&folder.join("tokenizers").join(&answers.tokenizer)).unwrap();
        check(&tokenizer, &answers);
    }
}

#[test]
fn conversations_are_rendered_as_transformers_does() {
    let source = fs_err::read_to_string(golden("qwen2.5-chat.jinja")).unwrap();
    let template = ChatTemplate::new(source, [].into()).unwrap();
    for Rendered { messages, add_generation_prompt, text } in expected("chat.expected.json") {
        let messages: Vec<Message> = messages.into_iter().map(message).collect();
        let (turns, conversation) = (messages.len(), Conversation { messages, ..Conversation::default() });
        assert_eq!(template.render(&conversation, turns, add_generation_prompt).unwrap().text, text);
    }
}

fn message(value: Value) -> Message {
    let Value::Object(fields) = value else { panic!("a message is an object") };
    Message { fields, trained: None }
}
