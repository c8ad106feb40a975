use burn::backend::Flex;
use burn::tensor::{Device, Distribution, bf16};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::*;

const WIDTHS: [Bits; 2] = [Bits::Four, Bits::Eight];

fn normal(count: usize, seed: u64) -> Vec<f32> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let mut uniform = || random.random_range(f64::MIN_POSITIVE..1.0);
    // Box and Muller's transform.
    let draw = |_| (0.02 * (-2.0 * uniform().ln()).sqrt() * (std::f64::consts::TAU * uniform()).cos()) as f32;
    (0..count).map(draw).collect()
}

/// Normal numbers, some of them 30 times as large.
fn with_outliers(count: usize, seed: u64) -> Vec<f32> {
    let mut numbers = normal(count, seed);
    numbers.iter_mut().step_by(97).for_each(|number| *number *= 30.0);
    numbers
}

fn tensor(numbers: &[f32], columns: usize) -> Tensor<2> {
    let shape = [numbers.len() / columns, columns];
    Tensor::from_data(TensorData::new(numbers.to_vec(), shape), &Device::flex())
}

fn round_trip(numbers: &[f32], columns: usize, bits: Bits) -> Vec<f32> {
    values(Quantised::of(tensor(numbers, columns), bits).dense(FloatDType::F32))
}

fn bit_patterns(numbers: Vec<f32>) -> Vec<u32> {
    numbers.into_iter().map(f32::to_bits).collect()
}

#[test]
fn eight_bits_are_within_half_a_step() {
    for columns in [1, 31, 32, 33, 172, 256] {
        let weights = with_outliers(5 * columns, 1);
        let dense = round_trip(&weights, columns, Bits::Eight);
        for (row, dense) in weights.chunks(columns).zip(dense.chunks(columns)) {
            for (block, dense) in row.chunks(BLOCK).zip(dense.chunks(BLOCK)) {
                let largest = block.iter().fold(0.0f32, |largest, weight| largest.max(weight.abs()));
                // The scale may be rounded up by half a step of bf16.
                let half = 0.5 * largest / 127.0 * (1.0 + 2f32.powi(-8)) + largest * 2f32.powi(-22);
                for (weight, dense) in block.iter().zip(dense) {
                    assert!((weight - dense).abs() <= half, "{weight} became {dense}, half a step is {half}");
                }
            }
        }
    }
}

#[test]
fn four_bits_are_the_nearest_levels_and_no_worse_than_with_the_largest_weight_exact() {
    for columns in [1, 31, 32, 33, 172, 256] {
        let weights = with_outliers(5 * columns, 2);
        let quantised = Quantised::of(tensor(&weights, columns), Bits::Four);
        let scales = values(quantised.scales.clone());
        let dense = values(quantised.dense(FloatDType::F32));
        let blocks = weights.chunks(columns).flat_map(|row| row.chunks(BLOCK));
        let dense_blocks = dense.chunks(columns).flat_map(|row| row.chunks(BLOCK));
        for ((block, dense), scale) in blocks.zip(dense_blocks).zip(scales) {
            let squared_error = |scale: f32| -> f64 {
                block.iter().map(|&weight| f64::from(weight - nearest(weight, scale)).powi(2)).sum()
            };
            let found: f64 =
                block.iter().zip(dense).map(|(weight, dense)| f64::from(weight - dense).powi(2)).sum();
            assert!(found <= squared_error(scale) * (1.0 + 1e-5), "not the nearest levels");
            let largest = block.iter().copied().max_by(|a, b| a.abs().total_cmp(&b.abs())).unwrap();
            let plain = squared_error(bf16::from_f32(largest / -127.0).into());
            // The candidates have none that is exactly the plain one: 0.99 and 1.04 are beside it.
            assert!(found <= 1.05 * plain + f64::from(largest).powi(2) * 1e-5, "{found} against {plain}");
        }
    }
}

fn nearest(weight: f32, scale: f32) -> f32 {
    let levels = encode::LEVELS.iter().map(|level| level * scale);
    levels.min_by(|a, b| (weight - a).abs().total_cmp(&(weight - b).abs())).unwrap()
}

#[test]
fn weights_that_are_levels_stay_as_they_are() {
    for bits in WIDTHS {
        let levels = bits.levels();
        let levels = levels.iter().filter(|level| level.abs() <= 127.0);
        for scale in [0.001_953_125, 3.0, -7e20, 2f32.powi(-90)] {
            let scale = f32::from(bf16::from_f32(scale));
            // The outermost level is in each block, or another scale would do as well.
            let weights: Vec<f32> = levels.clone().cycle().take(31 * 20).map(|level| level * scale).collect();
            let weights: Vec<f32> =
                weights.chunks(31).flat_map(|chunk| [&[-127.0 * scale], chunk].concat()).collect();
            assert_eq!(round_trip(&weights, 64, bits), weights, "{bits:?}, scale {scale}");
        }
    }
}

