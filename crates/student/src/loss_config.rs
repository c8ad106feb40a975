//! Recipe section `[student.loss]`: which divergence, and how much it weighs.

use std::fmt;

use schemars::JsonSchema;
use serde::{
    Deserialize, Deserializer, Serialize,
    de::{Error, MapAccess, Visitor, value::MapAccessDeserializer},
};
use softshard_labels::Selection;
use softshard_losses::{DistillLoss, Divergence, Tail};

/// `L = CE(gold) + alpha · T² · D(teacher, student)`, a mean over labelled tokens. Recipe section `[student.loss]`. docs/losses.md has the
/// formulas.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LossConfig {
    /// Weight of the distillation term; 0: supervised only.
    #[serde(default)]
    pub alpha: Alpha,
    /// How far the student is from the teacher.
    #[serde(default)]
    pub divergence: Divergence,
    /// What stands for the tokens that the labels do not name.
    #[serde(default)]
    pub tail: Tail,
    /// Temperature of both distributions; other than 1 it must be among `labels.temperatures`.
    #[serde(default = "default_temperature")]
    pub temperature: f64,
    /// Weights 1/(1+alpha) and alpha/(1+alpha) instead of 1 and alpha, as in the paper's code.
    #[serde(default)]
    pub normalise: bool,
}

impl Default for LossConfig {
    fn default() -> Self {
        LossConfig {
            alpha: Alpha::default(),
            divergence: Divergence::default(),
            tail: Tail::default(),
            temperature: default_temperature(),
            normalise: false,
        }
    }
}

impl LossConfig {
    /// The loss where alpha is this, a number for all tokens.
    pub fn at(&self, alpha: f64, rows_per_chunk: usize) -> DistillLoss {
        let &LossConfig { divergence, tail, temperature, normalise, .. } = self;
        DistillLoss { alpha, divergence, tail, temperature, normalise, rows_per_chunk }
    }

    /// Refuses numbers out of range, and what no student learns from; errors name the key below `section`.
    ///
    /// # Errors
    /// What was expected and found.
    pub(crate) fn check(&self, section: &str) -> Result<(), String> {
        let bad = |key: &str, problem: String| Err(format!("`{section}.loss.{key}`: {problem}"));
        if let Err(problem) = self.alpha.check() {
            return bad("alpha", problem);
        }
        if !(self.temperature.is_finite() && self.temperature > 0.0) {
            return bad("temperature", format!("expected a number above 0, found {}", self.temperature));
        }
        if let Err(problem) = self.divergence.check() {
            return bad("divergence", problem);
        }
        if (self.divergence, self.tail) == (Divergence::ReverseKl, Tail::Drop) {
            let problem = "expected \"bucket\", \"renormalise\" or \"uniform\" for the reverse KL, found \"drop\"\nhint: its sum over some \
                           tokens is least where the student has p/e at each, and all its other mass elsewhere";
            return bad("tail", problem.to_owned());
        }
        Ok(())
    }

    /// Refuses labels whose tokens were all drawn where draws say nothing to this loss.
    ///
    /// # Errors
    /// The key of section `[student.loss]`, what was expected and what was found.
    pub fn check_selection(&self, selection: &Selection) -> Result<(), softshard_labels::Error> {
        let unread = matches!(selection, Selection::Sampled { .. }) && !self.reads_draws();
        if self.alpha.is_zero() || !unread {
            return Ok(());
        }
        let hint = "draws estimate no other loss without bias (docs/losses.md): label with top_k, top_p or top_k_sampled";
        let of = format!("for labels of the selection {selection}");
        let (place, expected, found) = if self.divergence == Divergence::ForwardKl {
            ("tail", "bucket", serde_json::json!(self.tail))
        } else {
            ("divergence", "forward_kl", serde_json::json!(self.divergence))
        };
        let place = format!("`student.loss.{place}`");
        Err(softshard_labels::Error::bad(place, format!("{expected} {of}"), found).hint(hint))
    }

    /// Whether drawn tokens count; else only exact ones do.
    pub(crate) fn reads_draws(&self) -> bool {
        self.at(0.0, 1).reads_draws()
    }
}

fn default_temperature() -> f64 {
    1.0
}

