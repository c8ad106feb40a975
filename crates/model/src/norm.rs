//! Normalisations of the rows of a matrix, computed in 32-bit floats.
//!
//! Legend: N rows, D width.

use burn::tensor::{DType, Tensor};
use softshard_products::on_host;

use crate::fused;
use crate::precision::cast;

/// A root-mean-square norm (arXiv 1910.07467, equation 4), or with a bias a layer norm (arXiv 1607.06450, equation 4).
#[derive(Debug, Clone)]
pub struct Norm {
    /// `[1, D]`, f32.
    pub(crate) weight: Tensor<2>,
    /// `[1, D]`, f32: makes it a layer norm, which also takes the mean off.
    pub(crate) bias: Option<Tensor<2>>,
    pub(crate) epsilon: f64,
}

impl Norm {
    /// The normalised rows.
    ///
    /// # Shapes
    /// `x` and the result: `[N, D]`, the result of the type of `x`.
    pub fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        let dtype = x.dtype();
        let x = cast(x, DType::F32);
        let Some(bias) = &self.bias else {
            if on_host(&x.device()) {
                return cast(fused::rms_norm(x, self.weight.clone(), self.epsilon), dtype);
            }
            let mean_square = x.clone().square().mean_dim(1);
            let normed = x * (mean_square + self.epsilon).sqrt().recip();
            return cast(normed * self.weight.clone(), dtype);
        };
        let centred = x.clone() - x.mean_dim(1);
        let variance = centred.clone().square().mean_dim(1);
        let normed = centred * (variance + self.epsilon).sqrt().recip();
        cast(normed * self.weight.clone() + bias.clone(), dtype)
    }
}
