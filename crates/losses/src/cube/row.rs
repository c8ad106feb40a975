//! A row of logits, as kernels see it.

use cubecl::{cube, prelude::*};

/// A row, seen by one of its units.
#[derive(CubeType, Clone, Copy)]
pub(super) struct Row {
    /// Where it begins, in vectors.
    pub(super) base: usize,
    /// Its length in vectors.
    pub(super) vectors: usize,
    /// The unit.
    pub(super) unit: usize,
    /// Of the logits.
    pub(super) scale: f32,
}

/// Neither NaN nor infinite. By its bits: compilers of shaders may take it for granted.
#[cube]
pub(super) fn is_finite(logit: f32) -> bool {
    (u32::reinterpret(logit) & 0x7f80_0000u32) != 0x7f80_0000u32
}

/// The logit of any token, scaled.
#[cube]
pub(super) fn logit_at<F: Float, N: Size>(logits: &Tensor<Vector<F, N>>, row: &Row, id: usize) -> f32 {
    let lanes = logits.vector_size();
    f32::cast_from(logits[row.base + id / lanes].extract_dynamic(id % lanes)) * row.scale
}
