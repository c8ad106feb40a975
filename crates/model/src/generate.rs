//! Greedy generation with a key-value cache.
//!
//! Prompts of any lengths run as one batch: each is padded on the left, a mask hides the padding, and its rotary positions
//! count from its own first token, so an answer does not depend on its neighbours. Where rotary angles go by the length of a
//! text, a token is turned by the length of the text that ends with it (crate::rope).
//!
//! Legend: B rows in the batch, T tokens of this call, S tokens seen so far, D model width, V vocabulary.

use burn::tensor::{Int, Tensor, TensorData};

use crate::cache::Cache;
use crate::config::Positions;
use crate::layout::Layout;
use crate::{Decoder, Error};

/// Rows that decode together: products with few rows are slow, more than these gain little.
const MAX_ROWS: usize = 64;
/// Tokens in the caches of a batch, which bounds the memory of a batch of long prompts.
const MAX_CACHED_TOKENS: usize = 1 << 16;
/// Tokens of the prompts of a batch, which are read at once.
const MAX_PROMPT_TOKENS: usize = 1 << 14;

impl Decoder {
    /// Continues each prompt with its most probable tokens (ties: the lower id) until a stop id or `max_new_tokens`. An
    /// answer contains neither its prompt nor the stop id; an empty prompt has an empty answer.
    ///
    /// `logits` is the product of hidden states `[B, D]` with the head `[V, D]`, `[B, V]` in f32: of bf16 logits several are the
    /// largest. `softshard_losses::logits` is one.
    ///
    /// Memory: the keys and values of at most 65,536 tokens and the activations of 16,384, or those of one prompt and its
    /// answer if that is longer. With learned positions an answer ends where the table does.
    ///
    /// # Errors
    /// Streamed weights cannot be read.
    ///
    /// # Panics
    /// A prompt is longer than a table of learned positions.
    pub fn generate(
        &self,
        prompts: &[Vec<i32>],
        max_new_tokens: usize,
        stop_ids: &[i32],
        logits: impl Fn(Tensor<2>, &Tensor<2>) -> Tensor<2>,
    ) -> Result<Vec<Vec<i32>>, Error> {
        let frozen = self.frozen();
        let mut answers = vec![Vec::new(); prompts.len()];
        let mut order: Vec<usize> = (0..prompts.len()).filter(|&index| !prompts[index].is_empty()).collect();
        // Neighbours in length share a batch, so that there is little padding; the longest come first.
        order.sort_by_key(|&index| std::cmp::Reverse(prompts[index].len()));
        let mut rest = order.as_slice();
        while let Some(&longest) = rest.first() {
            let tokens = prompts[longest].len() + max_new_tokens;
            let rows = (MAX_CACHED_TOKENS / tokens).min(MAX_PROMPT_TOKENS / prompts[longest].len());
            let rows = rows.clamp(1, MAX_ROWS).min(rest.len());
            let (batch, later) = rest.split_at(rows);
            rest = later;
            let rows = batch.iter().map(|&index| prompts[index].as_slice()).collect();
            let batch_answers = Batch::new(&frozen, rows).run(max_new_tokens, stop_ids, &logits)?;
            for (&index, answer) in batch.iter().zip(batch_answers) {
                answers[index] = answer;
            }
        }
        Ok(answers)
    }
}

/// Prompts that are decoded together.
struct Batch<'a> {
    decoder: &'a Decoder,
    caches: Vec<Option<Cache>>,
    /// Rows still in the batch, as indices of the answers.
    rows: Vec<usize>,
    /// Columns of padding before each row.
    padding: Vec<usize>,
    /// Columns in the caches.
    seen: usize,
    /// The tokens to feed next, row after row.
    next: Vec<i32>,
    answers: Vec<Vec<i32>>,
}

