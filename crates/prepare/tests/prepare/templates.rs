//! Chat templates as transformers renders them: the table of `tests/peers/templates.py`, and what reaches a sequence.

use std::path::Path;

use serde::Deserialize;
use serde_json::json;
use softshard_prepare::{ChatTemplate, Conversation, DataConfig, Message, Split, Value};

use crate::support::{Workshop, data_config};

#[derive(Deserialize)]
struct Table {
    date: String,
    messages: Vec<Value>,
    variables: Value,
    rows: Vec<Row>,
}

#[derive(Deserialize)]
struct Row {
    template: String,
    text: Option<String>,
    #[serde(default)]
    generated: Vec<[usize; 2]>,
}

fn message(value: Value) -> Message {
    let Value::Object(fields) = value else { panic!("a message is an object") };
    Message { fields, trained: None }
}

/// Snippets that transformers renders and we refuse by name.
const REFUSED: [&str; 1] = ["{{ self }}"];

#[test]
fn every_construct_of_the_table_is_rendered_as_transformers_does() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/peers/golden/templates.json");
    let table: Table = serde_json::from_slice(&fs_err::read(path).unwrap()).unwrap();
    assert!(table.rows.len() > 700);
    let data: DataConfig = serde_json::from_value(json!({ "template_date": table.date })).unwrap();
    let Value::Object(variables) = table.variables else { panic!("variables are an object") };
    let messages: Vec<Message> = table.messages.into_iter().map(message).collect();
    let conversation = Conversation { messages, variables, ..Conversation::default() };
    for Row { template: source, text, generated } in table.rows {
        let template =
            ChatTemplate::new(source.clone(), [].into()).map(|template| template.configured(&data));
        let turns = conversation.messages.len();
        let rendered = template.and_then(|template| template.render(&conversation, turns, false));
        match (text, rendered) {
            (Some(_), Err(error)) if REFUSED.contains(&source.as_str()) => {
                assert!(error.to_string().contains("is not supported"), "{source}: {error}");
            }
            (Some(text), Ok(rendering)) => {
                assert_eq!(rendering.text, text, "{source}");
                let characters = |byte: usize| rendering.text[..byte].chars().count();
                let marks =
                    rendering.generated.iter().map(|range| [characters(range.start), characters(range.end)]);
                let marks: Vec<[usize; 2]> = marks.collect();
                // transformers counts to behind the end where a block is written into a variable.
                let length = rendering.text.chars().count();
                let expected: Vec<[usize; 2]> =
                    generated.iter().map(|mark| mark.map(|at| at.min(length))).collect();
                assert_eq!(marks, expected, "{source}");
            }
            (None, Err(_)) => {}
            (Some(text), Err(error)) => panic!("{source}: expected {text:?}, found {error}"),
            (None, Ok(rendering)) => panic!("{source}: expected an error, found {:?}", rendering.text),
        }
    }
}

const CHAT: &str = "{%- for m in messages %}\n{{- m.role + ': ' }}{{ m.content }}{{ eos_token + '\n' }}\n{%- endfor %}\
                    {%- if add_generation_prompt %}{{- 'assistant: ' }}{%- endif %}";

/// The text of the one sequence that a row of messages becomes.
fn text_of(workshop: &Workshop, row: &serde_json::Value, more: serde_json::Value) -> String {
    let mut fields =
        json!({ "instructions": workshop.file("rows.jsonl", row.to_string()), "template": "chat" });
    fields.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    workshop.run(&data_config(fields)).unwrap();
    let sequences = workshop.sequences(Split::Train);
    workshop.tokenizer().decode_all(&sequences[0].input_ids).unwrap()
}

fn row() -> serde_json::Value {
    json!({ "messages": [{ "role": "user", "content": "a" }, { "role": "assistant", "content": "b" }] })
}

