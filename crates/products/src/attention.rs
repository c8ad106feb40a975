//! What attention reads and gives, as it lies in memory.

use std::ops::Range;
use std::sync::Arc;

/// Which keys each query sees: from a first one to its own.
#[derive(Debug, Clone)]
pub struct Visible {
    /// Keys before those of the first query.
    before: usize,
    /// For each query of each row of a batch the first key; a single row stands for all.
    first: Arc<[Vec<usize>]>,
}

impl Visible {
    /// Queries that follow `before` keys.
    ///
    /// # Panics
    /// A query sees nothing.
    pub fn new(before: usize, first: Vec<Vec<usize>>) -> Self {
        let nothing = first.iter().any(|row| row.iter().zip(before..).any(|(&first, own)| first > own));
        assert!(!nothing, "each query sees a key");
        Self { before, first: first.into() }
    }

    pub(crate) fn queries(&self) -> usize {
        self.first.first().map_or(0, Vec::len)
    }

    pub(crate) fn all_keys(&self) -> usize {
        self.before + self.queries()
    }

    pub(crate) fn keys(&self, batch: usize, query: usize) -> Range<usize> {
        let row = if self.first.len() == 1 { 0 } else { batch };
        self.first[row][query]..self.before + query + 1
    }
}

/// Rows of several heads, each contiguous: `[batch, rows, heads, width]`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Heads<'a> {
    pub(crate) numbers: &'a [f32],
    pub(crate) batch: usize,
    pub(crate) rows: usize,
    pub(crate) heads: usize,
    pub(crate) width: usize,
    pub(crate) stride_of_batch: usize,
    pub(crate) stride: usize,
    pub(crate) stride_of_head: usize,
}

/// Gradients, laid out as the rows of their heads without gaps.
#[derive(Debug)]
pub(crate) struct Gradients {
    pub(crate) query: Vec<f32>,
    pub(crate) key: Vec<f32>,
    pub(crate) value: Vec<f32>,
}
