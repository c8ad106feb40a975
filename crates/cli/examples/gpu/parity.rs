//! Every golden model on the device against f32 on the CPU, and against itself in the ways it can be loaded.
//!
//! Legend: B batch, T tokens, N = B·T rows, D model width, V vocabulary.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use burn::tensor::{DType, Device, FloatDType, Int, Tensor, TensorData};
use softshard_losses::{HeadLabels, HeadOptions, Keep, label_rows, logits};
use softshard_model::{Arrangement, Bits, Decoder, LoadOptions, LoraConfig, Precision, Residency, Trainable};

use crate::Bench;
use crate::table::{Outcome, Row};

/// Of the largest logit. f32 products on a GPU may use TF32, which keeps 11 significant bits of each factor.
const F32_LOGITS: f32 = 5e-3;
/// Of a gradient's norm, per tensor; as above, through two passes.
const F32_GRADIENTS: f64 = 1e-2;
/// Of the CPU's own distance from f32 in bf16: one bit. How far 8 significant bits lead depends on the model.
const BF16_TIMES: f64 = 2.0;
/// Of streamed weights: they are the resident ones, but another kernel may have been chosen meanwhile.
const SAME_LOGITS: f32 = F32_LOGITS;
/// Tokens of the batch, and new ones of the generation.
const BATCH: [usize; 2] = [3, 24];
const NEW_TOKENS: usize = 8;

pub(crate) fn run(bench: &Bench, device: &Device) -> Result<bool> {
    let mut all_well = exact_labels(device)?;
    let folders = golden(&bench.options.golden)?;
    let checks: [(&str, Check); 2] = [("precisions", precisions), ("other weights", other_weights)];
    // Every family before the ways in which its weights can be kept: time may be short.
    for (what, check) in checks {
        for folder in &folders {
            let name = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if bench.seconds_left() <= 0.0 {
                // What was not checked did not hold.
                all_well &= Row::new(&name, what).ours("no time left").say(Outcome::Failed);
                continue;
            }
            all_well &= check(&name, folder, device).unwrap_or_else(|error| {
                Row::new(&name, what).ours(format!("{error:#}")).say(Outcome::Failed)
            });
        }
    }
    Ok(all_well)
}

/// The folders of small models.
fn golden(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(folder).with_context(|| format!("golden models: `{}`", folder.display()))?;
    let mut folders: Vec<PathBuf> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.join("config.json").exists())
        .collect();
    folders.sort();
    ensure!(
        !folders.is_empty(),
        "golden models: `{}`: expected folders `tiny-*`, found none",
        folder.display()
    );
    Ok(folders)
}

/// Checks of one model by its name and folder.
type Check = fn(&str, &Path, &Device) -> Result<bool>;

/// A model in f32 and in bf16.
fn precisions(name: &str, folder: &Path, device: &Device) -> Result<bool> {
    let f32 = LoadOptions::default();
    let bf16 = LoadOptions { precision: Precision::Bf16, ..f32 };
    let cpu = Device::flex();

    let reference = Decoder::load_with(folder, &cpu, &f32)?;
    let expected = Passed::of(&reference)?;
    let gradients = lora_gradients(&reference, Backward::Whole)?;
    let decoder = Decoder::load_with(folder, device, &f32)?;
    let found = Passed::of(&decoder)?;
    let mut well = logits_agree(name, "f32", &expected, &found, F32_LOGITS);
    well &= labels_agree(name, &expected, &found);
    well &= generation_agrees(name, &reference, &expected, &decoder)?;
    let on_device = lora_gradients(&decoder, Backward::Whole)?;
    well &= gradients_agree(name, "f32", &gradients, &on_device, F32_GRADIENTS);

    if !device.supports_dtype(DType::BF16) {
        Row::new(name, "bf16").ours("this device does not compute in it").say(Outcome::Skipped);
        return Ok(well);
    }
    let mut on_cpu = Decoder::load_with(folder, &cpu, &bf16)?;
    on_cpu.set_activations(Precision::Bf16);
    let decoder = Decoder::load_with(folder, device, &bf16)?;
    well &= bf16_agrees(name, &expected, &Passed::of(&on_cpu)?, &Passed::of(&decoder)?);
    let (bound, _) = worst_gradient(&gradients, &lora_gradients(&on_cpu, Backward::Whole)?);
    let of_bf16 = lora_gradients(&decoder, Backward::Whole)?;
    ensure!(bound.is_finite(), "gradients in bf16 on the CPU: expected finite ones, found {bound}");
    well &= gradients_agree(name, "bf16", &gradients, &of_bf16, BF16_TIMES * bound);
    Ok(well)
}

