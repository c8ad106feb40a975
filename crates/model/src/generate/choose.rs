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
