//! Every kind of file, and what is none.

use std::io::Write;
use std::sync::atomic::AtomicBool;

use serde_json::json;

use super::super::*;
use super::{GOOD, read_with};
use crate::DataConfig;

#[test]
fn arrays_are_read_row_by_row() {
    let row = |text: &str| format!("{{\"instruction\": \"{text}\", \"response\": \"x\"}}");
    let tricky = row("]},{\\\"\\\\").replace("\"x\"", "\"]\"");
    let array = format!("\u{feff} [\n {} ,\r\n{}\t,{}]\n\n", row("a"), tricky, row("b"));
    let (rows, _) = read_with(array.as_bytes(), json!({})).unwrap();
    let sources: Vec<String> = rows.iter().map(|row| row.place.source()).collect();
    assert_eq!(sources, ["data.jsonl:1", "data.jsonl:2", "data.jsonl:3"]);
    assert_eq!(read_with(b"[ ]", json!({})).unwrap().0.len(), 0);
    let good = row("a");
    for (array, expected) in [
        (format!("[{good}, 7]"), "row 2: expected one JSON object, found a number"),
        (
            format!("[{good}, {{\"a\" 1}}]"),
            "row 2: expected one JSON object, found broken JSON: expected `:` at column 6",
        ),
        (format!("[{good},]"), "row 2: expected one JSON object, found broken JSON: EOF"),
        (
            format!("[{good} {good}]"),
            "row 1: expected one JSON object, found broken JSON: trailing characters",
        ),
        (
            format!("[{good}, {{\"instr"),
            "row 2: expected `]` at the end of the array, found the end of the file",
        ),
        (format!("[{good}"), "row 1: expected `]` at the end of the array, found the end of the file"),
        (format!("[{good}] []"), "row 1: expected nothing after the array, found '['"),
    ] {
        let error = read_with(array.as_bytes(), json!({})).unwrap_err().to_string();
        assert!(error.contains(expected), "{array}: {error}");
    }
}

#[test]
fn packed_rows_are_unpacked() {
    let gzip = |text: &[u8]| {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(text).unwrap();
        encoder.finish().unwrap()
    };
    let zstd = |text: &[u8]| zstd::encode_all(text, 3).unwrap();
    let rows = GOOD.repeat(3000);
    let array = format!("[{}]", vec![GOOD.trim(); 3000].join(","));
    let parts = [gzip(GOOD.as_bytes()), gzip(GOOD.as_bytes())].concat();
    let frames = [zstd(GOOD.as_bytes()), zstd(GOOD.as_bytes())].concat();
    let skipped = [b"\x50\x2a\x4d\x18\x02\x00\x00\x00ab".to_vec(), zstd(GOOD.as_bytes())].concat();
    for (bytes, expected) in [
        (gzip(rows.as_bytes()), 3000),
        (zstd(rows.as_bytes()), 3000),
        (gzip(array.as_bytes()), 3000),
        (parts, 2),
        (frames, 2),
        (skipped, 1),
    ] {
        assert_eq!(read_with(&bytes, json!({})).unwrap().0.len(), expected);
    }
    let whole = gzip(
        &(0..2000u32)
            .flat_map(|n| {
                format!("{{\"instruction\": \"{n}\", \"response\": \"{}\"}}\n", n * 7919 % 1013).into_bytes()
            })
            .collect::<Vec<u8>>(),
    );
    let error = read_with(&whole[..whole.len() / 2], json!({})).unwrap_err().to_string();
    assert!(error.contains("expected whole gzip data, found them damaged or cut off"), "{error}");
    let mut damaged = whole.clone();
    let last = damaged.len() - 6;
    damaged[last] ^= 1;
    assert!(read_with(&damaged, json!({})).unwrap_err().to_string().contains("expected whole gzip data"));
    let packed = zstd(rows.as_bytes());
    let error = read_with(&packed[..packed.len() - 3], json!({})).unwrap_err().to_string();
    assert!(error.contains("expected whole zstd data"), "{error}");
    let twice = read_with(&gzip(&gzip(GOOD.as_bytes())), json!({})).unwrap_err().to_string();
    assert!(twice.contains("expected JSONL, a JSON array or Parquet, found gzip in gzip"), "{twice}");
}

