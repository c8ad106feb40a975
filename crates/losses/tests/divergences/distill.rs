//! What holds of the loss whatever the divergence, seen with the default one.

use burn::tensor::{DType, Device, Tensor};
use proptest::prelude::*;
use softshard_losses::{
    DistillLoss, HeadOptions, Keep, Targets, at_temperature, at_temperature_without_tail, label_logits,
    label_rows,
};

use super::dense::{Case, largest_difference, softmax, to_f64};
use super::{LABELS, assert_case};

/// One logit of f32, a few operations on.
const F32: f64 = 2e-5;

fn loss(alpha: f64, temperature: f64, rows_per_chunk: usize) -> DistillLoss {
    DistillLoss { temperature, ..DistillLoss::forward_kl(alpha, rows_per_chunk) }
}

#[test]
fn alpha_zero_is_the_cross_entropy() {
    let case = Case::new(5, [4, 3, 11], &[3, 5, 11, 0], loss(0.0, 2.0, 3));
    assert_case(&case);
    // The teacher is not even looked at: with another one, and with none, every bit is the same.
    let (hidden, head) = case.tensors(DType::F32);
    let hidden = hidden.require_grad();
    let run = |targets: &Targets| {
        let value = case.loss.compute(hidden.clone(), head.clone(), targets, 2.0);
        let gradient = to_f64(hidden.grad(&value.loss.backward()).unwrap());
        (value.divergence_sum, to_f64(value.loss), gradient)
    };
    assert_eq!(run(&case.targets()), run(&Targets::without_teacher(case.gold.clone())));
    assert_eq!(run(&case.targets()).0, 0.0);
}

#[test]
fn the_whole_vocabulary_is_the_dense_divergence() {
    let case = Case::new(6, [3, 4, 9], &[9; 3], loss(1.0, 1.0, 2));
    assert_case(&case);
    let (hidden, head) = case.tensors(DType::F64);
    let dense: f64 = (0..3).map(|row| case.exact_reference(row)).sum();
    let evaluation = case.loss.evaluate(hidden, head, &case.targets());
    assert!((evaluation.kl_sum - dense).abs() < LABELS);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn any_case(
        seed in 1_u64..1000,
        vocabulary in 2_usize..12,
        fractions in prop::collection::vec(0.0..=1.0_f64, 1..5),
        alpha in 0.0..3.0_f64,
        temperature in prop_oneof![Just(1.0), 0.5..4.0_f64],
        rows_per_chunk in 1_usize..6,
    ) {
        let counts: Vec<usize> = fractions.iter().map(|fraction| (fraction * vocabulary as f64) as usize).collect();
        assert_case(&Case::new(seed, [fractions.len(), 3, vocabulary], &counts, loss(alpha, temperature, rows_per_chunk)));
    }
}

#[test]
fn a_frozen_head_gets_no_gradient() {
    let case = Case::new(9, [4, 3, 11], &[3, 5, 11, 0], loss(1.0, 1.0, 3));
    let (hidden, head) = case.tensors(DType::F64);
    let hidden = hidden.require_grad();
    for head in [head.clone(), head.clone().inner()] {
        let value = case.loss.compute(hidden.clone(), head.clone(), &case.targets(), 1.0);
        let gradients = value.loss.backward();
        assert!(head.grad(&gradients).is_none());
        let expected = Case::run(&case, DType::F64, 1.0).1;
        assert_eq!(to_f64(hidden.grad(&gradients).unwrap()), expected);
    }
}

#[test]
fn the_gradient_flows_on_and_scales() {
    let case = Case::new(10, [4, 3, 11], &[3, 5, 11, 0], loss(1.0, 1.0, 3));
    let (_, d_hidden, _) = case.run(DType::F64, 1.0);
    let (hidden, head) = case.tensors(DType::F64);
    let before = hidden.require_grad();
    let value = case.loss.compute(before.clone() * 1.0, head, &case.targets(), 1.0);
    let gradient = to_f64(before.grad(&(value.loss * 4.0).backward()).unwrap());
    let expected: Vec<f64> = d_hidden.iter().map(|d| d * 4.0).collect();
    assert!(largest_difference(&gradient, &expected) < 1e-12);
}

