//! Products of a few rows with a matrix, as the next tokens of answers have them: each number of the matrix is read from memory once.
//!
//! A row of the product has the same bits whatever rows stand beside it, on any number of threads and on any processor: sums
//! are in [`LANES`] parts (over columns in one), and every product and sum is one operation with one rounding.
//!
//! Legend: N rows, K what is summed over, O outputs.

use burn::tensor::bf16;
use pulp::NullaryFnOnce;
use rayon::prelude::*;

use crate::matrix::{Matrix, Numbers};
use crate::vectors::widest;
use crate::widened::widened;

const LANES: usize = 8;
/// Lines of the matrix and rows that are multiplied together: their sums stay in registers.
const LINES_AT_ONCE: usize = 4;
const ROWS_AT_ONCE: usize = 3;
/// Columns of which some lines stay in the first cache while all rows pass.
const DEPTH_AT_ONCE: usize = 512;
/// Numbers of the matrix for a thread: enough to be worth waking it.
const NUMBERS_AT_ONCE: usize = 1 << 15;
/// Outputs that are summed together where columns are contiguous.
const COLUMNS_AT_ONCE: usize = 4 * LANES;

/// A number of the matrix.
trait Number: Copy + Sync {
    fn wide(self) -> f32;
}

impl Number for f32 {
    #[inline(always)]
    fn wide(self) -> f32 {
        self
    }
}

impl Number for bf16 {
    #[inline(always)]
    fn wide(self) -> f32 {
        widened(self)
    }
}

/// `x · Wᵀ`, `[N, O]`.
///
/// # Shapes
/// `x`: `[N, K]`, row by row; `weight`: `[O, K]`.
///
/// # Panics
/// The shapes disagree.
pub(crate) fn product(x: &[f32], weight: &Matrix<'_>) -> Vec<f32> {
    match weight.numbers() {
        Numbers::F32(numbers) => product_of(x, numbers, weight),
        Numbers::Bf16(numbers) => product_of(x, numbers, weight),
    }
}

fn product_of<W: Number>(x: &[f32], numbers: &[W], weight: &Matrix<'_>) -> Vec<f32> {
    let (depth, outputs, stride) = (weight.columns, weight.rows, weight.stride);
    if depth == 0 || outputs == 0 || x.is_empty() {
        return vec![0.0; x.len().checked_div(depth).unwrap_or(0) * outputs];
    }
    assert!(x.len().is_multiple_of(depth), "rows of {depth} numbers, found {}", x.len());
    let mut product = vec![0.0f32; x.len() / depth * outputs];
    let some = (NUMBERS_AT_ONCE / depth).max(1).next_multiple_of(COLUMNS_AT_ONCE);
    let parts = by_outputs(&mut product, outputs, some);
    parts.into_par_iter().enumerate().for_each(|(part, mut rows)| {
        let first = part * some;
        if weight.by_rows {
            widest(Lines { x, numbers: &numbers[first * stride..], stride, depth, rows: &mut rows });
        } else {
            widest(Columns { x, numbers: &numbers[first..], stride, depth, rows: &mut rows });
        }
    });
    product
}

/// For every `some` outputs their places in all rows.
fn by_outputs(product: &mut [f32], outputs: usize, some: usize) -> Vec<Vec<&mut [f32]>> {
    let mut parts: Vec<Vec<&mut [f32]>> = (0..outputs.div_ceil(some)).map(|_| Vec::new()).collect();
    for row in product.chunks_exact_mut(outputs) {
        parts.iter_mut().zip(row.chunks_mut(some)).for_each(|(part, row)| part.push(row));
    }
    parts
}

/// Outputs whose lines of the matrix are contiguous.
struct Lines<'a, 'b, W> {
    x: &'a [f32],
    numbers: &'a [W],
    stride: usize,
    depth: usize,
    rows: &'a mut [&'b mut [f32]],
}

type Sums<const LINES: usize> = [[[f32; LANES]; LINES]; ROWS_AT_ONCE];

