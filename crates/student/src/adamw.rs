//! AdamW's sums in one pass over a parameter, its moments and its gradient, in place and on all cores; and
//! what clipping does to gradients.

use burn::tensor::{DType, Tensor, TensorData};
use rayon::prelude::*;
use softshard_products::on_host;

pub(crate) const BETA1: f64 = 0.9;
pub(crate) const BETA2: f64 = 0.999;
pub(crate) const EPSILON: f64 = 1e-8;

/// Numbers for a thread: enough to be worth waking it. Sums are of as many, on any number of threads.
const NUMBERS_AT_ONCE: usize = 1 << 16;

/// What a step does to a parameter beside its gradient.
pub(crate) struct Rates {
    pub(crate) learning_rate: f64,
    /// What the parameter is multiplied by first.
    pub(crate) decay: f64,
    /// Steps so far, this one included.
    pub(crate) steps: u64,
}

/// The parameter after a step; moments are changed in place.
///
/// # Shapes
/// The same of all.
pub(crate) fn step(
    parameter: Tensor<2>,
    [first, second]: [&mut Tensor<2>; 2],
    gradient: Tensor<2>,
    rates: &Rates,
) -> Tensor<2> {
    let exponent = i32::try_from(rates.steps).unwrap_or(i32::MAX);
    let [of_first, of_second] = [BETA1, BETA2].map(|beta| 1.0 - beta.powi(exponent));
    let [beta1, beta2, rest1, rest2] = [BETA1, BETA2, 1.0 - BETA1, 1.0 - BETA2].map(|number| number as f32);
    let [of_second, epsilon, rate, decay] =
        [of_second, EPSILON, rates.learning_rate / of_first, rates.decay].map(|number| number as f32);
    let gradient = gradient.into_data();
    let gradient = gradient.as_slice::<f32>().expect("gradients are f32");
    let mut parameter = parameter;
    change(first, |firsts| {
        change(second, |seconds| {
            change(&mut parameter, |values| {
                let values = values.par_chunks_mut(NUMBERS_AT_ONCE).zip(gradient.par_chunks(NUMBERS_AT_ONCE));
                let moments =
                    firsts.par_chunks_mut(NUMBERS_AT_ONCE).zip(seconds.par_chunks_mut(NUMBERS_AT_ONCE));
                values.zip(moments).for_each(|((values, gradient), (firsts, seconds))| {
                    let moments = firsts.iter_mut().zip(seconds);
                    for ((value, gradient), (first, second)) in values.iter_mut().zip(gradient).zip(moments) {
                        *first = *first * beta1 + gradient * rest1;
                        *second = *second * beta2 + gradient * gradient * rest2;
                        let update = *first / ((*second / of_second).sqrt() + epsilon) * rate;
                        *value = *value * decay - update;
                    }
                });
            });
        });
    });
    parameter
}

/// Numbers of a tensor on the host where they are, or in a copy where another tensor has them too.
fn change(tensor: &mut Tensor<2>, work: impl FnOnce(&mut [f32])) {
    tensor.inplace(|tensor| {
        let device = tensor.device();
        let mut data: TensorData = tensor.into_data();
        work(data.as_mut_slice::<f32>().expect("what learns is f32"));
        Tensor::from_data(data, &device)
    });
}

fn is_f32_here(tensor: &Tensor<2>) -> bool {
    tensor.dtype() == DType::F32 && on_host(&tensor.device())
}

/// In f64.
pub(crate) fn sum_of_squares(tensor: &mut Tensor<2>) -> f64 {
    if !is_f32_here(tensor) {
        return f64::from(tensor.clone().square().sum().into_scalar::<f32>());
    }
    let mut sum = 0.0;
    change(tensor, |numbers| {
        let of_some = |numbers: &[f32]| -> f64 {
            let mut sums = [0.0f64; 8];
            let (eights, rest) = numbers.as_chunks::<8>();
            for eight in eights {
                for (sum, &number) in sums.iter_mut().zip(eight) {
                    *sum += f64::from(number) * f64::from(number);
                }
            }
            sums.iter().sum::<f64>() + rest.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>()
        };
        let parts: Vec<f64> = numbers.par_chunks(NUMBERS_AT_ONCE).map(of_some).collect();
        sum = parts.into_iter().sum();
    });
    sum
}

/// Multiplies every number.
pub(crate) fn scale(tensor: &mut Tensor<2>, by: f64) {
    if !is_f32_here(tensor) {
        tensor.inplace(|tensor| tensor * by);
        return;
    }
    let by = by as f32;
    change(tensor, |numbers| {
        numbers.par_chunks_mut(NUMBERS_AT_ONCE).for_each(|numbers| numbers.iter_mut().for_each(|x| *x *= by));
    });
}
