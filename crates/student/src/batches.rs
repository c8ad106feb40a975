//! One micro-batch, and the sequences that it is made of.

use anyhow::Result;
use softshard_losses::Targets;
use softshard_model::Arrangement;

use crate::examples::Examples;

/// One sequence with what its loss compares with.
pub(crate) struct Example {
    /// The whole sequence, L tokens.
    pub(crate) input_ids: Vec<i32>,
    /// Scored positions, ascending, each in 1..L.
    pub(crate) positions: Vec<i32>,
    /// One row per position.
    pub(crate) targets: Targets,
}

/// One micro-batch: what one forward and backward pass reads.
pub(crate) struct Batch {
    pub(crate) input_ids: Vec<Vec<i32>>,
    pub(crate) positions: Vec<Vec<i32>>,
    /// One row per scored token, sequence by sequence.
    pub(crate) targets: Targets,
    /// How the sequences lie.
    pub(crate) arrangement: Arrangement,
}

impl Batch {
    pub(crate) fn new(examples: impl IntoIterator<Item = Example>, arrangement: Arrangement) -> Self {
        let mut batch =
            Batch { input_ids: Vec::new(), positions: Vec::new(), targets: Targets::default(), arrangement };
        for example in examples {
            batch.input_ids.push(example.input_ids);
            batch.positions.push(example.positions);
            batch.targets.append(example.targets);
        }
        batch
    }

    /// Reads the sequences at `indices`, for a student with a head of `vocabulary` rows.
    ///
    /// # Errors
    /// A row that does not decode or breaks the format's rules.
    pub(crate) fn read(
        examples: &Examples,
        indices: &[u32],
        arrangement: Arrangement,
        vocabulary: usize,
    ) -> Result<Self> {
        let read = |&index: &u32| {
            let mut example = examples.read(index)?;
            example.targets.fold_ids_from(vocabulary);
            Ok(example)
        };
        Ok(Batch::new(indices.iter().map(read).collect::<Result<Vec<_>>>()?, arrangement))
    }

    /// Token ids and scored positions of each sequence.
    pub(crate) fn rows(&self) -> (Vec<&[i32]>, Vec<&[i32]>) {
        fn slices(rows: &[Vec<i32>]) -> Vec<&[i32]> {
            rows.iter().map(Vec::as_slice).collect()
        }
        (slices(&self.input_ids), slices(&self.positions))
    }

    /// Tokens, without padding.
    pub(crate) fn tokens(&self) -> usize {
        self.input_ids.iter().map(Vec::len).sum()
    }
}
