//! The teacher's head: hidden states to labels, without the logits of all rows at once.
//!
//! Legend: N rows, C rows of one chunk, D model width, V vocabulary.

use std::ops::Range;

use burn::tensor::{Device, FloatDType, Tensor};
use rayon::prelude::*;

use crate::error::HeadError;
use crate::passes::scale;
use crate::select::{Keep, RowLabels, Selector};
use crate::targets::StoredLabels;

/// Labels of N rows: the columns of [`RowLabels`], kept entries flattened over the rows.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct HeadLabels {
    /// Entries kept per row, `[N]`.
    pub counts: Vec<i32>,
    /// Kept tokens of all rows, per row first the exact and then the drawn ones, `[Σ counts]`.
    pub token_ids: Vec<i32>,
    /// Log probabilities of the exact ones in the full vocabulary at temperature 1.
    pub log_probs: Vec<f32>,
    /// How often the drawn ones were drawn.
    pub sample_counts: Vec<i32>,
    /// log Σ exp(z) of the raw logits, `[N]`.
    pub log_sum_exp: Vec<f32>,
    /// Log of the mass beyond the exact tokens, see [`RowLabels::tail_log_mass`], `[N]`.
    pub tail_log_mass: Vec<f32>,
    /// Entropy of the full distribution in nats, `[N]`.
    pub entropy: Vec<f32>,
    /// Log probability of the token that is really there, `[N]`.
    pub gold_log_prob: Vec<f32>,
    /// log Σ exp(z / T), one `[N]` for each extra temperature T.
    pub log_partitions: Vec<Vec<f32>>,
}

impl HeadLabels {
    /// Number of rows, N.
    pub fn len(&self) -> usize {
        self.counts.len()
    }

    /// Whether there is no row.
    pub fn is_empty(&self) -> bool {
        self.counts.is_empty()
    }

    /// The columns that a student's [`Targets`](crate::Targets) are made of.
    pub fn as_stored(&self) -> StoredLabels<'_> {
        StoredLabels {
            counts: &self.counts,
            token_ids: &self.token_ids,
            log_probs: &self.log_probs,
            sample_counts: &self.sample_counts,
            tail_log_mass: &self.tail_log_mass,
            entropy: &self.entropy,
        }
    }

    pub(crate) fn without_rows(options: &HeadOptions<'_>) -> Self {
        Self { log_partitions: vec![Vec::new(); options.temperatures.len()], ..Default::default() }
    }

    pub(crate) fn push(&mut self, row: RowLabels) {
        self.counts.push(i32::try_from(row.token_ids.len()).expect("V < 2^31"));
        self.token_ids.extend(row.token_ids);
        self.log_probs.extend(row.log_probs);
        self.sample_counts.extend(row.sample_counts);
        self.log_sum_exp.push(row.log_sum_exp);
        self.tail_log_mass.push(row.tail_log_mass);
        self.entropy.push(row.entropy);
        self.gold_log_prob.push(row.gold_log_prob);
        for (column, value) in self.log_partitions.iter_mut().zip(row.log_partitions) {
            column.push(value);
        }
    }
}

/// What is computed of the head's logits, and how.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct HeadOptions<'a> {
    /// Which tokens are kept.
    pub keep: Keep,
    /// Logits are multiplied by it, in f32, before anything else: above 1 for a teacher that is surer than it was, below
    /// for one that is less sure. 1 changes nothing.
    pub logit_scale: f32,
    /// Extra temperatures to take log partitions at.
    pub temperatures: &'a [f32],
    /// Rows whose logits exist at a time.
    pub rows_per_chunk: usize,
}

impl HeadOptions<'_> {
    fn check(&self) {
        let &HeadOptions { keep, logit_scale, temperatures, rows_per_chunk } = self;
        assert!(rows_per_chunk > 0, "a chunk has at least one row");
        assert!(keep.exact() > 0 || keep.draws().is_some(), "a selection keeps at least one token");
        assert!(keep.draws() != Some(0), "a selection draws at least once");
        let positive = |number: f32| number > 0.0 && number.is_finite();
        assert!(positive(logit_scale), "a logit scale is positive, found {logit_scale}");
        let bad = temperatures.iter().find(|&&temperature| !positive(temperature));
        assert!(bad.is_none(), "a temperature is positive, found {bad:?}");
    }
}