#[test]
fn zeros_outliers_and_extremes() {
    for bits in WIDTHS {
        assert_eq!(round_trip(&[0.0; 70], 35, bits), [0.0; 70]);

        let mut weights = vec![0.0; 64];
        weights[40] = -1e30;
        let dense = round_trip(&weights, 64, bits);
        assert!((dense[40] / -1e30 - 1.0).abs() <= 2f32.powi(-8), "{bits:?}: {}", dense[40]);
        assert!(dense.iter().enumerate().all(|(index, &number)| index == 40 || number == 0.0));

        // Beyond the scales: the largest that there is, and zero.
        let dense = round_trip(&[f32::MAX, -f32::MAX, 1e-37, 1e-45], 1, bits);
        let most = 127.0 * 2f32.powi(120);
        assert_eq!(dense, [most, -most, 0.0, 0.0], "{bits:?}");
    }
}

/// What other backends do.
fn by_tensor_operations(quantised: &Quantised, dtype: FloatDType) -> Tensor<2> {
    let words = quantised.words.clone().try_into_primitive::<Flex>().unwrap();
    let scales = quantised.scales.clone().try_into_primitive::<Flex>().unwrap();
    let dense = product::by_tensor_operations::<Flex>(words, scales, quantised.packing, dtype);
    Tensor::from_primitive::<Flex>(dense)
}

#[test]
fn the_cpu_reads_codes_to_the_bits_of_tensor_operations() {
    for bits in WIDTHS {
        let mut weights: Vec<Quantised> = [1, 32, 172, 800]
            .map(|columns| Quantised::of(tensor(&with_outliers(120 * columns, 3), columns), bits))
            .into();
        // Every byte once or twice, and so every pair of codes.
        let packing = Packing { bits, rows: 2, columns: 256 };
        let count = 2 * packing.words();
        let words =
            (0..=u8::MAX).map(|byte| byte.wrapping_mul(167)).cycle().take(4 * count).collect::<Vec<_>>();
        let words: Vec<i32> = words.as_chunks().0.iter().map(|&four| i32::from_le_bytes(four)).collect();
        let words = TensorData::new(words, [2, packing.words()]);
        let scales =
            TensorData::new(vec![bf16::from_f32(-0.37); 2 * packing.blocks()], [2, packing.blocks()]);
        weights.push(Quantised {
            words: Tensor::from_data(words, (&Device::flex(), DType::I32)),
            scales: Tensor::from_data(scales, (&Device::flex(), DType::BF16)),
            packing,
        });
        for quantised in weights {
            for dtype in [FloatDType::F32, FloatDType::BF16] {
                let (direct, other) = (quantised.dense(dtype), by_tensor_operations(&quantised, dtype));
                assert_eq!((direct.dtype(), direct.dims()), (other.dtype(), other.dims()));
                assert_eq!(
                    bit_patterns(values(direct)),
                    bit_patterns(values(other)),
                    "{:?}",
                    quantised.packing
                );
            }
        }
    }
}

/// `tests/peers/quantised_levels.py` computed the same from the description alone: a second opinion, though not a stranger's.
#[test]
fn numpy_comes_to_the_same_weights() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/peers/golden/quantised.json");
    let golden: serde_json::Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let numbers = |name: &str| serde_json::from_value::<Vec<f32>>(golden[name].clone()).unwrap();
    for (bits, name) in [(Bits::Four, "four"), (Bits::Eight, "eight")] {
        assert_eq!(round_trip(&numbers("weights"), 76, bits), numbers(name), "{bits:?}");
    }
}

#[test]
fn bytes_and_errors_are_what_they_should_be() {
    let expected = [(Bits::Four, 4.5, 0.0735..0.0755), (Bits::Eight, 8.5, 0.0050..0.0056)];
    for (bits, bits_per_weight, relative_rms) in expected {
        let mut sum = QuantisationError::default();
        for seed in 0..2 {
            let weight = tensor(&normal(256 * 256, seed), 256);
            let quantised = Quantised::of(weight.clone(), bits);
            assert_eq!(quantised.dims(), [256, 256]);
            let stored = quantised.words.to_data().bytes().len() + quantised.scales.to_data().bytes().len();
            assert_eq!(quantised.bytes(), stored);
            sum += quantised.error(weight);
        }
        assert_eq!(sum.bits_per_weight(), bits_per_weight);
        assert!(relative_rms.contains(&sum.relative_rms()), "{bits:?}: {}", sum.relative_rms());
        assert!((0.0016..0.0018).contains(&sum.relative_rms_of_bf16()), "{}", sum.relative_rms_of_bf16());
        assert!(sum.largest > 0.0 && sum.largest < 0.02, "{}", sum.largest);
    }
}

