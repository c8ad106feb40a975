//! The teacher's labels of one row of logits.
//!
//! Legend: K kept entries, V vocabulary. Everything is computed on the CPU, in natural logarithms.

use std::cmp::Ordering;

use crate::best::Best;
use crate::error::HeadError;
use crate::passes::{BLOCK, Sums, exponentiate, partition, sum_f64};
use softshard_products::exp_non_positive;

/// Which tokens of a distribution are kept.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Keep {
    /// The `k` most probable tokens.
    TopK {
        /// Number of tokens, at least 1; a larger number than V keeps the whole vocabulary.
        k: usize,
    },
    /// The smallest set of most probable tokens whose mass reaches `p`, at least one and at most `k`.
    TopP {
        /// Mass to reach, in 0..=1.
        p: f64,
        /// Upper bound of the number of tokens, at least 1.
        k: usize,
    },
    /// Tokens drawn from the whole distribution.
    Sampled {
        /// Number of draws, at least 1.
        draws: u32,
    },
    /// The `k` most probable tokens, and tokens drawn from the others.
    TopKSampled {
        /// Number of exact tokens, at least 1.
        k: usize,
        /// Number of draws, at least 1.
        draws: u32,
    },
}

impl Keep {
    /// The most tokens that are kept exactly of any row.
    pub fn exact(self) -> usize {
        match self {
            Self::TopK { k } | Self::TopP { k, .. } | Self::TopKSampled { k, .. } => k,
            Self::Sampled { .. } => 0,
        }
    }

    /// Number of draws, where tokens are drawn.
    pub fn draws(self) -> Option<u32> {
        match self {
            Self::TopK { .. } | Self::TopP { .. } => None,
            Self::Sampled { draws } | Self::TopKSampled { draws, .. } => Some(draws),
        }
    }
}

/// The teacher's distribution in one position, cut down to some tokens.
///
/// Probabilities are those of the full vocabulary at temperature 1; they are never renormalised.
#[derive(Debug, Clone, PartialEq)]
pub struct RowLabels {
    /// First the exact tokens by falling `log_probs`, then the drawn ones by falling `sample_counts`; equal ones by id.
    pub token_ids: Vec<i32>,
    /// Log probability of each exact token: finite, at most 0.
    pub log_probs: Vec<f32>,
    /// How often each drawn token was drawn; none if no mass was left to draw from.
    pub sample_counts: Vec<i32>,
    /// log Σ exp(z) over the vocabulary.
    pub log_sum_exp: f32,
    /// Log of the mass beyond the exact tokens (beyond the drawn ones, where none is exact); -inf when there is none.
    pub tail_log_mass: f32,
    /// Entropy of the full distribution in nats.
    pub entropy: f32,
    /// Log probability of the token that is really there; -inf when its logit is.
    pub gold_log_prob: f32,
    /// log Σ exp(z / T) for each extra temperature T.
    pub log_partitions: Vec<f32>,
    /// Log of the mass at T beyond the exact tokens for each; none where no token is exact.
    pub tail_log_masses: Vec<f32>,
}

/// Labels of one row of logits `[V]`.
///
/// Draws are systematic: with M the mass to draw from, in the order of the ids, draw j is the token in whose part
/// `(uniform + j)/draws · M` lies. For a `uniform` in 0..1 each draw has the distribution's own probabilities, so
/// `count/draws · M` estimates each probability without bias; counts differ from `draws · p/M` by less than 1, so the
/// variance is below that of independent draws (Kitagawa 1996). `uniform` is not looked at where nothing is drawn.
///
/// A logit of -inf is a token of probability zero: legal, and never kept. Ties go to the lower id. Exponentials are
/// taken in f32 relative to the largest logit (relative error 2e-7) and summed in f64, blocks of a few in f32; the tail is the sum
/// over the tokens that were cut, not a difference. Memory: V/16 bytes, and 4 V where tokens are drawn.
///
/// # Errors
/// [`HeadError::NonFinite`] with row 0 if the logits hold NaN or +inf, or no finite number at all.
///
/// # Panics
/// If k or the number of draws is 0, `uniform` is not in 0..1, a temperature is not positive, or `gold` is outside of
/// the vocabulary.
pub fn select(
    logits: &[f32],
    gold: i32,
    keep: Keep,
    uniform: f64,
    temperatures: &[f32],
) -> Result<RowLabels, HeadError> {
    Selector::default()
        .select(logits, gold, keep, uniform, temperatures)
        .ok_or(HeadError::NonFinite { row: 0 })
}

