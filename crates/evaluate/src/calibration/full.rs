//! Calibration of the whole distribution: the probabilities of all tokens, as they come.

use softshard_losses::calibration::BINS;

use super::{
    Measured, between_0_and_1,
    binned::{Cell, Cells, bin_of},
};
use crate::statistics::{BadValues, Estimate, Interval, Part, Resampling, estimate};

/// How far the probabilities of a position may be from a sum of 1: they are f32, of a whole vocabulary.
const SUM: f64 = 1e-3;

/// Full-ECE and the Brier score of all tokens, position by position: 15 bins a sequence are kept, not the
/// probabilities.
pub struct FullCalibration {
    cells: Cells,
    /// Σ over positions of Σ (probability - outcome)², and positions.
    squares: Vec<Part>,
}

impl FullCalibration {
    /// Nothing yet, of so many sequences.
    pub fn new(sequences: usize) -> Self {
        let cells = Cells { sequences: vec![[Cell::default(); BINS]; sequences] };
        Self { cells, squares: vec![Part::default(); sequences] }
    }

    /// Adds a position: the probabilities of all tokens, and the one that came.
    ///
    /// # Errors A sequence or token that there is not, a probability outside 0 to 1, a sum that is not 1
    /// (0.001 are forgiven). Nothing is added then.
    pub fn add(&mut self, sequence: usize, probabilities: &[f32], came: usize) -> Result<(), BadValues> {
        let below = |what, length: usize, index: usize| match index < length {
            true => Ok(()),
            false => Err(BadValues::TooFew { what, expected: index + 1, found: length }),
        };
        below("sequences", self.squares.len(), sequence)?;
        below("probabilities", probabilities.len(), came)?;
        let good = |p: &f32| (0.0..=1.0).contains(p);
        if let Some(index) = probabilities.iter().position(|p| !good(p)) {
            let found = f64::from(probabilities[index]);
            return Err(BadValues::Value { what: "probability", index, expected: "0 to 1", found });
        }
        let sum: f64 = probabilities.iter().copied().map(f64::from).sum();
        crate::statistics::all("sum of probabilities", "1", &[sum], |sum| (sum - 1.0).abs() <= SUM)?;
        let cells = &mut self.cells.sequences[sequence];
        let mut square = 0.0;
        for &probability in probabilities {
            let probability = f64::from(probability);
            cells[bin_of(probability)].add(&Cell { count: 1.0, probability, correct: 0.0 });
            square += probability * probability;
        }
        let probability = f64::from(probabilities[came]);
        cells[bin_of(probability)].correct += 1.0;
        self.squares[sequence].sum += square + 1.0 - 2.0 * probability;
        self.squares[sequence].weight += 1.0;
        Ok(())
    }

    /// Full-ECE: Σ over bins of all probabilities, |tokens that came - sum of probabilities| / positions (H.
    /// Liu and others, arXiv 2406.11345), 0 to 2, with an interval by sequence.
    ///
    /// # Errors
    /// Fewer than two sequences.
    pub fn full_ece(&self, resampling: &Resampling) -> Result<Measured, BadValues> {
        let count = self.squares.len();
        let positions = |sequence: usize, _: &[Cell; BINS]| self.squares[sequence].weight;
        let replicates = resampling.replicates(count, |drawn| self.cells.error(drawn, positions))?;
        let all: Vec<usize> = (0..count).collect();
        let value = self.cells.error(&all, positions);
        let interval = resampling.basic(value, replicates, count);
        let interval = Interval { upper: interval.upper.clamp(0.0, 2.0), ..between_0_and_1(interval) };
        Ok(Measured { value, interval })
    }

    /// The Brier score of all tokens (G. W. Brier, 1950): mean over positions of Σ (probability - outcome)²,
    /// 0 to 2.
    ///
    /// # Errors
    /// Fewer than two sequences.
    pub fn brier(&self, resampling: &Resampling) -> Result<Estimate, BadValues> {
        estimate(&self.squares, resampling)
    }

    /// Probabilities that were added.
    pub fn probabilities(&self) -> f64 {
        self.cells.sequences.iter().flatten().map(|cell| cell.count).sum()
    }

    /// Positions that were added.
    pub fn positions(&self) -> f64 {
        self.squares.iter().map(|part| part.weight).sum::<f64>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn by_hand() {
        let mut full = FullCalibration::new(2);
        full.add(0, &[0.5, 0.25, 0.25], 0).unwrap();
        full.add(1, &[0.5, 0.25, 0.25], 1).unwrap();
        let usual = Resampling::default();
        // Bin of .5: one came, 1 was said. Bin of .25: one came, 1 was said.
        assert_eq!(full.full_ece(&usual).unwrap().value, 0.0);
        full.add(1, &[1.0, 0.0, 0.0], 2).unwrap();
        // Bin of 1: none came, 1 was said; bin of 0: one came, 0 were said.
        assert_eq!(full.full_ece(&usual).unwrap().value, 2.0 / 3.0);
        // .25 + .0625 · 2, .25 + .5625 + .0625, 2
        let brier = full.brier(&usual).unwrap().value;
        assert!((brier - (0.375 + 0.875 + 2.0) / 3.0).abs() < 1e-15);
        assert_eq!((full.probabilities(), full.positions()), (9.0, 3.0));
    }

    #[test]
    fn bad_distributions() {
        let mut full = FullCalibration::new(2);
        let mut message = |sequence, p: &[f32], came| full.add(sequence, p, came).unwrap_err().to_string();
        assert_eq!(message(2, &[1.0], 0), "expected at least 3 sequences, found 2");
        assert_eq!(message(0, &[1.0], 1), "expected at least 2 probabilities, found 1");
        assert_eq!(message(0, &[0.5, f32::NAN], 0), "probability 1: expected 0 to 1, found NaN");
        assert_eq!(message(0, &[-0.5, 1.5], 0), "probability 0: expected 0 to 1, found -0.5");
        assert_eq!(message(0, &[0.5, 0.25], 0), "sum of probabilities 0: expected 1, found 0.75");
        assert!(full.full_ece(&Resampling::default()).is_err(), "nothing was added");
        assert!(full.brier(&Resampling::default()).is_err());
        assert!(FullCalibration::new(1).full_ece(&Resampling::default()).is_err());
    }
}