#[test]
fn errors_are_those_of_the_whole_weight() {
    // Its rows are compared in three parts, the last a short one.
    let (rows, columns) = (9, NUMBERS_COMPARED / 4 - 7);
    let weights = with_outliers(rows * columns, 5);
    let quantised =
        Quantised::of(tensor(&weights, columns), Bits::Four).to_device(&Device::flex().autodiff());
    let error = quantised.error(tensor(&weights, columns));
    let dense = values(quantised.dense(FloatDType::F32));
    let differences = weights.iter().zip(&dense).map(|(weight, dense)| f64::from(weight - dense));
    let expected = (differences.clone().map(|difference| difference.powi(2)).sum::<f64>()
        / weights.iter().map(|&weight| f64::from(weight).powi(2)).sum::<f64>())
    .sqrt();
    assert!((error.relative_rms() / expected - 1.0).abs() < 1e-9, "{} {expected}", error.relative_rms());
    assert_eq!(f64::from(error.largest), differences.map(f64::abs).fold(0.0, f64::max));
    assert_eq!((error.numbers, error.bytes), (weights.len() as u64, quantised.bytes() as u64));

    let nothing = Quantised::of(tensor(&[0.0; 32], 32), Bits::Eight).error(tensor(&[0.0; 32], 32));
    assert_eq!(
        nothing.to_string(),
        "8.50 bits a weight, relative RMS error 0.00 % (bf16: 0.00 %), largest 0.00e0"
    );
}

#[test]
fn the_product_and_its_gradients_are_those_of_the_dense_weight() {
    let device = Device::flex().autodiff();
    let random = |shape: [usize; 2]| Tensor::<2>::random(shape, Distribution::Normal(0.0, 1.0), &device);
    for bits in WIDTHS {
        let quantised = Quantised::of(tensor(&with_outliers(40 * 172, 4), 172), bits);
        let dense = quantised.dense(FloatDType::F32);
        let (x, upstream) = (random([9, 172]), random([9, 40]));
        let (a, b) = (random([4, 172]), random([40, 4]));
        let run = |product: &dyn Fn(Tensor<2>) -> Tensor<2>| {
            let [x, a, b] =
                [&x, &a, &b].map(|leaf| Tensor::from_data(leaf.to_data(), &device).require_grad());
            // The factors before the weight as well, so that its backward pass has more to go through.
            let before = x.clone() + x.clone().matmul(a.clone().transpose()).matmul(a.clone());
            let low = before.clone().matmul(a.clone().transpose()).matmul(b.clone().transpose());
            let y = product(before) + low;
            let gradients = (y.clone() * upstream.clone()).sum().backward();
            let gradients = [x, a, b].map(|leaf| bit_patterns(values(leaf.grad(&gradients).unwrap())));
            (bit_patterns(values(y)), gradients)
        };
        let expected = run(&|x| x.matmul(dense.clone().transpose()));
        assert!(run(&|x| quantised.forward(x)) == expected, "{bits:?}");

        let untracked = x.clone().inner();
        let expected = values(untracked.clone().matmul(dense.clone().transpose()));
        assert_eq!(values(quantised.forward(untracked)), expected);
        // On a device of autodiff, but nothing asks for a gradient.
        assert_eq!(values(quantised.forward(x.clone())), expected);

        let half = x.clone().inner().cast(FloatDType::BF16);
        let product = quantised.forward(half.clone());
        assert_eq!(product.dtype(), DType::BF16);
        let expected = half.matmul(quantised.dense(FloatDType::BF16).transpose());
        assert_eq!(values(product), values(expected));
    }
}

#[test]
fn bits_are_numbers_in_files() {
    assert_eq!(serde_json::to_string(&WIDTHS).unwrap(), "[4,8]");
    assert_eq!(serde_json::from_str::<Bits>("8").unwrap(), Bits::Eight);
    let error = serde_json::from_str::<Bits>("5").unwrap_err().to_string();
    assert!(error.contains("expected 4 or 8 bits, found 5"), "{error}");
    let schema = serde_json::to_value(schemars::schema_for!(Bits)).unwrap();
    assert_eq!(schema["enum"], serde_json::json!([4, 8]));
}

