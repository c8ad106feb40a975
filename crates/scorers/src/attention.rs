//! Attention in both directions: tiles of queries, what they see, and what is added to their scores.
//!
//! Legend: B texts, T tokens of the longest, S keys, H heads, E head width.

use std::ops::Range;

use burn::tensor::{Tensor, TensorData, activation};

use crate::batch::{Batch, index, indices};

/// Queries of one tile: bounds the scores in memory, and lets keys outside of a window be skipped.
const QUERIES_PER_TILE: usize = 256;
/// Numbers of position biases that are kept for all layers; more are made for each tile of each layer.
const MAX_KEPT_BIASES: usize = 1 << 25;

/// What the queries of a batch see in some layers.
pub(crate) struct View {
    tiles: Vec<Tile>,
    /// Absent where scores depend on positions in another way.
    bias: Option<Bias>,
}

/// Queries that are computed together, and the keys that some of them see.
struct Tile {
    queries: Range<usize>,
    keys: Range<usize>,
    /// 0 or minus infinity, `[B, 1, 1 or queries, keys]`; absent where all see all.
    mask: Option<Tensor<4>>,
}

/// What is added to a score by the distance from query to key.
struct Bias {
    /// Of the distances `1 - T` to `T - 1`, `[2T - 1, H]`.
    by_distance: Tensor<2>,
    /// Of each tile, `[1, H, queries, keys]`.
    kept: Option<Vec<Tensor<4>>>,
}

impl View {
    /// Each token sees those of its text that are at most `window` away, or all of them.
    pub(crate) fn new(batch: &Batch, window: Option<usize>) -> Self {
        let columns = batch.longest;
        let window = window.filter(|&window| window + 1 < columns);
        let step = if columns > QUERIES_PER_TILE { QUERIES_PER_TILE } else { columns.max(1) };
        let tile = |start: usize| {
            let queries = start..(start + step).min(columns);
            let keys = match window {
                Some(window) => queries.start.saturating_sub(window)..(queries.end + window).min(columns),
                None => 0..columns,
            };
            let mask = mask(batch, &queries, &keys, window);
            Tile { queries, keys, mask }
        };
        Self { tiles: (0..columns).step_by(step).map(tile).collect(), bias: None }
    }

    /// Everything of its text is seen, with a bias for each distance of `1 - T..T`.
    ///
    /// # Shapes
    /// `by_distance`: `[2T - 1, H]`.
    pub(crate) fn with_bias(batch: &Batch, by_distance: Tensor<2>) -> Self {
        let view = Self::new(batch, None);
        let heads = by_distance.dims()[1];
        let mut bias = Bias { by_distance, kept: None };
        if batch.longest * batch.longest * heads <= MAX_KEPT_BIASES {
            bias.kept = Some(view.tiles.iter().map(|tile| bias.of(tile)).collect());
        }
        Self { bias: Some(bias), ..view }
    }

    /// `softmax(query · keyᵀ + what the view adds) · value`. Scores of one tile are in memory at a time.
    ///
    /// # Shapes
    /// All, and the result: `[B, H, T, E]`.
    pub(crate) fn attend(&self, query: &Tensor<4>, key: Tensor<4>, value: &Tensor<4>) -> Tensor<4> {
        let key = key.swap_dims(2, 3);
        let tile = |(place, tile): (usize, &Tile)| {
            let query = narrow(query, 2, &tile.queries);
            let mut scores = query.matmul(narrow(&key, 3, &tile.keys));
            if let Some(bias) = &self.bias {
                scores =
                    scores + bias.kept.as_ref().map_or_else(|| bias.of(tile), |kept| kept[place].clone());
            }
            if let Some(mask) = &tile.mask {
                scores = scores + mask.clone();
            }
            activation::softmax(scores, 3).matmul(narrow(value, 2, &tile.keys))
        };
        let mut mixed: Vec<_> = self.tiles.iter().enumerate().map(tile).collect();
        if mixed.len() == 1 { mixed.remove(0) } else { Tensor::cat(mixed, 2) }
    }
}

impl Bias {
    fn of(&self, tile: &Tile) -> Tensor<4> {
        let [distances, heads] = self.by_distance.dims();
        let last = distances / 2; // T - 1
        let rows = tile.queries.clone();
        let cells = rows.flat_map(|query| tile.keys.clone().map(move |key| index(key + last - query)));
        let cells = indices(cells.collect(), &self.by_distance.device());
        let of_cells = self.by_distance.clone().select(0, cells);
        of_cells.reshape([1, tile.queries.len(), tile.keys.len(), heads]).permute([0, 3, 1, 2])
    }
}

