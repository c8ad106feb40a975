//! Halves multiplied into f32.

use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, Dispatch, backend_extension};
use burn::tensor::{DType, Tensor};
use burn_cubecl::CubeBackend;
use burn_cubecl::kernel::matmul::{MatmulStrategy, matmul};

/// `a · b` in f32, of halves: their kernels sum in f32 anyhow, and round where they write.
///
/// # Shapes
/// `a` `[N, D]`, `b` `[D, V]`; the result `[N, V]`.
pub(crate) fn wide_product(a: Tensor<2>, b: Tensor<2>) -> Tensor<2> {
    Tensor::from_dispatch(Dispatch::wide_product(a.into_dispatch(), b.into_dispatch()))
}

#[backend_extension(Cube, Fusion: cfg(feature = "fusion"))]
pub(crate) trait WideProduct: Backend {
    #[fusion(meta = |a: &burn::backend::fusion::custom::TensorSpec, b: &burn::backend::fusion::custom::TensorSpec| {
        burn::backend::fusion::custom::TensorSpec::new([a.shape[0], b.shape[1]].into(), DType::F32)
    })]
    fn wide_product(a: FloatTensor<Self>, b: FloatTensor<Self>) -> FloatTensor<Self>;
}

impl WideProduct for CubeBackend {
    fn wide_product(a: FloatTensor<Self>, b: FloatTensor<Self>) -> FloatTensor<Self> {
        matmul(a, b, None, MatmulStrategy::default(), DType::F32).expect("a product of two matrices")
    }
}
