//! One of the encoders with its classifier: texts of token ids to probabilities of classes.

use std::sync::atomic::AtomicBool;

use burn::tensor::Device;

use crate::Error;
use crate::batch::{Batch, in_batches};
use crate::modernbert::ModernBert;
use crate::roberta::Roberta;
use crate::t5::T5;

/// An encoder with its classifier.
#[expect(clippy::large_enum_variant, reason = "one a scorer")]
pub(crate) enum Network {
    Roberta(Roberta),
    ModernBert(ModernBert),
    T5(T5),
}

/// Probabilities of the classes of a text, or of each of its tokens.
pub(crate) struct Probabilities {
    pub(crate) values: Vec<f64>,
    pub(crate) classes: usize,
}

impl Probabilities {
    /// Of a class, of the text or its token.
    pub(crate) fn of(&self, token: usize, class: usize) -> f64 {
        self.values[token * self.classes + class]
    }
}

impl Network {
    pub(crate) fn vocabulary(&self) -> usize {
        match self {
            Self::Roberta(network) => network.vocabulary(),
            Self::ModernBert(network) => network.vocabulary(),
            Self::T5(network) => network.vocabulary(),
        }
    }

    /// The most tokens that a text may have; absent where there is no such number.
    pub(crate) fn limit(&self) -> Option<usize> {
        match self {
            Self::Roberta(network) => Some(network.limit()),
            Self::ModernBert(network) => Some(network.limit()),
            Self::T5(_) => None,
        }
    }

    /// Probabilities of each text, in batches of like length. Memory: the activations of 8,192 tokens, or of one text that is longer;
    /// of a device that has not so much, a part of them.
    ///
    /// # Errors
    /// A text comes out as no numbers; the device has no memory for a single text; somebody asked for a stop.
    ///
    /// # Panics
    /// A text has no token, or one that is not in the vocabulary.
    pub(crate) fn probabilities(
        &self,
        texts: &[&[u32]],
        device: &Device,
        stop: &AtomicBool,
    ) -> Result<Vec<Probabilities>, Error> {
        in_batches(texts, device, stop, &|texts: &[&[u32]]| self.batch(texts, device))
    }

    fn batch(&self, texts: &[&[u32]], device: &Device) -> Result<Vec<Probabilities>, Error> {
        let batch = Batch::new(texts, device);
        let logits = match self {
            Self::Roberta(network) => network.logits(&batch),
            Self::ModernBert(network) => network.logits(&batch),
            Self::T5(network) => network.logits(&batch),
        };
        let [_, classes] = logits.dims();
        let values = logits.try_into_vec_as::<f32>().map_err(|error| {
            softshard_model::Error::Device(format!("the scores could not be read: {error}"))
        })?;
        let mut probabilities: Vec<f64> = values.chunks_exact(classes).flat_map(softmax).collect();
        if let Some(place) = probabilities.iter().position(|value| !value.is_finite()) {
            return Err(Error::bad("scores of a text", "finite numbers", probabilities[place]).hint(
                "the weights are damaged, or the device computes wrong: `softshard scorer check` says more",
            ));
        }
        let of_tokens = matches!(self, Self::ModernBert(network) if network.reads_tokens());
        let counts = texts.iter().map(|text| if of_tokens { text.len() } else { 1 });
        let mut take = |count: usize| {
            let rest = probabilities.split_off(count * classes);
            Probabilities { values: std::mem::replace(&mut probabilities, rest), classes }
        };
        Ok(counts.map(&mut take).collect())
    }
}

/// Of one row, in 64 bits.
fn softmax(logits: &[f32]) -> Vec<f64> {
    let most = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let powers: Vec<f64> = logits.iter().map(|&logit| f64::from(logit - most).exp()).collect();
    let sum: f64 = powers.iter().sum();
    powers.into_iter().map(|power| power / sum).collect()
}