impl<W: Number> NullaryFnOnce for Lines<'_, '_, W> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let outputs = self.rows.first().map_or(0, |row| row.len());
        let whole = outputs / LINES_AT_ONCE * LINES_AT_ONCE;
        let mut sums =
            vec![[[[0.0; LANES]; LINES_AT_ONCE]; ROWS_AT_ONCE]; self.rows.len().div_ceil(ROWS_AT_ONCE)];
        for first in (0..whole).step_by(LINES_AT_ONCE) {
            lines::<LINES_AT_ONCE, W>(
                self.x,
                self.numbers,
                [self.stride, self.depth, first],
                self.rows,
                &mut sums,
            );
        }
        let mut sums = vec![[[[0.0; LANES]; 1]; ROWS_AT_ONCE]; sums.len()];
        for first in whole..outputs {
            lines::<1, W>(self.x, self.numbers, [self.stride, self.depth, first], self.rows, &mut sums);
        }
    }
}

/// Some lines with all rows.
#[inline(always)]
fn lines<const LINES: usize, W: Number>(
    x: &[f32],
    numbers: &[W],
    [stride, depth, first]: [usize; 3],
    rows: &mut [&mut [f32]],
    sums: &mut [Sums<LINES>],
) {
    let line: [&[W]; LINES] = std::array::from_fn(|line| &numbers[(first + line) * stride..][..depth]);
    let vectors = depth / LANES * LANES;
    sums.fill([[[0.0; LANES]; LINES]; ROWS_AT_ONCE]);
    for start in (0..vectors).step_by(DEPTH_AT_ONCE) {
        let end = vectors.min(start + DEPTH_AT_ONCE);
        let line = line.map(|line| &line[start..end]);
        for (some, sums) in x.chunks(ROWS_AT_ONCE * depth).zip(&mut *sums) {
            let row = |row: usize| &some[row * depth..][start..end];
            match some.len() / depth {
                3 => *sums = added([row(0), row(1), row(2)], line, *sums),
                2 => [sums[0], sums[1]] = added([row(0), row(1)], line, [sums[0], sums[1]]),
                _ => [sums[0]] = added([row(0)], line, [sums[0]]),
            }
        }
    }
    let sums = sums.iter().flatten();
    for ((row, x), sums) in rows.iter_mut().zip(x.chunks_exact(depth)).zip(sums) {
        for ((place, line), sums) in row[first..].iter_mut().zip(line).zip(sums) {
            let rest = x[vectors..].iter().zip(&line[vectors..]);
            *place = rest.fold(total(sums), |sum, (x, weight)| x.mul_add(weight.wide(), sum));
        }
    }
}

/// `sums + x · lineᵀ`, the sums in lanes.
#[inline(always)]
fn added<const ROWS: usize, const LINES: usize, W: Number>(
    x: [&[f32]; ROWS],
    line: [&[W]; LINES],
    mut sums: [[[f32; LANES]; LINES]; ROWS],
) -> [[[f32; LANES]; LINES]; ROWS] {
    let count = x[0].len() / LANES;
    let x = x.map(|x| &x.as_chunks::<LANES>().0[..count]);
    let line = line.map(|line| &line.as_chunks::<LANES>().0[..count]);
    for place in 0..count {
        for l in 0..LINES {
            let weight = line[l][place].map(Number::wide);
            for r in 0..ROWS {
                for lane in 0..LANES {
                    sums[r][l][lane] = x[r][place][lane].mul_add(weight[lane], sums[r][l][lane]);
                }
            }
        }
    }
    sums
}

#[inline(always)]
fn total(lanes: &[f32; LANES]) -> f32 {
    let [a, b, c, d, e, f, g, h] = *lanes;
    ((a + e) + (c + g)) + ((b + f) + (d + h))
}

/// Outputs whose columns of `Wᵀ` are contiguous: the numbers of one line lie `stride` apart.
struct Columns<'a, 'b, W> {
    x: &'a [f32],
    numbers: &'a [W],
    stride: usize,
    depth: usize,
    rows: &'a mut [&'b mut [f32]],
}

