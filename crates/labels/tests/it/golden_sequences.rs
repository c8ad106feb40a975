//! Sequences that were written once for each version of their format, and are read for ever: as in `golden.rs`, never made again.
//!
//! Version 2 has the provenance in the manifest and the examples of held-out rows beside them.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use softshard_labels::{
    Artefact, Example, Provenance, Sequence, SequenceDataset, SequenceWriter, SequencesInfo,
    SequencesManifest,
};

use crate::common::{Random, VOCABULARY, info, sequence, tokenizer};

const VERSION: u32 = 2;

fn folder(version: u32) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/golden/v{version}"))
}

fn rows() -> impl Iterator<Item = (Sequence, Option<Example>)> {
    (0u64..8).map(|seed| {
        let sequence = sequence(&mut Random(seed), VOCABULARY);
        // One row without: it is not all or nothing.
        let example = (seed != 3).then(|| Example {
            prompt_tokens: usize::try_from(sequence.positions[0]).unwrap(),
            instruction: format!("Say “{seed}”."),
            context: if seed % 2 == 0 { "Two\nlines.".to_owned() } else { String::new() },
            reference: format!("{seed}"),
            category: (seed > 4).then(|| "numbers".to_owned()),
            facts: (seed == 6).then(|| json!({ "number": 6, "share": 0.5 })),
        });
        (sequence, example)
    })
}

fn provenance() -> Provenance {
    let mut made_from = Provenance::new(Artefact::Sequences);
    // Of whoever made the golden files, not of who reads them.
    made_from.softshard = "0.1.0".to_owned();
    made_from.tokenizer(&tokenizer());
    made_from.input("data.instructions.0", "66".repeat(32));
    made_from.recipe.insert("data".to_owned(), json!({ "template": "alpaca", "split": { "seed": 7 } }));
    made_from
}

fn write(dir: &Path) -> SequencesManifest {
    let info = SequencesInfo { split: "valid".to_owned(), ..info() };
    let mut writer = SequenceWriter::create(dir, info, 4).unwrap().made_from(provenance());
    rows().for_each(|(sequence, example)| writer.push_example(sequence, example.as_ref()).unwrap());
    writer.finish().unwrap()
}

fn examples() -> String {
    let lines: Vec<String> = rows().map(|(_, example)| serde_json::to_string(&example).unwrap()).collect();
    format!("[\n{}\n]\n", lines.join(",\n"))
}

/// As `golden.rs` has them.
fn sequences() -> String {
    let line = |(sequence, _): (Sequence, Option<Example>)| {
        let row = json!({
            "sequence_key": sequence.key().to_string(),
            "source": sequence.source,
            "input_ids": sequence.input_ids,
            "positions": sequence.positions,
        });
        row.to_string()
    };
    let lines: Vec<String> = rows().map(line).collect();
    format!("[\n{}\n]\n", lines.join(",\n"))
}

#[test]
#[ignore = "makes the files of a version that has none yet"]
fn golden_sequences_of_this_version() {
    let folder = folder(VERSION);
    assert!(!folder.join("sequences").exists(), "{} is there: it is never made again", folder.display());
    write(&folder.join("sequences"));
    fs_err::write(folder.join("sequences.expected.json"), sequences()).unwrap();
    fs_err::write(folder.join("sequences.examples.json"), examples()).unwrap();
}

#[test]
fn golden_sequences_and_examples_are_read() {
    let dataset = SequenceDataset::open(folder(VERSION).join("sequences")).unwrap();
    assert_eq!(dataset.manifest().version, VERSION);
    assert_eq!(dataset.manifest().provenance, Some(provenance()));
    let read = dataset.read_examples(0..dataset.len()).unwrap();
    assert_eq!(read, rows().collect::<Vec<_>>());
    let text = fs_err::read_to_string(folder(VERSION).join("sequences.examples.json")).unwrap();
    let found: Vec<Value> = read.iter().map(|(_, example)| serde_json::to_value(example).unwrap()).collect();
    assert_eq!(serde_json::from_str::<Vec<Value>>(&text).unwrap(), found);
    assert_eq!(text, examples());
    let text = fs_err::read_to_string(folder(VERSION).join("sequences.expected.json")).unwrap();
    assert_eq!(text, sequences());
    let prompt = read[0].1.as_ref().unwrap().prompt(&read[0].0);
    assert_eq!(prompt, &read[0].0.input_ids[..usize::try_from(read[0].0.positions[0]).unwrap()]);
}

/// The same content still gives the bytes that were written then.
#[test]
fn golden_sequences_are_what_is_written() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path());
    let manifest = |dir: &Path| fs_err::read(dir.join("manifest.json")).unwrap();
    assert_eq!(manifest(dir.path()), manifest(&folder(VERSION).join("sequences")));
}

#[test]
fn the_version_before_has_neither_provenance_nor_examples() {
    let dataset = SequenceDataset::open(folder(1).join("sequences")).unwrap();
    assert_eq!((dataset.manifest().version, &dataset.manifest().provenance), (1, &None));
    let read = dataset.read_examples(0..dataset.len()).unwrap();
    assert!(!read.is_empty() && read.iter().all(|(_, example)| example.is_none()));
    let (manifest, blake3) = SequenceDataset::manifest_of(folder(1).join("sequences")).unwrap();
    assert_eq!((&manifest, &*blake3), (dataset.manifest(), dataset.manifest_blake3()));
}

#[test]
fn examples_and_versions_that_cannot_be_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let mut writer = SequenceWriter::create(dir.path(), info(), 4).unwrap();
    let (sequence, example) = rows().next().unwrap();
    let long = Example { prompt_tokens: sequence.input_ids.len() + 1, ..example.unwrap() };
    let error = writer.push_example(sequence, Some(&long)).unwrap_err().to_string();
    assert!(error.contains("example prompt_tokens: expected at most the "), "{error}");

    let change = |edit: &dyn Fn(&mut Value)| {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path());
        let path = dir.path().join("manifest.json");
        let mut manifest: Value = serde_json::from_slice(&fs_err::read(&path).unwrap()).unwrap();
        edit(&mut manifest);
        fs_err::write(&path, serde_json::to_vec(&manifest).unwrap()).unwrap();
        SequenceDataset::open(dir.path()).unwrap_err().to_string()
    };
    let error = change(&|manifest| drop(manifest.as_object_mut().unwrap().remove("provenance")));
    assert!(error.contains("provenance: expected what the sequences were made from, found none"), "{error}");
    let error = change(&|manifest| manifest["version"] = json!(1));
    assert!(error.contains("provenance: expected none in version 1, found one"), "{error}");
    let error = change(&|manifest| manifest["version"] = json!(3));
    assert!(error.contains("expected version 1 to 2, found 3"), "{error}");
    // A shard of the other version, under a manifest of this one.
    let error = change(&|manifest| {
        manifest["version"] = json!(1);
        manifest.as_object_mut().unwrap().remove("provenance");
    });
    assert!(error.contains("schema: expected the columns of the format"), "{error}");
}
