//! What the matrix units do: a block of 32 by 32 sums.

use std::arch::asm;
use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
use std::marker::PhantomData;

/// What a tile sums over: two bf16 numbers in each of 16 pairs.
pub(super) const DEPTH: usize = 32;
/// Rows and columns of a block, of two by two tiles.
pub(super) const WIDTH: usize = 32;
/// Lines of a tile.
pub(super) const TILE_LINES: usize = 16;

/// A line of a tile: 64 bytes, as its cache line.
#[derive(Debug, Clone, Copy, Default)]
#[repr(C, align(64))]
pub(super) struct Line([u64; 8]);

/// Eight tiles of 16 lines of 64 bytes.
#[repr(C, align(64))]
struct Configuration {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    bytes_of_line: [u16; 16],
    lines: [u8; 16],
}

static CONFIGURATION: Configuration = Configuration {
    palette: 1,
    start_row: 0,
    reserved: [0; 14],
    bytes_of_line: [64, 64, 64, 64, 64, 64, 64, 64, 0, 0, 0, 0, 0, 0, 0, 0],
    lines: [16, 16, 16, 16, 16, 16, 16, 16, 0, 0, 0, 0, 0, 0, 0, 0],
};

/// The matrix units of this thread's core, set up until this is dropped.
pub(super) struct Units(PhantomData<*const ()>);

impl Units {
    /// # Panics
    /// There are none.
    #[expect(unsafe_code, reason = "instructions without intrinsics")]
    pub(super) fn begin() -> Self {
        assert!(super::are_there(), "asked for where there are no matrix units");
        // SAFETY: the CPU has matrix units, and the system lets this process use them.
        unsafe { asm!("ldtilecfg [{}]", in(reg) &raw const CONFIGURATION, options(nostack, readonly)) }
        Self(PhantomData)
    }

    /// Sums of a block, added to those at `output` if `add`. `left` and `right` are two tiles side by side
    /// each, for each step over K one or three planes of them.
    ///
    /// # Safety
    /// `output` begins `size` numbers, rows and columns, of a matrix with this stride, which nobody else
    /// has; they are initialised if `add`.
    #[expect(unsafe_code, reason = "instructions without intrinsics, on a block of a matrix")]
    pub(super) unsafe fn block(
        &self,
        left: [&[Line]; 2],
        right: [&[Line]; 2],
        planes: usize,
        (output, stride): (*mut f32, usize),
        size: [usize; 2],
        add: bool,
    ) {
        let lines = left[0].len();
        assert!(
            left[1].len() == lines && right.iter().all(|right| right.len() == lines),
            "as many steps on both sides"
        );
        assert!(planes == 1 || planes == 3, "a number is the sum of one or three");
        let steps = lines / (planes * TILE_LINES);
        let [left, right] = [left, right].map(|tiles| tiles.map(<[Line]>::as_ptr));
        let sums = |output: *mut f32, stride: usize| {
            // SAFETY: `left` and `right` hold this many steps, as was checked; `output` has 32 by 32 numbers.
            unsafe {
                begin_sums(output, stride, add);
                for step in 0..steps {
                    let at = |tile: *const Line| tile.add(step * planes * TILE_LINES);
                    let (left, right) = (left.map(at), right.map(at));
                    if planes == 3 { add_six(left, right) } else { add_one(left, right) }
                }
                end_sums(output, stride);
            }
        };
        if size == [WIDTH; 2] {
            for row in 0..WIDTH {
                // SAFETY: a hint about memory that is there.
                unsafe {
                    let row = output.add(row * stride).cast::<i8>();
                    _mm_prefetch::<_MM_HINT_T0>(row);
                    _mm_prefetch::<_MM_HINT_T0>(row.add(64));
                }
            }
            sums(output, stride);
            return;
        }
        let mut whole = [Line::default(); 2 * WIDTH];
        let at_edge = whole.as_mut_ptr().cast::<f32>();
        let copy = |from: *const f32, stride: usize, to: *mut f32, to_stride: usize| {
            for row in 0..size[0] {
                // SAFETY: both have `size` numbers.
                unsafe { from.add(row * stride).copy_to_nonoverlapping(to.add(row * to_stride), size[1]) }
            }
        };
        if add {
            copy(output, stride, at_edge, WIDTH);
        }
        sums(at_edge, WIDTH);
        copy(at_edge, WIDTH, output, stride);
    }
}

impl Drop for Units {
    #[expect(unsafe_code, reason = "an instruction without intrinsic")]
    fn drop(&mut self) {
        // SAFETY: they were set up.
        unsafe { asm!("tilerelease", options(nostack, nomem)) }
    }
}

/// # Safety
/// As [`Units::block`], of a whole block.
#[inline(always)]
#[expect(unsafe_code, reason = "instructions without intrinsics")]
unsafe fn begin_sums(output: *mut f32, stride: usize, add: bool) {
    // SAFETY: as the caller says.
    unsafe {
        if add {
            asm!(
                "tileloadd tmm0, [{upper} + {stride}]", "tileloadd tmm1, [{upper} + {stride} + 64]",
                "tileloadd tmm2, [{lower} + {stride}]", "tileloadd tmm3, [{lower} + {stride} + 64]",
                upper = in(reg) output, lower = in(reg) output.add(16 * stride), stride = in(reg) 4 * stride,
                options(nostack, readonly)
            );
        } else {
            asm!("tilezero tmm0", "tilezero tmm1", "tilezero tmm2", "tilezero tmm3", options(nostack, nomem));
        }
    }
}

