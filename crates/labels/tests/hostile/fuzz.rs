//! The fuzz targets over the seed corpus with seeded mutations, without a nightly compiler.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use crate::allocations::assert_small;
use crate::common::Random;
use crate::entry;
use crate::seeds::footer_bombs;

type Target = fn(&[u8]);

const TARGETS: [(&str, Target); 4] = [
    ("manifest", entry::manifest),
    ("plan", entry::plan),
    ("commit", entry::commit),
    ("shard_open", entry::shard_open),
];
/// Nothing of these sizes takes longer, also on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long it goes on where `SOFTSHARD_FUZZ_SECONDS` does not say: CI says 60.
const SECONDS: u64 = 5;

/// One execution: all that is needed to do it again.
#[derive(Clone, Debug)]
struct Run {
    target: usize,
    seed: usize,
    number: u64,
}

impl fmt::Display for Run {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "execution {} of {} from seed {}", self.number, TARGETS[self.target].0, self.seed)
    }
}

/// Changes some bytes: bits, numbers, pieces that are doubled, moved or lost.
fn mutate(bytes: &mut Vec<u8>, random: &mut Random) {
    const NUMBERS: [&[u8]; 7] =
        [&[0], &[0xff], &[0x7f], &[0x80], &[0xff; 4], &[0xff, 0xff, 0xff, 0x0f], b"9999999999"];
    for _ in 0..=random.below(6) {
        let length = bytes.len();
        if length == 0 {
            bytes.push(0);
            continue;
        }
        let at = random.below(length);
        let end = (at + 1 + random.below(16)).min(length);
        match random.below(7) {
            0..=2 => bytes[at] ^= 1 << random.below(8),
            3 => {
                let number = NUMBERS[random.below(NUMBERS.len())];
                let end = (at + number.len()).min(length);
                bytes.splice(at..end, number.iter().copied());
            }
            4 => drop(bytes.drain(at..end)),
            5 => {
                let piece = bytes[at..end].to_vec();
                let to = random.below(length);
                bytes.splice(to..to, piece);
            }
            _ => {
                let from = random.below(length);
                for step in 0..(end - at).min(length - from) {
                    bytes[at + step] = bytes[from + step];
                }
            }
        }
    }
}

#[test]
fn mutated_seeds_neither_panic_nor_hang_nor_take_memory() {
    let seconds = std::env::var("SOFTSHARD_FUZZ_SECONDS");
    let seconds = seconds.map_or(SECONDS, |text| text.parse().expect("SOFTSHARD_FUZZ_SECONDS is a number"));
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus");
    let seeds = TARGETS.map(|(target, _)| {
        let entries = fs_err::read_dir(corpus.join(target)).unwrap();
        let mut paths: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
        paths.sort();
        let mut seeds: Vec<Vec<u8>> = paths.iter().map(|path| fs_err::read(path).unwrap()).collect();
        if target == "shard_open" {
            seeds.extend(footer_bombs().map(|(_, bytes)| bytes));
        }
        assert!(!seeds.is_empty(), "{target} has seeds");
        seeds
    });
    let (begin, begun) = mpsc::channel();
    let worker = thread::spawn(move || {
        let (started, mut executions) = (Instant::now(), [0u64; TARGETS.len()]);
        for number in 0.. {
            for target in 0..TARGETS.len() {
                let mut random = Random(number * 31 + u64::try_from(target).unwrap());
                let seed = random.below(seeds[target].len());
                let mut bytes = seeds[target][seed].clone();
                // Every seed as it is, before it is changed.
                let unchanged = usize::try_from(number).ok().and_then(|number| seeds[target].get(number));
                match unchanged {
                    Some(seed) => bytes.clone_from(seed),
                    None => mutate(&mut bytes, &mut random),
                }
                let run = Run { target, seed, number };
                begin.send(run.clone()).unwrap();
                let done = catch_unwind(AssertUnwindSafe(|| {
                    TARGETS[target].1(&bytes);
                    assert_small();
                }));
                assert!(done.is_ok(), "{run}: see above; its bytes: {bytes:02x?}");
                executions[target] += 1;
            }
            if started.elapsed().as_secs() >= seconds {
                break;
            }
        }
        executions
    });
    let mut last = None;
    loop {
        match begun.recv_timeout(PATIENCE) {
            Ok(run) => last = Some(run),
            Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) => panic!("{} does not end", last.expect("a run began")),
        }
    }
    let executions = worker.join().expect("no execution fails");
    for ((target, _), executions) in TARGETS.iter().zip(executions) {
        eprintln!("{target}: {executions} executions");
        assert!(executions > 20, "{target}: {executions} executions in {seconds} s");
    }
}

/// Each asks for gigabytes, or for a stack that no thread has.
#[test]
fn footers_that_ask_for_gigabytes_are_refused() {
    for (name, bytes) in footer_bombs() {
        let dir = tempfile::tempdir().unwrap();
        entry::stage(dir.path(), entry::GOOD_MANIFEST, &bytes);
        let error = entry::read_all(dir.path(), &entry::LIMITS).unwrap_err().to_string();
        let expected = match name {
            "children.parquet" | "levels.parquet" => {
                "schema: expected at most 4096 columns in 8 levels, found more"
            }
            "types.parquet" => "footer header: expected fields",
            "lists.parquet" => "expected at most 16 nested structures and lists, found more",
            _ => "footer",
        };
        assert!(error.contains(expected), "{name}: {error}");
        assert_small();
    }
}
