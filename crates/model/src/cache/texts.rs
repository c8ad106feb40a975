//! Keys and values of texts that are answered, each by itself: a text joins and leaves without a copy of the others.
//!
//! Legend: B texts, S tokens of a text, K key heads, G query heads for each, H = K·G, E head width.

use burn::tensor::{Device, Tensor, TensorData};
use pulp::NullaryFnOnce;
use rayon::prelude::*;
use softshard_products::{exp_non_positive, widest};

use super::Columns;
use crate::precision::cast;
use burn::tensor::DType;

/// Tokens of a block: their keys are stored number by number, so that scores are computed side by side.
const BLOCK: usize = 32;
/// Numbers of a head whose values are added up together.
const VALUES_AT_ONCE: usize = 32;

/// Keys and values of some texts in one layer.
#[derive(Debug, Clone)]
pub(crate) struct Texts {
    texts: Vec<Text>,
    heads: usize,
    width: usize,
}

/// Those of one text.
#[derive(Debug, Clone)]
struct Text {
    /// Of each key head, of each block: E times `BLOCK` numbers.
    keys: Vec<f32>,
    /// Of each key head: E numbers for each token.
    values: Vec<f32>,
    /// A multiple of `BLOCK`.
    capacity: usize,
    length: usize,
}

impl Texts {
    /// None yet.
    pub(crate) fn new(heads: usize, width: usize) -> Self {
        Self { texts: Vec::new(), heads, width }
    }

    /// Adds a text that was read, `columns` of a batch of one, with room for as many tokens in all.
    pub(crate) fn push(&mut self, columns: Columns, capacity: usize) {
        let Columns { keys, values, length } = columns;
        let capacity = capacity.max(length).next_multiple_of(BLOCK);
        let numbers = self.heads * capacity * self.width;
        // Zeros that nobody wrote yet take no memory.
        let mut text = Text { keys: vec![0.0; numbers], values: vec![0.0; numbers], capacity, length: 0 };
        let floats = |tensor: Tensor<5>| -> Vec<f32> {
            let used = cast(tensor.narrow(1, 0, length), DType::F32);
            used.try_into_vec_as().expect("keys and values are on the host, in f32")
        };
        let (keys, values, token) = (floats(keys), floats(values), self.heads * self.width);
        for (key, value) in keys.chunks_exact(token).zip(values.chunks_exact(token)) {
            text.append(key, value, self.width);
        }
        self.texts.push(text);
    }

    /// Keeps the texts that are marked.
    pub(crate) fn keep(&mut self, marks: &[bool]) {
        let mut marks = marks.iter();
        self.texts.retain(|_| *marks.next().expect("a mark for each text"));
    }

    /// Adds a token to each text, and lets it see all of them from the first of its `window`: `softmax(query · keyᵀ) · value`.
    ///
    /// # Shapes
    /// `query` and the result: `[B, 1, H, E]`; `key` and `value`: `[B, 1, K, 1, E]`.
    pub(crate) fn attend(
        &mut self,
        query: Tensor<4>,
        [key, value]: [Tensor<5>; 2],
        window: Option<usize>,
    ) -> Tensor<4> {
        let (shape, dtype, device) = (query.dims(), query.dtype(), query.device());
        let query = host(query);
        let (key, value) = (host(key), host(value));
        let (heads, width) = (self.heads, self.width);
        let token = heads * width;
        let tokens = key.chunks_exact(token).zip(value.chunks_exact(token));
        for (text, (key, value)) in self.texts.iter_mut().zip(tokens) {
            text.append(key, value, width);
        }
        let groups = shape[2] / heads;
        let mut mixed = vec![0.0f32; query.len()];
        let of_head = groups * width;
        let texts = &self.texts;
        mixed.par_chunks_exact_mut(of_head).zip(query.par_chunks_exact(of_head)).enumerate().for_each(
            |(index, (mixed, query))| {
                let (text, head) = (&texts[index / heads], index % heads);
                let first = window.map_or(0, |window| text.length.saturating_sub(window));
                widest(Mix { text, head, width, first, query, mixed });
            },
        );
        tensor(mixed, shape, dtype, &device)
    }
}

fn host<const RANK: usize>(tensor: Tensor<RANK>) -> Vec<f32> {
    cast(tensor, DType::F32).try_into_vec_as().expect("it is on the host, in f32")
}

