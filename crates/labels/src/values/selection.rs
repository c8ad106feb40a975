//! What labels keep of a distribution.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Which entries of the teacher's distribution are kept at each position.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Selection {
    /// The `k` most probable tokens.
    TopK {
        /// Entries per position (the whole vocabulary where it is smaller).
        #[schemars(range(min = 1))]
        k: u32,
    },
    /// The smallest set of most probable tokens whose mass reaches `p`, at most `k` of them.
    TopP {
        /// Probability mass to reach, above 0 and at most 1.
        #[schemars(range(max = 1), extend("exclusiveMinimum" = 0))]
        p: f64,
        /// Most entries per position.
        #[schemars(range(min = 1))]
        k: u32,
    },
    /// Draws from the full distribution, stored as unique tokens with counts: `count / draws` estimates a probability
    /// without bias (arXiv 2503.16870).
    Sampled {
        /// Draws per position.
        #[schemars(range(min = 1, max = Selection::MAX_DRAWS))]
        draws: u32,
    },
    /// The `k` most probable tokens, and draws from the rest: exact where it matters, without bias where it was cut.
    TopKSampled {
        /// Exact entries per position, fewer than the vocabulary.
        #[schemars(range(min = 1))]
        k: u32,
        /// Draws per position from the other tokens.
        #[schemars(range(min = 1, max = Selection::MAX_DRAWS))]
        draws: u32,
    },
}

impl Selection {
    /// Most draws per position.
    pub const MAX_DRAWS: u32 = 65_536;

    /// Entries that a position has at most.
    pub fn most_entries(&self) -> u32 {
        match *self {
            Self::TopK { k } | Self::TopP { k, .. } => k,
            Self::Sampled { draws } => draws,
            Self::TopKSampled { k, draws } => k.saturating_add(draws),
        }
    }

    /// Whether entries are drawn, and so have counts.
    pub fn draws(&self) -> Option<u32> {
        match *self {
            Self::TopK { .. } | Self::TopP { .. } => None,
            Self::Sampled { draws } | Self::TopKSampled { draws, .. } => Some(draws),
        }
    }

    /// Whether entries are exact, and so have log-probabilities.
    pub fn is_exact(&self) -> bool {
        !matches!(self, Self::Sampled { .. })
    }

    /// Most exact entries of a position: its first ones. The others are drawn.
    pub(crate) fn most_exact(&self) -> u32 {
        match *self {
            Self::TopK { k } | Self::TopP { k, .. } | Self::TopKSampled { k, .. } => k,
            Self::Sampled { .. } => 0,
        }
    }
}

impl fmt::Display for Selection {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TopK { k } => write!(to, "top_k {k}"),
            Self::TopP { p, k } => write!(to, "top_p {p}, at most {k}"),
            Self::Sampled { draws } => write!(to, "sampled, {draws} draws"),
            Self::TopKSampled { k, draws } => write!(to, "top_k_sampled {k}, {draws} draws"),
        }
    }
}

/// A column that a plan may leave out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OptionalColumn {
    /// Needed for temperatures other than 1.
    LogSumExp,
    /// Needed by selections that draw: a divergence is measured against it.
    Entropy,
    /// Needed to judge the teacher.
    GoldLogProb,
}

impl OptionalColumn {
    /// As it is called in shards and recipes.
    pub fn name(self) -> &'static str {
        match self {
            Self::LogSumExp => "log_sum_exp",
            Self::Entropy => "entropy",
            Self::GoldLogProb => "gold_log_prob",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn selections_and_columns_have_short_names() {
        let names = [
            (Selection::TopK { k: 64 }, "top_k 64"),
            (Selection::TopP { p: 0.98, k: 64 }, "top_p 0.98, at most 64"),
            (Selection::Sampled { draws: 50 }, "sampled, 50 draws"),
            (Selection::TopKSampled { k: 16, draws: 50 }, "top_k_sampled 16, 50 draws"),
        ];
        for (selection, name) in names {
            assert_eq!(selection.to_string(), name);
        }
        for column in [OptionalColumn::LogSumExp, OptionalColumn::Entropy, OptionalColumn::GoldLogProb] {
            assert_eq!(serde_json::to_value(column).unwrap(), column.name());
        }
    }
}
