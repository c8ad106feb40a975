//! How far quantised weights are from the ones they were made of.

use std::ops::AddAssign;

use burn::tensor::bf16;

/// Sums over one tensor, or over many by `+=`.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct QuantisationError {
    /// Weights compared.
    pub(crate) numbers: u64,
    /// What they take, with their scales.
    pub(crate) bytes: u64,
    /// The largest difference to a weight.
    pub(crate) largest: f32,
    squared_weights: f64,
    squared_differences: f64,
    squared_differences_of_bf16: f64,
}

impl QuantisationError {
    /// # Panics
    /// The lengths differ.
    pub(super) fn between(weights: &[f32], quantised: &[f32], bytes: usize) -> Self {
        assert_eq!(weights.len(), quantised.len(), "a weight and its quantised form are of one shape");
        let mut sums = Self { numbers: weights.len() as u64, bytes: bytes as u64, ..Self::default() };
        for (&weight, &quantised) in weights.iter().zip(quantised) {
            let squared_difference = |other: f32| (f64::from(weight) - f64::from(other)).powi(2);
            sums.largest = sums.largest.max((weight - quantised).abs());
            sums.squared_weights += f64::from(weight).powi(2);
            sums.squared_differences += squared_difference(quantised);
            sums.squared_differences_of_bf16 += squared_difference(bf16::from_f32(weight).into());
        }
        sums
    }

    /// Root of the mean squared difference over that of the mean squared weight; 0 if all weights are zero.
    pub(crate) fn relative_rms(&self) -> f64 {
        relative(self.squared_differences, self.squared_weights)
    }

    /// The same of weights that were only rounded to bf16: 0 where the file had no more than that.
    pub(crate) fn relative_rms_of_bf16(&self) -> f64 {
        relative(self.squared_differences_of_bf16, self.squared_weights)
    }

    /// With scales and what fills the last blocks; 0 if there are no weights.
    pub(crate) fn bits_per_weight(&self) -> f64 {
        if self.numbers == 0 { 0.0 } else { 8.0 * self.bytes as f64 / self.numbers as f64 }
    }
}

fn relative(squares: f64, of: f64) -> f64 {
    if of == 0.0 { 0.0 } else { (squares / of).sqrt() }
}

impl AddAssign for QuantisationError {
    fn add_assign(&mut self, other: Self) {
        self.numbers += other.numbers;
        self.bytes += other.bytes;
        self.largest = self.largest.max(other.largest);
        self.squared_weights += other.squared_weights;
        self.squared_differences += other.squared_differences;
        self.squared_differences_of_bf16 += other.squared_differences_of_bf16;
    }
}