/// Layers and their width in [`memory_child`].
const LAYERS: usize = 24;
const WIDTH: usize = 1024;

/// The memory that a process of its own needs at most for forward and backward, less what it has before.
fn peak_bytes(product: &str) -> usize {
    let child = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "quantised::tests::memory_child", "--ignored", "--nocapture"])
        .env("SOFTSHARD_TEST_PRODUCT", product)
        // The C library gives back at once what is freed, and no free piece hides what is allocated later.
        .env("MALLOC_MMAP_THRESHOLD_", "65536")
        .output()
        .unwrap();
    let output = String::from_utf8(child.stdout).unwrap();
    let peak = output.lines().find_map(|line| line.split("peak ").nth(1));
    peak.and_then(|bytes| bytes.trim().parse().ok()).unwrap_or_else(|| panic!("no peak in {output}"))
}

#[test]
fn the_graph_keeps_codes_only() {
    let weight = WIDTH * WIDTH * size_of::<f32>();
    let (quantised, dense) = (peak_bytes("quantised"), peak_bytes("dense"));
    println!("peak of {LAYERS} weights of {weight} bytes: {quantised}, with dense weights {dense}");
    // One dense weight, and what the product packs of it.
    assert!(quantised < 4 * weight, "{quantised} bytes for weights of {weight}");
    assert!(
        dense > LAYERS * weight,
        "{dense} bytes: the measurement shows no dense weights where they are kept"
    );
}

/// Run by [`peak_bytes`] in a process of its own.
#[test]
#[ignore = "a part of another test"]
fn memory_child() {
    let keep_dense = std::env::var("SOFTSHARD_TEST_PRODUCT").unwrap() == "dense";
    let device = Device::flex().autodiff();
    let layers: Vec<Quantised> = (0..LAYERS as u64)
        .map(|seed| Quantised::of(tensor(&normal(WIDTH * WIDTH, seed), WIDTH), Bits::Four))
        .collect();
    let mut x = Tensor::<2>::ones([8, WIDTH], &device).require_grad();
    // The peak begins anew at what is there now.
    std::fs::write("/proc/self/clear_refs", "5").unwrap();
    let before = memory("VmRSS");
    let leaf = x.clone();
    for layer in &layers {
        x = if keep_dense { x.matmul(layer.dense(FloatDType::F32).transpose()) } else { layer.forward(x) };
    }
    let gradients = x.sum().backward();
    assert!(values(leaf.grad(&gradients).unwrap()).iter().all(|number| number.is_finite()));
    println!("peak {}", memory("VmHWM").saturating_sub(before));
}

fn memory(field: &str) -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(field)).unwrap();
    1024 * line.trim_matches(|c: char| !c.is_ascii_digit()).parse::<usize>().unwrap()
}

/// `cargo test --workspace --lib quantised::tests::speed -- --ignored --nocapture`
#[test]
#[ignore = "a measurement"]
fn speed() {
    use std::time::Instant;
    let best = |repeats: usize, run: &dyn Fn()| {
        (0..repeats)
            .map(|_| {
                let start = Instant::now();
                run();
                start.elapsed().as_secs_f64()
            })
            .fold(f64::INFINITY, f64::min)
    };
    for [rows, columns] in [[896, 896], [4864, 896], [896, 4864], [2048, 2048]] {
        let weights = normal(rows * columns, 1);
        let weight = tensor(&weights, columns);
        for bits in WIDTHS {
            let start = Instant::now();
            let quantised = Quantised::of(weight.clone(), bits);
            let encoding = start.elapsed().as_secs_f64();
            let direct = best(9, &|| drop(quantised.dense(FloatDType::F32)));
            let tensor_operations = best(3, &|| drop(by_tensor_operations(&quantised, FloatDType::F32)));
            let megabytes = (4 * rows * columns) as f64 / 1e6;
            print!(
                "[{rows}, {columns}] {bits:?}: encode {:.1} ns a weight, dense {:.2} ms ({:.0} MB/s), by tensors {:.1} ms;",
                encoding * 1e9 / (rows * columns) as f64,
                direct * 1e3,
                megabytes / direct,
                tensor_operations * 1e3
            );
            for tokens in [1, 8, 64, 512, 2048] {
                let x = Tensor::<2>::ones([tokens, columns], &Device::flex());
                let dense = quantised.dense(FloatDType::F32);
                let plain = best(5, &|| drop(x.clone().matmul(dense.clone().transpose())));
                let packed = best(5, &|| drop(quantised.forward(x.clone())));
                print!(" {tokens} rows {:.2} ms, dense {:.2};", packed * 1e3, plain * 1e3);
            }
            println!();
        }
    }
}
