//! A column of lists: all values behind each other, and where each row ends.

use std::ops::Range;

/// The lists of a row group; a column that is not there has none, and gives empty ones.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct List<T> {
    pub(crate) values: Vec<T>,
    /// End of each row in `values`.
    pub(crate) ends: Vec<usize>,
}

impl<T> Default for List<T> {
    fn default() -> Self {
        Self { values: Vec::new(), ends: Vec::new() }
    }
}

impl<T: Copy> List<T> {
    pub(crate) fn push(&mut self, row: &[T]) {
        self.values.extend_from_slice(row);
        self.ends.push(self.values.len());
    }

    /// Values of a row.
    pub(crate) fn row(&self, row: usize) -> &[T] {
        &self.values[self.range(row)]
    }

    /// Number of values of a row.
    pub(crate) fn row_len(&self, row: usize) -> usize {
        self.range(row).len()
    }

    pub(crate) fn clear(&mut self) {
        self.values.clear();
        self.ends.clear();
    }

    fn range(&self, row: usize) -> Range<usize> {
        if self.ends.is_empty() {
            return 0..0;
        }
        let start = if row == 0 { 0 } else { self.ends[row - 1] };
        start..self.ends[row]
    }
}
