//! Matrix products of tensors, and attention.
//!
//! [`matmul`] is `Tensor::matmul` of two matrices, with its gradients. On GPUs, and on most CPUs, it is
//! Burn's. On an x86-64 CPU with matrix units (AMX, Intel's servers since 2023) products of some size are
//! computed in those: they multiply bf16 numbers and add in f32, sixteen times as many a cycle as AVX-512
//! does in f32. A f32 number is the exact sum of three bf16 numbers; six of the nine products of two such
//! sums are computed, and what is left out is below 2^-23 of one, about the rounding of a f32
//! product (docs/decisions/0016-matrix-units.md). [`attend`] does the same for attention. [`few_rows_matmul`] is for the next tokens of answers. Results do not depend on
//! the number of threads. [`given`] hangs a gradient on a graph that was found without one.
//!
//! ```
//! use burn::tensor::{Device, Tensor};
//!
//! let a = Tensor::<2>::from_data([[1.0, 2.0], [3.0, 4.0]], &Device::flex());
//! let b = Tensor::<2>::from_data([[1.0, 0.0], [1.0, 1.0]], &Device::flex());
//! let product = softshard_products::matmul(a, b.transpose());
//! assert_eq!(product.try_into_vec_as::<f32>().unwrap(), [1.0, 3.0, 3.0, 7.0]);
//! ```

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod amx;
#[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
mod amx {
    //! There are none.

    use crate::attention::{Gradients, Heads, Visible};
    use crate::matrix::Matrix;

    pub(crate) fn are_there() -> bool {
        false
    }

    pub(crate) fn product(_: &Matrix<'_>, _: &Matrix<'_>) -> Vec<f32> {
        unreachable!("asked for where there are no matrix units")
    }

    pub(crate) fn add_product(_: &mut [f32], _: &Matrix<'_>, _: &Matrix<'_>) {
        unreachable!("asked for where there are no matrix units")
    }

    pub(crate) fn attend(_: &Heads<'_>, _: &Heads<'_>, _: &Heads<'_>, _: &Visible) -> Vec<f32> {
        unreachable!("asked for where there are no matrix units")
    }

    pub(crate) fn attend_backward(_: [&Heads<'_>; 4], _: &Visible) -> Gradients {
        unreachable!("asked for where there are no matrix units")
    }
}
mod attention;
mod exponential;
mod few_rows;
mod given;
mod matrix;
mod tensor;
mod vectors;
mod widened;

pub use attention::Visible;
pub use exponential::exp_non_positive;
pub use given::given;
pub use tensor::{ProductOps, add_matmul, attend, attends, few_rows_matmul, matmul, on_host, wide_matmul};
pub use vectors::widest;
pub use widened::WIDE_BYTES;

/// Whether products of some size are computed in the CPU's matrix units: it has them, the system lets this
/// process use them, and `SOFTSHARD_AMX=off` is not in the environment.
pub fn uses_matrix_units() -> bool {
    amx::are_there()
}
