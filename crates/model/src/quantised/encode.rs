//! From weights to codes: the scale of a block, and the nearest level to each of its weights.

use burn::tensor::bf16;
use rayon::prelude::*;

use super::{BLOCK, Bits, Packing};

/// The largest level of both widths, as a magnitude.
const LARGEST: f32 = 127.0;

/// The levels of 4-bit codes: those of the least squared error over blocks of normal and of heavy-tailed numbers (Student's t,
/// 5 degrees of freedom) whose scales are chosen as below, rounded. `tests/peers/quantised_levels.py` makes them.
pub(super) const LEVELS: [f32; 16] =
    [-127.0, -98.0, -77.0, -60.0, -46.0, -33.0, -21.0, -10.0, 0.0, 11.0, 23.0, 35.0, 49.0, 65.0, 84.0, 109.0];

/// The code of zero.
const ZERO: u8 = 8;

/// Scales that are tried for a block of 4-bit codes, as parts of the one that makes its largest weight exact.
const FACTORS: [f32; 5] = [0.84, 0.89, 0.94, 0.99, 1.04];

/// Scales outside would overflow, or be subnormal, which some devices take for zero.
const SCALES: std::ops::RangeInclusive<f32> = f32::from_bits(27 << 23)..=f32::from_bits(247 << 23);

/// The level of an 8-bit code.
pub(super) fn eight_bit_level(code: u8) -> f32 {
    f32::from(code) - 128.0
}

/// The code of the level nearest to each half step: entry `h` is for numbers up to a quarter from
/// `h / 2 - 127.75`.
static NEAREST: [u8; 512] = nearest_codes();

/// The levels of these codes.
static NEAREST_LEVELS: [f32; 512] = nearest_levels();

const fn nearest_codes() -> [u8; 512] {
    let mut codes = [0; 512];
    let (mut half, mut code) = (0, 0);
    while half < codes.len() {
        let number = half as f32 / 2.0 - 127.75;
        // The borders between levels are whole half steps: none of these numbers is on one.
        while code + 1 < LEVELS.len() && LEVELS[code + 1] - number < number - LEVELS[code] {
            code += 1;
        }
        codes[half] = code as u8;
        half += 1;
    }
    codes
}

const fn nearest_levels() -> [f32; 512] {
    let mut levels = [0.0; 512];
    let mut half = 0;
    while half < levels.len() {
        levels[half] = LEVELS[NEAREST[half] as usize];
        half += 1;
    }
    levels
}

/// Where a number in steps is found in [`NEAREST`].
fn half_step(number: f32) -> usize {
    whole((2.0 * number + 255.5).clamp(0.0, 511.0)) as usize
}

/// The nearest whole number of one in `0..2^22`: the sum has no bits for fractions, and the lowest ones of its pattern
/// are the whole number. Several at once, where `round` and `as` take them one by one.
fn whole(number: f32) -> u32 {
    const NO_FRACTIONS: f32 = 8_388_608.0; // 2^23
    (number + NO_FRACTIONS).to_bits() & 0x7f_ffff
}

/// Words and scales of all rows, row after row.
pub(super) fn encode(weights: &[f32], packing: Packing) -> (Vec<i32>, Vec<bf16>) {
    let Packing { bits, rows, columns } = packing;
    let (row_words, row_scales) = (packing.words(), packing.blocks());
    let mut words = vec![0; rows * row_words];
    let mut scales = vec![bf16::ZERO; rows * row_scales];
    // A chunk of length zero is none: a weight without columns has nothing to encode.
    let rows = weights
        .par_chunks(columns.max(1))
        .zip(words.par_chunks_mut(row_words.max(1)))
        .zip(scales.par_chunks_mut(row_scales.max(1)));
    rows.for_each(|((weights, words), scales)| {
        let blocks = weights.chunks(BLOCK).zip(words.chunks_mut(BLOCK / bits.codes_per_word()));
        for ((weights, words), scale) in blocks.zip(scales) {
            let mut block = [0.0; BLOCK];
            block[..weights.len()].copy_from_slice(weights);
            let codes;
            (codes, *scale) = encode_block(&block, bits);
            pack(&codes, bits, words);
        }
    });
    (words, scales)
}

