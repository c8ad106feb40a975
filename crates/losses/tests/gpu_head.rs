//! The kernel of the head against the CPU, which is tested against f64 where it is.
//!
//! Legend: N rows, V vocabulary, K kept tokens.

use burn::tensor::{DType, Device, DeviceKind, Tensor, TensorData};
use softshard_losses::{HeadError, HeadLabels, HeadOptions, Keep, label_logits, label_rows};

/// Sums of the kernel are f32, of some hundred numbers a unit; WGSL asks less of `exp` than CUDA.
const LOG: f32 = 2e-5;
/// Draws whose border lies this close to a token's, as a part of one draw, may fall to its neighbour: f32 sums, times draws.
const DRAW: f64 = 1e-3;
/// Units of a cube, as the kernel has them.
const UNITS: usize = 256;

fn device() -> Device {
    Device::wgpu(DeviceKind::DefaultDevice)
}

/// Numbers in -8..8 without a pattern, from a seed; `step` 0 or the distance of equal ones.
fn logits(count: usize, seed: u64, step: f32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        let number = (state >> 40) as f32 / (1 << 20) as f32 - 8.0;
        if step > 0.0 { (number / step).round() * step } else { number }
    };
    (0..count).map(|_| next()).collect()
}

fn options(keep: Keep) -> HeadOptions<'static> {
    HeadOptions { keep, logit_scale: 1.0, temperatures: &[2.0, 0.5], rows_per_chunk: 64 }
}

fn on(device: &Device, values: &[f32], vocabulary: usize, dtype: DType) -> Tensor<2> {
    let data = TensorData::new(values.to_vec(), [values.len() / vocabulary, vocabulary]);
    Tensor::from_data(data.convert_dtype(dtype), (device, dtype))
}

fn uniforms(rows: usize) -> Vec<f64> {
    (0..rows).map(|row| (0.618_033_988_749_895 * row as f64 + 0.37).fract()).collect()
}

fn gold(rows: usize, vocabulary: usize) -> Vec<i32> {
    (0..rows).map(|row| i32::try_from((row * 7919 + vocabulary - 1) % vocabulary).unwrap()).collect()
}

/// The same from the kernel and the CPU, whatever the type.
fn check_as(values: &[f32], vocabulary: usize, options: &HeadOptions<'_>, dtype: DType) {
    let rows = values.len() / vocabulary;
    let (gold, uniforms) = (gold(rows, vocabulary), uniforms(rows));
    let label = |device: &Device| {
        label_logits(on(device, values, vocabulary, dtype), &gold, &uniforms, options).expect("finite logits")
    };
    let (found, expected) = (label(&device()), label(&Device::flex()));
    let what = format!("[{rows}, {vocabulary}] {:?} {dtype:?}", options.keep);
    if options.keep.draws().is_some() {
        let rounded = on(&Device::flex(), values, vocabulary, dtype).into_data().convert::<f32>();
        check_draws(&found, rounded.as_slice().unwrap(), &uniforms, options, &what);
    } else {
        assert_eq!(found.counts, expected.counts, "{what}: counts");
        check_kept(&found, &expected, &what);
    }
    for (name, found, expected) in columns(&found, &expected) {
        close(found, expected, &format!("{what}: {name}"));
    }
}

fn check(values: &[f32], vocabulary: usize, options: &HeadOptions<'_>) {
    check_as(values, vocabulary, options, DType::F32);
}

type Column<'a> = (&'static str, &'a [f32], &'a [f32]);

fn columns<'a>(found: &'a HeadLabels, expected: &'a HeadLabels) -> Vec<Column<'a>> {
    let mut columns: Vec<Column<'a>> = vec![
        ("log_sum_exp", &found.log_sum_exp, &expected.log_sum_exp),
        ("entropy", &found.entropy, &expected.entropy),
        ("gold_log_prob", &found.gold_log_prob, &expected.gold_log_prob),
    ];
    // What is beyond drawn tokens hangs on which ones these are.
    if found.sample_counts.is_empty() || !found.log_probs.is_empty() {
        columns.push(("tail_log_mass", &found.tail_log_mass, &expected.tail_log_mass));
    }
    for (found, expected) in found.log_partitions.iter().zip(&expected.log_partitions) {
        columns.push(("log_partition", found, expected));
    }
    assert_eq!(found.tail_log_masses.len(), expected.tail_log_masses.len());
    for (found, expected) in found.tail_log_masses.iter().zip(&expected.tail_log_masses) {
        columns.push(("tail_log_mass at a temperature", found, expected));
    }
    columns
}

