//! The loss against a dense f64 reference, and its gradient against finite differences.

use burn::tensor::{DType, Device, Tensor, TensorData};
use proptest::prelude::*;
use softshard_losses::{DistillLoss, HeadOptions, Keep, LossValue, Targets, at_temperature, label_rows};

/// Teacher log probabilities are stored as f32.
const LABELS: f64 = 2e-6;
/// Central differences of f64 values of order 1 with a step of 1e-5.
const DIFFERENCES: f64 = 1e-8;
/// One logit of f32, a few operations on.
const F32: f64 = 2e-5;

/// A problem small enough for a dense reference: a student, and a teacher cut to ragged top-k.
#[derive(Debug, Clone)]
struct Case {
    shape: [usize; 3],
    hidden: Vec<f64>,
    head: Vec<f64>,
    gold: Vec<i32>,
    teacher: Vec<f64>,
    counts: Vec<usize>,
    loss: DistillLoss,
}

/// Deterministic numbers in -1..1.
fn numbers(seed: u64, count: usize) -> Vec<f64> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 11) as f64 / (1_u64 << 52) as f64 - 1.0
    };
    (0..count).map(|_| next()).collect()
}

impl Case {
    fn new(seed: u64, [rows, width, vocabulary]: [usize; 3], counts: Vec<usize>, loss: DistillLoss) -> Self {
        let gold = (0..rows).map(|row| i32::try_from(row * 7 % vocabulary).unwrap()).collect();
        Self {
            shape: [rows, width, vocabulary],
            hidden: numbers(seed, rows * width).iter().map(|x| x * 2.0).collect(),
            head: numbers(seed + 1, vocabulary * width).iter().map(|x| x * 2.0).collect(),
            gold,
            teacher: numbers(seed + 2, rows * vocabulary).iter().map(|x| x * 4.0).collect(),
            counts,
            loss,
        }
    }

    /// The teacher at the loss's temperature: its best tokens, and the log of what they leave.
    fn targets(&self) -> Targets {
        let mut targets = Targets { gold: self.gold.clone(), ..Targets::default() };
        for (logits, &count) in self.teacher.chunks(self.shape[2]).zip(&self.counts) {
            let log_probs = log_softmax(logits, self.loss.temperature);
            let mut ids: Vec<usize> = (0..logits.len()).collect();
            ids.sort_by(|&a, &b| log_probs[b].total_cmp(&log_probs[a]));
            let tail: f64 = ids[count..].iter().map(|&id| log_probs[id].exp()).sum();
            targets.counts.push(i32::try_from(count).unwrap());
            targets.token_ids.extend(ids[..count].iter().map(|&id| i32::try_from(id).unwrap()));
            targets.log_probs.extend(ids[..count].iter().map(|&id| log_probs[id] as f32));
            targets.tail_log_mass.push(tail.ln() as f32);
            targets.divergence_offset.push(0.0);
            targets.alpha_factors.push(1.0);
        }
        targets
    }

    /// The definition, row by row in f64: (loss, Σ CE, Σ KL).
    fn reference(&self, divide_by: f64) -> (f64, f64, f64) {
        let [_, width, vocabulary] = self.shape;
        let targets = self.targets();
        let (mut ce, mut kl, mut entry) = (0.0, 0.0, 0);
        for (row, hidden) in self.hidden.chunks(width).enumerate() {
            let dot = |weights: &[f64]| weights.iter().zip(hidden).map(|(a, b)| a * b).sum();
            let logits: Vec<f64> = self.head.chunks(width).map(dot).collect();
            ce -= log_softmax(&logits, 1.0)[usize::try_from(self.gold[row]).unwrap()];
            let student = log_softmax(&logits, self.loss.temperature);
            let mut rest: Vec<usize> = (0..vocabulary).collect();
            for _ in 0..self.counts[row] {
                let (id, p) = (targets.token_ids[entry], f64::from(targets.log_probs[entry]));
                let id = usize::try_from(id).unwrap();
                rest.retain(|&other| other != id);
                kl += p.exp() * (p - student[id]);
                entry += 1;
            }
            if !rest.is_empty() {
                let p = f64::from(targets.tail_log_mass[row]);
                let q: f64 = rest.iter().map(|&id| student[id].exp()).sum();
                kl += p.exp() * (p - q.ln());
            }
        }
        let sum = if self.loss.normalise { 1.0 + self.loss.alpha } else { 1.0 };
        let (ce_weight, kl_weight) = (1.0 / sum, self.loss.alpha / sum);
        let kl = if self.loss.alpha == 0.0 { 0.0 } else { kl };
        let loss = ce_weight * ce + kl_weight * self.loss.temperature.powi(2) * kl;
        (loss / divide_by, ce, kl)
    }