/// Weight of the distillation term: a number, or a rule.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, JsonSchema)]
#[serde(untagged)]
pub enum Alpha {
    /// The same in every step and for every token.
    Constant(f64),
    /// By step or by token.
    Rule(AlphaRule),
}

/// How the weight of the distillation term changes.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum AlphaRule {
    /// A straight line over the run.
    Linear {
        /// At the first step.
        first: f64,
        /// At the last step.
        last: f64,
    },
    /// Half a cosine over the run.
    Cosine {
        /// At the first step.
        first: f64,
        /// At the last step.
        last: f64,
    },
    /// A straight line from 0, then `peak`, then a straight line to 0.
    WarmupStableDecay {
        /// In between.
        peak: f64,
        /// Steps of the first line.
        warmup_steps: u64,
        /// Steps of the last one.
        decay_steps: u64,
    },
    /// For each token `scale` times the teacher's entropy there, in nats, as stored: at temperature 1. Little where the teacher is sure.
    Entropy {
        /// Weight at an entropy of one nat.
        scale: f64,
    },
}

impl Default for Alpha {
    fn default() -> Self {
        Alpha::Constant(1.0)
    }
}

impl Alpha {
    /// The weight at `step` of a run of `steps`, both from 0 on; of a token with one nat of entropy, if it is by entropy.
    #[expect(clippy::cast_precision_loss, reason = "step counts are far below 2^53")]
    pub fn at(&self, step: u64, steps: u64) -> f64 {
        let done = step as f64 / steps.saturating_sub(1).max(1) as f64;
        match *self {
            Alpha::Constant(alpha) | Alpha::Rule(AlphaRule::Entropy { scale: alpha }) => alpha,
            Alpha::Rule(AlphaRule::Linear { first, last }) => first + (last - first) * done,
            Alpha::Rule(AlphaRule::Cosine { first, last }) => {
                last + (first - last) * 0.5 * (1.0 + (std::f64::consts::PI * done).cos())
            }
            Alpha::Rule(AlphaRule::WarmupStableDecay { peak, warmup_steps, decay_steps }) => {
                let rise = (step + 1) as f64 / (warmup_steps + 1) as f64;
                let fall = steps.saturating_sub(step) as f64 / (decay_steps + 1) as f64;
                peak * rise.min(fall).min(1.0)
            }
        }
    }

    /// Whether it is 0 in all steps: no teacher is needed.
    pub fn is_zero(&self) -> bool {
        self.values().iter().all(|&alpha| alpha == 0.0)
    }

    /// Whether it is scaled by the teacher's entropy.
    pub fn is_by_entropy(&self) -> bool {
        matches!(self, Alpha::Rule(AlphaRule::Entropy { .. }))
    }

    /// # Errors
    /// What was expected and found.
    pub(crate) fn check(&self) -> Result<(), String> {
        match self.values().into_iter().find(|alpha| !(alpha.is_finite() && *alpha >= 0.0)) {
            Some(found) => Err(format!("expected numbers of at least 0, found {found}")),
            None => Ok(()),
        }
    }

    fn values(&self) -> Vec<f64> {
        match *self {
            Alpha::Constant(alpha) | Alpha::Rule(AlphaRule::Entropy { scale: alpha }) => vec![alpha],
            Alpha::Rule(AlphaRule::Linear { first, last } | AlphaRule::Cosine { first, last }) => {
                vec![first, last]
            }
            Alpha::Rule(AlphaRule::WarmupStableDecay { peak, .. }) => vec![peak],
        }
    }
}

/// By hand, so that an error says what is wrong with the table.
impl<'de> Deserialize<'de> for Alpha {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct AlphaVisitor;

        impl<'de> Visitor<'de> for AlphaVisitor {
            type Value = Alpha;

            fn expecting(&self, text: &mut fmt::Formatter) -> fmt::Result {
                text.write_str("a number, or a table as { kind = \"linear\", first = 0.1, last = 1.0 }")
            }

            fn visit_f64<E: Error>(self, value: f64) -> Result<Alpha, E> {
                Ok(Alpha::Constant(value))
            }

            #[expect(clippy::cast_precision_loss, reason = "a weight is a small number")]
            fn visit_i64<E: Error>(self, value: i64) -> Result<Alpha, E> {
                Ok(Alpha::Constant(value as f64))
            }

