//! Which tokens of a batch belong together: padding, packed texts, windows, and the tiles that attention works in.
//!
//! One rule covers all of them: a token sees the columns from a first one to its own.
//!
//! Legend: B rows of the batch, T columns of this call, S columns seen so far (T without a cache).

use std::ops::Range;

use burn::tensor::{Device, Int, Tensor, TensorData};
use softshard_products::Visible;

/// Added to a score that must not count. Every row of a mask leaves at least one score, so none becomes NaN; a finite
/// value would take the slow path of `expf` for results that underflow.
pub(crate) const MASKED: f32 = f32::NEG_INFINITY;

/// Queries of one tile: bounds the scores in memory, and lets columns that nobody sees be skipped.
pub const QUERIES_PER_TILE: usize = 256;

/// Which tokens of each row of a batch belong together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    /// Columns before this call, in a cache.
    pub(crate) seen: usize,
    /// For each row the column of the first token of each token's text; a single row stands for all.
    pub(crate) first: Vec<Vec<usize>>,
    /// Lengths of the texts, one a row, where some end before their row does and `first` does not say it.
    pub(crate) lengths: Option<Vec<usize>>,
    /// Whether what is no text is there in attention alone: see [`Layout::ragged`].
    pub(crate) ragged: bool,
}

impl Layout {
    /// One text in each row, from the first column to the last. No token sees what comes after it, so padding on the right is
    /// harmless, but for rotary angles that go by the length of a text: they need [`Layout::right_padded`].
    pub fn causal(columns: usize) -> Self {
        Self { seen: 0, first: vec![vec![0; columns]], lengths: None, ragged: false }
    }

    /// One text of this length in the first columns of each row, of which there are as many as the longest has.
    pub fn right_padded(lengths: Vec<usize>) -> Self {
        let longest = lengths.iter().copied().max().unwrap_or(0);
        let lengths = lengths.iter().any(|&length| length < longest).then_some(lengths);
        Self { lengths, ..Self::causal(longest) }
    }

    /// One text in each row, of this length. Only the tokens of the texts are there, one text after the other as if in a single
    /// row; attention alone, where texts must not see each other, pads them to the longest.
    pub fn ragged(lengths: Vec<usize>) -> Self {
        let padded = Self::right_padded(lengths);
        Self { ragged: padded.lengths.is_some(), ..padded }
    }

    /// The same behind a cache, whose first columns in each row are `padding`.
    pub(crate) fn ragged_behind(lengths: Vec<usize>, seen: usize, padding: &[usize]) -> Self {
        let ragged = Self::ragged(lengths);
        let columns = ragged.columns();
        let first = padding.iter().map(|&column| vec![column; columns]).collect();
        Self { seen, first, ..ragged }
    }

    /// One text in the last columns of each row.
    ///
    /// # Panics
    /// A text is longer than the row.
    pub fn left_padded(lengths: &[usize], columns: usize) -> Self {
        let row = |&length: &usize| {
            assert!(length <= columns, "a text of {length} tokens in a row of {columns}");
            // Padding sees itself, so that its rows, which nobody reads, stay finite.
            (0..columns).map(|column| column.min(columns - length)).collect()
        };
        Self { seen: 0, first: lengths.iter().map(row).collect(), lengths: None, ragged: false }
    }

    /// Several texts in each row, one after the other; the rest of a row is padding. No text sees another, and the
    /// positions of each count from its own first token.
    ///
    /// # Panics
    /// The texts of a row are longer than the row.
    pub fn packed(lengths: &[Vec<usize>], columns: usize) -> Self {
        let row = |lengths: &Vec<usize>| {
            let mut first = Vec::with_capacity(columns);
            for &length in lengths {
                first.extend(std::iter::repeat_n(first.len(), length));
            }
            assert!(first.len() <= columns, "texts of {} tokens in a row of {columns}", first.len());
            first.extend(first.len()..columns);
            first
        };
        Self { seen: 0, first: lengths.iter().map(row).collect(), lengths: None, ragged: false }
    }

    /// The position of each token in its own text.
    pub(crate) fn positions(&self) -> Vec<Vec<usize>> {
        if let Some(lengths) = self.lengths.as_ref().filter(|_| self.ragged) {
            // Texts that go on behind a cache have positions behind what is there of them.
            let start = |row: usize| self.seen - self.first[row.min(self.first.len() - 1)][0];
            let row = |(row, &length): (usize, &usize)| start(row)..start(row) + length;
            return vec![lengths.iter().enumerate().flat_map(row).collect()];
        }
        let row = |first: &Vec<usize>| {
            first.iter().zip(self.seen..).map(|(first, column)| column - first).collect()
        };
        self.first.iter().map(row).collect()
    }

