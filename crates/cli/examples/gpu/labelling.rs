//! Whole labelling by the engine of `teacher-labels`, from a model folder to committed shards, of sequences as long as Dolly's.

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use anyhow::Result;
use burn::tensor::Device;
use serde_json::{Value, json};
use softshard_labels::Output;
use softshard_model::DecoderConfig;
use softshard_teacher::{LabelsConfig, Summary, Teacher, TeacherConfig, TeacherInputs};

use crate::flops::Flops;
use crate::peers::{self, Peer, gib, number};
use crate::table::{Outcome, Row};
use crate::{Bench, card, made_up, shapes, student};

/// One of so many sequences is labelled before the clock runs: kernels are compiled and chosen meanwhile.
const WARM_EVERY: usize = 8;
const SEQUENCES_PER_SHARD: usize = 256;
/// Of the matrix peak: what labelling is expected to reach at least when it is decided how many sequences there is time for.
const EXPECTED_SHARE: f64 = 0.15;
/// What is aimed at, of *usual*, of *best*, and of the matrix peak.
const OF_USUAL: f64 = 2.0;
const OF_BEST: f64 = 1.0;
const OF_PEAK: f64 = 0.6;
const NAME: &str = "labelling";

/// Runs transformers' usual and best ways.
pub(crate) fn peers(bench: &Bench) -> Result<bool> {
    let quick = bench.options.quick;
    let jobs = json!({
        "config": shapes::LARGE.config(quick),
        "lengths": made_up::dolly(bench)?,
        "budgets": if quick { [512, 1024].as_slice() } else { &[8192, 16_384, 32_768] },
    });
    let peer = Peer { script: "transformers_label.py", jobs, result: peers::LABELLING };
    let row = Row::new("labelling, transformers", "the same shape and lengths, bf16, sdpa");
    let Some(found) = peer.run(bench, row)? else { return Ok(true) };
    for way in ["usual", "best"] {
        Row::new("labelling, transformers", way).against(described(&found, way)).say(Outcome::Measured);
    }
    Ok(true)
}

/// One of the peer's ways in words.
fn described(found: &Value, way: &str) -> String {
    let one = &found["results"][way];
    if !one["labelled_tokens_per_second"].is_f64() {
        return format!("{way}: {}", one["problem"].as_str().unwrap_or("not run"));
    }
    format!(
        "{way}, {}: {:.0} labelled tokens/s, {}, padding {:.1} %",
        one["batches"].as_str().unwrap_or_default(),
        number(one, "labelled_tokens_per_second"),
        gib(one),
        100.0 * number(one, "padding")
    )
}

/// What both runs label.
struct Data {
    config: DecoderConfig,
    lengths: Vec<[usize; 2]>,
    warm: Vec<[usize; 2]>,
    /// Sequence datasets: of `warm`, of the student, and of as many of `lengths` as there is time for.
    folders: [PathBuf; 3],
}

/// Labels with the default of `max_tokens_per_batch`, and with more.
pub(crate) fn run(bench: &Bench, device: &Device) -> Result<bool> {
    let model = bench.model();
    if !model.exists() {
        return Ok(Row::new(NAME, "the part").ours("no weights were written").say(Outcome::Failed));
    }
    let lengths = made_up::dolly(bench)?;
    let data = Data {
        config: DecoderConfig::load(&model)?,
        warm: lengths.iter().copied().step_by(WARM_EVERY).collect(),
        lengths,
        folders: ["warm", "student", "timed"].map(|name| bench.result(&format!("sequences-{name}"))),
    };
    made_up::write_sequences(&data.folders[0], &data.warm, data.config.vocab_size)?;
    made_up::write_sequences(
        &data.folders[1],
        &student::lengths(bench.options.quick),
        data.config.vocab_size,
    )?;
    let mut well = true;
    let mut taken = 0.0;
    for budget in [None, Some(if bench.options.quick { 2048 } else { 32_768 })] {
        if bench.seconds_left() < taken {
            let what = format!("{} tokens a batch", budget.unwrap_or_default());
            Row::new(NAME, what).ours("no time left").say(Outcome::Skipped);
            continue;
        }
        let began = Instant::now();
        well &= with_budget(bench, device, &data, budget)?;
        taken = began.elapsed().as_secs_f64();
    }
    Ok(well)
}

/// Loads the teacher, labels some sequences, and then against the clock.
fn with_budget(bench: &Bench, device: &Device, data: &Data, budget: Option<usize>) -> Result<bool> {
    let teacher: TeacherConfig = serde_json::from_value(
        json!({ "model": bench.model(), "precision": "bf16", "max_tokens_per_batch": budget }),
    )?;
    let devices = [(device.clone(), 1)];
    let teacher = Teacher::new(&teacher, &devices);
    let mut labelling = Labelling { bench, device, config: &data.config, teacher, budget };
    let began = Instant::now();
    let loaded = labelling.label(&data.folders[0], "warm")?.seconds.load;
    let warmed = began.elapsed().as_secs_f64() - loaded;
    if budget.is_none() {
        labelling.label(&data.folders[1], student::LABELS)?;
    }
    let lengths = &data.lengths[..labelling.fitting(&data.lengths)];
    made_up::write_sequences(&data.folders[2], lengths, data.config.vocab_size)?;
    let summary = labelling.label(&data.folders[2], "timed")?;
    let warm = data.warm.len();
    Row::new(NAME, "before it")
        .ours(format!("hashed and loaded in {loaded:.1} s, first {warm} sequences in {warmed:.1} s"))
        .say(Outcome::Measured);
    Ok(labelling.report(lengths, &summary))
}

