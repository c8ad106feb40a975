//! Whole labelling by the engine of `teacher-labels`, from a model folder to committed shards, of sequences as long as Dolly's.

use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use anyhow::Result;
use burn::tensor::Device;
use serde_json::{Value, json};
use softshard_labels::Output;
use softshard_model::DecoderConfig;
use softshard_teacher::{LabelsConfig, Summary, Teacher, TeacherConfig, TeacherInputs};

use crate::flops::Flops;
use crate::peers::{Peer, number};
use crate::table::{Outcome, Row};
use crate::{Bench, card, made_up, shapes, student};

/// Left by the peers for those that follow.
pub(crate) const PEERS: &str = "label-peers.json";
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
    let peer = Peer { script: "transformers_label.py", jobs, result: PEERS };
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
    if let Some(problem) = one["problem"].as_str() {
        return format!("{way}: {problem}");
    }
    format!(
        "{way}, {}: {:.0} labelled tokens/s, {:.1} GiB, padding {:.1} %",
        one["batches"].as_str().unwrap_or("not run"),
        number(one, "labelled_tokens_per_second"),
        number(one, "gib"),
        100.0 * number(one, "padding")
    )
}

/// Labels with the default of `max_tokens_per_batch`, and with more.
pub(crate) fn run(bench: &Bench, device: &Device) -> Result<bool> {
    let model = bench.model();
    if !model.exists() {
        return Ok(Row::new(NAME, "the part").ours("no weights were written").say(Outcome::Failed));
    }
    let config = DecoderConfig::load(&model)?;
    let all = made_up::dolly(bench)?;
    let warm: Vec<[usize; 2]> = all.iter().copied().step_by(WARM_EVERY).collect();
    let folders = ["warm", "student", "timed"].map(|name| bench.result(&format!("sequences-{name}")));
    made_up::write_sequences(&folders[0], &warm, config.vocab_size)?;
    made_up::write_sequences(&folders[1], &student::lengths(bench.options.quick), config.vocab_size)?;
    let peer = bench.read(PEERS).unwrap_or_default();
    let devices = [(device.clone(), 1)];
    let mut well = true;
    let mut taken = 0.0;
    for budget in [None, Some(if bench.options.quick { 2048 } else { 32_768 })] {
        if bench.seconds_left() < taken {
            let what = format!("{} tokens a batch", budget.unwrap_or_default());
            Row::new(NAME, what).ours("no time left").say(Outcome::Skipped);
            continue;
        }
        let began = Instant::now();
        let teacher: TeacherConfig = serde_json::from_value(
            json!({ "model": model, "precision": "bf16", "max_tokens_per_batch": budget }),
        )?;
        let mut labelling =
            Labelling { bench, config: &config, teacher: Teacher::new(&teacher, &devices), budget };
        let warming = Instant::now();
        let loaded = labelling.label(&folders[0], "warm")?.seconds.load;
        let warmed = warming.elapsed().as_secs_f64() - loaded;
        if budget.is_none() {
            labelling.label(&folders[1], student::LABELS)?;
        }
        let lengths = &all[..labelling.fitting(&all)];
        made_up::write_sequences(&folders[2], lengths, config.vocab_size)?;
        let summary = labelling.label(&folders[2], "timed")?;
        Row::new(NAME, "before it")
            .ours(format!(
                "hashed and loaded in {loaded:.1} s, first {} sequences in {warmed:.1} s",
                warm.len()
            ))
            .say(Outcome::Measured);
        well &= report(&labelling, lengths, &summary, device, &peer);
        taken = began.elapsed().as_secs_f64();
    }
    Ok(well)
}

/// A teacher at work.
struct Labelling<'a> {
    bench: &'a Bench,
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
        let labels = LabelsConfig { sequences_per_shard: SEQUENCES_PER_SHARD, ..LabelsConfig::default() };
        softshard_teacher::run(
            &mut self.teacher,
            &TeacherInputs {
                labels: &labels,
                sequences,
                held_out: None,
                tokenizer: &made_up::tokenizer(self.config.vocab_size)?,
                output: &Output::from(self.bench.result(&name)),
                part: None,
                stop: &AtomicBool::new(false),
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
}

/// The rows of one run.
fn report(
    labelling: &Labelling,
    lengths: &[[usize; 2]],
    summary: &Summary,
    device: &Device,
    peer: &Value,
) -> bool {
    let Summary { seconds, tokens, labelled_tokens, padded_tokens, .. } = summary;
    let per_second = *labelled_tokens as f64 / seconds.labelling;
    let batches =
        labelling.budget.map_or("the default's tokens".to_owned(), |budget| format!("{budget} tokens"));
    let what = format!(
        "{} sequences of Dolly's lengths, {tokens} tokens, {labelled_tokens} labelled; top 64; {batches} a batch",
        summary.sequences
    );
    for (way, aim) in [("usual", OF_USUAL), ("best", OF_BEST)] {
        let row = Row::new(NAME, &what)
            .ours(format!("{per_second:.0} labelled tokens/s, {}", card::memory(device)))
            .against(described(peer, way));
        match peer["results"][way]["labelled_tokens_per_second"].as_f64() {
            Some(theirs) => row.ratio(per_second / theirs).say(Outcome::Aim(per_second >= aim * theirs)),
            None => row.say(Outcome::Measured),
        };
    }
    let peak = card::matrix_peak_tflops(labelling.bench);
    let flops = Flops::forward(labelling.config, lengths);
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
    let part = |seconds_of: f64, flops: f64| {
        let of_time = 100.0 * seconds_of / seconds.labelling;
        format!("{of_time:.1} % at {} of the peak", card::share_of_peak(flops, seconds_of, peak))
    };
    Row::new(NAME, format!("where its {:.2} s go", seconds.labelling))
        .ours(format!(
            "layers {}; head {}; device idle {:.1} %. Beside it: reading {:.2} s, encoding {:.2} s, committing {:.2} s; attention pads {:.1} %",
            part(seconds.forward, flops.body()),
            part(seconds.head, flops.head),
            100.0 * (1.0 - seconds.busy_share),
            seconds.read,
            seconds.write,
            seconds.commit,
            100.0 * (1.0 - *tokens as f64 / (*padded_tokens).max(1) as f64)
        ))
        .say(Outcome::Measured);
    let all_labelled = usize::try_from(*labelled_tokens).ok() == Some(lengths.iter().map(|one| one[1]).sum());
    let entropy = summary.entropy / (*labelled_tokens).max(1) as f64;
    Row::new(NAME, "shards that were committed")
        .ours(format!(
            "{} shards, {} bytes, mean entropy {entropy:.3} nats",
            summary.shards, summary.new_bytes
        ))
        .against("every labelled token, finite")
        .say(Outcome::of(all_labelled && entropy.is_finite()))
}