/// The `k` most probable tokens of one row of logits `[V]`, best first, ties to the lower id: what [`select`] keeps, without any of
/// its numbers. A NaN is never kept, and nothing of a row with +inf.
///
/// # Panics
/// If k is 0.
pub fn top_k(logits: &[f32], k: usize) -> Vec<i32> {
    assert!(k > 0, "a selection keeps at least one token");
    let mut ids = Vec::new();
    Best::default().of(logits, k.min(logits.len()), &mut ids);
    ids.into_iter().map(|id| i32::try_from(id).expect("V < 2^31")).collect()
}

/// Falling log probability, then rising id. Distinct logits may share one f32 log probability, so what is stored decides.
pub(crate) fn by_log_prob<Id: Ord>(a: &(f32, Id), b: &(f32, Id)) -> Ordering {
    b.0.total_cmp(&a.0).then_with(|| a.1.cmp(&b.1))
}

/// Falling count, then rising id.
pub(crate) fn by_count<Id: Ord>(a: &(i32, Id), b: &(i32, Id)) -> Ordering {
    b.0.cmp(&a.0).then_with(|| a.1.cmp(&b.1))
}

/// Buffers that are reused from row to row.
#[derive(Debug, Default)]
pub(crate) struct Selector {
    best: Best,
    /// The exact tokens, best first.
    kept: Vec<usize>,
    /// The tokens that a sum leaves out, ascending.
    without: Vec<usize>,
    /// Where tokens are drawn: exp(z - largest z) of those to draw from, 0 for the others.
    exponentials: Vec<f32>,
}

impl Selector {
    /// As [`select`]; `None` if the row is no distribution.
    pub(crate) fn select(
        &mut self,
        logits: &[f32],
        gold: i32,
        keep: Keep,
        uniform: f64,
        temperatures: &[f32],
    ) -> Option<RowLabels> {
        let (exact, draws) = (keep.exact(), keep.draws());
        assert!(exact > 0 || draws.is_some(), "a selection keeps at least one token");
        let gold = usize::try_from(gold).expect("a gold token is not negative");
        let largest = self.best.of(logits, exact.min(logits.len()), &mut self.kept);
        if !largest.is_finite() {
            return None;
        }
        let rest = self.rest(logits, largest);
        let mut sums = rest;
        sums.add_each(self.kept.iter().map(|&id| logits[id]), largest);
        let total = sums.total();
        if !total.is_finite() {
            return None; // a NaN: it enters no maximum, but every sum
        }
        let log_total = total.ln();
        let row = Row { logits, largest, log_total };

        let mut tail = rest.total();
        if let Keep::TopP { p, .. } = keep {
            tail += self.cut_to_mass(row, p * total);
        }
        let drawn = draws.map_or(Vec::new(), |draws| self.draw(row, draws, uniform));
        if exact == 0 {
            drawn.iter().for_each(|&(_, id)| self.exponentials[id] = 0.0);
            tail = sum_f64(&self.exponentials);
            self.kept.extend(drawn.iter().map(|&(_, id)| id));
        }
        let tail_log_mass = self.tail_log_sum(row, tail, 1.0) - log_total;
        if exact == 0 {
            self.kept.clear();
        }
        let softened: Vec<[f64; 2]> = temperatures.iter().map(|&t| self.at_temperature(row, t)).collect();
        let mut kept: Vec<(f32, usize)> = self.kept.iter().map(|&id| (row.log_prob(id), id)).collect();
        kept.sort_unstable_by(by_log_prob);
        let ids = kept.iter().map(|&(_, id)| id).chain(drawn.iter().map(|&(_, id)| id));
        Some(RowLabels {
            token_ids: ids.map(|id| i32::try_from(id).expect("V < 2^31")).collect(),
            log_probs: kept.into_iter().map(|(log_prob, _)| log_prob).collect(),
            sample_counts: drawn.into_iter().map(|(count, _)| count).collect(),
            log_sum_exp: (f64::from(largest) + log_total) as f32,
            tail_log_mass: (tail_log_mass as f32).min(0.0),
            entropy: (log_total - sums.weighted() / total).max(0.0) as f32,
            gold_log_prob: if logits[gold] == f32::NEG_INFINITY {
                f32::NEG_INFINITY
            } else {
                row.log_prob(gold)
            },
            log_partitions: softened.iter().map(|&[partition, _]| partition as f32).collect(),
            tail_log_masses: softened
                .iter()
                .filter(|_| exact > 0)
                .map(|&[_, tail]| (tail as f32).min(0.0))
                .collect(),
        })
    }

