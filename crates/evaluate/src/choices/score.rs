//! Log-likelihoods of pairs, those with the same context together.

use std::collections::HashMap;

use anyhow::Result;
use serde::{Deserialize, Serialize};
use softshard_labels::{Error, Progress};
use softshard_losses::{DistillLoss, Targets};
use softshard_model::{Branches, Decoder, Fitting, batches_by_length};

use super::Pair;
use crate::{
    EvaluateInputs,
    inputs::{check_stop, too_large},
    partial::Parts,
};

/// Rows of hidden states that meet the vocabulary at a time.
const ROWS_PER_CHUNK: usize = 256;
/// Places in the keys and values of a layer that count as much as a token on its way through all of them.
const PLACES_PER_TOKEN: usize = 8;

/// How probable a continuation is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Likelihood {
    /// Σ log p of its tokens, nats.
    pub(crate) log_prob: f64,
    /// Whether each of its tokens is more probable than any other.
    pub(crate) is_greedy: bool,
    /// Its tokens.
    pub(crate) tokens: usize,
}

/// What is kept of a batch: of each continuation the bits of its log-likelihood, as no text keeps the last of them, and whether it
/// is greedy.
#[derive(Default, Serialize, Deserialize)]
struct Part {
    log_prob_bits: Vec<u64>,
    is_greedy: Vec<bool>,
}

/// A context, and which pairs have it.
struct Group<'a> {
    context: &'a [i32],
    pairs: Vec<usize>,
    /// That are read behind the context.
    tokens: usize,
    longest: usize,
}

impl Group<'_> {
    /// What it costs, in tokens.
    fn size(&self) -> usize {
        self.size_with(0, 0)
    }

    /// What it costs with so many pairs more, of which so many tokens are read.
    fn size_with(&self, more: usize, read: usize) -> usize {
        let places = (self.pairs.len() + more) * (self.context.len() + self.longest.max(read));
        (self.context.len() + self.tokens + read).max(places / PLACES_PER_TOKEN)
    }
}

/// Log-likelihoods of all pairs, in their order. Of a pair only the continuation meets the vocabulary.
///
/// # Errors
/// A log-likelihood that is not finite, a device without memory; a stop that was asked for.
pub(crate) fn score(
    inputs: &EvaluateInputs,
    decoder: &Decoder,
    (task, pairs): (&str, &[Pair]),
    parts: &mut Parts,
) -> Result<Vec<Likelihood>> {
    let max_tokens = inputs.config.max_tokens_per_batch;
    let groups = by_context(pairs, max_tokens);
    let sizes: Vec<usize> = groups.iter().map(Group::size).collect();
    let fitting = Fitting::default();
    let tokens_of = |batch: &[usize]| batch.iter().map(|&index| sizes[index]).sum();
    let score = |batch: &[usize]| {
        let groups: Vec<&Group> = batch.iter().map(|&index| &groups[index]).collect();
        score_batch(decoder, &groups, pairs)
    };
    let mut likelihoods = vec![Likelihood { log_prob: 0.0, is_greedy: false, tokens: 0 }; pairs.len()];
    let mut done = 0;
    for batch in batches_by_length(&sizes, max_tokens) {
        check_stop(inputs)?;
        let part: Part = parts.next(|| {
            let scored = fitting.each(&batch, &tokens_of, inputs.device, &score);
            let scored =
                scored.map_err(|error| too_large("context with its choices", sizes[batch[0]], error))?;
            let mut part = Part::default();
            for (log_prob, is_greedy) in scored.into_iter().flatten() {
                part.log_prob_bits.push(log_prob.to_bits());
                part.is_greedy.push(is_greedy);
            }
            Ok(part)
        })?;
        let members = batch.iter().flat_map(|&index| &groups[index].pairs);
        for (&pair, (bits, &is_greedy)) in members.zip(part.log_prob_bits.iter().zip(&part.is_greedy)) {
            let log_prob = f64::from_bits(*bits);
            if !log_prob.is_finite() {
                let place = format!("task `{task}` request {pair}");
                return Err(Error::bad(place, "a finite log-likelihood", log_prob).into());
            }
            likelihoods[pair] = Likelihood { log_prob, is_greedy, tokens: pairs[pair].continuation.len() };
            done += 1;
        }
        inputs.observer.progress(&Progress {
            stage: task,
            done,
            total: pairs.len() as u64,
            unit: "choices",
            ..Progress::default()
        });
    }
    Ok(likelihoods)
}

/// The log-likelihood of each continuation, group by group, and whether it is greedy.
fn score_batch(decoder: &Decoder, groups: &[&Group], pairs: &[Pair]) -> Result<Vec<(f64, bool)>> {
    let continuation = |&pair: &usize| pairs[pair].continuation.as_slice();
    let branches: Vec<Branches> =
        groups.iter().map(|group| (group.context, group.pairs.iter().map(continuation).collect())).collect();
    let hidden = decoder.hidden_of_continuations(&branches)?;
    let continuations = || branches.iter().flat_map(|(_, continuations)| continuations);
    let gold = continuations().flat_map(|continuation| continuation.iter().copied()).collect();
    let targets = Targets::without_teacher(gold);
    let scores = DistillLoss::forward_kl(1.0, ROWS_PER_CHUNK).evaluate(hidden, decoder.head(), &targets);
    let mut start = 0;
    let of = |continuation: &&[i32]| {
        let range = start..start + continuation.len();
        start = range.end;
        let log_prob = -scores.cross_entropies[range.clone()].iter().sum::<f64>();
        (log_prob, scores.correct[range].iter().all(|&correct| correct))
    };
    Ok(continuations().map(of).collect())
}

/// Pairs by their contexts, in the order of the first of each; a context whose continuations are more than a batch comes again.
fn by_context(pairs: &[Pair], max_tokens: usize) -> Vec<Group<'_>> {
    let mut groups: Vec<Group> = Vec::new();
    let mut of_context: HashMap<&[i32], usize> = HashMap::new();
    for (index, pair) in pairs.iter().enumerate() {
        let read = pair.continuation.len() - 1;
        let last = of_context.get(pair.context.as_slice()).copied();
        let group = match last.filter(|&last| groups[last].size_with(1, read) <= max_tokens) {
            Some(last) => &mut groups[last],
            None => {
                of_context.insert(&pair.context, groups.len());
                groups.push(Group { context: &pair.context, pairs: Vec::new(), tokens: 0, longest: 0 });
                groups.last_mut().expect("it was just put there")
            }
        };
        group.pairs.push(index);
        group.tokens += read;
        group.longest = group.longest.max(read);
    }
    groups
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(context: i32, tokens: usize) -> Pair {
        Pair { context: vec![context; 10], continuation: vec![1; tokens], is_cut: false }
    }

    #[test]
    fn every_pair_is_in_one_group_and_no_group_is_too_large() {
        let pairs = [pair(1, 3), pair(2, 3), pair(1, 4), pair(1, 2), pair(2, 9), pair(1, 40)];
        let groups = by_context(&pairs, 1000);
        assert_eq!(
            groups.iter().map(|group| &group.pairs[..]).collect::<Vec<_>>(),
            [&[0, 2, 3, 5][..], &[1, 4]]
        );
        let groups = by_context(&pairs, 20);
        assert_eq!(
            groups.iter().map(|group| &group.pairs[..]).collect::<Vec<_>>(),
            [&[0, 2, 3][..], &[1, 4], &[5]]
        );
    }
}
