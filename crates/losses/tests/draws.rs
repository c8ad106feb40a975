//! Draws against the distribution that they are drawn from: no bias, and less variance than independent draws.

use burn::tensor::{DType, Device, Tensor, TensorData};
use softshard_losses::{DistillLoss, Divergence, HeadLabels, Keep, RowLabels, Targets, select};

/// Standard errors; one estimate in 16,000 lies further off, and all seeds are fixed.
const CONFIDENCE: f64 = 4.0;
const SEEDS: usize = 4000;
const VOCABULARY: usize = 61;

/// The golden ratio's multiples, modulo 1: spread evenly, in no step with any count of draws.
fn uniforms() -> impl Iterator<Item = f64> {
    (0..SEEDS).map(|seed| (0.618_033_988_749_895 * seed as f64 + 0.37).fract())
}

/// A distribution with a head and a long tail, its tokens in no order.
fn logits() -> Vec<f32> {
    (0..VOCABULARY).map(|id| -1.3 * ((id * 23 % VOCABULARY + 1) as f32).ln()).collect()
}

fn probabilities(logits: &[f32]) -> Vec<f64> {
    let exponentials: Vec<f64> = logits.iter().map(|z| f64::from(*z).exp()).collect();
    let sum: f64 = exponentials.iter().sum();
    exponentials.iter().map(|e| e / sum).collect()
}

/// The row, so many times.
fn rows(row: &RowLabels, count: usize) -> HeadLabels {
    HeadLabels {
        counts: vec![i32::try_from(row.token_ids.len()).unwrap(); count],
        token_ids: row.token_ids.repeat(count),
        log_probs: row.log_probs.repeat(count),
        sample_counts: row.sample_counts.repeat(count),
        tail_log_mass: vec![row.tail_log_mass; count],
        entropy: vec![row.entropy; count],
        ..HeadLabels::default()
    }
}

fn targets(row: &RowLabels) -> Targets {
    Targets::of(vec![3], &rows(row, 1))
}

/// The estimate of the whole distribution.
fn estimate(row: &RowLabels) -> Vec<f64> {
    let targets = targets(row);
    let mut dense = vec![0.0; VOCABULARY];
    for (&id, &log_prob) in targets.token_ids.iter().zip(&targets.log_probs) {
        dense[usize::try_from(id).unwrap()] = f64::from(log_prob).exp();
    }
    dense
}

/// Mean and variance of each probability's estimate over the seeds, and the mean number of entries.
fn spread(keep: Keep) -> (Vec<f64>, Vec<f64>, f64) {
    let (logits, seeds) = (logits(), SEEDS as f64);
    let (mut sum, mut squares, mut entries) = (vec![0.0; VOCABULARY], vec![0.0; VOCABULARY], 0.0);
    for uniform in uniforms() {
        let row = select(&logits, 0, keep, uniform, &[]).unwrap();
        entries += row.token_ids.len() as f64 / seeds;
        for (id, p) in estimate(&row).into_iter().enumerate() {
            sum[id] += p / seeds;
            squares[id] += p * p / seeds;
        }
    }
    let variance = squares.iter().zip(&sum).map(|(square, mean)| (square - mean * mean).max(0.0)).collect();
    (sum, variance, entries)
}

#[test]
fn estimates_have_no_bias() {
    let expected = probabilities(&logits());
    for keep in [
        Keep::Sampled { draws: 1 },
        Keep::Sampled { draws: 20 },
        Keep::TopKSampled { k: 1, draws: 1 },
        Keep::TopKSampled { k: 5, draws: 7 },
        Keep::TopKSampled { k: VOCABULARY - 1, draws: 3 },
    ] {
        let (mean, variance, _) = spread(keep);
        for ((mean, variance), p) in mean.iter().zip(&variance).zip(&expected) {
            // Labels are f32.
            let bound = CONFIDENCE * (variance / SEEDS as f64).sqrt() + 1e-6;
            assert!((mean - p).abs() < bound, "{keep:?}: expected {p}, found {mean} within {bound}");
        }
    }
}

#[test]
fn variance_is_below_that_of_independent_draws() {
    let expected = probabilities(&logits());
    for draws in [10, 50, 200] {
        let (_, variance, _) = spread(Keep::Sampled { draws });
        let independent: f64 = expected.iter().map(|p| p * (1.0 - p) / f64::from(draws)).sum();
        let found: f64 = variance.iter().sum();
        assert!(found < 0.5 * independent, "{draws} draws: {found} against {independent}");
    }
}

/// Four bytes for each id, log-probability and count, before any compression: the same for both.
#[test]
fn the_hybrid_has_less_variance_than_draws_alone_at_the_same_size() {
    for (k, draws) in [(4, 6), (8, 8), (16, 8)] {
        let (_, hybrid, hybrid_entries) = spread(Keep::TopKSampled { k, draws });
        let mut sampled = (1..200).map(|draws| spread(Keep::Sampled { draws }));
        let (_, sampled, _) = sampled.find(|(.., entries)| *entries >= hybrid_entries).unwrap();
        let (hybrid, sampled): (f64, f64) = (hybrid.iter().sum(), sampled.iter().sum());
        assert!(hybrid < sampled, "k {k}: {hybrid} against {sampled}");
    }
}