            #[expect(clippy::cast_precision_loss, reason = "a weight is a small number")]
            fn visit_u64<E: Error>(self, value: u64) -> Result<Alpha, E> {
                Ok(Alpha::Constant(value as f64))
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Alpha, A::Error> {
                AlphaRule::deserialize(MapAccessDeserializer::new(map)).map(Alpha::Rule)
            }
        }
        deserializer.deserialize_any(AlphaVisitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn alpha_is_a_number_or_a_rule() {
        let of = |text: &str| serde_json::from_str::<Alpha>(text);
        assert_eq!(of("2").expect("a number"), Alpha::Constant(2.0));
        let line = of(r#"{"kind": "linear", "first": 1.0, "last": 0.0}"#).expect("a rule");
        assert_eq!([0, 5, 10].map(|step| line.at(step, 11)), [1.0, 0.5, 0.0]);
        let cosine = of(r#"{"kind": "cosine", "first": 0.0, "last": 4.0}"#).expect("a rule");
        assert!((cosine.at(5, 11) - 2.0).abs() < 1e-12 && (cosine.at(10, 11) - 4.0).abs() < 1e-12);
        let stable =
            of(r#"{"kind": "warmup_stable_decay", "peak": 3.0, "warmup_steps": 2, "decay_steps": 1}"#);
        let stable = stable.expect("a rule");
        assert_eq!([0, 1, 2, 8, 9].map(|step| stable.at(step, 10)), [1.0, 2.0, 3.0, 3.0, 1.5]);
        let error = of(r#"{"kind": "linear", "first": 1.0, "lost": 0.0}"#).expect_err("a key is wrong");
        assert!(error.to_string().contains("lost"), "{error}");
        assert!(Alpha::Constant(-1.0).check().expect_err("negative").contains("found -1"));
    }

    fn loss(text: &str) -> LossConfig {
        serde_json::from_str(text).expect("a loss")
    }

    #[test]
    fn a_loss_that_is_least_elsewhere_is_refused() {
        let check = |text: &str| loss(text).check("student");
        let refused = check(r#"{"divergence": "reverse_kl", "tail": "drop"}"#).expect_err("no minimum at p");
        assert!(refused.starts_with("`student.loss.tail`: expected \"bucket\""), "{refused}");
        let refused = check(r#"{"divergence": {"kind": "jsd", "beta": 1.0}}"#).expect_err("no mixture");
        let expected = "`student.loss.divergence`: expected a beta above 0 and below 1, found 1";
        assert_eq!(refused, expected);
        let refused = check(r#"{"temperature": 0.0}"#).expect_err("no temperature");
        assert_eq!(refused, "`student.loss.temperature`: expected a number above 0, found 0");
        for tail in ["bucket", "renormalise", "uniform"] {
            assert_eq!(check(&format!(r#"{{"divergence": "reverse_kl", "tail": "{tail}"}}"#)), Ok(()));
        }
        assert_eq!(check(r#"{"divergence": "tvd", "tail": "drop"}"#), Ok(()));
    }

    #[test]
    fn draws_estimate_the_forward_kl_alone() {
        let (sampled, hybrid) =
            (Selection::Sampled { draws: 50 }, Selection::TopKSampled { k: 8, draws: 20 });
        let plain = loss("{}");
        assert!(plain.check_selection(&sampled).is_ok() && plain.reads_draws());
        for (text, key) in [
            (r#"{"divergence": "reverse_kl"}"#, "`student.loss.divergence`: expected forward_kl"),
            (
                r#"{"divergence": {"kind": "jsd", "beta": 0.5}}"#,
                "`student.loss.divergence`: expected forward_kl",
            ),
            (r#"{"tail": "renormalise"}"#, "`student.loss.tail`: expected bucket"),
        ] {
            let error = loss(text).check_selection(&sampled).expect_err(text).to_string();
            assert!(error.contains(key) && error.contains("sampled, 50 draws"), "{error}");
            // Its exact tokens serve.
            assert!(loss(text).check_selection(&hybrid).is_ok() && !loss(text).reads_draws());
        }
        let unweighted = LossConfig { alpha: Alpha::Constant(0.0), divergence: Divergence::Tvd, ..plain };
        assert!(unweighted.check_selection(&sampled).is_ok());
    }
}
