//! Every divergence with every tail, against its definition in f64 over all events, and finite differences of that.

mod dense;
mod distill;
mod peers_bugs;

use burn::tensor::DType;
use dense::{Case, DIVERGENCES, TAILS, largest_difference, to_f64};
use softshard_losses::{DistillLoss, Divergence, Tail, Targets};

/// Values of f64 with labels of f32 on both sides of the comparison.
const VALUES: f64 = 1e-10;
/// Five-point differences of values of order 10 with a step of 1e-4.
const DIFFERENCES: f64 = 1e-8;
/// One logit of f32, a few operations on, in losses of some nats.
const F32: f64 = 3e-5;
/// Teacher log probabilities are stored as f32.
const LABELS: f64 = 2e-6;

const COUNTS: [usize; 5] = [3, 0, 13, 1, 7];

fn all() -> impl Iterator<Item = (Divergence, Tail)> {
    DIVERGENCES.into_iter().flat_map(|divergence| TAILS.map(|tail| (divergence, tail)))
}

fn loss(divergence: Divergence, tail: Tail, temperature: f64) -> DistillLoss {
    DistillLoss { divergence, tail, temperature, ..DistillLoss::forward_kl(0.7, 2) }
}

/// The loss without its cross-entropy, up to 1e-9 of it.
fn divergence_only(divergence: Divergence, tail: Tail, temperature: f64) -> DistillLoss {
    DistillLoss { alpha: 1e9, normalise: true, ..loss(divergence, tail, temperature) }
}

#[track_caller]
fn assert_case(case: &Case) {
    let (value, d_hidden, d_head) = case.run(DType::F64, 3.0);
    let expected = case.reference();
    let name = format!("{:?} {:?} T {}", case.loss.divergence, case.loss.tail, case.loss.temperature);
    let sums = [value.loss_sum, value.cross_entropy_sum, value.divergence_sum];
    assert!(largest_difference(&sums, &expected) < VALUES, "{name}: {sums:?} {expected:?}");
    assert!((to_f64(value.loss)[0] - expected[0] / 3.0).abs() < VALUES, "{name}");
    let difference = |nudge: &dyn Fn(&mut Case, f64)| {
        const STEP: f64 = 1e-4;
        let at = |steps: f64| {
            let mut case = case.clone();
            nudge(&mut case, steps * STEP);
            case.reference()[0] / 3.0
        };
        (8.0 * (at(1.0) - at(-1.0)) - (at(2.0) - at(-2.0))) / (12.0 * STEP)
    };
    let hidden: Vec<f64> =
        (0..d_hidden.len()).map(|i| difference(&|case: &mut Case, step| case.hidden[i] += step)).collect();
    let head: Vec<f64> =
        (0..d_head.len()).map(|i| difference(&|case: &mut Case, step| case.head[i] += step)).collect();
    assert!(largest_difference(&d_hidden, &hidden) < DIFFERENCES, "{name}: {d_hidden:?} {hidden:?}");
    assert!(largest_difference(&d_head, &head) < DIFFERENCES, "{name}: {d_head:?} {head:?}");
}

#[test]
fn values_and_gradients_are_those_of_the_definition() {
    for (seed, (divergence, tail)) in (20..).zip(all()) {
        for temperature in [0.5, 1.0, 2.0] {
            assert_case(&Case::new(seed, [5, 3, 13], &COUNTS, loss(divergence, tail, temperature)));
        }
    }
}

#[test]
fn factors_and_normalised_weights_go_row_by_row() {
    for (divergence, tail) in all() {
        let mut case = Case::new(50, [5, 3, 13], &COUNTS, loss(divergence, tail, 2.0));
        case.factors = vec![0.5, 2.0, 0.0, 0.0, 1.0];
        assert_case(&case);
        case.loss.normalise = true;
        assert_case(&case);
    }
}

#[test]
fn chunks_do_not_matter() {
    for (divergence, tail) in all() {
        for temperature in [1.0, 2.0] {
            let case = |rows| {
                let mut loss = loss(divergence, tail, temperature);
                loss.rows_per_chunk = rows;
                Case::new(51, [9, 4, 23], &[3, 0, 23, 1, 7, 5, 5, 2, 20], loss)
            };
            let (value, d_hidden, d_head) = case(9).run(DType::F32, 9.0);
            for rows in [1, 2, 4, 100] {
                let (other, other_hidden, other_head) = case(rows).run(DType::F32, 9.0);
                assert!((value.loss_sum - other.loss_sum).abs() < 9.0 * F32);
                assert!((value.divergence_sum - other.divergence_sum).abs() < 9.0 * F32);
                assert!(largest_difference(&d_hidden, &other_hidden) < F32);
                assert!(largest_difference(&d_head, &other_head) < F32);
            }
        }
    }
}