#[test]
fn a_template_that_is_not_used_is_not_compiled_and_one_that_is_names_its_file() {
    let workshop = Workshop::new();
    workshop.set_tokenizer("chat_template", json!("\n{% nope %}"));
    let path = workshop.file("rows.jsonl", json!({ "instruction": "a", "response": "b" }).to_string());
    workshop.run(&data_config(json!({ "instructions": path }))).unwrap();
    let error = workshop.run(&data_config(json!({ "instructions": path, "template": "chat" }))).unwrap_err();
    let error = error.to_string();
    assert!(error.contains("tokenizer_config.json` line 2: encountered unknown tag `nope`"), "{error}");
    workshop.file("tokenizer/chat_template.jinja", "{{ 'x' | nope }}");
    let error = workshop.run(&data_config(json!({ "instructions": path, "template": "chat" }))).unwrap_err();
    assert!(error.to_string().contains("chat_template.jinja` line 1: no filter named `nope`"), "{error}");
}

#[test]
fn variables_date_and_newlines_reach_the_template() {
    let workshop = Workshop::new();
    workshop.set_tokenizer("chat_template", json!(null));
    workshop.file(
        "tokenizer/chat_template.jinja",
        format!("{{{{ style }}}}\r\n{{{{ strftime_now('%d %b %Y') }}}} {CHAT}"),
    );
    let more = json!({ "template_date": "2025-01-31", "template_variables": { "style": ["x", null] } });
    let text = text_of(&workshop, &row(), more);
    assert!(text.starts_with("['x', None]\n31 Jan 2025user: a"), "{text}");
    let data = json!({ "instructions": workshop.path("rows.jsonl"), "template": "chat" });
    let error = workshop.run(&data_config(data)).unwrap_err().to_string();
    assert!(error.contains("`strftime_now`") && error.contains("hint: set `data.template_date"), "{error}");
}

#[test]
fn tools_are_none_without_tools_and_choose_their_template() {
    let tools = Some(Value::List(vec![Value::Object(vec![("name".into(), "f".into())])]));
    let workshop = Workshop::new();
    workshop.set_tokenizer(
        "chat_template",
        json!([
            { "name": "default", "template": "default {{ tools is none }} {{ documents is none }}" },
            { "name": "tool_use", "template": "tools {{ tools | tojson }}" },
        ]),
    );
    let tokenizer = workshop.tokenizer();
    let template = tokenizer.chat_template().unwrap();
    let text =
        |tools| template.render(&Conversation { tools, ..Conversation::default() }, 0, false).unwrap().text;
    assert_eq!(text(None), "default True True");
    assert_eq!(text(tools), "tools [{\"name\": \"f\"}]");
    let error =
        template.render(&Conversation { tools: Some("f".into()), ..Conversation::default() }, 0, false);
    assert!(error.unwrap_err().to_string().contains("expected `tools` as a list of objects, found a text"));
}

