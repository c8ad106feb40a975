//! Numbers in the order of tiles: a f32 as the sum of three bf16 numbers, pairs of what is summed over
//! beside each other.
//!
//! The upper half of a f32, rounded, is a bf16 number; so is that of what is then missing, and so is what is
//! missing of both: the sum is exact.

use std::arch::x86_64::{
    __m512i, _mm256_maskz_loadu_epi16, _mm512_add_epi32, _mm512_and_si512, _mm512_castps_si512,
    _mm512_castsi512_ps, _mm512_cvtepu16_epi32, _mm512_load_si512, _mm512_loadu_si512,
    _mm512_maskz_loadu_epi16, _mm512_maskz_loadu_epi32, _mm512_or_si512, _mm512_permutex2var_epi16,
    _mm512_set1_epi32, _mm512_setzero_si512, _mm512_shuffle_i32x4, _mm512_slli_epi32, _mm512_srli_epi32,
    _mm512_store_si512, _mm512_sub_ps, _mm512_unpackhi_epi32, _mm512_unpackhi_epi64, _mm512_unpacklo_epi32,
    _mm512_unpacklo_epi64,
};
use std::ops::Range;

use burn::tensor::bf16;

use super::tiles::{DEPTH, Line, TILE_LINES};
use crate::matrix::{Matrix, Numbers};

/// On which side of a product a matrix is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    /// Lines of its tiles are rows, along which is summed.
    Left,
    /// Lines of its tiles are pairs of rows, over which is summed.
    Right,
}

/// Packs up to 16 rows of a left matrix, or columns of a right one, as tiles for all steps over `depth`, as
/// many planes of each. What is not there is zero.
///
/// # Panics
/// The tiles are of another size, or a range is not of the matrix.
pub(super) fn pack(
    matrix: &Matrix<'_>,
    side: Side,
    outer: Range<usize>,
    depth: Range<usize>,
    planes: usize,
    tiles: &mut [Line],
) {
    let (most, deepest) = match side {
        Side::Left => (matrix.rows, matrix.columns),
        Side::Right => (matrix.columns, matrix.rows),
    };
    if outer.is_empty() {
        tiles.fill(Line::default());
        return;
    }
    assert!(outer.len() <= TILE_LINES && outer.end <= most && depth.end <= deepest, "a part of the matrix");
    assert_eq!(
        tiles.len(),
        depth.len().div_ceil(DEPTH) * planes * TILE_LINES,
        "a tile for each step and plane"
    );
    // Whether what is summed over is contiguous.
    let along = (side == Side::Left) == matrix.by_rows;
    let transposed = along == (side == Side::Right);
    for (step, tile) in tiles.chunks_exact_mut(planes * TILE_LINES).enumerate() {
        let first = depth.start + step * DEPTH;
        let part =
            Part { along, stride: matrix.stride, outer: outer.len(), depth: DEPTH.min(depth.end - first) };
        let start =
            if along { outer.start * matrix.stride + first } else { first * matrix.stride + outer.start };
        // SAFETY: matrix units are there, so AVX-512 is; the part is within the matrix, whose reach was
        // checked when it was made, and the tile has as many planes as the numbers are split into.
        #[expect(unsafe_code, reason = "vectors of a width that not every processor has")]
        unsafe {
            match matrix.numbers() {
                Numbers::F32(numbers) if planes == 3 => {
                    part.split(numbers[start..].as_ptr(), tile.as_mut_ptr(), transposed)
                }
                Numbers::Bf16(numbers) if planes == 1 => {
                    part.copy(numbers[start..].as_ptr(), tile.as_mut_ptr(), transposed)
                }
                _ => unreachable!("both matrices are of one type"),
            }
        }
    }
}

/// What of a matrix goes into a tile.
#[derive(Clone, Copy)]
struct Part {
    along: bool,
    stride: usize,
    /// Up to 16.
    outer: usize,
    /// Up to 32.
    depth: usize,
}

