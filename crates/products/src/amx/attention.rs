//! Attention, forward and backward, 32 queries at a time. Scores are in memory for those alone, and none is
//! computed of keys that no query of the 32 sees.
//!
//! Legend: B batch, K key heads, G query heads for each of them, H = K·G, T queries, S keys, E head width, P
//! = E rounded up to whole blocks.

#[cfg(test)]
mod tests;

use std::cell::RefCell;
use std::mem::take;
use std::ops::Range;

use rayon::prelude::*;

use super::pack::{Side, pack};
use super::tiles::{DEPTH, Line, TILE_LINES, Units, WIDTH};
use super::{Output, grow};
use crate::attention::{Gradients, Heads, Visible};
use crate::exponential::exp_non_positive;
use crate::matrix::{Matrix, Numbers};

const PLANES: usize = 3;
const LINES: usize = PLANES * TILE_LINES;

/// Buffers of a thread, kept for the next head.
#[derive(Default)]
struct Buffers {
    /// Keys and values `[E, S]`, for products along E.
    keys: Vec<Line>,
    values_along: Vec<Line>,
    /// Keys or values `[S, E]`, for products along S.
    summed: Vec<Line>,
    left: Vec<Line>,
    right: Vec<Line>,
    scores: Vec<f32>,
    d_scores: Vec<f32>,
    block: Vec<f32>,
    d_keys: Vec<f32>,
    d_values: Vec<f32>,
}

thread_local! {
    static BUFFERS: RefCell<Buffers> = RefCell::default();
}

fn with_buffers(work: impl FnOnce(&mut Buffers)) {
    let mut buffers = BUFFERS.with_borrow_mut(take);
    work(&mut buffers);
    BUFFERS.set(buffers);
}

/// Numbers of a `[32, columns]` block, all of them there.
fn room(numbers: &mut Vec<f32>, columns: usize) {
    let count = WIDTH * columns;
    if numbers.len() < count {
        numbers.resize(count, 0.0);
    }
}

fn round_up(size: usize) -> usize {
    size.next_multiple_of(WIDTH)
}

/// Packs a right matrix whole, tile after tile of 16 columns.
fn pack_right(matrix: &Matrix<'_>, lines: &mut Vec<Line>) -> usize {
    let of_tile = matrix.rows.div_ceil(DEPTH) * LINES;
    let tiles = matrix.columns.div_ceil(WIDTH) * 2;
    grow(lines, tiles * of_tile);
    for (tile, lines) in lines[..tiles * of_tile].chunks_exact_mut(of_tile).enumerate() {
        let outer = (16 * tile).min(matrix.columns)..(16 * tile + 16).min(matrix.columns);
        pack(matrix, Side::Right, outer, 0..matrix.rows, PLANES, lines);
    }
    of_tile
}

/// Packs some rows, at most 32, of a left matrix.
fn pack_left(matrix: &Matrix<'_>, rows: Range<usize>, lines: &mut Vec<Line>) -> usize {
    let of_tile = matrix.columns.div_ceil(DEPTH) * LINES;
    grow(lines, 2 * of_tile);
    for (tile, lines) in lines[..2 * of_tile].chunks_exact_mut(of_tile).enumerate() {
        let outer = (rows.start + 16 * tile).min(rows.end)..(rows.start + 16 * tile + 16).min(rows.end);
        pack(matrix, Side::Left, outer, 0..matrix.columns, PLANES, lines);
    }
    of_tile
}

/// A product of 32 packed rows with packed columns: whole blocks into `into`, whose lines have `stride`
/// numbers.
struct Blocks<'a> {
    units: &'a Units,
    left: &'a [Line],
    /// Lines of a tile of the left side.
    of_left: usize,
    right: &'a [Line],
    of_right: usize,
    /// Steps of the right side that are summed over; the left side has those alone.
    steps: Range<usize>,
}

