//! What an adapter makes of one stored tensor, in blocks of rows on its way from file to file.

use std::io::Write;

use safetensors::Dtype;

use crate::Error;
use crate::convert::{self, Refused};
use crate::dora::{Along, Product};
use crate::files::WeightsFile;

/// Elements of a tensor that are in memory at a time, as floats.
const BLOCK: usize = 1 << 20;
/// What becomes of a stored tensor.
pub(super) struct Change<'a> {
    /// Where its numbers are, if elsewhere.
    pub(super) from: Option<(&'a WeightsFile, String)>,
    /// What is added to them.
    pub(super) product: Option<Product>,
    /// What the sum is multiplied by.
    pub(super) gain: Option<(Vec<f32>, Along)>,
}

impl Change<'_> {
    /// Computes the rows from `first` on.
    fn apply(&self, first: usize, columns: usize, values: &mut [f32]) {
        let rows = values.len() / columns;
        if let Some(product) = &self.product {
            let update = product.rows(first, rows).into_data();
            let update = update.as_slice::<f32>().expect("factors are 32-bit floats");
            values.iter_mut().zip(update).for_each(|(value, update)| *value += update);
        }
        for (row, values) in values.chunks_mut(columns).enumerate() {
            match &self.gain {
                None => {}
                Some((gain, Along::Rows)) => values.iter_mut().for_each(|value| *value *= gain[first + row]),
                Some((gain, Along::Columns)) => {
                    values.iter_mut().zip(gain).for_each(|(value, gain)| *value *= gain);
                }
            }
        }
    }

    /// `magnitudes` over the norms of the sum.
    pub(super) fn norms(
        &self,
        file: &WeightsFile,
        name: &str,
        magnitudes: &[f32],
        along: Along,
    ) -> Result<Vec<f32>, Error> {
        let mut squares = vec![0.0f64; magnitudes.len()];
        each_block(file, name, |first, columns, mut values| {
            self.apply(first, columns, &mut values);
            for (row, values) in values.chunks(columns).enumerate() {
                for (column, value) in values.iter().enumerate() {
                    let place = if along == Along::Rows { first + row } else { column };
                    squares[place] += f64::from(*value).powi(2);
                }
            }
            Ok(())
        })?;
        let gain = magnitudes.iter().zip(squares);
        Ok(gain.map(|(magnitude, square)| magnitude / square.sqrt() as f32).collect())
    }
}

/// Writes one tensor, changed and in another number format where asked for.
pub(super) fn write_tensor(
    file: &WeightsFile,
    name: &str,
    dtype: Dtype,
    change: Option<&Change<'_>>,
    target: &mut fs_err::File,
) -> Result<(), Error> {
    let from = change.and_then(|change| change.from.as_ref());
    let (file, name) = from.map_or((file, name), |(file, name)| (*file, name));
    let is_same = change.is_none_or(|change| change.product.is_none());
    let entry = &file.header().tensors[name];
    if is_same && dtype == entry.dtype {
        return Ok(target.write_all(file.map(entry)?.bytes())?);
    }
    each_block(file, name, |first, columns, mut values| {
        if let Some(change) = change {
            change.apply(first, columns, &mut values);
        }
        let bytes = convert::to_bytes(&values, dtype);
        Ok(target
            .write_all(&bytes.map_err(|refused| refused_at(file, name, dtype, first * columns, refused))?)?)
    })
}

/// Reads a tensor in blocks of rows: gives the first row, the columns, and the numbers.
fn each_block(
    file: &WeightsFile,
    name: &str,
    mut each: impl FnMut(usize, usize, Vec<f32>) -> Result<(), Error>,
) -> Result<(), Error> {
    let entry = file.entry(name)?;
    let map = file.map(entry)?;
    let columns = entry.shape.last().copied().unwrap_or(1).max(1);
    let rows = (BLOCK / columns).max(1);
    let block_bytes = rows * columns * entry.dtype.bitsize() / 8;
    for (block, bytes) in map.bytes().chunks(block_bytes).enumerate() {
        let first = block * rows;
        let values = convert::to_f32(entry.dtype, bytes)
            .map_err(|refused| refused_at(file, name, entry.dtype, first * columns, refused))?;
        each(first, columns, values)?;
    }
    Ok(())
}

/// The error of an element of a block that begins at `before`.
fn refused_at(file: &WeightsFile, name: &str, dtype: Dtype, before: usize, refused: Refused) -> Error {
    file.refused(name, dtype, Refused { index: before + refused.index, value: refused.value })
}

#[cfg(test)]
mod tests {
    use burn::tensor::{Device, Tensor, TensorData};

    use super::*;

    /// By hand: `2 · [[1], [3]] · [[10, 20, 30]]`, its second row alone; then that row times 0.5.
    #[test]
    fn a_change_computes_the_rows_that_it_is_asked_for() {
        let tensor =
            |values: Vec<f32>, shape| Tensor::from_data(TensorData::new(values, shape), &Device::flex());
        let product = Product {
            left: tensor(vec![1.0, 3.0], [2, 1]),
            right: tensor(vec![10.0, 20.0, 30.0], [1, 3]),
            scale: 2.0,
        };
        let mut change = Change { from: None, product: Some(product), gain: None };
        let mut values = [0.5; 3];
        change.apply(1, 3, &mut values);
        assert_eq!(values, [60.5, 120.5, 180.5]);
        for (gain, expected) in [
            ((vec![9.0, 0.5], Along::Rows), [30.25, 60.25, 90.25]),
            ((vec![1.0, 2.0, 0.0], Along::Columns), [60.5, 241.0, 0.0]),
        ] {
            change.gain = Some(gain);
            let mut values = [0.5; 3];
            change.apply(1, 3, &mut values);
            assert_eq!(values, expected);
        }
    }
}
