//! Products and attention of Burn's tensors.
//!
//! Legend: M rows, K what is summed over, N columns; in attention B batch, T queries, S keys, H query heads,
//! K key heads, E head width.

#[cfg(feature = "cube")]
use burn::backend::DispatchDevice;
#[cfg(test)]
mod tests;

use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::ops::FloatTensorOps;
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend, Dispatch, Flex, TensorMetadata, backend_extension};
use burn::tensor::{DType, Device, FloatDType, Tensor, TensorData, bf16};

use crate::amx;
use crate::attention::{Heads, Visible};
use crate::few_rows;
use crate::matrix::{Matrix, Numbers};
use crate::widened;

/// The least size of any side, and of the right-hand matrix, that is worth the way into matrix units.
const LEAST_SIDE: usize = 16;
const LEAST_NUMBERS: usize = 1 << 14;

/// `a · b`. Gradients go to both; the graph keeps only what they need.
///
/// # Shapes
/// `a`: `[M, K]`; `b`: `[K, N]`, of the same type, or on the host halves where `a` is f32; the result: `[M, N]`, of the type of `a`.
pub fn matmul(a: Tensor<2>, b: Tensor<2>) -> Tensor<2> {
    Tensor::from_dispatch(Dispatch::product(a.into_dispatch(), b.into_dispatch()))
}

/// `sum + a · b`, in the memory of `sum` where nobody else has it. No gradient goes through it.
///
/// # Shapes
/// As [`matmul`]; `sum` is that of the result.
pub fn add_matmul(sum: Tensor<2>, a: Tensor<2>, b: Tensor<2>) -> Tensor<2> {
    let [sum, a, b] = [sum, a, b].map(|tensor| tensor.inner().into_dispatch());
    Tensor::from_dispatch(Dispatch::add_product(sum, a, b))
}

/// `a · b` of halves, accumulated and kept in f32; on the host `a` may be f32, and some columns of `b` are
/// f32 at a time at most. No gradient goes through it.
///
/// # Shapes
/// As [`matmul`].
pub fn wide_matmul(a: Tensor<2>, b: Tensor<2>) -> Tensor<2> {
    Tensor::from_dispatch(Dispatch::wide_product(a.inner().into_dispatch(), b.inner().into_dispatch()))
}

/// `x · weightᵀ` of a few rows, in f32 where the weights are halves. On the host a row has the same bits whatever rows stand beside
/// it, and each number of the weights is read once. No gradient goes through it.
///
/// # Shapes
/// `x`: `[N, K]`, f32; `weight`: `[O, K]`; the result: `[N, O]`, f32.
pub fn few_rows_matmul(x: Tensor<2>, weight: Tensor<2>) -> Tensor<2> {
    Tensor::from_dispatch(Dispatch::product_of_few(x.inner().into_dispatch(), weight.inner().into_dispatch()))
}

/// Whether the numbers of tensors of this device are in the memory of this process.
pub fn on_host(device: &Device) -> bool {
    #[cfg(feature = "cube")]
    if matches!(device.clone().without_autodiff().as_dispatch(), DispatchDevice::Cube(_)) {
        return false;
    }
    let _ = device;
    true
}

/// Whether [`attend`] can be asked for there.
pub fn attends(device: &Device) -> bool {
    on_host(device) && amx::are_there()
}

/// `softmax(query · keyᵀ) · value` of each head over the keys that each query sees. Of scores 32 rows are in
/// memory at a time, also in the backward pass, which computes them again.
///
/// # Shapes
/// `query` and the result: `[B, T, H, E]`; `key` and `value`: `[B, S, K, 1, E]`, where K divides H; f32.
///
/// # Panics
/// [`attends`] is false, or shapes disagree.
pub fn attend(query: Tensor<4>, key: Tensor<5>, value: Tensor<5>, visible: Visible) -> Tensor<4> {
    let ([_, queries, heads, _], [_, keys, key_heads, ..]) = (query.dims(), key.dims());
    assert!(heads.is_multiple_of(key_heads) && key.dims() == value.dims(), "query heads for each key head");
    assert!(visible.queries() == queries && visible.all_keys() == keys, "the keys that each query sees");
    let [key, value] = [key, value].map(Tensor::into_dispatch);
    Tensor::from_dispatch(Dispatch::attend(query.into_dispatch(), key, value, visible))
}