/// Labels of a model, then the same model as the student.
fn same_model(temperature: f64, k: usize) -> (f64, f64) {
    let case = Case::new(12, [8, 6, 41], &[0; 8], loss(1.0, temperature, 3));
    let (hidden, head) = case.tensors(DType::F32);
    let options = HeadOptions {
        keep: Keep::TopK { k },
        logit_scale: 1.0,
        temperatures: &[temperature as f32],
        rows_per_chunk: 5,
    };
    let labels = label_rows(hidden.clone(), head.clone(), &case.gold, &[], &options).unwrap();
    let (log_probs, tail_log_mass) = if temperature == 1.0 {
        (labels.log_probs, labels.tail_log_mass)
    } else {
        let tail = labels.tail_log_masses[0].clone();
        (at_temperature(&labels.counts, &labels.log_probs, &tail, temperature), tail)
    };
    let targets = Targets {
        gold: case.gold.clone(),
        counts: labels.counts,
        token_ids: labels.token_ids,
        log_probs,
        tail_log_mass,
        divergence_offset: vec![0.0; case.gold.len()],
        alpha_factors: vec![1.0; case.gold.len()],
    };
    let hidden = hidden.require_grad();
    let distill = |alpha| {
        let value = loss(alpha, temperature, 3).compute(hidden.clone(), head.clone(), &targets, 1.0);
        (value.divergence_sum, to_f64(hidden.grad(&value.loss.backward()).unwrap()))
    };
    let (_, supervised) = distill(0.0);
    let (kl, both) = distill(1.0);
    (kl, largest_difference(&supervised, &both))
}

#[test]
fn a_student_that_is_the_teacher_has_no_divergence() {
    for temperature in [1.0, 2.0, 0.5] {
        for k in [1, 8, 41] {
            let (kl, gradient) = same_model(temperature, k);
            assert!(kl.abs() < F32, "T {temperature} k {k}: KL {kl}");
            assert!(gradient < F32 * 2.0, "T {temperature} k {k}: gradient {gradient}");
        }
    }
}

#[test]
fn temperature_of_stored_labels() {
    // Three tokens with logits 2, 0, -1, the first two kept.
    let logits = [2.0_f64, 0.0, -1.0];
    let partition = |t: f64| logits.iter().map(|z| (z / t).exp()).sum::<f64>().ln();
    let log_probs: Vec<f32> = logits[..2].iter().map(|z| (z - partition(1.0)) as f32).collect();
    let lse = [partition(1.0) as f32];
    let expected = softmax(&logits, 3.0);
    let close = |kept: &[f32]| {
        assert!((f64::from(kept[0]) - expected[0].ln()).abs() < LABELS);
        assert!((f64::from(kept[1]) - expected[1].ln()).abs() < LABELS);
    };
    let (kept, tail) = at_temperature_without_tail(&[2], &log_probs, &lse, &[partition(3.0) as f32], 3.0);
    close(&kept);
    assert!((f64::from(tail[0]) - expected[2].ln()).abs() < LABELS);
    close(&at_temperature(&[2], &log_probs, &[expected[2].ln() as f32], 3.0));
    // Nothing left, whatever the rounding says.
    let (_, tail) = at_temperature_without_tail(&[1], &[0.0], &[2.0], &[1.0], 2.0);
    assert_eq!(tail, [f32::NEG_INFINITY]);
    // Nothing beyond, and nothing but what is beyond.
    let shares = |log_probs: &[f32], tail: f32| -> Vec<f32> {
        at_temperature(&[2, 0], log_probs, &[tail, 0.0], 0.5).iter().map(|log_prob| log_prob.exp()).collect()
    };
    let [first, second] = *shares(&[0.5f32.ln(), 0.5f32.ln()], f32::NEG_INFINITY) else { panic!("two") };
    assert!((first - 0.5).abs() < 1e-6 && (second - 0.5).abs() < 1e-6);
    assert_eq!(shares(&[-1.0, -2.0], 0.0), [0.0, 0.0]);
}

/// As labels are stored: log-probabilities of 7 mantissa bits, tails of 10.
fn rounded(values: &[f32], bits: u32) -> Vec<f32> {
    let half = 1 << (22 - bits);
    values
        .iter()
        .map(|value| f32::from_bits((value.to_bits() + half) >> (23 - bits) << (23 - bits)))
        .collect()
}