/// A model whose layers are streamed, or codes.
fn other_weights(name: &str, folder: &Path, device: &Device) -> Result<bool> {
    let f32 = LoadOptions::default();
    let streamed = LoadOptions { residency: Residency::Streamed, ..f32 };
    let cpu = Device::flex();
    let resident = Decoder::load_with(folder, device, &f32)?;
    let on_device = lora_gradients(&resident, Backward::Whole)?;

    let decoder = Decoder::load_with(folder, device, &streamed)?;
    let (expected, found) = (Passed::of(&resident)?, Passed::of(&decoder)?);
    let mut well = logits_agree(name, "streamed f32", &expected, &found, SAME_LOGITS);
    let by_layer = lora_gradients(&decoder, Backward::ByLayer)?;
    well &= gradients_agree(name, "streamed f32", &on_device, &by_layer, F32_GRADIENTS);

    for (how, bits) in [("8-bit", Bits::Eight), ("4-bit", Bits::Four)] {
        let quantised = LoadOptions { quantise: Some(bits), ..f32 };
        let expected = Passed::of(&Decoder::load_with(folder, &cpu, &quantised)?)?;
        let found = Passed::of(&Decoder::load_with(folder, device, &quantised)?)?;
        well &= logits_agree(name, how, &expected, &found, F32_LOGITS);
    }
    Ok(well)
}

/// What one forward pass gives.
struct Passed {
    /// `[N, V]`.
    logits: Vec<f32>,
    labels: HeadLabels,
}

impl Passed {
    fn of(decoder: &Decoder) -> Result<Self> {
        let hidden = decoder.hidden(ids(decoder))?;
        let [batch, tokens, width] = hidden.dims();
        let hidden = hidden.reshape([batch * tokens, width]);
        let gold = vec![1; batch * tokens];
        let options = HeadOptions {
            keep: Keep::TopK { k: 8 },
            logit_scale: 1.0,
            temperatures: &[2.0],
            rows_per_chunk: 16,
        };
        let labels = label_rows(hidden.clone(), decoder.head(), &gold, &[], &options)?;
        let logits = logits(hidden, &decoder.head()).into_data().try_to_vec::<f32>()?;
        Ok(Self { logits, labels })
    }

    fn largest(&self) -> f32 {
        self.logits.iter().fold(0.0, |largest, logit| largest.max(logit.abs()))
    }
}

/// The same tokens for every device.
fn ids(decoder: &Decoder) -> Tensor<2, Int> {
    let [batch, tokens] = BATCH;
    let device = decoder.head().device().without_autodiff();
    Tensor::from_data(TensorData::new(tokens_of(decoder, batch * tokens), [batch, tokens]), &device)
}

fn tokens_of(decoder: &Decoder, count: usize) -> Vec<i32> {
    let vocabulary = decoder.head().dims()[0];
    (0..count).map(|i| i32::try_from((i * 7919 + 31) % vocabulary).expect("V < 2^31")).collect()
}

pub(crate) fn worst(expected: &[f32], found: &[f32]) -> f32 {
    // A NaN is the worst of all.
    let difference = |(a, b): (&f32, &f32)| if (a - b).is_nan() { f32::INFINITY } else { (a - b).abs() };
    let all = expected.iter().zip(found).map(difference).fold(0.0, f32::max);
    if expected.len() == found.len() { all } else { f32::INFINITY }
}

fn logits_agree(name: &str, how: &str, expected: &Passed, found: &Passed, bound: f32) -> bool {
    let (worst, largest) = (worst(&expected.logits, &found.logits), expected.largest());
    Row::new(name, format!("{how} logits"))
        .ours(format!("worst difference {worst:.1e}, largest logit {largest:.1}"))
        .against(format!("{:.1e}", bound * largest))
        .say(Outcome::of(worst <= bound * largest))
}

/// Root mean square of the distance of all logits.
fn distance(expected: &Passed, found: &Passed) -> f64 {
    let square = |(a, b): (&f32, &f32)| f64::from(a - b).powi(2);
    let sum: f64 = expected.logits.iter().zip(&found.logits).map(square).sum();
    (sum / expected.logits.len() as f64).sqrt()
}

/// bf16 on the device is about as near to f32 as bf16 on the CPU.
fn bf16_agrees(name: &str, expected: &Passed, on_cpu: &Passed, found: &Passed) -> bool {
    let bound = BF16_TIMES * distance(expected, on_cpu);
    let off = distance(expected, found);
    Row::new(name, "bf16 logits")
        .ours(format!("root mean square distance to f32 {off:.3}"))
        .against(format!("{bound:.3}, {BF16_TIMES} times the CPU's in bf16"))
        .say(Outcome::of(off <= bound && expected.logits.len() == found.logits.len()))
}

