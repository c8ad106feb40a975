//! Batches of sequences: which go together, and the hidden states that predict their labelled tokens.
//!
//! Legend: B sequences, T tokens of the longest, N labelled tokens of all, D model width.

use burn::tensor::{Int, Tensor, TensorData};

use crate::Decoder;

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

impl Decoder {
    /// Hidden states that predict the tokens at `positions`: of each sequence the states one before them, which have
    /// read the tokens < t and nothing else. Sequences are padded on the right, which no returned row can see.
    ///
    /// # Shapes
    /// `sequences`: B slices of at most T token ids; `positions`: B slices of labelled positions, each in `1..len`,
    /// N in all. The result: `[N, D]`, sequence by sequence.
    ///
    /// # Panics
    /// A position is outside of its sequence.
    pub fn hidden_before(&self, sequences: &[&[i32]], positions: &[&[i32]]) -> Tensor<2> {
        let tokens = sequences.iter().map(|sequence| sequence.len()).max().unwrap_or(0);
        let mut ids = vec![0; sequences.len() * tokens];
        let mut rows = Vec::with_capacity(positions.iter().map(|positions| positions.len()).sum());
        for (index, (sequence, positions)) in sequences.iter().zip(positions).enumerate() {
            let start = index * tokens;
            ids[start..start + sequence.len()].copy_from_slice(sequence);
            for &position in *positions {
                let position = usize::try_from(position).expect("positions are not negative");
                assert!((1..sequence.len()).contains(&position), "a labelled position is in 1..L");
                rows.push(i32::try_from(start + position - 1).expect("a batch has fewer than 2^31 tokens"));
            }
        }
        let ids = TensorData::new(ids, [sequences.len(), tokens]);
        let hidden = self.hidden(Tensor::<2, Int>::from_data(ids, &self.device));
        let labelled = rows.len();
        let rows = Tensor::<1, Int>::from_data(TensorData::new(rows, [labelled]), &self.device);
        hidden.reshape([sequences.len() * tokens, self.config().hidden_size]).select(0, rows)
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
