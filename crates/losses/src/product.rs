//! Hidden states times the head, and gradients of logits back through it.
//!
//! Legend: N rows, D model width, V vocabulary.
//!
//! Logits are f32 whatever the weights are. A product of two bf16 numbers has 16 significant bits, so f32 holds it exactly; a logit that
//! is rounded to the 8 bits of bf16 is one of 32 values between 16 and 32, and the most probable tokens become equal ones.

use burn::tensor::{DType, FloatDType, Tensor};
use softshard_products::{few_rows_matmul, matmul, on_host, wide_matmul};

/// Rows that are few.
const FEW_ROWS: usize = 64;

/// `hidden · headᵀ`, accumulated and kept in f32 (in f64, of f64 tensors).
///
/// CubeCL's devices multiply halves into f32. Elsewhere some rows of the head at a time become f32, never all of them. Memory: the logits, and
/// [`WIDE_BYTES`](softshard_products::WIDE_BYTES). No gradient goes through it.
///
/// # Shapes
/// `hidden` `[N, D]`, `head` `[V, D]`; the result `[N, V]`.
///
/// # Panics
/// If the shapes disagree.
pub fn logits(hidden: Tensor<2>, head: &Tensor<2>) -> Tensor<2> {
    let (hidden, head) = (hidden.inner(), head.clone().inner());
    if is_wide(&head) {
        return matmul(hidden, head.transpose());
    }
    #[cfg(feature = "cube")]
    if crate::cube::runs_on(&head.device()) {
        return crate::cube::wide_product(hidden, head.transpose());
    }
    wide_matmul(hidden, head.transpose())
}

/// [`logits`] of the next tokens of answers. On the host a row has the same bits whatever few rows stand beside it, and the head is
/// read once. No gradient goes through it.
///
/// # Shapes
/// As [`logits`].
///
/// # Panics
/// As there.
pub fn next_logits(hidden: Tensor<2>, head: &Tensor<2>) -> Tensor<2> {
    if hidden.dims()[0] > FEW_ROWS || !on_host(&head.device()) || head.dtype() == DType::F64 {
        return logits(hidden, head);
    }
    few_rows_matmul(hidden, head.clone())
}

/// `d_logits · head`: the gradient by the hidden states, in their type. Sums are f32 whatever the head is.
///
/// # Shapes
/// `d_logits` `[N, V]`, `head` `[V, D]`; the result `[N, D]`.
pub(crate) fn pull_back(d_logits: Tensor<2>, head: &Tensor<2>, hidden: DType) -> Tensor<2> {
    if is_wide(head) || sums_in_f32(head) {
        return matmul(d_logits.cast(FloatDType::from(head.dtype())), head.clone());
    }
    wide_matmul(d_logits, head.clone()).cast(FloatDType::from(hidden))
}

/// Whether logits may be what the tensor is.
fn is_wide(tensor: &Tensor<2>) -> bool {
    matches!(tensor.dtype(), DType::F32 | DType::F64)
}

/// Whether a product of halves has f32 sums, and no copy of them in f32.
fn sums_in_f32(head: &Tensor<2>) -> bool {
    #[cfg(feature = "cube")]
    {
        crate::cube::runs_on(&head.device())
    }
    #[cfg(not(feature = "cube"))]
    {
        let _ = head;
        false
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::{Device, TensorData};

    use super::*;

    /// f32 sums of products in any order, relative to the sum of their sizes: eight roundings.
    const ROUNDING: f64 = 5e-7;

    fn halves(count: usize, factor: f64, dtype: DType, shape: [usize; 2]) -> Tensor<2> {
        let numbers: Vec<f32> = (0..count).map(|i| ((i as f64 * factor).sin() * 2.0) as f32).collect();
        Tensor::from_data(TensorData::new(numbers, shape).convert_dtype(dtype), (&Device::flex(), dtype))
    }

    fn f64s(tensor: Tensor<2>) -> Vec<f64> {
        tensor.into_data().convert::<f64>().try_to_vec().unwrap()
    }

    /// `a · bᵀ` in f64: each number, and the sum of the sizes of its products.
    fn exact(a: &[f64], b: &[f64], width: usize) -> Vec<(f64, f64)> {
        let row = |a: &[f64]| -> Vec<(f64, f64)> {
            let sums = |b: &[f64]| {
                let products = a.iter().zip(b).map(|(x, y)| x * y);
                products.fold((0.0, 0.0), |(sum, size), product| (sum + product, size + product.abs()))
            };
            b.chunks(width).map(sums).collect()
        };
        a.chunks(width).flat_map(row).collect()
    }

    fn assert_close(found: &[f64], expected: &[(f64, f64)], bound: f64) {
        assert_eq!(found.len(), expected.len());
        for (found, (expected, size)) in found.iter().zip(expected) {
            assert!((found - expected).abs() <= bound * size, "{found} and {expected}");
        }
    }

    /// With a width of two million two rows of the head are f32 at a time.
    #[test]
    fn logits_of_halves_are_exact_sums() {
        for (rows, width, vocabulary) in [(5, 96, 301), (2, 1 << 21, 5)] {
            for dtype in [DType::BF16, DType::F16, DType::F32] {
                let hidden = halves(rows * width, 1.7, dtype, [rows, width]);
                let head = halves(vocabulary * width, 0.9, dtype, [vocabulary, width]);
                let found = logits(hidden.clone(), &head);
                assert_eq!((found.dtype(), found.dims()), (DType::F32, [rows, vocabulary]));
                let expected = exact(&f64s(hidden), &f64s(head), width);
                assert_close(&f64s(found), &expected, ROUNDING);
            }
        }
    }

    #[test]
    fn next_logits_are_logits() {
        for (rows, dtype) in
            [(1, DType::F32), (7, DType::BF16), (64, DType::F32), (65, DType::F32), (3, DType::F64)]
        {
            let hidden = halves(rows * 40, 1.7, dtype, [rows, 40]);
            let head = halves(301 * 40, 0.9, dtype, [301, 40]);
            let (found, other) = (next_logits(hidden.clone(), &head), logits(hidden.clone(), &head));
            assert_eq!((found.dtype(), found.dims()), (other.dtype(), other.dims()));
            let expected = exact(&f64s(hidden), &f64s(head), 40);
            assert_close(&f64s(found), &expected, ROUNDING);
            assert_close(&f64s(other), &expected, ROUNDING);
        }
    }

    #[test]
    fn gradients_are_rounded_once() {
        let (rows, width, vocabulary) = (3, 40, 301);
        let d_logits = halves(rows * vocabulary, 0.3, DType::F32, [rows, vocabulary]);
        let head = halves(vocabulary * width, 0.9, DType::BF16, [vocabulary, width]);
        let expected = exact(&f64s(d_logits.clone()), &f64s(head.clone().transpose()), vocabulary);
        for (hidden, bound) in [(DType::BF16, 1.0 / 256.0), (DType::F32, ROUNDING)] {
            let found = pull_back(d_logits.clone(), &head, hidden);
            assert_eq!(found.dtype(), hidden);
            assert_close(&f64s(found), &expected, bound);
        }
    }
}
