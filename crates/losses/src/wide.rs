//! What is done to every logit of a chunk: in place on the CPU in f32, by tensor operations elsewhere, as these need a buffer each.
//!
//! Legend: C rows of the chunk, K columns that are named in each row, V vocabulary.

use burn::tensor::{DType, IndexingUpdateOp, Int, Tensor, TensorData};
use rayon::prelude::*;

use crate::passes;

/// exp(z - m), `[C, V]`, with the largest logit m and the sum of each row, both `[C, 1]`. NaN and +inf reach the sum.
///
/// # Shapes
/// `logits` `[C, V]`.
pub(crate) fn exponentials(logits: Tensor<2>) -> [Tensor<2>; 3] {
    let [rows, vocabulary] = logits.dims();
    if !is_on_the_host(&logits) {
        let largest = logits.clone().max_dim(1);
        let exponentials = (logits - largest.clone()).exp();
        let sums = exponentials.clone().sum_dim(1);
        return [exponentials, largest, sums];
    }
    let device = logits.device();
    let mut data = logits.into_data();
    let of_row = |row: &mut [f32]| {
        let largest = passes::largest(row);
        (largest, passes::exponentiate_in_place(row, largest))
    };
    let (largest, sums): (Vec<f32>, Vec<f64>) =
        values_of(&mut data).par_chunks_exact_mut(vocabulary).map(of_row).unzip();
    let sums: Vec<f32> = sums.into_iter().map(|sum| sum as f32).collect();
    let column = |values| Tensor::from_data(TensorData::new(values, [rows, 1]), &device);
    [Tensor::from_data(data, &device), column(largest), column(sums)]
}

/// Each row times its factor.
///
/// # Shapes
/// `values` `[C, V]`, `factors` `[C, 1]`.
pub(crate) fn scale_rows(values: Tensor<2>, factors: Tensor<2>) -> Tensor<2> {
    if !is_on_the_host(&values) {
        return values * factors;
    }
    let ([_, vocabulary], device) = (values.dims(), values.device());
    let (mut data, mut factors) = (values.into_data(), factors.into_data());
    let rows = values_of(&mut data).par_chunks_exact_mut(vocabulary);
    rows.zip(values_of(&mut factors)).for_each(|(row, factor)| passes::scale(row, *factor));
    Tensor::from_data(data, &device)
}

/// Adds `values` at the columns `ids` of their rows, some of which may be named twice.
///
/// # Shapes
/// `to` `[C, V]`, `ids` and `values` `[C, K]`.
pub(crate) fn add_at(to: Tensor<2>, ids: Tensor<2, Int>, values: Tensor<2>) -> Tensor<2> {
    if !is_on_the_host(&to) {
        return to.scatter(1, ids, values, IndexingUpdateOp::Add);
    }
    let ([_, vocabulary], [_, width], device) = (to.dims(), ids.dims(), to.device());
    let (mut data, mut values) = (to.into_data(), values.into_data());
    let ids = ids.into_data().convert::<i64>();
    let ids = ids.as_slice::<i64>().expect("converted to i64");
    let rows = values_of(&mut data).chunks_exact_mut(vocabulary);
    for ((row, ids), values) in
        rows.zip(ids.chunks_exact(width)).zip(values_of(&mut values).chunks_exact(width))
    {
        for (&id, value) in ids.iter().zip(values) {
            row[usize::try_from(id).expect("checked: a token of the vocabulary")] += *value;
        }
    }
    Tensor::from_data(data, &device)
}

/// Whether the numbers of a tensor that nobody else holds can be changed where they are.
fn is_on_the_host(tensor: &Tensor<2>) -> bool {
    #[cfg(feature = "cube")]
    if crate::cube::runs_on(&tensor.device()) {
        return false;
    }
    tensor.dtype() == DType::F32
}

fn values_of(data: &mut TensorData) -> &mut [f32] {
    data.as_mut_slice().expect("the numbers are f32")
}
