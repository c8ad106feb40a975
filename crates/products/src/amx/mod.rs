//! Products in the matrix units of x86-64 CPUs (AMX).
//!
//! The left matrix is packed once, the right one slab by slab: some columns that stay in the second-level
//! cache while all rows of the left one pass. Threads take slabs, so no number depends on how many there
//! are.
//!
//! Legend: M rows, K what is summed over, N columns; a tile is 16 lines of 64 bytes.

mod attention;
mod pack;
#[cfg(test)]
mod tests;
mod tiles;

use std::cell::RefCell;
use std::mem::take;
use std::sync::OnceLock;

use rayon::prelude::*;

use crate::matrix::{Matrix, Numbers};
pub(crate) use attention::{attend, attend_backward};
use pack::{Side, pack};
use tiles::{DEPTH, Line, TILE_LINES, Units, WIDTH};

/// The permission to use the registers of the matrix units, and their number, of Linux's `arch_prctl`.
const ARCH_REQ_XCOMP_PERM: libc::c_int = 0x1023;
const XTILEDATA: libc::c_ulong = 18;
/// Bytes of a slab of the right matrix: half of the second-level cache of the CPUs that have matrix units.
const SLAB_BYTES: usize = 1 << 20;
/// Steps over K after which sums go to memory and the next part of the slab is packed.
const STEPS_AT_ONCE: usize = 24;
/// Bytes of the packed left matrix; of a larger one some rows at a time.
const LEFT_BYTES: usize = 16 << 20;
/// Products of two numbers that are worth another thread.
const WORTH_A_THREAD: usize = 1 << 21;

/// Whether this process may use matrix units.
pub(crate) fn are_there() -> bool {
    static THERE: OnceLock<bool> = OnceLock::new();
    *THERE
        .get_or_init(|| std::env::var_os("SOFTSHARD_AMX").is_none_or(|value| value != "off") && may_be_used())
}

#[expect(unsafe_code, reason = "the system is asked by a call that no crate wraps")]
fn may_be_used() -> bool {
    const AMX_BF16: u32 = 1 << 22;
    const AMX_TILE: u32 = 1 << 24;
    if core::arch::x86_64::__cpuid(0).eax < 7
        || !(is_x86_feature_detected!("avx512bw") && is_x86_feature_detected!("avx512vl"))
    {
        return false;
    }
    let has = core::arch::x86_64::__cpuid_count(7, 0).edx & (AMX_BF16 | AMX_TILE);
    // SAFETY: the call reads two numbers; it fails where the system or the CPU has no such registers.
    has == AMX_BF16 | AMX_TILE
        && unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XTILEDATA) } == 0
}

/// `left · right`, row by row.
///
/// # Panics
/// There are no matrix units, or the matrices do not fit.
pub(crate) fn product(left: &Matrix<'_>, right: &Matrix<'_>) -> Vec<f32> {
    let mut product = Vec::with_capacity(left.rows * right.columns);
    multiply(left, right, Output { first: product.as_mut_ptr(), stride: right.columns }, false);
    // SAFETY: every number of the product was written: all rows, and all columns of them.
    #[expect(unsafe_code, reason = "numbers that are written once are not zeroed before")]
    unsafe {
        product.set_len(left.rows * right.columns);
    }
    product
}

/// Adds `left · right` to `sum`, row by row.
///
/// # Panics
/// As [`product`], and if `sum` is of another size.
pub(crate) fn add_product(sum: &mut [f32], left: &Matrix<'_>, right: &Matrix<'_>) {
    assert_eq!(sum.len(), left.rows * right.columns, "a sum of the size of the product");
    multiply(left, right, Output { first: sum.as_mut_ptr(), stride: right.columns }, true);
}

/// Writes all of a product, or adds it to what is there.
fn multiply(left: &Matrix<'_>, right: &Matrix<'_>, output: Output, add: bool) {
    assert!(are_there(), "asked for where there are no matrix units");
    assert_eq!(left.columns, right.rows, "the columns of the left matrix are the rows of the right one");
    let planes = planes(left).max(planes(right));
    let steps = left.columns.div_ceil(DEPTH);
    let lines = steps * planes * TILE_LINES;
    let rows_at_once = (LEFT_BYTES / (lines * size_of::<Line>())).max(2) * 16;
    let mut packed = LEFT.with_borrow_mut(take);
    for first in (0..left.rows).step_by(rows_at_once) {
        let rows = rows_at_once.min(left.rows - first);
        let tiles = rows.div_ceil(2 * 16) * 2;
        grow(&mut packed, tiles * lines);
        let pack_rows = |(tile, lines): (usize, &mut [Line])| {
            let outer = first + 16 * tile..(first + 16 * tile + 16).min(first + rows);
            pack(left, Side::Left, outer, 0..left.columns, planes, lines);
        };
        let of_tiles = packed[..tiles * lines].par_chunks_mut(lines).enumerate();
        of_tiles.with_min_len(WORTH_A_THREAD.div_ceil(16 * 64 * left.columns)).for_each(pack_rows);
        let job = Job { left: &packed, right, planes, steps, output, add };
        job.run(first, rows);
    }
    LEFT.set(packed);
}