fn close(found: &[f32], expected: &[f32], what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    for (row, (&found, &expected)) in found.iter().zip(expected).enumerate() {
        let close = found == expected || (found - expected).abs() <= LOG * expected.abs().max(1.0);
        assert!(close, "{what}, row {row}: expected {expected}, found {found}");
    }
}

/// The same tokens, with their log probabilities; the order of two that are as good as equal may differ.
fn check_kept(found: &HeadLabels, expected: &HeadLabels, what: &str) {
    let sorted = |labels: &HeadLabels| {
        let mut start = 0;
        let rows = labels.counts.iter().map(|&count| {
            let range = start..start + usize::try_from(count).unwrap();
            start = range.end;
            let mut row: Vec<(i32, f32)> =
                range.map(|entry| (labels.token_ids[entry], labels.log_probs[entry])).collect();
            let falling = |pair: &[(i32, f32)]| {
                pair[0].1 > pair[1].1 || (pair[0].1 == pair[1].1 && pair[0].0 < pair[1].0)
            };
            assert!(row.windows(2).all(falling), "{what}: falling log_prob, ties by id");
            row.sort_unstable_by_key(|entry| entry.0);
            row
        });
        rows.flatten().unzip::<i32, f32, Vec<_>, Vec<_>>()
    };
    let ((ids, log_probs), (expected_ids, expected_log_probs)) = (sorted(found), sorted(expected));
    assert_eq!(ids, expected_ids, "{what}: tokens");
    close(&log_probs, &expected_log_probs, &format!("{what}: log_probs"));
}

/// In the order of the ids, as many draws as the mass up to each token has, from the definition.
fn check_draws(found: &HeadLabels, values: &[f32], uniforms: &[f64], options: &HeadOptions<'_>, what: &str) {
    let (rows, exact) = (found.counts.len(), options.keep.exact());
    let vocabulary = values.len() / rows;
    let draws = f64::from(options.keep.draws().expect("tokens are drawn"));
    let (mut at, mut drawn_at) = (0, 0);
    for (row, logits) in values.chunks(vocabulary).enumerate() {
        let entries = usize::try_from(found.counts[row]).unwrap();
        let finite = logits.iter().filter(|logit| logit.is_finite()).count();
        let kept = exact.min(finite);
        let ids = &found.token_ids[at..at + entries];
        let counts = &found.sample_counts[drawn_at..drawn_at + entries - kept];
        at += entries;
        drawn_at += entries - kept;
        let mut order: Vec<usize> = (0..vocabulary).collect();
        order.sort_by(|&a, &b| logits[b].partial_cmp(&logits[a]).unwrap().then(a.cmp(&b)));
        let mut expected: Vec<usize> = order[..kept].to_vec();
        let mut exact_ids: Vec<usize> = ids[..kept].iter().map(|&id| usize::try_from(id).unwrap()).collect();
        expected.sort_unstable();
        exact_ids.sort_unstable();
        assert_eq!(exact_ids, expected, "{what}: tokens of row {row}");
        let mut count_of = vec![0_i32; vocabulary];
        for (&id, &count) in ids[kept..].iter().zip(counts) {
            assert!(count > 0, "{what}");
            count_of[usize::try_from(id).unwrap()] = count;
        }
        let scale = f64::from(options.logit_scale);
        let largest = order.get(kept).map_or(0.0, |&id| f64::from(logits[id]));
        let mass = |id: usize| {
            let kept = expected.binary_search(&id).is_ok();
            if kept { 0.0 } else { ((f64::from(logits[id]) - largest) * scale).exp() }
        };
        let total: f64 = (0..vocabulary).map(mass).sum();
        let sum = counts.iter().sum::<i32>();
        assert_eq!(f64::from(sum), if total > 0.0 { draws } else { 0.0 }, "{what}: draws of row {row}");
        let (mut reached, mut drawn) = (0.0, 0);
        for (id, &count) in count_of.iter().enumerate() {
            reached += mass(id);
            drawn += count;
            let share = reached / total * draws - uniforms[row];
            let bounds = ((share - DRAW).ceil(), (share + DRAW).ceil());
            let drawn = f64::from(drawn);
            let inside = total == 0.0
                || (drawn >= bounds.0.max(0.0) && drawn <= bounds.1.max(0.0))
                || reached >= total;
            assert!(inside, "{what}: row {row} token {id}: {drawn} draws, expected {bounds:?}");
        }
    }
}

