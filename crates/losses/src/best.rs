//! The best tokens of a row, without a sort of it.

use crate::passes::{BLOCK, block_maxima};

/// A token and its logit as one number: a higher one ranks higher, falling logit, then rising id. Both zeros are one logit.
fn rank(logit: f32, id: usize) -> u64 {
    let bits = (logit + 0.0).to_bits(); // -0 becomes 0
    let key = if bits >> 31 == 1 { !bits } else { bits | 1 << 31 };
    let id = u32::try_from(id).expect("V < 2^31");
    u64::from(key) << 32 | u64::from(!id)
}

fn id_of(rank: u64) -> usize {
    let low = u32::try_from(rank & u64::from(u32::MAX)).expect("32 bits");
    usize::try_from(!low).expect("V < 2^31")
}

/// Buffers that are reused from row to row.
#[derive(Debug, Default)]
pub(crate) struct Best {
    maxima: Vec<f32>,
    bars: Vec<f32>,
    ranks: Vec<u64>,
}

impl Best {
    /// The `k` best tokens of a row, into `ids`, best first; never one of probability zero. Returns the largest logit: +inf if there is
    /// one, -inf if there is none; NaN counts for nothing.
    ///
    /// One pass finds the largest logit of each block. At least k logits reach the k-th largest of these, and few others: only blocks
    /// that reach it are looked at again. Whatever does enters a buffer of 2k; when that is full (ties, or blocks that are fewer than k)
    /// a selection halves it and raises the bar. Equal logits come later with a higher id, so they never pass a full bar.
    pub(crate) fn of(&mut self, logits: &[f32], k: usize, ids: &mut Vec<usize>) -> f32 {
        ids.clear();
        let largest = block_maxima(logits, &mut self.maxima);
        // Without k there is nothing else to find, and a row with +inf is no distribution.
        if k == 0 || largest == f32::INFINITY {
            return largest;
        }
        let mut bar = self.bar(k);
        self.ranks.clear();
        for (block, values) in logits.chunks(BLOCK).enumerate() {
            if self.maxima[block] <= bar {
                continue;
            }
            for (offset, &logit) in values.iter().enumerate() {
                if logit > bar {
                    self.ranks.push(rank(logit, block * BLOCK + offset));
                    if self.ranks.len() == 2 * k {
                        let (_, &mut worst, _) = self.ranks.select_nth_unstable_by(k - 1, |a, b| b.cmp(a));
                        bar = logits[id_of(worst)];
                        self.ranks.truncate(k);
                    }
                }
            }
        }
        if self.ranks.len() > k {
            self.ranks.select_nth_unstable_by(k - 1, |a, b| b.cmp(a));
            self.ranks.truncate(k);
        }
        self.ranks.sort_unstable_by(|a, b| b.cmp(a));
        ids.extend(self.ranks.iter().map(|&rank| id_of(rank)));
        largest
    }

    /// What the k best logits exceed: just below the k-th largest of the blocks' maxima.
    fn bar(&mut self, k: usize) -> f32 {
        let falling = |a: &f32, b: &f32| b.total_cmp(a);
        let mut bar = f32::NEG_INFINITY;
        self.bars.clear();
        for &maximum in &self.maxima {
            if maximum > bar {
                self.bars.push(maximum);
                if self.bars.len() == 2 * k {
                    bar = *self.bars.select_nth_unstable_by(k - 1, falling).1;
                    self.bars.truncate(k);
                }
            }
        }
        if self.bars.len() < k {
            return f32::NEG_INFINITY;
        }
        self.bars.select_nth_unstable_by(k - 1, falling).1.next_down()
    }
}
