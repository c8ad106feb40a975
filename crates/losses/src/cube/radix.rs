//! Which of a row's candidates are kept: a radix selection, eight bits of their keys at a time, then of their ids.

use cubecl::{cube, prelude::*};

use super::layout::{CANDIDATES, UNITS};
use super::row::{Row, is_finite, logit_at};

/// Digits of a key or an id.
const BINS: usize = 256;

/// A whole number whose order is that of finite logits, and above 0; both zeros have one.
#[cube]
pub(super) fn key_of(logit: f32) -> u32 {
    let bits = u32::reinterpret(logit);
    let mut key = bits | 0x8000_0000u32;
    if bits > 0x8000_0000u32 {
        key = !bits;
    }
    key
}

/// The logit of a key.
#[cube]
pub(super) fn logit_of(key: u32) -> f32 {
    let mut bits = !key;
    if key >= 0x8000_0000u32 {
        bits = key & 0x7fff_ffffu32;
    }
    f32::reinterpret(bits)
}

/// The logits that reach the bar: those in shared memory, or, if they are too many for it, those of the row.
#[derive(CubeType)]
pub(super) struct Found {
    pub(super) keys: Shared<[u32]>,
    pub(super) ids: Shared<[u32]>,
    /// The least key.
    pub(super) bar: u32,
    /// How many there are.
    pub(super) count: u32,
    /// How many are to be looked at: V if they are those of the row.
    pub(super) length: usize,
}

#[cube]
impl Found {
    /// The key at a place; 0, which is below any bar, if the logit there is not finite.
    pub(super) fn key<F: Float, N: Size>(
        &self,
        logits: &Tensor<Vector<F, N>>,
        row: &Row,
        place: usize,
    ) -> u32 {
        let mut key = 0u32;
        if self.count as usize <= CANDIDATES {
            key = self.keys[place];
        } else {
            let logit = logit_at::<F, N>(logits, row, place);
            if is_finite(logit) {
                key = key_of(logit);
            }
        }
        key
    }

    /// The token at a place.
    pub(super) fn id(&self, place: usize) -> u32 {
        let mut id = place as u32;
        if self.count as usize <= CANDIDATES {
            id = self.ids[place];
        }
        id
    }
}

/// Which candidates are kept: those with a larger key, and those with an equal one and an id that is low enough. Bits beyond the masks
/// do not matter.
#[derive(CubeType, Clone, Copy)]
pub(super) struct Kept {
    key: u32,
    key_mask: u32,
    /// Of the id's complement: lower ids rank higher.
    id: u32,
    id_mask: u32,
}

#[cube]
impl Kept {
    pub(super) fn has(&self, key: u32, id: u32) -> bool {
        let top = key & self.key_mask;
        top > self.key || (top == self.key && (!id & self.id_mask) >= self.id)
    }

    /// Whether it is not known yet.
    fn is_open(&self, key: u32, id: u32) -> bool {
        (key & self.key_mask) == self.key && (!id & self.id_mask) == self.id
    }
}

/// The best `k` of the candidates, or all if they are fewer.
#[cube]
pub(super) fn kept_of<F: Float, N: Size>(
    logits: &Tensor<Vector<F, N>>,
    row: &Row,
    candidates: &Found,
    k: u32,
) -> Kept {
    let histogram = Shared::<[Atomic<u32>]>::new_slice(BINS);
    // The digit that was found, how many of its candidates are kept, and whether these are all of them.
    let mut state = Shared::<[u32]>::new_slice(3usize);
    let mut kept = Kept { key: 0u32, key_mask: 0u32, id: 0u32, id_mask: 0u32 };
    let mut remaining = min(k, candidates.count);
    let mut length = candidates.length;
    if remaining == candidates.count {
        length = 0usize;
    }
    let mut level = 0u32;
    while level < 8u32 {
        let shift = 24u32 - 8u32 * (level & 3u32);
        let mut bin = row.unit;
        while bin < BINS {
            histogram[bin].store(0u32);
            bin += UNITS;
        }
        if row.unit == 0usize {
            state[0] = 0u32;
            state[1] = 0u32;
            state[2] = 0u32;
        }
        sync_cube();
        let mut i = row.unit;
        while i < length {
            let key = candidates.key::<F, N>(logits, row, i);
            if key >= candidates.bar {
                let id = candidates.id(i);
                if kept.is_open(key, id) {
                    let mut digits = key;
                    if level >= 4u32 {
                        digits = !id;
                    }
                    histogram[((digits >> shift) & 255u32) as usize].fetch_add(1u32);
                }
            }
            i += UNITS;
        }
        sync_cube();
        let mut bin = row.unit;
        while bin < BINS && length > 0usize {
            let here = histogram[bin].load();
            let mut above = 0u32;
            let mut other = bin + 1;
            while other < BINS {
                above += histogram[other].load();
                other += 1usize;
            }
            if above < remaining && remaining <= above + here {
                state[0] = bin as u32;
                state[1] = remaining - above;
                state[2] = here;
            }
            bin += UNITS;
        }
        sync_cube();
        if length > 0usize {
            if level < 4u32 {
                kept.key |= state[0] << shift;
                kept.key_mask |= 255u32 << shift;
            } else {
                kept.id |= state[0] << shift;
                kept.id_mask |= 255u32 << shift;
            }
            remaining = state[1];
            if remaining == state[2] {
                length = 0usize;
            }
        }
        sync_cube();
        level += 1u32;
    }
    kept
}
