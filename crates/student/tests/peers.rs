//! Loss, gradients and optimizer equal to PyTorch and PEFT, by golden files of `tests/peers/make_golden.py`.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use burn::tensor::{Device, Tensor};
use safetensors::SafeTensors;
use serde::Deserialize;
use softshard_losses::{
    DistillLoss, Divergence, LossValue, Tail, Targets, at_temperature, at_temperature_without_tail,
};
use softshard_model::{Arrangement, Decoder, Trainable};
use softshard_student::{LearningRate, Optimizer, OptimizerKind, Schedule, clip_global_norm};

/// Relative; PyTorch's own gradients move by 2e-6 with other threads.
const GRADIENT: f32 = 1e-4;
/// Relative; the losses of PyTorch's own 20 steps move by 1e-6.
const LOSS: f64 = 1e-4;

#[derive(Deserialize)]
struct Golden {
    sequences: Vec<Labelled>,
    cases: Vec<Case>,
    training: Training,
}

#[derive(Deserialize)]
struct Labelled {
    input_ids: Vec<i32>,
    positions: Vec<i32>,
    counts: Vec<i32>,
    token_ids: Vec<i32>,
    log_probs: Vec<f32>,
    log_sum_exp: Vec<f32>,
    tail_log_mass: Vec<f32>,
    entropy: Vec<f32>,
    log_partition_t2: Vec<f32>,
}

/// A loss.
#[derive(Deserialize)]
struct Case {
    name: String,
    alpha: f64,
    #[serde(default)]
    divergence: Divergence,
    #[serde(default)]
    tail: Tail,
    temperature: f64,
    normalise: bool,
    #[serde(default)]
    by_entropy: bool,
    /// Of the first step, or of all.
    #[serde(flatten)]
    values: Values,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Values {
    First { loss: f64, cross_entropy_sum: f64, kl_sum: f64 },
    All { losses: Vec<f64> },
}

#[derive(Deserialize)]
struct Variants {
    variants: Vec<Case>,
}

#[derive(Deserialize)]
struct Training {
    case: String,
    steps: u64,
    learning_rate: f64,
    min_learning_rate: f64,
    weight_decay: f64,
    max_gradient_norm: f64,
    losses: Vec<f64>,
    gradient_norms: Vec<f64>,
    final_loss: f64,
}

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/peers/golden").join(name)
}

fn expected() -> Golden {
    serde_json::from_slice(&fs::read(golden("kd.expected.json")).expect("golden values")).expect("JSON")
}

/// tiny-llama with PEFT's adapter, whose factors are trained.
fn student() -> Decoder {
    let mut decoder =
        Decoder::load(&golden("tiny-llama"), &Device::flex().autodiff()).expect("the model loads");
    decoder.load_adapter(&golden("lora")).expect("the adapter loads");
    decoder.train(Trainable::Adapter);
    decoder
}

/// The loss of all sequences as one batch.
fn loss_of(decoder: &Decoder, sequences: &[Labelled], case: &Case) -> LossValue {
    let mut targets = Targets::default();
    for one in sequences {
        let at = |&position: &i32| one.input_ids[usize::try_from(position).expect("from 1 on")];
        let gold: Vec<i32> = one.positions.iter().map(at).collect();
        let (log_probs, tail_log_mass) = if case.temperature > 1.0 {
            let (differences, tail) = at_temperature_without_tail(
                &one.counts,
                &one.log_probs,
                &one.log_sum_exp,
                &one.log_partition_t2,
                case.temperature,
            );
            // These log-probabilities are exact, so it does not matter which of the two is known.
            let kept = at_temperature(&one.counts, &one.log_probs, &tail, case.temperature);
            assert!(kept.iter().zip(&differences).all(|(one, other)| (one - other).abs() < 1e-5));
            (kept, tail)
        } else {
            (one.log_probs.clone(), one.tail_log_mass.clone())
        };
        let (counts, token_ids) = (one.counts.clone(), one.token_ids.clone());
        let divergence_offset = vec![0.0; gold.len()];
        let alpha_factors = if case.by_entropy { one.entropy.clone() } else { vec![1.0; gold.len()] };
        targets.append(Targets {
            gold,
            counts,
            token_ids,
            log_probs,
            tail_log_mass,
            divergence_offset,
            alpha_factors,
        });
    }
    let ids: Vec<&[i32]> = sequences.iter().map(|one| one.input_ids.as_slice()).collect();
    let positions: Vec<&[i32]> = sequences.iter().map(|one| one.positions.as_slice()).collect();
    let Case { alpha, divergence, tail, temperature, normalise, .. } = *case;
    let loss = DistillLoss { alpha, divergence, tail, temperature, normalise, rows_per_chunk: 5 };
    #[expect(clippy::cast_precision_loss, reason = "a handful of tokens")]
    let labelled = targets.len() as f64;
    loss.compute(
        decoder.hidden_before(&ids, &positions, Arrangement::Padded).expect("resident"),
        decoder.head(),
        &targets,
        labelled,
    )
}

fn scalar(tensor: &Tensor<1>) -> f64 {
    f64::from(tensor.clone().into_scalar::<f32>())
}

