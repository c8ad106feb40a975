//! Answers on the host: texts with caches of their own, new ones in the places of those that have ended.
//!
//! A prompt is read alone, and few rows are computed as each of them would be alone (softshard_products::few_rows_matmul), so
//! an answer does not depend on what is answered beside it, down to the last bit.

use std::collections::{BTreeSet, VecDeque};

use burn::tensor::{Int, Tensor, TensorData};
use rayon::prelude::*;

use super::{Answer, MAX_CACHED_TOKENS, MAX_ROWS, Work, not_finite};
use crate::attention::Context;
use crate::cache::{Cache, Columns, Texts};
use crate::layout::Layout;
use crate::linear::Dropout;
use crate::{Decoder, Error};

/// Tokens of the prompts that go through a layer before the next one.
const MAX_PROMPT_TOKENS: usize = 1 << 12;
/// Rows below which new texts join.
const JOIN_BELOW: usize = MAX_ROWS / 4 * 3;

/// A text that goes on.
struct Open {
    /// Of its prompt.
    index: usize,
    /// The token that is fed next.
    next: i32,
    /// Tokens in the caches.
    length: usize,
    /// Tokens that it has, where they are asked for.
    known: BTreeSet<i32>,
}

/// A prompt on its way through the layers.
struct Reading<'a> {
    context: Context<'a>,
    x: Tensor<2>,
    columns: Option<Columns>,
}

struct Session<'a, L> {
    decoder: &'a Decoder,
    work: &'a Work<'a>,
    logits: &'a L,
    /// Of each layer, with the texts in the order of `open`.
    caches: Vec<Option<Cache>>,
    open: Vec<Open>,
    answers: Vec<Answer>,
}