impl Blocks<'_> {
    /// Of the columns in `blocks` of 32.
    fn compute(&self, blocks: Range<usize>, into: &mut [f32], stride: usize, add: bool) {
        let Self { units, left, of_left, right, of_right, .. } = *self;
        let steps = self.steps.start * LINES..self.steps.end * LINES;
        let left = [&left[..steps.len()], &left[of_left..of_left + steps.len()]];
        assert!(
            into.len() >= (WIDTH - 1) * stride + blocks.len() * WIDTH && stride >= blocks.len() * WIDTH,
            "room for all blocks"
        );
        for (index, block) in blocks.enumerate() {
            let tile = |tile: usize| &right[(2 * block + tile) * of_right..][steps.clone()];
            // SAFETY: there is room for all blocks.
            #[expect(unsafe_code, reason = "blocks of one matrix are no slices")]
            unsafe {
                let output = (into.as_mut_ptr().add(index * WIDTH), stride);
                units.block([left[0], left[1]], [tile(0), tile(1)], PLANES, output, [WIDTH; 2], add);
            }
        }
    }
}

/// One query block of a head: its rows, and the blocks of keys that any of them sees.
struct Queries {
    rows: Range<usize>,
    blocks: Range<usize>,
}

impl Queries {
    fn each(visible: &Visible, batch: usize) -> impl Iterator<Item = Self> + '_ {
        let queries = visible.queries();
        (0..queries).step_by(WIDTH).map(move |start| {
            let rows = start..(start + WIDTH).min(queries);
            let first = rows.clone().map(|row| visible.keys(batch, row).start).min().unwrap_or(0);
            let end = visible.keys(batch, rows.end - 1).end;
            Self { rows, blocks: first / WIDTH..end.div_ceil(WIDTH) }
        })
    }

    fn columns(&self) -> usize {
        self.blocks.len() * WIDTH
    }

    /// The softmax of each row over what it sees, not divided by its sum; zero elsewhere. The inverse sums.
    fn softmax(&self, visible: &Visible, batch: usize, scores: &mut [f32]) -> [f32; WIDTH] {
        let (columns, first) = (self.columns(), self.blocks.start * WIDTH);
        let mut inverse = [0.0; WIDTH];
        for (index, row) in scores[..WIDTH * columns].chunks_exact_mut(columns).enumerate() {
            let query = self.rows.start + index;
            if query >= self.rows.end {
                row.fill(0.0);
                continue;
            }
            let keys = visible.keys(batch, query);
            let (before, rest) = row.split_at_mut(keys.start - first);
            let (seen, after) = rest.split_at_mut(keys.len());
            before.fill(0.0);
            after.fill(0.0);
            // SAFETY: matrix units are there, so AVX-512 is.
            #[expect(unsafe_code, reason = "vectors of a width that not every processor has")]
            unsafe {
                inverse[index] = 1.0 / exponentials(seen);
            }
        }
        inverse
    }
}

/// exp(x - largest) in place; their sum.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn exponentials(row: &mut [f32]) -> f32 {
    const LANES: usize = 16;
    let (chunks, rest) = row.as_chunks_mut::<LANES>();
    let greater = |a: f32, b: f32| if b > a { b } else { a };
    let mut lanes = [f32::NEG_INFINITY; LANES];
    for chunk in chunks.iter() {
        for (lane, &x) in lanes.iter_mut().zip(chunk) {
            *lane = greater(*lane, x);
        }
    }
    let largest = lanes.iter().chain(rest.iter()).fold(f32::NEG_INFINITY, |a, &b| greater(a, b));
    let mut sums = [0.0f32; LANES];
    for chunk in chunks {
        for (sum, x) in sums.iter_mut().zip(chunk) {
            *x = exp_non_positive(*x - largest);
            *sum += *x;
        }
    }
    let mut sum = sums.iter().sum::<f32>();
    for x in rest {
        *x = exp_non_positive(*x - largest);
        sum += *x;
    }
    sum
}