/// What a backend does for attention.
#[backend_extension(Flex, Autodiff)]
trait AttentionOps: Backend {
    fn attend(
        query: FloatTensor<Self>,
        key: FloatTensor<Self>,
        value: FloatTensor<Self>,
        visible: Visible,
    ) -> FloatTensor<Self>;
}

/// Its gradients.
trait AttentionGradients: Backend {
    /// By query, key and value.
    fn attend_backward(
        inputs: [FloatTensor<Self>; 3],
        d_output: FloatTensor<Self>,
        visible: Visible,
    ) -> [FloatTensor<Self>; 3];
}

/// What a backend does for products: those of its tensors.
#[backend_extension(Flex, Cube: cfg(feature = "cube"), Autodiff)]
pub trait ProductOps: Backend {
    /// `a · b`, of two matrices.
    fn product(a: FloatTensor<Self>, b: FloatTensor<Self>) -> FloatTensor<Self> {
        Self::float_matmul(a, b)
    }

    /// `sum + a · b`.
    fn add_product(sum: FloatTensor<Self>, a: FloatTensor<Self>, b: FloatTensor<Self>) -> FloatTensor<Self> {
        Self::float_add(sum, Self::product(a, b))
    }

    /// The same in f32, of halves, where that is no other product.
    fn wide_product(a: FloatTensor<Self>, b: FloatTensor<Self>) -> FloatTensor<Self> {
        Self::float_matmul(Self::float_cast(a, FloatDType::F32), Self::float_cast(b, FloatDType::F32))
    }

    /// `x · weightᵀ` in f32, of a few rows.
    fn product_of_few(x: FloatTensor<Self>, weight: FloatTensor<Self>) -> FloatTensor<Self> {
        Self::wide_product(Self::float_cast(x, weight.dtype().into()), Self::float_transpose(weight))
    }
}

#[cfg(feature = "cube")]
impl ProductOps for burn::backend::Cube {}

impl ProductOps for Flex {
    fn product(a: FloatTensor<Self>, b: FloatTensor<Self>) -> FloatTensor<Self> {
        let dtype = a.dtype();
        let product = Self::wide_product(a, b);
        if product.dtype() == dtype { product } else { Self::float_cast(product, dtype.into()) }
    }

    fn add_product(sum: FloatTensor<Self>, a: FloatTensor<Self>, b: FloatTensor<Self>) -> FloatTensor<Self> {
        match for_matrix_units(&a, &b) {
            Some((left, right)) if sum.dtype() == DType::F32 => {
                let mut contiguous = sum.to_contiguous();
                drop(sum);
                amx::add_product(contiguous.storage_mut(), &left, &right);
                contiguous
            }
            _ => Self::float_add(sum, Self::product(a, b)),
        }
    }

    fn wide_product(a: FloatTensor<Self>, b: FloatTensor<Self>) -> FloatTensor<Self> {
        let is_half = |tensor: &FloatTensor<Self>| matches!(tensor.dtype(), DType::BF16 | DType::F16);
        in_matrix_units(&a, &b).unwrap_or_else(|| {
            if is_half(&a) || is_half(&b) { widened::product(a, b) } else { Self::float_matmul(a, b) }
        })
    }