#[test]
fn counts_are_within_one_of_their_share() {
    let (logits, draws) = (logits(), 30);
    let expected = probabilities(&logits);
    for uniform in uniforms().take(200) {
        let row = select(&logits, 0, Keep::Sampled { draws }, uniform, &[]).unwrap();
        assert_eq!(row.sample_counts.iter().sum::<i32>(), 30);
        assert!(row.log_probs.is_empty());
        let mut counts = vec![0; VOCABULARY];
        for (&id, &count) in row.token_ids.iter().zip(&row.sample_counts) {
            counts[usize::try_from(id).unwrap()] = count;
        }
        for (count, p) in counts.iter().zip(&expected) {
            let share = f64::from(draws) * p;
            assert!((f64::from(*count) - share).abs() < 1.0 + 1e-6, "{count} for a share of {share}");
        }
        let undrawn: f64 = counts.iter().zip(&expected).filter(|(c, _)| **c == 0).map(|(_, p)| p).sum();
        assert!((f64::from(row.tail_log_mass).exp() - undrawn).abs() < 1e-6);
        for pair in row.sample_counts.iter().zip(&row.token_ids).collect::<Vec<_>>().windows(2) {
            assert!(pair[0].0 > pair[1].0 || (pair[0].0 == pair[1].0 && pair[0].1 < pair[1].1));
        }
    }
}

#[test]
fn faint_and_empty_tails() {
    let mut logits = vec![-200.0_f32; 700];
    (logits[3], logits[650]) = (50.0, -199.0);
    let keep = Keep::TopKSampled { k: 1, draws: 1000 };
    let row = select(&logits, 3, keep, 0.5, &[]).unwrap();
    assert_eq!((row.token_ids[0], row.token_ids[1]), (3, 650));
    assert_eq!(row.sample_counts.iter().sum::<i32>(), 1000);
    assert!(row.tail_log_mass.is_finite());

    let mut logits = vec![f32::NEG_INFINITY; 300];
    logits[7] = 1.0;
    let row = select(&logits, 7, keep, 0.5, &[]).unwrap();
    assert_eq!((row.token_ids, row.tail_log_mass), (vec![7], f32::NEG_INFINITY));
    assert!(row.sample_counts.is_empty());
    let row = select(&logits, 7, Keep::Sampled { draws: 9 }, 0.99, &[]).unwrap();
    assert_eq!((row.token_ids, row.sample_counts), (vec![7], vec![9]));
}

/// The loss from draws, over many of them, is the dense one: its gradient by definition, its value by the offset.
#[test]
fn the_mean_loss_is_that_of_the_full_distribution() {
    let device = Device::flex().autodiff();
    let teacher = logits();
    let student: Vec<f64> = (0..VOCABULARY).map(|id| ((id * 7 % 13) as f64 - 6.0) * 0.3).collect();
    let loss = DistillLoss::forward_kl(1.0, 1);
    // A head of ones: the gradient by the hidden state is the one by the logits.
    let eye =
        (0..VOCABULARY * VOCABULARY).map(|at| f64::from(u8::from(at % (VOCABULARY + 1) == 0))).collect();
    let eye = TensorData::new::<f64, _>(eye, [VOCABULARY, VOCABULARY]);
    let run = |keep, uniform| {
        let row = select(&teacher, 3, keep, uniform, &[]).unwrap();
        let data = TensorData::new(student.clone(), [1, VOCABULARY]);
        let hidden = Tensor::<2>::from_data(data, (&device, DType::F64)).require_grad();
        let head = Tensor::<2>::from_data(eye.clone(), (&device, DType::F64));
        let value = loss.compute(hidden.clone(), head, &targets(&row), 1.0);
        let gradient = hidden.grad(&value.loss.backward()).unwrap();
        (value.divergence_sum, gradient.into_data().convert::<f64>().try_into_vec::<f64>().unwrap())
    };
    let (kl, gradient) = run(Keep::TopK { k: VOCABULARY }, 0.0);
    for keep in [Keep::Sampled { draws: 12 }, Keep::TopKSampled { k: 4, draws: 5 }] {
        const RUNS: usize = 600;
        let (mut kls, mut gradients) = (Vec::new(), vec![0.0; VOCABULARY]);
        for uniform in uniforms().take(RUNS) {
            let (kl, gradient) = run(keep, uniform);
            kls.push(kl);
            gradients.iter_mut().zip(gradient).for_each(|(sum, d)| *sum += d / RUNS as f64);
        }
        let mean = kls.iter().sum::<f64>() / RUNS as f64;
        let variance = kls.iter().map(|one| (one - mean).powi(2)).sum::<f64>() / RUNS as f64;
        let bound = CONFIDENCE * (variance / RUNS as f64).sqrt() + 1e-5;
        assert!((mean - kl).abs() < bound, "{keep:?}: expected {kl}, found {mean} within {bound}");
        for (found, expected) in gradients.iter().zip(&gradient) {
            assert!((found - expected).abs() < 2e-3, "{keep:?}: expected {expected}, found {found}");
        }
    }
}

/// The exact entries of a hybrid are a top k: the draws are part of what is beyond them.
#[test]
fn without_its_draws_a_hybrid_is_a_top_k() {
    let exact = |keep| {
        let row = select(&logits(), 3, keep, 0.4, &[]).unwrap();
        Targets::of_exact(vec![3, 3], &rows(&row, 2))
    };
    assert_eq!(exact(Keep::TopKSampled { k: 4, draws: 9 }), exact(Keep::TopK { k: 4 }));
}

#[test]
#[should_panic(expected = "only the forward KL with a bucket can be estimated from draws")]
fn draws_are_for_the_forward_kl() {
    let row = select(&logits(), 3, Keep::Sampled { draws: 9 }, 0.4, &[]).unwrap();
    let device = Device::flex().autodiff();
    let hidden = Tensor::<2>::ones([1, 2], &device).require_grad();
    let head = Tensor::<2>::ones([VOCABULARY, 2], &device);
    let loss = DistillLoss { divergence: Divergence::Tvd, ..DistillLoss::forward_kl(1.0, 1) };
    loss.compute(hidden, head, &targets(&row), 1.0);
}
