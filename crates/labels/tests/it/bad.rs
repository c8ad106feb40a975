//! Damaged, forged and foreign files: an error that names the place, never a wrong value.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use softshard_labels::{
    LabelDataset, LabelPlan, LabelWriter, OptionalColumn, ReadLimits, Selection, SequenceDataset,
    SequenceLabels, SequenceWriter, SequencesInfo,
};

use crate::common::{Random, TOP_4, VOCABULARY, info, labels, plan, sequence, write_dataset};

/// A finished dataset of 2 shards, and the name of the first.
fn dataset() -> (tempfile::TempDir, String) {
    let dir = tempfile::tempdir().unwrap();
    let manifest = write_dataset(dir.path(), &plan(LabelPlan::ranges(20, 10), TOP_4));
    (dir, manifest.shards[0].file.clone())
}

/// The message of opening, without the name of the folder.
fn message(dir: &Path) -> String {
    let error = LabelDataset::open(dir).expect_err("bad data").to_string();
    error.replace(dir.to_str().unwrap(), "DIR")
}

/// Changes the manifest as parsed JSON.
fn edit(dir: &Path, change: impl FnOnce(&mut Value)) {
    let path = dir.join("manifest.json");
    let mut manifest: Value = serde_json::from_slice(&fs_err::read(&path).unwrap()).unwrap();
    change(&mut manifest);
    fs_err::write(path, serde_json::to_vec(&manifest).unwrap()).unwrap();
}

/// Puts other bytes in place of the first shard and makes manifest and name agree with them.
fn forge(dir: &Path, name: &str, bytes: &[u8]) {
    let blake3 = blake3::hash(bytes).to_hex().to_string();
    let forged = format!("{}{}.parquet", &name[..name.len() - 20], &blake3[..12]);
    fs_err::remove_file(dir.join("data").join(name)).unwrap();
    fs_err::write(dir.join("data").join(&forged), bytes).unwrap();
    edit(dir, |manifest| {
        let shard = &mut manifest["shards"][0];
        shard["file"] = json!(forged);
        shard["bytes"] = json!(bytes.len());
        shard["blake3"] = json!(blake3);
    });
}

fn shard(dir: &Path, name: &str) -> PathBuf {
    dir.join("data").join(name)
}

const DAMAGED: &str = "\nhint: the dataset is damaged: copy it again, or write it again";

#[test]
fn any_flipped_bit_is_found_by_the_hash() {
    let (dir, name) = dataset();
    let path = shard(dir.path(), &name);
    let good = fs_err::read(&path).unwrap();
    let mut random = Random(3);
    for _ in 0..200 {
        let mut bytes = good.clone();
        bytes[random.below(good.len())] ^= 1 << random.below(8);
        fs_err::write(&path, bytes).unwrap();
        let message = message(dir.path());
        assert!(message.starts_with(&format!("`DIR` shard `{name}`: expected BLAKE3 ")), "{message}");
        assert!(message.ends_with(DAMAGED), "{message}");
    }
    fs_err::write(&path, good).unwrap();
    LabelDataset::open(dir.path()).unwrap();
}

/// As if the flip had happened before the manifest was made: the row group hashes and the checks remain.
#[test]
fn a_flipped_bit_behind_a_right_hash_gives_an_error_or_the_same_labels() {
    let (dir, name) = dataset();
    let expected: Vec<_> = LabelDataset::open(dir.path()).unwrap().iter().collect::<Result<_, _>>().unwrap();
    let good = fs_err::read(shard(dir.path(), &name)).unwrap();
    let manifest = fs_err::read(dir.path().join("manifest.json")).unwrap();
    let mut random = Random(4);
    for _ in 0..300 {
        let mut bytes = good.clone();
        bytes[random.below(good.len())] ^= 1 << random.below(8);
        let forged = tempfile::tempdir().unwrap();
        fs_err::create_dir(forged.path().join("data")).unwrap();
        for entry in fs_err::read_dir(dir.path().join("data")).unwrap() {
            let entry = entry.unwrap();
            fs_err::copy(entry.path(), forged.path().join("data").join(entry.file_name())).unwrap();
        }
        fs_err::write(forged.path().join("manifest.json"), &manifest).unwrap();
        forge(forged.path(), &name, &bytes);
        let read = LabelDataset::open(forged.path())
            .and_then(|dataset| dataset.iter().collect::<Result<Vec<SequenceLabels>, _>>());
        match read {
            Ok(read) => assert_eq!(read, expected),
            Err(error) => assert!(error.to_string().contains("shard `"), "{error}"),
        }
    }
}