#[test]
fn a_file_that_changes_between_two_readings_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("data.jsonl");
    let data: DataConfig = serde_json::from_value(json!({ "instructions": path })).unwrap();
    let never = AtomicBool::new(false);
    let read = |text: &str| {
        fs_err::write(&path, text).unwrap();
        let inputs = Inputs::open(&data, None, &never).unwrap();
        (inputs.for_each_step(&data, &never, |_| Ok(())).unwrap(), inputs)
    };
    let (first, inputs) = read(&GOOD.repeat(2));
    let compare = |text: &str| first.check_same(&read(text).0, &inputs).map_err(|error| error.to_string());
    assert_eq!(compare(&GOOD.repeat(2)), Ok(()));
    assert!(
        compare(&GOOD.repeat(3)).unwrap_err().contains("expected 2 rows, as when it was checked, found 3")
    );
    assert!(
        compare(&GOOD.repeat(2).replacen('a', "c", 1))
            .unwrap_err()
            .contains("expected the rows that were checked, found others")
    );
}

#[test]
fn what_is_no_file_is_named() {
    let folder = tempfile::tempdir().unwrap();
    fs_err::write(folder.path().join("dataset_info.json"), "{}").unwrap();
    let open = |path: &std::path::Path| {
        let data: DataConfig = serde_json::from_value(json!({ "instructions": path })).unwrap();
        Inputs::open(&data, None, &AtomicBool::new(false)).err().map(|error| error.to_string()).unwrap()
    };
    assert!(open(folder.path()).contains(
        "expected a file, found a folder of dataset_info.json\nhint: this was saved by `save_to_disk`"
    ));
    assert!(open(std::path::Path::new("/dev/null")).contains("expected a file or a pipe, found a device"));
    assert!(open(&folder.path().join("none")).contains("hint: paths of a recipe are from its folder"));
}

fn golden(name: &str) -> Vec<u8> {
    fs_err::read(PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/peers/golden/rows").join(name))
        .unwrap()
}

#[test]
fn tables_of_others_have_the_rows_that_they_say() {
    for name in ["datasets", "json", "groups", "pairs", "tokens"] {
        let read = |ending: &str| {
            let bytes = golden(&format!("{name}.{ending}"));
            let (rows, counts) = read_with(&bytes, json!({ "template": "chat" })).unwrap();
            let contents: Vec<String> = rows.iter().map(|row| format!("{:?}", row.content)).collect();
            let lines: Vec<u64> = rows.iter().map(|row| row.place.line).collect();
            (contents, lines, counts)
        };
        let (table, array) = (read("parquet"), read("json"));
        assert!(table.0.len() >= 3);
        table.0.iter().zip(&array.0).for_each(|(table, array)| assert_eq!(table, array, "{name}"));
        assert_eq!(table, array, "{name}");
    }
}

#[test]
fn what_a_table_has_and_json_has_not_is_named_where_it_counts() {
    let read = |name: &str, ignored: &[&str]| {
        let settings = json!({ "template": "none", "ignore_columns": ignored });
        read_with(&golden(name), settings).map(|(rows, _)| rows.len()).map_err(|error| error.to_string())
    };
    let error = read("bytes.parquet", &[]).unwrap_err();
    let expected = "row 2: expected texts, numbers, lists or objects in `image`, found bytes that are no UTF-8\n\
                    hint: `data.ignore_columns = [\"image\"]`";
    assert!(error.contains(expected), "{error}");
    assert_eq!(read("bytes.parquet", &["image"]), Ok(2));
    let error = read("gzip.parquet", &[]).unwrap_err();
    assert!(
        error.contains("row 1: expected a readable row of Parquet, found columns packed with GZIP"),
        "{error}"
    );
}

#[test]
fn damaged_tables_are_errors_and_never_panics() {
    let (whole, mut refused) = (golden("groups.parquet"), 0);
    for cut in [5, 12, whole.len() / 2, whole.len() - 1] {
        let error = read_with(&whole[..cut], json!({ "template": "chat" })).unwrap_err();
        assert!(error.to_string().contains("expected a whole Parquet file"), "{error}");
    }
    for at in (4..whole.len()).step_by(37) {
        let mut damaged = whole.clone();
        damaged[at] ^= 0x55;
        match read_with(&damaged, json!({ "template": "chat" })) {
            Ok((rows, _)) => assert!(rows.len() <= 200),
            Err(error) => {
                assert!(error.is_bad_data(), "{error}");
                refused += 1;
            }
        }
    }
    assert!(refused > 30, "{refused}");
}
