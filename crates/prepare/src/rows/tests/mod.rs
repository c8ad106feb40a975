//! Rows of every shape, read from files as a recipe names them.

mod files;

use std::sync::atomic::AtomicBool;

use serde_json::{Value as Json, json};

use super::*;
use crate::DataConfig;
use crate::conversation::Message;
use crate::summary::RowCounts;
use crate::value::Value;

fn read_with(bytes: &[u8], settings: Json) -> Result<(Vec<Row>, RowCounts), Error> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("data.jsonl");
    fs_err::write(&path, bytes).unwrap();
    let mut config = json!({});
    config[if settings["as_text"] == true { "text" } else { "instructions" }] = json!(path);
    let Json::Object(settings) = settings else { panic!("settings are an object") };
    for (name, value) in settings.into_iter().filter(|(name, _)| name != "as_text") {
        config[name] = value;
    }
    let data: DataConfig = serde_json::from_value(config).unwrap();
    let (never, mut rows) = (AtomicBool::new(false), Vec::new());
    let reading = Inputs::open(&data, None, &never)?.for_each_step(&data, &never, |step| {
        rows.extend_from_slice(step);
        Ok(())
    })?;
    Ok((rows, reading.counts))
}

fn chat(row: &Json) -> Result<(Vec<Row>, RowCounts), Error> {
    read_with(row.to_string().as_bytes(), json!({ "template": "chat" }))
}

fn said(error: &Error) -> String {
    match error {
        Error::Row { line, problem, .. } => format!("{line}: {problem}"),
        other => other.to_string(),
    }
}

fn message(bytes: &[u8]) -> String {
    said(&read_with(bytes, json!({})).unwrap_err())
}

/// The turns of a row, each as JSON with sorted keys, and a mark where its row decides whether it is learnt.
fn turns(row: &Json) -> Vec<String> {
    let (rows, _) = chat(row).unwrap_or_else(|error| panic!("{row}: {error}"));
    let Content::Conversation(conversation) = &rows[0].content else { panic!("{:?}", rows[0].content) };
    let turn = |message: &Message| {
        let fields = Value::Object(message.fields.clone());
        let text = serde_json::to_value(fields).unwrap().to_string();
        let mark = match message.trained {
            None => "",
            Some(true) => "+",
            Some(false) => "-",
        };
        format!("{mark}{text}")
    };
    conversation.messages.iter().map(turn).collect()
}

const GOOD: &str = "{\"instruction\": \"a\", \"response\": \"b\"}\n";

#[test]
fn bad_rows_are_named_by_line() {
    let shapes =
        "expected `messages`, `conversations`, `prompt` and `completion`, or `instruction` and `response`";
    let cases: [(&[u8], &str); 7] = [
        (
            b"{\"instruction\": \"a\", \"resp",
            "2: expected one JSON object, found broken JSON: EOF while parsing a string at column 26",
        ),
        (b"{\"instruction\": \"caf\xe9\"}", "2: expected UTF-8, found byte 0xe9 at byte 21 of the line"),
        (b"{\"text\": \"a\"}", &format!("2: {shapes}; found `text`")),
        (
            b"{\"instruction\": \"a\", \"output\": null}",
            &format!("2: {shapes}; found `instruction`, `output`"),
        ),
        (b"{\"instruction\": 7, \"response\": \"b\"}", "2: expected text in `instruction`, found a number"),
        (
            b"{\"messages\": [{\"role\": \"user\", \"content\": \"a\"}]}",
            "2: expected `messages` to end with an answer of `assistant`, found only one of `user`",
        ),
        (b"[1]", "2: expected one JSON object, found a list"),
    ];
    for (line, expected) in cases {
        assert_eq!(message(&[GOOD.as_bytes(), line].concat()), expected);
    }
}

#[test]
fn blank_lines_carriage_returns_and_a_byte_order_mark_are_harmless() {
    let text = format!("\u{feff}{}\r\n\n{GOOD}\n", GOOD.trim());
    let (rows, counts) = read_with(text.as_bytes(), json!({})).unwrap();
    let lines: Vec<u64> = rows.iter().map(|row| row.place.line).collect();
    assert_eq!(lines, [1, 3]);
    assert_eq!(rows[1].place.source(), "data.jsonl:3");
    assert_eq!(counts.shapes["`instruction` and `response`"], 2);
}

