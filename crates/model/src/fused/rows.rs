//! Norms and rotations of rows in one pass, on the host alone: elsewhere they are operations of Burn.
//!
//! Legend: N rows, D width, B batch, T tokens, H heads, E head width.

use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::ops::FloatTensorOps;
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend, Dispatch, Flex, TensorMetadata, backend_extension};
use burn::tensor::{Tensor, TensorData};
use rayon::prelude::*;

use super::passes::{self, Turn};

/// Numbers for a thread: enough to be worth waking it.
const NUMBERS_AT_ONCE: usize = 1 << 15;
/// Rows whose gradients by the weight are added before those of others, on any number of threads.
const ROWS_OF_A_SUM: usize = 64;

/// `x / √(mean(x²) + ε) · weight`.
///
/// # Shapes
/// `x` and the result: `[N, D]`; `weight`: `[1, D]`; f32.
pub(crate) fn rms_norm(x: Tensor<2>, weight: Tensor<2>, epsilon: f64) -> Tensor<2> {
    Tensor::from_dispatch(Dispatch::rms_norm(x.into_dispatch(), weight.into_dispatch(), epsilon as f32))
}

/// `scale · (x · cos + half turn(x) · sin)`, with the halves of the first `turned` numbers of each head as
/// pairs.
///
/// # Shapes
/// `x` and the result: `[B, T, H, E]`; `cos` and `sin`: `[B or 1, T, 1, E]`, untracked; f32.
pub(crate) fn turned(x: Tensor<4>, [cos, sin]: [Tensor<4>; 2], turned: usize, scale: f64) -> Tensor<4> {
    let [cos, sin] = [cos, sin].map(Tensor::into_dispatch);
    Tensor::from_dispatch(Dispatch::turned(x.into_dispatch(), cos, sin, turned, scale as f32))
}

#[backend_extension(Flex, Autodiff)]
trait RowOps: Backend {
    fn rms_norm(x: FloatTensor<Self>, weight: FloatTensor<Self>, epsilon: f32) -> FloatTensor<Self>;

    fn turned(
        x: FloatTensor<Self>,
        cos: FloatTensor<Self>,
        sin: FloatTensor<Self>,
        turned: usize,
        scale: f32,
    ) -> FloatTensor<Self>;
}

/// Their gradients.
trait RowGradients: Backend {
    /// By `x`, and by the weight if it is asked for.
    fn rms_norm_backward(
        inputs: [FloatTensor<Self>; 2],
        d_output: FloatTensor<Self>,
        epsilon: f32,
        of_weight: bool,
    ) -> (FloatTensor<Self>, Option<FloatTensor<Self>>);

    fn turned_back(
        d_output: FloatTensor<Self>,
        angles: [FloatTensor<Self>; 2],
        turned: usize,
        scale: f32,
    ) -> FloatTensor<Self>;
}

fn floats(tensor: &FloatTensor<Flex>) -> &[f32] {
    tensor.as_slice().expect("these were made contiguous f32")
}

fn of(values: Vec<f32>, like: &FloatTensor<Flex>) -> FloatTensor<Flex> {
    Flex::float_from_data(TensorData::new(values, like.shape()), &Default::default())
}

/// Whole rows for a thread.
fn some_rows(width: usize) -> usize {
    (NUMBERS_AT_ONCE / width.max(1)).max(1) * width.max(1)
}

/// Heads as they lie in memory, and of which row of angles each token's are.
struct Turning<'a> {
    cos: &'a [f32],
    sin: &'a [f32],
    /// Numbers of a token.
    width: usize,
    head: usize,
    turned: usize,
    scale: f32,
}

impl Turning<'_> {
    fn run(&self, x: &[f32], turn: Turn) -> Vec<f32> {
        let mut output = vec![0.0; x.len()];
        let some = some_rows(self.width);
        let chunks = output.par_chunks_mut(some).zip(x.par_chunks(some)).enumerate();
        chunks.for_each(|(chunk, (output, x))| {
            let tokens = output.chunks_exact_mut(self.width).zip(x.chunks_exact(self.width));
            for (token, (output, x)) in tokens.enumerate() {
                let first = (chunk * (some / self.width) + token) * self.head % self.cos.len();
                let angles = [self.cos, self.sin].map(|of| &of[first..first + self.head]);
                passes::turn(x, output, angles, self.turned, self.scale, turn);
            }
        });
        output
    }
}

fn turn(
    x: &FloatTensor<Flex>,
    [cos, sin]: [FloatTensor<Flex>; 2],
    turned: usize,
    scale: f32,
    turn: Turn,
) -> FloatTensor<Flex> {
    let x = x.to_contiguous();
    let [cos, sin] = [cos, sin].map(|of| of.to_contiguous());
    let shape = x.shape();
    let (cos, sin) = (floats(&cos), floats(&sin));
    let turning = Turning { cos, sin, width: shape[2] * shape[3], head: shape[3], turned, scale };
    of(turning.run(floats(&x), turn), &x)
}

impl RowOps for Flex {
    fn rms_norm(x: FloatTensor<Self>, weight: FloatTensor<Self>, epsilon: f32) -> FloatTensor<Self> {
        let (x, weight) = (x.to_contiguous(), weight.to_contiguous());
        let (numbers, weight) = (floats(&x), floats(&weight));
        let (width, some) = (weight.len(), some_rows(weight.len()));
        let mut output = vec![0.0; numbers.len()];
        output.par_chunks_mut(some).zip(numbers.par_chunks(some)).for_each(|(output, x)| {
            for (output, x) in output.chunks_exact_mut(width).zip(x.chunks_exact(width)) {
                passes::rms_norm(x, weight, epsilon, output);
            }
        });
        of(output, &x)
    }