/// Labels of N positions from their final hidden states; see [`select`](crate::select) for what is kept.
///
/// The product with the head runs on the tensors' device, chunk by chunk: a tensor of `[N, V]` never exists. On the CPU the
/// rows of a chunk are labelled in parallel, where the product left them. On a device of CubeCL a kernel labels them, and only
/// its results are read, once for all chunks; its sums are f32, those of the CPU f64. Memory: the logits of `rows_per_chunk` rows.
///
/// # Shapes
/// `hidden` `[N, D]`, `head` `[V, D]`, `gold` `[N]`: the token that is really there; `uniforms` `[N]`, in 0..1: where the
/// draws of a row begin, may be empty if nothing is drawn.
///
/// # Errors
/// [`HeadError::NonFinite`] naming the first row that is no distribution; [`HeadError::Device`].
///
/// # Panics
/// If the shapes disagree, `rows_per_chunk`, k or the number of draws is 0, a temperature or the scale is not positive, or a
/// gold token is outside of the vocabulary.
pub fn label_rows(
    hidden: Tensor<2>,
    head: Tensor<2>,
    gold: &[i32],
    uniforms: &[f64],
    options: &HeadOptions<'_>,
) -> Result<HeadLabels, HeadError> {
    let (hidden, head) = (hidden.inner(), head.inner());
    let ([rows, width], [vocabulary, head_width]) = (hidden.dims(), head.dims());
    assert_eq!(width, head_width, "hidden [N, D] and head [V, D] have different D");
    let (device, head) = (hidden.device(), head.transpose());
    let logits = |rows: Range<usize>| hidden.clone().narrow(0, rows.start, rows.len()).matmul(head.clone());
    label([rows, vocabulary], &device, logits, gold, uniforms, options)
}

/// As [`label_rows`], of logits that exist already.
///
/// # Shapes
/// `logits` `[N, V]`; the others as there.
///
/// # Errors
/// As there.
///
/// # Panics
/// As there.
pub fn label_logits(
    logits: Tensor<2>,
    gold: &[i32],
    uniforms: &[f64],
    options: &HeadOptions<'_>,
) -> Result<HeadLabels, HeadError> {
    let logits = logits.inner();
    let (shape, device) = (logits.dims(), logits.device());
    let chunk = |rows: Range<usize>| logits.clone().narrow(0, rows.start, rows.len());
    label(shape, &device, chunk, gold, uniforms, options)
}

/// Labels of `[N, V]` logits, of which `logits` makes some rows at a time.
fn label(
    [rows, vocabulary]: [usize; 2],
    device: &Device,
    logits: impl Fn(Range<usize>) -> Tensor<2>,
    gold: &[i32],
    uniforms: &[f64],
    options: &HeadOptions<'_>,
) -> Result<HeadLabels, HeadError> {
    options.check();
    assert_eq!(rows, gold.len(), "N rows and gold [N] have different N");
    let draws = options.keep.draws().is_some();
    assert!(!draws || rows == uniforms.len(), "N rows and uniforms [N] have different N");
    let outside = gold.iter().find(|&&id| !usize::try_from(id).is_ok_and(|id| id < vocabulary));
    assert!(outside.is_none(), "gold token {outside:?} is outside of the vocabulary of {vocabulary}");
    #[cfg(feature = "cube")]
    if crate::cube::runs_on(device) {
        return crate::cube::label([rows, vocabulary], device, logits, gold, uniforms, options);
    }
    #[cfg(not(feature = "cube"))]
    let _ = device;

    let &HeadOptions { keep, logit_scale, temperatures, rows_per_chunk } = options;
    let mut labels = HeadLabels::without_rows(options);
    for start in (0..rows).step_by(rows_per_chunk) {
        let end = (start + rows_per_chunk).min(rows);
        let logits = logits(start..end).cast(FloatDType::F32);
        let mut logits = logits.try_into_data().map_err(|error| HeadError::Device(error.to_string()))?;
        let logits = logits.as_mut_slice::<f32>().expect("the logits were cast to f32");
        let chunk: Vec<Option<RowLabels>> = logits
            .par_chunks_exact_mut(vocabulary)
            .zip(start..end)
            .map_init(Selector::default, |selector, (logits, row)| {
                if logit_scale != 1.0 {
                    scale(logits, logit_scale);
                }
                let uniform = uniforms.get(row).copied().unwrap_or(0.0);
                selector.select(logits, gold[row], keep, uniform, temperatures)
            })
            .collect();
        for (offset, row) in chunk.into_iter().enumerate() {
            labels.push(row.ok_or(HeadError::NonFinite { row: start + offset })?);
        }
    }
    Ok(labels)
}
