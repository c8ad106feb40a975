//! What log-likelihoods of choices are worth.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{kind::Kind, question::Question};
use crate::{choices::Likelihood, statistics::number};

/// Scores of a row, each 0 to 1; a task has some of them. docs/tasks.md has the formulas.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Scores {
    /// 1 where the right choice is the most probable.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub acc: Option<f64>,
    /// The same by log-likelihood for each character.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub acc_norm: Option<f64>,
    /// The same by log-likelihood for each byte of UTF-8.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub acc_bytes: Option<f64>,
    /// 1 where the best answer is the most probable.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mc1: Option<f64>,
    /// Share of the probability of all answers that is on true ones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mc2: Option<f64>,
    /// 1 where the true completion is the most probable for each token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub factor: Option<f64>,
    /// Share of pairs whose faithful summary gains more by the document: mean log p(summary | document) minus mean log
    /// p(summary | nothing), means over tokens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fib: Option<f64>,
    /// The same by mean log p(summary | document).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fib_mean: Option<f64>,
    /// The same by the sum of log p(summary | document).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fib_sum: Option<f64>,
    /// The same by the difference of the sums.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fib_sum_minus_null: Option<f64>,
    /// The same by mean log p(summary | nothing): what is known without the document.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fib_null: Option<f64>,
}

impl Scores {
    /// Names of all of them.
    pub(crate) const NAMES: [&'static str; 11] = [
        "acc",
        "acc_norm",
        "acc_bytes",
        "mc1",
        "mc2",
        "factor",
        "fib",
        "fib_mean",
        "fib_sum",
        "fib_sum_minus_null",
        "fib_null",
    ];

    /// The score of a name.
    pub(crate) fn get(&self, name: &str) -> Option<f64> {
        let values = [
            self.acc,
            self.acc_norm,
            self.acc_bytes,
            self.mc1,
            self.mc2,
            self.factor,
            self.fib,
            self.fib_mean,
            self.fib_sum,
            self.fib_sum_minus_null,
            self.fib_null,
        ];
        Self::NAMES.iter().position(|known| *known == name).and_then(|index| values[index])
    }

    /// Of a question, by what was found of its requests.
    pub(crate) fn of(kind: &Kind, question: &Question, found: &[Likelihood]) -> Self {
        let gold = question.gold[0];
        let right = |scores: Vec<f64>| Some(f64::from(u8::from(first_largest(&scores) == gold)));
        let sums = || found.iter().map(|one| one.log_prob);
        let by = |length: fn(&str) -> usize| {
            sums().zip(&question.choices).map(|(sum, choice)| sum / number(length(choice))).collect()
        };
        match kind {
            Kind::Mapped(_) | Kind::HellaSwag | Kind::Mmlu => Self {
                acc: right(sums().collect()),
                acc_norm: right(by(|choice| choice.chars().count())),
                acc_bytes: right(by(str::len)),
                ..Self::default()
            },
            Kind::Winogrande => Self { acc: right(sums().collect()), ..Self::default() },
            Kind::TruthfulQa1 => Self { mc1: right(sums().collect()), ..Self::default() },
            Kind::TruthfulQa2 => {
                Self { mc2: Some(mass(&sums().collect::<Vec<_>>(), &question.gold)), ..Self::default() }
            }
            Kind::Factor => {
                let per_token = found.iter().map(|one| one.log_prob / number(one.tokens)).collect();
                Self { factor: right(per_token), ..Self::default() }
            }
            Kind::Fib(_) => Self::of_summaries(question, found),
        }
    }

    fn of_summaries(question: &Question, found: &[Likelihood]) -> Self {
        let (with, without) = found.split_at(question.choices.len());
        let mean = |one: &Likelihood| one.log_prob / number(one.tokens);
        let share = |score: &dyn Fn(&Likelihood, &Likelihood) -> f64| {
            let scores: Vec<f64> =
                with.iter().zip(without).map(|(with, without)| score(with, without)).collect();
            let (faithful, unfaithful) = scores.split_at(question.gold.len());
            let wins = faithful.iter().flat_map(|one| unfaithful.iter().filter(move |other| one > *other));
            Some(number(wins.count()) / number(faithful.len() * unfaithful.len()))
        };
        Self {
            fib: share(&|with, without| mean(with) - mean(without)),
            fib_mean: share(&|with, _| mean(with)),
            fib_sum: share(&|with, _| with.log_prob),
            fib_sum_minus_null: share(&|with, without| with.log_prob - without.log_prob),
            fib_null: share(&|_, without| mean(without)),
            ..Self::default()
        }
    }
}

