//! From rows to sequence shards: templates, loss masks, limits, split, bad input.

use std::collections::BTreeSet;
use std::sync::atomic::AtomicBool;

use serde_json::json;
use softshard_labels::{Sequence, SequenceDataset};
use softshard_prepare::{Error, Split, Tokenizer, demo, examples, minillm_prompt, run};

use crate::support::{Workshop, data_config};

const ROW: &str = "{\"instruction\": \"Say hello.\", \"context\": \"\", \"response\": \"Hello!\"}\n";

/// The labelled tokens as text.
pub(crate) fn labelled(sequence: &Sequence, tokenizer: &Tokenizer) -> String {
    let ids: Vec<i32> =
        sequence.positions.iter().map(|at| sequence.input_ids[usize::try_from(*at).unwrap()]).collect();
    tokenizer.decode_all(&ids).unwrap()
}

#[test]
fn the_minillm_template_labels_response_and_end_of_sequence() {
    let workshop = Workshop::new();
    let tokenizer = workshop.tokenizer();
    let data = data_config(json!({ "instructions": workshop.file("a.jsonl", ROW) }));
    let summary = workshop.run(&data).unwrap();
    assert_eq!((summary.rows, summary.train.sequences, summary.valid.sequences), (1, 1, 0));
    let sequence = workshop.sequences(Split::Train).remove(0);
    let prompt = minillm_prompt("Say hello.", "");
    assert_eq!(tokenizer.decode_all(&sequence.input_ids).unwrap(), format!("{prompt}Hello!<|endoftext|>"));
    assert_eq!(labelled(&sequence, &tokenizer), "Hello!<|endoftext|>");
    assert_eq!(usize::try_from(sequence.positions[0]).unwrap(), tokenizer.encode(&prompt).unwrap().len());
    assert_eq!(sequence.source.as_deref(), Some("a.jsonl:1"));

    let data = data_config(json!({ "instructions": workshop.path("a.jsonl"), "mask": "all" }));
    workshop.run(&data).unwrap();
    let sequence = workshop.sequences(Split::Train).remove(0);
    assert_eq!(sequence.positions.len(), sequence.input_ids.len() - 1);
}

#[test]
fn the_bos_token_is_added_where_it_belongs() {
    let workshop = Workshop::new();
    workshop.begin_with_bos();
    let file = workshop.file("a.jsonl", ROW);
    let bos = workshop.tokenizer().bos().unwrap();
    let first = |template: &str, add_bos: serde_json::Value| {
        let data = data_config(json!({ "instructions": file, "template": template }));
        let config = json!({ "path": workshop.path("tokenizer"), "add_bos": add_bos });
        let config = serde_json::from_value(config).unwrap();
        run(&data, &config, &workshop.path("sequences"), &AtomicBool::new(false), &()).unwrap();
        let sequence = workshop.sequences(Split::Train).remove(0);
        assert_eq!(labelled(&sequence, &workshop.tokenizer()), "Hello!<|endoftext|>");
        let examples = examples(&data, &config, &workshop.tokenizer(), Some(Split::Train)).unwrap();
        assert!(sequence.input_ids.starts_with(&examples[0].prompt_ids));
        sequence.input_ids[0] == bos
    };
    assert!(!first("minillm", json!(null)));
    assert!(first("minillm", json!(true)));
    assert!(first("none", json!(null)));
    assert!(!first("none", json!(false)));
}

#[test]
fn a_chat_template_labels_the_answer_and_the_end_of_its_turn() {
    let workshop = Workshop::new();
    workshop.set_tokenizer("chat_template", json!(include_str!("../small_chat_template.jinja")));
    let row = json!({ "messages": [
        { "role": "user", "content": "One?" },
        { "role": "assistant", "content": "Two." },
        { "role": "user", "content": "Three?" },
        { "role": "assistant", "content": "Four." },
    ] });
    let file = workshop.file("a.jsonl", row.to_string());
    workshop.run(&data_config(json!({ "instructions": file, "template": "chat" }))).unwrap();
    let tokenizer = workshop.tokenizer();
    let sequence = workshop.sequences(Split::Train).remove(0);
    assert_eq!(
        tokenizer.decode_all(&sequence.input_ids).unwrap(),
        "[user] One?\n[assistant] Two.<|endoftext|>\n[user] Three?\n[assistant] Four.<|endoftext|>"
    );
    assert_eq!(labelled(&sequence, &tokenizer), "Four.<|endoftext|>");
    assert_eq!(tokenizer.stop_ids(), [tokenizer.eos().unwrap()]);

    let error = workshop.run(&data_config(json!({ "instructions": file }))).unwrap_err().to_string();
    assert!(error.contains("line 1: expected one message of `user` before the answer"), "{error}");
}

