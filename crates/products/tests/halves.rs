//! Products of f32 numbers with bf16 ones, which become f32 on the way: those of the same numbers in f32.

use burn::tensor::{DType, Device, Distribution, FloatDType, Tensor};
use softshard_products::matmul;

/// f32 sums in another order, relative to the largest number.
const SUM_ORDER: f32 = 1e-5;
/// Rows, what is summed over, and columns: a part of a matrix has a million numbers.
const SHAPES: [[usize; 3]; 9] = [
    [1, 8, 5],
    [1, 3000, 1],
    [3, 200, 300],
    [7, 1500, 90],
    [9, 70, 70_001],
    [40, 130, 129],
    [16, 16, 1024],
    [300, 257, 70],
    [2, 1 << 21, 3],
];

fn random<const D: usize>(shape: [usize; D]) -> Tensor<D> {
    Tensor::random(shape, Distribution::Uniform(-1.0, 1.0), &Device::flex())
}

fn values<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.try_into_vec_as::<f32>().expect("f32 numbers")
}

fn assert_near(found: &[f32], expected: &[f32], bound: f32, what: &str) {
    assert_eq!(found.len(), expected.len());
    let largest = expected.iter().fold(1.0f32, |largest, x| largest.max(x.abs()));
    for (found, expected) in found.iter().zip(expected) {
        assert!((found - expected).abs() <= bound * largest, "{what}: {found} for {expected}");
    }
}

/// In one part and in several, with few rows and many, and with columns of either order.
#[test]
fn halves_become_f32_where_they_are_multiplied() {
    for [m, k, n] in SHAPES {
        let (a, b) = (random([m, k]), random([n, k]).cast(FloatDType::BF16));
        let exact = |matrix: &Tensor<2>| matrix.clone().cast(FloatDType::F32);
        let bound = if k > 10_000 { 100.0 * SUM_ORDER } else { SUM_ORDER };
        let by_rows =
            Tensor::<2>::from_data(b.clone().transpose().into_data(), (&Device::flex(), DType::BF16));
        for right in [b.clone().transpose(), by_rows] {
            let expected = values(a.clone().matmul(exact(&right)));
            let found = matmul(a.clone(), right);
            assert_eq!(found.dtype(), DType::F32);
            assert_near(&values(found), &expected, bound, &format!("{m} {k} {n}"));
        }
        let leaf = a.clone().autodiff().require_grad();
        let weights = random([m, n]);
        let product = matmul(leaf.clone(), b.clone().transpose().autodiff());
        let gradients = (product * weights.clone().autodiff()).sum().backward();
        let expected = values(weights.matmul(exact(&b)));
        let found = values(leaf.grad(&gradients).expect("a gradient"));
        assert_near(&found, &expected, bound, &format!("gradient, {m} {k} {n}"));
    }
}

#[test]
fn products_of_halves_do_not_depend_on_threads() {
    for m in [1, 7, 300] {
        let (a, b) = (random([m, 700]), random([900, 700]).cast(FloatDType::BF16));
        let with = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("threads");
            pool.install(|| values(matmul(a.clone(), b.clone().transpose())))
        };
        assert_eq!(with(1), with(3));
    }
}