    fn turned(
        x: FloatTensor<Self>,
        cos: FloatTensor<Self>,
        sin: FloatTensor<Self>,
        turned: usize,
        scale: f32,
    ) -> FloatTensor<Self> {
        turn(&x, [cos, sin], turned, scale, Turn::Forward)
    }
}

impl RowGradients for Flex {
    fn rms_norm_backward(
        [x, weight]: [FloatTensor<Self>; 2],
        d_output: FloatTensor<Self>,
        epsilon: f32,
        of_weight: bool,
    ) -> (FloatTensor<Self>, Option<FloatTensor<Self>>) {
        let [x, weight, d_output] = [x, weight, d_output].map(|tensor| tensor.to_contiguous());
        let (numbers, weights, d) = (floats(&x), floats(&weight), floats(&d_output));
        let width = weights.len();
        let some = ROWS_OF_A_SUM * width;
        let mut d_x = vec![0.0; numbers.len()];
        let mut partial = vec![0.0; if of_weight { numbers.len().div_ceil(some) * width } else { 0 }];
        let rows = |d_x: &mut [f32], x: &[f32], d: &[f32], mut d_weight: Option<&mut [f32]>| {
            let rows = d_x.chunks_exact_mut(width).zip(x.chunks_exact(width)).zip(d.chunks_exact(width));
            for ((d_x, x), d) in rows {
                passes::rms_norm_backward(x, weights, epsilon, d, d_x, d_weight.as_deref_mut());
            }
        };
        let chunks = d_x.par_chunks_mut(some).zip(numbers.par_chunks(some)).zip(d.par_chunks(some));
        if of_weight {
            let chunks = chunks.zip(partial.par_chunks_mut(width));
            chunks.for_each(|(((d_x, x), d), partial)| rows(d_x, x, d, Some(partial)));
        } else {
            chunks.for_each(|((d_x, x), d)| rows(d_x, x, d, None));
        }
        let d_weight = of_weight.then(|| {
            let mut sums = vec![0.0; width];
            for partial in partial.chunks_exact(width) {
                sums.iter_mut().zip(partial).for_each(|(sum, part)| *sum += part);
            }
            of(sums, &weight)
        });
        (of(d_x, &x), d_weight)
    }

    fn turned_back(
        d_output: FloatTensor<Self>,
        angles: [FloatTensor<Self>; 2],
        turned: usize,
        scale: f32,
    ) -> FloatTensor<Self> {
        turn(&d_output, angles, turned, scale, Turn::Back)
    }
}

impl<B: RowOps + RowGradients, C: CheckpointStrategy> RowOps for Autodiff<B, C> {
    fn rms_norm(x: FloatTensor<Self>, weight: FloatTensor<Self>, epsilon: f32) -> FloatTensor<Self> {
        let ((x, of_x), (weight, of_weight)) = (x.into_parts(), weight.into_parts());
        match Normed.prepare::<C>([of_x, of_weight]).compute_bound().stateful() {
            OpsKind::Tracked(prepared) => {
                let state = ([x.clone(), weight.clone()], epsilon);
                prepared.finish(state, B::rms_norm(x, weight, epsilon))
            }
            OpsKind::UnTracked(prepared) => prepared.finish(B::rms_norm(x, weight, epsilon)),
        }
    }

    fn turned(
        x: FloatTensor<Self>,
        cos: FloatTensor<Self>,
        sin: FloatTensor<Self>,
        turned: usize,
        scale: f32,
    ) -> FloatTensor<Self> {
        let (cos, sin) = (cos.into_primitive(), sin.into_primitive());
        let (x, of_x) = x.into_parts();
        match Turned.prepare::<C>([of_x]).compute_bound().stateful() {
            OpsKind::Tracked(prepared) => {
                let state = ([cos.clone(), sin.clone()], turned, scale);
                prepared.finish(state, B::turned(x, cos, sin, turned, scale))
            }
            OpsKind::UnTracked(prepared) => prepared.finish(B::turned(x, cos, sin, turned, scale)),
        }
    }
}

#[derive(Debug)]
struct Normed;

impl<B: RowGradients> Backward<B, 2> for Normed {
    /// `x` and weight, and ε.
    type State = ([FloatTensor<B>; 2], f32);

    fn backward(self, ops: Ops<Self::State, 2>, gradients: &mut Gradients, _: &mut Checkpointer) {
        let d_output = gradients.consume::<B>(&ops.node);
        let ([of_x, of_weight], (inputs, epsilon)) = (ops.parents, ops.state);
        let (d_x, d_weight) = B::rms_norm_backward(inputs, d_output, epsilon, of_weight.is_some());
        if let Some(parent) = of_x {
            gradients.register::<B>(parent.id, d_x);
        }
        if let (Some(parent), Some(d_weight)) = (of_weight, d_weight) {
            gradients.register::<B>(parent.id, d_weight);
        }
    }
}

#[derive(Debug)]
struct Turned;

impl<B: RowGradients> Backward<B, 1> for Turned {
    /// Cosines and sines, how many numbers of a head turn, and the scale.
    type State = ([FloatTensor<B>; 2], usize, f32);

    fn backward(self, ops: Ops<Self::State, 1>, gradients: &mut Gradients, _: &mut Checkpointer) {
        let d_output = gradients.consume::<B>(&ops.node);
        let ([parent], (angles, turned, scale)) = (ops.parents, ops.state);
        if let Some(parent) = parent {
            gradients.register::<B>(parent.id, B::turned_back(d_output, angles, turned, scale));
        }
    }
}
