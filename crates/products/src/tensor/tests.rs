use burn::tensor::Distribution;

use super::*;

/// f32 sums in another order, relative to the largest number.
const SUM_ORDER: f32 = 1e-5;
/// bf16 keeps 8 significant bits.
const BF16: f32 = 1.0 / 128.0;

fn random<const D: usize>(shape: [usize; D]) -> Tensor<D> {
    Tensor::random(shape, Distribution::Uniform(-1.0, 1.0), &Device::flex())
}

fn values<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.cast(FloatDType::F32).try_into_vec_as::<f32>().expect("f32 numbers")
}

fn assert_near(found: &[f32], expected: &[f32], bound: f32, what: &str) {
    assert_eq!(found.len(), expected.len());
    let largest = expected.iter().fold(1.0f32, |largest, x| largest.max(x.abs()));
    for (found, expected) in found.iter().zip(expected) {
        assert!((found - expected).abs() <= bound * largest, "{what}: {found} for {expected}");
    }
}

/// Small ones are Burn's; the others go through matrix units where there are any.
const SHAPES: [[usize; 3]; 5] = [[1, 8, 5], [3, 200, 300], [40, 130, 129], [16, 16, 1024], [300, 257, 70]];

#[test]
fn products_and_gradients_are_burns() {
    for [m, k, n] in SHAPES {
        for transposed in [false, true] {
            let (a, weights) = (random([m, k]), random([m, n]));
            let b = if transposed { random([n, k]) } else { random([k, n]) };
            let found = |product: fn(Tensor<2>, Tensor<2>) -> Tensor<2>| {
                let [a, b] = [&a, &b].map(|leaf| leaf.clone().autodiff().require_grad());
                let right = if transposed { b.clone().transpose() } else { b.clone() };
                let output = product(a.clone(), right);
                let gradients = (output.clone() * weights.clone().autodiff()).sum().backward();
                let of = |leaf: &Tensor<2>| values(leaf.grad(&gradients).expect("a gradient"));
                [values(output.inner()), of(&a), of(&b)]
            };
            let (found, expected) = (found(matmul), found(Tensor::matmul));
            for (found, expected) in found.iter().zip(&expected) {
                assert_near(found, expected, SUM_ORDER * 10.0, &format!("{m} {k} {n} {transposed}"));
            }
            let right = if transposed { b.clone().transpose() } else { b.clone() };
            let sum = add_matmul(weights.clone(), a.clone(), right.clone());
            let expected = values(weights + a.matmul(right));
            assert_near(&values(sum), &expected, SUM_ORDER * 10.0, "a sum");
        }
    }
}

#[test]
fn products_of_halves_are_f32_sums_and_rounded_once() {
    for [m, k, n] in SHAPES {
        let [a, b] = [random([m, k]), random([n, k])].map(|matrix| matrix.cast(FloatDType::BF16));
        let exact = |matrix: &Tensor<2>| matrix.clone().cast(FloatDType::F32);
        let expected = values(exact(&a).matmul(exact(&b).transpose()));
        let wide = wide_matmul(a.clone(), b.clone().transpose());
        assert_eq!(wide.dtype(), DType::F32);
        assert_near(&values(wide), &expected, SUM_ORDER, "in f32");
        let narrow = matmul(a, b.transpose());
        assert_eq!(narrow.dtype(), DType::BF16);
        assert_near(&values(narrow), &expected, BF16, "in bf16");
    }
}

#[test]
fn attention_has_the_gradients_of_its_parts() {
    let device = Device::flex();
    if !attends(&device) {
        return;
    }
    let [batch, tokens, heads, groups, width] = [2, 37, 2, 3, 24];
    let query = random([batch, tokens, heads * groups, width]);
    let [key, value] = [(); 2].map(|()| random([batch, tokens, heads, 1, width]));
    let weights = random([batch, tokens, heads * groups, width]);
    let hidden = |cell: usize| if cell % tokens > cell / tokens { f32::NEG_INFINITY } else { 0.0 };
    let mask: Vec<f32> = (0..tokens * tokens).map(hidden).collect();
    let mask = Tensor::<5>::from_data(TensorData::new(mask, [1, 1, 1, tokens, tokens]), &device);
    let plain = |query: Tensor<4>, key: Tensor<5>, value: Tensor<5>| {
        let query = query.reshape([batch, tokens, heads, groups, width]).permute([0, 2, 3, 1, 4]);
        let scores = query.matmul(key.permute([0, 2, 3, 4, 1])) + mask.clone().autodiff();
        let mixed = burn::tensor::activation::softmax(scores, 4).matmul(value.permute([0, 2, 3, 1, 4]));
        mixed.permute([0, 3, 1, 2, 4]).reshape([batch, tokens, heads * groups, width])
    };
    let whole = |query: Tensor<4>, key: Tensor<5>, value: Tensor<5>| {
        attend(query, key, value, Visible::new(0, vec![vec![0; tokens]]))
    };
    let found = |of: &dyn Fn(Tensor<4>, Tensor<5>, Tensor<5>) -> Tensor<4>| {
        let query = query.clone().autodiff().require_grad();
        let [key, value] = [&key, &value].map(|leaf| leaf.clone().autodiff().require_grad());
        let output = of(query.clone(), key.clone(), value.clone());
        let gradients = (output.clone() * weights.clone().autodiff()).sum().backward();
        let of_leaf = |leaf: &Tensor<5>| values(leaf.grad(&gradients).expect("a gradient"));
        let of_query = values(query.grad(&gradients).expect("a gradient"));
        [values(output.inner()), of_query, of_leaf(&key), of_leaf(&value)]
    };
    for (found, expected) in found(&whole).iter().zip(&found(&plain)) {
        assert_near(found, expected, SUM_ORDER, "attention");
    }
}
