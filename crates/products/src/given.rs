//! A gradient that is known already, hung on a graph.

use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::CheckpointStrategy};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::ops::FloatTensorOps;
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend, Dispatch, Flex, backend_extension};
use burn::tensor::{Shape, Tensor};

use crate::tensor::on_host;

/// A zero whose gradient by `x` is `gradient`: what `Σ x · gradient` less its value is, without the sums on the host.
///
/// # Shapes
/// `x` and `gradient`, which is not tracked: the same; the result: `[1]`.
pub fn given<const D: usize>(x: Tensor<D>, gradient: Tensor<D>) -> Tensor<1> {
    if !on_host(&x.device()) {
        let sum = (x * gradient).sum();
        return sum.clone() - sum.detach();
    }
    let gradient = gradient.inner().into_dispatch();
    Tensor::from_dispatch(Dispatch::given(x.into_dispatch(), gradient))
}

#[backend_extension(Flex, Autodiff)]
trait GivenOps: Backend {
    fn given(x: FloatTensor<Self>, gradient: FloatTensor<Self>) -> FloatTensor<Self>;
}

trait GivenGradient: Backend {
    /// `gradient` times the only number of `by`.
    fn times(gradient: FloatTensor<Self>, by: FloatTensor<Self>) -> FloatTensor<Self>;
}

impl GivenOps for Flex {
    fn given(x: FloatTensor<Self>, _: FloatTensor<Self>) -> FloatTensor<Self> {
        Self::float_zeros(Shape::from([1]), &Default::default(), x.dtype().into())
    }
}

impl GivenGradient for Flex {
    fn times(gradient: FloatTensor<Self>, by: FloatTensor<Self>) -> FloatTensor<Self> {
        let by = Self::float_cast(by, burn::tensor::FloatDType::F64);
        let by: &[f64] = by.as_slice().expect("one number");
        if by[0] == 1.0 { gradient } else { Self::float_mul_scalar(gradient, by[0].into()) }
    }
}

impl<B: GivenOps + GivenGradient, C: CheckpointStrategy> GivenOps for Autodiff<B, C> {
    fn given(x: FloatTensor<Self>, gradient: FloatTensor<Self>) -> FloatTensor<Self> {
        let gradient = gradient.into_primitive();
        let (x, of_x) = x.into_parts();
        match Given.prepare::<C>([of_x]).compute_bound().stateful() {
            OpsKind::Tracked(prepared) => prepared.finish(gradient.clone(), B::given(x, gradient)),
            OpsKind::UnTracked(prepared) => prepared.finish(B::given(x, gradient)),
        }
    }
}

#[derive(Debug)]
struct Given;

impl<B: GivenGradient> Backward<B, 1> for Given {
    /// The gradient.
    type State = FloatTensor<B>;

    fn backward(self, ops: Ops<Self::State, 1>, gradients: &mut Gradients, _: &mut Checkpointer) {
        let d_output = gradients.consume::<B>(&ops.node);
        let ([parent], gradient) = (ops.parents, ops.state);
        if let Some(parent) = parent {
            gradients.register::<B>(parent.id, B::times(gradient, d_output));
        }
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;

    use super::*;

    #[test]
    fn a_given_gradient_is_scaled_by_what_follows() {
        let x = Tensor::<2>::from_data([[1.0, 2.0], [3.0, 4.0]], &Device::flex()).autodiff().require_grad();
        let gradient = Tensor::<2>::from_data([[0.5, -1.0], [0.0, 2.0]], &Device::flex());
        for (factor, expected) in [(1.0, [0.5, -1.0, 0.0, 2.0]), (-2.0, [-1.0, 2.0, 0.0, -4.0])] {
            let zero = given(x.clone() * 1.0, gradient.clone());
            assert_eq!(zero.clone().into_scalar::<f32>(), 0.0);
            let found = x.grad(&(zero * factor).backward()).expect("a gradient");
            assert_eq!(found.try_into_vec_as::<f32>().unwrap(), expected);
        }
    }
}