/// All widths up to a few units, and around the multiples of the units and of what they read at once.
#[test]
fn every_width() {
    let around = [1, 2, 3, 4, 8].into_iter().flat_map(|times| {
        let middle = times * UNITS;
        middle - 9..=middle + 9
    });
    for vocabulary in (1..=70).chain(around) {
        let values = logits(2 * vocabulary, vocabulary as u64, 0.0);
        check(&values, vocabulary, &options(Keep::TopK { k: 5 }));
        check(&values, vocabulary, &options(Keep::TopKSampled { k: 3, draws: 11 }));
    }
}

/// One, some, as many as units and their neighbours, all: below and above what shared memory holds.
#[test]
fn every_k() {
    for vocabulary in [300, 1500, 4001] {
        let values = logits(3 * vocabulary, 5, 0.0);
        for k in [1, 2, 16, 64, 128, UNITS - 1, UNITS, UNITS + 1, vocabulary - 1, vocabulary, vocabulary + 7]
        {
            check(&values, vocabulary, &options(Keep::TopK { k }));
        }
    }
}

#[test]
fn ties_go_to_the_lower_id() {
    for (step, vocabulary) in [(1.0, 999), (4.0, 5000), (100.0, 3000), (0.25, 1024)] {
        let values = logits(3 * vocabulary, 3, step);
        for k in [1, 7, 128, 1000] {
            check(&values, vocabulary, &options(Keep::TopK { k }));
        }
        check(&values, vocabulary, &options(Keep::TopKSampled { k: 100, draws: 64 }));
    }
    let mut zeros = vec![-1.0; 64];
    (zeros[3], zeros[9], zeros[11]) = (-0.0, 0.0, -0.0);
    check(&zeros, 64, &options(Keep::TopK { k: 2 }));
}

#[test]
fn mass_and_draws() {
    for vocabulary in [1, 40, 1000, 4097] {
        let values = logits(5 * vocabulary, 17, 0.0);
        for keep in [
            Keep::TopP { p: 0.0, k: 50 },
            Keep::TopP { p: 0.5, k: 50 },
            Keep::TopP { p: 1.0, k: 50 },
            Keep::Sampled { draws: 1 },
            Keep::Sampled { draws: 50 },
            Keep::TopKSampled { k: 16, draws: 16 },
            Keep::TopKSampled { k: 300, draws: 7 },
        ] {
            check(&values, vocabulary, &options(keep));
        }
    }
}

#[test]
fn impossible_tokens_and_faint_tails() {
    let vocabulary = 700;
    let mut some = vec![f32::NEG_INFINITY; vocabulary];
    (some[7], some[300], some[699]) = (1.0, -2.0, 1.0);
    let mut one = vec![f32::NEG_INFINITY; vocabulary];
    one[699] = -3.0;
    let mut faint = vec![-200.0; vocabulary];
    (faint[3], faint[650]) = (50.0, -199.0);
    let mut far = vec![-1e4; vocabulary];
    far[5] = 100.0;
    for values in [some, one, faint, far] {
        for keep in [
            Keep::TopK { k: 1 },
            Keep::TopK { k: 64 },
            Keep::TopKSampled { k: 1, draws: 100 },
            Keep::Sampled { draws: 9 },
        ] {
            check(&values, vocabulary, &options(keep));
        }
    }
}