#[test]
fn documents_are_what_stands_between_separators() {
    let text = "one\nmore\n<|endoftext|>\ntwo<|endoftext|>three\n<|endoftext|>\n\n<|endoftext|>\nfour";
    let found: Vec<(String, u64)> = documents(text.as_bytes());
    let expected = [("one\nmore", 1), ("two", 4), ("three", 4), ("four", 8)];
    assert_eq!(found, expected.map(|(text, line)| (text.to_owned(), line)));
}

fn documents(bytes: &[u8]) -> Vec<(String, u64)> {
    let (rows, _) = read_with(bytes, json!({ "as_text": true })).unwrap();
    let document = |row: Row| match row.content {
        Content::Document(text) => (text, row.place.line),
        other => panic!("expected a document, found {other:?}"),
    };
    rows.into_iter().map(document).collect()
}

#[test]
fn rows_of_texts_are_documents() {
    let rows = b"{\"text\": \"one\", \"url\": \"x\"}\n{\"text\": \"two\"}\n";
    assert_eq!(documents(rows), [("one".into(), 1), ("two".into(), 2)]);
    assert_eq!(documents(b"{\"name\": 1}\n"), [("{\"name\": 1}".into(), 1)], "text that happens to be JSON");
    let error =
        read_with(b"{\"text\": \"one\"}\n{\"content\": \"two\"}\n", json!({ "as_text": true })).unwrap_err();
    assert_eq!(said(&error), "2: expected a text in `text`, found `content`");
}

#[test]
fn the_split_follows_the_prompt_alone() {
    let row = |response: &str| {
        let line = format!("{{\"instruction\": \"a\", \"response\": \"{response}\"}}");
        read_with(line.as_bytes(), json!({})).unwrap().0.remove(0)
    };
    assert_eq!(row("b").split_hash(1), row("c").split_hash(1));
    assert_ne!(row("b").split_hash(1), row("b").split_hash(2));
}

