//! The student's softmax of one chunk, split into the tokens that the labels name and the rest.
//!
//! Legend: C rows of the chunk, K the most entries of any of its rows, V vocabulary, E named events (see [`Kept`]).

use burn::tensor::Tensor;

use crate::{
    chunk::{Kept, ZERO},
    divergence::{Divergence, Tail},
    wide::{add_at, exponentials, scale_rows},
};

/// The rest is summed relative to its own largest logit, so its mass is exact however small it is: no `1 - Σ q`.
/// One exponential per logit; the kept ones are recomputed in `[C, K]`.
pub(crate) struct Split {
    /// exp(z - largest of the rest), 0 at the kept tokens, `[C, V]`.
    rest: Tensor<2>,
    /// Σ rest, at least 1, `[C, 1]`.
    rest_sum: Tensor<2>,
    /// Largest of the rest - largest, `[C, 1]`.
    rest_shift: Tensor<2>,
    /// z - largest, very low for padding, `[C, K]`.
    kept: Option<Tensor<2>>,
    /// Largest logit of the row, `[C, 1]`.
    largest: Tensor<2>,
    /// log Σ exp(z - largest) over the vocabulary, `[C, 1]`.
    log_total: Tensor<2>,
    /// z - largest of the rest, very low at the kept tokens, `[C, V]`: where each of the rest is an event by itself.
    rest_logits: Option<Tensor<2>>,
    /// Σ (z - largest) over the rest, `[C, 1]`: for the same, where the sum is enough.
    rest_logits_sum: Option<Tensor<2>>,
}

/// Which of the sums over the rest a divergence needs beside its mass.
fn needs(divergence: Divergence, tail: Tail) -> [bool; 2] {
    let uniform = tail == Tail::Uniform;
    let sum_is_enough = divergence == Divergence::ForwardKl;
    [uniform && !sum_is_enough, uniform && sum_is_enough]
}

impl Split {
    /// The softmax alone.
    ///
    /// # Shapes
    /// `logits` `[C, V]`.
    pub(crate) fn whole(logits: Tensor<2>) -> Self {
        let [rest, largest, rest_sum] = exponentials(logits);
        let (rest_shift, log_total) = (largest.zeros_like(), rest_sum.clone().log());
        let (kept, rest_logits, rest_logits_sum) = (None, None, None);
        Self { rest, rest_sum, rest_shift, kept, largest, log_total, rest_logits, rest_logits_sum }
    }

    /// # Shapes
    /// `logits` `[C, V]`.
    pub(crate) fn new(logits: Tensor<2>, teacher: &Kept, divergence: Divergence, tail: Tail) -> Self {
        let [needs_logits, needs_sum] = needs(divergence, tail);
        let sum = needs_sum.then(|| logits.clone().sum_dim(1));
        let kept = logits.clone().gather(1, teacher.ids.clone());
        let removed = teacher.present.clone() * ZERO;
        let kept_sum = sum.is_some().then(|| (kept.clone() * teacher.present.clone()).sum_dim(1));
        let kept = kept + (teacher.present.clone() - 1.0) * -ZERO;
        let logits = add_at(logits, teacher.ids.clone(), removed);
        let rest_logits = needs_logits.then(|| logits.clone());
        let [rest, rest_largest, rest_sum] = exponentials(logits);
        let rest_logits = rest_logits.map(|logits| logits - rest_largest.clone());
        let largest = rest_largest.clone().max_pair(kept.clone().max_dim(1));
        let rest_shift = rest_largest - largest.clone();
        let kept = kept - largest.clone();
        let log_total = (rest_shift.clone().exp() * rest_sum.clone() + kept.clone().exp().sum_dim(1)).log();
        let rest_logits_sum = sum.zip(kept_sum).zip(teacher.others.as_ref()).map(|((all, kept), others)| {
            let [_, _, tokens] = others;
            all - kept - largest.clone() * tokens.clone()
        });
        Self {
            rest,
            rest_sum,
            rest_shift,
            kept: Some(kept),
            largest,
            log_total,
            rest_logits,
            rest_logits_sum,
        }
    }
}

/// A divergence of each row, and how it pulls at the student's events: `pull = q · ∂D/∂q`.
pub(crate) struct Distance {
    /// D, `[C, 1]`.
    pub(crate) values: Tensor<2>,
    /// Pulls at the kept tokens, `[C, K]`.
    kept_pulls: Tensor<2>,
    /// Their probabilities, over the events of D, `[C, K]`.
    kept_probs: Tensor<2>,
    /// Pull at the bucket, `[C, 1]`.
    bucket_pull: Option<Tensor<2>>,
    /// Pull at each other token, `[C, V]`, 0 at the kept ones, or the same for all, `[C, 1]`.
    other_pulls: Option<Tensor<2>>,
    /// Σ pulls, `[C, 1]`: what normalising q takes back.
    total: Tensor<2>,
}

impl Split {
    /// -log q of the tokens whose logits are given, `[C, 1]`.
    pub(crate) fn cross_entropy(&self, gold_logits: Tensor<2>) -> Tensor<2> {
        self.log_total.clone() - (gold_logits - self.largest.clone())
    }

    /// Probability of the most probable token, `[C, 1]`.
    pub(crate) fn confidence(&self) -> Tensor<2> {
        (-self.log_total.clone()).exp()
    }