/// Of rows of a teacher that is sure of some tokens and not of others, as language models are.
#[test]
fn what_lies_beyond_the_entries_is_known_below_a_temperature_of_1() {
    /// Half a step of 10 mantissa bits, relative, and f32.
    const TAIL: f64 = 1.0 / 2048.0;
    let (rows, vocabulary, k) = (200, 4000, 64);
    let mut state = 7_u64;
    let mut unit = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f64 / (1 << 24) as f64
    };
    let logits: Vec<f32> = (0..rows)
        .flat_map(|row| {
            let scale = 1.0 + 5.0 * f64::from(row) / f64::from(rows);
            (0..vocabulary).map(|_| (-scale * (unit() + 1e-9).ln()) as f32).collect::<Vec<_>>()
        })
        .collect();
    let temperatures = [0.25, 0.5, 0.7, 0.9, 2.0];
    let options = HeadOptions {
        keep: Keep::TopK { k },
        logit_scale: 1.0,
        temperatures: &temperatures,
        rows_per_chunk: 64,
    };
    let tensor = Tensor::<2>::from_data(
        burn::tensor::TensorData::new(logits.clone(), [rows as usize, vocabulary]),
        &Device::flex(),
    );
    let labels = label_logits(tensor, &vec![0; rows as usize], &[], &options).unwrap();
    let log_probs = rounded(&labels.log_probs, 7);
    for (index, temperature) in temperatures.into_iter().map(f64::from).enumerate() {
        let tail = rounded(&labels.tail_log_masses[index], 10);
        let kept = at_temperature(&labels.counts, &log_probs, &tail, temperature);
        let (_, differences) = at_temperature_without_tail(
            &labels.counts,
            &log_probs,
            &labels.log_sum_exp,
            &labels.log_partitions[index],
            temperature,
        );
        let mut lost = 0;
        for (row, logits) in logits.chunks(vocabulary).enumerate() {
            let entries = row * k..(row + 1) * k;
            let logits: Vec<f64> = logits.iter().copied().map(f64::from).collect();
            let mut expected = softmax(&logits, temperature);
            for &id in &labels.token_ids[entries.clone()] {
                expected[usize::try_from(id).unwrap()] = 0.0;
            }
            let expected: f64 = expected.iter().sum::<f64>().ln();
            assert!(
                (f64::from(tail[row]) - expected).abs() < TAIL * expected.abs() + F32,
                "T {temperature}: {} {expected}",
                tail[row]
            );
            let all: f64 = kept[entries].iter().map(|&log_prob| f64::from(log_prob).exp()).sum::<f64>()
                + f64::from(tail[row]).exp();
            assert!((all - 1.0).abs() < 1e-5, "T {temperature}: {all}");
            lost += u32::from((f64::from(differences[row]) - expected).abs() > 1.0);
        }
        // What the difference was good for.
        assert!(temperature > 0.6 || lost > 40, "T {temperature}: {lost} of {rows}");
    }
}

#[test]
fn a_tie_is_not_right() {
    let device = Device::flex();
    let hidden = Tensor::<2>::from_data([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [1.0, -1.0]], &device);
    let head = Tensor::<2>::from_data([[2.0, 0.0], [2.0, 0.0], [0.0, 1.0], [0.0, 0.5]], &device);
    let targets = Targets::without_teacher(vec![0, 2, 1, 3]);
    let found = loss(0.0, 1.0, 3).evaluate(hidden.clone(), head.clone(), &targets);
    assert_eq!(found.correct, [false, true, false, false]);
    // One bit of f32 ahead is ahead.
    let ahead = head.slice_assign([0..1, 0..1], Tensor::from_data([[2.000_000_2]], &device));
    let found = loss(0.0, 1.0, 3).evaluate(hidden, ahead, &Targets::without_teacher(vec![0, 2, 1, 3]));
    assert_eq!(found.correct, [true, true, false, false]);
}

/// Logits near 20 of bf16 numbers: bf16 has a step of 0.125 there, and most of the best tokens would be equal.
#[test]
fn labels_of_a_bf16_head_are_those_of_the_f32_product() {
    let (rows, width, vocabulary, k) = (24, 64, 3000, 16);
    let numbers = |count: usize, factor: f64| -> Vec<f32> {
        (0..count).map(|i| ((i as f64 * factor).sin() * 1.5) as f32).collect()
    };
    let tensor = |values: Vec<f32>, height| {
        let data = burn::tensor::TensorData::new(values, [height, width]);
        Tensor::<2>::from_data(data, &Device::flex()).cast(burn::tensor::FloatDType::BF16)
    };
    let hidden = tensor(numbers(rows * width, 1.37), rows);
    let head = tensor(numbers(vocabulary * width, 0.731), vocabulary);
    let gold = vec![1; rows];
    let options =
        HeadOptions { keep: Keep::TopK { k }, logit_scale: 1.0, temperatures: &[0.5], rows_per_chunk: 10 };
    let found = label_rows(hidden.clone(), head.clone(), &gold, &[], &options).unwrap();
    let f32 = |tensor: Tensor<2>| tensor.cast(burn::tensor::FloatDType::F32);
    let expected = label_rows(f32(hidden.clone()), f32(head.clone()), &gold, &[], &options).unwrap();
    assert_eq!(found.token_ids, expected.token_ids);
    for (found, expected) in found.log_probs.iter().zip(&expected.log_probs) {
        assert!((found - expected).abs() < 2e-5, "{found} {expected}");
    }
    let ties = found.log_probs.chunks(k).filter(|row| row.windows(2).any(|pair| pair[0] == pair[1])).count();
    assert!(ties < 2, "{ties} of {rows} rows have equal entries");
    let rounded = hidden.clone().matmul(head.clone().transpose());
    let rounded = label_logits(rounded, &gold, &[], &options).unwrap();
    let ties =
        rounded.log_probs.chunks(k).filter(|row| row.windows(2).any(|pair| pair[0] == pair[1])).count();
    assert!(ties > rows / 2, "{ties} of {rows} rows of rounded logits");

    // The student of the same numbers is its teacher.
    let targets = Targets::of(gold, &found);
    let value = loss(1.0, 1.0, 7).evaluate(hidden, head, &targets);
    assert!(value.kl_sum.abs() < 1e-4 && value.kls.iter().all(|kl| kl.abs() < F32), "{:?}", value.kls);
}