impl<W: Number> NullaryFnOnce for Columns<'_, '_, W> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let outputs = self.rows.first().map_or(0, |row| row.len());
        let whole = outputs / COLUMNS_AT_ONCE * COLUMNS_AT_ONCE;
        for (row, x) in self.rows.iter_mut().zip(self.x.chunks_exact(self.depth)) {
            for first in (0..whole).step_by(COLUMNS_AT_ONCE) {
                let mut sums = [0.0f32; COLUMNS_AT_ONCE];
                for (index, x) in x.iter().enumerate() {
                    let weights = &self.numbers[index * self.stride + first..][..COLUMNS_AT_ONCE];
                    for (sum, weight) in sums.iter_mut().zip(weights) {
                        *sum = x.mul_add(weight.wide(), *sum);
                    }
                }
                row[first..first + COLUMNS_AT_ONCE].copy_from_slice(&sums);
            }
            for output in whole..outputs {
                let numbers = self.numbers[output..].iter().step_by(self.stride);
                row[output] =
                    x.iter().zip(numbers).fold(0.0, |sum, (x, weight)| x.mul_add(weight.wide(), sum));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of f32 sums, relative to the sum of the products' sizes.
    const ROUNDING: f64 = 1e-6;

    fn numbers(count: usize, seed: f32) -> Vec<f32> {
        (0..count).map(|index| (index as f32 * 0.37 + seed).sin() * 3.0).collect()
    }

    fn matrix(numbers: Numbers<'_>, [outputs, depth]: [usize; 2], by_rows: bool) -> Matrix<'_> {
        let size = |size: usize| isize::try_from(size).unwrap();
        let strides = if by_rows { [size(depth), 1] } else { [1, size(outputs)] };
        Matrix::new(numbers, [outputs, depth], strides).unwrap()
    }

    #[test]
    fn products_are_those_of_plain_sums() {
        for (rows, depth, outputs) in [
            (1, 1, 1),
            (2, 7, 3),
            (3, 8, 4),
            (4, 64, 33),
            (5, 1100, 130),
            (7, 515, 9),
            (8, 40, 301),
            (64, 17, 5),
        ] {
            let (x, weight) = (numbers(rows * depth, 0.0), numbers(outputs * depth, 1.0));
            let halves: Vec<bf16> = weight.iter().map(|&number| bf16::from_f32(number)).collect();
            for (by_rows, is_half) in [(true, false), (true, true), (false, false), (false, true)] {
                let of = if is_half { Numbers::Bf16(&halves) } else { Numbers::F32(&weight) };
                let found = product(&x, &matrix(of, [outputs, depth], by_rows));
                assert_eq!(found.len(), rows * outputs);
                for (index, found) in found.into_iter().enumerate() {
                    let (row, output) = (index / outputs, index % outputs);
                    let (mut sum, mut size) = (0.0, 0.0);
                    for k in 0..depth {
                        let place = if by_rows { output * depth + k } else { k * outputs + output };
                        let weight = if is_half { halves[place].to_f64() } else { f64::from(weight[place]) };
                        let term = f64::from(x[row * depth + k]) * weight;
                        (sum, size) = (sum + term, size + term.abs());
                    }
                    assert!((f64::from(found) - sum).abs() <= ROUNDING * size, "{found} for {sum}");
                }
            }
        }
    }

    #[test]
    fn a_row_has_the_same_bits_beside_any_others_and_on_any_number_of_threads() {
        let (depth, outputs) = (1037, 150);
        let (x, weight) = (numbers(20 * depth, 0.0), numbers(outputs * depth, 1.0));
        for by_rows in [true, false] {
            let weight = matrix(Numbers::F32(&weight), [outputs, depth], by_rows);
            let whole = product(&x, &weight);
            for (first, count) in [(0, 1), (3, 2), (5, 3), (7, 13), (19, 1)] {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(count).build().unwrap();
                let found = pool.install(|| product(&x[first * depth..(first + count) * depth], &weight));
                assert!(found == whole[first * outputs..(first + count) * outputs], "rows from {first}");
            }
        }
    }

    #[test]
    fn nothing_times_something_is_nothing() {
        let none = matrix(Numbers::F32(&[]), [4, 0], true);
        assert!(product(&[], &none).is_empty());
        let some = [1.0; 12];
        assert!(product(&[], &matrix(Numbers::F32(&some), [4, 3], true)).is_empty());
    }
}
