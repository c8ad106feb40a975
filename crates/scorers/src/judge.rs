//! A decoder as a scorer: asked whether a claim is supported, the probability that it says Yes.
//!
//! As Bespoke-MiniCheck is used (Liyan06/MiniCheck b58b9fa6): each sentence of the answer with each chunk of the document, of the first
//! new token the probabilities of `yes` in any case, as far as they are among the five greatest; the best chunk, the worst sentence.
//!
//! Legend: N prompts, D model width, V vocabulary.

use std::sync::atomic::AtomicBool;

use burn::tensor::Tensor;
use softshard_model::{Arrangement, Decoder};

use crate::batch::in_batches;
use crate::chunks::by_size;
use crate::rules::{Over, Pair, Score, Verdict, combined, each};
use crate::scorer::check;
use crate::{Error, Kind};

/// Tokens that instruction and claim have beside a chunk.
const BESIDE_CHUNK: usize = 300;
/// Of the most probable tokens so many are looked at.
const LOOKED_AT: usize = 5;

/// What a judge is told first, as Bespoke-MiniCheck was trained.
pub const SYSTEM_PROMPT: &str = "Determine whether the provided claim is consistent with the corresponding document. Consistency in this \
    context implies that all information presented in the claim is substantiated by the document. If not, it should be considered \
    inconsistent. Please assess the claim's consistency with the document by responding with either \"Yes\" or \"No\".";

/// What a judge is asked of a claim, as Bespoke-MiniCheck was trained.
pub fn user_prompt(document: &str, claim: &str) -> String {
    format!("Document: {document}\nClaim: {claim}")
}

/// What the caller's tokenizer and template say, or why they refuse.
pub type Asked<T> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// A decoder with what of its tokenizer a judge needs: chat template and vocabulary are the caller's.
pub struct Judge<'a> {
    /// The model.
    pub decoder: &'a Decoder,
    /// Tokens of a text.
    pub count: &'a dyn Fn(&str) -> Asked<usize>,
    /// Ids of the prompt that asks whether a document (first) supports a claim (second).
    pub prompt: &'a dyn Fn(&str, &str) -> Asked<Vec<i32>>,
    /// Ids of the tokens that say yes.
    pub yes: &'a [i32],
    /// The product of hidden states `[N, D]` with the head `[V, D]`, `[N, V]` in f32; `softshard_losses::logits` is one.
    pub logits: &'a dyn Fn(Tensor<2>, &Tensor<2>) -> Tensor<2>,
}