/// Bits for the first `count` of 32.
fn first(count: usize) -> u32 {
    if count >= 32 { u32::MAX } else { (1 << count) - 1 }
}

/// Bits for the first `count` of 16.
fn first_of_16(count: usize) -> u16 {
    if count >= 16 { u16::MAX } else { (1 << count) - 1 }
}

#[expect(unsafe_code, reason = "vectors of a width that not every processor has")]
impl Part {
    /// # Safety
    /// `source` begins this part of a matrix; `tiles` are three.
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn split(self, source: *const f32, tiles: *mut Line, transposed: bool) {
        let Self { along, stride, outer, depth } = self;
        let plane =
            |plane: usize, line: usize| tiles.wrapping_add(plane * TILE_LINES + line).cast::<__m512i>();
        // SAFETY: masked loads read numbers of the part alone; stores go to lines of the three tiles.
        unsafe {
            if along {
                let (order, low, high) =
                    (upper_halves(), first_of_16(depth), first_of_16(depth.saturating_sub(16)));
                for line in 0..outer {
                    let source = source.add(line * stride).cast::<i32>();
                    let front = three(_mm512_maskz_loadu_epi32(low, source));
                    let back = three(_mm512_maskz_loadu_epi32(high, source.wrapping_add(16)));
                    for (index, (front, back)) in front.into_iter().zip(back).enumerate() {
                        _mm512_store_si512(plane(index, line), _mm512_permutex2var_epi16(front, order, back));
                    }
                }
                self.clear(outer, tiles, 3);
            } else {
                let mask = first_of_16(outer);
                let pairs = depth.div_ceil(2);
                for pair in 0..pairs {
                    let source = source.add(2 * pair * stride).cast::<i32>();
                    let even = three(_mm512_maskz_loadu_epi32(mask, source));
                    let odd = if 2 * pair + 1 < depth {
                        _mm512_maskz_loadu_epi32(mask, source.add(stride))
                    } else {
                        _mm512_setzero_si512()
                    };
                    for (index, (even, odd)) in even.into_iter().zip(three(odd)).enumerate() {
                        let both = _mm512_or_si512(_mm512_srli_epi32::<16>(even), upper_half(odd));
                        _mm512_store_si512(plane(index, pair), both);
                    }
                }
                self.clear(pairs, tiles, 3);
            }
            if transposed {
                (0..3).for_each(|index| transpose(plane(index, 0)));
            }
        }
    }

    /// The same of bf16 numbers.
    ///
    /// # Safety
    /// `source` begins this part of a matrix; `tile` is one.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    unsafe fn copy(self, source: *const bf16, tile: *mut Line, transposed: bool) {
        let Self { along, stride, outer, depth } = self;
        let at = |line: usize| tile.wrapping_add(line).cast::<__m512i>();
        // SAFETY: as above.
        unsafe {
            if along {
                let mask = first(depth);
                for line in 0..outer {
                    let source = source.add(line * stride).cast::<i16>();
                    _mm512_store_si512(at(line), _mm512_maskz_loadu_epi16(mask, source));
                }
                self.clear(outer, tile, 1);
            } else {
                let mask = first_of_16(outer);
                let pairs = depth.div_ceil(2);
                for pair in 0..pairs {
                    let source = source.add(2 * pair * stride).cast::<i16>();
                    let even = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, source));
                    let mut both = even;
                    if 2 * pair + 1 < depth {
                        let odd = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, source.add(stride)));
                        both = _mm512_or_si512(even, _mm512_slli_epi32::<16>(odd));
                    }
                    _mm512_store_si512(at(pair), both);
                }
                self.clear(pairs, tile, 1);
            }
            if transposed {
                transpose(at(0));
            }
        }
    }

    /// Zeroes the lines from `from` on.
    ///
    /// # Safety
    /// There are `planes` tiles.
    unsafe fn clear(self, from: usize, tiles: *mut Line, planes: usize) {
        for plane in 0..planes {
            for line in from..TILE_LINES {
                // SAFETY: a line of these tiles.
                unsafe { tiles.add(plane * TILE_LINES + line).write(Line::default()) }
            }
        }
    }
}

