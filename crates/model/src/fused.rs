//! Operations whose gradient is computed from their inputs alone, so that a graph keeps no more than those.
//!
//! Autodiff by itself keeps the probabilities of all tiles of attention, four times the inside of a feed-forward part, and each
//! dropout mask in 32-bit floats with what it leaves: more than everything else of a layer together.
//!
//! Legend: B batch, K key heads, G query heads for each of them, T queries of a tile, S keys, E head width, N rows, I inputs, R rank.

mod kernels;
mod passes;
mod rows;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::ops::FloatTensorOps;
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend, Dispatch, Flex, TensorMetadata, backend_extension};
use burn::tensor::{DType, Shape, Tensor, TensorData};

use kernels::Kernels;
pub(crate) use rows::{rms_norm, turned};

/// What is dropped, a bit each, and what the rest is multiplied by.
#[derive(Debug, Clone)]
pub(crate) struct DropoutMask {
    /// Of 8 neighbours the first has the lowest bit; 1 is kept.
    pub(crate) kept: Arc<[u8]>,
    pub(crate) factor: f32,
}

/// `softmax(query · key + mask) · value`, the softmax in f32.
///
/// # Shapes
/// `query`: `[B, K, G, T, E]`; `key`: `[B, K, 1, E, S]`; `value`: `[B, K, 1, S, E]`; `mask`: `[B or 1, 1, 1, T, S]`, f32, untracked;
/// the result: `[B, K, G, T, E]`.
pub(crate) fn attend(query: Tensor<5>, key: Tensor<5>, value: Tensor<5>, mask: Tensor<5>) -> Tensor<5> {
    let [query, key, value, mask] = [query, key, value, mask].map(Tensor::into_dispatch);
    Tensor::from_dispatch(Dispatch::attend(query, key, value, mask))
}

/// `silu(gate) · up`.
///
/// # Shapes
/// The same of all three.
pub(crate) fn gated(gate: Tensor<2>, up: Tensor<2>) -> Tensor<2> {
    Tensor::from_dispatch(Dispatch::gated(gate.into_dispatch(), up.into_dispatch()))
}

/// `dropout(x) · Aᵀ`.
///
/// # Shapes
/// `x`: `[N, I]`, f32; `a`: `[R, I]`; the result: `[N, R]`.
pub(crate) fn dropped_product(x: Tensor<2>, a: Tensor<2>, mask: DropoutMask) -> Tensor<2> {
    Tensor::from_dispatch(Dispatch::dropped_product(x.into_dispatch(), a.into_dispatch(), mask))
}

#[backend_extension(Flex, Cube: cfg(feature = "cube"), Autodiff)]
trait FusedOps: Backend {
    fn attend(
        query: FloatTensor<Self>,
        key: FloatTensor<Self>,
        value: FloatTensor<Self>,
        mask: FloatTensor<Self>,
    ) -> FloatTensor<Self>;

    fn gated(gate: FloatTensor<Self>, up: FloatTensor<Self>) -> FloatTensor<Self>;

    fn dropped_product(x: FloatTensor<Self>, a: FloatTensor<Self>, mask: DropoutMask) -> FloatTensor<Self>;
}

macro_rules! by_kernels {
    ($backend:ty) => {
        impl FusedOps for $backend {
            fn attend(
                query: FloatTensor<Self>,
                key: FloatTensor<Self>,
                value: FloatTensor<Self>,
                mask: FloatTensor<Self>,
            ) -> FloatTensor<Self> {
                let dtype = query.dtype();
                let probabilities = probabilities::<Self>(query, key, mask);
                Self::float_matmul(cast::<Self>(probabilities, dtype), value)
            }

            fn gated(gate: FloatTensor<Self>, up: FloatTensor<Self>) -> FloatTensor<Self> {
                <Self as Kernels>::gated(gate, up)
            }

            fn dropped_product(
                x: FloatTensor<Self>,
                a: FloatTensor<Self>,
                mask: DropoutMask,
            ) -> FloatTensor<Self> {
                Self::float_matmul(Self::dropped(x, &mask), Self::float_transpose(a))
            }
        }
    };
}

by_kernels!(Flex);
#[cfg(feature = "cube")]
by_kernels!(burn::backend::Cube);

impl<B: FusedOps + Kernels, C: CheckpointStrategy> FusedOps for Autodiff<B, C> {
    fn attend(
        query: FloatTensor<Self>,
        key: FloatTensor<Self>,
        value: FloatTensor<Self>,
        mask: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        let mask = mask.into_primitive();
        let ((query, of_query), (key, of_key)) = (query.into_parts(), key.into_parts());
        let (value, of_value) = value.into_parts();
        match Attend.prepare::<C>([of_query, of_key, of_value]).compute_bound().stateful() {
            OpsKind::Tracked(prepared) => {
                let state = [query.clone(), key.clone(), value.clone(), mask.clone()];
                prepared.finish(state, B::attend(query, key, value, mask))
            }
            OpsKind::UnTracked(prepared) => prepared.finish(B::attend(query, key, value, mask)),
        }
    }