#[test]
fn truncated_empty_and_foreign_shards_are_named() {
    let (dir, name) = dataset();
    let path = shard(dir.path(), &name);
    let good = fs_err::read(&path).unwrap();
    let size = good.len();
    fs_err::write(&path, &good[..size - 1]).unwrap();
    let expected = format!("`DIR` shard `{name}`: expected {size} bytes, found {}{DAMAGED}", size - 1);
    assert_eq!(message(dir.path()), expected);
    fs_err::write(&path, []).unwrap();
    assert_eq!(message(dir.path()), format!("`DIR` shard `{name}`: expected {size} bytes, found 0{DAMAGED}"));

    for junk in [&b""[..], b"PAR1", b"PAR1PAR1", &[7; 1000]] {
        let (dir, name) = dataset();
        forge(dir.path(), &name, junk);
        let message = message(dir.path());
        assert!(message.ends_with("footer: expected a Parquet file, found other bytes"), "{message}");
    }
    let (dir, name) = dataset();
    forge(dir.path(), &name, b"PAR1\xff\xff\xff\x7fPAR1");
    assert!(message(dir.path()).ends_with("footer: expected at most 0 bytes, found 2147483647"));
}

/// A footer that says it lists 2^31 row groups, and a plain text file that is none.
#[test]
fn a_footer_that_asks_for_gigabytes_is_refused() {
    let (dir, name) = dataset();
    let footer = [0x15, 0x02, 0x19, 0x00, 0x16, 0x00, 0x19, 0xfc, 0xff, 0xff, 0xff, 0xff, 0x07];
    let size = u32::try_from(footer.len()).unwrap().to_le_bytes();
    forge(dir.path(), &name, &[b"PAR1", &footer[..], &size, b"PAR1"].concat());
    let expected =
        "header: expected lists of at most 536870912 bytes in memory, found 2147483647 more elements";
    assert!(message(dir.path()).ends_with(expected), "{}", message(dir.path()));
}

#[test]
fn manifests_that_are_not_what_they_say_are_refused() {
    type Change = fn(&mut Value);
    let cases: [(Change, &str); 11] = [
        (
            |m| m["plan"]["split"] = json!("../../train"),
            "`DIR/manifest.json` plan: split: expected 1 to 200 letters, digits, `_`, `-` and `.`, not a dot first, found \
             \"../../train\"",
        ),
        (
            |m| m["format"] = json!("other"),
            "`DIR/manifest.json`: expected format \"softshard-labels\", found \"other\"",
        ),
        (|m| m["version"] = json!(2), "`DIR/manifest.json`: expected version 1, found 2"),
        (
            |m| m["shards"][0]["file"] = json!("../../etc/passwd"),
            "`DIR/manifest.json` shard 0: expected file \"NAME\", found \"../../etc/passwd\"",
        ),
        (
            |m| m["shards"][0]["file"] = json!("/etc/passwd"),
            "`DIR/manifest.json` shard 0: expected file \"NAME\", found \"/etc/passwd\"",
        ),
        (
            |m| m["shards"][0]["blake3"] = json!("../x"),
            "`DIR/manifest.json` shard 0: expected blake3 as 64 hexadecimal digits, found \"../x\"",
        ),
        (
            |m| m["shards"] = json!([m["shards"][0]]),
            "`DIR/manifest.json`: expected the 2 shards of the plan, found 1\nhint: the dataset is damaged: copy it \
             again, or write it again",
        ),
        (
            |m| m["shards"][0]["rows"] = json!(11),
            "`DIR/manifest.json` shard 0: expected 10 rows, as planned, found 11",
        ),
        (
            |m| m["plan"]["mantissa_bits"] = json!(0),
            "`DIR/manifest.json` plan: mantissa_bits: expected 1..=23, found 0",
        ),
        (
            |m| m["extra"] = json!(1),
            "`DIR/manifest.json`: expected a softshard-labels file, found unknown field `extra`, expected one of \
             `format`, `version`, `plan_blake3`, `plan`, `rows`, `input_tokens`, `labelled_tokens`, `shards` at line 1 \
             column 9",
        ),
        (
            |m| m["shards"][0]["extra"] = json!(1),
            "`DIR/manifest.json`: expected a softshard-labels file, found unknown field `extra`, expected one of \
             `file`, `rows`, `input_tokens`, `labelled_tokens`, `bytes`, `blake3`, `sha256` at line 1 column 9",
        ),
    ];
    for (change, expected) in cases {
        let (dir, name) = dataset();
        edit(dir.path(), change);
        let found = message(dir.path());
        let cut = |text: &str| text.split(" at line ").next().unwrap().to_owned();
        assert_eq!(cut(&found), cut(&expected.replace("NAME", &name)));
    }
    let (dir, _) = dataset();
    fs_err::write(dir.path().join("manifest.json"), "{\"format\": \"softsh").unwrap();
    assert!(
        message(dir.path()).starts_with("`DIR/manifest.json`: expected a softshard-labels file, found EOF")
    );
    let (dir, _) = dataset();
    edit(dir.path(), |m| m["plan"]["seed"] = json!(8));
    assert!(message(dir.path()).starts_with("`DIR/manifest.json` plan_blake3: expected "));
}

