//! `mask = "generation"` is transformers' `return_assistant_tokens_mask`, by golden files that `tests/peers/golden_masks.py` wrote.

use std::path::Path;

use serde::Deserialize;
use serde_json::json;
use softshard_prepare::Value;

use crate::masks::Chat;

#[derive(Deserialize)]
struct Masked {
    tokenizer: String,
    trims_offsets: bool,
    template: String,
    messages: Value,
    ids: Vec<i32>,
    mask: Vec<u8>,
}

#[test]
fn the_marks_of_a_template_give_the_ids_and_the_mask_of_transformers() {
    let path =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/peers/golden/tokenizers/masks.expected.json");
    let rows: Vec<Masked> = serde_json::from_slice(&fs_err::read(path).unwrap()).unwrap();
    assert!(rows.len() > 80);
    let mut unlabelled = 0;
    for row in rows {
        let chat = Chat::new(&row.tokenizer, &row.template);
        if row.trims_offsets {
            let processor = json!({ "type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true });
            chat.edit("tokenizer.json", |file| file["post_processor"] = processor);
        }
        let place = format!("{} {} {} {}", row.tokenizer, row.trims_offsets, row.template, row.ids.len());
        let labelled = (1..row.mask.len()).filter(|at| row.mask[*at] == 1);
        let positions: Vec<i32> = labelled.map(|at| i32::try_from(at).unwrap()).collect();
        let prepared = chat.prepare(&[row_of(row.messages)], json!({ "mask": "generation" }));
        if positions.is_empty() {
            unlabelled += 1;
            let text = prepared.unwrap_err().to_string();
            assert!(text.contains("1 rows read, 1 dropped: 1 without a token to label"), "{place}: {text}");
            continue;
        }
        let (_, sequences) = prepared.unwrap();
        assert_eq!(sequences[0].input_ids, row.ids, "{place}");
        assert_eq!(sequences[0].positions, positions, "{place}");
    }
    assert_eq!(unlabelled, 5, "where the offsets leave out the space that a mark begins with");
}

/// With the order of its keys, in which templates print them.
fn row_of(messages: Value) -> String {
    serde_json::to_string(&Value::Object(vec![("messages".to_owned(), messages)])).unwrap()
}