#[test]
fn what_is_no_distribution_is_named() {
    let (vocabulary, rows) = (1001, 5);
    for bad in [f32::NAN, f32::INFINITY] {
        for at in [0, 255, 256, 1000] {
            let mut values = logits(rows * vocabulary, 23, 0.0);
            values[3 * vocabulary + at] = bad;
            values[4 * vocabulary + at] = bad;
            let options = options(Keep::TopK { k: 4 });
            let found = label_logits(on(&device(), &values, vocabulary, DType::F32), &[0; 5], &[], &options);
            assert_eq!(found, Err(HeadError::NonFinite { row: 3 }), "{bad} at {at}");
        }
    }
    let mut values = logits(rows * vocabulary, 23, 0.0);
    values[vocabulary..2 * vocabulary].fill(f32::NEG_INFINITY);
    let options = options(Keep::TopK { k: 4 });
    let found = label_logits(on(&device(), &values, vocabulary, DType::F32), &[0; 5], &[], &options);
    assert_eq!(found, Err(HeadError::NonFinite { row: 1 }));
}

#[test]
fn the_scale_comes_before_anything_else() {
    let values = logits(3 * 1000, 29, 0.0);
    for logit_scale in [0.5, 1.7] {
        check(&values, 1000, &HeadOptions { logit_scale, ..options(Keep::TopK { k: 32 }) });
    }
}

/// Types that the device lacks are said and left out: WGSL has no bf16.
#[test]
fn half_precision() {
    for dtype in [DType::F16, DType::BF16] {
        if !device().supports_dtype(dtype) {
            println!("left out: the device has no {dtype:?}");
            continue;
        }
        for vocabulary in [1000, 4097] {
            let values = logits(3 * vocabulary, 31, 0.0);
            for keep in [Keep::TopK { k: 64 }, Keep::TopKSampled { k: 8, draws: 8 }] {
                check_as(&values, vocabulary, &options(keep), dtype);
            }
        }
    }
}

/// Halves are multiplied into f32: no logit is rounded to a half.
#[test]
fn products_of_halves_are_f32() {
    let (rows, width, vocabulary) = (5, 48, 1001);
    for dtype in [DType::F16, DType::BF16] {
        if !device().supports_dtype(dtype) {
            println!("left out: the device has no {dtype:?}");
            continue;
        }
        let product = |device: &Device| {
            let of = |seed, height: usize| on(device, &logits(height * width, seed, 0.0), width, dtype);
            softshard_losses::logits(of(43, rows), &of(47, vocabulary))
        };
        let (found, expected) = (product(&device()), product(&Device::flex()));
        assert_eq!((found.dtype(), found.dims()), (DType::F32, [rows, vocabulary]));
        let [found, expected] =
            [found, expected].map(|logits| logits.into_data().try_to_vec::<f32>().unwrap());
        let largest = expected.iter().fold(0.0f32, |largest, z| largest.max(z.abs()));
        for (found, expected) in found.iter().zip(&expected) {
            assert!((found - expected).abs() < 1e-5 * largest, "{dtype:?}: {found} {expected}");
        }
    }
}

/// Rows of any number, in chunks of any size, from hidden states.
#[test]
fn rows_from_hidden_states() {
    let (width, vocabulary) = (16, 501);
    for rows in [0, 1, 70] {
        let hidden: Vec<f32> = logits(rows * width, 37, 0.5).iter().map(|x| x / 8.0).collect();
        let head = logits(vocabulary * width, 41, 0.5);
        let label = |device: &Device, rows_per_chunk| {
            let of = |values: &[f32], height: usize| {
                Tensor::<2>::from_data(TensorData::new(values.to_vec(), [height, width]), device)
            };
            let options = HeadOptions { rows_per_chunk, ..options(Keep::TopK { k: 9 }) };
            label_rows(of(&hidden, rows), of(&head, vocabulary), &gold(rows, vocabulary), &[], &options)
                .unwrap()
        };
        let expected = label(&Device::flex(), 16);
        for rows_per_chunk in [1, 33, 1000] {
            let found = label(&device(), rows_per_chunk);
            check_kept(&found, &expected, "from hidden states");
            for (name, found, expected) in columns(&found, &expected) {
                close(found, expected, name);
            }
        }
    }
}