#[test]
fn f32_follows_f64() {
    for (divergence, tail) in all() {
        let case = Case::new(52, [9, 16, 301], &[64; 9], loss(divergence, tail, 1.0));
        let (value, d_hidden, d_head) = case.run(DType::F64, 9.0);
        let (single, single_hidden, single_head) = case.run(DType::F32, 9.0);
        assert!((value.loss_sum - single.loss_sum).abs() < 9.0 * F32, "{divergence:?} {tail:?}");
        assert!((value.divergence_sum - single.divergence_sum).abs() < 9.0 * F32, "{divergence:?} {tail:?}");
        assert!(largest_difference(&d_hidden, &single_hidden) < F32, "{divergence:?} {tail:?}");
        assert!(largest_difference(&d_head, &single_head) < F32, "{divergence:?} {tail:?}");
    }
}

/// A tail that is uniform is what `Uniform` takes it for; all other tails do not look.
#[test]
fn a_student_that_is_its_teacher_is_no_distance_away() {
    for (divergence, tail) in all() {
        for temperature in [0.5, 1.0, 2.0] {
            let loss = divergence_only(divergence, tail, temperature);
            let case = Case::agreeing(53, [4, 13, 13], &[3, 5, 13, 1], loss);
            let (value, d_hidden, _) = case.run(DType::F64, 1.0);
            let name = format!("{divergence:?} {tail:?} T {temperature}");
            assert!(value.divergence_sum.abs() < LABELS, "{name}: {}", value.divergence_sum);
            let pull = d_hidden.iter().fold(0.0, |largest: f64, d| largest.max(d.abs()));
            match divergence {
                // Its gradient jumps there.
                Divergence::Tvd => {}
                // Agreement is not where these are least: more mass on the named tokens is.
                Divergence::ForwardKl | Divergence::SkewKl { .. } | Divergence::ReverseKl
                    if tail == Tail::Drop =>
                {
                    // Less at a low temperature, as there is less in the tail.
                    assert!(pull > 1e-3 || temperature < 1.0, "{name}: {pull}");
                }
                _ => assert!(pull < 10.0 * LABELS, "{name}: {pull}"),
            }
        }
    }
}

#[test]
fn with_the_whole_vocabulary_every_tail_is_the_dense_divergence() {
    for divergence in DIVERGENCES {
        for temperature in [1.0, 2.0] {
            let run = |tail| {
                let case = Case::new(54, [4, 3, 11], &[11; 4], loss(divergence, tail, temperature));
                case.run(DType::F64, 1.0)
            };
            let (bucket, d_hidden, d_head) = run(Tail::Bucket);
            for tail in [Tail::Renormalise, Tail::Drop, Tail::Uniform] {
                let (value, other_hidden, other_head) = run(tail);
                // The labels' rounding is scaled away by one of them.
                assert!((bucket.divergence_sum - value.divergence_sum).abs() < LABELS);
                assert!(largest_difference(&d_hidden, &other_hidden) < 10.0 * LABELS);
                assert!(largest_difference(&d_head, &other_head) < 10.0 * LABELS);
            }
        }
    }
}

/// T² KL(p_T, q_T) → ½ Var(z_p - z_q) over the vocabulary, for either order; JSD and skew KL are β(1 - β) and (1 - λ)² times that. TVD
/// is of first order: T · TVD → ½ mean |Δ - mean Δ|, and its T² grows with T.
#[test]
fn the_limit_of_high_temperature() {
    const T: f64 = 1e4;
    for divergence in DIVERGENCES {
        let case = Case::new(55, [1, 3, 11], &[11], divergence_only(divergence, Tail::Bucket, T));
        let gaps: Vec<f64> = case.teacher.iter().zip(case.logits(0)).map(|(p, q)| p - q).collect();
        let mean = gaps.iter().sum::<f64>() / 11.0;
        let half_variance = gaps.iter().map(|gap| (gap - mean).powi(2)).sum::<f64>() / 22.0;
        let expected = match divergence {
            Divergence::ForwardKl | Divergence::ReverseKl => half_variance,
            Divergence::Jsd { beta } => half_variance * beta * (1.0 - beta),
            Divergence::SkewKl { lambda } => half_variance * (1.0 - lambda).powi(2),
            Divergence::Tvd => T * gaps.iter().map(|gap| (gap - mean).abs()).sum::<f64>() / 22.0,
        };
        // Exact teacher: labels of f32 would be all rounding here.
        let found = T * T * case.exact_reference(0);
        assert!((found / expected - 1.0).abs() < 1e-2, "{divergence:?}: {found} {expected}");
        // Ours is the reference at every temperature; here what f32 labels leave of it.
        let value = case.run(DType::F64, 1.0).0.divergence_sum;
        assert!((value - case.reference()[2]).abs() < VALUES, "{divergence:?}");
    }
}