#[test]
fn fields_of_a_turn_are_the_templates() {
    let call =
        json!([{ "type": "function", "function": { "name": "f", "arguments": { "b": 1, "a": "2" } } }]);
    let row = json!({ "tools": [{ "type": "function" }], "messages": [
        { "role": "user", "content": "q", "name": "Ann" },
        { "role": "assistant", "content": null, "tool_calls": call },
        { "role": "tool", "tool_call_id": "1", "content": { "sun": true } },
        { "role": "assistant", "reasoning_content": "r", "content": "a" },
    ] });
    let expected: Vec<String> = row["messages"].as_array().unwrap().iter().map(Json::to_string).collect();
    let sorted: Vec<Json> = turns(&row).iter().map(|turn| serde_json::from_str(turn).unwrap()).collect();
    assert_eq!(sorted.iter().map(Json::to_string).collect::<Vec<_>>(), expected);
    // The order of keys is the row's.
    let (user, answer) =
        (r#"{"role":"user","content":"q"}"#, r#"{"z":{"b":1,"a":2},"role":"assistant","content":"a"}"#);
    let text = format!("{{\"messages\": [{user}, {answer}]}}");
    let (rows, _) = read_with(text.as_bytes(), json!({ "template": "chat" })).unwrap();
    let Content::Conversation(conversation) = &rows[0].content else { panic!("a conversation") };
    let turn = serde_json::to_string(&Value::Object(conversation.messages[1].fields.clone())).unwrap();
    assert_eq!(turn, answer);
}

#[test]
fn turns_of_share_gpt_get_the_roles_of_templates() {
    let turn = |from: &str, value: &str| json!({ "from": from, "value": value });
    let row = |from: &str, column: &str| json!({ column: [turn("human", "q"), turn(from, "[]"), turn("gpt", "a")] });
    for (from, role) in [
        ("system", "system"),
        ("user", "user"),
        ("Human", "user"),
        ("chatgpt", "assistant"),
        ("model", "assistant"),
        ("observation", "tool"),
        ("function", "tool"),
        ("tool", "tool"),
    ] {
        for column in ["conversations", "conversation", "messages"] {
            let turns = turns(&row(from, column));
            assert_eq!(turns[0], "{\"content\":\"q\",\"role\":\"user\"}");
            assert_eq!(turns[1], format!("{{\"content\":\"[]\",\"role\":\"{role}\"}}"));
        }
    }
    let error = chat(&row("narrator", "conversations")).unwrap_err().to_string();
    assert!(
        error.contains(
            "turn 2 of `conversations`: expected a known role in `from`, found `narrator`\nhint: known are"
        ),
        "{error}"
    );
    // Roles of OpenAI's turns are the template's, be they what they may.
    let other = json!({ "conversations": [{ "role": "developer", "content": "d" }, { "role": "gpt", "content": "a" }] });
    assert_eq!(turns(&other)[0], "{\"content\":\"d\",\"role\":\"developer\"}");
    assert_eq!(turns(&other)[1], "{\"content\":\"a\",\"role\":\"assistant\"}");
    // LLaMA-Factory's calls.
    let call = "{\"name\": \"f\", \"arguments\": {\"x\": 1}}";
    let row = json!({ "conversations": [
        { "from": "human", "value": "q" }, { "from": "function_call", "value": call },
        { "from": "observation", "value": "1" }, { "from": "gpt", "value": "a" },
    ] });
    let expected = concat!(
        r#"{"content":"","role":"assistant","tool_calls":"#,
        r#"[{"function":{"arguments":{"x":1},"name":"f"},"type":"function"}]}"#
    );
    assert_eq!(turns(&row)[1], expected);
    let row = json!({ "conversations": [turn("human", "q"), turn("function_call", "f(1)")] });
    assert!(chat(&row).unwrap_err().to_string().contains("expected JSON of calls"));
}

#[test]
fn parts_of_text_are_one_text_and_others_are_refused() {
    let answer = json!({ "role": "assistant", "content": "a" });
    let row = |content: Json| json!({ "messages": [{ "role": "user", "content": content }, answer] });
    let text = |text: &str| json!({ "type": "text", "text": text });
    assert_eq!(turns(&row(json!([text("x"), text(" y")])))[0], "{\"content\":\"x y\",\"role\":\"user\"}");
    assert_eq!(chat(&row(json!([text("x"), text("y")]))).unwrap().1.joined_parts, 1);
    assert_eq!(turns(&row(json!([])))[0], "{\"content\":\"\",\"role\":\"user\"}");
    for (content, expected) in [
        (
            json!([text("x"), { "type": "image_url", "image_url": { "url": "u" } }]),
            "found one of type `image_url`",
        ),
        (json!([{ "type": "image" }]), "found one of type `image`"),
        (json!([{ "type": "text", "text": "x", "image": "i" }]), "found `image` beside it"),
        (json!(["x"]), "found a text without a type"),
        (json!([{ "text": "x" }]), "found an object without a type"),
        (json!({ "parts": ["x"] }), "expected `content` to be text, found an object"),
        (json!(7), "expected `content` to be text, found a number"),
        (json!(null), "expected `content` to be text, found null"),
    ] {
        let error = chat(&row(content)).unwrap_err().to_string();
        assert!(error.contains("turn 1 of `messages`") && error.contains(expected), "{error}");
    }
}

#[test]
fn turns_are_learnt_as_their_row_says() {
    let user = json!({ "role": "user", "content": "q" });
    let answer = |field: &str, value: Json| json!({ "role": "assistant", "content": "a", field: value });
    let row = |field: &str, value: Json| json!({ "messages": [user, answer(field, value)] });
    for field in ["weight", "train", "training", "loss"] {
        for (value, mark) in
            [(json!(0), "-"), (json!(1.0), "+"), (json!(false), "-"), (json!(true), "+"), (json!(null), "")]
        {
            let turn = turns(&row(field, value))[1].clone();
            assert_eq!(turn.split('{').next(), Some(mark), "{turn}");
        }
    }
    assert_eq!(chat(&row("weight", json!(0))).unwrap().1.turns_not_trained, 1);
    for (field, value, expected) in [
        ("weight", json!(0.5), "expected `weight` to be 0 or 1, true or false, found 0.5"),
        ("train", json!("no"), "expected `train` to be 0 or 1, true or false, found \"no\""),
        ("train_detail", json!([{ "begin_offset": 0 }]), "found `train_detail`"),
        ("mask", json!(true), "found `mask`"),
    ] {
        let error = chat(&row(field, value)).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
    let both =
        json!({ "messages": [user, { "role": "assistant", "content": "a", "weight": 0, "train": true }] });
    assert!(chat(&both).unwrap_err().to_string().contains("expected fields that agree, found `"));
}

#[test]
fn system_columns_become_the_first_turn() {
    let turn = |role: &str, text: &str| json!({ "role": role, "content": text });
    let messages = json!([turn("user", "q"), turn("assistant", "a")]);
    let share_gpt = json!([{ "from": "human", "value": "q" }, { "from": "gpt", "value": "a" }]);
    let system = "{\"content\":\"s\",\"role\":\"system\"}";
    for row in [
        json!({ "system": "s", "messages": messages }),
        json!({ "system_prompt": "s", "conversations": share_gpt }),
        json!({ "system": "s", "instruction": "q", "output": "a" }),
        json!({ "system": "s", "prompt": "q", "completion": "a" }),
        json!({ "system": "s", "prompt": [turn("user", "q")], "completion": [turn("assistant", "a")] }),
        json!({ "system": "s", "messages": [turn("system", "s"), turn("user", "q"), turn("assistant", "a")] }),
    ] {
        let turns = turns(&row);
        assert_eq!((turns[0].as_str(), turns.len()), (system, 3), "{row}");
    }
    assert_eq!(chat(&json!({ "system": "s", "messages": messages })).unwrap().1.merged_system_texts, 1);
    assert_eq!(turns(&json!({ "system": " ", "messages": messages })).len(), 2);
    let two = json!({ "system": "s", "messages": [turn("system", "t"), turn("user", "q"), turn("assistant", "a")] });
    assert!(
        chat(&two)
            .unwrap_err()
            .to_string()
            .contains("expected one system text, found another one in `messages`")
    );
    let error =
        read_with(b"{\"system\": \"s\", \"instruction\": \"q\", \"output\": \"a\"}", json!({})).unwrap_err();
    let expected = "expected columns that `template = \"minillm\"` has a place for, found `system`\n\
                    hint: set `template = \"chat\"`; `data.ignore_columns = [\"system\"]` leaves the column out";
    assert!(error.to_string().contains(expected), "{error}");
}

#[test]
fn what_the_template_needs_comes_from_the_row() {
    let messages = json!([{ "role": "user", "content": "q" }, { "role": "assistant", "content": "a" }]);
    let conversation =
        |row: Json| match chat(&row).unwrap_or_else(|error| panic!("{error}")).0.remove(0).content {
            Content::Conversation(conversation) => conversation,
            other => panic!("{other:?}"),
        };
    let tools = "[{\"type\":\"function\",\"function\":{\"name\":\"f\"}}]";
    let list: Json = serde_json::from_str(tools).unwrap();
    for given in [json!(tools), json!([list[0].to_string()])] {
        let found = conversation(json!({ "messages": messages, "tools": given })).tools.unwrap();
        assert_eq!(serde_json::to_value(found).unwrap(), list);
    }
    assert_eq!(
        conversation(json!({ "messages": messages, "tools": [] })).tools,
        Some(Value::List(Vec::new()))
    );
    assert_eq!(conversation(json!({ "messages": messages, "tools": "" })).tools, None);
    let kwargs = json!({ "enable_thinking": false });
    for given in [kwargs.clone(), json!(kwargs.to_string())] {
        let found = conversation(json!({ "messages": messages, "chat_template_kwargs": given })).variables;
        assert_eq!(found, [("enable_thinking".to_owned(), Value::Bool(false))]);
    }
    assert!(
        conversation(json!({ "messages": messages, "documents": [{ "text": "d" }] })).documents.is_some()
    );
    let with_tools = json!({ "instruction": "q", "output": "a", "tools": tools });
    assert!(conversation(with_tools).tools.is_some());
    for (column, value, expected) in [
        ("tools", json!({ "f": 1 }), "expected a list of objects in `tools`, found an object"),
        ("tools", json!(["f"]), "expected objects in `tools`, found a text"),
        ("tools", json!("f(x)"), "expected a list or an object, or JSON of one in `tools`, found a text"),
        ("chat_template_kwargs", json!({ "tools": [1] }), "found `tools`, which is given"),
        ("documents", json!(["d"]), "expected objects in `documents`, found a text"),
    ] {
        let error = chat(&json!({ "messages": messages, column: value })).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn prompts_and_completions_are_texts_or_turns() {
    let row = json!({ "prompt": "The sky is", "completion": " blue." }).to_string();
    let read =
        |settings: Json| read_with(row.as_bytes(), settings).map(|(mut rows, _)| rows.remove(0).content);
    let Content::Completion { prompt, completion } = read(json!({ "template": "none" })).unwrap() else {
        panic!()
    };
    assert_eq!((prompt.as_str(), completion.as_str()), ("The sky is", " blue."));
    for template in ["minillm", "chat"] {
        let content = read(json!({ "template": template })).unwrap();
        assert!(matches!(&content, Content::Instruction { instruction, .. } if instruction == "The sky is"));
    }
    assert!(said(&read(json!({})).unwrap_err()).contains("expected `template` in the recipe"));

    let turn = |role: &str, text: &str| json!({ "role": role, "content": text });
    let row = json!({
        "prompt": [turn("user", "q"), turn("assistant", "a"), turn("user", "r")],
        "completion": [turn("assistant", "b"), turn("tool", "c"), turn("assistant", "d")],
    });
    let marks: Vec<char> = turns(&row).iter().map(|turn| turn.chars().next().unwrap()).collect();
    assert_eq!(marks, ['{', '-', '{', '+', '{', '+']);
    let row =
        json!({ "prompt": [turn("user", "q")], "completion": [turn("user", "r"), turn("assistant", "a")] });
    assert!(
        chat(&row)
            .unwrap_err()
            .to_string()
            .contains("expected `completion` to begin with `assistant`, found `user`")
    );
    let row = json!({ "prompt": "q", "completion": [turn("assistant", "a")] });
    assert!(chat(&row).unwrap_err().to_string().contains("two texts or two lists, found a text and a list"));
    let row = json!({ "prompt": "q", "completion": "a", "label": false });
    assert!(chat(&row).unwrap_err().to_string().contains("`label`, which says whether each is good"));
}

#[test]
fn earlier_turns_come_from_history() {
    let row = json!({ "instruction": "c", "input": "d", "output": "e", "history": [["a", "b"]] });
    let expected = [("user", "a"), ("assistant", "b"), ("user", "c\n\nd"), ("assistant", "e")];
    assert_eq!(
        turns(&row),
        expected.map(|(role, text)| json!({ "role": role, "content": text }).to_string())
    );
    let row = json!({ "instruction": "c", "output": "e", "history": [["a"]] });
    assert!(chat(&row).unwrap_err().to_string().contains("expected pairs of texts in `history`"));
}

#[test]
fn a_column_of_a_conversation_does_not_vanish() {
    let turns = json!([{ "role": "user", "content": "what is it" }, { "role": "assistant", "content": "the answer" }]);
    let cases = [
        (json!({ "instruction": "a", "output": "b", "rejected": "c" }), "rejected"),
        (json!({ "instruction": "a", "output": "b", "text": "c" }), "text"),
        (json!({ "instruction": "a", "output": "b", "images": [{ "path": "i.png" }] }), "images"),
        (json!({ "messages": turns, "functions": [{ "name": "f" }] }), "functions"),
        (json!({ "messages": turns, "context": "long" }), "context"),
        (json!({ "messages": turns, "reasoning": "so" }), "reasoning"),
        (json!({ "messages": turns, "chosen": [{ "role": "assistant", "content": "x" }] }), "chosen"),
        (json!({ "messages": turns, "anything": [{ "from": "human", "value": "x" }] }), "anything"),
        (json!({ "messages": turns, "response": "other" }), "response"),
    ];
    for (row, name) in cases {
        let error = chat(&row).unwrap_err().to_string();
        let expected = format!("found `{name}` beside ");
        let hint = format!("hint: `data.ignore_columns = [\"{name}\"]` leaves the column out");
        assert!(error.contains(&expected) && error.contains(&hint), "{error}");
        let settings = json!({ "template": "chat", "ignore_columns": [name] });
        let (rows, counts) = read_with(row.to_string().as_bytes(), settings).unwrap();
        assert_eq!((rows.len(), counts.ignored_columns[name]), (1, 1));
    }
    // What is empty, says the same again, or is about the row, is no loss.
    let row = json!({
        "messages": turns, "prompt": "what is it", "chosen": null, "images": [], "history": [], "system": "",
        "text": "USER what is it ASSISTANT the answer", "id": 7, "source": "web", "score": 0.5, "turns": [],
    });
    let (_, counts) = chat(&row).unwrap();
    assert_eq!(counts.unused_columns.keys().collect::<Vec<_>>(), ["id", "prompt", "score", "source", "text"]);
}

#[test]
fn a_row_has_one_shape() {
    let turns = json!([{ "role": "user", "content": "q" }, { "role": "assistant", "content": "a" }]);
    for row in [
        json!({ "messages": turns, "instruction": "a", "output": "b" }),
        json!({ "messages": turns, "conversations": turns }),
        json!({ "prompt": "a", "completion": "b", "instruction": "a", "response": "b" }),
    ] {
        assert!(
            chat(&row).unwrap_err().to_string().contains("expected one shape of a row, found `"),
            "{row}"
        );
    }
    let row = json!({ "messages": turns, "instruction": "", "output": null, "conversations": [] });
    assert!(chat(&row).is_ok());
    for (row, hint) in [
        (json!({ "chosen": turns, "rejected": turns }), "preference pairs are not imitated"),
        (json!({ "text": "a" }), "texts without a prompt are read with `data.text`"),
        (json!({ "role": "user", "content": "a" }), "a row is a whole conversation, not one turn"),
        (json!({ "prompt": "a" }), "a row is {\"messages\""),
    ] {
        assert!(chat(&row).unwrap_err().to_string().contains(hint), "{row}");
    }
    let row = json!({ "instruction": "a", "context": "b", "input": "c", "output": "d" });
    assert!(
        chat(&row).unwrap_err().to_string().contains("expected one of `context` and `input`, found both")
    );
}

#[test]
fn token_ids_come_with_their_mask() {
    let labelled = |row: Json, settings: Json| -> Result<Vec<bool>, String> {
        match read_with(row.to_string().as_bytes(), settings) {
            Ok((mut rows, _)) => match rows.remove(0).content {
                Content::Tokens { input_ids, labelled } => {
                    assert_eq!(input_ids, [5, 6, 7]);
                    Ok(labelled)
                }
                other => panic!("{other:?}"),
            },
            Err(error) => Err(said(&error)),
        }
    };
    let ids = json!([5, 6, 7]);
    let plain = |row: Json| labelled(row, json!({}));
    let ends = Ok(vec![false, true, true]);
    assert_eq!(plain(json!({ "input_ids": ids, "labels": [-100, 6, 7], "attention_mask": [1, 1, 1] })), ends);
    assert_eq!(plain(json!({ "input_ids": ids, "loss_mask": [0, 1, 1] })), ends);
    assert_eq!(
        plain(
            json!({ "input_ids": ids, "completion_mask": [false, true, true], "assistant_masks": [1, 1, 1] })
        ),
        ends
    );
    assert_eq!(labelled(json!({ "input_ids": ids }), json!({ "mask": "all" })), Ok(vec![true; 3]));
    for (row, expected) in [
        (json!({ "input_ids": ids }), "1: expected a mask beside `input_ids`, found none"),
        (
            json!({ "input_ids": ids, "labels": [6, 7, -100] }),
            "1: expected -100 or the id 5 in `labels` at 0, found 6",
        ),
        (
            json!({ "input_ids": ids, "labels": [5, 6] }),
            "1: expected 3 values in `labels`, as in `input_ids`, found 2",
        ),
        (json!({ "input_ids": ids, "loss_mask": [0, 1, 2] }), "1: expected 0 and 1 in `loss_mask`, found 2"),
        (
            json!({ "input_ids": [5, -1, 7], "loss_mask": [0, 1, 1] }),
            "1: expected token ids from 0 on in `input_ids`, found others",
        ),
        (
            json!({ "input_ids": [5.5], "labels": [5] }),
            "1: expected whole numbers in `input_ids`, found a number",
        ),
        (
            json!({ "input_ids": ids, "loss_mask": [0, 1, 1], "attention_mask": [1, 1, 0] }),
            "1: expected a row without padding, found 0 in `attention_mask`",
        ),
        (
            json!({ "input_ids": ids, "loss_mask": [0, 1, 1], "position_ids": [0, 1, 0] }),
            "1: expected one sequence in a row, found several that were packed",
        ),
    ] {
        assert_eq!(plain(row), Err(expected.to_owned()));
    }
}

#[test]
fn templates_of_our_own_have_no_place_for_calls_and_thoughts() {
    let answer = json!({ "role": "assistant", "content": "a", "reasoning_content": "r" });
    let row = json!({ "messages": [{ "role": "user", "content": "q" }, answer] });
    let error = read_with(row.to_string().as_bytes(), json!({ "template": "none" })).unwrap_err();
    assert_eq!(said(&error), "1: expected turns of text alone, found `reasoning_content` in turn 2");
}
