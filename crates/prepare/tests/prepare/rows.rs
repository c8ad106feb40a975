//! What of a row reaches the sequence: turns, fields of turns, columns for the template.

use serde_json::{Value, json};
use softshard_prepare::Split;

use crate::sequences::labelled;
use crate::support::{Workshop, data_config};

/// Prints all that a row may give.
const TEMPLATE: &str = "{% if tools %}<tools>{% for t in tools %}{{ t.function.name }};{% endfor %}{% endif %}\
    {% for m in messages %}[{{ m.role }}{% if m.name %} {{ m.name }}{% endif %}]\
    {% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>{% endif %}\
    {% if m.content %}{{ m.content }}{% endif %}\
    {% for c in m.tool_calls or [] %}<call>{{ c.function.name }}({{ c.function.arguments.place }}){% endfor %}\
    {{ eos_token }}{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}";

/// The sequence of a row as text, and its labelled tokens.
fn chat(row: &Value) -> (String, String) {
    let workshop = Workshop::new();
    workshop.set_tokenizer("chat_template", json!(TEMPLATE));
    let file = workshop.file("a.jsonl", row.to_string());
    workshop.run(&data_config(json!({ "instructions": file, "template": "chat" }))).unwrap();
    let tokenizer = workshop.tokenizer();
    let sequence = workshop.sequences(Split::Train).remove(0);
    let text = tokenizer.decode_all(&sequence.input_ids).unwrap();
    (text.replace("<|endoftext|>", "."), labelled(&sequence, &tokenizer).replace("<|endoftext|>", "."))
}

#[test]
fn calls_tools_names_and_thoughts_reach_the_template() {
    let call =
        json!([{ "type": "function", "function": { "name": "weather", "arguments": { "place": "Bern" } } }]);
    let tools = json!([{ "type": "function", "function": { "name": "weather" } }]);
    let messages = json!([
        { "role": "user", "content": "Weather?" },
        { "role": "assistant", "content": "", "tool_calls": call },
        { "role": "tool", "name": "weather", "content": "sun" },
        { "role": "assistant", "reasoning_content": "sun is good", "content": "Fine" },
    ]);
    let expected = "<tools>weather;[user]Weather?.[assistant]<call>weather(Bern).[tool weather]sun.\
                    [assistant]<think>sun is good</think>Fine.";
    for tools in [tools.clone(), json!(tools.to_string())] {
        assert_eq!(chat(&json!({ "messages": messages, "tools": tools })).0, expected);
    }
    let row = json!({ "messages": [messages[0], messages[1]], "tools": tools });
    assert_eq!(chat(&row).1, "<call>weather(Bern).", "a call without text is an answer");
}

#[test]
fn system_columns_reach_the_template() {
    let expected = ("[system]You are terse..[user]hi.[assistant]hello.".to_owned(), "hello.".to_owned());
    assert_eq!(
        chat(&json!({ "system": "You are terse.", "instruction": "hi", "input": "", "output": "hello" })),
        expected
    );
    let turns = json!([{ "from": "human", "value": "hi" }, { "from": "gpt", "value": "hello" }]);
    assert_eq!(chat(&json!({ "system": "You are terse.", "conversations": turns })), expected);
}

#[test]
fn completions_are_joined_to_their_prompts_as_they_are() {
    let workshop = Workshop::new();
    let file =
        workshop.file("a.jsonl", json!({ "prompt": "The sky is", "completion": " blue." }).to_string());
    workshop.run(&data_config(json!({ "instructions": file, "template": "none" }))).unwrap();
    let tokenizer = workshop.tokenizer();
    let sequence = workshop.sequences(Split::Train).remove(0);
    assert_eq!(tokenizer.decode_all(&sequence.input_ids).unwrap(), "The sky is blue.<|endoftext|>");
    assert_eq!(labelled(&sequence, &tokenizer), " blue.<|endoftext|>");
}

#[test]
fn token_ids_are_taken_as_they_are() {
    let workshop = Workshop::new();
    let row = json!({ "input_ids": [65, 66, 67, 68], "labels": [-100, -100, 67, 68] });
    workshop.run(&data_config(json!({ "instructions": workshop.file("a.jsonl", row.to_string()) }))).unwrap();
    let sequence = workshop.sequences(Split::Train).remove(0);
    assert_eq!((sequence.input_ids, sequence.positions), (vec![65, 66, 67, 68], vec![2, 3]));
}

#[test]
fn the_summary_says_what_the_rows_were() {
    let workshop = Workshop::new();
    workshop.set_tokenizer("chat_template", json!(TEMPLATE));
    let turns = |weight: u8| {
        let parts = json!([{ "type": "text", "text": "q" }, { "type": "text", "text": "?" }]);
        json!([{ "role": "user", "content": parts }, { "role": "assistant", "content": "a", "weight": weight }])
    };
    let rows = [
        json!({ "messages": turns(1), "system": "s", "id": 1, "rejected": "x" }),
        json!({ "messages": turns(0), "id": 2, "score": null }),
    ];
    let file = workshop.file("a.jsonl", rows.map(|row| row.to_string()).join("\n"));
    let data = data_config(
        json!({ "instructions": file, "template": "chat", "ignore_columns": ["rejected", "other"] }),
    );
    let summary = workshop.run(&data).unwrap();
    let text = summary.to_string();
    let expected = "1 system texts put before their conversation\n\
                    2 turns put together from parts of text\n\
                    1 turns of the assistant not trained, as their row says\n\
                    columns not used, and in how many rows: id (2)\n\
                    columns ignored, and in how many rows: other (0), rejected (1)\n";
    assert!(text.contains(expected), "{text}");
    let counts = serde_json::to_value(&summary).unwrap();
    assert_eq!(counts["read"]["shapes"]["`messages`"], 2);
    assert_eq!(counts["read"]["unused_columns"], json!({ "id": 2 }));
}