/// # Safety
/// As [`Units::block`], of a whole block.
#[inline(always)]
#[expect(unsafe_code, reason = "instructions without intrinsics")]
unsafe fn end_sums(output: *mut f32, stride: usize) {
    // SAFETY: as the caller says.
    unsafe {
        asm!(
            "tilestored [{upper} + {stride}], tmm0", "tilestored [{upper} + {stride} + 64], tmm1",
            "tilestored [{lower} + {stride}], tmm2", "tilestored [{lower} + {stride} + 64], tmm3",
            upper = in(reg) output, lower = in(reg) output.add(16 * stride), stride = in(reg) 4 * stride,
            options(nostack)
        );
    }
}

/// One step of numbers that are the sums of three: high · low, high · middle, high · high, low · high,
/// middle · high, middle · middle. What is left out is below 2^-23 of a product. In this order each tile but
/// two is loaded once.
///
/// # Safety
/// Each pointer is at three tiles.
#[inline(always)]
#[expect(unsafe_code, reason = "instructions without intrinsics")]
unsafe fn add_six([upper, lower]: [*const Line; 2], [first, second]: [*const Line; 2]) {
    // SAFETY: as the caller says.
    unsafe {
        asm!(
            // high · low
            "tileloadd tmm4, [{upper} + {line}]", "tileloadd tmm6, [{first} + {line} + 2048]", "tdpbf16ps tmm0, tmm4, tmm6",
            "tileloadd tmm7, [{second} + {line} + 2048]", "tdpbf16ps tmm1, tmm4, tmm7",
            "tileloadd tmm5, [{lower} + {line}]", "tdpbf16ps tmm2, tmm5, tmm6", "tdpbf16ps tmm3, tmm5, tmm7",
            // high · middle
            "tileloadd tmm6, [{first} + {line} + 1024]", "tdpbf16ps tmm0, tmm4, tmm6",
            "tileloadd tmm7, [{second} + {line} + 1024]", "tdpbf16ps tmm1, tmm4, tmm7",
            "tdpbf16ps tmm2, tmm5, tmm6", "tdpbf16ps tmm3, tmm5, tmm7",
            // high · high
            "tileloadd tmm6, [{first} + {line}]", "tdpbf16ps tmm0, tmm4, tmm6",
            "tileloadd tmm7, [{second} + {line}]", "tdpbf16ps tmm1, tmm4, tmm7",
            "tdpbf16ps tmm2, tmm5, tmm6", "tdpbf16ps tmm3, tmm5, tmm7",
            // low · high
            "tileloadd tmm4, [{upper} + {line} + 2048]", "tdpbf16ps tmm0, tmm4, tmm6", "tdpbf16ps tmm1, tmm4, tmm7",
            "tileloadd tmm5, [{lower} + {line} + 2048]", "tdpbf16ps tmm2, tmm5, tmm6", "tdpbf16ps tmm3, tmm5, tmm7",
            // middle · high
            "tileloadd tmm4, [{upper} + {line} + 1024]", "tdpbf16ps tmm0, tmm4, tmm6", "tdpbf16ps tmm1, tmm4, tmm7",
            "tileloadd tmm5, [{lower} + {line} + 1024]", "tdpbf16ps tmm2, tmm5, tmm6", "tdpbf16ps tmm3, tmm5, tmm7",
            // middle · middle
            "tileloadd tmm6, [{first} + {line} + 1024]", "tdpbf16ps tmm0, tmm4, tmm6",
            "tileloadd tmm7, [{second} + {line} + 1024]", "tdpbf16ps tmm1, tmm4, tmm7",
            "tdpbf16ps tmm2, tmm5, tmm6", "tdpbf16ps tmm3, tmm5, tmm7",
            upper = in(reg) upper, lower = in(reg) lower, first = in(reg) first, second = in(reg) second, line = in(reg) 64usize,
            options(nostack, readonly)
        );
    }
}

/// One step of bf16 numbers.
///
/// # Safety
/// Each pointer is at a tile.
#[inline(always)]
#[expect(unsafe_code, reason = "instructions without intrinsics")]
unsafe fn add_one([upper, lower]: [*const Line; 2], [first, second]: [*const Line; 2]) {
    // SAFETY: as the caller says.
    unsafe {
        asm!(
            "tileloadd tmm4, [{upper} + {line}]", "tileloadd tmm6, [{first} + {line}]", "tdpbf16ps tmm0, tmm4, tmm6",
            "tileloadd tmm7, [{second} + {line}]", "tdpbf16ps tmm1, tmm4, tmm7",
            "tileloadd tmm5, [{lower} + {line}]", "tdpbf16ps tmm2, tmm5, tmm6", "tdpbf16ps tmm3, tmm5, tmm7",
            upper = in(reg) upper, lower = in(reg) lower, first = in(reg) first, second = in(reg) second, line = in(reg) 64usize,
            options(nostack, readonly)
        );
    }
}
