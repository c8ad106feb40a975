//! The selection against a sort, and its numbers against f64.

use burn::tensor::{Device, Distribution, Tensor, TensorData};
use proptest::prelude::*;
use softshard_losses::{HeadError, HeadLabels, HeadOptions, Keep, RowLabels, label_rows, select};

/// Logarithms are stored as f32; those of small masses also carry the rounding of their f32 exponents.
const LOG: f64 = 2e-6;

/// Log probabilities of a row in f64, with the library's exp, relative to the largest logit.
fn log_softmax(logits: &[f32]) -> (Vec<f64>, f64) {
    let largest = logits.iter().copied().map(f64::from).fold(f64::NEG_INFINITY, f64::max);
    let sum: f64 = logits.iter().map(|&z| (f64::from(z) - largest).exp()).sum();
    let log_sum_exp = largest + sum.ln();
    (logits.iter().map(|&z| f64::from(z) - largest - sum.ln()).collect(), log_sum_exp)
}

fn log_sum_exp(values: impl Iterator<Item = f64> + Clone) -> f64 {
    let largest = values.clone().fold(f64::NEG_INFINITY, f64::max);
    if largest == f64::NEG_INFINITY {
        largest
    } else {
        largest + values.map(|v| (v - largest).exp()).sum::<f64>().ln()
    }
}

fn assert_close(actual: f32, expected: f64, what: &str) {
    let actual = f64::from(actual);
    let close = actual == expected || (actual - expected).abs() <= LOG * expected.abs().max(1.0);
    assert!(close, "{what}: expected {expected}, found {actual}");
}

/// Everything about a row, the slow way.
fn assert_row(logits: &[f32], gold: usize, keep: Keep, temperatures: &[f32]) -> RowLabels {
    let row = select(logits, i32::try_from(gold).unwrap(), keep, 0.0, temperatures).unwrap();
    let (log_probs, lse) = log_softmax(logits);

    let mut order: Vec<usize> = (0..logits.len()).filter(|&id| logits[id] > f32::NEG_INFINITY).collect();
    order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]).then(a.cmp(&b)));
    order.truncate(keep.exact());
    if let Keep::TopP { p, .. } = keep {
        let masses =
            order.iter().scan(0.0, |mass, &id| Some(std::mem::replace(mass, *mass + log_probs[id].exp())));
        let enough = masses.take_while(|&before| before < p).count().max(1);
        // One token more or less where the mass is at p but for rounding.
        let mass = |n: usize| order[..n].iter().map(|&id| log_probs[id].exp()).sum::<f64>();
        let found = row.token_ids.len();
        let same = found == enough || (mass(found.min(enough)) - p).abs() < 1e-6;
        assert!(same, "top-p keeps {found}, expected {enough}");
        order.truncate(found);
    }
    let mut kept: Vec<usize> = row.token_ids.iter().map(|&id| usize::try_from(id).unwrap()).collect();
    for (&id, &log_prob) in kept.iter().zip(&row.log_probs) {
        assert_close(log_prob, log_probs[id], "log_prob");
        assert!(log_prob <= 0.0 && log_prob.is_finite());
    }
    for pair in row.log_probs.iter().zip(&row.token_ids).collect::<Vec<_>>().windows(2) {
        let falling = pair[0].0 > pair[1].0 || (pair[0].0 == pair[1].0 && pair[0].1 < pair[1].1);
        assert!(falling, "falling log_prob, ties by id: {pair:?}");
    }
    kept.sort_unstable();
    order.sort_unstable();
    assert_eq!(kept, order, "kept tokens");

    let cut = |id: &usize| kept.binary_search(id).is_err();
    let tail = log_sum_exp((0..logits.len()).filter(cut).map(|id| log_probs[id]));
    assert_close(row.tail_log_mass, tail, "tail_log_mass");
    assert_close(row.log_sum_exp, lse, "log_sum_exp");
    let entropy: f64 = log_probs.iter().filter(|l| l.is_finite()).map(|l| -l * l.exp()).sum();
    assert_close(row.entropy, entropy, "entropy");
    assert_close(row.gold_log_prob, log_probs[gold], "gold_log_prob");
    for (&partition, &temperature) in row.log_partitions.iter().zip(temperatures) {
        let expected = log_sum_exp(logits.iter().map(|&z| f64::from(z) / f64::from(temperature)));
        assert_close(partition, expected, "log_partition");
    }
    assert_eq!(row.tail_log_masses.len(), temperatures.len());
    for (&tail, &temperature) in row.tail_log_masses.iter().zip(temperatures) {
        let soft = |id: usize| f64::from(logits[id]) / f64::from(temperature);
        let rest = log_sum_exp((0..logits.len()).filter(cut).map(soft));
        let kept = log_sum_exp(kept.iter().map(|&id| soft(id)));
        let expected = if rest > kept {
            -(kept - rest).exp().ln_1p()
        } else {
            rest - kept - (rest - kept).exp().ln_1p()
        };
        assert_close(tail, expected, "tail_log_mass at a temperature");
    }
    row
}