    fn product_of_few(x: FloatTensor<Self>, weight: FloatTensor<Self>) -> FloatTensor<Self> {
        let x = if x.dtype() == DType::F32 { x } else { Self::float_cast(x, FloatDType::F32) };
        let x = x.to_contiguous();
        let ([rows, depth], [outputs, of_weight]) = (dims(&x), dims(&weight));
        assert_eq!(depth, of_weight, "x [N, K] and weight [O, K] have different K");
        let product = match view(&weight) {
            Some(matrix) => few_rows::product(x.as_slice().expect("f32, made contiguous"), &matrix),
            None => {
                let weight = Self::float_cast(weight, FloatDType::F32).to_contiguous();
                let matrix = view(&weight).expect("f32, made contiguous");
                few_rows::product(x.as_slice().expect("f32, made contiguous"), &matrix)
            }
        };
        Self::float_from_data(TensorData::new(product, [rows, outputs]), &Default::default())
    }
}

/// None where there are no matrix units, or the product is too small for them.
fn in_matrix_units(a: &FloatTensor<Flex>, b: &FloatTensor<Flex>) -> Option<FloatTensor<Flex>> {
    let (left, right) = for_matrix_units(a, b)?;
    let product = TensorData::new(amx::product(&left, &right), [left.rows, right.columns]);
    Some(Flex::float_from_data(product, &Default::default()))
}

fn for_matrix_units<'a>(
    a: &'a FloatTensor<Flex>,
    b: &'a FloatTensor<Flex>,
) -> Option<(Matrix<'a>, Matrix<'a>)> {
    let ([rows, depth], [_, columns]) = (dims(a), dims(b));
    let least = rows.min(depth).min(columns);
    if least < LEAST_SIDE || depth * columns < LEAST_NUMBERS || a.dtype() != b.dtype() || !amx::are_there() {
        return None;
    }
    Some((view(a)?, view(b)?))
}

pub(crate) fn dims(tensor: &FloatTensor<Flex>) -> [usize; 2] {
    let shape = tensor.shape();
    [shape[0], shape[1]]
}

pub(crate) fn view(tensor: &FloatTensor<Flex>) -> Option<Matrix<'_>> {
    let layout = tensor.layout();
    let first = layout.start_offset();
    let numbers = match tensor.dtype() {
        DType::F32 => Numbers::F32(&tensor.storage::<f32>()[first..]),
        DType::BF16 => Numbers::Bf16(&tensor.storage::<bf16>()[first..]),
        _ => return None,
    };
    Matrix::new(numbers, dims(tensor), [layout.strides()[0], layout.strides()[1]])
}

impl<B: ProductOps, C: CheckpointStrategy> ProductOps for Autodiff<B, C> {
    fn product(a: FloatTensor<Self>, b: FloatTensor<Self>) -> FloatTensor<Self> {
        let (for_b, for_a) = (b.is_tracked(), a.is_tracked());
        let ((a, of_a), (b, of_b)) = (a.into_parts(), b.into_parts());
        match Product.prepare::<C>([of_a, of_b]).compute_bound().stateful() {
            OpsKind::Tracked(prepared) => {
                let state = [for_b.then(|| a.clone()), for_a.then(|| b.clone())];
                prepared.finish(state, B::product(a, b))
            }
            OpsKind::UnTracked(prepared) => prepared.finish(B::product(a, b)),
        }
    }
}

#[derive(Debug)]
struct Product;

impl<B: ProductOps> Backward<B, 2> for Product {
    /// The factors that the gradient of the other one needs.
    type State = [Option<FloatTensor<B>>; 2];

    fn backward(self, ops: Ops<Self::State, 2>, gradients: &mut Gradients, _: &mut Checkpointer) {
        let d_product = gradients.consume::<B>(&ops.node);
        let ([of_a, of_b], [a, b]) = (ops.parents, ops.state);
        if let (Some(parent), Some(b)) = (of_a, b) {
            gradients.register::<B>(parent.id, B::product(d_product.clone(), B::float_transpose(b)));
        }
        if let (Some(parent), Some(a)) = (of_b, a) {
            gradients.register::<B>(parent.id, B::product(B::float_transpose(a), d_product));
        }
    }
}