#[test]
fn reasoning_is_passed_under_all_the_names_that_templates_read() {
    let template = ChatTemplate::new("{{ messages[0] }}".into(), [].into()).unwrap();
    let text = |json: &str| {
        let messages = vec![message(serde_json::from_str(json).unwrap())];
        template.render(&Conversation { messages, ..Conversation::default() }, 1, false).unwrap().text
    };
    let expected = "{'thinking': 'r', 'role': 'a', 'reasoning': 'r', 'reasoning_content': 'r'}";
    assert_eq!(text(r#"{"role": "a", "reasoning": "r"}"#), expected);
    let expected = "{'role': 'a', 'thinking': 't', 'reasoning_content': 'r'}";
    assert_eq!(text(r#"{"role": "a", "thinking": "t", "reasoning_content": "r"}"#), expected);
    assert_eq!(text(r#"{"role": "a", "reasoning": null}"#), "{'role': 'a', 'reasoning': None}");
}

#[test]
fn hostile_templates_end_soon_with_their_limit() {
    let conversation = Conversation::default();
    let parentheses = format!("{{{{ {}1{} }}}}", "(".repeat(100_000), ")".repeat(100_000));
    let sums = format!("{{{{ 1{} }}}}", " + 1".repeat(100_000));
    let tags = "{% if 1 %}".repeat(100_000);
    let hostile = [
        "{% for a in range(100000) %}{% for b in range(100000) %}{% endfor %}{% endfor %}",
        "{% for a in range(100000) %}{% for b in range(100000) %}xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx{% endfor %}{% endfor %}",
        "{{ 'x' * 10 ** 9 }}",
        "{{ [0] * 10 ** 9 }}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{% macro f() %}{% for a in [1] %}{% if 1 %}{{ [f()] }}{% endif %}{% endfor %}{% endmacro %}{{ f() }}",
        "{% for a in [[1]] recursive %}{{ loop([a]) }}{% endfor %}",
        "{% set n = namespace(x='xxxxxxxx') %}{% for a in range(100) %}{% set n.x = n.x + n.x %}{% endfor %}",
        "{% set n = namespace(x=[1]) %}{% for a in range(100) %}{% set n.x = [n.x, n.x] %}{% endfor %}{{ n.x }}",
        "{% set n = namespace(x=[1]) %}{% for a in range(100) %}{% set n.x = [n.x, n.x] %}{% endfor %}{{ n.x | tojson }}",
        "{% set n = namespace(x=[1]) %}{% for a in range(100) %}{% set n.x = [n.x, n.x] %}{% endfor %}{{ n.x == n.x }}",
        "{% set n = namespace(x=(1,)) %}{% for a in range(100) %}{% set n.x = (n.x, n.x) %}{% endfor %}{{ {n.x: 1} }}",
        "{% set n = namespace(x=[]) %}{% for a in range(100000) %}{% set n.x = [n.x] %}{% endfor %}",
        "{% set n = namespace(x=[]) %}{% for a in range(100000) %}{% set n.x = n.x + [1] %}{% endfor %}",
        "{{ '%1000000000d' % 1 }}",
        "{{ '{:1000000000}'.format(1) }}",
        "{{ 'x'.center(10 ** 12) }}",
        "{{ 'a'.replace('', 'x' * 60000000) }}",
        "{{ '\\t'.expandtabs(10 ** 12) }}",
        "{{ 'a\\nb' | indent(10 ** 12) }}",
        "{{ [[1]] | tojson(indent=10 ** 12) }}",
        "{{ range(100000) | map('string') | map('center', 1000) | join }}",
        "{{ range(100000) | batch(1) | list | sort | groupby(0) | list | tojson(indent=99999) }}",
        &parentheses,
        &sums,
        &tags,
    ];
    for source in hostile {
        let started = std::time::Instant::now();
        let template = ChatTemplate::new(source.to_owned(), [].into());
        let rendered = template.and_then(|template| template.render(&conversation, 0, false));
        let short: String = source.chars().take(120).collect();
        let error = rendered.expect_err(&short).to_string();
        assert!(error.contains("found") || error.contains("recursion"), "{short}: {error}");
        assert!(started.elapsed().as_secs_f64() < 2.0, "{short}: {:?}", started.elapsed());
    }
}

#[test]
fn variables_of_the_row_are_not_hidden() {
    let workshop = Workshop::new();
    let fields = json!({ "instructions": workshop.path("x"), "template": "chat", "template_variables": { "tools": 1 } });
    let error = data_config(fields).validate().unwrap_err().to_string();
    assert!(
        error.contains("`template_variables`: expected other variables than the row's own, found `tools`"),
        "{error}"
    );
    let fields =
        json!({ "instructions": workshop.path("x"), "template": "chat", "template_date": "31.1.2025" });
    let error = data_config(fields).validate().unwrap_err().to_string();
    assert!(error.contains("expected `template_date` as in \"2025-01-31\", found \"31.1.2025\""), "{error}");
}