fn keep() -> impl Strategy<Value = Keep> {
    prop_oneof![
        (1_usize..80).prop_map(|k| Keep::TopK { k }),
        (0.0..=1.0_f64, 1_usize..80).prop_map(|(p, k)| Keep::TopP { p, k }),
    ]
}

fn logit() -> impl Strategy<Value = f32> {
    prop_oneof![
        8 => -30.0_f32..30.0,
        4 => (-3_i16..3).prop_map(f32::from), // ties
        1 => Just(f32::NEG_INFINITY),
        1 => prop_oneof![Just(0.0_f32), Just(-0.0_f32), Just(-400.0_f32)],
    ]
}

proptest! {
    #[test]
    fn agrees_with_a_sort(mut logits in prop::collection::vec(logit(), 1..400), keep in keep(), gold in 0_usize..400) {
        let gold = gold % logits.len();
        logits[gold / 2] = 1.5; // at least one finite
        // A sort by total_cmp tells the zeros apart, a comparison does not.
        logits.iter_mut().for_each(|z| *z += 0.0);
        assert_row(&logits, gold, keep, &[2.0, 0.5, 0.1]);
    }

    #[test]
    fn rising_rows_fill_the_buffer_often(length in 1_usize..500, k in 1_usize..40) {
        let logits: Vec<f32> = (0..length).map(|i| i as f32 * 0.01).collect();
        assert_row(&logits, 0, Keep::TopK { k }, &[]);
    }
}

/// Rows of more blocks than k, so that most blocks are never looked at again; with ties across the border too.
#[test]
fn long_rows_agree_with_a_sort() {
    let mut state = 1_u64;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1 << 20) as f32 - 8.0
    };
    for (length, step) in [(9_000, 0.0), (9_001, 0.5), (20_017, 0.01), (5_000, 16.0)] {
        let number = |z: f32| if step > 0.0 { (z / step).round() * step } else { z };
        let logits: Vec<f32> = (0..length).map(|_| number(next()) + 0.0).collect();
        for k in [1, 16, 64, 128, 700] {
            let row = assert_row(&logits, length - 1, Keep::TopK { k }, &[2.0]);
            assert_eq!(softshard_losses::top_k(&logits, k), by_logit(&row, &logits), "the same tokens alone");
        }
    }
}

/// The kept tokens in the order of their logits, which f32 log probabilities may not tell apart.
fn by_logit(row: &RowLabels, logits: &[f32]) -> Vec<i32> {
    let logit = |id: i32| logits[usize::try_from(id).unwrap()];
    let mut ids = row.token_ids.clone();
    ids.sort_by(|&a, &b| logit(b).total_cmp(&logit(a)).then(a.cmp(&b)));
    ids
}

#[test]
fn one_token_and_all_tokens() {
    let logits = [0.5, 2.0, 2.0, -1.0, 2.0];
    let row = assert_row(&logits, 3, Keep::TopK { k: 1 }, &[]);
    assert_eq!(row.token_ids, [1]);
    let row = assert_row(&logits, 3, Keep::TopK { k: 5 }, &[]);
    assert_eq!(row.token_ids, [1, 2, 4, 0, 3]);
    assert_eq!(row.tail_log_mass, f32::NEG_INFINITY);
    let row = assert_row(&logits, 3, Keep::TopK { k: 99 }, &[]);
    assert_eq!(row.token_ids.len(), 5);
    let row = assert_row(&[7.0], 0, Keep::TopK { k: 1 }, &[3.0]);
    assert_eq!((row.log_probs[0], row.entropy, row.log_sum_exp), (0.0, 0.0, 7.0));
}

#[test]
fn top_p_is_the_smallest_set() {
    let logits = [0.1_f32.ln(), 0.5_f32.ln(), 0.25_f32.ln(), 0.15_f32.ln()];
    let ids = |p, k| select(&logits, 0, Keep::TopP { p, k }, 0.0, &[]).unwrap().token_ids;
    assert_eq!(ids(0.0, 4), [1]);
    assert_eq!(ids(0.49, 4), [1]);
    assert_eq!(ids(0.6, 4), [1, 2]);
    assert_eq!(ids(0.89, 4), [1, 2, 3]);
    assert_eq!(ids(0.89, 2), [1, 2]);
}

#[test]
fn impossible_tokens_are_never_kept() {
    let logits = [f32::NEG_INFINITY, 1.0, f32::NEG_INFINITY, 0.0];
    let row = assert_row(&logits, 0, Keep::TopK { k: 4 }, &[2.0]);
    assert_eq!(row.token_ids, [1, 3]);
    assert_eq!(row.gold_log_prob, f32::NEG_INFINITY);
    assert_eq!(row.tail_log_mass, f32::NEG_INFINITY);
}