impl Judge<'_> {
    /// A verdict of each pair.
    ///
    /// # Errors
    /// As [`crate::Scorer::score`]; streamed weights cannot be read; there is no token that says yes.
    pub fn score(&self, pairs: &[Pair<'_>], stop: &AtomicBool) -> Result<Vec<Verdict>, Error> {
        if self.yes.is_empty() || !self.yes.iter().all(|id| self.knows(*id)) {
            let expected = format!("tokens below {} that say yes", self.decoder.config().vocab_size);
            return Err(Error::bad("judge", expected, format!("{:?}", self.yes)));
        }
        let mut plans = Vec::new();
        for (index, pair) in pairs.iter().enumerate() {
            check(index, pair, Kind::Judge)?;
            plans.push(self.plan(pair)?);
        }
        let prompts: Vec<&[i32]> =
            plans.iter().flat_map(|plan| plan.prompts.iter().map(Vec::as_slice)).collect();
        let device = self.decoder.device();
        let found = in_batches(&prompts, device, stop, &|prompts: &[&[i32]]| self.batch(prompts))?;
        let mut rest = found.as_slice();
        let verdict = |plan: Plan| {
            let (own, later) = rest.split_at(plan.prompts.len());
            rest = later;
            plan.instead.unwrap_or_else(|| {
                let consistent = combined(own, plan.chunks, Over::Least);
                Verdict::Scored(Score { consistent, spans: Vec::new(), chunks: plan.chunks, cut: false })
            })
        };
        Ok(plans.into_iter().map(verdict).collect())
    }

    fn knows(&self, id: i32) -> bool {
        usize::try_from(id).is_ok_and(|id| id < self.decoder.config().vocab_size)
    }

    fn plan(&self, pair: &Pair<'_>) -> Result<Plan, Error> {
        let instead = |verdict| Plan { prompts: Vec::new(), chunks: 0, instead: Some(verdict) };
        if pair.answer.trim().is_empty() {
            return Ok(instead(Verdict::Empty));
        }
        let context = self.decoder.config().context();
        // Models that read little are not Bespoke's: half of it is theirs for the document.
        let most = context.saturating_sub(BESIDE_CHUNK).max(context / 2);
        let chunks = by_size(pair.document, most, |text| (self.count)(text).map_err(Error::Prompt))?;
        let prompts = each(pair.answer, &chunks, |chunk, sentence| {
            let prompt = (self.prompt)(chunk, sentence).map_err(Error::Prompt)?;
            if let Some(id) = prompt.iter().find(|id| !self.knows(**id)) {
                let expected = format!("ids below {}, which the model has", self.decoder.config().vocab_size);
                return Err(Error::bad("judge: tokenizer", expected, id)
                    .hint("this is the tokenizer of another model"));
            }
            Ok((!prompt.is_empty() && prompt.len() < context).then_some(prompt))
        })?;
        Ok(match prompts {
            Some(prompts) => Plan { prompts, chunks: chunks.len(), instead: None },
            None => instead(Verdict::TooLong),
        })
    }

    fn batch(&self, prompts: &[&[i32]]) -> Result<Vec<f64>, Error> {
        // The state before a token that is never read: that of the prompt's last one.
        let longer: Vec<Vec<i32>> = prompts.iter().map(|prompt| [prompt, &[0][..]].concat()).collect();
        let ends: Vec<[i32; 1]> = prompts
            .iter()
            .map(|prompt| [i32::try_from(prompt.len()).expect("a context has fewer than 2^31 tokens")])
            .collect();
        let sequences: Vec<&[i32]> = longer.iter().map(Vec::as_slice).collect();
        let positions: Vec<&[i32]> = ends.iter().map(<[i32; 1]>::as_slice).collect();
        let hidden = self.decoder.hidden_before(&sequences, &positions, Arrangement::Ragged)?;
        let logits = (self.logits)(hidden, &self.decoder.head());
        let [_, vocabulary] = logits.dims();
        let values = logits.try_into_vec_as::<f32>().map_err(|error| {
            softshard_model::Error::Device(format!("the logits could not be read: {error}"))
        })?;
        let row = |row: &[f32]| says_yes(row, self.yes);
        let found: Vec<f64> = values.chunks_exact(vocabulary).map(row).collect();
        match found.iter().find(|value| !value.is_finite()) {
            Some(value) => Err(Error::bad("judge: logits", "finite numbers", value)),
            None => Ok(found),
        }
    }
}

/// Prompts of a pair, or its verdict where there are none.
struct Plan {
    prompts: Vec<Vec<i32>>,
    chunks: usize,
    instead: Option<Verdict>,
}

/// The sum of the probabilities of these tokens, of each that is among the greatest five.
fn says_yes(logits: &[f32], yes: &[i32]) -> f64 {
    let most = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    let sum: f64 = logits.iter().map(|&logit| (f64::from(logit) - most).exp()).sum();
    let of = |&id: &i32| {
        let place = usize::try_from(id).expect("ids were compared with the vocabulary");
        let own = logits[place];
        // Ties: the lower id.
        let is_greater = |(other, &logit): (usize, &f32)| logit > own || (logit == own && other < place);
        let rank = logits.iter().enumerate().filter(|one| is_greater(*one)).count();
        if rank < LOOKED_AT { (f64::from(own) - most).exp() / sum } else { 0.0 }
    };
    yes.iter().map(of).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_the_greatest_five_those_that_say_yes_count() {
        let logits = [1.0f32, 3.0, 2.0, 0.5, 2.5, 0.9, 1.0];
        let sum: f64 = logits.iter().map(|&logit| f64::from(logit).exp()).sum();
        let of = |yes: &[i32]| says_yes(&logits, yes);
        assert!((of(&[1, 2]) - (3f64.exp() + 2f64.exp()) / sum).abs() < 1e-12);
        assert!((of(&[0]) - 1f64.exp() / sum).abs() < 1e-12, "the fourth");
        assert!((of(&[6]) - 1f64.exp() / sum).abs() < 1e-12, "the fifth");
        assert_eq!(of(&[5, 3]), 0.0, "the sixth and the seventh");
        assert!(says_yes(&[f32::NAN; 3], &[0]).is_nan());
    }
}
