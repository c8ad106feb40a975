//! How far a student is from its teacher, and what stands for the tokens that labels do not name.
//!
//! Legend: C rows of one chunk, E events.

use std::fmt;

use burn::tensor::Tensor;
use schemars::{JsonSchema, Schema, json_schema};
use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{
        Error, MapAccess, Visitor,
        value::{MapAccessDeserializer, MapDeserializer},
    },
};

/// How far the student's distribution q is from the teacher's p, as a sum over events: see `tail`.
///
/// In a recipe a string, `"reverse_kl"`, or a table where there is a number, `{ kind = "jsd", beta = 0.5 }`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(remote = "Self", tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
#[schemars(transform = or_name)]
pub enum Divergence {
    /// `KL(p ‖ q) = Σ p log(p/q)`: the paper's.
    #[default]
    ForwardKl,
    /// `KL(q ‖ p) = Σ q log(q/p)` (MiniLLM, arXiv 2306.08543). No p is taken to be below 1e-10 here: rounding can leave a tail empty.
    ReverseKl,
    /// `beta · KL(p ‖ m) + (1 - beta) · KL(q ‖ m)` with `m = beta · p + (1 - beta) · q` (GKD, arXiv 2306.13649, equation 1).
    Jsd {
        /// Above 0 and below 1.
        beta: f64,
    },
    /// `KL(p ‖ lambda · p + (1 - lambda) · q)` (DistiLLM, arXiv 2402.03898, equation 4).
    SkewKl {
        /// Above 0 and below 1; with 0 it would be the forward KL.
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
        let (name, number) = match *self {
            Divergence::Jsd { beta } => ("beta", beta),
            Divergence::SkewKl { lambda } => ("lambda", lambda),
            Divergence::ForwardKl | Divergence::ReverseKl | Divergence::Tvd => return Ok(()),
        };
        if number > 0.0 && number < 1.0 {
            return Ok(());
        }
        Err(format!("expected a {name} above 0 and below 1, found {number}"))
    }

    /// The divergence event by event. A probability of zero has a log so low that it is one after `exp`, but finite.
    ///
    /// # Shapes
    /// All `[C, E]`, or `[C, 1]` for a teacher's side that is the same for all events.
    pub(crate) fn terms(&self, p: Tensor<2>, log_p: Tensor<2>, log_q: Tensor<2>) -> Terms {
        match *self {
            Divergence::ForwardKl => Terms { values: p.clone() * (log_p - log_q), pulls: -p },
            Divergence::ReverseKl => {
                let (q, ratio) = (log_q.clone().exp(), log_q - log_p);
                Terms { values: q.clone() * ratio.clone(), pulls: q * (ratio + 1.0) }
            }
            Divergence::Jsd { beta } => {
                let log_m = log_sum(log_p.clone() + beta.ln(), log_q.clone() + (1.0 - beta).ln());
                let pulls = log_q.clone().exp() * (1.0 - beta) * (log_q - log_m.clone());
                Terms { values: p * beta * (log_p - log_m) + pulls.clone(), pulls }
            }
            Divergence::SkewKl { lambda } => {
                let log_q = log_q + (1.0 - lambda).ln();
                let log_m = log_sum(log_p.clone() + lambda.ln(), log_q.clone());
                let pulls = -p.clone() * (log_q - log_m.clone()).exp();
                Terms { values: p * (log_p - log_m), pulls }
            }
            Divergence::Tvd => {
                let q = log_q.exp();
                let gap = q.clone() - p;
                Terms { values: gap.clone().abs() * 0.5, pulls: q * gap.sign() * 0.5 }
            }
        }
    }
}

/// The events of a divergence `Σ f(p, q)`.
pub(crate) struct Terms {
    /// f, `[C, E]`.
    pub(crate) values: Tensor<2>,
    /// q · ∂f/∂q, `[C, E]`; 0 where q is 0.
    pub(crate) pulls: Tensor<2>,
}

/// log(e^a + e^b).
///
/// # Shapes
/// `a` as `b`, or `[C, 1]`.
fn log_sum(a: Tensor<2>, b: Tensor<2>) -> Tensor<2> {
    let a = a.expand(b.dims());
    let gap = (a.clone() - b.clone()).abs();
    a.max_pair(b) + (-gap).exp().log1p()
}

impl Serialize for Divergence {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        Divergence::serialize(self, serializer)
    }
}

/// A name is a table that has only a kind.
impl<'de> Deserialize<'de> for Divergence {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct DivergenceVisitor;

        impl<'de> Visitor<'de> for DivergenceVisitor {
            type Value = Divergence;

            fn expecting(&self, text: &mut fmt::Formatter) -> fmt::Result {
                text.write_str("a name as \"reverse_kl\", or a table as { kind = \"jsd\", beta = 0.5 }")
            }

            fn visit_str<E: Error>(self, name: &str) -> Result<Divergence, E> {
                let table = [("kind", name)].into_iter();
                Divergence::deserialize(MapDeserializer::<_, E>::new(table))
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Divergence, A::Error> {
                Divergence::deserialize(MapAccessDeserializer::new(map))
            }
        }
        deserializer.deserialize_any(DivergenceVisitor)
    }
}

/// The table, or the name of a divergence without a number.
fn or_name(schema: &mut Schema) {
    let table = std::mem::take(schema);
    let names = json_schema!({ "enum": ["forward_kl", "reverse_kl", "tvd"] });
    *schema = json_schema!({ "anyOf": [names, table] });
}

/// What stands for the tokens that the labels do not name, of which there are R in a vocabulary of V.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Tail {
    /// One event "everything else" on both sides, with the mass that each side has there.
    #[default]
    Bucket,
    /// Nothing: both sides are scaled to one over the named tokens. Where the student has its other mass, nothing says.
    Renormalise,
    /// Nothing: the sum is over the named tokens as they are. Forward and skew KL are least where the student has all its mass there.
    Drop,
    /// R events: the teacher's remaining mass, spread evenly over them, and what the student has at each.
    Uniform,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_divergence_is_a_name_or_a_table() {
        let of = |text: &str| serde_json::from_str::<Divergence>(text);
        assert_eq!(of(r#""reverse_kl""#).unwrap(), Divergence::ReverseKl);
        assert_eq!(of(r#"{"kind": "tvd"}"#).unwrap(), Divergence::Tvd);
        assert_eq!(of(r#"{"kind": "jsd", "beta": 0.5}"#).unwrap(), Divergence::Jsd { beta: 0.5 });
        for (text, expected) in [
            (r#""jsd""#, "missing field `beta`"),
            (r#""reverse""#, "unknown variant `reverse`"),
            (r#"{"kind": "skew_kl", "beta": 0.5}"#, "unknown field `beta`"),
            ("3", "a name as \"reverse_kl\", or a table"),
        ] {
            let error = of(text).expect_err(text).to_string();
            assert!(error.contains(expected), "{text}: {error}");
        }
        for divergence in [Divergence::Tvd, Divergence::SkewKl { lambda: 0.1 }] {
            assert_eq!(of(&serde_json::to_string(&divergence).unwrap()).unwrap(), divergence);
        }
    }

    #[test]
    fn numbers_at_the_ends_are_other_divergences() {
        assert_eq!(Divergence::Jsd { beta: 0.5 }.check(), Ok(()));
        for number in [0.0, 1.0, -0.1, f64::NAN] {
            assert!(Divergence::Jsd { beta: number }.check().is_err());
            assert!(Divergence::SkewKl { lambda: number }.check().is_err());
        }
    }
}
