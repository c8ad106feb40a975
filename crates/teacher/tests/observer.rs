//! Two runs in one process, each with an observer of its own, see all of their batches and shards and nothing
//! else.

use std::{
    collections::BTreeMap,
    path::Path,
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
    thread,
};

use burn::tensor::Device;
use serde_json::json;
use softshard_labels::{
    LabelDataset, Metrics, Observer, Output, OwnTokenizer, Progress, Scalar, Sequence, SequenceWriter,
    SequencesInfo, Tokenizer,
};
use softshard_teacher::{LabelsConfig, Teacher, TeacherConfig, TeacherInputs, run};

const SHARD: u64 = 3;

#[derive(Default)]
struct Ear {
    /// Sequences done and in all, as they were last said.
    done: Mutex<(u64, u64)>,
    tokens: AtomicU64,
    /// Steps and their shards.
    shards: Mutex<Vec<(u64, u64)>>,
}

impl Observer for Ear {
    fn progress(&self, now: &Progress<'_>) {
        let mut done = self.done.lock().expect("no panic");
        assert!(done.0 <= now.done && now.stage == "teacher-labels" && now.split == Some("train"));
        *done = (now.done, now.total);
    }

    fn metrics(&self, metrics: &Metrics<'_>) {
        for scalar in metrics.scalars {
            match *scalar {
                ("shard", Scalar::Count(shard)) => {
                    self.shards.lock().expect("no panic").push((metrics.step, shard));
                }
                ("tokens", Scalar::Count(tokens)) => drop(self.tokens.fetch_add(tokens, Ordering::Relaxed)),
                _ => {}
            }
        }
    }
}

fn label(folder: &Path, rows: u64) {
    let tokenizer = Tokenizer {
        vocabulary_blake3: "0".repeat(64),
        vocab_size: 300,
        special_ids: BTreeMap::new(),
        normalizer_blake3: "0".repeat(64),
        chat_template_blake3: None,
        merges_blake3: None,
    };
    let info = SequencesInfo {
        tokenizer: tokenizer.clone(),
        template: "none".to_owned(),
        split: "train".to_owned(),
        seed: 0,
    };
    let (sequences, output) = (folder.join("sequences"), Output::from(folder.join("labels")));
    let mut writer = SequenceWriter::create(&sequences, info, 100).expect("a dataset");
    for row in 0..i32::try_from(rows).expect("few") {
        let input_ids = (0..8).map(|token| (17 * row + 31 * token) % 300).collect();
        writer.push(Sequence { source: None, input_ids, positions: (4..8).collect() }).expect("a sequence");
    }
    writer.finish().expect("a manifest");

    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/peers/golden/tiny-llama");
    let config: TeacherConfig = serde_json::from_value(json!({ "model": model })).expect("a section");
    let labels: LabelsConfig =
        serde_json::from_value(json!({ "sequences_per_shard": SHARD })).expect("a section");
    let devices = [(Device::flex(), 2)];
    let ear = Ear::default();
    let tokenizer = OwnTokenizer::from(tokenizer);
    let inputs = TeacherInputs {
        labels: &labels,
        sequences: &sequences,
        held_out: None,
        tokenizer: &tokenizer,
        output: &output,
        part: None,
        stop: &false.into(),
        observer: &ear,
    };
    let summary = run(&mut Teacher::new(&config, &devices), &inputs).expect("it labels");
    assert_eq!(ear.done.into_inner().expect("no panic"), (rows, rows));
    assert_eq!(ear.tokens.into_inner(), summary.tokens);
    let shards = ear.shards.into_inner().expect("no panic");
    assert_eq!(shards, (0..rows.div_ceil(SHARD)).map(|shard| (shard + 1, shard)).collect::<Vec<_>>());
    assert_eq!(LabelDataset::open(folder.join("labels")).expect("labels").len() as u64, rows);
}

#[test]
fn two_runs_at_a_time_are_each_seen_whole() {
    let folders = [7, 20].map(|rows| (tempfile::tempdir().expect("a temporary folder"), rows));
    thread::scope(|scope| {
        for (folder, rows) in &folders {
            scope.spawn(|| label(folder.path(), *rows));
        }
    });
}