fn encode_block(block: &[f32; BLOCK], bits: Bits) -> ([u8; BLOCK], bf16) {
    let largest = block.iter().copied().fold(0.0, |a: f32, b| if b.abs() > a.abs() { b } else { a });
    let scale = match bits {
        Bits::Eight => storable(largest.abs() / LARGEST),
        // The lowest level is the outermost: the scale's sign puts the largest weight there.
        Bits::Four => best_scale(block, -largest / LARGEST),
    };
    let divisor = f32::from(scale);
    let code = |weight: f32| match bits {
        _ if divisor == 0.0 => match bits {
            Bits::Eight => 128,
            Bits::Four => ZERO,
        },
        // Within 1..=255 by the clamp.
        Bits::Eight => whole((weight / divisor).clamp(-LARGEST, LARGEST) + 128.0) as u8,
        Bits::Four => NEAREST[half_step(weight / divisor)],
    };
    (block.map(code), scale)
}

/// Of some scales near `base`, and for each the one that fits its codes best by least squares: the one of the least
/// squared error.
fn best_scale(block: &[f32; BLOCK], base: f32) -> bf16 {
    let exact = storable(base);
    if exact == bf16::ZERO {
        return exact;
    }
    let base = f32::from(exact);
    // Weights as parts of `base`, so that the sums below neither overflow nor vanish.
    let parts = block.map(|weight| weight / base);
    let (mut best, mut least) = (exact, f32::INFINITY);
    for factor in FACTORS {
        let inverse = 1.0 / factor;
        let steps = parts.map(|part| part * inverse);
        let levels = steps.map(half_step).map(|cell| NEAREST_LEVELS[cell]);
        let [squares, products, rests] = sums(&levels, &steps);
        for change in [0.0, products / squares] {
            let scale = storable(base * factor * (1.0 + change));
            let change = f32::from(scale) / (base * factor) - 1.0;
            let error = factor * factor * (rests + change * (change * squares - 2.0 * products));
            if error < least {
                (best, least) = (scale, error);
            }
        }
    }
    best
}

/// Σ level², Σ level · rest and Σ rest², where the rests are what the levels leave of the steps: with all levels scaled by
/// `1 + change`, the squared error is `Σ rest² - 2 change Σ level · rest + change² Σ level²`, of small numbers only.
fn sums(levels: &[f32; BLOCK], steps: &[f32; BLOCK]) -> [f32; 3] {
    // Eight sums each, for the processor's lanes; their order is fixed, so that the codes are the same everywhere.
    let (mut squares, mut products, mut rests) = ([0.0f32; 8], [0.0f32; 8], [0.0f32; 8]);
    for (levels, steps) in levels.as_chunks::<8>().0.iter().zip(steps.as_chunks::<8>().0) {
        for lane in 0..8 {
            let rest = steps[lane] - levels[lane];
            squares[lane] += levels[lane] * levels[lane];
            products[lane] += levels[lane] * rest;
            rests[lane] += rest * rest;
        }
    }
    [squares, products, rests].map(|lanes| lanes.iter().sum())
}

/// The nearest number that a scale may be; NaN, which no sum here can be, would be zero.
fn storable(scale: f32) -> bf16 {
    let magnitude = scale.abs();
    if magnitude >= *SCALES.start() {
        bf16::from_f32(magnitude.min(*SCALES.end()).copysign(scale))
    } else {
        bf16::ZERO
    }
}

fn pack(codes: &[u8; BLOCK], bits: Bits, words: &mut [i32]) {
    for (codes, word) in codes.chunks(bits.codes_per_word()).zip(words) {
        let bytes = codes.iter().rev().fold(0u32, |word, &code| (word << bits.width()) | u32::from(code));
        *word = bytes.cast_signed();
    }
}
