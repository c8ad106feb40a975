//! The kernel of the head: one cube of units for a row of logits.
//!
//! Legend: C rows, V vocabulary, K tokens to keep, D draws, T extra temperatures, W words of a result.
//!
//! The row is read twice, and once more for each temperature and twice for draws. The first time each unit finds the largest of its
//! logits: the K-th largest of these is a bar that at least K logits reach, and few others. The second time gives all sums, and the
//! logits above the bar go to shared memory, where a radix selection finds which are kept. If they do not fit there (a K above
//! the number of units, or many ties) it looks at the row instead: slower, with the same result.

use cubecl::{cube, ir::ElemType, prelude::*};

use super::layout::{CANDIDATES, HEADER, UNITS, WRITTEN};
use super::radix::{Found, Kept, kept_of, key_of, logit_of};
use super::row::{Row, is_finite, logit_at};

/// The lowest finite number: the largest logit of no logits.
const LOWEST: f32 = f32::MIN;

/// Σ exp(z - largest) over some logits.
#[derive(CubeType, Clone, Copy)]
struct Mass {
    largest: f32,
    sum: f32,
}

#[cube]
impl Mass {
    fn none() -> Mass {
        Mass { largest: f32::new(LOWEST), sum: f32::new(0.0) }
    }

    fn add(&mut self, logit: f32) {
        if logit > self.largest {
            self.sum = self.sum * (self.largest - logit).exp() + f32::new(1.0);
            self.largest = logit;
        } else {
            self.sum += (logit - self.largest).exp();
        }
    }
}

/// What all units of a row write to, beside the candidates.
#[derive(CubeType)]
struct Scratch {
    maxima: Shared<[f32]>,
    sums: Shared<[f32]>,
}

/// The logit of one lane, scaled.
#[cube]
fn lane_of<F: Float, N: Size>(vector: Vector<F, N>, #[comptime] lane: usize, scale: f32) -> f32 {
    f32::cast_from(vector.extract(lane)) * scale
}