    fn tensors(&self, dtype: DType) -> (Tensor<2>, Tensor<2>) {
        let [rows, width, vocabulary] = self.shape;
        let device = Device::flex().autodiff();
        let hidden = Tensor::from_data(TensorData::new(self.hidden.clone(), [rows, width]), (&device, dtype));
        let head =
            Tensor::from_data(TensorData::new(self.head.clone(), [vocabulary, width]), (&device, dtype));
        (hidden, head)
    }

    /// Value and gradients of hidden and head.
    fn run(&self, dtype: DType, divide_by: f64) -> (LossValue, Vec<f64>, Vec<f64>) {
        let (hidden, head) = self.tensors(dtype);
        let (hidden, head) = (hidden.require_grad(), head.require_grad());
        let value = self.loss.compute(hidden.clone(), head.clone(), &self.targets(), divide_by);
        let gradients = value.loss.backward();
        let (d_hidden, d_head) = (hidden.grad(&gradients).unwrap(), head.grad(&gradients).unwrap());
        (value, to_f64(d_hidden), to_f64(d_head))
    }
}

fn log_softmax(logits: &[f64], temperature: f64) -> Vec<f64> {
    let largest = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let sum: f64 = logits.iter().map(|z| ((z - largest) / temperature).exp()).sum();
    logits.iter().map(|z| (z - largest) / temperature - sum.ln()).collect()
}

fn to_f64<const D: usize>(tensor: Tensor<D>) -> Vec<f64> {
    tensor.into_data().convert::<f64>().try_into_vec().unwrap()
}

fn loss(alpha: f64, temperature: f64, rows_per_chunk: usize) -> DistillLoss {
    DistillLoss { temperature, ..DistillLoss::forward_kl(alpha, rows_per_chunk) }
}

fn largest_difference(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max)
}

/// Value against the definition, gradients against its central differences.
fn assert_case(case: &Case) {
    const STEP: f64 = 1e-5;
    let (value, d_hidden, d_head) = case.run(DType::F64, 3.0);
    let (expected, ce, kl) = case.reference(3.0);
    assert!((to_f64(value.loss)[0] - expected).abs() < 1e-10, "{case:?}");
    assert!((value.cross_entropy_sum - ce).abs() < 1e-10);
    assert!((value.divergence_sum - kl).abs() < 1e-10);
    let difference = |nudge: &dyn Fn(&mut Case, f64)| {
        let (mut above, mut below) = (case.clone(), case.clone());
        nudge(&mut above, STEP);
        nudge(&mut below, -STEP);
        (above.reference(3.0).0 - below.reference(3.0).0) / (2.0 * STEP)
    };
    let hidden: Vec<f64> =
        (0..d_hidden.len()).map(|i| difference(&|case: &mut Case, step| case.hidden[i] += step)).collect();
    let head: Vec<f64> =
        (0..d_head.len()).map(|i| difference(&|case: &mut Case, step| case.head[i] += step)).collect();
    assert!(largest_difference(&d_hidden, &hidden) < DIFFERENCES, "hidden {case:?}");
    assert!(largest_difference(&d_head, &head) < DIFFERENCES, "head {case:?}");
}

#[test]
fn ragged_counts() {
    assert_case(&Case::new(1, [5, 4, 13], vec![3, 0, 13, 1, 7], loss(0.7, 1.0, 2)));
}