    /// Of each token how many there are of its text so far, those of this call included.
    pub(crate) fn text_lengths(&self) -> Vec<Vec<usize>> {
        let columns = self.first.first().map_or(0, Vec::len);
        match &self.lengths {
            Some(lengths) if self.ragged => {
                vec![lengths.iter().flat_map(|&length| std::iter::repeat_n(length, length)).collect()]
            }
            Some(lengths) => lengths.iter().map(|&length| vec![length; columns]).collect(),
            None => self.first.iter().map(|row| self.text_lengths_of(row)).collect(),
        }
    }

    /// The columns of a text, and no others, have the same first one.
    fn text_lengths_of(&self, row: &[usize]) -> Vec<usize> {
        let mut lengths = Vec::with_capacity(row.len());
        for text in row.chunk_by(|left, right| left == right) {
            let end = self.seen + lengths.len() + text.len();
            lengths.extend(std::iter::repeat_n(end - text[0], text.len()));
        }
        lengths
    }

    /// A window that hides something of these texts; absent where each token sees all before it.
    pub(crate) fn narrowing(&self, window: Option<usize>) -> Option<usize> {
        let longest = self.positions().into_iter().flatten().max().map_or(0, |last| last + 1);
        window.filter(|&window| window < longest)
    }

    /// Where attention finds the tokens of its padded rows, and where it gives them back, if it pads them.
    pub(crate) fn padding(&self, device: &Device) -> Option<Padding> {
        let lengths = self.lengths.as_ref().filter(|_| self.ragged)?;
        let columns = self.first.first().map_or(0, Vec::len);
        let index = |index: usize| i32::try_from(index).expect("a batch has fewer than 2^31 tokens");
        let tensor = |indices: Vec<i32>| {
            let count = indices.len();
            Tensor::from_data(TensorData::new(indices, [count]), device)
        };
        let (mut spread, mut gather) = (Vec::with_capacity(lengths.len() * columns), Vec::new());
        let mut start = 0;
        for (row, &length) in lengths.iter().enumerate() {
            // Behind its end a row repeats its last token, which no token of the text sees.
            spread.extend((0..columns).map(|column| index(start + column.min(length.saturating_sub(1)))));
            gather.extend((0..length).map(|column| index(row * columns + column)));
            start += length;
        }
        Some(Padding { shape: [lengths.len(), columns], spread: tensor(spread), gather: tensor(gather) })
    }

    /// Tokens of a row.
    pub(crate) fn columns(&self) -> usize {
        self.first.first().map_or(0, Vec::len)
    }

    /// The columns that each token sees, none of which is further back than `window`.
    pub(crate) fn visible(&self, window: Option<usize>) -> Visible {
        let row = |row: &Vec<usize>| (0..row.len()).map(|query| self.from(row, query, window)).collect();
        Visible::new(self.seen, self.first.iter().map(row).collect())
    }

    /// Tiles of queries with the columns that they see, none of which is further back than `window`.
    pub(crate) fn tiles(&self, window: Option<usize>) -> Vec<Tile> {
        let columns = self.first.first().map_or(0, Vec::len);
        let tile = |start: usize| self.tile(start..(start + QUERIES_PER_TILE).min(columns), window);
        (0..columns).step_by(QUERIES_PER_TILE).map(tile).collect()
    }

    fn tile(&self, queries: Range<usize>, window: Option<usize>) -> Tile {
        let all =
            || self.first.iter().flat_map(|row| queries.clone().map(|query| self.from(row, query, window)));
        let keys = all().min().unwrap_or(0)..self.seen + queries.end;
        let hides = queries.len() > 1 || all().any(|first| first > keys.start);
        Tile { queries, keys, hides }
    }

    /// The first column that a token sees.
    fn from(&self, row: &[usize], query: usize, window: Option<usize>) -> usize {
        let earliest = window.map_or(0, |window| (self.seen + query + 1).saturating_sub(window));
        row[query].max(earliest)
    }

    /// What is added to the scores of a tile, `[B or 1, 1, 1, queries, keys]`, f32; nothing where each query sees all keys.
    pub(crate) fn mask(&self, tile: &Tile, window: Option<usize>, device: &Device) -> Option<Tensor<5>> {
        let Tile { queries, keys, hides: true } = tile else { return None };
        let mut values = vec![MASKED; tile.numbers(self.first.len())];
        let lines = values.chunks_exact_mut(keys.len());
        let tokens = self.first.iter().flat_map(|row| queries.clone().map(move |query| (row, query)));
        for ((row, query), line) in tokens.zip(lines) {
            line[self.from(row, query, window) - keys.start..=self.seen + query - keys.start].fill(0.0);
        }
        let shape = [self.first.len(), 1, 1, queries.len(), keys.len()];
        Some(Tensor::from_data(TensorData::new(values, shape), device))
    }