fn tensor(numbers: Vec<f32>, shape: [usize; 4], dtype: DType, device: &Device) -> Tensor<4> {
    cast(Tensor::from_data(TensorData::new(numbers, shape), device), dtype)
}

impl Text {
    /// Adds a token: E numbers of each key head.
    fn append(&mut self, key: &[f32], value: &[f32], width: usize) {
        let at = self.length;
        assert!(at < self.capacity, "room was made for all tokens of an answer");
        let head = self.capacity * width;
        let in_block = at / BLOCK * BLOCK * width + at % BLOCK;
        for (keys, key) in self.keys.chunks_exact_mut(head).zip(key.chunks_exact(width)) {
            for (place, number) in keys[in_block..].iter_mut().step_by(BLOCK).zip(key) {
                *place = *number;
            }
        }
        for (values, value) in self.values.chunks_exact_mut(head).zip(value.chunks_exact(width)) {
            values[at * width..][..width].copy_from_slice(value);
        }
        self.length += 1;
    }
}

/// Attention of the queries of one key head, of the last token of one text.
struct Mix<'a> {
    text: &'a Text,
    head: usize,
    width: usize,
    /// The first token that is seen.
    first: usize,
    /// `[G, E]`
    query: &'a [f32],
    /// `[G, E]`
    mixed: &'a mut [f32],
}

impl NullaryFnOnce for Mix<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let Self { text, head, width, first, query, mixed } = self;
        let all = text.capacity * width;
        let (keys, values) = (&text.keys[head * all..][..all], &text.values[head * all..][..all]);
        let begin = first / BLOCK * BLOCK;
        let blocks = begin / BLOCK..text.length.div_ceil(BLOCK);
        let places = blocks.len() * BLOCK;
        let groups = query.len() / width;
        let mut scores = vec![0.0f32; groups * places];
        for (place, block) in blocks.enumerate() {
            let keys = &keys[block * BLOCK * width..][..BLOCK * width];
            for (scores, query) in scores.chunks_exact_mut(places).zip(query.chunks_exact(width)) {
                let scores = &mut scores[place * BLOCK..][..BLOCK];
                scores.copy_from_slice(&block_scores(keys, query));
            }
        }
        for (scores, mixed) in scores.chunks_exact_mut(places).zip(mixed.chunks_exact_mut(width)) {
            let scores = &mut scores[first - begin..text.length - begin];
            softmax(scores);
            weighted(scores, &values[first * width..], width, mixed);
        }
    }
}

/// Products of a query with the keys of a block.
#[inline(always)]
fn block_scores(keys: &[f32], query: &[f32]) -> [f32; BLOCK] {
    let mut sums = [0.0f32; BLOCK];
    for (keys, query) in keys.as_chunks::<BLOCK>().0.iter().zip(query) {
        for (sum, key) in sums.iter_mut().zip(keys) {
            *sum = query.mul_add(*key, *sum);
        }
    }
    sums
}

#[inline(always)]
fn softmax(scores: &mut [f32]) {
    let largest = scores.iter().fold(f32::NEG_INFINITY, |largest, &score| largest.max(score));
    for score in scores.iter_mut() {
        *score = exp_non_positive(*score - largest);
    }
    let mut sums = [0.0f32; 8];
    let (lanes, rest) = scores.as_chunks::<8>();
    for lane in lanes {
        for (sum, number) in sums.iter_mut().zip(lane) {
            *sum += number;
        }
    }
    let total = sums.iter().sum::<f32>() + rest.iter().sum::<f32>();
    for score in scores {
        *score /= total;
    }
}

/// Values of the tokens, each times its share.
#[inline(always)]
fn weighted(shares: &[f32], values: &[f32], width: usize, mixed: &mut [f32]) {
    let whole = width / VALUES_AT_ONCE * VALUES_AT_ONCE;
    for first in (0..whole).step_by(VALUES_AT_ONCE) {
        let mut sums = [0.0f32; VALUES_AT_ONCE];
        for (share, values) in shares.iter().zip(values.chunks_exact(width)) {
            for (sum, value) in sums.iter_mut().zip(&values[first..first + VALUES_AT_ONCE]) {
                *sum = share.mul_add(*value, *sum);
            }
        }
        mixed[first..first + VALUES_AT_ONCE].copy_from_slice(&sums);
    }
    for place in whole..width {
        let terms = shares.iter().zip(values.chunks_exact(width));
        mixed[place] = terms.fold(0.0, |sum, (share, values)| share.mul_add(values[place], sum));
    }
}
