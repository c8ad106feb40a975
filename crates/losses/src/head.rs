//! The teacher's head: hidden states to labels, without the logits of all rows at once.
//!
//! Legend: N rows, C rows of one chunk, D model width, V vocabulary.

use std::ops::Range;

use burn::tensor::{Device, FloatDType, Tensor};
use rayon::prelude::*;

use crate::error::HeadError;
use crate::labels::{HeadLabels, HeadOptions};
use crate::passes::scale;
use crate::product;
use crate::select::{RowLabels, Selector};

/// Labels of N positions from their final hidden states; see [`select`](crate::select) for what is kept.
///
/// The product with the head runs on the tensors' device, chunk by chunk, in f32 whatever the weights are (see
/// [`logits`](crate::logits)): a tensor of `[N, V]` never exists. On the CPU the
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
    let device = hidden.device();
    let logits =
        |rows: Range<usize>| product::logits(hidden.clone().narrow(0, rows.start, rows.len()), &head);
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