    /// Numbers of the masks of all tiles.
    pub(crate) fn mask_numbers(&self, tiles: &[Tile]) -> usize {
        tiles.iter().filter(|tile| tile.hides).map(|tile| tile.numbers(self.first.len())).sum()
    }
}

/// How texts of different lengths meet in attention.
///
/// Legend: N tokens of all texts, B texts, T tokens of the longest.
#[derive(Debug)]
pub(crate) struct Padding {
    /// B and T.
    pub(crate) shape: [usize; 2],
    /// Of each padded place the token that stands there, `[B·T]`.
    pub(crate) spread: Tensor<1, Int>,
    /// Of each token its padded place, `[N]`.
    pub(crate) gather: Tensor<1, Int>,
}

/// Queries that are computed together, and what they see.
#[derive(Debug)]
pub(crate) struct Tile {
    /// Within `0..T`.
    pub(crate) queries: Range<usize>,
    /// Within `0..S`.
    pub(crate) keys: Range<usize>,
    /// Whether some query does not see some of the keys.
    hides: bool,
}

impl Tile {
    fn numbers(&self, rows: usize) -> usize {
        rows * self.queries.len() * self.keys.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Pairs of a query and a key that it sees, by the rule.
    fn expected(layout: &Layout, row: usize, window: usize) -> Vec<(usize, usize)> {
        let columns = layout.first[row].len();
        let sees = |query: usize, key: usize| {
            key <= query && layout.first[row][query] <= key && query - key < window
        };
        (0..columns)
            .flat_map(|query| (0..columns).map(move |key| (query, key)))
            .filter(|&(query, key)| sees(query, key))
            .collect()
    }

    #[test]
    fn tiles_cover_what_each_token_sees_and_nothing_else() {
        let columns = QUERIES_PER_TILE + 70;
        let layouts = [
            Layout::causal(columns),
            Layout::left_padded(&[columns, 3, QUERIES_PER_TILE + 1], columns),
            Layout::packed(
                &[vec![columns], vec![5, QUERIES_PER_TILE, 60], vec![2, 2], vec![QUERIES_PER_TILE, 70]],
                columns,
            ),
        ];
        for layout in layouts {
            for window in [1, 7, QUERIES_PER_TILE + 3, columns] {
                for row in 0..layout.first.len() {
                    let mut found = Vec::new();
                    for tile in layout.tiles(Some(window)) {
                        let mask = layout.mask(&tile, Some(window), &Device::flex());
                        let mask = mask.map(|mask| mask.try_into_vec_as::<f32>().unwrap());
                        let cells = tile.queries.len() * tile.keys.len();
                        for cell in 0..cells {
                            let value = mask.as_ref().map_or(0.0, |mask| mask[row * cells + cell]);
                            let (query, key) = (cell / tile.keys.len(), cell % tile.keys.len());
                            if value == 0.0 {
                                found.push((tile.queries.start + query, tile.keys.start + key));
                            }
                        }
                    }
                    assert_eq!(found, expected(&layout, row, window), "row {row} of {layout:?}");
                }
            }
        }
    }

    #[test]
    fn a_text_is_as_long_as_it_has_been_read() {
        assert_eq!(Layout::causal(3).text_lengths(), [[3, 3, 3]]);
        assert_eq!(Layout::left_padded(&[2, 4], 4).text_lengths(), [[1, 1, 2, 2], [4, 4, 4, 4]]);
        assert_eq!(Layout::packed(&[vec![2, 1], vec![]], 4).text_lengths(), [[2, 2, 1, 1], [1, 1, 1, 1]]);
        assert_eq!(Layout::right_padded(vec![1, 3]).text_lengths(), [[1, 1, 1], [3, 3, 3]]);
        assert_eq!(Layout::ragged(vec![1, 3]).text_lengths(), [[1, 3, 3, 3]]);
        assert_eq!(Layout::ragged(vec![2, 2]).text_lengths(), [[2, 2]]);
        // After five columns in a cache, of which two are padding, two more.
        let later = Layout { seen: 5, first: vec![vec![2, 2], vec![0, 0]], ..Layout::causal(2) };
        assert_eq!(later.text_lengths(), [[5, 5], [7, 7]]);
    }

    #[test]
    fn a_window_narrows_only_texts_that_are_longer() {
        let packed = Layout::packed(&[vec![3, 5]], 8);
        assert_eq!([4, 5, 8].map(|window| packed.narrowing(Some(window))), [Some(4), None, None]);
        assert_eq!(packed.narrowing(None), None);
    }

    #[test]
    fn positions_count_from_the_first_token_of_each_text() {
        assert_eq!(Layout::left_padded(&[2, 4], 4).positions(), [[0, 0, 0, 1], [0, 1, 2, 3]]);
        assert_eq!(Layout::packed(&[vec![2, 1], vec![]], 4).positions(), [[0, 1, 0, 0], [0, 0, 0, 0]]);
    }
}