/// Writes statistics, kept and drawn tokens of row `CUBE_POS_X`, as [`super::layout`] says.
///
/// # Shapes
/// `logits` `[C, V]`, `rows` `[C, 2]`: gold token, and the bits of where draws begin; `inverse_temperatures` `[T]`, or any
/// length without; `found` `[C, W]`.
#[cube(launch)]
#[expect(clippy::too_many_arguments, reason = "a kernel has no other way to take them")]
pub(super) fn head_kernel<F: Float, N: Size>(
    logits: &Tensor<Vector<F, N>>,
    rows: &Tensor<i32>,
    inverse_temperatures: &Tensor<f32>,
    found: &mut Tensor<i32>,
    scale: f32,
    k: u32,
    draws: u32,
    temperatures: u32,
    #[define(F)] _dtype: ElemType,
) {
    let position = CUBE_POS_X as usize;
    let lanes = logits.vector_size();
    let vocabulary = logits.shape(1);
    let row = Row {
        base: position * (logits.stride(0) / lanes),
        vectors: vocabulary / lanes,
        unit: UNIT_POS_X as usize,
        scale,
    };
    let out = position * found.stride(0);
    let mut scratch =
        Scratch { maxima: Shared::<[f32]>::new_slice(UNITS), sums: Shared::<[f32]>::new_slice(UNITS) };
    let mut candidates = Found {
        keys: Shared::<[u32]>::new_slice(CANDIDATES),
        ids: Shared::<[u32]>::new_slice(CANDIDATES),
        bar: 0u32,
        count: 0u32,
        length: 0usize,
    };
    let counters = Shared::<[Atomic<u32>]>::new_slice(4usize);
    let mut shared_bar = Shared::<[u32]>::new_slice(2usize);
    if row.unit < 4usize {
        counters[row.unit].store(0u32);
    }

    // The first reading: what is no number, the largest logit, the bar.
    let bad = bar_of_row::<F, N>(logits, &row, k, &mut scratch, &mut shared_bar);
    if bad {
        counters[BAD].fetch_add(1u32);
    }
    candidates.bar = shared_bar[0];
    let largest = f32::reinterpret(shared_bar[1]);

    // The second one: all sums, and what reaches the bar.
    let mut total = f32::new(0.0);
    let mut weighted = f32::new(0.0);
    let mut tail = Mass::none();
    let mut i = row.unit;
    while i < row.vectors {
        let vector = logits[row.base + i];
        #[unroll]
        for lane in 0..lanes {
            let logit = lane_of::<F, N>(vector, lane, scale);
            if is_finite(logit) {
                let distance = logit - largest;
                let e = distance.exp();
                total += e;
                if e > f32::new(0.0) {
                    weighted += e * distance;
                }
                let key = key_of(logit);
                if key < candidates.bar {
                    tail.add(logit);
                } else {
                    let place = counters[CANDIDATE].fetch_add(1u32) as usize;
                    if place < CANDIDATES {
                        candidates.keys[place] = key;
                        candidates.ids[place] = (i * lanes + lane) as u32;
                    }
                }
            }
        }
        i += UNITS;
    }
    let total = sum_of_cube(total, &mut scratch.sums, row.unit);
    let weighted = sum_of_cube(weighted, &mut scratch.sums, row.unit);
    candidates.count = counters[CANDIDATE].load();
    candidates.length = candidates.count as usize;
    if candidates.length > CANDIDATES {
        candidates.length = vocabulary;
    }

    let kept = kept_of::<F, N>(logits, &row, &candidates, k);
    let entries = out + HEADER + temperatures as usize;
    let most = min(k as usize, vocabulary);
    let mut i = row.unit;
    while i < candidates.length {
        let key = candidates.key::<F, N>(logits, &row, i);
        if key >= candidates.bar {
            let id = candidates.id(i);
            if kept.has(key, id) {
                let place = entries + counters[KEPT].fetch_add(1u32) as usize;
                found[place] = i32::cast_from(id);
                found[place + most] = i32::reinterpret(logit_of(key));
            } else {
                tail.add(logit_of(key));
            }
        }
        i += UNITS;
    }
    let mut tail = mass_of_cube(tail, &mut scratch, row.unit);

    let mut t = 0usize;
    while t < temperatures as usize {
        let inverse = inverse_temperatures[t];
        let sum = rest_of::<F, N>(logits, &row, &candidates, &kept, tail.largest, inverse, &mut scratch.sums);
        if row.unit == 0usize {
            found[out + HEADER + t] = i32::reinterpret(sum);
        }
        t += 1usize;
    }

    if draws > 0u32 {
        let drawn = Drawn {
            uniform: f32::reinterpret(rows[2usize * position + 1usize]),
            draws,
            tail: tail.largest,
            out: entries + 2usize * most,
        };
        let undrawn = draw::<F, N>(logits, &row, &candidates, &kept, &drawn, &counters, &mut scratch, found);
        if k == 0u32 {
            tail.largest = undrawn.largest;
            tail.sum = undrawn.sum;
        }
    }

    if row.unit == 0usize {
        let gold = rows[2usize * position] as usize;
        found[out] = WRITTEN + i32::cast_from(counters[BAD].load());
        found[out + 1] = i32::reinterpret(largest);
        found[out + 2] = i32::reinterpret(total);
        found[out + 3] = i32::reinterpret(weighted);
        found[out + 4] = i32::reinterpret(tail.largest);
        found[out + 5] = i32::reinterpret(tail.sum);
        found[out + 6] = i32::reinterpret(logit_at::<F, N>(logits, &row, gold));
        found[out + 7] = i32::cast_from(counters[KEPT].load());
        found[out + 8] = i32::cast_from(counters[DRAWN].load());
    }
}