/// The kept tokens are the same where they are not near the last one kept, and log-probabilities are as close as logits.
fn labels_agree(name: &str, expected: &Passed, found: &Passed) -> bool {
    // A logit's error, and that of the log-sum-exp.
    let bound = 2.0 * F32_LOGITS * expected.largest();
    let (mut same, mut strangers, mut worst) = (0, 0, 0.0f32);
    let (a, b) = (&expected.labels, &found.labels);
    let (mut start_a, mut start_b) = (0, 0);
    for (count_a, count_b) in a.counts.iter().zip(&b.counts) {
        let (count_a, count_b) =
            (usize::try_from(*count_a).unwrap_or(0), usize::try_from(*count_b).unwrap_or(0));
        let kept_a = &a.token_ids[start_a..start_a + count_a];
        let kept_b = &b.token_ids[start_b..start_b + count_b];
        same += usize::from(kept_a == kept_b);
        for (index, id) in kept_a.iter().enumerate() {
            let log_prob = a.log_probs[start_a + index];
            match kept_b.iter().position(|other| other == id) {
                Some(other) => worst = worst.max((log_prob - b.log_probs[start_b + other]).abs()),
                None => strangers += usize::from(log_prob > a.log_probs[start_a + count_a - 1] + bound),
            }
        }
        (start_a, start_b) = (start_a + count_a, start_b + count_b);
    }
    for (left, right) in [(&a.log_sum_exp, &b.log_sum_exp), (&a.gold_log_prob, &b.gold_log_prob)] {
        worst = worst.max(self::worst(left, right));
    }
    Row::new(name, "f32 labels")
        .ours(format!(
            "{same} of {} rows keep the same tokens, {strangers} tokens differ beyond a near tie, worst difference {worst:.1e}",
            a.len()
        ))
        .against(format!("0, {bound:.1e}"))
        .say(Outcome::of(strangers == 0 && worst <= bound && a.len() == b.len()))
}

/// Greedy tokens of the device, with its cache, are the CPU's best or as good as those.
fn generation_agrees(name: &str, reference: &Decoder, expected: &Passed, decoder: &Decoder) -> Result<bool> {
    // Of unlike length: padding and positions are part of it.
    let all = tokens_of(decoder, 24);
    let prompts = [all[..5].to_vec(), all[5..16].to_vec(), all[16..24].to_vec()];
    let answers = decoder.generate(&prompts, NEW_TOKENS, &[], softshard_losses::logits)?;
    let (mut worst, mut equal) = (0.0f32, 0);
    for (prompt, answer) in prompts.iter().zip(&answers) {
        ensure!(answer.len() == NEW_TOKENS, "expected {NEW_TOKENS} new tokens, found {}", answer.len());
        let row = [prompt.as_slice(), answer].concat();
        let columns = row.len();
        let input = Tensor::<2, Int>::from_data(TensorData::new(row, [1, columns]), &Device::flex());
        let hidden = reference.hidden(input)?;
        let width = hidden.dims()[2];
        let logits =
            logits(hidden.reshape([columns, width]), &reference.head()).into_data().try_to_vec::<f32>()?;
        let vocabulary = logits.len() / columns;
        for (index, id) in answer.iter().enumerate() {
            let before = prompt.len() + index - 1;
            let row = &logits[before * vocabulary..(before + 1) * vocabulary];
            let best = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let short = best - row.get(usize::try_from(*id)?).context("a token outside of the vocabulary")?;
            worst = worst.max(short);
            equal += usize::from(short == 0.0);
        }
    }
    let bound = 2.0 * F32_LOGITS * expected.largest();
    Ok(Row::new(name, "f32 greedy tokens with the cache")
        .ours(format!("{equal} of {} are the CPU's, others {worst:.1e} below its best", 3 * NEW_TOKENS))
        .against(format!("{bound:.1e}"))
        .say(Outcome::of(worst <= bound)))
}

/// Gradients by their parameters' names.
type Gradients = Vec<(String, Vec<f32>)>;

/// The largest difference of a factor's gradient, relative to its norm, and the factor.
fn worst_gradient<'a>(expected: &'a Gradients, found: &Gradients) -> (f64, &'a str) {
    let (mut worst, mut of) = (0.0, "");
    for ((parameter, expected), (_, found)) in expected.iter().zip(found) {
        let norm = expected.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
        let off = expected.iter().zip(found).map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>().sqrt();
        let off = off / norm;
        // A NaN is the worst of all.
        if off > worst || off.is_nan() {
            (worst, of) = (if off.is_nan() { f64::INFINITY } else { off }, parameter.as_str());
        }
    }
    (worst, of)
}

/// Of every LoRA factor of every linear map.
fn gradients_agree(name: &str, how: &str, expected: &Gradients, found: &Gradients, bound: f64) -> bool {
    let (worst, of) = worst_gradient(expected, found);
    Row::new(name, format!("{how} gradients of {} LoRA factors", expected.len()))
        .ours(format!("worst relative difference {worst:.1e} {of}"))
        .against(format!("{bound:.1e}"))
        .say(Outcome::of(worst <= bound && expected.len() == found.len()))
}

