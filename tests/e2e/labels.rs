//! `softshard labels`: what a team asks of labels that it was given.

use std::{fs, path::PathBuf};

use serde_json::Value;
use softshard_e2e::{Said, World, softshard};

fn text(path: PathBuf) -> String {
    path.to_str().expect("a path of ASCII").to_owned()
}

/// The labels of the training split.
fn train(world: &World) -> String {
    text(world.path("run/labels/train"))
}

/// The data files, in order.
fn shards(world: &World) -> Vec<PathBuf> {
    let entries = fs::read_dir(world.path("run/labels/train/data")).expect("shards are there");
    let mut shards: Vec<PathBuf> = entries.map(|entry| entry.expect("an entry").path()).collect();
    shards.sort();
    shards
}

fn json(said: &Said) -> Value {
    serde_json::from_str(&said.stdout).unwrap_or_else(|error| panic!("{error}: {}", said.stdout))
}

/// Every part, one after another.
#[track_caller]
fn shows(text: &str, parts: &[&str]) {
    let mut rest = text;
    for part in parts {
        let at = rest.find(part).unwrap_or_else(|| panic!("expected {part:?}, in order, in:\n{text}"));
        rest = &rest[at + part.len()..];
    }
}

#[test]
fn labels_are_judged_read_and_compared() {
    let world = World::labelled();
    verify_names_all_damage(&world);
    stats_show_sizes_and_the_teacher(&world);
    inspect_shows_a_sequence(&world);
    diff_says_why(&world);
}

fn verify_names_all_damage(world: &World) {
    let train = train(world);
    let said = softshard(&["labels", "verify", &train]).succeeded();
    shows(&said.stdout, &["sound: 6 shards, 60 sequences, ", "every hash and every row is right"]);
    assert!(said.stderr.contains("verify 60/60 rows"), "{}", said.stderr);
    let found = json(&softshard(&["labels", "verify", &train, "--json"]).succeeded());
    assert_eq!((found["rows"].as_u64(), found["problems"].as_array().map(Vec::len)), (Some(60), Some(0)));

    let shards = shards(world);
    let good: Vec<Vec<u8>> = shards.iter().map(|path| fs::read(path).expect("a shard")).collect();
    let name = |shard: usize| shards[shard].file_name().expect("a name").to_string_lossy().into_owned();
    // Inside the page header of the column of keys, and at the end of another shard.
    let mut flipped = good[1].clone();
    flipped[6] ^= 0x10;
    fs::write(&shards[1], flipped).expect("a bit is flipped");
    fs::write(&shards[4], &good[4][..good[4].len() - 9]).expect("a shard is cut");
    let said =
        softshard(&["labels", "verify", &train]).failed(3, &["expected sound labels, found ", " problems"]);
    shows(
        &said.stdout,
        &[
            &format!("shard `{}` file: expected BLAKE3 ", name(1)),
            &format!("shard `{}` row group 0 (rows 0..10): expected BLAKE3 ", name(1)),
            &format!("shard `{}` column sequence_key row group 0 ", name(1)),
            &format!(
                "shard `{}` file: expected {} bytes, found {} bytes",
                name(4),
                good[4].len(),
                good[4].len() - 9
            ),
            &format!("shard `{}` footer: expected ", name(4)),
        ],
    );
    let found = json(&softshard(&["labels", "verify", &train, "--json"]).failed(3, &["problems"]));
    assert_eq!(found["problems"][0]["shard"], name(1));
    for (path, bytes) in shards.iter().zip(good) {
        fs::write(path, bytes).expect("the shard is repaired");
    }
    softshard(&["labels", "verify", &train]).succeeded();
    softshard(&["labels", "verify", "/nowhere"])
        .failed(3, &["`/nowhere`: expected sound labels, found 1 problem\n"]);
}

