//! Products with matrices of halves where there are no matrix units: halves become f32 on the way, a part of a
//! matrix at a time.
//!
//! Legend: M rows, K what is summed over, N columns.

use std::cell::RefCell;
use std::mem::take;
use std::ops::Range;

use burn::backend::Flex;
use burn::backend::ops::FloatTensorOps;
use burn::backend::tensor::FloatTensor;
use burn::tensor::{DType, FloatDType, TensorData, bf16};
use gemm::Parallelism;
use pulp::NullaryFnOnce;
use rayon::prelude::*;

use crate::amx;
use crate::matrix::{Matrix, Numbers};
use crate::tensor::{dims, view};
use crate::vectors::widest;

/// Numbers of a matrix that are f32 at a time: they stay in the cache between the two passes over them.
const SLICE: usize = 1 << 20;
/// Bytes that a thread has for such a part of a matrix while it multiplies halves on the host.
pub const WIDE_BYTES: u64 = 4 * SLICE as u64;
/// With fewer rows each number of the matrix is read once, and never written in f32.
const FEW_ROWS: usize = 8;
/// Numbers that are widened at a time there: they stay in the cache of the first level.
const BLOCK: usize = 1 << 10;
/// Numbers that are worth a thread.
const OF_THREAD: usize = 1 << 16;
/// Products and sums from which on Burn has all threads multiply.
const PARALLEL: usize = 192 * 192 * 192;

/// `a · b` in f32, where one of them, or both, are of halves.
pub(crate) fn product(a: FloatTensor<Flex>, b: FloatTensor<Flex>) -> FloatTensor<Flex> {
    let a = in_f32(a).to_contiguous();
    let ([rows, depth], [_, columns]) = (dims(&a), dims(&b));
    let b = if b.dtype() == DType::F16 { in_f32(b) } else { b };
    let right = match view(&b) {
        Some(right) if matches!(right.numbers(), Numbers::Bf16(_)) => right,
        _ => return Flex::float_matmul(a, in_f32(b)),
    };
    let left: &[f32] = a.as_slice().expect("f32 numbers, made contiguous");
    let product = if rows < FEW_ROWS && !right.by_rows {
        by_columns(left, &right, rows)
    } else {
        by_slices(left, &right, [rows, depth, columns])
    };
    Flex::float_from_data(TensorData::new(product, [rows, columns]), &Default::default())
}

fn in_f32(tensor: FloatTensor<Flex>) -> FloatTensor<Flex> {
    if tensor.dtype() == DType::F32 { tensor } else { Flex::float_cast(tensor, FloatDType::F32) }
}