/// How gradients are found: by one graph, or layer by layer.
enum Backward {
    Whole,
    ByLayer,
}

/// Gradients of a LoRA whose B is not zero, all positions counting.
fn lora_gradients(decoder: &Decoder, backward: Backward) -> Result<Gradients> {
    let mut decoder = decoder.clone();
    let target_modules = vec!["all-linear".to_owned()];
    decoder.attach_lora(&LoraConfig { r: 4, alpha: 8.0, dropout: 0.0, target_modules, rslora: false }, 7)?;
    decoder.train(Trainable::Adapter);
    for (name, factor) in decoder.parameters_mut() {
        if name.contains("lora_B") {
            let shape = factor.dims();
            let values = waves(shape[0] * shape[1]).map(|x| 0.05 * x).collect::<Vec<f32>>();
            let device = factor.device().without_autodiff();
            *factor =
                Tensor::<2>::from_data(TensorData::new(values, shape), &device).autodiff().require_grad();
        }
    }
    let [batch, tokens] = BATCH;
    let ids = tokens_of(&decoder, batch * tokens);
    let sequences: Vec<&[i32]> = ids.chunks(tokens).collect();
    let every: Vec<i32> = (1..i32::try_from(tokens)?).collect();
    let positions = vec![every.as_slice(); batch];
    // A direction of its own for every logit.
    let loss = |hidden: Tensor<2>, head: Tensor<2>| {
        // Not `softshard_losses::logits`, which is without gradients.
        let head = head.cast(FloatDType::from(hidden.dtype()));
        let logits = hidden.matmul(head.transpose()).cast(FloatDType::F32);
        let [rows, vocabulary] = logits.dims();
        let direction = TensorData::new(waves(rows * vocabulary).collect::<Vec<f32>>(), [rows, vocabulary]);
        (logits.clone() * Tensor::<2>::from_data(direction, &logits.device().without_autodiff())).mean()
    };
    let gradients = match backward {
        Backward::ByLayer => {
            decoder
                .backward_by_layer(&sequences, &positions, Arrangement::Padded, |hidden, head| {
                    (loss(hidden, head), ())
                })?
                .0
        }
        Backward::Whole => {
            let hidden = decoder.hidden_before(&sequences, &positions, Arrangement::Padded)?;
            let found = loss(hidden, decoder.head()).backward();
            let of = |(name, factor): (String, &mut Tensor<2>)| {
                factor.grad(&found).with_context(|| format!("`{name}` has no gradient"))
            };
            decoder.parameters_mut().into_iter().map(of).collect::<Result<_>>()?
        }
    };
    let names = decoder.parameters_mut().into_iter().map(|(name, _)| name);
    let values = |gradient: Tensor<2>| gradient.cast(FloatDType::F32).into_data().try_to_vec::<f32>();
    names.zip(gradients).map(|(name, gradient)| Ok((name, values(gradient)?))).collect()
}

/// Numbers in ±1 without a pattern that a layout could repeat.
fn waves(count: usize) -> impl Iterator<Item = f32> {
    (0..count).map(|i| ((i * 2_654_435_761) % 1_000_003) as f32 / 500_001.5 - 1.0)
}

/// Small whole numbers have exact products on every device, so the tokens are the same, ties included.
fn exact_labels(device: &Device) -> Result<bool> {
    let [rows, width, vocabulary] = [64, 64, 1000];
    let whole = |count: usize, seed: usize| {
        (0..count).map(|i| (((i + seed) * 2_654_435_761) % 1_000_003 % 5) as f32 - 2.0).collect::<Vec<f32>>()
    };
    let labels = |device: &Device| {
        let hidden = Tensor::<2>::from_data(TensorData::new(whole(rows * width, 1), [rows, width]), device);
        let head = TensorData::new(whole(vocabulary * width, 9_999_991), [vocabulary, width]);
        let head = Tensor::<2>::from_data(head, device).mul_scalar(0.125);
        let gold = vec![3; rows];
        let keep = Keep::TopK { k: 16 };
        let options = HeadOptions { keep, logit_scale: 1.0, temperatures: &[2.0], rows_per_chunk: 24 };
        label_rows(hidden, head, &gold, &[], &options)
    };
    let (expected, found) = (labels(&Device::flex())?, labels(device)?);
    let same = expected.token_ids == found.token_ids;
    Ok(Row::new("labels", "of logits that every device computes exactly")
        .ours(if same { "the same tokens" } else { "other tokens" })
        .against("the same")
        .say(Outcome::of(same)))
}