fn narrow(x: &Tensor<4>, axis: usize, range: &Range<usize>) -> Tensor<4> {
    if range.len() == x.dims()[axis] { x.clone() } else { x.clone().narrow(axis, range.start, range.len()) }
}

/// What queries do not see: keys behind the end of their text, and those outside of the window. Queries behind the end, which
/// nobody reads, see all, so that no row of scores is empty.
fn mask(
    batch: &Batch,
    queries: &Range<usize>,
    keys: &Range<usize>,
    window: Option<usize>,
) -> Option<Tensor<4>> {
    let lengths = &batch.lengths;
    let hides_ends = lengths.iter().any(|&length| length < keys.end);
    if window.is_none() && !hides_ends {
        return None;
    }
    let rows = if window.is_some() { queries.clone() } else { 0..1 };
    let mut values = Vec::with_capacity(lengths.len() * rows.len() * keys.len());
    for &length in lengths {
        for query in rows.clone() {
            let sees = |key: usize| {
                let is_near = window.is_none_or(|window| query.abs_diff(key) <= window);
                (is_near && key < length) || (window.is_some() && query >= length)
            };
            values.extend(keys.clone().map(|key| if sees(key) { 0.0 } else { f32::NEG_INFINITY }));
        }
    }
    let shape = [lengths.len(), 1, rows.len(), keys.len()];
    Some(Tensor::from_data(TensorData::new(values, shape), batch.device()))
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;

    use super::*;

    /// Tiles, masks and biases give what a plain sum over the keys that the rule names gives.
    #[test]
    fn tiles_equal_the_rule() {
        let device = Device::flex();
        let lengths = [QUERIES_PER_TILE + 40, 7, QUERIES_PER_TILE];
        let texts: Vec<Vec<u32>> = lengths.iter().map(|&length| vec![1; length]).collect();
        let texts: Vec<&[u32]> = texts.iter().map(Vec::as_slice).collect();
        let batch = Batch::new(&texts, &device);
        let longest = batch.longest;
        let number = |seed: usize, place: usize| ((place * 37 + seed * 11) % 101) as f32 / 50.0 - 1.0;
        let tensor = |seed: usize| {
            let values: Vec<f32> = (0..3 * longest * 4).map(|place| number(seed, place)).collect();
            Tensor::<4>::from_data(TensorData::new(values, [3, 2, longest, 2]), &device)
        };
        let [query, key, value] = [1, 2, 3].map(tensor);
        let by_distance: Vec<f32> = (0..2 * (2 * longest - 1)).map(|place| number(4, place)).collect();
        let bias =
            Tensor::<2>::from_data(TensorData::new(by_distance.clone(), [2 * longest - 1, 2]), &device);
        let values = |tensor: &Tensor<4>| tensor.to_data().try_to_vec::<f32>().unwrap();
        let [of_query, of_key, of_value] = [&query, &key, &value].map(values);
        let views = [
            (View::new(&batch, None), None, false),
            (View::new(&batch, Some(5)), Some(5), false),
            (View::with_bias(&batch, bias), None, true),
        ];
        for (view, window, has_bias) in views {
            let found = values(&view.attend(&query, key.clone(), &value));
            for (text, &length) in lengths.iter().enumerate() {
                for (head, at) in [(0, 0), (1, length / 2), (0, length - 1), (1, length - 1)] {
                    let row = |place: usize| ((text * 2 + head) * longest + place) * 2;
                    let (mut sum, mut mixed) = (0.0f64, [0.0f64; 2]);
                    for place in (0..length).filter(|place| window.is_none_or(|w| at.abs_diff(*place) <= w)) {
                        let product = |e: usize| f64::from(of_query[row(at) + e] * of_key[row(place) + e]);
                        let mut score = product(0) + product(1);
                        if has_bias {
                            score += f64::from(by_distance[(place + longest - 1 - at) * 2 + head]);
                        }
                        sum += score.exp();
                        for (e, mixed) in mixed.iter_mut().enumerate() {
                            *mixed += score.exp() * f64::from(of_value[row(place) + e]);
                        }
                    }
                    for (e, mixed) in mixed.iter().enumerate() {
                        let (found, expected) = (f64::from(found[row(at) + e]), mixed / sum);
                        assert!((found - expected).abs() < 1e-5, "{text} {head} {at}: {found} {expected}");
                    }
                }
            }
        }
    }
}