/// How many bf16 numbers make one of the matrix.
fn planes(matrix: &Matrix<'_>) -> usize {
    match matrix.numbers() {
        Numbers::F32(_) => 3,
        Numbers::Bf16(_) => 1,
    }
}

thread_local! {
    /// Packed tiles, kept for the next product; taken out while in use, as a thread that waits may begin
    /// another product.
    static LEFT: RefCell<Vec<Line>> = const { RefCell::new(Vec::new()) };
    static SLAB: RefCell<Vec<Line>> = const { RefCell::new(Vec::new()) };
}

fn grow(lines: &mut Vec<Line>, count: usize) {
    if lines.len() < count {
        lines.resize(count, Line::default());
    }
}

/// Where the product goes; threads write different parts of it.
#[derive(Clone, Copy)]
struct Output {
    first: *mut f32,
    stride: usize,
}

// SAFETY: each thread writes blocks that no other one has.
#[expect(unsafe_code, reason = "blocks of one matrix are no slices that could be handed out")]
unsafe impl Send for Output {}
// SAFETY: as above.
#[expect(unsafe_code, reason = "as above")]
unsafe impl Sync for Output {}

/// Some rows of the product.
struct Job<'a> {
    left: &'a [Line],
    right: &'a Matrix<'a>,
    planes: usize,
    /// Over K.
    steps: usize,
    output: Output,
    /// To what is there.
    add: bool,
}

impl Job<'_> {
    fn run(&self, first_row: usize, rows: usize) {
        let columns = self.right.columns;
        let work = rows * columns * self.right.rows;
        let threads = rayon::current_num_threads().min(work.div_ceil(WORTH_A_THREAD));
        let blocks = columns.div_ceil(WIDTH);
        let steps = self.steps.min(STEPS_AT_ONCE);
        let most = (SLAB_BYTES / (steps * 2 * self.planes * TILE_LINES * size_of::<Line>())).max(1);
        // Two slabs for each thread: the one that is done first takes more.
        let of_thread = if threads > 1 { blocks.div_ceil(2 * threads) } else { blocks };
        let slabs = blocks.div_ceil(most.min(of_thread));
        let width = blocks.div_ceil(slabs) * WIDTH;
        let slabs = columns.div_ceil(width);
        // Few columns: their rows in parts.
        let parts = if threads > 1 && slabs < threads { (2 * threads).div_ceil(slabs) } else { 1 };
        let height = rows.div_ceil(WIDTH).div_ceil(parts) * WIDTH;
        let parts = rows.div_ceil(height);
        let one = |index: usize| {
            let (slab, part) = (index / parts, index % parts);
            let columns = slab * width..(slab * width + width).min(columns);
            let of_part = part * height..(part * height + height).min(rows);
            self.slab(first_row, of_part, columns);
        };
        if threads > 1 {
            (0..slabs * parts).into_par_iter().with_max_len(1).for_each(one);
        } else {
            (0..slabs * parts).for_each(one);
        }
    }

    /// Some columns of some rows, counted from the first that is packed.
    fn slab(&self, first_row: usize, rows: std::ops::Range<usize>, columns: std::ops::Range<usize>) {
        let mut packed = SLAB.with_borrow_mut(take);
        let units = Units::begin();
        let tiles = columns.len().div_ceil(WIDTH) * 2;
        for step in (0..self.steps).step_by(STEPS_AT_ONCE) {
            let steps = STEPS_AT_ONCE.min(self.steps - step);
            let lines = steps * self.planes * TILE_LINES;
            grow(&mut packed, tiles * lines);
            let depth = step * DEPTH..((step + steps) * DEPTH).min(self.right.rows);
            for (tile, lines) in packed[..tiles * lines].chunks_exact_mut(lines).enumerate() {
                let outer = columns.start + 16 * tile..(columns.start + 16 * tile + 16).min(columns.end);
                pack(self.right, Side::Right, outer, depth.clone(), self.planes, lines);
            }
            for row in rows.clone().step_by(WIDTH) {
                let of_row = |tile: usize| {
                    let first = ((row / 16 + tile) * self.steps + step) * self.planes * TILE_LINES;
                    &self.left[first..first + lines]
                };
                for (block, right) in packed[..tiles * lines].chunks_exact(2 * lines).enumerate() {
                    let column = columns.start + block * WIDTH;
                    let right = right.split_at(lines);
                    let size = [WIDTH.min(rows.end - row), WIDTH.min(columns.end - column)];
                    let Output { first, stride } = self.output;
                    // SAFETY: the block lies within the product, and this thread alone has it.
                    #[expect(unsafe_code, reason = "blocks of one matrix are no slices")]
                    unsafe {
                        let output = first.add((first_row + row) * stride + column);
                        units.block(
                            [of_row(0), of_row(1)],
                            right.into(),
                            self.planes,
                            (output, stride),
                            size,
                            self.add || step > 0,
                        );
                    }
                }
            }
        }
        drop(units);
        SLAB.set(packed);
    }
}
