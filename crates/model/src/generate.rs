//! Answers: the most probable tokens, or drawn ones, with a key-value cache.
//!
//! On the host each text has a cache of its own and every row is computed as it would be alone, so an answer has the same bits
//! in any batch ([`host`]); elsewhere prompts run as one padded batch ([`padded`]). What is drawn goes by the seed, the
//! prompt's own number and the step.
//!
//! Legend: B rows in the batch, T tokens of this call, S tokens seen so far, D model width, V vocabulary.

mod choose;
mod host;
mod padded;

use burn::tensor::Tensor;

use crate::config::Positions;
use crate::{Decoder, Error};
pub use choose::Sampling;

/// Rows that decode together: products with few rows are slow, more than these gain little.
const MAX_ROWS: usize = crate::linear::FEW_ROWS;
/// Tokens in the caches of a batch, which bounds the memory of a batch of long prompts.
const MAX_CACHED_TOKENS: usize = 1 << 16;

/// How prompts are answered.
#[derive(Debug, Clone, PartialEq)]
pub struct Generation {
    /// Tokens after which an answer is cut.
    pub max_new_tokens: usize,
    /// Ids that end an answer.
    pub stop_ids: Vec<i32>,
    /// What logits of tokens that were there before, in the prompt or the answer, are divided by, or multiplied by where they
    /// are negative; 1 leaves them (arXiv 1909.05858, section 4.1).
    pub repetition_penalty: f64,
    /// How tokens are drawn; absent: the most probable one is taken, the lower id of equal ones.
    pub sampling: Option<Sampling>,
}

impl Generation {
    /// The most probable tokens.
    pub fn greedy(max_new_tokens: usize, stop_ids: &[i32]) -> Self {
        Self { max_new_tokens, stop_ids: stop_ids.to_vec(), repetition_penalty: 1.0, sampling: None }
    }

    /// Whether it matters which tokens were there before.
    fn penalises(&self) -> bool {
        self.repetition_penalty != 1.0
    }

    /// Whether logits decide by their order alone.
    fn takes_the_largest(&self) -> bool {
        self.sampling.is_none() && !self.penalises()
    }
}

/// A text that is to be continued.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prompt {
    /// Its tokens.
    pub ids: Vec<i32>,
    /// What draws its tokens, with the seed: its number among all prompts, whatever batch it is in.
    pub number: u64,
}

/// How a prompt goes on, without the prompt and without the id that ends it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Answer {
    /// Its tokens.
    pub ids: Vec<i32>,
    /// Whether it came to an end; otherwise it was cut.
    pub ended: bool,
}

/// Prompts and all that decides their answers.
struct Work<'a> {
    prompts: &'a [Prompt],
    generation: &'a Generation,
    /// Whether an answer ends with its last token.
    ends: &'a (dyn Fn(&[i32]) -> bool + Sync),
}

impl Decoder {
    /// Continues each prompt with its most probable tokens (ties: the lower id) until a stop id or `max_new_tokens`. An
    /// answer contains neither its prompt nor the stop id; an empty prompt has an empty answer.
    ///
    /// # Errors
    /// As [`answer`](Self::answer).
    ///
    /// # Panics
    /// As there.
    pub fn generate(
        &self,
        prompts: &[Vec<i32>],
        max_new_tokens: usize,
        stop_ids: &[i32],
        logits: impl Fn(Tensor<2>, &Tensor<2>) -> Tensor<2>,
    ) -> Result<Vec<Vec<i32>>, Error> {
        let prompts: Vec<Prompt> = prompts.iter().map(|ids| Prompt { ids: ids.clone(), number: 0 }).collect();
        let greedy = Generation::greedy(max_new_tokens, stop_ids);
        let answers = self.answer(&prompts, &greedy, &|_| false, logits)?;
        Ok(answers.into_iter().map(|answer| answer.ids).collect())
    }

    /// Continues each prompt until a stop id, until `ends` says of the tokens of an answer that it ends with the last of them,
    /// or until it is cut. An empty prompt has an empty answer.
    ///
    /// `logits` is the product of hidden states `[B, D]` with the head `[V, D]`, `[B, V]` in f32: of bf16 logits several are the
    /// largest. `softshard_losses::next_logits` is one, whose rows do not depend on each other.
    ///
    /// Memory: the keys and values of at most 65,536 tokens, or those of one prompt and its answer if that is longer, and the
    /// activations of one group of prompts. With learned positions an answer ends where the table does.
    ///
    /// # Errors
    /// Streamed weights cannot be read; logits are not finite.
    ///
    /// # Panics
    /// A prompt is longer than a table of learned positions; a temperature or a penalty is not positive.
    pub fn answer(
        &self,
        prompts: &[Prompt],
        generation: &Generation,
        ends: &(dyn Fn(&[i32]) -> bool + Sync),
        logits: impl Fn(Tensor<2>, &Tensor<2>) -> Tensor<2>,
    ) -> Result<Vec<Answer>, Error> {
        generation.check();
        let frozen = self.frozen();
        let work = Work { prompts, generation, ends };
        if softshard_products::on_host(&self.device) {
            host::answer(&frozen.row_by_row(), &work, &logits)
        } else {
            padded::answer(&frozen, &work, &logits)
        }
    }

    /// The same weights, few rows of which are computed as each of them would be alone.
    fn row_by_row(mut self) -> Self {
        let names = self.config.names();
        let of_layers = self.layers.iter_mut().flat_map(|layer| layer.parts_mut(names).1);
        of_layers.for_each(|(_, linear)| linear.row_by_row = true);
        self.projections.iter_mut().flatten().for_each(|linear| linear.row_by_row = true);
        self
    }

