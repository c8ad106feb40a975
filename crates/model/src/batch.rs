//! Batches of sequences: which go together, and the hidden states that predict their labelled tokens.
//!
//! Legend: B sequences, T tokens of the longest, N labelled tokens of all, D model width.

use burn::tensor::{Device, Int, Tensor, TensorData};
use rayon::prelude::*;

use crate::attention::Context;
use crate::layout::Layout;
use crate::linear::Dropout;
use crate::{Decoder, Error};

/// Indices of sequences with these `lengths` in batches of like length, longest first: if the memory does not suffice,
/// the first batch shows it. No batch is over `max_tokens` with its padding; a longer sequence stands alone.
pub fn batches_by_length(lengths: &[usize], max_tokens: usize) -> Vec<Vec<usize>> {
    let mut order: Vec<usize> = (0..lengths.len()).collect();
    order.sort_by_key(|&index| (std::cmp::Reverse(lengths[index]), index));
    let mut batches: Vec<Vec<usize>> = Vec::new();
    for index in order {
        match batches.last_mut() {
            Some(batch) if (batch.len() + 1) * lengths[batch[0]] <= max_tokens => batch.push(index),
            _ => batches.push(vec![index]),
        }
    }
    batches
}

/// How the sequences of a batch lie in one tensor. Hidden states and gradients are the same up to rounding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arrangement {
    /// Side by side, padded to the longest.
    Padded,
    /// One after the other; attention alone pads them to the longest (docs/decisions/0010-padding-in-attention.md).
    Ragged,
    /// One after the other, also in attention, which is block-diagonal: best for sequences of unlike lengths.
    Packed,
}

/// Sequences as one tensor, and where the rows of interest are.
pub(crate) struct Collated {
    /// `[B, T]`, padded on the right; or `[1, tokens of all]`, if they are ragged or packed.
    pub(crate) ids: Tensor<2, Int>,
    /// Rows of the states before the labelled tokens, `[N]`.
    pub(crate) rows: Tensor<1, Int>,
    pub(crate) layout: Layout,
}

/// The row of the token before a labelled position, of a sequence whose first row is `start`.
fn row_before(position: i32, start: usize, length: usize) -> i32 {
    let position = usize::try_from(position).expect("positions are not negative");
    assert!((1..length).contains(&position), "a labelled position is in 1..L");
    i32::try_from(start + position - 1).expect("a batch has fewer than 2^31 tokens")
}

/// # Panics
/// A position is outside of its sequence.
pub(crate) fn collate(
    sequences: &[&[i32]],
    positions: &[&[i32]],
    arrangement: Arrangement,
    device: &Device,
) -> Collated {
    let lengths: Vec<usize> = sequences.iter().map(|sequence| sequence.len()).collect();
    let longest = lengths.iter().copied().max().unwrap_or(0);
    let alike = lengths.iter().all(|&length| length == longest);
    let (shape, layout) = match arrangement {
        Arrangement::Ragged if !alike => ([1, lengths.iter().sum()], Layout::ragged(lengths)),
        Arrangement::Packed if lengths.len() > 1 => {
            let tokens = lengths.iter().sum();
            ([1, tokens], Layout::packed(&[lengths], tokens))
        }
        Arrangement::Padded | Arrangement::Ragged | Arrangement::Packed => {
            ([sequences.len(), longest], Layout::right_padded(lengths))
        }
    };
    let (mut ids, mut rows) = (Vec::with_capacity(shape[0] * shape[1]), Vec::new());
    for (index, (sequence, positions)) in sequences.iter().zip(positions).enumerate() {
        if shape[0] > 1 {
            ids.resize(index * longest, 0);
        }
        rows.extend(positions.iter().map(|&position| row_before(position, ids.len(), sequence.len())));
        ids.extend_from_slice(sequence);
    }
    ids.resize(shape[0] * shape[1], 0);
    let labelled = rows.len();
    Collated {
        ids: Tensor::from_data(TensorData::new(ids, shape), device),
        rows: Tensor::from_data(TensorData::new(rows, [labelled]), device),
        layout,
    }
}

/// Token ids of sequences, and the positions of each that are labelled.
type Batch<'a> = (Vec<&'a [i32]>, Vec<&'a [i32]>);

/// A batch on its way through the layers.
struct InFlight<'a> {
    rows: Tensor<1, Int>,
    context: Context<'a>,
    x: Tensor<2>,
}

impl Decoder {
    /// Hidden states that predict the tokens at `positions`: of each sequence the states one before them, which have
    /// read the tokens < t and nothing else.
    ///
    /// # Shapes
    /// `sequences`: B slices of at most T token ids; `positions`: B slices of labelled positions, each in `1..len`,
    /// N in all. The result: `[N, D]`, sequence by sequence.
    ///
    /// # Errors
    /// Streamed weights cannot be read.
    ///
    /// # Panics
    /// A position is outside of its sequence.
    pub fn hidden_before(
        &self,
        sequences: &[&[i32]],
        positions: &[&[i32]],
        arrangement: Arrangement,
    ) -> Result<Tensor<2>, Error> {
        let Collated { ids, rows, layout } = collate(sequences, positions, arrangement, &self.device);
        Ok(self.forward(ids, &layout, None)?.select(0, rows))
    }

    /// [`hidden_before`](Self::hidden_before) of several batches, padded inside attention alone, all of which go through a layer before the next one: so
    /// streamed weights are read once for all of them. Memory: the states of all batches. `in_parallel`: several batches
    /// compute at a time, as a CPU does best.
    ///
    /// # Shapes
    /// `batches`: sequences and positions each; the results: `[N, D]` each.
    ///
    /// # Errors
    /// Streamed weights cannot be read.
    ///
    /// # Panics
    /// A position is outside of its sequence.
    pub fn hidden_before_each(
        &self,
        batches: &[Batch<'_>],
        in_parallel: bool,
    ) -> Result<Vec<Tensor<2>>, Error> {
        let collate = |(sequences, positions): &Batch<'_>| {
            collate(sequences, positions, Arrangement::Ragged, &self.device)
        };
        let collated: Vec<Collated> = batches.iter().map(collate).collect();
        let mut flights = Vec::with_capacity(batches.len());
        for Collated { ids, rows, layout } in &collated {
            let context = self.context_beside(ids.dims(), layout, batches.len());
            flights.push(InFlight { rows: rows.clone(), context, x: self.embed(ids.clone(), layout) });
        }
        self.each_layer(0..self.layers.len(), |index, layer| {
            let pass = |flight: &mut InFlight| {
                let mut dropout = Dropout::new(flight.context.dropout_seed, index);
                flight.x = layer.forward(flight.x.clone(), &flight.context, &mut dropout, None);
            };
            if in_parallel {
                flights.par_iter_mut().for_each(pass);
            } else {
                flights.iter_mut().for_each(pass);
            }
        })?;
        let end = |flight: InFlight| self.finish(flight.x, &flight.context).select(0, flight.rows);
        Ok(flights.into_iter().map(end).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_keep_the_budget_and_every_sequence() {
        assert_eq!(batches_by_length(&[5, 9, 2, 30, 9, 8], 18), [vec![3], vec![1, 4], vec![5, 0], vec![2]]);
        assert!(batches_by_length(&[], 18).is_empty());
    }
}
