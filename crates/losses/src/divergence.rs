//! How far a student is from its teacher, and what stands for the tokens that labels do not name.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How far the student's distribution q is from the teacher's p.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Divergence {
    /// `KL(p ‖ q) = Σ p log(p/q)`: the paper's.
    #[default]
    ForwardKl,
    /// `KL(q ‖ p)` (MiniLLM, arXiv 2306.08543).
    ReverseKl,
    /// `beta · KL(p ‖ m) + (1 - beta) · KL(q ‖ m)` with `m = beta · p + (1 - beta) · q` (GKD, arXiv 2306.13649, equation 1).
    Jsd {
        /// Above 0 and below 1.
        beta: f64,
    },
    /// `KL(p ‖ lambda · p + (1 - lambda) · q)` (DistiLLM, arXiv 2402.03898).
    SkewKl {
        /// At least 0 and below 1; 0 is the forward KL.
        lambda: f64,
    },
    /// Total variation distance, `½ Σ |p - q|`.
    Tvd,
}

impl Divergence {
    /// Its name as people write it.
    pub fn name(&self) -> &'static str {
        match self {
            Divergence::ForwardKl => "KL",
            Divergence::ReverseKl => "reverse KL",
            Divergence::Jsd { .. } => "JSD",
            Divergence::SkewKl { .. } => "skew KL",
            Divergence::Tvd => "TVD",
        }
    }

    /// # Errors
    /// What was expected of its number and what was found.
    pub fn check(&self) -> Result<(), String> {
        match *self {
            Divergence::Jsd { beta } if !(beta > 0.0 && beta < 1.0) => {
                Err(format!("expected a beta above 0 and below 1, found {beta}"))
            }
            Divergence::SkewKl { lambda } if !(0.0..1.0).contains(&lambda) => {
                Err(format!("expected a lambda of at least 0 and below 1, found {lambda}"))
            }
            _ => Ok(()),
        }
    }
}

/// What stands for the tokens that the labels do not name.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Tail {
    /// One event "everything else" on both sides.
    #[default]
    Bucket,
    /// Nothing: both sides are scaled to one over the named tokens.
    Renormalise,
    /// Nothing: the sum is over the named tokens as they are, which is biased.
    Drop,
    /// The teacher's remaining mass, spread evenly over them.
    Uniform,
}
