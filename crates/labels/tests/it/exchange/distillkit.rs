//! Captures of DistillKit.

use std::fs;
use std::path::PathBuf;

use serde_json::{Value, json};
use softshard_labels::{DistillKitConfig, ImportSource, ImportTarget, LabelDataset, TeacherIdentity, import};

use super::{FITTED, GO, golden, refused, target};

#[test]
fn captures_of_distillkit_decode_as_its_own_code_decodes_them() {
    for case in ["recommended", "budget", "delta", "bins", "residuals", "exact"] {
        let expected: Value =
            serde_json::from_slice(&fs::read(golden(case).join("expected.json")).unwrap()).unwrap();
        let config = DistillKitConfig::load(&golden(case).join("compression_config.yaml")).unwrap();
        assert_eq!(config, serde_json::from_value(expected["config"].clone()).unwrap());
        let files = [golden(case).join("data_0.parquet")];
        let source = ImportSource::DistillKit { files: &files, config: &config };
        let folder = tempfile::tempdir().unwrap();
        if case != "exact" {
            refused(
                import(folder.path(), &source, &target(1000), &GO, &()),
                &["tail_log_mass: ", "--approximate-tail"],
            );
        }
        let target = ImportTarget { approximate_tail: true, ..target(1000) };
        let done = import(folder.path(), &source, &target, &GO, &())
            .unwrap_or_else(|error| panic!("{case}: {error}"));
        // Its last entries describe a token that is not there.
        assert_eq!((done.manifest.rows, done.manifest.labelled_tokens), (2, 4 + 2), "{case}");
        let rows: Result<Vec<_>, _> = LabelDataset::open(folder.path()).unwrap().iter().collect();
        for (labels, expected) in rows.unwrap().iter().zip(expected["rows"].as_array().unwrap()) {
            assert_eq!(json!(labels.input_ids), expected["input_ids"]);
            let positions: Vec<i32> = (1..i32::try_from(labels.input_ids.len()).unwrap()).collect();
            assert_eq!(labels.positions, positions);
            for (place, entries) in labels.entries().enumerate() {
                let list = |key: &str| expected[key][place].as_array().unwrap().clone();
                let mut pairs: Vec<(i64, f64)> = list("token_ids")
                    .iter()
                    .zip(list("log_probs"))
                    .map(|(id, log_prob)| (id.as_i64().unwrap(), log_prob.as_f64().unwrap()))
                    .collect();
                pairs.sort_by(|one, next| next.1.total_cmp(&one.1).then(one.0.cmp(&next.0)));
                assert_eq!(pairs.len(), entries.token_ids.len());
                for ((id, log_prob), (_, expected)) in
                    entries.token_ids.iter().zip(entries.log_probs).zip(&pairs)
                {
                    assert!(
                        (f64::from(*log_prob) - expected).abs() < FITTED,
                        "{case}: {log_prob} and {expected}"
                    );
                    let of_id = pairs.iter().find(|(other, _)| *other == i64::from(*id)).unwrap().1;
                    assert!((f64::from(*log_prob) - of_id).abs() < FITTED, "{case}: id {id}");
                }
            }
        }
    }
}

#[test]
fn packed_captures_are_cut_into_their_documents() {
    let config = DistillKitConfig::load(&golden("exact").join("compression_config.yaml")).unwrap();
    let (files, packed) =
        ([golden("exact").join("data_0.parquet")], [golden("exact").join("packed.parquet")]);
    let folder = tempfile::tempdir().unwrap();
    let rows = |files: &[PathBuf], name: &str| {
        let source = ImportSource::DistillKit { files, config: &config };
        import(&folder.path().join(name), &source, &target(1000), &GO, &()).unwrap();
        let rows: Result<Vec<_>, _> = LabelDataset::open(folder.path().join(name)).unwrap().iter().collect();
        rows.unwrap()
    };
    let (alone, packed) = (rows(&files, "alone"), rows(&packed, "packed"));
    // Packing cuts the tokens off that have no entries: one of the first document. The loss does not count for the last
    // token of the second.
    assert_eq!(packed[0].input_ids, alone[0].input_ids[..4]);
    assert_eq!(
        (packed[0].positions.as_slice(), packed[1].positions.as_slice()),
        ([1, 2, 3].as_slice(), [1].as_slice())
    );
    assert_eq!(packed[1].input_ids, alone[1].input_ids);
    assert_eq!(packed[0].token_ids, alone[0].token_ids[..3 * 16]);
    assert_eq!(packed[1].log_probs, alone[1].log_probs[..16]);
    assert_eq!(packed[1].source.as_deref(), Some("packed.parquet:0:4"));
}

#[test]
fn other_layouts_of_distillkit_are_refused_by_name() {
    let expected: Value =
        serde_json::from_slice(&fs::read(golden("delta").join("expected.json")).unwrap()).unwrap();
    let mut config: DistillKitConfig = serde_json::from_value(expected["config"].clone()).unwrap();
    let files = [golden("delta").join("data_0.parquet")];
    let folder = tempfile::tempdir().unwrap();
    let target = ImportTarget { approximate_tail: true, ..target(1000) };
    let out = folder.path().join("out");
    config.k = 65;
    let source = ImportSource::DistillKit { files: &files, config: &config };
    refused(
        import(&out, &source, &target, &GO, &()),
        &["row 0 place 0 bytepacked_indices: expected 82 bytes, found 80"],
    );
    config.k = 64;
    config.d = 600;
    let source = ImportSource::DistillKit { files: &files, config: &config };
    let small = ImportTarget { teacher: TeacherIdentity::unverified("x", "y", 600), ..target.clone() };
    refused(import(&out, &source, &small, &GO, &()), &["expected an id in 0..600"]);
    config.term_dtype = softshard_labels::foreign::TermType::Float16;
    let source = ImportSource::DistillKit { files: &files, config: &config };
    refused(
        import(&out, &source, &target, &GO, &()),
        &["config: term_dtype: expected float32 or float64, found float16"],
    );
    assert!(!out.exists());
}