/// Indices of the counters.
const BAD: usize = 0;
const CANDIDATE: usize = 1;
const KEPT: usize = 2;
const DRAWN: usize = 3;

/// Whether this unit saw a NaN or +inf. Leaves the bar, and the bits of the largest logit, in `shared`.
#[cube]
fn bar_of_row<F: Float, N: Size>(
    logits: &Tensor<Vector<F, N>>,
    row: &Row,
    k: u32,
    scratch: &mut Scratch,
    shared: &mut Shared<[u32]>,
) -> bool {
    let lanes = logits.vector_size();
    let mut largest = f32::new(LOWEST);
    let mut bad = false;
    let mut i = row.unit;
    while i < row.vectors {
        let vector = logits[row.base + i];
        #[unroll]
        for lane in 0..lanes {
            let logit = lane_of::<F, N>(vector, lane, row.scale);
            if is_finite(logit) {
                largest = max(largest, logit);
            } else if u32::reinterpret(logit) != 0xff80_0000u32 {
                bad = true;
            }
        }
        i += UNITS;
    }
    scratch.maxima[row.unit] = largest;
    sync_cube();
    let key = key_of(largest);
    let mut rank = 0u32;
    let mut other = 0usize;
    while other < UNITS {
        let of_other = key_of(scratch.maxima[other]);
        if of_other > key || (of_other == key && other < row.unit) {
            rank += 1u32;
        }
        other += 1usize;
    }
    // Without a bar all finite logits reach it: their keys are above 0.
    if row.unit == 0usize && k > comptime!(UNITS as u32) {
        shared[0] = 1u32;
    }
    if row.unit == 0usize && k == 0u32 {
        shared[0] = 0xffff_ffffu32;
    }
    if rank + 1u32 == k {
        shared[0] = key;
    }
    if rank == 0u32 {
        shared[1] = u32::reinterpret(largest);
    }
    sync_cube();
    bad
}

/// Σ exp((z - largest) / T) over the tokens that are not kept, of which the largest is given.
#[cube]
fn rest_of<F: Float, N: Size>(
    logits: &Tensor<Vector<F, N>>,
    row: &Row,
    candidates: &Found,
    kept: &Kept,
    largest: f32,
    inverse_temperature: f32,
    sums: &mut Shared<[f32]>,
) -> f32 {
    let lanes = logits.vector_size();
    let mut sum = f32::new(0.0);
    let mut i = row.unit;
    while i < row.vectors {
        let vector = logits[row.base + i];
        #[unroll]
        for lane in 0..lanes {
            let logit = lane_of::<F, N>(vector, lane, row.scale);
            if is_finite(logit) && !is_kept(candidates, kept, logit, i * lanes + lane) {
                sum += ((logit - largest) * inverse_temperature).exp();
            }
        }
        i += UNITS;
    }
    sum_of_cube(sum, sums, row.unit)
}

/// What draws need.
#[derive(CubeType, Clone, Copy)]
struct Drawn {
    uniform: f32,
    draws: u32,
    /// The largest logit of the tokens to draw from.
    tail: f32,
    /// Where ids are written; counts follow them.
    out: usize,
}

