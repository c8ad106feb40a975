//! A matrix that lies in memory line by line.

use burn::tensor::bf16;

/// The numbers of a matrix and what surrounds them.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Numbers<'a> {
    F32(&'a [f32]),
    Bf16(&'a [bf16]),
}

/// A view of a matrix of which either rows or columns are contiguous.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Matrix<'a> {
    numbers: Numbers<'a>,
    pub(crate) rows: usize,
    pub(crate) columns: usize,
    /// Numbers from the beginning of a line to that of the next.
    pub(crate) stride: usize,
    /// Whether lines are rows; columns otherwise.
    pub(crate) by_rows: bool,
}

impl<'a> Matrix<'a> {
    /// None where neither rows nor columns are contiguous.
    ///
    /// # Panics
    /// The matrix reaches beyond its numbers.
    pub(crate) fn new(
        numbers: Numbers<'a>,
        [rows, columns]: [usize; 2],
        [of_rows, of_columns]: [isize; 2],
    ) -> Option<Self> {
        let by_rows = of_columns == 1 || columns == 1;
        if !by_rows && of_rows != 1 && rows != 1 {
            return None;
        }
        let (lines, length) = if by_rows { (rows, columns) } else { (columns, rows) };
        let stride = usize::try_from(if by_rows { of_rows } else { of_columns }).ok()?;
        let held = match numbers {
            Numbers::F32(numbers) => numbers.len(),
            Numbers::Bf16(numbers) => numbers.len(),
        };
        let reach = if lines == 0 { 0 } else { (lines - 1) * stride + length };
        assert!(reach <= held, "a matrix of {rows} by {columns} ends at {reach} of {held} numbers");
        Some(Self { numbers, rows, columns, stride, by_rows })
    }

    /// Rows as columns.
    pub(crate) fn transposed(&self) -> Self {
        Self { rows: self.columns, columns: self.rows, by_rows: !self.by_rows, ..*self }
    }

    pub(crate) fn numbers(&self) -> Numbers<'a> {
        self.numbers
    }
}
