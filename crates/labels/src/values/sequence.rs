//! Sequences: token ids and the positions that count.

use super::error::Error;
use super::key::SequenceKey;

/// One tokenised example.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sequence {
    /// Where the example came from.
    pub source: Option<String>,
    /// Token ids, L of them.
    pub input_ids: Vec<i32>,
    /// The loss mask as ascending positions in 1..L: position t asks for token t given the tokens before it.
    pub positions: Vec<i32>,
}

impl Sequence {
    /// The key of the sequence.
    pub fn key(&self) -> SequenceKey {
        SequenceKey::of(&self.input_ids)
    }

    /// The tokens that are really there, one per position.
    ///
    /// # Panics
    /// If a position is outside of the sequence, which [`Sequence::validate`] refuses.
    pub fn gold(&self) -> Vec<i32> {
        tokens_at(&self.input_ids, &self.positions)
    }

    /// Checks ids and positions; a sequence without positions is refused, as nothing can be learned from it.
    ///
    /// # Errors
    /// [`Error::Bad`] naming the first id or position that is wrong.
    pub fn validate(&self, vocab_size: u32) -> Result<(), Error> {
        super::validate::check_sequence(&self.input_ids, &self.positions, vocab_size)
    }
}

/// `input_ids` at `positions`.
pub(crate) fn tokens_at(input_ids: &[i32], positions: &[i32]) -> Vec<i32> {
    let at = |&position: &i32| input_ids[usize::try_from(position).expect("positions are not negative")];
    positions.iter().map(at).collect()
}