#[test]
fn the_folder_holds_the_shards_and_nothing_else() {
    let (dir, _) = dataset();
    fs_err::write(shard(dir.path(), "labels-00002-of-00003-0123456789ab.parquet"), "x").unwrap();
    let expected = "`DIR/data`: expected only the shards of the manifest, found \
                    `labels-00002-of-00003-0123456789ab.parquet`";
    assert_eq!(message(dir.path()), format!("{expected}{DAMAGED}"));

    let (dir, name) = dataset();
    let (path, elsewhere) = (shard(dir.path(), &name), dir.path().join("elsewhere"));
    fs_err::rename(&path, &elsewhere).unwrap();
    let missing = format!("`DIR/data`: expected shard `{name}`, found none{DAMAGED}");
    assert_eq!(message(dir.path()), missing);
    std::os::unix::fs::symlink(&elsewhere, &path).unwrap();
    let link = format!("`DIR/data/{name}`: expected a regular file, found a link");
    assert_eq!(message(dir.path()), link);
}

#[test]
fn a_shard_of_another_plan_is_refused() {
    let (dir, name) = dataset();
    let other = tempfile::tempdir().unwrap();
    let plan = LabelPlan { seed: 8, ..plan(LabelPlan::ranges(20, 10), TOP_4) };
    let manifest = write_dataset(other.path(), &plan);
    let bytes = fs_err::read(shard(other.path(), &manifest.shards[0].file)).unwrap();
    forge(dir.path(), &name, &bytes);
    assert!(
        message(dir.path()).contains("key-value softshard.plan_blake3: expected "),
        "{}",
        message(dir.path())
    );
}

#[test]
fn limits_are_checked_before_decoding() {
    let (dir, _) = dataset();
    let open = |limits| LabelDataset::open_with(dir.path(), limits);
    let limits = ReadLimits { row_group_bytes: 1000, ..ReadLimits::default() };
    let message = open(limits).unwrap_err().to_string();
    assert!(message.contains("page: expected a page of at most "), "{message}");
    let limits = ReadLimits { rows_per_group: 1, ..ReadLimits::default() };
    assert!(open(limits).unwrap_err().to_string().contains("rows: expected 1..=1, found "));
    let limits = ReadLimits { entries_per_position: 3, ..ReadLimits::default() };
    assert!(
        open(limits).unwrap_err().to_string().ends_with("expected at most 3 entries per position, found 4")
    );
    let limits = ReadLimits { sequence_tokens: 3, ..ReadLimits::default() };
    let message = open(limits).unwrap().read(0).unwrap_err().to_string();
    assert!(message.contains("row 0 input_ids: expected at most 3 ids, found "), "{message}");
}