#[test]
fn a_template_without_an_end_of_turn_gets_the_end_of_sequence() {
    let workshop = Workshop::new();
    workshop.set_tokenizer("chat_template", json!("{% for m in messages %}{{ m.role }}:{{ m.content }}\n{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"));
    let file = workshop.file("a.jsonl", ROW);
    workshop.run(&data_config(json!({ "instructions": file, "template": "chat" }))).unwrap();
    let sequence = workshop.sequences(Split::Train).remove(0);
    assert_eq!(labelled(&sequence, &workshop.tokenizer()), "Hello!\n<|endoftext|>");
}

#[test]
fn limits_drop_long_prompts_and_cut_long_responses() {
    let workshop = Workshop::new();
    let rows = [("a", "b".repeat(50)), (&"c".repeat(50), "d".into()), ("a", "b".repeat(50))];
    let rows: Vec<String> = rows
        .iter()
        .map(|(prompt, response)| json!({"instruction": prompt, "response": response}).to_string())
        .collect();
    let file = workshop.file("a.jsonl", rows.join("\n"));
    let data = data_config(json!({
        "instructions": file, "template": "none", "max_prompt_tokens": 20, "max_tokens": 30
    }));
    let summary = workshop.run(&data).unwrap();
    assert_eq!((summary.rows, summary.dropped.prompt_too_long, summary.dropped.duplicate), (3, 1, 1));
    assert_eq!((summary.train.cut, summary.train.longest_tokens, summary.train.labelled_tokens), (1, 30, 28));
    let text = summary.to_string();
    assert!(text.contains("3 rows read, 2 dropped: 1 with a prompt over 20 tokens, 1 duplicate"), "{text}");
}

#[test]
fn documents_are_labelled_from_the_second_token_on() {
    let workshop = Workshop::new();
    workshop.begin_with_bos();
    let file = workshop.file("a.txt", "One day.\n\nTwo days.\nMore.\n\n\n\nOne day.\n");
    let data = data_config(json!({ "text": file, "document_separator": "\n\n" }));
    let summary = workshop.run(&data).unwrap();
    assert_eq!((summary.rows, summary.train.sequences, summary.dropped.duplicate), (3, 2, 1));
    let tokenizer = workshop.tokenizer();
    let sequence = workshop.sequences(Split::Train).remove(1);
    let text = tokenizer.decode_all(&sequence.input_ids).unwrap();
    assert_eq!(text, "<|endoftext|>Two days.\nMore.<|endoftext|>");
    assert_eq!(labelled(&sequence, &tokenizer), text.strip_prefix("<|endoftext|>").unwrap());
    assert_eq!(sequence.source.as_deref(), Some("a.txt:3"));
}

#[test]
fn the_split_is_by_row_and_exact_in_number() {
    let workshop = Workshop::new();
    let row = |index: usize| json!({ "instruction": format!("{index}"), "response": "x" }).to_string();
    let rows: Vec<String> = (0..200).map(row).collect();
    let file = workshop.file("a.jsonl", rows.join("\n"));
    let half = workshop.file("b.jsonl", rows[..100].join("\n"));
    let split = |file, split: serde_json::Value| {
        let data = data_config(json!({ "instructions": file, "template": "none", "split": split }));
        workshop.run(&data).unwrap();
        let valid = workshop.sequences(Split::Valid).into_iter().map(|sequence| sequence.input_ids);
        let valid: Vec<_> = valid.collect();
        let examples =
            examples(&data, &workshop.tokenizer_config(), &workshop.tokenizer(), Some(Split::Valid)).unwrap();
        assert_eq!(examples.len(), valid.len());
        valid
    };
    assert_eq!(split(&file, json!({ "valid_rows": 30, "seed": 5 })).len(), 30);
    assert_ne!(
        split(&file, json!({ "valid_rows": 30, "seed": 5 })),
        split(&file, json!({ "valid_rows": 30, "seed": 6 }))
    );
    let all = split(&file, json!({ "valid_fraction": 0.2, "seed": 5 }));
    let first = split(&half, json!({ "valid_fraction": 0.2, "seed": 5 }));
    assert!(all.starts_with(&first) && all.len() > first.len(), "a row's side does not depend on other rows");
    assert!((20..60).contains(&all.len()), "{}", all.len());
}