/// dS = p · (dP - Σ p·dP), into `d_scores`, with p = `scores` · `inverse`, which is written back.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn softmax_gradient(scores: &mut [f32], d_scores: &mut [f32], inverse: f32) {
    const LANES: usize = 16;
    let mut sums = [0.0f32; LANES];
    for (p, d) in scores.as_chunks_mut::<LANES>().0.iter_mut().zip(d_scores.as_chunks::<LANES>().0) {
        for lane in 0..LANES {
            p[lane] *= inverse;
            sums[lane] += p[lane] * d[lane];
        }
    }
    let sum: f32 = sums.iter().sum();
    for (p, d) in scores.as_chunks::<LANES>().0.iter().zip(d_scores.as_chunks_mut::<LANES>().0) {
        for lane in 0..LANES {
            d[lane] = p[lane] * (d[lane] - sum);
        }
    }
}

/// A view of the rows of one head.
fn head<'a>(of: &Heads<'a>, batch: usize, head: usize) -> Matrix<'a> {
    let start = batch * of.stride_of_batch + head * of.stride_of_head;
    let strides = [isize::try_from(of.stride).expect("a stride of a slice"), 1];
    Matrix::new(Numbers::F32(&of.numbers[start..]), [of.rows, of.width], strides)
        .expect("rows are contiguous")
}

/// A buffer of 32 rows as a left matrix, of `rows` by `columns`; `across`: its transposition.
fn of_buffer(numbers: &[f32], [rows, columns]: [usize; 2], stride: usize, across: bool) -> Matrix<'_> {
    let stride = isize::try_from(stride).expect("a stride of a slice");
    let view = Matrix::new(Numbers::F32(numbers), [rows, columns], [stride, 1]).expect("rows are contiguous");
    if across { view.transposed() } else { view }
}

/// Softmax(query · keyᵀ) · value, `[B, T, K, G, E]`.
pub(crate) fn attend(query: &Heads<'_>, key: &Heads<'_>, value: &Heads<'_>, visible: &Visible) -> Vec<f32> {
    let [batch, heads, groups] = [query.batch, key.heads, query.heads / key.heads];
    let mut all = Vec::with_capacity(batch * query.rows * query.heads * query.width);
    let output = Output { first: all.as_mut_ptr(), stride: query.heads * query.width };
    (0..batch * heads).into_par_iter().with_max_len(1).for_each(|index| {
        let (batch, key_head) = (index / heads, index % heads);
        with_buffers(|buffers| {
            let units = Units::begin();
            let of_keys = pack_right(&head(key, batch, key_head).transposed(), &mut buffers.keys);
            let of_values = pack_right(&head(value, batch, key_head), &mut buffers.summed);
            for query_head in key_head * groups..(key_head + 1) * groups {
                let of_query = head(query, batch, query_head);
                for part in Queries::each(visible, batch) {
                    let inverse = part.scores(&units, &of_query, (visible, batch), of_keys, buffers);
                    part.mix(&units, of_values, query.width, buffers);
                    let begin = batch * query.rows * output.stride + query_head * query.width;
                    part.write(buffers, query.width, &inverse, begin, output);
                }
            }
        });
    });
    // SAFETY: all rows of all heads were written.
    #[expect(unsafe_code, reason = "numbers that are written once are not zeroed before")]
    unsafe {
        all.set_len(batch * query.rows * query.heads * query.width);
    }
    all
}

impl Queries {
    /// The exponentials of the scores of these queries, into `buffers.scores`; their inverse sums.
    fn scores(
        &self,
        units: &Units,
        query: &Matrix<'_>,
        (visible, batch): (&Visible, usize),
        of_keys: usize,
        buffers: &mut Buffers,
    ) -> [f32; WIDTH] {
        let of_left = pack_left(query, self.rows.clone(), &mut buffers.left);
        room(&mut buffers.scores, self.columns());
        let (left, right) = (&buffers.left, &buffers.keys);
        let steps = 0..query.columns.div_ceil(DEPTH);
        let blocks = Blocks { units, left, of_left, right, of_right: of_keys, steps };
        blocks.compute(self.blocks.clone(), &mut buffers.scores, self.columns(), false);
        self.softmax(visible, batch, &mut buffers.scores)
    }