#[test]
fn the_writer_refuses_labels_that_are_not_valid() {
    type Change = fn(&mut SequenceLabels);
    let cases: [(Change, &str); 15] = [
        (|l| l.positions[0] = 0, "positions[0]: expected a position above 0 and below LENGTH, found 0"),
        (
            |l| l.positions[1] = l.positions[0],
            "positions[1]: expected a position above FIRST and below LENGTH, found FIRST",
        ),
        (|l| l.input_ids[2] = 97, "input_ids[2]: expected an id in 0..97, found 97"),
        (|l| l.token_ids[5] = -1, "token_ids[5]: expected an id in 0..97, found -1"),
        (|l| l.counts[1] = 3, "position SECOND count: expected 4, found 3"),
        (|l| l.log_probs.truncate(7), "log_probs: expected ENTRIES values, found 7"),
        (
            |l| l.log_probs[4] = f32::NAN,
            "position SECOND log_probs[0]: expected at most 0 and finite, found NaN",
        ),
        (
            |l| l.log_probs[4] = 1e-7,
            "position SECOND log_probs[0]: expected at most 0 and finite, found 0.0000001",
        ),
        (
            |l| l.token_ids[1] = l.token_ids[0],
            "position FIRST token_ids: expected every id once, found ID twice",
        ),
        (|l| l.tail_log_mass[2] = f32::NAN, "position THIRD tail_log_mass: expected at most 0, found NaN"),
        (|l| l.entropy[0] = -0.1, "position FIRST entropy: expected at least 0 and finite, found -0.1"),
        (
            |l| l.log_sum_exp[0] = f32::INFINITY,
            "position FIRST log_sum_exp: expected a finite number, found inf",
        ),
        (
            |l| l.gold_log_prob[0] = 0.5,
            "position FIRST gold_log_prob: expected at most 0 and finite, found 0.5",
        ),
        (
            |l| l.tail_log_mass[0] = f32::NEG_INFINITY,
            "position FIRST log_probs and tail_log_mass: expected a mass of 1 in all, found MASS",
        ),
        (|l| l.sample_counts.push(1), "sample_counts: expected 0 values, found 1"),
    ];
    let plan = plan(vec![[0, 1]], TOP_4);
    let dir = tempfile::tempdir().unwrap();
    let writer = LabelWriter::create_or_resume(dir.path(), plan.clone()).unwrap();
    let good =
        (0..).map(|seed| labels(&mut Random(seed), &plan)).find(|labels| labels.positions.len() > 2).unwrap();
    let mass: f32 = good.log_probs[..4].iter().map(|value| value.exp()).sum();
    for (change, expected) in cases {
        let mut bad = SequenceLabels { source: None, ..good.clone() };
        change(&mut bad);
        let error = writer.shard(0).unwrap().push(bad).unwrap_err().to_string();
        let values = [
            ("LENGTH", good.input_ids.len().to_string()),
            ("ENTRIES", good.token_ids.len().to_string()),
            ("FIRST", good.positions[0].to_string()),
            ("SECOND", good.positions[1].to_string()),
            ("THIRD", good.positions[2].to_string()),
            ("ID", good.token_ids[0].to_string()),
            ("MASS", format!("{mass:.4}")),
        ];
        let expected =
            values.iter().fold(expected.to_owned(), |text, (name, value)| text.replace(name, value));
        assert_eq!(error, format!("labels of shard 0 row 0 {expected}"));
    }
    let mut unsorted = good.clone();
    unsorted.log_probs.swap(0, 1);
    let error = writer.shard(0).unwrap().push(unsorted).unwrap_err().to_string();
    assert!(error.contains(" log_probs[1]: expected entries after -"), "{error}");
}

/// The classic mistake: labels of token t stored at t - 1.
#[test]
fn labels_that_are_off_by_one_are_refused() {
    let plan = plan(vec![[0, 1]], Selection::TopK { k: 97 });
    let dir = tempfile::tempdir().unwrap();
    let writer = LabelWriter::create_or_resume(dir.path(), plan.clone()).unwrap();
    let mut shifted = labels(&mut Random(5), &plan);
    shifted.positions.iter_mut().for_each(|position| *position -= 1);
    let error = writer.shard(0).unwrap().push(shifted).unwrap_err().to_string();
    assert!(error.contains("gold_log_prob of id "), "{error}");
    assert!(error.contains("\nhint: labels at a position describe the token that stands there"), "{error}");
}

#[test]
fn sequences_are_checked_like_labels() {
    let dir = tempfile::tempdir().unwrap();
    let mut writer = SequenceWriter::create(dir.path(), info(), 4).unwrap();
    let mut random = Random(1);
    let mut bad = sequence(&mut random, VOCABULARY);
    bad.positions.clear();
    bad.source = Some("line 7".to_owned());
    let error = writer.push(bad).unwrap_err().to_string();
    assert_eq!(error, "sequence 0 (line 7) positions: expected at least one labelled position, found none");
    (0..9).for_each(|_| writer.push(sequence(&mut random, VOCABULARY)).unwrap());
    let manifest = writer.finish().unwrap();
    let path = shard(dir.path(), &manifest.shards[1].file);
    let mut bytes = fs_err::read(&path).unwrap();
    bytes[50] ^= 4;
    fs_err::write(&path, bytes).unwrap();
    let error = SequenceDataset::open(dir.path()).unwrap_err().to_string();
    assert!(error.contains(&format!("shard `{}`: expected BLAKE3 ", manifest.shards[1].file)), "{error}");
}