/// Answers to all prompts.
///
/// # Errors
/// Streamed weights cannot be read; logits are not finite.
pub(super) fn answer<L>(decoder: &Decoder, work: &Work<'_>, logits: &L) -> Result<Vec<Answer>, Error>
where
    L: Fn(Tensor<2>, &Tensor<2>) -> Tensor<2>,
{
    let texts = |layer: &crate::layer::Layer| {
        let heads = layer.attention.heads;
        Some(Cache::Texts(Texts::new(heads.keys, heads.width)))
    };
    let caches = decoder.layers.iter().map(texts).collect();
    let answers = vec![Answer::default(); work.prompts.len()];
    let mut session = Session { decoder, work, logits, caches, open: Vec::new(), answers };
    let mut waiting: VecDeque<usize> = work.order().into();
    loop {
        let group = session.next_group(&mut waiting);
        if !group.is_empty() {
            session.read(&group)?;
        } else if session.open.is_empty() {
            return Ok(session.answers);
        } else {
            session.step()?;
        }
    }
}

impl<L: Fn(Tensor<2>, &Tensor<2>) -> Tensor<2>> Session<'_, L> {
    /// Tokens that a text has at most.
    fn room(&self, index: usize) -> usize {
        self.work.prompts[index].ids.len() + self.work.generation.max_new_tokens
    }

    /// Prompts that are read next.
    fn next_group(&self, waiting: &mut VecDeque<usize>) -> Vec<usize> {
        let mut group: Vec<usize> = Vec::new();
        if self.open.len() > JOIN_BELOW {
            return group;
        }
        let mut cached: usize = self.open.iter().map(|open| self.room(open.index)).sum();
        let mut tokens = 0;
        while let Some(&index) = waiting.front() {
            let rows = self.open.len() + group.len();
            cached += self.room(index);
            tokens += self.work.prompts[index].ids.len();
            let fits = rows < MAX_ROWS && cached <= MAX_CACHED_TOKENS;
            if !(fits && (tokens <= MAX_PROMPT_TOKENS || group.is_empty()) || rows == 0) {
                break;
            }
            group.push(index);
            waiting.pop_front();
        }
        group
    }

    /// Reads prompts, each alone, and chooses their first tokens.
    fn read(&mut self, group: &[usize]) -> Result<(), Error> {
        let decoder = self.decoder;
        let prompts: Vec<&[i32]> =
            group.iter().map(|&index| self.work.prompts[index].ids.as_slice()).collect();
        let layouts: Vec<Layout> = prompts.iter().map(|ids| Layout::causal(ids.len())).collect();
        let mut readings: Vec<Reading<'_>> = Vec::with_capacity(group.len());
        for (ids, layout) in prompts.iter().zip(&layouts) {
            let shape = [1, ids.len()];
            let ids = Tensor::<2, Int>::from_data(TensorData::new(ids.to_vec(), shape), &decoder.device);
            let context = decoder.context_beside(shape, layout, group.len());
            readings.push(Reading { context, x: decoder.embed(ids, layout), columns: None });
        }
        let rooms: Vec<usize> = group.iter().map(|&index| self.room(index)).collect();
        let caches = &mut self.caches;
        decoder.each_layer(0..decoder.layers.len(), |index, layer| {
            readings.par_iter_mut().for_each(|reading| {
                let mut cache = None;
                let mut dropout = Dropout::new(None, index);
                reading.x =
                    layer.forward(reading.x.clone(), &reading.context, &mut dropout, Some(&mut cache));
                reading.columns = cache.and_then(Cache::into_columns);
            });
            let Some(Cache::Texts(texts)) = &mut caches[index] else { unreachable!("they were made so") };
            for (reading, &room) in readings.iter_mut().zip(&rooms) {
                texts.push(reading.columns.take().expect("attention keeps what it reads"), room);
            }
        })?;
        let last = |reading: &Reading<'_>| {
            let [tokens, _] = reading.x.dims();
            reading.x.clone().narrow(0, tokens - 1, 1)
        };
        let hidden = Tensor::cat(readings.iter().map(last).collect(), 0);
        let hidden = decoder.finish(hidden, &readings[0].context);
        let penalises = self.work.generation.penalises();
        let open = |(&index, ids): (&usize, &&[i32])| {
            let known = if penalises { ids.iter().copied().collect() } else { BTreeSet::new() };
            Open { index, next: 0, length: ids.len(), known }
        };
        self.open.extend(group.iter().zip(&prompts).map(open));
        self.choose(hidden, self.open.len() - group.len())
    }

    /// Feeds the next token of each text, and chooses those that follow.
    fn step(&mut self) -> Result<(), Error> {
        let decoder = self.decoder;
        let rows = self.open.len();
        let ids: Vec<i32> = self.open.iter().map(|open| open.next).collect();
        let ids = Tensor::<2, Int>::from_data(TensorData::new(ids, [rows, 1]), &decoder.device);
        // As if the texts ended in the same column: that gives each token its position and its text's length.
        let seen = self.open.iter().map(|open| open.length).max().unwrap_or(0);
        let first = self.open.iter().map(|open| vec![seen - open.length]).collect();
        let layout = Layout { seen, first, lengths: None, ragged: false };
        let context = decoder.context_of_next(rows, &layout);
        let mut x = decoder.embed(ids, &layout);
        let caches = &mut self.caches;
        decoder.each_layer(0..decoder.layers.len(), |index, layer| {
            let mut dropout = Dropout::new(None, index);
            x = layer.forward(x.clone(), &context, &mut dropout, Some(&mut caches[index]));
        })?;
        self.open.iter_mut().for_each(|open| open.length += 1);
        self.choose(decoder.finish(x, &context), 0)
    }

    /// Chooses the next tokens of the texts from `first` on, whose last hidden states these are, and closes those that have ended.
    ///
    /// # Shapes
    /// `hidden`: `[B, D]`.
    fn choose(&mut self, hidden: Tensor<2>, first: usize) -> Result<(), Error> {
        let (work, open) = (self.work, &self.open[first..]);
        let logits = (self.logits)(hidden, &self.decoder.head());
        let [_, vocabulary] = logits.dims();
        let mut logits: Vec<f32> = logits.try_into_vec_as().expect("logits are f32, on the host");
        let next = |(logits, open): (&mut [f32], &Open)| {
            let mut answer = self.answers[open.index].clone();
            let number = work.prompts[open.index].number;
            let id = work
                .generation
                .choose(logits, &open.known, number, answer.ids.len())
                .ok_or_else(not_finite)?;
            let goes_on = work.take(&mut answer, id) && self.decoder.has_room(open.length);
            Ok((answer, id, goes_on))
        };
        let next: Vec<_> =
            logits.par_chunks_exact_mut(vocabulary).zip(open).map(next).collect::<Result<_, Error>>()?;
        let penalises = work.generation.penalises();
        let mut marks = vec![true; first];
        for (open, (answer, id, goes_on)) in self.open[first..].iter_mut().zip(next) {
            self.answers[open.index] = answer;
            open.next = id;
            if penalises {
                open.known.insert(id);
            }
            marks.push(goes_on);
        }
        if marks.contains(&false) {
            for cache in self.caches.iter_mut().flatten() {
                if let Cache::Texts(texts) = cache {
                    texts.keep(&marks);
                }
            }
            let mut marks = marks.into_iter();
            self.open.retain(|_| marks.next().unwrap_or(true));
        }
        Ok(())
    }
}