    /// `buffers.scores` times what is packed along the keys, into `buffers.block`, `[32, P]`.
    fn mix(&self, units: &Units, of_right: usize, width: usize, buffers: &mut Buffers) {
        self.mix_of(
            units,
            of_right,
            width,
            &buffers.scores,
            &mut buffers.left,
            &buffers.summed,
            &mut buffers.block,
        );
    }

    #[expect(clippy::too_many_arguments, reason = "parts of one structure of buffers")]
    fn mix_of(
        &self,
        units: &Units,
        of_right: usize,
        width: usize,
        scores: &[f32],
        left: &mut Vec<Line>,
        right: &[Line],
        block: &mut Vec<f32>,
    ) {
        let (columns, padded) = (self.columns(), round_up(width));
        let of_left = pack_left(&of_buffer(scores, [WIDTH, columns], columns, false), 0..WIDTH, left);
        room(block, padded);
        let blocks = Blocks { units, left, of_left, right, of_right, steps: self.blocks.clone() };
        blocks.compute(0..padded / WIDTH, block, padded, false);
    }

    /// `buffers.block`, each row times its factor, to the rows of a head.
    fn write(&self, buffers: &Buffers, width: usize, factors: &[f32; WIDTH], begin: usize, output: Output) {
        for (index, row) in self.rows.clone().enumerate() {
            let from = &buffers.block[index * round_up(width)..][..width];
            // SAFETY: this thread alone has the head.
            #[expect(unsafe_code, reason = "heads lie in one matrix beside each other")]
            let to = unsafe {
                let first = output.first.add(begin + row * output.stride);
                std::slice::from_raw_parts_mut(first.cast::<std::mem::MaybeUninit<f32>>(), width)
            };
            for (to, from) in to.iter_mut().zip(from) {
                to.write(from * factors[index]);
            }
        }
    }
}