/// The first of the largest.
fn first_largest(scores: &[f64]) -> usize {
    (1..scores.len()).fold(0, |best, index| if scores[index] > scores[best] { index } else { best })
}

/// Σ exp of those that are named over Σ exp of all.
fn mass(log_probs: &[f64], of: &[usize]) -> f64 {
    let largest = log_probs.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let all: Vec<f64> = log_probs.iter().map(|one| libm::exp(one - largest)).collect();
    of.iter().map(|&index| all[index]).sum::<f64>() / all.iter().sum::<f64>()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(sums: &[(f64, usize)]) -> Vec<Likelihood> {
        sums.iter().map(|&(log_prob, tokens)| Likelihood { log_prob, is_greedy: false, tokens }).collect()
    }

    fn question(choices: &[&str], gold: &[usize]) -> Question {
        let choices = choices.iter().map(|&choice| choice.to_owned()).collect();
        Question { gold: gold.to_vec(), ..Question::of("context".to_owned(), choices, 0, " ") }
    }

    #[test]
    fn lengths_normalise_and_the_first_of_equals_is_taken() {
        let choices = question(&["aa", "bbbb", "éé"], &[1]);
        let scores = Scores::of(&Kind::HellaSwag, &choices, &found(&[(-2.0, 1), (-3.0, 1), (-2.0, 1)]));
        assert_eq!((scores.acc, scores.acc_norm, scores.acc_bytes), (Some(0.0), Some(1.0), Some(0.0)));
        let one = question(&["a", "b"], &[0]);
        assert_eq!(Scores::of(&Kind::Winogrande, &one, &found(&[(-1.0, 1), (-1.0, 1)])).acc, Some(1.0));
        let two = question(&["a", "b"], &[1]);
        assert_eq!(Scores::of(&Kind::TruthfulQa1, &two, &found(&[(-1.0, 1), (-1.0, 1)])).mc1, Some(0.0));
        let per_token = Scores::of(&Kind::Factor, &one, &found(&[(-4.0, 4), (-3.0, 2)])).factor;
        assert_eq!(per_token, Some(1.0));
    }

    #[test]
    fn the_mass_of_true_answers_survives_small_probabilities() {
        let asked = question(&["a", "b", "c"], &[0, 2]);
        let far = Scores::of(&Kind::TruthfulQa2, &asked, &found(&[(-2000.0, 1), (-2000.0, 1), (-2000.0, 1)]));
        assert!((far.mc2.unwrap() - 2.0 / 3.0).abs() < 1e-12);
    }

    #[test]
    fn pairs_of_summaries_are_counted() {
        let asked = question(&["faithful", "one", "other"], &[0]);
        // Behind the document, then behind nothing.
        let found = found(&[(-6.0, 3), (-2.0, 2), (-9.0, 3), (-12.0, 3), (-3.0, 2), (-9.5, 3)]);
        let scores = Scores::of(&Kind::Fib(String::new()), &asked, &found);
        // Gains by the mean: 2, 0.5, 0.17; means -2, -1, -3; sums -6, -2, -9; gains 6, 1, 0.5; alone -4, -1.5, -3.17.
        let all = [scores.fib, scores.fib_mean, scores.fib_sum, scores.fib_sum_minus_null, scores.fib_null];
        assert_eq!(all, [1.0, 0.5, 0.5, 1.0, 0.0].map(Some));
    }

    #[test]
    fn every_score_has_its_name() {
        let json =
            serde_json::to_value(Scores { fib_sum_minus_null: Some(0.5), ..Scores::default() }).unwrap();
        assert_eq!(json, serde_json::json!({ "fib_sum_minus_null": 0.5 }));
        for name in Scores::NAMES {
            let one: Scores = serde_json::from_value(serde_json::json!({ name: 0.25 })).unwrap();
            assert_eq!(one.get(name), Some(0.25), "{name}");
        }
    }
}
