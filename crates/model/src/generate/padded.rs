//! Answers on a device: prompts of any lengths run as one batch. Each is padded on the left, a mask hides the padding, and its
//! rotary positions count from its own first token, so an answer does not depend on its neighbours but for rounding. Where
//! rotary angles go by the length of a text, a token is turned by the length of the text that ends with it (crate::rope).
//!
//! Legend: B rows in the batch, D model width.

use std::collections::BTreeSet;

use burn::tensor::{Int, Tensor, TensorData};

use super::{Answer, MAX_CACHED_TOKENS, MAX_ROWS, Work, not_finite};
use crate::cache::Cache;
use crate::layout::Layout;
use crate::{Decoder, Error};

/// Tokens of the prompts of a batch, which are read at once.
const MAX_PROMPT_TOKENS: usize = 1 << 14;

/// Answers to all prompts.
///
/// # Errors
/// Streamed weights cannot be read; logits are not finite.
pub(super) fn answer<L>(decoder: &Decoder, work: &Work<'_>, logits: &L) -> Result<Vec<Answer>, Error>
where
    L: Fn(Tensor<2>, &Tensor<2>) -> Tensor<2>,
{
    let mut answers = vec![Answer::default(); work.prompts.len()];
    let order = work.order();
    let mut rest = order.as_slice();
    while let Some(&longest) = rest.first() {
        let prompt = work.prompts[longest].ids.len();
        let tokens = prompt + work.generation.max_new_tokens;
        let rows = (MAX_CACHED_TOKENS / tokens).min(MAX_PROMPT_TOKENS / prompt);
        let rows = rows.clamp(1, MAX_ROWS).min(rest.len());
        let (batch, later) = rest.split_at(rows);
        rest = later;
        Batch::new((decoder, logits), work, batch).run(&mut answers)?;
    }
    Ok(answers)
}

/// Prompts that are decoded together.
struct Batch<'a, L> {
    decoder: &'a Decoder,
    work: &'a Work<'a>,
    logits: &'a L,
    caches: Vec<Option<Cache>>,
    /// Rows still in the batch: their prompts.
    rows: Vec<usize>,
    /// Columns of padding before each row.
    padding: Vec<usize>,
    /// Columns in the caches.
    seen: usize,
    /// The tokens to feed next, row after row.
    next: Vec<i32>,
}

impl<'a, L: Fn(Tensor<2>, &Tensor<2>) -> Tensor<2>> Batch<'a, L> {
    fn new((decoder, logits): (&'a Decoder, &'a L), work: &'a Work<'a>, rows: &[usize]) -> Self {
        let prompts = || rows.iter().map(|&row| &work.prompts[row].ids);
        let columns = prompts().map(Vec::len).max().unwrap_or(0);
        let padding: Vec<usize> = prompts().map(|prompt| columns - prompt.len()).collect();
        let next = prompts()
            .zip(&padding)
            .flat_map(|(prompt, &padding)| std::iter::repeat_n(&0, padding).chain(prompt.iter()).copied())
            .collect();
        let caches = vec![None; decoder.layers.len()];
        Self { decoder, work, logits, caches, rows: rows.to_vec(), padding, seen: 0, next }
    }

    fn run(mut self, answers: &mut [Answer]) -> Result<(), Error> {
        loop {
            let logits = (self.logits)(self.step()?, &self.decoder.head());
            let chosen = self.choose(logits, answers)?;
            let goes_on = |&row: &usize| {
                self.work.take(&mut answers[self.rows[row]], chosen[row])
                    && self.decoder.has_room(self.seen - self.padding[row])
            };
            let keep: Vec<usize> = (0..chosen.len()).filter(goes_on).collect();
            if keep.is_empty() {
                return Ok(());
            }
            self.next = keep.iter().map(|&row| chosen[row]).collect();
            if keep.len() < chosen.len() {
                self.keep_rows(&keep);
            }
        }
    }

    /// The next token of each row; the largest are found on the device.
    fn choose(&self, logits: Tensor<2>, answers: &[Answer]) -> Result<Vec<i32>, Error> {
        if self.work.generation.takes_the_largest() {
            let chosen = logits.clone().argmax(1);
            let best = logits.gather(1, chosen.clone());
            let best = best.try_into_vec_as::<f32>().map_err(|error| Error::Device(error.to_string()))?;
            if !best.iter().all(|logit| logit.is_finite()) {
                return Err(not_finite());
            }
            return Ok(chosen.try_into_vec_as::<i32>().expect("token ids are 32-bit integers"));
        }
        let [_, vocabulary] = logits.dims();
        let mut logits = logits.try_into_vec_as::<f32>().map_err(|error| Error::Device(error.to_string()))?;
        let choose = |(logits, &row): (&mut [f32], &usize)| {
            let (prompt, answer) = (&self.work.prompts[row], &answers[row]);
            let known: BTreeSet<i32> = prompt.ids.iter().chain(&answer.ids).copied().collect();
            let step = answer.ids.len();
            self.work.generation.choose(logits, &known, prompt.number, step).ok_or_else(not_finite)
        };
        logits.chunks_exact_mut(vocabulary).zip(&self.rows).map(choose).collect()
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
            if let Cache::Columns(columns) = cache {
                columns.keys = columns.keys.clone().select(0, indices.clone());
                columns.values = columns.values.clone().select(0, indices.clone());
            }
        }
        self.rows = keep.iter().map(|&row| self.rows[row]).collect();
        self.padding = keep.iter().map(|&row| self.padding[row]).collect();
    }
}
