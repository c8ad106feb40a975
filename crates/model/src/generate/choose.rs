//! Which token comes next.
//!
//! The order and the rules are those of transformers: penalty, temperature, top-k, top-p (`generation/logits_process.py`).

use std::collections::BTreeSet;

use rand::{RngCore, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::Generation;

/// How tokens are drawn.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sampling {
    /// What logits are divided by.
    pub temperature: f64,
    /// Only this many of the most probable tokens are drawn from, with those that are as probable as the last of them.
    pub top_k: Option<usize>,
    /// Only the most probable tokens are drawn from that together have at least this much (arXiv 1904.09751, section 3.1); 1 is
    /// all.
    pub top_p: f64,
    /// Decides what is drawn, with the prompt's number and the step.
    pub seed: u64,
}

impl Generation {
    /// # Panics
    /// A temperature or a penalty is not positive.
    pub(super) fn check(&self) {
        let is_positive = |number: f64| number > 0.0 && number.is_finite();
        assert!(is_positive(self.repetition_penalty), "a penalty is positive");
        let drawn = self.sampling.is_none_or(|sampling| is_positive(sampling.temperature));
        assert!(drawn, "a temperature is positive");
    }

    /// The next token of a text that has these tokens already (none are needed without a penalty), and whose answer has `step` of
    /// them. None where a logit is NaN or infinite.
    pub(super) fn choose(
        &self,
        logits: &mut [f32],
        known: &BTreeSet<i32>,
        number: u64,
        step: usize,
    ) -> Option<i32> {
        if !logits.iter().all(|logit| logit.is_finite()) {
            return None;
        }
        if self.penalises() {
            penalise(logits, known, self.repetition_penalty as f32);
        }
        let index = match &self.sampling {
            None => largest(logits),
            Some(sampling) => sampling.draw(logits, number, step),
        };
        Some(i32::try_from(index).expect("token ids are 32-bit integers"))
    }
}

fn penalise(logits: &mut [f32], known: &BTreeSet<i32>, penalty: f32) {
    for &id in known {
        let logit = usize::try_from(id).ok().and_then(|id| logits.get_mut(id));
        if let Some(logit) = logit {
            *logit = if *logit < 0.0 { *logit * penalty } else { *logit / penalty };
        }
    }
}

/// The first of the largest.
fn largest(logits: &[f32]) -> usize {
    // First the number, then its place: so the compiler makes vectors of it.
    let most = logits.iter().fold(f32::NEG_INFINITY, |most, &logit| most.max(logit));
    logits.iter().position(|&logit| logit == most).unwrap_or(0)
}

impl Sampling {
    fn draw(&self, logits: &[f32], number: u64, step: usize) -> usize {
        let mut random = ChaCha8Rng::seed_from_u64(self.seed);
        random.set_stream(number);
        random.set_word_pos(2 * step as u128);
        // 53 bits: in 0..1.
        let uniform = (random.next_u64() >> 11) as f64 / (1u64 << 53) as f64;
        let kept = self.kept(logits);
        let total: f64 = kept.iter().map(|(_, weight)| weight).sum();
        let mut sum = 0.0;
        let drawn = kept.iter().find(|(_, weight)| {
            sum += weight;
            sum > uniform * total
        });
        drawn.or(kept.last()).map_or(0, |(index, _)| *index)
    }

    /// The tokens that are drawn from, the most probable first, each with its probability up to a common factor.
    fn kept(&self, logits: &[f32]) -> Vec<(usize, f64)> {
        let most = f64::from(logits.iter().fold(f32::NEG_INFINITY, |most, &logit| most.max(logit)));
        let weight = |logit: f32| ((f64::from(logit) - most) / self.temperature).exp();
        let least = self.top_k.filter(|&k| k < logits.len()).map_or(f32::NEG_INFINITY, |k| {
            let mut sorted = logits.to_vec();
            *sorted.select_nth_unstable_by(k.max(1) - 1, |a, b| b.total_cmp(a)).1
        });
        let mut kept: Vec<(usize, f64)> = logits
            .iter()
            .enumerate()
            .filter(|(_, logit)| **logit >= least)
            .map(|(index, &logit)| (index, weight(logit)))
            .collect();
        if self.top_p < 1.0 {
            let total: f64 = kept.iter().map(|(_, weight)| weight).sum();
            // All that are below this have less together than what is left out.
            let small = total * (1.0 - self.top_p) / kept.len() as f64;
            kept.retain(|(_, weight)| *weight >= small);
            by_weight(&mut kept);
            let mut before = 0.0;
            let count = kept.iter().take_while(|(_, weight)| {
                let is_kept = before < self.top_p * total;
                before += weight;
                is_kept
            });
            let count = count.count().max(1);
            kept.truncate(count);
        } else {
            by_weight(&mut kept);
        }
        kept
    }
}

