//! What is labelled, and which tokenizers fit: by the binary, on data made here.

use std::fs;

use serde_json::{Value, json};
use softshard_e2e::{Said, World};
use softshard_labels::{Sequence, SequenceDataset};

const CHATML: &str = "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' }}{% if m.role == 'assistant' %}{% generation %}\
    {{ m.content + '<|im_end|>' }}{% endgeneration %}{% else %}{{ m.content + '<|im_end|>' }}{% endif %}{{ '\\n' }}{% endfor %}\
    {% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";

/// Changes a JSON file of the world.
fn edit(world: &World, path: &str, edit: impl FnOnce(&mut Value)) {
    let path = world.path(path);
    let mut value: Value =
        serde_json::from_slice(&fs::read(&path).expect("the file is there")).expect("it is JSON");
    edit(&mut value);
    fs::write(path, value.to_string()).expect("the file is written");
}

/// Adds special tokens to a tokenizer of 400.
fn add_tokens(world: &World, path: &str, tokens: &[&str]) {
    edit(world, path, |file| {
        for (id, token) in (400..).zip(tokens) {
            file["added_tokens"].as_array_mut().expect("a list").push(json!({
                "id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": true,
            }));
        }
    });
}

fn chat() -> World {
    let world = World::new();
    add_tokens(&world, "data/tokenizer/tokenizer.json", &["<|im_start|>", "<|im_end|>"]);
    edit(&world, "data/tokenizer/tokenizer_config.json", |config| config["chat_template"] = json!(CHATML));
    world
}

fn prepare(world: &World, rows: &[Value], overrides: &[&str]) -> Said {
    let rows: Vec<String> = rows.iter().map(Value::to_string).collect();
    fs::write(world.path("data/instructions.jsonl"), rows.join("\n")).expect("the rows are written");
    let all = [&["data.template=chat", "data.split={ seed = 1 }"], overrides].concat();
    world.run("prepare", &all)
}

fn sequences(world: &World) -> Vec<Sequence> {
    let dataset = SequenceDataset::open(world.path("run/sequences/train")).expect("sequences");
    dataset.read_all().expect("all of them")
}

fn turn(role: &str, content: &str) -> Value {
    json!({ "role": role, "content": content })
}

#[test]
fn each_mask_labels_what_it_says() {
    let world = chat();
    let row = json!({ "messages": [turn("user", "ab"), turn("assistant", "cd"), turn("user", "ef"), turn("assistant", "gh")] });
    let mut found = Vec::new();
    for mask in ["response", "all_responses", "generation", "all"] {
        prepare(&world, std::slice::from_ref(&row), &[&format!("data.mask={mask}")]).succeeded();
        let sequence = sequences(&world).remove(0);
        let labelled = |at: &i32| sequence.input_ids[usize::try_from(*at).expect("a position")];
        let ids: Vec<i32> = sequence.positions.iter().map(labelled).collect();
        let ends = ids.iter().filter(|id| **id == 401).count();
        found.push((ends, ids.contains(&400), sequence.positions));
    }
    assert_eq!([found[0].0, found[1].0, found[2].0, found[3].0], [1, 2, 2, 4]);
    assert_eq!(found[1].2, found[2].2, "the marks are around the answers with their ends");
    assert!(!found[1].1 && found[1].2.ends_with(&found[0].2) && found[3].1);
}

#[test]
fn what_is_left_out_is_said_in_numbers() {
    let world = chat();
    let weighed =
        json!({ "messages": [turn("user", "a"), { "role": "assistant", "content": "b", "weight": 0 }] });
    let said = prepare(
        &world,
        &[json!({ "messages": [turn("user", "a"), turn("assistant", "c")] }), weighed.clone()],
        &[],
    );
    let text = said.succeeded().stdout;
    assert!(text.contains("1 left out of the loss by the row itself"), "{text}");
    fs::remove_dir_all(world.path("run")).expect("the sequences are removed");
    prepare(&world, &[weighed], &[]).failed(3, &["1 left out of the loss by the row itself"]);
    assert!(!world.path("run/sequences").exists(), "nothing is written");
}