#[test]
fn another_temperature() {
    assert_case(&Case::new(2, [4, 3, 11], vec![3, 5, 11, 0], loss(2.0, 2.5, 3)));
    assert_case(&Case::new(3, [4, 3, 11], vec![3, 5, 1, 2], loss(0.3, 0.7, 4)));
}

#[test]
fn normalised_weights() {
    let loss = DistillLoss { normalise: true, ..loss(3.0, 1.0, 8) };
    assert_case(&Case::new(4, [3, 4, 9], vec![2, 4, 9], loss));
}

#[test]
fn alpha_zero_is_the_cross_entropy() {
    let case = Case::new(5, [4, 3, 11], vec![3, 5, 11, 0], loss(0.0, 2.0, 3));
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
    let case = Case::new(6, [3, 4, 9], vec![9; 3], loss(1.0, 1.0, 2));
    assert_case(&case);
    let (hidden, head) = case.tensors(DType::F64);
    let logits = to_f64(hidden.clone().matmul(head.clone().transpose()));
    let dense: f64 = logits
        .chunks(9)
        .zip(case.teacher.chunks(9))
        .map(|(student, teacher)| {
            let (q, p) = (log_softmax(student, 1.0), log_softmax(teacher, 1.0));
            p.iter().zip(q).map(|(p, q)| p.exp() * (p - q)).sum::<f64>()
        })
        .sum();
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
        let counts = fractions.iter().map(|fraction| (fraction * vocabulary as f64) as usize).collect();
        assert_case(&Case::new(seed, [fractions.len(), 3, vocabulary], counts, loss(alpha, temperature, rows_per_chunk)));
    }
}

#[test]
fn chunks_do_not_matter() {
    for temperature in [1.0, 2.0] {
        let case =
            |rows| Case::new(7, [9, 4, 23], vec![3, 0, 23, 1, 7, 5, 5, 2, 20], loss(1.5, temperature, rows));
        let (value, d_hidden, d_head) = case(9).run(DType::F32, 9.0);
        for rows in [1, 2, 4, 100] {
            let (other, other_hidden, other_head) = case(rows).run(DType::F32, 9.0);
            assert!((value.divergence_sum - other.divergence_sum).abs() < F32);
            assert!(largest_difference(&to_f64(value.loss.clone()), &to_f64(other.loss)) < F32);
            assert!(largest_difference(&d_hidden, &other_hidden) < F32);
            assert!(largest_difference(&d_head, &other_head) < F32);
        }
    }
}

#[test]
fn f32_follows_f64() {
    let case = Case::new(8, [9, 16, 301], vec![64; 9], loss(1.0, 1.0, 4));
    let (value, d_hidden, d_head) = case.run(DType::F64, 9.0);
    let (single, single_hidden, single_head) = case.run(DType::F32, 9.0);
    assert!((value.cross_entropy_sum - single.cross_entropy_sum).abs() < 9.0 * F32);
    assert!((value.divergence_sum - single.divergence_sum).abs() < 9.0 * F32);
    assert!(largest_difference(&d_hidden, &single_hidden) < F32);
    assert!(largest_difference(&d_head, &single_head) < F32);
}

#[test]
fn a_frozen_head_gets_no_gradient() {
    let case = Case::new(9, [4, 3, 11], vec![3, 5, 11, 0], loss(1.0, 1.0, 3));
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
    let case = Case::new(10, [4, 3, 11], vec![3, 5, 11, 0], loss(1.0, 1.0, 3));
    let (_, d_hidden, _) = case.run(DType::F64, 1.0);
    let (hidden, head) = case.tensors(DType::F64);
    let before = hidden.require_grad();
    let value = case.loss.compute(before.clone() * 1.0, head, &case.targets(), 1.0);
    let gradient = to_f64(before.grad(&(value.loss * 4.0).backward()).unwrap());
    let expected: Vec<f64> = d_hidden.iter().map(|d| d * 4.0).collect();
    assert!(largest_difference(&gradient, &expected) < 1e-12);
}