    /// Whether there is a position for one more token of a text of this length.
    fn has_room(&self, length: usize) -> bool {
        match &self.config.positions {
            Positions::Rotary { .. } => true,
            Positions::Learned { rows, offset } => length + offset < *rows,
        }
    }
}

impl Work<'_> {
    /// Prompts that can be answered, the longest first: neighbours in length share a batch.
    fn order(&self) -> Vec<usize> {
        let mut order: Vec<usize> = (0..self.prompts.len()).collect();
        order.retain(|&index| !self.prompts[index].ids.is_empty() && self.generation.max_new_tokens > 0);
        order.sort_by_key(|&index| std::cmp::Reverse(self.prompts[index].ids.len()));
        order
    }

    /// Adds a token to an answer; whether it goes on.
    fn take(&self, answer: &mut Answer, id: i32) -> bool {
        if self.generation.stop_ids.contains(&id) {
            answer.ended = true;
            return false;
        }
        answer.ids.push(id);
        answer.ended = (self.ends)(&answer.ids);
        !answer.ended && answer.ids.len() < self.generation.max_new_tokens
    }
}

/// What is said where no token can be chosen.
fn not_finite() -> Error {
    let message = "logits of an answer: expected finite numbers, found NaN or infinite ones\n\
                   hint: weights may be damaged, or too large for bf16: try `precision = \"f32\"`";
    Error::Device(message.to_owned())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use burn::tensor::Device;
    use serde_json::json;

    use super::*;
    use crate::DecoderConfig;

    fn product(hidden: Tensor<2>, head: &Tensor<2>) -> Tensor<2> {
        softshard_products::few_rows_matmul(hidden, head.clone())
    }

    fn models() -> Vec<Decoder> {
        let configs = [
            json!({ "model_type": "llama", "vocab_size": 61, "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 3,
                "num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.4 }),
            json!({ "model_type": "mistral", "vocab_size": 61, "hidden_size": 80, "intermediate_size": 40, "num_hidden_layers": 2,
                "num_attention_heads": 2, "num_key_value_heads": 1, "sliding_window": 7, "initializer_range": 0.2 }),
            json!({ "model_type": "gpt2", "vocab_size": 61, "n_embd": 24, "n_layer": 2, "n_head": 4, "n_positions": 200,
                "initializer_range": 0.4 }),
        ];
        let model = |config| {
            let config = DecoderConfig::from_value(config, Path::new("test")).expect("a configuration");
            Decoder::random(config, 3, &Device::flex())
        };
        configs.into_iter().map(model).collect()
    }

    fn prompts(count: usize) -> Vec<Prompt> {
        let prompt = |number: usize| {
            let length = [1, 40, 9, 3, 70, 66][number % 6] + number / 6;
            let ids = (0..length).map(|place| i32::try_from((place * 17 + number * 29) % 61).expect("small"));
            Prompt { ids: ids.collect(), number: number as u64 }
        };
        (0..count).map(prompt).collect()
    }

    fn settings() -> [Generation; 4] {
        let greedy = Generation::greedy(30, &[5, 11]);
        let sampling = Some(Sampling { temperature: 0.9, top_k: Some(20), top_p: 0.95, seed: 4 });
        [
            greedy.clone(),
            Generation { repetition_penalty: 1.3, ..greedy.clone() },
            Generation { sampling, ..greedy.clone() },
            Generation { sampling, repetition_penalty: 1.1, ..greedy },
        ]
    }

    /// Ends with the text, so to speak, of two tokens.
    fn ends(ids: &[i32]) -> bool {
        ids.ends_with(&[7]) && ids.len() > 4
    }

    #[test]
    fn answers_are_the_same_in_any_batch_and_on_any_number_of_threads() {
        let all = prompts(MAX_ROWS + 20);
        let (mut ended, mut cut) = (0, 0);
        for decoder in models() {
            for generation in settings() {
                let answer = |prompts: &[Prompt]| {
                    decoder.answer(prompts, &generation, &ends, product).expect("answers")
                };
                let together = answer(&all);
                ended += together.iter().filter(|one| one.ended).count();
                cut += together.iter().filter(|one| one.ids.len() == 30).count();
                for some in [&all[..1], &all[1..4], &all[10..50]] {
                    let first = usize::try_from(some[0].number).expect("small");
                    assert!(answer(some) == together[first..first + some.len()], "{generation:?}");
                }
                let pool = rayon::ThreadPoolBuilder::new().num_threads(3).build().expect("threads");
                assert!(pool.install(|| answer(&all[..9])) == together[..9]);
            }
        }
        assert!(ended > 20 && cut > 20, "{ended} ended, {cut} were cut");
    }

    #[test]
    fn a_padded_batch_gives_the_same_answers() {
        let all = prompts(9);
        for decoder in models() {
            for generation in settings() {
                let work = Work { prompts: &all, generation: &generation, ends: &ends };
                let found = padded::answer(&decoder.frozen(), &work, &product).expect("answers");
                let apart = decoder.answer(&all, &generation, &ends, product).expect("answers");
                assert!(found == apart, "{generation:?}");
            }
        }
    }

    #[test]
    fn damaged_weights_end_answers_with_an_error() {
        let mut decoder = models().remove(0);
        decoder.lm_head = Some(decoder.head() * f32::NAN);
        for generation in settings() {
            let work = Work { prompts: &prompts(2), generation: &generation, ends: &ends };
            for found in [host::answer(&decoder, &work, &product), padded::answer(&decoder, &work, &product)]
            {
                assert!(found.expect_err("NaN").to_string().contains("expected finite numbers"));
            }
        }
    }
}