#[test]
fn unknown_sequences_and_wrong_plans_are_named() {
    let (dir, _) = dataset();
    let dataset = LabelDataset::open(dir.path()).unwrap();
    let key = softshard_labels::SequenceKey::of(&[1]);
    let error = dataset.get(&key).unwrap_err().to_string().replace(dir.path().to_str().unwrap(), "DIR");
    let expected = format!("`DIR`: expected labels of sequence {key}, found none");
    assert_eq!(error, format!("{expected}\nhint: the labels were made from other sequences"));

    let wrong = LabelPlan { temperatures: vec![2.0, 1.0], ..plan(vec![[0, 1]], TOP_4) };
    let error = wrong.validate().unwrap_err().to_string();
    assert_eq!(
        error,
        "plan: temperatures: expected positive, ascending temperatures other than 1, found [2.0, 1.0]"
    );
    let wrong = plan(vec![[0, 3], [4, 5]], TOP_4);
    let error = wrong.validate().unwrap_err().to_string();
    assert_eq!(error, "plan: shards: expected a range that starts at row 3, found [4, 5]");
    for split in ["", ".", ".hidden", "a/b", "ä", "a b", &"a".repeat(201)] {
        let wrong = LabelPlan { split: split.to_owned(), ..plan(vec![[0, 1]], TOP_4) };
        assert!(wrong.validate().unwrap_err().to_string().starts_with("plan: split: expected 1 to 200"));
        let info = SequencesInfo { split: split.to_owned(), ..info() };
        assert!(SequenceWriter::create(dir.path(), info, 1).is_err());
    }
    let mut wide = plan(vec![[0, 1]], Selection::TopK { k: 65_537 });
    wide.validate().unwrap();
    wide.teacher.vocab_size = 100_000;
    let error = wide.validate().unwrap_err().to_string();
    assert_eq!(error, "plan: selection: expected at most 65536 entries per position, found 65537");
}

#[test]
fn draws_that_do_not_add_up_are_refused() {
    type Change = fn(&mut SequenceLabels);
    let plan = plan(vec![[0, 1]], Selection::TopKSampled { k: 2, draws: 5 });
    let dir = tempfile::tempdir().unwrap();
    let writer = LabelWriter::create_or_resume(dir.path(), plan.clone()).unwrap();
    // Five draws of five tokens: this teacher is flat.
    let good = SequenceLabels { source: None, ..labels(&mut Random(1), &plan) };
    assert_eq!(good.entries().next().unwrap().sample_counts, [1; 5]);
    let cases: [(Change, &str); 5] = [
        (|l| l.sample_counts[0] += 1, "counts from 1 on, falling, ties by id, 5 in all"),
        (|l| l.sample_counts[2] = 0, "counts from 1 on, falling, ties by id, 5 in all"),
        (|l| l.token_ids.swap(3, 4), "counts from 1 on, falling, ties by id, 5 in all"),
        (|l| l.token_ids[3] = l.token_ids[0], "every id once"),
        (|l| l.token_ids[2] = 97, "an id in 0..97"),
    ];
    for (change, expected) in cases {
        let mut bad = good.clone();
        change(&mut bad);
        let error = writer.shard(0).unwrap().push(bad).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
    for (k, draws) in [(0, 5), (97, 5), (2, 0), (2, 65_537)] {
        let bad = LabelPlan { selection: Selection::TopKSampled { k, draws }, ..plan.clone() };
        let error = bad.validate().unwrap_err().to_string();
        assert!(error.starts_with("plan: selection."), "{error}");
    }
    let bad = LabelPlan { omit: vec![OptionalColumn::Entropy], ..plan };
    let error = bad.validate().unwrap_err().to_string();
    assert_eq!(
        error,
        r#"plan: omit: expected no entropy, as a divergence from draws is measured against it, found ["entropy"]"#
    );
}