/// A teacher at work.
struct Labelling<'a> {
    bench: &'a Bench,
    device: &'a Device,
    config: &'a DecoderConfig,
    teacher: Teacher<'a>,
    budget: Option<usize>,
}

impl Labelling<'_> {
    /// One run of the stage.
    fn label(&mut self, sequences: &Path, name: &str) -> Result<Summary> {
        let name = match self.budget {
            Some(budget) => format!("{name}-{budget}"),
            None => name.to_owned(),
        };
        // A run has threads, and with them pools of its own: those of the run before are of no use.
        self.device.memory_cleanup();
        let labels = LabelsConfig { sequences_per_shard: SEQUENCES_PER_SHARD, ..LabelsConfig::default() };
        softshard_teacher::run(
            &mut self.teacher,
            &TeacherInputs {
                labels: &labels,
                sequences,
                held_out: None,
                tokenizer: &made_up::tokenizer(self.config.vocab_size)?.into(),
                output: &Output::from(self.bench.result(&name)),
                part: None,
                stop: &AtomicBool::new(false),
                observer: &(),
            },
        )
    }

    /// How many sequences there is time for, all if it suffices.
    fn fitting(&self, all: &[[usize; 2]]) -> usize {
        let peak = card::matrix_peak_tflops(self.bench);
        let seconds = Flops::forward(self.config, all).all() / (EXPECTED_SHARE * peak * 1e12);
        let share = if peak > 0.0 { self.bench.seconds_left() / seconds } else { 1.0 };
        ((all.len() as f64 * share) as usize).clamp(WARM_EVERY.min(all.len()), all.len())
    }

    /// The rows of one run; whether its shards are what they must be.
    fn report(&self, lengths: &[[usize; 2]], summary: &Summary) -> bool {
        self.beside_peers(summary);
        self.where_time_goes(&Flops::forward(self.config, lengths), summary);
        let Summary { labelled_tokens, shards, new_bytes, entropy, .. } = summary;
        let expected: usize = lengths.iter().map(|one| one[1]).sum();
        let entropy = entropy / expected as f64;
        Row::new(NAME, "shards that were committed")
            .ours(format!("{shards} shards, {new_bytes} bytes, mean entropy {entropy:.3} nats"))
            .against("every labelled token, finite")
            .say(Outcome::of(*labelled_tokens == expected as u64 && entropy.is_finite()))
    }

    fn beside_peers(&self, summary: &Summary) {
        let Summary { seconds, sequences, tokens, labelled_tokens, .. } = summary;
        let per_second = *labelled_tokens as f64 / seconds.labelling;
        let batches =
            self.budget.map_or("the default's tokens".to_owned(), |budget| format!("{budget} tokens"));
        let row = || {
            let what = format!(
                "{sequences} sequences of Dolly's lengths, {tokens} tokens, {labelled_tokens} labelled; top 64; {batches} a batch"
            );
            let memory = card::memory(self.device);
            Row::new(NAME, what).ours(format!("{per_second:.0} labelled tokens/s, {memory}"))
        };
        let peer = self.bench.read(peers::LABELLING).unwrap_or_default();
        let mut alone = true;
        for (way, aim) in [("usual", OF_USUAL), ("best", OF_BEST)] {
            if let Some(theirs) = peer["results"][way]["labelled_tokens_per_second"].as_f64() {
                let ratio = per_second / theirs;
                row().against(described(&peer, way)).ratio(ratio).say(Outcome::Aim(ratio >= aim));
                alone = false;
            }
        }
        if alone {
            row().against("no peer was measured").say(Outcome::Measured);
        }
    }

    fn where_time_goes(&self, flops: &Flops, summary: &Summary) {
        let Summary { seconds, tokens, labelled_tokens, padded_tokens, .. } = summary;
        let peak = card::matrix_peak_tflops(self.bench);
        let share = flops.all() / seconds.labelling / 1e12 / peak;
        let per_token = |flops: f64| flops / *labelled_tokens as f64 / 1e9;
        Row::new(NAME, format!("share of the matrix peak of {peak:.4} TFLOP/s"))
            .ours(format!(
                "{} of {:.6e} FLOP; for a labelled token {:.4} GFLOP of layers, {:.4} of attention, {:.4} of the head",
                card::share_of_peak(flops.all(), seconds.labelling, peak),
                flops.all(),
                per_token(flops.layers),
                per_token(flops.attention),
                per_token(flops.head)
            ))
            .against(format!("aim: {:.0} %", 100.0 * OF_PEAK))
            .ratio(share / OF_PEAK)
            .say(Outcome::Aim(share >= OF_PEAK));
        let part = |part_seconds: f64, flops: f64| {
            let of_time = 100.0 * part_seconds / seconds.labelling;
            format!("{of_time:.1} % at {} of the peak", card::share_of_peak(flops, part_seconds, peak))
        };
        let padding = 1.0 - *tokens as f64 / (*padded_tokens).max(1) as f64;
        Row::new(NAME, format!("where its {:.2} s go", seconds.labelling))
            .ours(format!(
                "layers {}; head {}; device idle {:.1} %. Beside it: reading {:.2} s, encoding {:.2} s, committing {:.2} s; attention pads {:.1} %",
                part(seconds.forward, flops.body()),
                part(seconds.head, flops.head),
                100.0 * (1.0 - seconds.busy_share),
                seconds.read,
                seconds.write,
                seconds.commit,
                100.0 * padding
            ))
            .say(Outcome::Measured);
    }
}
