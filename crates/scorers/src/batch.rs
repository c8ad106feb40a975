//! Texts of a batch as rows of tokens, which attention alone pads.
//!
//! Legend: B texts, T tokens of the longest, N tokens of all, H heads, E head width, D model width.

use std::sync::atomic::{AtomicBool, Ordering};

use burn::tensor::{Device, Int, Tensor, TensorData};
use softshard_model::{Fitting, batches_by_length};

use crate::Error;

/// Tokens of a batch, padding included; a longer text is computed alone.
const MAX_TOKENS_PER_BATCH: usize = 1 << 13;

/// What `compute` makes of each text, in their order: of some at a time that are alike in length, or of as many of them as the device
/// has memory for.
///
/// # Errors
/// Those of `compute`; the device has no memory for a single text; somebody asked for a stop.
pub(crate) fn in_batches<T, R>(
    texts: &[&[T]],
    device: &Device,
    stop: &AtomicBool,
    compute: &impl Fn(&[&[T]]) -> Result<Vec<R>, Error>,
) -> Result<Vec<R>, Error> {
    let lengths: Vec<usize> = texts.iter().map(|text| text.len()).collect();
    let mut found: Vec<Option<R>> = texts.iter().map(|_| None).collect();
    let fitting = Fitting::default();
    for batch in batches_by_length(&lengths, MAX_TOKENS_PER_BATCH) {
        if stop.load(Ordering::Relaxed) {
            return Err(Error::Interrupted);
        }
        let tokens = |members: &[usize]| members.len() * lengths[members[0]];
        let compute = |members: &[usize]| {
            let texts: Vec<&[T]> = members.iter().map(|&index| texts[index]).collect();
            compute(&texts)
        };
        let parts = fitting.each(&batch, &tokens, device, &compute)?;
        for (&index, part) in batch.iter().zip(parts.into_iter().flatten()) {
            found[index] = Some(part);
        }
    }
    Ok(found.into_iter().map(|found| found.expect("every text is in a batch")).collect())
}

/// Texts that are computed together: their tokens one after the other.
pub(crate) struct Batch {
    /// `[N]`.
    pub(crate) ids: Tensor<1, Int>,
    pub(crate) lengths: Vec<usize>,
    /// T.
    pub(crate) longest: usize,
    /// Where texts differ in length.
    padding: Option<Padding>,
    device: Device,
}

struct Padding {
    /// Of each padded place the token that stands there, `[B·T]`: behind its end a text repeats its last token.
    spread: Tensor<1, Int>,
    /// Of each token its padded place, `[N]`.
    gather: Tensor<1, Int>,
}

impl Batch {
    /// # Panics
    /// A text has no token.
    pub(crate) fn new(texts: &[&[u32]], device: &Device) -> Self {
        let lengths: Vec<usize> = texts.iter().map(|text| text.len()).collect();
        assert!(!lengths.contains(&0), "every text has a token");
        let longest = lengths.iter().copied().max().unwrap_or(0);
        let ids = texts.iter().flat_map(|text| text.iter().map(|&id| index(id as usize))).collect();
        let padding = lengths.iter().any(|&length| length < longest).then(|| {
            let (mut spread, mut gather) = (Vec::with_capacity(lengths.len() * longest), Vec::new());
            let mut start = 0;
            for (row, &length) in lengths.iter().enumerate() {
                spread.extend((0..longest).map(|column| index(start + column.min(length - 1))));
                gather.extend((0..length).map(|column| index(row * longest + column)));
                start += length;
            }
            Padding { spread: indices(spread, device), gather: indices(gather, device) }
        });
        Self { ids: indices(ids, device), lengths, longest, padding, device: device.clone() }
    }

    pub(crate) fn device(&self) -> &Device {
        &self.device
    }

    /// The place of each token in its own text.
    pub(crate) fn positions(&self) -> Vec<usize> {
        self.lengths.iter().flat_map(|&length| 0..length).collect()
    }

    /// The row of each text's first token, `[B]`.
    pub(crate) fn first_rows(&self) -> Tensor<1, Int> {
        let starts = self.lengths.iter().scan(0, |start, &length| {
            let row = *start;
            *start += length;
            Some(index(row))
        });
        indices(starts.collect(), &self.device)
    }

    /// Rows of tokens, padded and by head.
    ///
    /// # Shapes
    /// `x`: `[N, H·E]`; the result: `[B, H, T, E]`.
    pub(crate) fn by_head(&self, x: Tensor<2>, heads: usize) -> Tensor<4> {
        let width = x.dims()[1] / heads;
        let x = match &self.padding {
            Some(padding) => x.select(0, padding.spread.clone()),
            None => x,
        };
        x.reshape([self.lengths.len(), self.longest, heads, width]).permute([0, 2, 1, 3])
    }

    /// The rows of the tokens, without padding.
    ///
    /// # Shapes
    /// `x`: `[B, H, T, E]`; the result: `[N, H·E]`.
    pub(crate) fn by_row(&self, x: Tensor<4>) -> Tensor<2> {
        let [texts, heads, tokens, width] = x.dims();
        let x = x.permute([0, 2, 1, 3]).reshape([texts * tokens, heads * width]);
        match &self.padding {
            Some(padding) => x.select(0, padding.gather.clone()),
            None => x,
        }
    }

    /// The mean of each text's rows.
    ///
    /// # Shapes
    /// `x`: `[N, D]`; the result: `[B, D]`.
    pub(crate) fn means(&self, x: Tensor<2>) -> Tensor<2> {
        let mut start = 0;
        let mean = |&length: &usize| {
            let rows = x.clone().narrow(0, start, length);
            start += length;
            rows.mean_dim(0)
        };
        Tensor::cat(self.lengths.iter().map(mean).collect(), 0)
    }
}

/// A tensor of row numbers.
pub(crate) fn indices(values: Vec<i32>, device: &Device) -> Tensor<1, Int> {
    let count = values.len();
    Tensor::from_data(TensorData::new(values, [count]), device)
}

/// # Panics
/// It does not fit: a batch has fewer than 2^31 tokens, a vocabulary fewer entries.
pub(crate) fn index(value: usize) -> i32 {
    i32::try_from(value).expect("batches and vocabularies have fewer than 2^31 entries")
}
