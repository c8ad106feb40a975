//! The student's losses on a device of CubeCL, against the CPU: every divergence with every tail.

use burn::tensor::{Device, DeviceKind, Tensor, TensorData};
use softshard_losses::{DistillLoss, Divergence, Tail, Targets};

const ROWS: usize = 5;
const WIDTH: usize = 16;
const VOCABULARY: usize = 1000;
/// Of the largest: f32 sums in another order, and other exponentials.
const CLOSE: f32 = 1e-4;

/// Numbers in -1..1 that look random.
fn numbers(seed: u32, count: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(2_654_435_761).max(1);
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state as f32 / u32::MAX as f32 * 2.0 - 1.0
    };
    (0..count).map(|_| next()).collect()
}

/// Entries by falling probability, in one row none.
fn targets() -> Targets {
    let counts = [4, 1, 0, 7, 4];
    let (mut token_ids, mut log_probs, mut tail_log_mass) = (Vec::new(), Vec::new(), Vec::new());
    for (row, &count) in (0..).zip(&counts) {
        let probs = (0..count).map(|rank| 0.5f32.powi(rank + 1));
        token_ids.extend((0..count).map(|rank| (row * 131 + rank * 17) % 1000));
        tail_log_mass.push((1.0 - probs.clone().sum::<f32>()).ln());
        log_probs.extend(probs.map(f32::ln));
    }
    let factors = vec![1.0, 0.5, 0.0, 2.0, 1.0];
    let gold = vec![3, 131, 999, 410, 0];
    Targets {
        counts: counts.to_vec(),
        token_ids,
        log_probs,
        tail_log_mass,
        alpha_factors: factors,
        ..Targets::without_teacher(gold)
    }
}

/// The loss, and the gradient by the hidden states.
fn found(device: &Device, loss: &DistillLoss) -> (f64, Vec<f32>) {
    let tensor = |seed, shape: [usize; 2]| {
        Tensor::<2>::from_data(TensorData::new(numbers(seed, shape[0] * shape[1]), shape), device)
    };
    let hidden = tensor(1, [ROWS, WIDTH]).autodiff().require_grad();
    let value = loss.compute(hidden.clone(), tensor(2, [VOCABULARY, WIDTH]), &targets(), 4.0);
    let gradient = hidden.grad(&value.loss.backward()).expect("a gradient");
    (value.loss_sum, gradient.into_data().try_into_vec::<f32>().expect("f32 values"))
}

#[test]
fn losses_and_gradients_are_those_of_the_cpu() {
    let device = Device::wgpu(DeviceKind::DefaultDevice);
    let divergences = [
        Divergence::ForwardKl,
        Divergence::ReverseKl,
        Divergence::Jsd { beta: 0.3 },
        Divergence::SkewKl { lambda: 0.1 },
        Divergence::Tvd,
    ];
    for divergence in divergences {
        for tail in [Tail::Bucket, Tail::Renormalise, Tail::Drop, Tail::Uniform] {
            for temperature in [1.0, 2.0] {
                let loss = DistillLoss { divergence, tail, temperature, ..DistillLoss::forward_kl(0.7, 2) };
                let (expected, expected_gradient) = found(&Device::flex(), &loss);
                let (value, gradient) = found(&device, &loss);
                let what = format!("{divergence:?} {tail:?} {temperature}");
                assert!((value / expected - 1.0).abs() < f64::from(CLOSE), "{what}: {value} {expected}");
                let largest = expected_gradient.iter().fold(0.0f32, |largest, one| largest.max(one.abs()));
                let pairs = gradient.iter().zip(&expected_gradient);
                let worst = pairs.map(|(found, expected)| (found - expected).abs()).fold(0.0, f32::max);
                assert!(worst <= CLOSE * largest, "{what}: off by {worst} of {largest}");
            }
        }
    }
}