/// As T → 0 both sides are one token. Where these differ, KL is without bound: T · KL(p_T ‖ q_T) → max z_q - z_q at the teacher's best,
/// and the other way round; the others go to their largest value, 1 for TVD. Where they agree, all go to 0.
#[test]
fn the_limit_of_low_temperature() {
    const T: f64 = 0.02;
    for divergence in DIVERGENCES {
        let mut case = Case::new(56, [1, 2, 3], &[3], divergence_only(divergence, Tail::Bucket, T));
        (case.hidden, case.head) = (vec![1.0, 0.0], vec![1.0, 0.0, 3.0, 0.0, 0.0, 0.0]);
        case.teacher = vec![0.0, 2.5, 1.0];
        let found = case.run(DType::F64, 1.0).0.divergence_sum;
        assert!(found.abs() < 1e-6, "{divergence:?}: {found}");
        case.teacher = vec![2.5, 0.0, 1.0];
        let found = case.run(DType::F64, 1.0).0.divergence_sum;
        let expected = match divergence {
            Divergence::ForwardKl => 2.0 / T,
            // 2.5/T, but no teacher's probability is taken to be below 1e-10.
            Divergence::ReverseKl => -(1e-10_f64.ln()),
            Divergence::Jsd { beta } => -beta * beta.ln() - (1.0 - beta) * (1.0 - beta).ln(),
            Divergence::SkewKl { lambda } => -lambda.ln(),
            Divergence::Tvd => 1.0,
        };
        assert!((found / expected - 1.0).abs() < 1e-6, "{divergence:?}: {found} {expected}");
    }
}

#[test]
fn ranks_add_up_to_a_single_run() {
    for (divergence, tail) in all() {
        let whole = Case::new(57, [6, 4, 13], &[3, 0, 13, 1, 7, 2], loss(divergence, tail, 2.0));
        let (value, d_hidden, d_head) = whole.run(DType::F64, 6.0);
        let (first, first_hidden, first_head) = whole.rows(0..2).run(DType::F64, 6.0);
        let (second, second_hidden, second_head) = whole.rows(2..6).run(DType::F64, 6.0);
        assert!((value.loss_sum - first.loss_sum - second.loss_sum).abs() < 1e-12);
        assert!((value.divergence_sum - first.divergence_sum - second.divergence_sum).abs() < 1e-12);
        assert!(largest_difference(&d_hidden, &[first_hidden, second_hidden].concat()) < 1e-12);
        let sum: Vec<f64> = first_head.iter().zip(second_head).map(|(a, b)| a + b).collect();
        assert!(largest_difference(&d_head, &sum) < 1e-12);
    }
}

#[test]
fn rows_with_a_factor_of_zero_have_no_divergence() {
    for (divergence, tail) in all() {
        // Rows without a teacher between others, in chunks of both kinds.
        let mut case = Case::new(58, [5, 3, 13], &[3, 0, 0, 0, 4], loss(divergence, tail, 1.0));
        case.factors = vec![1.0, 0.0, 0.0, 0.0, 1.0];
        let supervised = Case { loss: DistillLoss { alpha: 0.0, ..case.loss }, ..case.clone() };
        let (value, d_hidden, _) = case.run(DType::F64, 1.0);
        let (_, expected, _) = supervised.run(DType::F64, 1.0);
        assert!(largest_difference(&d_hidden[3..12], &expected[3..12]) < 1e-14, "{divergence:?} {tail:?}");
        let others = case.rows(0..1).reference()[2] + case.rows(4..5).reference()[2];
        assert!((value.divergence_sum - others).abs() < VALUES, "{divergence:?} {tail:?}");

        let (hidden, head) = case.tensors(DType::F32);
        let run = |loss: DistillLoss| {
            let hidden = hidden.clone().require_grad();
            let targets = Targets::without_teacher(case.gold.clone());
            let value = loss.compute(hidden.clone(), head.clone(), &targets, 1.0);
            (value.loss_sum, value.divergence_sum, to_f64(hidden.grad(&value.loss.backward()).unwrap()))
        };
        assert_eq!(run(case.loss), run(supervised.loss), "every bit is the same");
    }
}
