//! The exponential moving average of what learns.

use burn::tensor::Tensor;

/// Averages of the trainable parameters, in their order, without autodiff.
///
/// `average ← d · average + (1 - d) · value` with `d = min(decay, (1 + steps) / (10 + steps))`, so that a short run is not
/// the average of its first weights (as TensorFlow's ExponentialMovingAverage with `num_updates`).
pub(crate) struct Average {
    decay: f64,
    pub(crate) values: Vec<Tensor<2>>,
}

impl Average {
    /// Starts at the first values.
    pub(crate) fn new<'a>(decay: f64, parameters: impl IntoIterator<Item = &'a Tensor<2>>) -> Self {
        Average { decay, values: parameters.into_iter().map(|value| value.clone().inner()).collect() }
    }

    /// Takes the values after step `steps`, counted from 1.
    #[expect(clippy::cast_precision_loss, reason = "step counts are far below 2^53")]
    pub(crate) fn add<'a>(&mut self, steps: u64, parameters: impl IntoIterator<Item = &'a Tensor<2>>) {
        let steps = steps as f64;
        let decay = self.decay.min((1.0 + steps) / (10.0 + steps));
        for (average, value) in self.values.iter_mut().zip(parameters) {
            *average = average.clone() * decay + value.clone().inner() * (1.0 - decay);
        }
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;

    use super::*;

    #[test]
    fn averages_follow_by_their_decay() {
        let device = Device::flex().autodiff();
        let value = |value: f32| Tensor::<2>::from_data([[value]], &device);
        let mut average = Average::new(0.5, [&value(0.0)]);
        average.add(1, [&value(1.0)]); // d = 2/11
        average.add(100, [&value(2.0)]); // d = 0.5
        let found = average.values[0].clone().into_scalar::<f32>();
        let expected = (9.0 / 11.0) * 0.5 + 1.0;
        assert!((found - expected).abs() < 1e-6, "{found} {expected}");
    }
}