#[test]
fn the_first_token_is_warned_of() {
    let world = chat();
    edit(&world, "data/tokenizer/tokenizer.json", |file| {
        let token = "<|endoftext|>";
        let one = json!([{ "SpecialToken": { "id": token, "type_id": 0 } }, { "Sequence": { "id": "A", "type_id": 0 } }]);
        file["post_processor"] = json!({
            "type": "TemplateProcessing", "single": one, "pair": [{ "Sequence": { "id": "A", "type_id": 0 } }, { "Sequence": { "id": "B", "type_id": 0 } }],
            "special_tokens": { token: { "id": token, "ids": [0], "tokens": [token] } },
        });
    });
    let row = [json!({ "messages": [turn("user", "a"), turn("assistant", "b")] })];
    let said = prepare(&world, &row, &[]).succeeded();
    assert_eq!(said.stderr.matches("data.bos = \"as_tokenizer\"").count(), 1, "{}", said.stderr);
    assert!(said.stdout.contains("1 sequences without the first token"), "{}", said.stdout);
    for (bos, first) in [("never", 400), ("as_tokenizer", 0)] {
        let said = prepare(&world, &row, &[&format!("data.bos={bos}")]).succeeded();
        assert!(!said.stderr.contains("data.bos"), "{}", said.stderr);
        assert_eq!(sequences(&world)[0].input_ids[0], first, "{bos}");
    }
    prepare(&world, &row, &["data.bos=never", "tokenizer.add_bos=true"]).failed(2, &["tokenizer.add_bos"]);
}

#[test]
fn a_folder_without_tokenizer_json_says_how_to_make_it() {
    let world = World::new();
    fs::remove_file(world.path("data/tokenizer/tokenizer.json")).expect("the file is removed");
    for name in ["vocab.json", "merges.txt"] {
        fs::write(world.path("data/tokenizer").join(name), "{}").expect("another file is written");
    }
    let hint = "AutoTokenizer.from_pretrained(";
    world
        .run("prepare", &[])
        .failed(3, &["expected `tokenizer.json`, found `vocab.json` and `merges.txt`", hint]);
}

#[test]
fn a_model_with_more_tokens_learns_and_one_with_others_does_not() {
    let world = World::small_labelled();
    let own = "start/model/tokenizer.json";
    let before = fs::read(world.path(own)).expect("the model has a tokenizer");
    // Models have more rows than tokenizers have tokens; here the tokenizer gets fewer than its model instead.
    add_tokens(&world, own, &["<think>"]);
    let said = world.run("train-student", &["student.max_steps=1"]).succeeded();
    assert!(said.stderr.contains("and 1 more, from `<think>` (400) on"), "{}", said.stderr);
    // The recipe's tokenizer may be the one with more, too: labels have only the fingerprint of theirs. The model has 400 rows.
    add_tokens(&world, "data/tokenizer/tokenizer.json", &["<think>"]);
    world
        .run("train-student", &["output.student=other"])
        .failed(3, &["at most the model's 400 ids, found 401"]);
    fs::write(world.path(own), &before).expect("the tokenizer is put back");
    world
        .run("train-student", &["output.student=other"])
        .failed(3, &["id 400: expected", "`<think>`, found none"]);
    fs::write(world.path("data/tokenizer/tokenizer.json"), &before).expect("the tokenizer is put back");
    edit(&world, own, |file| file["model"]["merges"].as_array_mut().expect("merges").swap(0, 1));
    for stage in ["train-student", "evaluate"] {
        world.run(stage, &["evaluate.model=start/model"]).failed(3, &["merge or score 0: expected"]);
    }
    fs::remove_file(world.path(own)).expect("the file is removed");
    fs::write(world.path("start/model/tokenizer.model"), "x").expect("another file is written");
    world.run("train-student", &[]).failed(3, &["start/model", "found `tokenizer.model`"]);
}
