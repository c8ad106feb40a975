//! Bugs that were found in other distillation code (their names say which), as tests of ours.

use burn::tensor::{DType, Device, Tensor};
use softshard_losses::{DistillLoss, Divergence, HeadLabels, HeadOptions, Keep, Tail, Targets, label_rows};

use crate::{
    all,
    dense::{Case, DIVERGENCES, largest_difference, softmax, to_f64},
    divergence_only, loss,
};

/// axolotl scales the loss by T² after it is derived: its gradient lacks T², and vanishes as T grows.
#[test]
fn t_squared_after_the_gradient() {
    for divergence in DIVERGENCES.into_iter().filter(|&divergence| divergence != Divergence::Tvd) {
        let gradient = |temperature| {
            let loss = divergence_only(divergence, Tail::Bucket, temperature);
            Case::new(70, [3, 4, 11], &[5; 3], loss).run(DType::F64, 1.0).1
        };
        let (at_50, at_100) = (gradient(50.0), gradient(100.0));
        let size = |gradient: &[f64]| gradient.iter().map(|d| d * d).sum::<f64>().sqrt();
        let ratio = size(&at_100) / size(&at_50);
        assert!((ratio - 1.0).abs() < 0.05, "{divergence:?}: a quarter without T², found {ratio}");
    }
}

/// EasyDistill divides by the number of tokens twice: twice the same tokens have half the loss.
#[test]
fn double_division_by_the_token_count() {
    for (divergence, tail) in all() {
        let once = Case::new(71, [2, 3, 13], &[3, 7], loss(divergence, tail, 2.0));
        let mut twice = once.clone();
        twice.shape[0] = 4;
        twice.hidden.extend(once.hidden.clone());
        twice.gold.extend(once.gold.clone());
        twice.teacher.extend(once.teacher.clone());
        twice.counts.extend(once.counts.clone());
        twice.factors.extend(once.factors.clone());
        let (first, _, d_head) = once.run(DType::F64, 2.0);
        let (second, _, both_heads) = twice.run(DType::F64, 4.0);
        assert!(largest_difference(&to_f64(first.loss), &to_f64(second.loss)) < 1e-12);
        assert!((2.0 * first.loss_sum - second.loss_sum).abs() < 1e-12, "sums are not divided");
        assert!(largest_difference(&d_head, &both_heads) < 1e-12);
    }
}

/// axolotl keeps the wrong end where it cuts labels to a length: the least probable tokens.
#[test]
fn wrong_end_kept() {
    let device = Device::flex();
    let case = Case::new(72, [6, 4, 29], &[5; 6], loss(Divergence::ForwardKl, Tail::Bucket, 1.0));
    let (hidden, head) = case.tensors(DType::F32);
    let keep = Keep::TopKSampled { k: 5, draws: 9 };
    let options = HeadOptions { keep, logit_scale: 1.0, temperatures: &[], rows_per_chunk: 4 };
    let (hidden, head) = (hidden.inner().to_device(&device), head.inner().to_device(&device));
    let labels = label_rows(hidden, head, &case.gold, &[0.3; 6], &options).unwrap();
    // Cut to the exact ones, and to the most probable ones of a smaller vocabulary.
    let targets = Targets::of_exact(case.gold.clone(), &labels);
    let mut folded = targets.clone();
    folded.fold_ids_from(20);
    for row in 0..6 {
        let p = softmax(&case.logits(row), 1.0);
        let mut ids: Vec<usize> = (0..29).collect();
        ids.sort_by(|&a, &b| p[b].total_cmp(&p[a]));
        let found: Vec<usize> =
            targets.token_ids[row * 5..][..5].iter().map(|&id| usize::try_from(id).unwrap()).collect();
        assert_eq!(found, ids[..5], "the most probable ones");
        let tail: f64 = ids[5..].iter().map(|&id| p[id]).sum();
        assert!((f64::from(targets.tail_log_mass[row]).exp() - tail).abs() < 1e-6);
        let cut: f64 = ids[..5].iter().filter(|&&id| id >= 20).map(|&id| p[id]).sum();
        assert!((f64::from(folded.tail_log_mass[row]).exp() - tail - cut).abs() < 1e-6);
    }
}

