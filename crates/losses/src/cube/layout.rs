//! What the kernel writes for a row, and what the host reads.

use crate::labels::HeadOptions;

/// Units of a cube.
pub(super) const UNITS: usize = 256;

/// Candidates that fit in shared memory: with as many maxima as units, some hundred are expected for K up to half of the units.
pub(super) const CANDIDATES: usize = 1024;

/// The first word of a row; above it if a number is bad. Memory that no kernel wrote to is mostly zeros.
pub(super) const WRITTEN: i32 = 1;

/// Words before the lists: [`WRITTEN`], largest logit, Σ exp(z - largest), Σ exp(z - largest)(z - largest), the same
/// largest and sum of the tail, gold logit, tokens kept, tokens drawn. Sums of the tokens that are not kept at each temperature, relative
/// to the largest of these, kept ids, their logits, drawn ids and their counts follow.
pub(super) const HEADER: usize = 9;

/// Lengths of the lists of a row.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Layout {
    /// The most tokens that are kept.
    pub(super) kept: usize,
    /// Draws.
    pub(super) draws: u32,
    /// The most tokens that are drawn.
    pub(super) drawn: usize,
    /// Extra temperatures.
    pub(super) temperatures: usize,
}

impl Layout {
    pub(super) fn of(options: &HeadOptions<'_>, vocabulary: usize) -> Self {
        let draws = options.keep.draws().unwrap_or(0);
        Self {
            kept: options.keep.exact().min(vocabulary),
            draws,
            drawn: usize::try_from(draws).map_or(vocabulary, |draws| draws.min(vocabulary)),
            temperatures: options.temperatures.len(),
        }
    }

    /// Words of a row.
    pub(super) fn words(&self) -> usize {
        HEADER + self.temperatures + 2 * self.kept + 2 * self.drawn
    }
}