impl<'a> Batch<'a> {
    fn new(decoder: &'a Decoder, prompts: Vec<&[i32]>) -> Self {
        let columns = prompts.iter().map(|prompt| prompt.len()).max().unwrap_or(0);
        let padding: Vec<usize> = prompts.iter().map(|prompt| columns - prompt.len()).collect();
        let next = prompts
            .iter()
            .zip(&padding)
            .flat_map(|(prompt, &padding)| std::iter::repeat_n(&0, padding).chain(prompt.iter()).copied())
            .collect();
        Self {
            decoder,
            caches: vec![None; decoder.layers.len()],
            rows: (0..prompts.len()).collect(),
            padding,
            seen: 0,
            next,
            answers: vec![Vec::new(); prompts.len()],
        }
    }

    fn run(
        mut self,
        max_new_tokens: usize,
        stop_ids: &[i32],
        logits: &impl Fn(Tensor<2>, &Tensor<2>) -> Tensor<2>,
    ) -> Result<Vec<Vec<i32>>, Error> {
        for _ in 0..max_new_tokens {
            let logits = logits(self.step()?, &self.decoder.head());
            let chosen = logits.argmax(1).try_into_vec_as::<i32>().expect("token ids are 32-bit integers");
            let keep: Vec<usize> =
                (0..chosen.len()).filter(|&row| !stop_ids.contains(&chosen[row])).collect();
            for &row in &keep {
                self.answers[self.rows[row]].push(chosen[row]);
            }
            let keep: Vec<usize> = keep.into_iter().filter(|&row| self.has_room(row)).collect();
            if keep.is_empty() {
                break;
            }
            self.next = keep.iter().map(|&row| chosen[row]).collect();
            if keep.len() < chosen.len() {
                self.keep_rows(&keep);
            }
        }
        Ok(self.answers)
    }

    /// Whether the model has a position for one more token of a row.
    fn has_room(&self, row: usize) -> bool {
        match &self.decoder.config.positions {
            Positions::Rotary { .. } => true,
            Positions::Learned { rows, offset } => self.seen - self.padding[row] + offset < *rows,
        }
    }

    /// Feeds the next tokens and returns the hidden state of the last one of each row, `[B, D]`.
    fn step(&mut self) -> Result<Tensor<2>, Error> {
        let decoder = self.decoder;
        let rows = self.rows.len();
        let tokens = self.next.len() / rows;
        let ids = TensorData::new(std::mem::take(&mut self.next), [rows, tokens]);
        let ids = Tensor::<2, Int>::from_data(ids, &decoder.device);
        let layout = self.layout(tokens);
        self.seen += tokens;
        let hidden = decoder.forward(ids, &layout, Some(&mut self.caches))?;
        let width = decoder.config.embedding_size;
        Ok(hidden.reshape([rows, tokens, width]).slice([0..rows, tokens - 1..tokens]).reshape([rows, width]))
    }

    /// The next `tokens` columns: padding sees itself, so that its rows, which nobody reads, stay finite.
    fn layout(&self, tokens: usize) -> Layout {
        let columns = self.seen..self.seen + tokens;
        let row = |&padding: &usize| columns.clone().map(|column| column.min(padding)).collect();
        let alike = self.padding.iter().all(|&padding| padding == 0);
        let rows = if alike { &self.padding[..1] } else { &self.padding };
        Layout { seen: self.seen, first: rows.iter().map(row).collect(), lengths: None, ragged: false }
    }

    /// Drops the rows that have ended from the caches.
    fn keep_rows(&mut self, keep: &[usize]) {
        let indices: Vec<i32> =
            keep.iter().map(|&row| i32::try_from(row).expect("a batch has few rows")).collect();
        let indices =
            Tensor::<1, Int>::from_data(TensorData::new(indices, [keep.len()]), &self.decoder.device);
        for cache in self.caches.iter_mut().flatten() {
            cache.keys = cache.keys.clone().select(0, indices.clone());
            cache.values = cache.values.clone().select(0, indices.clone());
        }
        self.rows = keep.iter().map(|&row| self.rows[row]).collect();
        self.padding = keep.iter().map(|&row| self.padding[row]).collect();
    }
}