    /// Sums over the tokens that are not kept.
    fn rest(&mut self, logits: &[f32], largest: f32) -> Sums {
        let mut sums = Sums::default();
        self.each_run(logits, |run| sums.add(run, largest));
        sums
    }

    /// The logits that are not kept: whole runs of blocks, and copies of those that hold a kept one.
    fn each_run(&mut self, logits: &[f32], mut visit: impl FnMut(&[f32])) {
        self.without.clone_from(&self.kept);
        self.without.sort_unstable();
        let mut done = 0;
        for kept in self.without.chunk_by(|a, b| a / BLOCK == b / BLOCK) {
            let start = kept[0] / BLOCK * BLOCK;
            let end = (start + BLOCK).min(logits.len());
            visit(&logits[done..start]);
            let mut block = [f32::NEG_INFINITY; BLOCK];
            block[..end - start].copy_from_slice(&logits[start..end]);
            kept.iter().for_each(|id| block[id - start] = f32::NEG_INFINITY);
            visit(&block);
            done = end;
        }
        visit(&logits[done..]);
    }

    /// log Σ exp(z / T), and the log of the share of the tokens that are not kept: of their own sum, as little is left of a
    /// difference where they have little.
    fn at_temperature(&mut self, row: Row<'_>, temperature: f32) -> [f64; 2] {
        assert!(
            temperature > 0.0 && temperature.is_finite(),
            "a temperature is positive, found {temperature}"
        );
        let mut rest = 0.0;
        self.each_run(row.logits, |run| rest += partition(run, row.largest, 1.0 / temperature));
        let wide = f64::from(temperature);
        let relative = |&id: &usize| (f64::from(row.logits[id]) - f64::from(row.largest)) / wide;
        let kept: f64 = self.kept.iter().map(|id| relative(id).exp()).sum();
        let [log_total, tail] = shares(kept, self.tail_log_sum(row, rest, wide));
        [f64::from(row.largest) / wide + log_total, tail]
    }

    /// Keeps the shortest prefix of the kept tokens whose exponentials reach `mass`; returns the sum of the others'.
    fn cut_to_mass(&mut self, row: Row<'_>, mass: f64) -> f64 {
        let mut reached = 0.0;
        let enough = self.kept.iter().position(|&id| {
            reached += row.exponential(id);
            reached >= mass
        });
        let cut = enough.map_or(self.kept.len(), |last| last + 1);
        let sum = self.kept[cut..].iter().map(|&id| row.exponential(id)).sum();
        self.kept.truncate(cut);
        sum
    }

