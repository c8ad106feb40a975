//! Log-likelihoods: how probable a model finds one text behind another. A context is computed once for all that follows it.
//!
//! Multiple choice, faithfulness by likelihood and FACTOR are made of them (`crate::tasks`).

mod encode;
mod score;

pub(crate) use encode::{Encoder, NoPair, Pair};
pub(crate) use score::{Likelihood, score};
