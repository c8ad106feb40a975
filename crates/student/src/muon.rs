//! Muon: momentum whose matrix is made orthogonal before each step (Keller Jordan, kellerjordan.github.io/posts/muon).
//!
//! Burn has one too, whose state is keyed by identifiers of modules that we have not
//! (docs/decisions/0002-plain-tensors.md); this is the same sum, in f32 where PyTorch rounds to bf16.

use burn::tensor::Tensor;

const MOMENTUM: f64 = 0.95;
/// The quintic of the iteration.
const COEFFICIENTS: [f64; 3] = [3.4445, -4.7750, 2.0315];
const ITERATIONS: usize = 5;
const EPSILON: f64 = 1e-7;

/// The new momentum, and the step along it for a learning rate of one.
///
/// `m ← 0.95 m + 0.05 g`, then the Nesterov mixture `0.05 g + 0.95 m` is made orthogonal and scaled by
/// `0.2 · √(longer side)`, so that learning rates and weight decay of AdamW fit (Moonlight, arXiv 2502.16982, section 2.2).
///
/// # Shapes
/// All `[O, I]`.
pub(crate) fn direction(momentum: Tensor<2>, gradient: Tensor<2>) -> (Tensor<2>, Tensor<2>) {
    let momentum = momentum * MOMENTUM + gradient.clone() * (1.0 - MOMENTUM);
    let mixture = gradient * (1.0 - MOMENTUM) + momentum.clone() * MOMENTUM;
    let [rows, columns] = mixture.dims();
    #[expect(clippy::cast_precision_loss, reason = "a side of a matrix is far below 2^53")]
    let scale = 0.2 * (rows.max(columns) as f64).sqrt();
    (momentum, orthogonal(mixture) * scale)
}

/// `U S' Vᵀ` of `matrix = U S Vᵀ`, with singular values S' about one: Newton-Schulz iterations.
///
/// # Shapes
/// `[O, I]` both.
fn orthogonal(matrix: Tensor<2>) -> Tensor<2> {
    let [rows, columns] = matrix.dims();
    let tall = rows > columns;
    let [a, b, c] = COEFFICIENTS;
    let mut x = if tall { matrix.transpose() } else { matrix };
    let norm = x.clone().square().sum().sqrt().clamp_min(EPSILON).reshape([1, 1]);
    x = x / norm;
    for _ in 0..ITERATIONS {
        let gram = x.clone().matmul(x.clone().transpose());
        let update = gram.clone() * b + gram.clone().matmul(gram) * c;
        x = x.clone() * a + update.matmul(x);
    }
    if tall { x.transpose() } else { x }
}

#[cfg(test)]
mod tests {
    use burn::tensor::{Device, TensorData};
    use rand::{Rng, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::*;

    fn matrix(rows: usize, columns: usize) -> Tensor<2> {
        let mut random = ChaCha8Rng::seed_from_u64(1);
        let values: Vec<f32> = (0..rows * columns).map(|_| random.random_range(-1.0..1.0)).collect();
        Tensor::from_data(TensorData::new(values, [rows, columns]), &Device::flex())
    }

    fn values(tensor: &Tensor<2>) -> Vec<f32> {
        tensor.to_data().try_into_vec::<f32>().expect("f32 values")
    }

    /// The iteration leaves singular values between 0.7 and 1.2, so x xᵀ has them squared on average.
    #[test]
    fn rows_become_nearly_orthogonal_on_either_side() {
        for (rows, columns) in [(4, 32), (32, 4)] {
            let x = orthogonal(matrix(rows, columns));
            let short = if rows < columns {
                x.clone().matmul(x.transpose())
            } else {
                x.clone().transpose().matmul(x)
            };
            for (index, value) in values(&short).into_iter().enumerate() {
                let (on, off) = (0.4..1.5, -0.3..0.3);
                let expected = if index % 5 == 0 { on } else { off };
                assert!(expected.contains(&value), "{rows}x{columns} [{index}]: {value}");
            }
        }
    }

    #[test]
    fn a_gradient_of_nothing_is_no_step() {
        let zeros = matrix(3, 5) * 0.0;
        let (_, step) = direction(zeros.clone(), zeros);
        assert!(values(&step).iter().all(|&value| value == 0.0));
    }
}