/// MaxText and others scale the teacher's top k to one, and compare with the student's whole softmax: a student that is its teacher
/// is -log(mass) away, and is pulled to have nothing but the kept tokens.
#[test]
fn renormalised_teacher_against_full_vocabulary_student() {
    for divergence in DIVERGENCES {
        let loss = divergence_only(divergence, Tail::Renormalise, 1.0);
        let case = Case::agreeing(73, [3, 13, 13], &[3, 5, 1], loss);
        let (value, d_hidden, _) = case.run(DType::F64, 1.0);
        assert!(value.divergence_sum.abs() < 1e-6, "{divergence:?}: {}", value.divergence_sum);
        // What the student has beside the kept tokens is not pulled at, agreeing or not.
        let mut case = case;
        case.hidden.iter_mut().step_by(2).for_each(|logit| *logit += 1.0);
        let (_, moved, _) = case.run(DType::F64, 1.0);
        let targets = case.targets();
        for (row, gradient) in [&d_hidden, &moved].into_iter().flat_map(|all| all.chunks(13).enumerate()) {
            let first: usize = case.counts[..row].iter().sum();
            let named = &targets.token_ids[first..first + case.counts[row]];
            for (id, pull) in gradient.iter().enumerate() {
                // The cross-entropy weighs 1e-9.
                let is_named = named.contains(&i32::try_from(id).unwrap());
                assert!(is_named || pull.abs() < 1e-8, "{divergence:?} token {id}: {pull}");
            }
        }
    }
}

/// verl's reverse KL is a sum over the top k: least where the student has p/e at each of them and the rest elsewhere. With a bucket
/// it is least at p, never below zero, and never above the one over the whole vocabulary.
#[test]
fn reverse_kl_without_a_bucket() {
    let descend = |tail| {
        let mut case = Case::new(74, [1, 12, 12], &[4], divergence_only(Divergence::ReverseKl, tail, 1.0));
        case.head = (0..144).map(|at| f64::from(u8::from(at % 13 == 0))).collect();
        for _ in 0..4000 {
            let (_, gradient, _) = case.run(DType::F64, 1.0);
            case.hidden.iter_mut().zip(gradient).for_each(|(logit, d)| *logit -= d);
        }
        let (p, q) = (softmax(&case.teacher, 1.0), softmax(&case.logits(0), 1.0));
        let targets = case.targets();
        let named = targets.token_ids.iter().map(|&id| usize::try_from(id).unwrap());
        named.map(|id| q[id] / p[id]).collect::<Vec<f64>>()
    };
    let ratios = descend(Tail::Bucket);
    assert!(ratios.iter().all(|ratio| (ratio - 1.0).abs() < 1e-3), "{ratios:?}");
    let ratios = descend(Tail::Drop);
    assert!(ratios.iter().all(|ratio| (ratio - (-1.0_f64).exp()).abs() < 1e-2), "{ratios:?}");

    for seed in 0..50 {
        let mut case =
            Case::new(seed, [1, 3, 40], &[4], divergence_only(Divergence::ReverseKl, Tail::Bucket, 1.0));
        // From close to far.
        case.hidden.iter_mut().for_each(|hidden| *hidden *= seed as f64);
        let (value, gradient, _) = case.run(DType::F64, 1.0);
        let dense = case.exact_reference(0);
        assert!(value.divergence_sum > -1e-6 && value.divergence_sum < dense + 1e-6);
        assert!(gradient.iter().all(|d| d.abs() < 100.0), "{gradient:?}");
    }
}

/// Rounding may leave nothing for "everything else" at another temperature: bounded all the same.
#[test]
fn reverse_kl_of_an_empty_tail() {
    let device = Device::flex().autodiff();
    let hidden = Tensor::<2>::from_data([[0.0_f32, 1.0]], &device).require_grad();
    let head = Tensor::<2>::from_data([[1.0, 0.0], [0.0, 0.0], [0.0, 30.0]], &device);
    for tail in [Tail::Bucket, Tail::Uniform] {
        let labels = HeadLabels {
            counts: vec![1],
            token_ids: vec![0],
            log_probs: vec![0.0],
            tail_log_mass: vec![f32::NEG_INFINITY],
            ..HeadLabels::default()
        };
        let loss = DistillLoss { tail, divergence: Divergence::ReverseKl, ..DistillLoss::forward_kl(1.0, 1) };
        let value = loss.compute(hidden.clone(), head.clone(), &Targets::of(vec![0], &labels), 1.0);
        let least = -(1e-10_f64.ln()) + if tail == Tail::Uniform { 2.0_f64.ln() } else { 0.0 };
        assert!((value.divergence_sum - least).abs() < 1e-3, "{}", value.divergence_sum);
        assert!(to_f64(hidden.grad(&value.loss.backward()).unwrap()).iter().all(|d| d.abs() < 100.0));
    }
}