#[test]
fn three_sides_share_no_prompt_and_do_not_move_each_other() {
    let workshop = Workshop::new();
    // Every prompt three times, with other responses.
    let row = |index: usize| {
        json!({ "instruction": format!("p{}", index % 50), "response": format!("r{index}") }).to_string()
    };
    let rows: Vec<String> = (0..150).map(row).collect();
    let file = workshop.file("a.jsonl", rows.join("\n"));
    let sides = |split: serde_json::Value| {
        let data = data_config(json!({ "instructions": file, "template": "none", "split": split }));
        let summary = workshop.run(&data).unwrap();
        let prompts = Split::ALL.map(|split| {
            if summary.side(split).sequences == 0 {
                return BTreeSet::new();
            }
            let (config, tokenizer) = (workshop.tokenizer_config(), workshop.tokenizer());
            let examples = examples(&data, &config, &tokenizer, Some(split)).unwrap();
            assert_eq!(examples.len() as u64, summary.side(split).sequences);
            examples.into_iter().map(|example| example.prompt).collect::<BTreeSet<_>>()
        });
        (prompts, Split::ALL.map(|split| summary.side(split).sequences))
    };
    let (both, sizes) = sides(json!({ "valid_rows": 29, "test_rows": 31, "seed": 5 }));
    assert_eq!(sizes, [87, 30, 33], "rows that share the last prompt come along");
    for (one, other) in [(0, 1), (0, 2), (1, 2)] {
        assert!(both[one].is_disjoint(&both[other]), "{one} and {other}");
    }
    let (valid, _) = sides(json!({ "valid_rows": 29, "seed": 5 }));
    let (test, _) = sides(json!({ "valid_rows": 3, "test_rows": 31, "seed": 5 }));
    assert_eq!((&valid[1], &test[2]), (&both[1], &both[2]), "neither depends on the size of the other");
    let (fractions, sizes) = sides(json!({ "valid_fraction": 0.2, "test_fraction": 0.3, "seed": 5 }));
    assert!(fractions[1].is_disjoint(&fractions[2]) && sizes.iter().sum::<u64>() == 150, "{sizes:?}");
    assert!((12..48).contains(&sizes[1]) && (24..66).contains(&sizes[2]), "{sizes:?}");
    for split in ["valid", "test"] {
        let read = SequenceDataset::open(workshop.path("sequences").join(split)).unwrap();
        assert!(read.read_examples(0..1).unwrap()[0].1.is_some(), "{split} has its rows");
    }
}

#[test]
fn what_is_not_a_dataset_is_not_removed_with_a_side() {
    let workshop = Workshop::new();
    let file = workshop.file("a.jsonl", format!("{ROW}{}", ROW.replace("hello", "no")));
    let test = workshop.path("sequences/test");
    let run = |rows: usize| {
        let split = json!({ "test_rows": rows });
        workshop.run(&data_config(json!({ "instructions": file, "split": split }))).unwrap()
    };
    run(1);
    fs_err::write(test.join("notes.txt"), "mine").unwrap();
    run(0);
    assert!(!test.join("manifest.json").exists() && test.join("notes.txt").exists());
    // What a run that was killed leaves: no manifest, and what is being written.
    fs_err::remove_dir_all(&test).unwrap();
    run(1);
    fs_err::remove_file(test.join("manifest.json")).unwrap();
    fs_err::create_dir_all(test.join("_softshard/tmp")).unwrap();
    run(0);
    assert!(!test.exists());
}

#[test]
fn bad_rows_stop_the_stage_before_anything_is_written() {
    let workshop = Workshop::new();
    let cases: [(&str, &[u8], &str); 3] = [
        (
            "broken.jsonl",
            b"{\"instruction\": ",
            "line 2: expected one JSON object, found broken JSON: EOF while parsing a value at column 16\nhint: each line is one whole object; was the file cut off?",
        ),
        (
            "latin1.jsonl",
            b"{\"instruction\": \"\xe9\"}",
            "line 2: expected UTF-8, found byte 0xe9 at byte 18 of the line\nhint: convert the file first, for example with `iconv -f WINDOWS-1252 -t UTF-8`",
        ),
        (
            "empty.jsonl",
            b"{\"instruction\": \"a\", \"response\": \" \\n\"}",
            "line 2: expected a response, found an empty one (in 1 of 2 rows)\nhint: correct the row, or set `data.empty_responses = \"drop\"`",
        ),
    ];
    for (name, bad, expected) in cases {
        let file = workshop.file(name, [ROW.as_bytes(), bad].concat());
        let error = workshop.run(&data_config(json!({ "instructions": file }))).unwrap_err();
        assert!(error.is_bad_data());
        assert_eq!(error.to_string(), format!("data `{}` {expected}", file.display()));
        assert!(!workshop.path("sequences").exists(), "{name}");
    }
    let data =
        data_config(json!({ "instructions": workshop.path("empty.jsonl"), "empty_responses": "drop" }));
    let summary = workshop.run(&data).unwrap();
    assert_eq!((summary.train.sequences, summary.dropped.empty_response), (1, 1));
}