/// Gradients by query, key and value, given that by the result, which is `[B, T, K, G, E]`, as theirs are.
pub(crate) fn attend_backward(
    [query, key, value, d_output]: [&Heads<'_>; 4],
    visible: &Visible,
) -> Gradients {
    let [batch, heads, groups] = [query.batch, key.heads, query.heads / key.heads];
    let zeros = |of: &Heads<'_>| vec![0.0; batch * of.rows * of.heads * of.width];
    let mut gradients = Gradients { query: zeros(query), key: zeros(key), value: zeros(value) };
    let of_query = Output { first: gradients.query.as_mut_ptr(), stride: query.heads * query.width };
    let of_key = Output { first: gradients.key.as_mut_ptr(), stride: key.heads * key.width };
    let of_value = Output { first: gradients.value.as_mut_ptr(), stride: value.heads * value.width };
    (0..batch * heads).into_par_iter().with_max_len(1).for_each(|index| {
        let (batch, key_head) = (index / heads, index % heads);
        let (keys, values) = (head(key, batch, key_head), head(value, batch, key_head));
        with_buffers(|buffers| {
            let units = Units::begin();
            let of_keys = pack_right(&keys.transposed(), &mut buffers.keys);
            let of_values = pack_right(&values.transposed(), &mut buffers.values_along);
            let of_summed = pack_right(&keys, &mut buffers.summed);
            let padded = round_up(key.width);
            let lines = round_up(key.rows);
            for sums in [&mut buffers.d_keys, &mut buffers.d_values] {
                sums.clear();
                sums.resize(lines * padded, 0.0);
            }
            for query_head in key_head * groups..(key_head + 1) * groups {
                let (of_head, d_of_head) =
                    (head(query, batch, query_head), head(d_output, batch, query_head));
                for part in Queries::each(visible, batch) {
                    let inverse = part.scores(&units, &of_head, (visible, batch), of_keys, buffers);
                    part.d_scores(&units, &d_of_head, of_values, &inverse, buffers);
                    let Buffers { d_scores, left, summed, block, .. } = &mut *buffers;
                    part.mix_of(&units, of_summed, query.width, d_scores, left, summed, block);
                    let begin = batch * query.rows * of_query.stride + query_head * query.width;
                    part.write(buffers, query.width, &[1.0; WIDTH], begin, of_query);
                    let Buffers { scores, d_scores, left, right, d_keys, d_values, .. } = &mut *buffers;
                    part.add(&units, d_scores, &of_head, (left, right), d_keys);
                    part.add(&units, scores, &d_of_head, (left, right), d_values);
                }
            }
            let begin = |output: Output, width: usize| batch * key.rows * output.stride + key_head * width;
            write_all(&buffers.d_keys, [key.rows, key.width], begin(of_key, key.width), of_key);
            write_all(&buffers.d_values, [value.rows, value.width], begin(of_value, value.width), of_value);
        });
    });
    gradients
}

impl Queries {
    /// The gradient by the scores, into `buffers.d_scores`; `buffers.scores` becomes the probabilities.
    fn d_scores(
        &self,
        units: &Units,
        d_output: &Matrix<'_>,
        of_right: usize,
        inverse: &[f32; WIDTH],
        buffers: &mut Buffers,
    ) {
        let columns = self.columns();
        let of_left = pack_left(d_output, self.rows.clone(), &mut buffers.left);
        room(&mut buffers.d_scores, columns);
        let (left, right) = (&buffers.left, &buffers.values_along);
        let steps = 0..d_output.columns.div_ceil(DEPTH);
        let blocks = Blocks { units, left, of_left, right, of_right, steps };
        blocks.compute(self.blocks.clone(), &mut buffers.d_scores, columns, false);
        let rows = buffers.scores.chunks_exact_mut(columns).zip(buffers.d_scores.chunks_exact_mut(columns));
        for ((scores, d_scores), &inverse) in rows.zip(inverse) {
            // SAFETY: matrix units are there, so AVX-512 is.
            #[expect(unsafe_code, reason = "vectors of a width that not every processor has")]
            unsafe {
                softmax_gradient(scores, d_scores, inverse);
            }
        }
    }

    /// Adds `scoresᵀ · rows` to the lines of the keys in `sums`, `[S, P]`.
    fn add(
        &self,
        units: &Units,
        scores: &[f32],
        of_rows: &Matrix<'_>,
        (left, right): (&mut Vec<Line>, &mut Vec<Line>),
        sums: &mut [f32],
    ) {
        let (columns, padded) = (self.columns(), round_up(of_rows.columns));
        let rows = self.rows.len();
        let tiles = padded / 16;
        grow(right, tiles * LINES);
        for (tile, lines) in right[..tiles * LINES].chunks_exact_mut(LINES).enumerate() {
            let outer = (16 * tile).min(of_rows.columns)..(16 * tile + 16).min(of_rows.columns);
            pack(of_rows, Side::Right, outer, self.rows.clone(), PLANES, lines);
        }
        let across = of_buffer(scores, [rows, columns], columns, true);
        for block in self.blocks.clone() {
            let first = (block - self.blocks.start) * WIDTH;
            let of_left = pack_left(&across, first..first + WIDTH, left);
            let blocks = Blocks { units, left, of_left, right, of_right: LINES, steps: 0..1 };
            blocks.compute(
                0..padded / WIDTH,
                &mut sums[block * WIDTH * padded..][..WIDTH * padded],
                padded,
                true,
            );
        }
    }
}

/// Rows of a buffer to the rows of a head.
fn write_all(from: &[f32], [rows, width]: [usize; 2], begin: usize, output: Output) {
    for row in 0..rows {
        let from = &from[row * round_up(width)..][..width];
        // SAFETY: this thread alone has the head.
        #[expect(unsafe_code, reason = "heads lie in one matrix beside each other")]
        unsafe {
            from.as_ptr().copy_to_nonoverlapping(output.first.add(begin + row * output.stride), width);
        }
    }
}