thread_local! {
    /// Part of a matrix in f32, kept for the next product; taken out while in use, as a thread that waits may
    /// begin another product.
    static PART: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// The product with some columns of the right matrix at a time.
fn by_slices(left: &[f32], right: &Matrix<'_>, [rows, depth, columns]: [usize; 3]) -> Vec<f32> {
    let mut product = vec![0.0; rows * columns];
    let mut part = PART.with_borrow_mut(take);
    let at_once = (SLICE / depth.max(1)).clamp(1, columns.max(1));
    part.resize(part.len().max(depth * at_once), 0.0);
    for first in (0..columns).step_by(at_once) {
        let count = at_once.min(columns - first);
        let part = &mut part[..depth * count];
        widen_columns(right, first, part, [depth, count]);
        // Of the part: from a row to the next, and from a column.
        let strides = if right.by_rows { [count, 1] } else { [1, depth] };
        let range = first..first + count;
        if amx::are_there() {
            in_matrix_units((left, [rows, depth]), (part, strides), (&mut product, columns), range);
        } else {
            multiply((left, [rows, depth]), (part, strides), (&mut product, columns), range);
        }
    }
    PART.set(part);
    product
}

/// Some columns of the matrix, in the order in which it has its numbers.
fn widen_columns(matrix: &Matrix<'_>, first: usize, part: &mut [f32], [depth, count]: [usize; 2]) {
    let (lines, length) = if matrix.by_rows { (depth, count) } else { (count, depth) };
    if lines * length == 0 {
        return;
    }
    let some_lines = OF_THREAD.div_ceil(length);
    part.par_chunks_mut(some_lines * length).enumerate().for_each(|(index, part)| {
        for (line, part) in part.chunks_exact_mut(length).enumerate() {
            let line = index * some_lines + line;
            let start =
                if matrix.by_rows { line * matrix.stride + first } else { (first + line) * matrix.stride };
            let Numbers::Bf16(halves) = matrix.numbers() else { unreachable!("asked for of halves") };
            widest(Widen { halves: &halves[start..start + length], numbers: part });
        }
    });
}

/// As [`multiply`], where only one of the matrices was of halves.
fn in_matrix_units(
    (left, sizes): (&[f32], [usize; 2]),
    (part, strides): (&[f32], [usize; 2]),
    (product, columns): (&mut [f32], usize),
    range: Range<usize>,
) {
    let depth = isize::try_from(sizes[1]).expect("a matrix in memory");
    let of_part = strides.map(|stride| isize::try_from(stride).expect("a matrix in memory"));
    let left = Matrix::new(Numbers::F32(left), sizes, [depth, 1]);
    let part = Matrix::new(Numbers::F32(part), [sizes[1], range.len()], of_part);
    let found = left.zip(part).map(|(left, part)| amx::product(&left, &part)).expect("lines are contiguous");
    let rows_of_part = found.chunks_exact(range.len().max(1));
    for (row, part) in product.chunks_exact_mut(columns.max(1)).zip(rows_of_part) {
        row[range.clone()].copy_from_slice(part);
    }
}

/// Writes the columns `range` of the product.
///
/// # Shapes
/// `left`: `[M, K]`, row by row; `part`: `[K, range.len()]` with its strides; `product`: `[M, N]`, row by row, and N.
fn multiply(
    (left, [rows, depth]): (&[f32], [usize; 2]),
    (part, strides): (&[f32], [usize; 2]),
    (product, columns): (&mut [f32], usize),
    range: Range<usize>,
) {
    let count = range.len();
    assert!(left.len() == rows * depth && part.len() == depth * count, "matrices of these sizes");
    assert!(product.len() == rows * columns && range.end <= columns, "columns of the product");
    if rows * count == 0 {
        return;
    }
    let parallel = rows * depth * count >= PARALLEL;
    let stride = |length: usize| isize::try_from(length).expect("a matrix in memory");
    // SAFETY: sizes and strides are those of the slices, which was just asserted; the product is not read.
    #[expect(unsafe_code, reason = "columns of a matrix are no slice that could be handed out")]
    unsafe {
        gemm::gemm(
            rows,
            count,
            depth,
            product[range.start..].as_mut_ptr(),
            1,
            stride(columns),
            false,
            left.as_ptr(),
            1,
            stride(depth),
            part.as_ptr(),
            stride(strides[1]),
            stride(strides[0]),
            0.0,
            1.0,
            false,
            false,
            false,
            if parallel { Parallelism::Rayon(0) } else { Parallelism::None },
        );
    }
}

/// The product of few rows with a matrix whose columns are contiguous.
fn by_columns(left: &[f32], right: &Matrix<'_>, rows: usize) -> Vec<f32> {
    let (depth, columns) = (right.rows, right.columns);
    if rows * columns == 0 {
        return Vec::new();
    }
    let Numbers::Bf16(halves) = right.numbers() else { unreachable!("asked for of halves") };
    // Column by column.
    let mut transposed = vec![0.0; columns * rows];
    let some_columns = OF_THREAD.div_ceil(depth.max(1));
    transposed.par_chunks_mut(some_columns * rows).enumerate().for_each(|(index, sums)| {
        for (column, sums) in sums.chunks_exact_mut(rows).enumerate() {
            let start = (index * some_columns + column) * right.stride;
            widest(Sums { left, halves: &halves[start..start + depth], sums });
        }
    });
    if rows == 1 {
        return transposed;
    }
    let cell = |index: usize| transposed[index % columns * rows + index / columns];
    (0..rows * columns).map(cell).collect()
}

/// The same numbers in f32.
struct Widen<'a> {
    halves: &'a [bf16],
    numbers: &'a mut [f32],
}

impl NullaryFnOnce for Widen<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        for (number, half) in self.numbers.iter_mut().zip(self.halves) {
            *number = widened(*half);
        }
    }
}

/// bf16 is the upper half of f32.
#[inline(always)]
pub(crate) fn widened(half: bf16) -> f32 {
    f32::from_bits(u32::from(half.to_bits()) << 16)
}

/// Σ left · halves of each row.
struct Sums<'a> {
    /// `[M, K]`.
    left: &'a [f32],
    /// `[K]`.
    halves: &'a [bf16],
    /// `[M]`, zeros.
    sums: &'a mut [f32],
}

impl NullaryFnOnce for Sums<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        /// Sums of their own, so that they do not wait for each other.
        const LANES: usize = 32;
        let depth = self.halves.len();
        let mut block = [0.0f32; BLOCK];
        for (number, halves) in self.halves.chunks(BLOCK).enumerate() {
            Widen { halves, numbers: &mut block[..halves.len()] }.call();
            let block = &block[..halves.len()];
            for (row, sum) in self.left.chunks_exact(depth).zip(self.sums.iter_mut()) {
                let row = &row[number * BLOCK..][..block.len()];
                let ((a, a_rest), (b, b_rest)) = (row.as_chunks::<LANES>(), block.as_chunks::<LANES>());
                let mut lanes = [0.0f32; LANES];
                for (a, b) in a.iter().zip(b) {
                    for ((lane, a), b) in lanes.iter_mut().zip(a).zip(b) {
                        *lane += a * b;
                    }
                }
                let rest: f32 = a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum();
                *sum += lanes.iter().sum::<f32>() + rest;
            }
        }
    }
}
