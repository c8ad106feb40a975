//! The labels of one sequence.

use crate::validate::Validator;
use crate::{Error, SequenceKey};

/// The teacher's labels of one sequence of L tokens, N of them labelled, E entries kept in all.
///
/// The labels at position t describe the teacher's distribution of token t given the tokens before t.
#[derive(Clone, Debug, PartialEq)]
pub struct SequenceLabels {
    /// Where the example came from.
    pub source: Option<String>,
    /// The whole sequence, L ids.
    pub input_ids: Vec<i32>,
    /// Labelled positions, ascending, each in 1..L; N of them.
    pub positions: Vec<i32>,
    /// Entries kept per position, N; they sum to E.
    pub counts: Vec<i32>,
    /// Kept token ids, E: per position by falling `log_probs`, ties by id.
    pub token_ids: Vec<i32>,
    /// Natural logarithm of the teacher's full-vocabulary probability at T=1, E; never renormalised.
    pub log_probs: Vec<f32>,
    /// Of the raw logits over the full vocabulary, N: raw logit = log-probability + log-sum-exp.
    pub log_sum_exp: Vec<f32>,
    /// Logarithm of the probability that was cut off, N; −∞ where nothing was.
    pub tail_log_mass: Vec<f32>,
    /// Entropy of the full distribution in nats, N.
    pub entropy: Vec<f32>,
    /// Log-probability of the token that is really there, N.
    pub gold_log_prob: Vec<f32>,
    /// For each extra temperature X of the plan: log Σ exp(z/X), N each.
    pub log_partitions: Vec<Vec<f32>>,
    /// How often each entry was drawn, E; only of sampled selections, which no plan has yet.
    pub sample_counts: Option<Vec<i32>>,
}

/// What labels of a plan may hold, see [`LabelPlan::limits`](crate::LabelPlan::limits).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LabelLimits {
    /// `input_ids` are below it.
    pub input_vocab_size: u32,
    /// `token_ids` are below it.
    pub label_vocab_size: u32,
    /// Fewest and most entries of a position.
    pub entries_per_position: [u32; 2],
    /// Number of extra temperatures.
    pub temperatures: usize,
}

impl SequenceLabels {
    /// The key of the sequence.
    pub fn key(&self) -> SequenceKey {
        SequenceKey::of(&self.input_ids)
    }

    /// The tokens that are really there, one per position.
    ///
    /// # Panics
    /// If a position is outside of the sequence, which [`SequenceLabels::validate`] refuses.
    pub fn gold(&self) -> Vec<i32> {
        crate::sequence::tokens_at(&self.input_ids, &self.positions)
    }

    /// Checks all that a reader relies on: lengths, ranges, order, signs, no NaN.
    ///
    /// # Errors
    /// [`Error::Bad`] naming the first field and position that is wrong.
    pub fn validate(&self, limits: &LabelLimits) -> Result<(), Error> {
        if self.sample_counts.is_some() {
            return Err(Error::bad("sample_counts", "none, as the selection does not sample", "some"));
        }
        Validator::new(limits).labels(&self.into())
    }

    /// Checks what only exact values can show: kept and cut mass add up to 1, and `gold_log_prob` is that of the
    /// token at its position. The writer calls it before rounding; it finds labels that are off by one.
    ///
    /// # Errors
    /// [`Error::Bad`] naming the first position that is wrong.
    pub fn validate_exact(&self) -> Result<(), Error> {
        crate::validate::exact(self)
    }
}