fn stats_show_sizes_and_the_teacher(world: &World) {
    let train = train(world);
    let said = softshard(&["labels", "stats", &train]).succeeded();
    shows(
        &said.stdout,
        &[
            "  shards                    ",
            "  sequences                 ",
            "bytes per labelled token",
            "Columns",
            "sequence_key",
            "log_partition_t2",
            "tail_log_mass_t2",
            "(footers)",
            "Entropy of the teacher, nats",
            "█",
            "Retained mass",
            "0.9999–1.0000",
            "Entries per position",
            "mean 16, least 16",
            "Teacher against the gold tokens",
            "top-1 accuracy",
            "calibration error (ECE, 15 bins)",
        ],
    );
    let stats = json(&softshard(&["labels", "stats", &train, "--json"]).succeeded());
    assert_eq!((stats["shards"].as_u64(), stats["sequences"].as_u64()), (Some(6), Some(60)));
    let positions = stats["labelled_tokens"].as_u64().expect("a number");
    assert_eq!(stats["entries"].as_u64(), Some(16 * positions));
    assert_eq!(stats["teacher"]["calibration"]["bins"].as_array().map(Vec::len), Some(15));
}

fn inspect_shows_a_sequence(world: &World) {
    let train = train(world);
    let said = softshard(&["labels", "inspect", &train, "--row", "3"]).succeeded();
    shows(&said.stdout, &["row 3 of 60, key ", " labelled", "position  gold", "alternatives"]);
    assert!(!said.stdout.contains('\x1b'), "no colours where there is no terminal");
    let key = said.stdout.split("key ").nth(1).and_then(|rest| rest.get(..32)).expect("a key");

    let tokenizer = text(world.path("data/tokenizer"));
    let arguments = ["labels", "inspect", &train, "--key", key, "--tokenizer", &tokenizer, "--top", "2"];
    let said = softshard(&arguments).succeeded();
    let line = said.stdout.lines().last().expect("the last position");
    assert_eq!(line.matches('"').count(), 6, "a gold token and two alternatives: {line}");
    let data = fs::read_to_string(world.path("data/instructions.jsonl")).expect("the data is there");
    let shown = said.stdout.lines().nth(2).expect("the text");
    assert!(data.contains(shown.split(". ").next().expect("a sentence")), "{shown}");

    softshard(&["labels", "inspect", &train, "--row", "60"])
        .failed(3, &["expected a row below 60, found 60"]);
    softshard(&["labels", "inspect", &train, "--key", "abc"]).failed(3, &["32 hexadecimal digits"]);
    let other = text(world.path("other"));
    softshard(&["demo-data", &other, "--rows", "80", "--seed", "9", "--vocab-size", "380"]).succeeded();
    softshard(&["labels", "inspect", &train, "--tokenizer", &format!("{other}/tokenizer")])
        .failed(3, &["expected the tokenizer of the labels, found another", "vocab_size: expected 400"]);
}

fn diff_says_why(world: &World) {
    let train = train(world);
    let said = softshard(&["labels", "diff", &train, &train]).succeeded();
    shows(&said.stdout, &["equal               60", "different            0", "interchangeable"]);

    world.run("teacher-labels", &["labels.sequences_per_shard=25", "output.labels=cut"]).succeeded();
    let cut = text(world.path("run/cut/train"));
    let said = softshard(&["labels", "diff", &train, &cut]).succeeded();
    shows(&said.stdout, &["Plan", "shards  (layout only)", "equal               60", "interchangeable"]);

    let selection = r#"labels.selection={ kind = "top_k", k = 8 }"#;
    let others = ["output.labels=other", selection, "labels.mantissa_bits=6"];
    world.run("teacher-labels", &others).succeeded();
    let other = text(world.path("run/other/train"));
    let said = softshard(&["labels", "diff", &train, &other]).failed(
        3,
        &[
            "expected labels that can stand for",
            "found plan keys that differ: 2, sequences that differ: 60, on one side alone: 0",
        ],
    );
    shows(
        &said.stdout,
        &[
            "  mantissa_bits\n    left   7\n    right  6\n",
            "selection.k",
            "different           60",
            "max |Δ log_prob|",
        ],
    );
    assert!(said.stdout.ends_with("not interchangeable\n"), "{}", said.stdout);
    let found = json(
        &softshard(&["labels", "diff", &train, &other, "--json"]).failed(3, &["sequences that differ: 60"]),
    );
    assert_eq!(found["different"].as_array().map(Vec::len), Some(60));
}