/// The upper halves of 16 f32 numbers, the other bits zero.
#[inline]
#[target_feature(enable = "avx512f")]
fn upper_half(numbers: __m512i) -> __m512i {
    _mm512_and_si512(numbers, _mm512_set1_epi32(i32::from_ne_bytes(0xFFFF_0000_u32.to_ne_bytes())))
}

/// Three numbers whose sum each is, which have nothing but upper halves.
#[inline]
#[target_feature(enable = "avx512f")]
fn three(numbers: __m512i) -> [__m512i; 3] {
    let less = |all: __m512i, part: __m512i| {
        _mm512_castps_si512(_mm512_sub_ps(_mm512_castsi512_ps(all), _mm512_castsi512_ps(part)))
    };
    let rounded = |numbers: __m512i| upper_half(_mm512_add_epi32(numbers, _mm512_set1_epi32(0x8000)));
    let high = rounded(numbers);
    let rest = less(numbers, high);
    let middle = rounded(rest);
    [high, middle, less(rest, middle)]
}

/// Where the upper halves of 32 numbers in two registers are.
#[inline]
#[target_feature(enable = "avx512f")]
#[expect(unsafe_code, reason = "a vector is read from memory")]
fn upper_halves() -> __m512i {
    const ODD: [u16; 32] = {
        let mut odd = [0; 32];
        let mut word: u16 = 0;
        while word < 32 {
            odd[word as usize] = 2 * word + 1;
            word += 1;
        }
        odd
    };
    // SAFETY: 64 bytes.
    unsafe { _mm512_loadu_si512(ODD.as_ptr().cast()) }
}

/// Exchanges lines and words of a tile.
///
/// # Safety
/// 16 lines begin at `tile`.
#[inline]
#[target_feature(enable = "avx512f")]
#[expect(unsafe_code, reason = "vectors of a width that not every processor has")]
unsafe fn transpose(tile: *mut __m512i) {
    let mut lines = [_mm512_setzero_si512(); 16];
    for (line, value) in lines.iter_mut().enumerate() {
        // SAFETY: a line of the tile.
        *value = unsafe { _mm512_load_si512(tile.add(line)) };
    }
    let mut pairs = lines;
    for i in 0..8 {
        pairs[2 * i] = _mm512_unpacklo_epi32(lines[2 * i], lines[2 * i + 1]);
        pairs[2 * i + 1] = _mm512_unpackhi_epi32(lines[2 * i], lines[2 * i + 1]);
    }
    for i in 0..4 {
        let [a, b, c, d] = [pairs[4 * i], pairs[4 * i + 1], pairs[4 * i + 2], pairs[4 * i + 3]];
        lines[4 * i] = _mm512_unpacklo_epi64(a, c);
        lines[4 * i + 1] = _mm512_unpackhi_epi64(a, c);
        lines[4 * i + 2] = _mm512_unpacklo_epi64(b, d);
        lines[4 * i + 3] = _mm512_unpackhi_epi64(b, d);
    }
    let mut quarters = lines;
    for i in 0..4 {
        for half in [0, 8] {
            let (upper, lower) = (lines[half + i], lines[half + 4 + i]);
            quarters[half + i] = _mm512_shuffle_i32x4::<0x88>(upper, lower);
            quarters[half + 4 + i] = _mm512_shuffle_i32x4::<0xDD>(upper, lower);
        }
    }
    for i in 0..4 {
        for part in [0, 4] {
            let (upper, lower) = (quarters[part + i], quarters[8 + part + i]);
            lines[part + i] = _mm512_shuffle_i32x4::<0x88>(upper, lower);
            lines[8 + part + i] = _mm512_shuffle_i32x4::<0xDD>(upper, lower);
        }
    }
    for (line, value) in lines.into_iter().enumerate() {
        // SAFETY: a line of the tile.
        unsafe { _mm512_store_si512(tile.add(line), value) }
    }
}