    /// The divergence from the teacher, for which the split was made.
    pub(crate) fn distance(&self, teacher: &Kept, divergence: Divergence, tail: Tail) -> Distance {
        let [_, width] = teacher.ids.dims();
        let log_probs = self.event_log_probs(teacher, tail);
        let kept_probs = log_probs.clone().narrow(1, 0, width).exp();
        let terms = divergence.terms(teacher.probs.clone(), teacher.log_probs.clone(), log_probs);
        let mut distance = Distance {
            values: terms.values.sum_dim(1) + teacher.offset.clone(),
            kept_pulls: terms.pulls.clone().narrow(1, 0, width),
            kept_probs,
            bucket_pull: (tail == Tail::Bucket).then(|| terms.pulls.clone().narrow(1, width, 1)),
            other_pulls: None,
            total: terms.pulls.sum_dim(1),
        };
        if let Some(others) = &teacher.others {
            self.add_others(&mut distance, teacher, divergence, others);
        }
        distance
    }

    /// Log probabilities of the named events, `[C, E]`.
    fn event_log_probs(&self, teacher: &Kept, tail: Tail) -> Tensor<2> {
        let kept = self.kept();
        match tail {
            Tail::Bucket => {
                let rest = self.rest_sum.clone().log() + self.rest_shift.clone();
                Tensor::cat(vec![kept, rest], 1) - self.log_total.clone()
            }
            Tail::Renormalise => {
                let kept = kept.clone() - kept.max_dim(1);
                let sum = kept.clone().exp().sum_dim(1);
                // Of a row without entries, the padding would be all that there is.
                kept - sum.log() + (teacher.present.clone() - 1.0) * -ZERO
            }
            Tail::Drop | Tail::Uniform => kept - self.log_total.clone(),
        }
    }

    /// Adds every token that is not named, as an event of its own.
    fn add_others(
        &self,
        distance: &mut Distance,
        teacher: &Kept,
        divergence: Divergence,
        [probs, log_probs, tokens]: &[Tensor<2>; 3],
    ) {
        let (probs, log_probs, tokens) = (probs.clone(), log_probs.clone(), tokens.clone());
        let (values, total, pulls) = if let Some(sum) = &self.rest_logits_sum {
            let student = sum.clone() - self.log_total.clone() * tokens.clone();
            (probs.clone() * (log_probs * tokens.clone() - student), -probs.clone() * tokens, -probs)
        } else {
            let logits = self.rest_logits.clone().expect("kept for this divergence");
            let student = logits + (self.rest_shift.clone() - self.log_total.clone());
            let terms = divergence.terms(probs, log_probs, student);
            // The named tokens have no student there, but a teacher.
            let named = terms.values.clone().gather(1, teacher.ids.clone()) * teacher.present.clone();
            let values = terms.values.sum_dim(1) - named.sum_dim(1);
            (values, terms.pulls.clone().sum_dim(1), terms.pulls)
        };
        distance.values = distance.values.clone() + values;
        distance.total = distance.total.clone() + total;
        distance.other_pulls = Some(pulls);
    }

    /// `softmax · weight`, `[C, V]`: the gradient of the log partition.
    ///
    /// # Shapes
    /// `weight` `[C, 1]`.
    pub(crate) fn gradient(self, weight: Tensor<2>) -> Tensor<2> {
        debug_assert!(self.kept.is_none(), "a split with a teacher has a divergence to derive");
        scale_rows(self.rest, weight / self.rest_sum)
    }

    /// Gradient by the logits of `ce_weight · log partition + weight · D`, `[C, V]`. With g the pulls and G their sum, that of D is
    /// `g - q·G` for a kept token, and for another one `q/q_bucket·g_bucket - q·G`, or `g - q·G` where it is an event by itself.
    ///
    /// # Shapes
    /// `ce_weight` and `weight` `[C, 1]`.
    pub(crate) fn gradient_with(
        self,
        teacher: &Kept,
        tail: Tail,
        distance: Distance,
        ce_weight: Tensor<2>,
        weight: Tensor<2>,
    ) -> Tensor<2> {
        let kept_probs = (self.kept() - self.log_total.clone()).exp();
        let Distance { kept_pulls, bucket_pull, other_pulls, total, .. } = distance;
        let mut kept = (kept_pulls - distance.kept_probs * total.clone()) * weight.clone()
            + kept_probs * ce_weight.clone();
        let share = (self.rest_shift - self.log_total).exp();
        let mut rest_weight = match tail {
            Tail::Renormalise => share * ce_weight,
            Tail::Bucket | Tail::Drop | Tail::Uniform => share * (ce_weight - total * weight.clone()),
        };
        if let Some(pull) = bucket_pull {
            rest_weight = rest_weight + pull * weight.clone() / self.rest_sum;
        }
        let mut gradient = scale_rows(self.rest, rest_weight);
        if let Some(pulls) = other_pulls {
            let pulls = pulls * weight;
            if pulls.dims() != gradient.dims() {
                kept = kept - pulls.clone() * teacher.present.clone();
            }
            gradient = gradient + pulls;
        }
        add_at(gradient, teacher.ids.clone(), kept)
    }

    /// Logits of the kept tokens, relative to the largest of all, very low for padding, `[C, K]`.
    fn kept(&self) -> Tensor<2> {
        self.kept.clone().expect("asked for only where there is a teacher")
    }
}