/// Rows of heads of `[B, T, H, E]` or `[B, S, K, 1, E]`.
fn heads(tensor: &FloatTensor<Flex>) -> Heads<'_> {
    let (shape, layout) = (tensor.shape(), tensor.layout());
    let last = shape.num_dims() - 1;
    let stride = |axis: usize| usize::try_from(layout.strides()[axis]).expect("no axis is reversed");
    assert!(layout.strides()[last] == 1 || shape[last] == 1, "heads were made contiguous");
    Heads {
        numbers: &tensor.storage::<f32>()[layout.start_offset()..],
        batch: shape[0],
        rows: shape[1],
        heads: shape[2],
        width: shape[last],
        stride_of_batch: stride(0),
        stride: stride(1),
        stride_of_head: stride(2),
    }
}

fn contiguous_heads(tensor: FloatTensor<Flex>) -> FloatTensor<Flex> {
    let last = tensor.shape().num_dims() - 1;
    if tensor.layout().strides()[last] == 1 { tensor } else { tensor.to_contiguous() }
}

impl AttentionOps for Flex {
    fn attend(
        query: FloatTensor<Self>,
        key: FloatTensor<Self>,
        value: FloatTensor<Self>,
        visible: Visible,
    ) -> FloatTensor<Self> {
        let shape = query.shape();
        let [query, key, value] = [query, key, value].map(contiguous_heads);
        let mixed = amx::attend(&heads(&query), &heads(&key), &heads(&value), &visible);
        Self::float_from_data(TensorData::new(mixed, shape), &Default::default())
    }
}

impl AttentionGradients for Flex {
    fn attend_backward(
        inputs: [FloatTensor<Self>; 3],
        d_output: FloatTensor<Self>,
        visible: Visible,
    ) -> [FloatTensor<Self>; 3] {
        let shapes = inputs.each_ref().map(TensorMetadata::shape);
        let [query, key, value] = inputs.map(contiguous_heads);
        let d_output = contiguous_heads(d_output);
        let found =
            amx::attend_backward([&heads(&query), &heads(&key), &heads(&value), &heads(&d_output)], &visible);
        let [of_query, of_key, of_value] = shapes;
        [(found.query, of_query), (found.key, of_key), (found.value, of_value)].map(|(gradient, shape)| {
            Self::float_from_data(TensorData::new(gradient, shape), &Default::default())
        })
    }
}

impl<B: AttentionOps + AttentionGradients, C: CheckpointStrategy> AttentionOps for Autodiff<B, C> {
    fn attend(
        query: FloatTensor<Self>,
        key: FloatTensor<Self>,
        value: FloatTensor<Self>,
        visible: Visible,
    ) -> FloatTensor<Self> {
        let ((query, of_query), (key, of_key)) = (query.into_parts(), key.into_parts());
        let (value, of_value) = value.into_parts();
        match Attend.prepare::<C>([of_query, of_key, of_value]).compute_bound().stateful() {
            OpsKind::Tracked(prepared) => {
                let state = ([query.clone(), key.clone(), value.clone()], visible.clone());
                prepared.finish(state, B::attend(query, key, value, visible))
            }
            OpsKind::UnTracked(prepared) => prepared.finish(B::attend(query, key, value, visible)),
        }
    }
}

#[derive(Debug)]
struct Attend;

impl<B: AttentionGradients> Backward<B, 3> for Attend {
    /// Query, key and value, and what is seen.
    type State = ([FloatTensor<B>; 3], Visible);

    fn backward(self, ops: Ops<Self::State, 3>, gradients: &mut Gradients, _: &mut Checkpointer) {
        let d_output = gradients.consume::<B>(&ops.node);
        let (inputs, visible) = ops.state;
        let found = B::attend_backward(inputs, d_output, visible);
        for (parent, gradient) in ops.parents.into_iter().zip(found) {
            if let Some(parent) = parent {
                gradients.register::<B>(parent.id, gradient);
            }
        }
    }
}
