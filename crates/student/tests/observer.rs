//! Two runs in one process, each with an observer of its own: neither loses anything or hears of the other,
//! whatever the program does with its log.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::{
        Mutex, MutexGuard,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use burn::tensor::Device;
use serde_json::{Value, json};
use softshard_labels::{
    Metrics, Observer, OwnTokenizer, Progress, Sequence, SequenceWriter, SequencesInfo, Tokenizer,
};
use softshard_student::{Mixed, Objective, TrainConfig, TrainInputs, run};
use tracing::{Event, Metadata, Subscriber, span};

/// Ids of the golden model.
const VOCABULARY: u32 = 300;
const STAGE: &str = "finetune";

/// What an observer hears.
#[derive(Clone, Debug, PartialEq)]
enum Heard {
    Start(u64),
    Progress { done: u64, total: u64, loss: Option<f64> },
    Metrics { split: String, step: u64, scalars: BTreeMap<&'static str, f64> },
    Checkpoint(u64),
}

#[derive(Default)]
struct Ear(Mutex<Vec<Heard>>);

impl Ear {
    fn hear(&self, stage: &str, heard: Heard) {
        assert_eq!(stage, STAGE);
        self.all().push(heard);
    }

    fn all(&self) -> MutexGuard<'_, Vec<Heard>> {
        self.0.lock().expect("no panic")
    }
}

impl Observer for Ear {
    fn progress(&self, now: &Progress<'_>) {
        let loss = now.scalar("loss").map(|loss| loss.as_f64());
        self.hear(now.stage, Heard::Progress { done: now.done, total: now.total, loss });
    }

    fn metrics(&self, metrics: &Metrics<'_>) {
        let Metrics { stage, split, step, scalars } = *metrics;
        let scalars = scalars.iter().map(|&(name, scalar)| (name, scalar.as_f64())).collect();
        self.hear(stage, Heard::Metrics { split: split.to_owned(), step, scalars });
    }

    fn start(&self, stage: &str, step: u64) {
        self.hear(stage, Heard::Start(step));
    }

    fn checkpoint(&self, stage: &str, step: u64) {
        self.hear(stage, Heard::Checkpoint(step));
    }
}

fn tokenizer() -> Tokenizer {
    Tokenizer {
        vocabulary_blake3: "0".repeat(64),
        vocab_size: VOCABULARY,
        special_ids: BTreeMap::new(),
        normalizer_blake3: "0".repeat(64),
        chat_template_blake3: None,
        merges_blake3: None,
    }
}

/// Sequences `train` and `valid` of some made-up ids.
fn write_sequences(folder: &Path) {
    for (split, rows) in [("train", 12), ("valid", 3)] {
        let info = SequencesInfo {
            tokenizer: tokenizer(),
            template: "none".to_owned(),
            split: split.to_owned(),
            seed: 0,
        };
        let mut writer = SequenceWriter::create(folder.join(split), info, 100).expect("a dataset");
        for row in 0..rows {
            let input_ids = (0..10).map(|token| (17 * row + 31 * token + rows) % 300).collect();
            let sequence = Sequence { source: None, input_ids, positions: (4..10).collect() };
            writer.push(sequence).expect("a sequence");
        }
        writer.finish().expect("a manifest");
    }
}

/// Trains so many steps below `world`.
fn train(world: &Path, steps: u64, observer: &dyn Observer) {
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/peers/golden/tiny-llama");
    let config: TrainConfig = serde_json::from_value(json!({
        "model": model, "max_steps": steps, "epochs": 100, "max_tokens_per_batch": 20, "accumulate_batches": 2,
        "lora": { "r": 2, "alpha": 4.0, "dropout": 0.0, "target_modules": ["q_proj"] },
        "checkpoint_every_steps": 2, "evaluation": { "every_steps": 3 }, "seed": steps,
    }))
    .expect("a section");
    let tokenizer = OwnTokenizer::from(tokenizer());
    run(&TrainInputs {
        config: &config,
        objective: Objective::Supervised,
        stage: STAGE,
        data: &[Mixed::once(world.join("train"))],
        template: "none",
        tokenizer_folder: &model,
        tokenizer: &tokenizer,
        accepted: &[],
        output: &output(world, steps),
        devices: &[(Device::flex(), 1)],
        stop: &false.into(),
        observer,
    })
    .expect("it trains");
}