/// Writes the drawn tokens and their counts in any order. The mass of the tokens that are neither kept nor drawn, where none is kept.
///
/// Each unit has a run of neighbouring tokens. Their sums before it and its own, added in one order, say how many draws end before
/// its first and its last token, so that no draw is lost between two of them.
#[cube]
#[expect(clippy::too_many_arguments, reason = "a part of the kernel")]
fn draw<F: Float, N: Size>(
    logits: &Tensor<Vector<F, N>>,
    row: &Row,
    candidates: &Found,
    kept: &Kept,
    drawn: &Drawn,
    counters: &Shared<[Atomic<u32>]>,
    scratch: &mut Scratch,
    found: &mut Tensor<i32>,
) -> Mass {
    let lanes = logits.vector_size();
    let length = row.vectors.div_ceil(UNITS);
    let first = min(row.unit * length, row.vectors);
    let end = min(first + length, row.vectors);
    let mut own = f32::new(0.0);
    for i in first..end {
        let vector = logits[row.base + i];
        #[unroll]
        for lane in 0..lanes {
            let logit = lane_of::<F, N>(vector, lane, row.scale);
            if is_finite(logit) && !is_kept(candidates, kept, logit, i * lanes + lane) {
                own += (logit - drawn.tail).exp();
            }
        }
    }
    scratch.sums[row.unit] = own;
    sync_cube();
    let mut before = f32::new(0.0);
    let mut total = f32::new(0.0);
    for unit in 0..UNITS {
        if unit == row.unit {
            before = total;
        }
        total += scratch.sums[unit];
    }
    sync_cube();
    let most = min(drawn.draws as usize, row.vectors * lanes);
    let mut undrawn = Mass::none();
    let mut partial = f32::new(0.0);
    let mut done = draws_before(before, total, drawn);
    // Without mass there is nothing to draw from; without draws, nothing to look for unless the rest is summed.
    let any = total > f32::new(0.0)
        && (draws_before(before + own, total, drawn) > done || candidates.bar == 0xffff_ffffu32);
    if any {
        for i in first..end {
            let vector = logits[row.base + i];
            #[unroll]
            for lane in 0..lanes {
                let logit = lane_of::<F, N>(vector, lane, row.scale);
                if is_finite(logit) && !is_kept(candidates, kept, logit, i * lanes + lane) {
                    partial += (logit - drawn.tail).exp();
                    let after = draws_before(before + partial, total, drawn);
                    if after > done {
                        let place = drawn.out + counters[DRAWN].fetch_add(1u32) as usize;
                        found[place] = i32::cast_from(i * lanes + lane);
                        found[place + most] = i32::cast_from(after - done);
                        done = after;
                    } else {
                        undrawn.add(logit);
                    }
                }
            }
        }
    }
    mass_of_cube(undrawn, scratch, row.unit)
}

/// How many draws lie before a point of the mass; all of them at its end, whatever was rounded.
#[cube]
fn draws_before(point: f32, total: f32, drawn: &Drawn) -> u32 {
    let mut before = drawn.draws;
    if point < total {
        let share = (point / total * f32::cast_from(drawn.draws) - drawn.uniform).ceil();
        before = u32::cast_from(clamp(share, f32::new(0.0), f32::cast_from(drawn.draws)));
    }
    before
}

#[cube]
fn is_kept(candidates: &Found, kept: &Kept, logit: f32, id: usize) -> bool {
    let key = key_of(logit);
    key >= candidates.bar && kept.has(key, id as u32)
}

/// The sum of a number of each unit, for all of them.
#[cube]
fn sum_of_cube(value: f32, sums: &mut Shared<[f32]>, unit: usize) -> f32 {
    sums[unit] = value;
    sync_cube();
    let mut half = (UNITS / 2).runtime();
    while half > 0 {
        if unit < half {
            let sum = sums[unit] + sums[unit + half];
            sums[unit] = sum;
        }
        sync_cube();
        half /= 2;
    }
    let sum = sums[0];
    sync_cube();
    sum
}

/// The mass of the logits of all units, for all of them.
#[cube]
fn mass_of_cube(mass: Mass, scratch: &mut Scratch, unit: usize) -> Mass {
    scratch.maxima[unit] = mass.largest;
    sync_cube();
    let mut half = (UNITS / 2).runtime();
    while half > 0 {
        if unit < half {
            let largest = max(scratch.maxima[unit], scratch.maxima[unit + half]);
            scratch.maxima[unit] = largest;
        }
        sync_cube();
        half /= 2;
    }
    let largest = scratch.maxima[0];
    sync_cube();
    let sum = sum_of_cube(mass.sum * (mass.largest - largest).exp(), &mut scratch.sums, unit);
    Mass { largest, sum }
}