    /// Counts and tokens of systematic draws from the tokens that are not kept, by falling count, then by id. Leaves the exponentials
    /// of these.
    fn draw(&mut self, row: Row<'_>, draws: u32, uniform: f64) -> Vec<(i32, usize)> {
        const BLOCK: usize = 256;
        assert!(draws > 0, "a selection draws at least once");
        assert!((0.0..1.0).contains(&uniform), "draws begin at a number in 0..1, found {uniform}");
        if !self.exponentiate_rest(row) {
            return Vec::new();
        }
        let sums: Vec<f64> = self.exponentials.chunks(BLOCK).map(sum_f64).collect();
        let step = sums.iter().sum::<f64>() / f64::from(draws);
        let mut drawn: Vec<(i32, usize)> = Vec::new();
        let (mut next, mut before) = (0_u32, 0.0);
        let threshold = |next: u32| (uniform + f64::from(next)) * step;
        for (block, sum) in sums.iter().enumerate() {
            // Added up in another order than the block's own sum, so its last token may end short of it.
            if before + sum <= threshold(next) {
                before += sum;
                continue;
            }
            let mut end = before;
            for (offset, &e) in self.exponentials[block * BLOCK..].iter().take(BLOCK).enumerate() {
                end += f64::from(e);
                let first = next;
                // A block's end may be off by a rounding: no token without mass is drawn for it.
                while e > 0.0 && next < draws && threshold(next) < end {
                    next += 1;
                }
                if next > first {
                    let count = i32::try_from(next - first).expect("a plan has fewer draws");
                    drawn.push((count, block * BLOCK + offset));
                }
            }
            before += sum;
        }
        // What rounding kept from the last token that has any mass.
        if next < draws {
            let missing = i32::try_from(draws - next).expect("a plan has fewer draws");
            let last = self.exponentials.iter().rposition(|&e| e > 0.0).expect("the sum is above 0");
            match drawn.iter_mut().find(|(_, id)| *id == last) {
                Some((count, _)) => *count += missing,
                None => drawn.push((missing, last)),
            }
        }
        drawn.sort_unstable_by(by_count);
        drawn
    }

    /// Fills in the exponentials of the tokens that are not kept, relative to the largest of these where they would be too faint to draw
    /// from; false if there is nothing to draw from.
    fn exponentiate_rest(&mut self, row: Row<'_>) -> bool {
        exponentiate(row.logits, row.largest, &mut self.exponentials);
        self.kept.iter().for_each(|&id| self.exponentials[id] = 0.0);
        if sum_f64(&self.exponentials) > TRUSTED {
            return true;
        }
        let mut tail = row.logits.to_vec();
        self.kept.iter().for_each(|&id| tail[id] = f32::NEG_INFINITY);
        let tail_largest = tail.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        if tail_largest == f32::NEG_INFINITY {
            return false;
        }
        exponentiate(&tail, tail_largest, &mut self.exponentials);
        true
    }

    /// log Σ exp((z - largest) / T) over the tokens that are not kept, of which `sum` is the sum in f32's range.
    fn tail_log_sum(&self, row: Row<'_>, sum: f64, temperature: f64) -> f64 {
        if sum > TRUSTED {
            return sum.ln();
        }
        let mut cut = vec![true; row.logits.len()];
        self.kept.iter().for_each(|&id| cut[id] = false);
        let tail = || row.logits.iter().zip(&cut).filter(|&(_, &cut)| cut).map(|(&z, _)| f64::from(z));
        let tail_largest = tail().fold(f64::NEG_INFINITY, f64::max);
        if tail_largest == f64::NEG_INFINITY {
            return f64::NEG_INFINITY;
        }
        let sum: f64 = tail().map(|z| ((z - tail_largest) / temperature).exp()).sum();
        (tail_largest - f64::from(row.largest)) / temperature + sum.ln()
    }
}

/// A row and what is known of it.
#[derive(Clone, Copy)]
struct Row<'a> {
    logits: &'a [f32],
    largest: f32,
    /// log Σ exp(z - largest).
    log_total: f64,
}

impl Row<'_> {
    fn log_prob(self, id: usize) -> f32 {
        narrow(f64::from(self.logits[id]) - f64::from(self.largest) - self.log_total)
    }

    fn exponential(self, id: usize) -> f64 {
        f64::from(exp_non_positive(self.logits[id] - self.largest))
    }
}

/// Below this the exponentials are too close to the end of f32's range to trust the smaller ones.
const TRUSTED: f64 = 1e-20;

/// The log probability as it is stored: finite and at most 0.
pub(crate) fn narrow(log_prob: f64) -> f32 {
    (log_prob as f32).clamp(f32::MIN, 0.0)
}

/// The log of a sum, and the log of the share that the rest has in it: of the sum of what is kept, and the log of that of the rest.
pub(crate) fn shares(kept: f64, rest: f64) -> [f64; 2] {
    let log_total = (kept + rest.exp()).ln();
    // Where the rest is nearly all, what it lacks is what counts.
    let share = if rest.exp() > kept { -(kept / rest.exp()).ln_1p() } else { rest - log_total };
    [log_total, share]
}