fn output(world: &Path, steps: u64) -> PathBuf {
    world.join(format!("{steps} steps"))
}

/// Two runs at the same time, of so many steps, and all that their observers heard.
fn both(world: &Path, steps: [u64; 2]) {
    thread::scope(|scope| {
        for steps in steps {
            scope.spawn(move || {
                let ear = Ear::default();
                train(world, steps, &ear);
                let heard = std::mem::take(&mut *ear.all());
                check(&heard, &output(world, steps), steps);
                // A run that goes on says so; this one was at its end.
                train(world, steps, &ear);
                assert_eq!(*ear.all(), [Heard::Start(steps + 1)]);
            });
        }
    });
}

/// A run of so many steps, whole and alone.
fn check(heard: &[Heard], output: &Path, steps: u64) {
    assert_eq!(heard[0], Heard::Start(1));
    let done: Vec<_> = heard
        .iter()
        .filter_map(|heard| match heard {
            Heard::Progress { done, total, loss } => Some((*done, *total, *loss)),
            _ => None,
        })
        .collect();
    // The file says the same as the observer was told.
    let lines = fs::read_to_string(output.join("metrics.jsonl")).expect("lines");
    let lines: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let losses = lines.iter().filter(|line| line["split"] == "train").map(|line| line["loss"].as_f64());
    let expected: Vec<_> = (1..=steps).zip(losses).map(|(step, loss)| (step, steps, loss)).collect();
    assert_eq!(done, expected);
    let told: Vec<Value> = heard
        .iter()
        .filter_map(|heard| match heard {
            Heard::Metrics { split, step, scalars } => {
                let mut line = json!({ "split": split, "step": *step as f64 });
                scalars.iter().for_each(|(name, scalar)| line[name] = json!(scalar));
                Some(line)
            }
            _ => None,
        })
        .collect();
    let as_real = |line: &Value| -> Value {
        let real = |value: &Value| value.as_f64().map_or_else(|| value.clone(), Value::from);
        line.as_object().expect("an object").iter().map(|(name, value)| (name.clone(), real(value))).collect()
    };
    assert_eq!(told, lines.iter().map(as_real).collect::<Vec<_>>());
    assert_eq!(lines.iter().filter(|line| line["split"] == "valid").count() as u64, steps.div_ceil(3));
    // What a checkpoint has was told before it.
    for (index, checkpoint) in heard.iter().enumerate() {
        if let Heard::Checkpoint(step) = checkpoint {
            let last = heard[..index].iter().rev().find_map(|heard| match heard {
                Heard::Progress { done, .. } => Some(*done),
                _ => None,
            });
            assert_eq!(last, Some(*step));
        }
    }
    assert!(heard.contains(&Heard::Checkpoint(steps)), "the last one: {heard:?}");
}

static LINES: AtomicUsize = AtomicUsize::new(0);

/// The log of a program that has its own ideas of one.
struct OwnLog;

impl Subscriber for OwnLog {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target().starts_with("softshard")
    }

    fn event(&self, event: &Event<'_>) {
        let target = event.metadata().target();
        assert!(target.starts_with("softshard_"), "words for people, from a crate of ours: {target}");
        LINES.fetch_add(1, Ordering::Relaxed);
    }

    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }

    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}
    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}
    fn enter(&self, _: &span::Id) {}
    fn exit(&self, _: &span::Id) {}
}

#[test]
fn two_runs_at_a_time_are_each_seen_whole_with_any_log_or_none() {
    let world = tempfile::tempdir().expect("a temporary folder");
    write_sequences(world.path());
    both(world.path(), [5, 8]);
    tracing::subscriber::set_global_default(OwnLog).expect("the first one");
    both(world.path(), [4, 9]);
    // How much memory each run takes, and that it was resumed.
    let lines = LINES.load(Ordering::Relaxed);
    assert!(lines >= 2 * 3, "people's logs are whole: {lines} lines");
}
