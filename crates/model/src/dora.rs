//! DoRA (arXiv 2402.09353, equation 5) on a matrix that is there as a whole, in blocks of rows.
//!
//! Legend: O rows, I columns, R rank.

use burn::tensor::{DType, Tensor};

use crate::precision::cast;

/// Numbers of a matrix that are in 32 bits at a time.
const BLOCK: usize = 1 << 22;

/// What is added to a matrix `[O, I]`: `scale · left · right`.
#[derive(Debug, Clone)]
pub(crate) struct Product {
    /// `[O, R]`.
    pub(crate) left: Tensor<2>,
    /// `[R, I]`.
    pub(crate) right: Tensor<2>,
    pub(crate) scale: f64,
}

/// Whose norms a magnitude is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Along {
    /// Each row has one.
    Rows,
    /// Each column has one.
    Columns,
}

impl Product {
    /// The rows from `first` on.
    pub(crate) fn rows(&self, first: usize, count: usize) -> Tensor<2> {
        let [_, rank] = self.left.dims();
        self.left.clone().slice([first..first + count, 0..rank]).matmul(self.right.clone()) * self.scale
    }

    /// `magnitude / ‖weight + product‖`: what the sum is multiplied by.
    ///
    /// # Shapes
    /// `weight`: `[O, I]`; `magnitude` and the result: `[1, O]` along rows, `[1, I]` along columns; f32.
    pub(crate) fn gain(&self, weight: &Tensor<2>, magnitude: Tensor<2>, along: Along) -> Tensor<2> {
        let [_, columns] = weight.dims();
        let squares = self.blocks(weight).map(|sum| {
            let squares = sum.square();
            match along {
                Along::Rows => squares.sum_dim(1),
                Along::Columns => squares.sum_dim(0),
            }
        });
        let squares: Vec<_> = squares.collect();
        let norms = match along {
            Along::Rows => Tensor::cat(squares, 0).transpose(),
            Along::Columns => Tensor::cat(squares, 0).sum_dim(0).reshape([1, columns]),
        };
        magnitude / norms.sqrt()
    }

    /// `weight + product`, and with a gain multiplied by it, in the number format of the weight.
    pub(crate) fn added_to(&self, weight: &Tensor<2>, gain: Option<(Tensor<2>, Along)>) -> Tensor<2> {
        let dtype = weight.dtype();
        let mut first = 0;
        let blocks = self.blocks(weight).map(|sum| {
            let [rows, _] = sum.dims();
            let sum = match &gain {
                None => sum,
                Some((gain, Along::Columns)) => sum * gain.clone(),
                Some((gain, Along::Rows)) => {
                    sum * gain.clone().slice([0..1, first..first + rows]).transpose()
                }
            };
            first += rows;
            cast(sum, dtype)
        });
        Tensor::cat(blocks.collect(), 0)
    }

    /// The sum in 32-bit floats, some rows at a time.
    fn blocks<'a>(&'a self, weight: &'a Tensor<2>) -> impl Iterator<Item = Tensor<2>> + 'a {
        let [rows, columns] = weight.dims();
        let at_once = (BLOCK / columns.max(1)).max(1);
        (0..rows).step_by(at_once).map(move |first| {
            let count = at_once.min(rows - first);
            let block = weight.clone().slice([first..first + count, 0..columns]);
            cast(block, DType::F32) + self.rows(first, count)
        })
    }
}