/// Tensors of a golden file by name.
fn tensors(name: &str) -> BTreeMap<String, Vec<f32>> {
    let bytes = fs::read(golden(name)).expect("golden values");
    let tensors = SafeTensors::deserialize(&bytes).expect("safetensors");
    let values =
        |data: &[u8]| data.as_chunks::<4>().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect();
    tensors.iter().map(|(name, view)| (name.to_owned(), values(view.data()))).collect()
}

#[track_caller]
fn assert_close(name: &str, found: Tensor<2>, expected: &[f32]) {
    let found = found.into_data().try_into_vec::<f32>().expect("f32 values");
    let largest = expected.iter().fold(0.0f32, |largest, value| largest.max(value.abs()));
    let worst =
        found.iter().zip(expected).map(|(found, expected)| (found - expected).abs()).fold(0.0, f32::max);
    assert_eq!(found.len(), expected.len(), "{name}");
    assert!(worst <= GRADIENT * largest, "{name}: off by {worst} where the largest is {largest}");
}

#[test]
fn losses_and_gradients_are_those_of_pytorch() {
    let (golden, gradients) = (expected(), tensors("kd.gradients.safetensors"));
    for case in &golden.cases {
        let mut decoder = student();
        let value = loss_of(&decoder, &golden.sequences, case);
        let Values::First { loss, cross_entropy_sum, kl_sum } = case.values else {
            panic!("{}: values of one step", case.name)
        };
        for (part, found, expected) in [
            ("loss", scalar(&value.loss), loss),
            ("cross-entropy", value.cross_entropy_sum, cross_entropy_sum),
        ] {
            assert!(
                (found / expected - 1.0).abs() < LOSS,
                "{} {part}: expected {expected}, found {found}",
                case.name
            );
        }
        if case.alpha > 0.0 {
            assert!(
                (value.divergence_sum / kl_sum - 1.0).abs() < LOSS,
                "{}: {} {}",
                case.name,
                value.divergence_sum,
                kl_sum
            );
        }
        let found = value.loss.backward();
        let parameters = decoder.parameters_mut();
        assert_eq!(parameters.len() * golden.cases.len(), gradients.len(), "every factor has its gradient");
        for (name, parameter) in parameters {
            let gradient = parameter.grad(&found).expect("a gradient");
            let key = format!("{}/{name}", case.name);
            assert_close(&key, gradient, gradients.get(&key).unwrap_or_else(|| panic!("no {key}")));
        }
    }
}

/// Trains as PyTorch did: the decoder, and losses and gradient norms before each step.
fn trained(golden: &Golden, case: &Case) -> (Decoder, Vec<[f64; 2]>) {
    let training = &golden.training;
    let schedule = LearningRate {
        schedule: Schedule::Cosine,
        peak: training.learning_rate,
        last: training.min_learning_rate,
        warmup_steps: 0,
        decay_steps: 0,
        total_steps: training.steps,
    };
    let mut decoder = student();
    let mut optimizer =
        Optimizer::new(OptimizerKind::Adamw, training.weight_decay, &decoder.parameters_mut());
    let mut curve = Vec::new();
    for step in 0..training.steps {
        let value = loss_of(&decoder, &golden.sequences, case);
        let loss = scalar(&value.loss);
        let found = value.loss.backward();
        let mut parameters = decoder.parameters_mut();
        let mut gradients: Vec<Tensor<2>> =
            parameters.iter().map(|(_, parameter)| parameter.grad(&found).expect("a gradient")).collect();
        let norm = clip_global_norm(&mut gradients, training.max_gradient_norm);
        optimizer.step(schedule.at(step), &mut parameters, gradients);
        curve.push([loss, norm]);
    }
    (decoder, curve)
}

fn close(found: f64, expected: f64) -> bool {
    (found / expected - 1.0).abs() < LOSS
}

#[test]
fn twenty_steps_are_those_of_pytorch() {
    let (golden, weights) = (expected(), tensors("kd.trained.safetensors"));
    let training = &golden.training;
    let case = golden.cases.iter().find(|case| case.name == training.case).expect("the case is there");
    let (mut decoder, curve) = trained(&golden, case);
    for (step, [loss, norm]) in curve.into_iter().enumerate() {
        assert!(close(loss, training.losses[step]), "step {step}: {loss} {}", training.losses[step]);
        let expected = training.gradient_norms[step];
        assert!(close(norm, expected), "step {step}: {norm} {expected}");
    }
    let loss = scalar(&loss_of(&decoder, &golden.sequences, case).loss);
    assert!(close(loss, training.final_loss), "final: {loss} {}", training.final_loss);
    for (name, parameter) in decoder.parameters_mut() {
        assert_close(&name, parameter.clone().inner(), &weights[&name]);
    }
}

/// Every divergence with every tail, other temperatures, and alpha by entropy.
#[test]
fn twenty_steps_of_each_variant_are_those_of_pytorch() {
    let golden = expected();
    let variants = fs::read(self::golden("kd.variants.json")).expect("golden values");
    let Variants { variants } = serde_json::from_slice(&variants).expect("JSON");
    assert!(variants.len() > 20);
    for case in &variants {
        let Values::All { losses } = &case.values else { panic!("{}: values of all steps", case.name) };
        let (_, curve) = trained(&golden, case);
        assert_eq!(curve.len(), losses.len());
        for (step, ([loss, _], expected)) in curve.into_iter().zip(losses).enumerate() {
            assert!(close(loss, *expected), "{} step {step}: {loss} {expected}", case.name);
        }
    }
}
