//! How far quantised weights are from the ones they were made of.

use std::fmt;
use std::ops::AddAssign;

use burn::tensor::bf16;
use rayon::prelude::*;

/// Numbers for a thread.
const CHUNK: usize = 1 << 16;

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
    /// Without bytes.
    ///
    /// # Panics
    /// The lengths differ.
    pub(super) fn between(weights: &[f32], quantised: &[f32]) -> Self {
        assert_eq!(weights.len(), quantised.len(), "a weight and its quantised form are of one shape");
        let parts = weights.par_chunks(CHUNK).zip(quantised.par_chunks(CHUNK)).map(|(weights, quantised)| {
            let mut sums = Self { numbers: weights.len() as u64, ..Self::default() };
            for (&weight, &quantised) in weights.iter().zip(quantised) {
                let squared_difference = |other: f32| (f64::from(weight) - f64::from(other)).powi(2);
                sums.largest = sums.largest.max((weight - quantised).abs());
                sums.squared_weights += f64::from(weight).powi(2);
                sums.squared_differences += squared_difference(quantised);
                sums.squared_differences_of_bf16 += squared_difference(bf16::from_f32(weight).into());
            }
            sums
        });
        // Added in order: the sums do not depend on the threads.
        parts.collect::<Vec<_>>().into_iter().fold(Self::default(), |mut sums, part| {
            sums += part;
            sums
        })
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

impl fmt::Display for QuantisationError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [error, of_bf16] = [self.relative_rms(), self.relative_rms_of_bf16()].map(|part| 100.0 * part);
        let (bits, largest) = (self.bits_per_weight(), self.largest);
        write!(
            f,
            "{bits:.2} bits a weight, relative RMS error {error:.2} % (bf16: {of_bf16:.2} %), largest {largest:.2e}"
        )
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