#[test]
fn evaluation_is_the_loss_and_more() {
    for temperature in [1.0, 2.0] {
        let case = Case::new(13, [5, 4, 13], &[3, 0, 13, 1, 7], loss(0.7, temperature, 2));
        let (value, _, _) = case.run(DType::F64, 1.0);
        let (hidden, head) = case.tensors(DType::F64);
        let found = DistillLoss { alpha: 0.0, ..case.loss }.evaluate(hidden, head, &case.targets());
        assert!((found.cross_entropy_sum - value.cross_entropy_sum).abs() < 1e-12);
        assert!((found.kl_sum - value.divergence_sum).abs() < 1e-12);
        assert!((found.kls.iter().sum::<f64>() - value.divergence_sum).abs() < 1e-12);
        for row in 0..5 {
            let q = softmax(&case.logits(row), 1.0);
            let gold = q[usize::try_from(case.gold[row]).unwrap()];
            let best = q.iter().copied().fold(0.0, f64::max);
            assert!((found.cross_entropies[row] + gold.ln()).abs() < 1e-12);
            assert!((found.confidences[row] - best).abs() < 1e-12);
            let ties = q.iter().filter(|&&probability| probability == best).count();
            assert_eq!(found.correct[row], gold == best && ties == 1);
        }
    }
    let case = Case::new(14, [1, 4, 13], &[0], loss(1.0, 1.0, 2));
    let (hidden, head) = case.tensors(DType::F32);
    let found = case.loss.evaluate(hidden, head, &Targets::without_teacher(case.gold.clone()));
    assert!(found.kl_sum.abs() < 1e-6);
}

#[test]
fn extreme_students_stay_finite() {
    // One student leaves 2·e^-200 for the rest, one leaves e^-200 for the kept token; the teacher wants both.
    let device = Device::flex().autodiff();
    let hidden = Tensor::<2>::from_data([[100.0, 0.0], [0.0, 100.0]], &device).require_grad();
    let head = Tensor::<2>::from_data([[2.0, 0.0], [0.0, 0.0], [0.0, 2.0]], &device);
    let targets = Targets {
        gold: vec![1, 1],
        counts: vec![1, 1],
        token_ids: vec![0, 0],
        log_probs: vec![0.75_f32.ln(); 2],
        tail_log_mass: vec![0.25_f32.ln(); 2],
        divergence_offset: vec![0.0; 2],
        alpha_factors: vec![1.0; 2],
    };
    let value = loss(1.0, 1.0, 2).compute(hidden.clone(), head, &targets, 2.0);
    // First row: log q = (0, ln 2 - 200); second row: (-200, 0).
    let teacher = 0.75 * 0.75_f64.ln() + 0.25 * 0.25_f64.ln();
    let expected = 2.0 * teacher + 0.25 * (200.0 - 2.0_f64.ln()) + 0.75 * 200.0;
    assert!((value.divergence_sum - expected).abs() < 1e-3, "{}", value.divergence_sum);
    assert!(to_f64(hidden.grad(&value.loss.backward()).unwrap()).iter().all(|d| d.is_finite()));
}

#[test]
fn a_broken_student_is_seen_in_the_loss() {
    let case = Case::new(15, [3, 2, 5], &[2, 2, 2], loss(1.0, 1.0, 2));
    for bad in [f64::NAN, f64::INFINITY] {
        let mut case = case.clone();
        case.hidden[3] = bad;
        let (value, _, _) = case.run(DType::F32, 1.0);
        assert!(!to_f64(value.loss)[0].is_finite());
    }
}

#[test]
#[should_panic(expected = "outside of the student's vocabulary of 5")]
fn a_token_of_another_vocabulary_is_refused() {
    let mut case = Case::new(16, [3, 2, 5], &[2, 2, 2], loss(1.0, 1.0, 2));
    case.gold[1] = 5;
    let (hidden, head) = case.tensors(DType::F32);
    case.loss.compute(hidden, head, &case.targets(), 1.0);
}