fn by_weight(kept: &mut [(usize, f64)]) {
    kept.sort_by(|(a, first), (b, second)| second.total_cmp(first).then(a.cmp(b)));
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    /// f64 exponentials and sums.
    const GOLDEN: f64 = 1e-6;

    fn golden(section: &str) -> Value {
        let path = softshard_e2e::root().join("tests/peers/golden/generate.json");
        let text = std::fs::read_to_string(path).expect("golden/generate.json is there");
        serde_json::from_str::<Value>(&text).expect("it is JSON")[section].take()
    }

    fn floats(value: &Value) -> Vec<f32> {
        value.as_array().expect("a list").iter().map(|x| x.as_f64().expect("a number") as f32).collect()
    }

    #[test]
    fn what_is_drawn_from_is_what_transformers_leaves() {
        for case in golden("warped").as_array().expect("cases") {
            let logits = floats(&case["logits"]);
            let sampling = Sampling {
                temperature: case["temperature"].as_f64().expect("a number"),
                top_k: case["top_k"].as_u64().map(|k| usize::try_from(k).expect("small")),
                top_p: case["top_p"].as_f64().expect("a number"),
                seed: 1,
            };
            let kept = sampling.kept(&logits);
            let total: f64 = kept.iter().map(|(_, weight)| weight).sum();
            let mut found = vec![0.0; logits.len()];
            kept.iter().for_each(|(index, weight)| found[*index] = weight / total);
            for (index, (found, expected)) in found.iter().zip(floats(&case["probabilities"])).enumerate() {
                assert!(
                    (found - f64::from(expected)).abs() < GOLDEN,
                    "{sampling:?} {index}: {found} {expected}"
                );
            }
        }
    }

    #[test]
    fn a_penalty_is_that_of_transformers() {
        let case = golden("penalised");
        let mut logits = floats(&case["logits"]);
        let known = case["known"].as_array().expect("ids").iter();
        let mut known: BTreeSet<i32> =
            known.map(|id| i32::try_from(id.as_i64().expect("an id")).expect("small")).collect();
        // Ids that the vocabulary does not have.
        known.extend([-1, 40, i32::MAX]);
        penalise(&mut logits, &known, 1.3);
        for (found, expected) in logits.iter().zip(floats(&case["penalised"])) {
            assert!((f64::from(*found) - f64::from(expected)).abs() < GOLDEN, "{found} {expected}");
        }
    }

    #[test]
    fn tokens_are_drawn_as_often_as_they_are_probable() {
        const DRAWS: u64 = 20_000;
        let logits = [0.0f32, 1.0, f32::MIN, 0.5, -1.0];
        let sampling = Sampling { temperature: 0.8, top_k: None, top_p: 0.95, seed: 7 };
        let kept = sampling.kept(&logits);
        let total: f64 = kept.iter().map(|(_, weight)| weight).sum();
        let mut counts = [0u32; 5];
        (0..DRAWS).for_each(|number| counts[sampling.draw(&logits, number, 3)] += 1);
        for (index, count) in counts.iter().enumerate() {
            let weight =
                kept.iter().find(|(kept, _)| *kept == index).map_or(0.0, |(_, weight)| weight / total);
            let expected = weight * DRAWS as f64;
            // Five standard deviations.
            let most = 5.0 * (expected * (1.0 - weight)).sqrt();
            assert!((f64::from(*count) - expected).abs() <= most, "{index}: {count} of {expected}");
        }
        let draws = |seed, step| (0..40).map(move |n| Sampling { seed, ..sampling }.draw(&logits, n, step));
        assert!(draws(7, 3).eq(draws(7, 3)) && draws(7, 3).ne(draws(7, 4)) && draws(7, 3).ne(draws(8, 3)));
    }

    #[test]
    fn the_first_of_the_largest_is_taken_and_what_is_no_number_is_refused() {
        let mut greedy = Generation::greedy(1, &[]);
        let none = BTreeSet::new();
        assert_eq!(greedy.choose(&mut [1.0, 3.0, -2.0, 3.0], &none, 0, 0), Some(1));
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            assert_eq!(greedy.choose(&mut [1.0, bad, 2.0], &none, 0, 0), None);
        }
        // 2 / 4 is less than 1; -1 · 4 is less than -2.
        greedy.repetition_penalty = 4.0;
        assert_eq!(greedy.choose(&mut [2.0, 1.0], &BTreeSet::from([0]), 0, 0), Some(1));
        assert_eq!(greedy.choose(&mut [-1.0, -2.0], &BTreeSet::from([0]), 0, 0), Some(1));
    }
}