#[test]
fn a_tiny_tail_keeps_its_logarithm() {
    // e^-90 and e^-200 are no normal f32.
    let row = assert_row(&[100.0, 10.0, 9.0, -100.0], 0, Keep::TopK { k: 1 }, &[]);
    assert!(row.tail_log_mass > -90.0 && row.tail_log_mass < -89.0);
    let row = assert_row(&[100.0, -1e4, -1e4], 0, Keep::TopK { k: 1 }, &[]);
    assert!(row.tail_log_mass.is_finite());
    let row = select(&[f32::MAX, f32::MIN], 1, Keep::TopK { k: 2 }, 0.0, &[]).unwrap();
    assert_eq!(row.log_probs, [0.0, f32::MIN]);
}

#[test]
fn what_is_no_distribution_is_refused() {
    let refused = |logits: &[f32]| {
        assert_eq!(
            select(logits, 0, Keep::TopK { k: 2 }, 0.0, &[]),
            Err(HeadError::NonFinite { row: 0 }),
            "{logits:?}"
        );
    };
    for position in [0, 5, 63, 64, 99] {
        for bad in [f32::NAN, f32::INFINITY] {
            let mut logits: Vec<f32> = (0..100).map(|i| (i % 7) as f32).collect();
            logits[position] = bad;
            refused(&logits);
        }
    }
    refused(&[f32::NEG_INFINITY; 3]);
    refused(&[f32::NAN; 3]);
}

fn random(shape: [usize; 2], device: &Device) -> Tensor<2> {
    Tensor::random(shape, Distribution::Normal(0.0, 1.0), device)
}

fn top_k(k: usize) -> HeadOptions<'static> {
    HeadOptions { keep: Keep::TopK { k }, logit_scale: 1.0, temperatures: &[], rows_per_chunk: 2 }
}

/// Powers of two scale exactly, so a scaled head says the same.
#[test]
fn the_scale_comes_before_anything_else() {
    let device = Device::flex();
    device.seed(12);
    let (hidden, head) = (random([5, 8], &device), random([61, 8], &device));
    let label = |head: Tensor<2>, logit_scale| {
        let options = HeadOptions { logit_scale, temperatures: &[2.0], ..top_k(6) };
        label_rows(hidden.clone(), head, &[1; 5], &[], &options).unwrap()
    };
    let plain = label(head.clone(), 1.0);
    assert_ne!(label(head.clone(), 0.5), plain);
    assert_eq!(label(head.clone().mul_scalar(2.0), 0.5), plain);
    assert_eq!(label(head.mul_scalar(0.25), 4.0), plain);
}

#[test]
fn rows_do_not_depend_on_the_chunk() {
    let device = Device::flex();
    device.seed(11);
    let (hidden, head) = (random([7, 8], &device), random([61, 8], &device));
    let gold = [0, 60, 3, 4, 5, 6, 7];
    let label = |rows_per_chunk| {
        let options = HeadOptions { rows_per_chunk, temperatures: &[2.0], ..top_k(6) };
        label_rows(hidden.clone(), head.clone(), &gold, &[], &options).unwrap()
    };
    let expected = label(7);
    assert_eq!(expected.len(), 7);
    assert_eq!(expected.counts, [6; 7]);
    for rows in [1, 2, 3, 100] {
        let found = label(rows);
        // Products of another height may be summed in another order; what is chosen is the same.
        assert_eq!(found.token_ids, expected.token_ids);
        for (a, b) in found.log_probs.iter().zip(&expected.log_probs) {
            assert!((a - b).abs() < 1e-5);
        }
    }
    let logits = hidden.matmul(head.transpose()).into_data();
    for (row, logits) in logits.as_slice::<f32>().unwrap().chunks(61).enumerate() {
        let alone = select(logits, gold[row], Keep::TopK { k: 6 }, 0.0, &[2.0]).unwrap();
        assert_eq!(expected.token_ids[row * 6..][..6], alone.token_ids);
        assert!((expected.log_sum_exp[row] - alone.log_sum_exp).abs() < 1e-5);
        assert!((expected.log_partitions[0][row] - alone.log_partitions[0]).abs() < 1e-5);
    }
}

#[test]
fn a_bad_row_is_named() {
    let device = Device::flex();
    let mut values = vec![0.5_f32; 5 * 3];
    values[3 * 3 + 1] = f32::NAN;
    let hidden = Tensor::<2>::from_data(TensorData::new(values, [5, 3]), &device);
    let head = Tensor::<2>::ones([4, 3], &device);
    let error = label_rows(hidden, head, &[0; 5], &[], &top_k(2)).unwrap_err();
    assert_eq!(error, HeadError::NonFinite { row: 3 });
    assert!(error.to_string().contains("row 3"));
}

#[test]
fn no_rows_no_labels() {
    let device = Device::flex();
    let labels = label_rows(
        Tensor::<2>::zeros([0, 3], &device),
        Tensor::<2>::ones([4, 3], &device),
        &[],
        &[],
        &HeadOptions { temperatures: &[2.0], ..top_k(2) },
    );
    assert_eq!(
        labels,
        Ok(HeadLabels {
            log_partitions: vec![vec![]],
            tail_log_masses: vec![vec![]],
            ..HeadLabels::default()
        })
    );
}
