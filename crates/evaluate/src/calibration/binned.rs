//! Bins of confidences, by sequence.

use serde::{Deserialize, Serialize};
use softshard_losses::calibration::{BINS, Bin};

use super::{Positions, Statistic, outcome};
use crate::statistics::{BadValues, Documents, Interval, Part, Resampling, estimate, number};

/// A bar of the reliability diagram.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Bar {
    /// Its confidences, and how often they were right.
    pub bin: Bin,
    /// Interval of the accuracy, by sequence; none where fewer than two sequences have a position in the bin.
    pub band: Option<Interval>,
}

/// The bins with their bands.
pub(super) fn diagram(
    positions: &Positions,
    bins: &[Bin],
    resampling: &Resampling,
) -> Result<Vec<Bar>, BadValues> {
    let cells = Cells::of(positions);
    let bar = |(index, bin): (usize, &Bin)| {
        // Only sequences with a position in the bin: the others say nothing of its accuracy.
        let of_sequences = cells.sequences.iter().map(|cells| &cells[index]).filter(|cell| cell.count > 0.0);
        let parts: Vec<Part> =
            of_sequences.map(|cell| Part { sum: cell.correct, weight: cell.count }).collect();
        let band = if parts.len() < 2 { None } else { Some(estimate(&parts, resampling)?.interval) };
        Ok(Bar { bin: *bin, band })
    };
    bins.iter().enumerate().map(bar).collect()
}

/// What the positions of a sequence add to a bin.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Cell {
    pub(super) count: f64,
    pub(super) probability: f64,
    pub(super) correct: f64,
}

impl Cell {
    pub(super) fn add(&mut self, other: &Self) {
        self.count += other.count;
        self.probability += other.probability;
        self.correct += other.correct;
    }
}

/// The bin of a probability; one on a border is in the lower one, as in [`softshard_losses::calibration`].
pub(super) fn bin_of(probability: f64) -> usize {
    let bins = number(BINS);
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "0 to 15")]
    let above = (probability * bins) as usize;
    let on_border = above > 0 && probability <= number(above) / bins;
    if on_border { above - 1 } else { above.min(BINS - 1) }
}

/// The bins of each sequence.
pub(super) struct Cells {
    pub(super) sequences: Vec<[Cell; BINS]>,
}

impl Cells {
    fn of(positions: &Positions) -> Self {
        let mut sequences = vec![[Cell::default(); BINS]; positions.sequences.count()];
        for (row, &sequence) in positions.sequences.of_rows().iter().enumerate() {
            let (probability, correct) = (positions.confidences[row], outcome(positions.correct[row]));
            sequences[sequence][bin_of(probability)].add(&Cell { count: 1.0, probability, correct });
        }
        Self { sequences }
    }

    /// Σ |correct - probability| of the bins, of the drawn sequences, over the sum of `count` of a sequence's
    /// bins.
    pub(super) fn error(&self, drawn: &[usize], count: impl Fn(usize, &[Cell; BINS]) -> f64) -> f64 {
        let (mut bins, mut divisor) = ([Cell::default(); BINS], 0.0);
        for &sequence in drawn {
            let cells = &self.sequences[sequence];
            bins.iter_mut().zip(cells).for_each(|(bin, cell)| bin.add(cell));
            divisor += count(sequence, cells);
        }
        bins.iter().map(|bin| (bin.correct - bin.probability).abs()).sum::<f64>() / divisor
    }
}

/// Expected calibration error over bins of equal width.
pub(super) fn equal_width_by_sequence(positions: &Positions) -> Statistic<'_> {
    let cells = Cells::of(positions);
    let count = |_: usize, cells: &[Cell; BINS]| cells.iter().map(|cell| cell.count).sum();
    Box::new(move |drawn| cells.error(drawn, count))
}

/// Expected calibration error over bins of equal mass: of each resample's own mass.
pub(super) fn equal_mass_by_sequence(positions: &Positions) -> Statistic<'_> {
    let Positions { sequences, confidences, correct, .. } = positions;
    let mut order: Vec<usize> = (0..confidences.len()).collect();
    order.sort_by(|&a, &b| confidences[a].total_cmp(&confidences[b]).then(correct[a].cmp(&correct[b])));
    let lengths = lengths(sequences);
    Box::new(move |drawn| {
        let times = times(drawn, lengths.len());
        let total: usize = drawn.iter().map(|&sequence| lengths[sequence]).sum();
        let bins = BINS.min(total);
        let (mut done, mut bin, mut gap, mut error) = (0, 0, 0.0, 0.0_f64);
        for &row in &order {
            let mut left = times[sequences.of_rows()[row]];
            while left > 0 {
                let room = (bin + 1) * total / bins - done;
                let taken = left.min(room);
                gap += number(taken) * (outcome(correct[row]) - confidences[row]);
                (done, left) = (done + taken, left - taken);
                if taken == room {
                    error += f64::abs(gap);
                    (bin, gap) = (bin + 1, 0.0);
                }
            }
        }
        error / number(total)
    })
}

/// Positions of each sequence.
fn lengths(sequences: &Documents) -> Vec<usize> {
    times(sequences.of_rows(), sequences.count())
}

/// How often each number below `count` is drawn.
pub(super) fn times(drawn: &[usize], count: usize) -> Vec<usize> {
    let mut times = vec![0; count];
    drawn.iter().for_each(|&sequence| times[sequence] += 1);
    times
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn borders_belong_to_the_lower_bin() {
        for bin in 1..=BINS {
            let border = number(bin) / number(BINS);
            assert_eq!(bin_of(border), bin - 1);
            assert_eq!(bin_of(border.next_down()), bin - 1);
            assert_eq!(bin_of(border.next_up()), bin.min(BINS - 1));
        }
        assert_eq!(bin_of(0.0), 0);
    }

    #[test]
    fn a_bar_of_one_sequence_has_no_band() {
        let sequences = Documents::of(&[0, 0, 1, 2]);
        let (confidences, correct) = ([0.95, 0.5, 0.51, 0.52], [true, true, false, true]);
        let positions = Positions::new(&sequences, &confidences, &correct, &[1.0; 4]).unwrap();
        let found = super::super::report(&positions, &Resampling { draws: 200, ..Resampling::default() })
            .unwrap()
            .diagram;
        assert_eq!(
            found.iter().map(|bar| bar.bin.count).filter(|&count| count > 0).collect::<Vec<_>>(),
            [3, 1]
        );
        assert_eq!((found[14].bin.count, found[14].band, found[0].band), (1, None, None));
        assert_eq!(found[7].band, Some(Interval { lower: 0.0, upper: 1.0 }));
    }
}