    fn gated(gate: FloatTensor<Self>, up: FloatTensor<Self>) -> FloatTensor<Self> {
        let ((gate, of_gate), (up, of_up)) = (gate.into_parts(), up.into_parts());
        match Gated.prepare::<C>([of_gate, of_up]).compute_bound().stateful() {
            OpsKind::Tracked(prepared) => {
                prepared.finish([gate.clone(), up.clone()], <B as Kernels>::gated(gate, up))
            }
            OpsKind::UnTracked(prepared) => prepared.finish(<B as Kernels>::gated(gate, up)),
        }
    }

    fn dropped_product(x: FloatTensor<Self>, a: FloatTensor<Self>, mask: DropoutMask) -> FloatTensor<Self> {
        let ((x, of_x), (a, of_a)) = (x.into_parts(), a.into_parts());
        match DroppedProduct.prepare::<C>([of_x, of_a]).compute_bound().stateful() {
            OpsKind::Tracked(prepared) => {
                let state = (x.clone(), a.clone(), mask.clone());
                prepared.finish(state, B::dropped_product(x, a, mask))
            }
            OpsKind::UnTracked(prepared) => prepared.finish(B::dropped_product(x, a, mask)),
        }
    }
}

fn cast<B: Backend>(x: FloatTensor<B>, dtype: DType) -> FloatTensor<B> {
    if x.dtype() == dtype { x } else { B::float_cast(x, dtype.into()) }
}

/// `[B, K, G, T, S]`, f32.
fn probabilities<B: Kernels>(
    query: FloatTensor<B>,
    key: FloatTensor<B>,
    mask: FloatTensor<B>,
) -> FloatTensor<B> {
    B::masked_softmax(cast::<B>(B::float_matmul(query, key), DType::F32), mask)
}

/// The sum over the query heads of a key head, `[B, K, 1, ..]`.
fn over_groups<B: Backend>(x: FloatTensor<B>) -> FloatTensor<B> {
    if x.shape()[2] == 1 { x } else { B::float_sum_dim(x, 2) }
}

/// Computes the probabilities of a tile again.
#[derive(Debug)]
struct Attend;

impl<B: Kernels> Backward<B, 3> for Attend {
    /// Query, key, value, mask.
    type State = [FloatTensor<B>; 4];

    fn backward(self, ops: Ops<Self::State, 3>, gradients: &mut Gradients, _: &mut Checkpointer) {
        let d_output = gradients.consume::<B>(&ops.node);
        let ([of_query, of_key, of_value], [query, key, value, mask]) = (ops.parents, ops.state);
        let dtype = query.dtype();
        let probabilities = probabilities::<B>(query.clone(), key.clone(), mask);
        if let Some(parent) = of_value {
            let transposed = B::float_transpose(cast::<B>(probabilities.clone(), dtype));
            let d_value = B::float_matmul(transposed, d_output.clone());
            gradients.register::<B>(parent.id, over_groups::<B>(d_value));
        }
        if of_query.is_none() && of_key.is_none() {
            return;
        }
        let d_probabilities = cast::<B>(B::float_matmul(d_output, B::float_transpose(value)), DType::F32);
        let d_scores = cast::<B>(B::softmax_gradient(probabilities, d_probabilities), dtype);
        if let Some(parent) = of_key {
            let d_key = B::float_matmul(B::float_transpose(query), d_scores.clone());
            gradients.register::<B>(parent.id, over_groups::<B>(d_key));
        }
        if let Some(parent) = of_query {
            gradients.register::<B>(parent.id, B::float_matmul(d_scores, B::float_transpose(key)));
        }
    }
}

#[derive(Debug)]
struct Gated;

impl<B: Kernels> Backward<B, 2> for Gated {
    /// Gate and up.
    type State = [FloatTensor<B>; 2];

    fn backward(self, ops: Ops<Self::State, 2>, gradients: &mut Gradients, _: &mut Checkpointer) {
        let d_output = gradients.consume::<B>(&ops.node);
        let [gate, up] = ops.state;
        let found = B::gated_gradient(gate, up, d_output);
        for (parent, gradient) in ops.parents.into_iter().zip(found) {
            if let Some(parent) = parent {
                gradients.register::<B>(parent.id, gradient);
            }
        }
    }
}

#[derive(Debug)]
struct DroppedProduct;

impl<B: Kernels> Backward<B, 2> for DroppedProduct {
    type State = (FloatTensor<B>, FloatTensor<B>, DropoutMask);

    fn backward(self, ops: Ops<Self::State, 2>, gradients: &mut Gradients, _: &mut Checkpointer) {
        let d_output = gradients.consume::<B>(&ops.node);
        let ([of_x, of_a], (x, a, mask)) = (ops.parents, ops.state);
        if let Some(parent) = of_x {
            let d_x = B::float_matmul(d_output.clone(), a);
            gradients.register::<B>(parent.id, B::dropped(d_x, &mask));
        }
        if let Some(parent) = of_a {
            let dropped = B::dropped(x, &mask);
            gradients.register::<B>(parent.id, B::float_matmul(B::float_transpose(d_output), dropped));
        }
    }
}

/// `[1, 1, 1, 1, 1]`: the mask of a tile where each query sees all keys.
pub(crate) fn nothing_hidden(like: &Tensor<5>) -> Tensor<5> {
    let device = like.device().without_autodiff();
    Tensor::from_data(TensorData::new(vec![0.0f32], Shape::from([1; 5])), &device)
}
