//! `make gpu` without a GPU: all of its code, on the CPU and in small.

use std::{fs, process::Command};

use softshard_e2e::{Said, build, root, run};

/// The program, built from the present sources, run from the root of the checkout.
fn gpu(arguments: &[&str]) -> Said {
    run(Command::new(build(&["--example", "gpu"]).join("examples/gpu")).args(arguments).current_dir(root()))
}

#[test]
fn a_dry_run_checks_every_golden_model() {
    // A Python that is not there: the peer is left out, and nothing else.
    let said = gpu(&["--device", "cpu", "--quick", "--python", "/nowhere/python3"]).succeeded();
    assert!(said.stdout.starts_with("| part | what |"), "{}", said.stdout);
    assert!(!said.stdout.contains("FAILED"), "{}", said.stdout);
    let row = |parts: [&str; 2]| {
        let is_it = |line: &&str| parts.iter().all(|part| line.contains(&format!("| {part}")));
        said.stdout.lines().find(is_it).unwrap_or_else(|| panic!("no row {parts:?}:\n{}", said.stdout))
    };
    for entry in fs::read_dir(root().join("tests/peers/golden")).expect("the golden models") {
        let path = entry.expect("an entry").path();
        if path.join("config.json").exists() {
            let name = path.file_name().expect("a name").to_string_lossy().into_owned();
            for check in [
                "f32 logits",
                "f32 labels",
                "f32 greedy",
                "f32 gradients",
                "bf16 logits",
                "streamed",
                "4-bit",
            ] {
                assert!(row([&name, check]).ends_with("| ok |"), "{}", row([&name, check]));
            }
        }
    }
    assert!(row(["labels", "of logits"]).contains("the same tokens"));
    assert!(row(["head", "labels of [40, 4097] BF16 logits"]).ends_with("| ok |"));
    assert!(row(["head", "labels of [32, 64] hidden states"]).contains("rows/s"));
    for peer in ["labelling, transformers", "student, PEFT", "transformers"] {
        assert!(row([peer, "the same shape"]).ends_with("| not run |"));
    }
    assert!(row(["labelling", "shards that were committed"]).ends_with("| ok |"));
    assert!(row(["labelling", "where its"]).contains("layers"));
    counts_what_is_computed(row(["labelling", "share of the matrix peak"]));
    for way in ["streamed", "4 bits", "8 bits", "bf16, layers computed again", "bf16, all kept"] {
        assert!(row(["student", way]).contains("tokens/s"));
    }
    for shape in ["Qwen2.5-0.5B shape", "Qwen2.5-7B shape"] {
        assert!(row([shape, "forward B=2"]).contains("tokens/s"));
    }
}

/// Of 24 sequences as long as Dolly's through two layers of width 64, 160 inside, four heads and two of keys, 16 each; V = 512.
fn counts_what_is_computed(row: &str) {
    let lengths = fs::read_to_string(root().join("tests/gpu/dolly_lengths.csv")).expect("the lengths");
    let mut expected = 0;
    for line in lengths.lines().skip(1).take(24) {
        let (tokens, labelled) = line.split_once(',').expect("two numbers");
        let (tokens, labelled): (u64, u64) = (tokens.parse().expect("one"), labelled.parse().expect("two"));
        let matrices = 64 * 64 + 2 * 32 * 64 + 64 * 64 + 3 * 160 * 64;
        // Every token looks at those before it and itself, once for a score and once for a value.
        let pairs = (1..=tokens).sum::<u64>();
        expected += 2 * (2 * matrices * tokens + 2 * 64 * 2 * pairs) + 2 * 64 * 512 * labelled;
    }
    let found = row.split(" of ").find_map(|text| text.split_once(" FLOP;")).expect("a count").0;
    let found: f64 = found.parse().expect("a number");
    let difference = (found / expected as f64 - 1.0).abs();
    assert!(difference < 1e-6, "{found} FLOP, expected {expected}");
}

#[test]
fn what_cannot_be_checked_is_no_success() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().to_str().expect("a path of ASCII");
    let said = gpu(&["--device", "cpu", "--quick", "--python", "/nowhere/python3", "--golden", path]);
    assert_eq!(said.code, 1, "{said:?}");
    assert!(said.stderr.contains("expected folders `tiny-*`, found none"), "{}", said.stderr);
}

#[test]
fn a_gpu_that_is_not_there_ends_it() {
    // No machine has this many.
    let said = gpu(&["--device", "cuda:60000"]);
    assert_eq!((said.code, said.stdout.as_str()), (4, ""), "{said:?}");
    assert!(said.stderr.contains("device `cuda:60000`: expected"), "{}", said.stderr);
}