#[test]
fn a_bad_row_leaves_earlier_sequences_alone() {
    let workshop = Workshop::new();
    let data = data_config(json!({ "instructions": workshop.file("a.jsonl", ROW) }));
    workshop.run(&data).unwrap();
    let before = workshop.sequences(Split::Train);
    workshop.file("a.jsonl", format!("{ROW}{{"));
    workshop.run(&data).unwrap_err();
    assert_eq!(workshop.sequences(Split::Train), before);
}

#[test]
fn examples_carry_what_the_evaluation_needs() {
    let workshop = Workshop::new();
    let data = data_config(json!({ "instructions": workshop.path("rows.jsonl"), "template": "none" }));
    let tokenizer = workshop.tokenizer();
    let examples = examples(&data, &workshop.tokenizer_config(), &tokenizer, None).unwrap();
    assert_eq!(examples.len(), 20);
    for example in examples {
        assert_eq!(example.prompt, format!("{}\n{}\n", example.instruction, example.context));
        assert_eq!(example.prompt_ids, tokenizer.encode(&example.prompt).unwrap());
        assert_eq!(example.category.as_deref(), Some("summarization"));
        let facts: demo::Facts = serde_json::from_value(example.facts.unwrap()).unwrap();
        assert!(demo::faithfulness(&facts, &example.response).faithful);
    }
}

#[test]
fn a_side_without_sequences_is_not_left_from_an_earlier_run() {
    let workshop = Workshop::new();
    let file = workshop.file("a.jsonl", format!("{ROW}{}", ROW.replace("hello", "no")));
    let split = |valid_rows: usize| {
        data_config(json!({ "instructions": file, "split": { "valid_rows": valid_rows } }))
    };
    workshop.run(&split(1)).unwrap();
    assert_eq!(workshop.sequences(Split::Valid).len(), 1);
    workshop.run(&split(0)).unwrap();
    assert_eq!(workshop.sequences(Split::Train).len(), 2);
    assert!(!workshop.path("sequences/valid").exists());
}

#[test]
fn dropping_every_row_is_an_error() {
    let workshop = Workshop::new();
    let file = workshop.file("a.jsonl", ROW);
    let error =
        workshop.run(&data_config(json!({ "instructions": file, "max_prompt_tokens": 9 }))).unwrap_err();
    let text = error.to_string();
    assert!(text.contains("1 rows read, 1 dropped: 1 with a prompt over 9 tokens"), "{text}");
    assert!(error.is_bad_data() && !workshop.path("sequences").exists());
}

#[test]
fn a_set_stop_flag_interrupts() {
    let workshop = Workshop::new();
    let data = data_config(json!({ "instructions": workshop.file("a.jsonl", ROW) }));
    let stopped = AtomicBool::new(true);
    let error =
        run(&data, &workshop.tokenizer_config(), &workshop.path("sequences"), &stopped, &()).unwrap_err();
    assert!(matches!(error, Error::Interrupted));
    assert!(!workshop.path("sequences").exists());
}

#[test]
fn bad_tokenizers_are_refused_by_name() {
    let workshop = Workshop::new();
    let message = || Tokenizer::load(&workshop.path("tokenizer")).unwrap_err().to_string();
    workshop.set_tokenizer("eos_token", json!("</s>"));
    assert!(
        message().ends_with("expected `eos_token` in the vocabulary, found no `</s>` there"),
        "{}",
        message()
    );
    workshop.set_tokenizer("eos_token", json!(null));
    workshop.set_tokenizer("chat_template", json!(3));
    assert!(message().contains("expected `chat_template` as a text or a list"), "{}", message());
    workshop.set_tokenizer("chat_template", json!(null));
    let data = data_config(json!({ "instructions": workshop.file("a.jsonl", ROW) }));
    let error = workshop.run(&data).unwrap_err().to_string();
    assert!(error.contains("expected an `eos_token`, found none"), "{error}");
    workshop.file("tokenizer/tokenizer.json", "{");
    assert!(message().contains("tokenizer.json`: EOF while parsing"), "{}", message());
    fs_err::remove_file(workshop.path("tokenizer/tokenizer.json")).unwrap();
    assert!(message().contains("tokenizer.json"), "{}", message());
}
