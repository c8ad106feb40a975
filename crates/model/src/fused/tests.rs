//! The same values and gradients as autodiff finds over plain tensor operations.

use burn::tensor::{DType, Device, Distribution, Tensor, activation};

use super::*;

/// The same sums in another order.
const SUM_ORDER: f32 = 2e-6;

fn leaf<const D: usize>(shape: [usize; D]) -> Tensor<D> {
    let device = Device::flex().autodiff();
    Tensor::random(shape, Distribution::Normal(0.0, 1.0), &device).require_grad()
}

fn values<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.cast(DType::F32).try_into_vec_as::<f32>().unwrap()
}

/// Gradients of `Σ output · weights` by all leaves, after the output itself.
fn found<const D: usize>(output: Tensor<D>, weights: &Tensor<D>, leaves: &[&Tensor<D>]) -> Vec<Vec<f32>> {
    let mut found = vec![values(output.clone())];
    let gradients = (output * weights.clone()).sum().backward();
    found.extend(leaves.iter().map(|leaf| values(leaf.grad(&gradients).unwrap())));
    found
}

#[track_caller]
fn assert_near(found: &[Vec<f32>], expected: &[Vec<f32>]) {
    for (found, expected) in found.iter().zip(expected) {
        assert_eq!(found.len(), expected.len());
        let largest = expected.iter().fold(0.0f32, |largest, value| largest.max(value.abs()));
        for (found, expected) in found.iter().zip(expected) {
            assert!((found - expected).abs() <= SUM_ORDER * largest.max(1.0), "{found} for {expected}");
        }
    }
}

#[test]
fn attention_of_a_tile() {
    let [batch, heads, groups, queries, seen, width] = [2, 3, 2, 5, 7, 4];
    let query = leaf([batch, heads, groups, queries, width]);
    let (key, value) = (leaf([batch, heads, 1, width, seen]), leaf([batch, heads, 1, seen, width]));
    let weights = leaf([batch, heads, groups, queries, width]).detach();
    for rows in [1, batch] {
        let hidden =
            |cell: usize| if cell % seen > cell / seen % queries + 2 { f32::NEG_INFINITY } else { 0.0 };
        let mask: Vec<f32> = (0..rows * queries * seen).map(hidden).collect();
        let mask = TensorData::new(mask, [rows, 1, 1, queries, seen]);
        let mask = Tensor::<5>::from_data(mask, &Device::flex());
        let leaves = [&query, &key, &value];
        let scores = query.clone().matmul(key.clone()) + mask.clone();
        let expected = found(activation::softmax(scores, 4).matmul(value.clone()), &weights, &leaves);
        let fused = attend(query.clone(), key.clone(), value.clone(), mask);
        assert_near(&found(fused, &weights, &leaves), &expected);
    }
    let all = activation::softmax(query.clone().matmul(key.clone()), 4).matmul(value.clone());
    let nothing = nothing_hidden(&query);
    let leaves = [&query, &key, &value];
    let fused = attend(query.clone(), key.clone(), value.clone(), nothing);
    assert_near(&found(fused, &weights, &leaves), &found(all, &weights, &leaves));
}

#[test]
fn a_gate() {
    // Over several chunks, and far out on both sides.
    let (gate, up, weights) = (leaf([300, 70]), leaf([300, 70]), leaf([300, 70]).detach());
    for scale in [1.0, 100.0] {
        let leaves = [&gate, &up];
        let scaled = || gate.clone() * scale;
        let expected = found(activation::silu(scaled()) * up.clone(), &weights, &leaves);
        assert_near(&found(gated(scaled(), up.clone()), &weights, &leaves), &expected);
    }
}

#[test]
fn dropout_before_a_product() {
    let (x, a, weights) = (leaf([5, 9]), leaf([3, 9]), leaf([5, 3]).detach());
    let kept: Arc<[u8]> = vec![0b1010_0110, 0xFF, 0, 0x3C, 0x81, 0b1_1111].into();
    let factor = 1.25;
    let cells = (0..45).map(|cell| if kept[cell / 8] >> (cell % 8) & 1 == 1 { factor } else { 0.0 });
    let mask = Tensor::<2>::from_data(TensorData::new(cells.collect::<Vec<f32>>(), [5, 9]), &Device::flex());
    let leaves = [&x, &a];
    let mask_of = mask.clone();
    let expected = found((x.clone() * mask).matmul(a.clone().transpose()), &weights, &leaves);
    let fused = dropped_product(x.clone(), a.clone(), DropoutMask { kept: Arc::clone(&kept), factor });
    assert_near(&found(fused, &weights, &leaves), &expected);

    // As other devices do it.
    let x = values(x);
    let tensor = Flex::float_from_data(TensorData::new(x.clone(), [5, 9]), &Default::default());
    let mask = DropoutMask { kept, factor };
    let there = kernels::dropped_there::<Flex>(tensor, &mask);
    let there = there.to_contiguous();
    let found: &[f32] = there.as_slice().unwrap();
    let expected: Vec<f32> = x.iter().zip(values(mask_of)).map(|(x, factor)| x * factor).collect();
    assert_eq!(found, expected);
}