#[test]
fn halves_add_up() {
    let whole = Case::new(11, [6, 4, 13], vec![3, 0, 13, 1, 7, 2], loss(0.7, 2.0, 4));
    let half = |rows: std::ops::Range<usize>| Case {
        shape: [3, 4, 13],
        hidden: whole.hidden[rows.start * 4..rows.end * 4].to_vec(),
        gold: whole.gold[rows.clone()].to_vec(),
        teacher: whole.teacher[rows.start * 13..rows.end * 13].to_vec(),
        counts: whole.counts[rows].to_vec(),
        ..whole.clone()
    };
    let (value, d_hidden, d_head) = whole.run(DType::F64, 6.0);
    let (first, first_hidden, first_head) = half(0..3).run(DType::F64, 6.0);
    let (second, second_hidden, second_head) = half(3..6).run(DType::F64, 6.0);
    assert!((to_f64(value.loss)[0] - to_f64(first.loss)[0] - to_f64(second.loss)[0]).abs() < 1e-12);
    assert!(largest_difference(&d_hidden, &[first_hidden, second_hidden].concat()) < 1e-12);
    let sum: Vec<f64> = first_head.iter().zip(second_head).map(|(a, b)| a + b).collect();
    assert!(largest_difference(&d_head, &sum) < 1e-12);
}

/// Labels of a model, then the same model as the student.
fn same_model(temperature: f64, k: usize) -> (f64, f64) {
    let case = Case::new(12, [8, 6, 41], vec![], loss(1.0, temperature, 3));
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
        let partition = &labels.log_partitions[0];
        at_temperature(&labels.counts, &labels.log_probs, &labels.log_sum_exp, partition, temperature)
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
    let (kept, tail) = at_temperature(&[2], &log_probs, &lse, &[partition(3.0) as f32], 3.0);
    let expected = log_softmax(&logits, 3.0);
    assert!((f64::from(kept[0]) - expected[0]).abs() < LABELS);
    assert!((f64::from(kept[1]) - expected[1]).abs() < LABELS);
    assert!((f64::from(tail[0]) - expected[2]).abs() < LABELS);
    // Nothing left, whatever the rounding says.
    let (_, tail) = at_temperature(&[1], &[0.0], &[2.0], &[1.0], 2.0);
    assert_eq!(tail, [f32::NEG_INFINITY]);
}

#[test]
fn evaluation_is_the_loss_and_more() {
    for temperature in [1.0, 2.0] {
        let case = Case::new(13, [5, 4, 13], vec![3, 0, 13, 1, 7], loss(0.7, temperature, 2));
        let (value, _, _) = case.run(DType::F64, 1.0);
        let (hidden, head) = case.tensors(DType::F64);
        let logits = to_f64(hidden.clone().matmul(head.clone().transpose()));
        let found = DistillLoss { alpha: 0.0, ..case.loss }.evaluate(hidden, head, &case.targets());
        assert!((found.cross_entropy_sum - value.cross_entropy_sum).abs() < 1e-12);
        assert!((found.kl_sum - value.divergence_sum).abs() < 1e-12);
        assert!((found.kls.iter().sum::<f64>() - value.divergence_sum).abs() < 1e-12);
        for (row, logits) in logits.chunks(13).enumerate() {
            let log_probs = log_softmax(logits, 1.0);
            let gold = log_probs[usize::try_from(case.gold[row]).unwrap()];
            let best = log_probs.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            assert!((found.cross_entropies[row] + gold).abs() < 1e-12);
            assert!((found.confidences[row] - best.exp()).abs() < 1e-12);
            assert_eq!(found.correct[row], gold == best);
        }
    }
    let case = Case::new(14, [1, 4, 13], vec![0], loss(1.0, 1.0, 2));
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
    let case = Case::new(15, [3, 2, 5], vec![2, 2, 2], loss(1.0, 1.0, 2));
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
    let mut case = Case::new(16, [3, 2, 5], vec![2, 2, 2], loss(1.0, 1.0, 2));
    case.gold[1] = 5;
    let (hidden, head) = case.tensors(DType::F32);
    case.loss.compute(hidden, head, &case.targets(), 1.0);
}
