//! The teacher's labels of one row of logits.
//!
//! Legend: K kept entries, V vocabulary. Everything is computed on the CPU, in natural logarithms.

use std::cmp::Ordering;

use crate::error::HeadError;
use crate::exponential::exp_non_positive;

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
}

/// Labels of one row of logits `[V]`.
///
/// Draws are systematic: with M the mass to draw from, in the order of the ids, draw j is the token in whose part
/// `(uniform + j)/draws · M` lies. For a `uniform` in 0..1 each draw has the distribution's own probabilities, so
/// `count/draws · M` estimates each probability without bias; counts differ from `draws · p/M` by less than 1, so the
/// variance is below that of independent draws (Kitagawa 1996). `uniform` is not looked at where nothing is drawn.
///
/// A logit of -inf is a token of probability zero: legal, and never kept. Ties go to the lower id. Exponentials are
/// taken in f32 relative to the largest logit (relative error 2e-7) and summed in f64; the tail is the sum over the
/// tokens that were cut, not a difference. Memory: 4 V bytes.
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

#[derive(Debug, Clone, Copy)]
struct Candidate {
    logit: f32,
    id: usize,
}

/// Falling logit, then rising id. Logits are not NaN here: `scan` takes none.
fn by_rank(a: &Candidate, b: &Candidate) -> Ordering {
    b.logit.partial_cmp(&a.logit).unwrap_or(Ordering::Equal).then(a.id.cmp(&b.id))
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
    candidates: Vec<Candidate>,
    /// exp(z - largest z) of the row.
    exponentials: Vec<f32>,
}

/// Sums of one row relative to its largest logit, m.
struct Sums {
    /// Σ exp(z - m), at least 1.
    total: f64,
    /// Σ exp(z - m)·(z - m).
    weighted: f64,
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
        let largest =
            if exact > 0 { self.scan(logits, exact.min(logits.len())) } else { self.without(logits) };
        if !largest.is_finite() {
            return None;
        }
        let sums = self.exponentiate(logits, largest);
        if !sums.total.is_finite() {
            return None; // a NaN: it enters no maximum, but every sum
        }
        let largest = f64::from(largest);
        let log_total = sums.total.ln();
        let log_prob = |logit: f32| narrow(f64::from(logit) - largest - log_total);

        if let Keep::TopP { p, .. } = keep {
            self.cut_to_mass(p * sums.total);
        }
        let mut tail_log_mass = self.tail_log_sum(logits, largest) - log_total;
        let drawn = draws.map_or(Vec::new(), |draws| self.draw(logits, largest, draws, uniform));
        if exact == 0 {
            self.candidates.extend(drawn.iter().map(|&(_, id)| Candidate { logit: logits[id], id }));
            tail_log_mass = self.tail_log_sum(logits, largest) - log_total;
            self.candidates.clear();
        }
        let mut kept: Vec<(f32, usize)> = self.candidates.iter().map(|c| (log_prob(c.logit), c.id)).collect();
        kept.sort_unstable_by(by_log_prob);
        let ids = kept.iter().map(|&(_, id)| id).chain(drawn.iter().map(|&(_, id)| id));
        Some(RowLabels {
            token_ids: ids.map(|id| i32::try_from(id).expect("V < 2^31")).collect(),
            log_probs: kept.into_iter().map(|(log_prob, _)| log_prob).collect(),
            sample_counts: drawn.into_iter().map(|(count, _)| count).collect(),
            log_sum_exp: (largest + log_total) as f32,
            tail_log_mass: (tail_log_mass as f32).min(0.0),
            entropy: (log_total - sums.weighted / sums.total).max(0.0) as f32,
            gold_log_prob: if logits[gold] == f32::NEG_INFINITY {
                f32::NEG_INFINITY
            } else {
                log_prob(logits[gold])
            },
            log_partitions: temperatures.iter().map(|&t| log_partition(logits, largest, t)).collect(),
        })
    }

    /// Leaves no candidate and returns the largest logit.
    fn without(&mut self, logits: &[f32]) -> f32 {
        self.candidates.clear();
        maximum(logits)
    }

    /// Leaves the `k` best candidates by rank and returns the largest logit.
    ///
    /// Whatever exceeds the worst of the best k so far enters a buffer of 2k; when that is full, a selection (not a
    /// sort) halves it and raises the bar. Equal logits come later with a higher id, so they never pass a full bar.
    fn scan(&mut self, logits: &[f32], k: usize) -> f32 {
        const BLOCK: usize = 64;
        self.candidates.clear();
        self.candidates.reserve(2 * k);
        let mut bar = f32::NEG_INFINITY;
        let mut largest = f32::NEG_INFINITY;
        for (block, values) in logits.chunks(BLOCK).enumerate() {
            let block_largest = maximum(values);
            if block_largest > largest {
                largest = block_largest;
            }
            if block_largest <= bar {
                continue;
            }
            for (offset, &logit) in values.iter().enumerate() {
                if logit > bar {
                    self.candidates.push(Candidate { logit, id: block * BLOCK + offset });
                    if self.candidates.len() == 2 * k {
                        let (_, worst, _) = self.candidates.select_nth_unstable_by(k - 1, by_rank);
                        bar = worst.logit;
                        self.candidates.truncate(k);
                    }
                }
            }
        }
        self.candidates.sort_unstable_by(by_rank);
        self.candidates.truncate(k);
        largest
    }

    fn exponentiate(&mut self, logits: &[f32], largest: f32) -> Sums {
        self.exponentials.clear();
        self.exponentials.extend(logits.iter().map(|&z| exp_non_positive(z - largest)));
        let mut total = [0.0_f64; LANES];
        let mut weighted = [0.0_f64; LANES];
        let mut add = |lane: usize, e: f32, z: f32| {
            // 0 · (-inf) would be NaN; a NaN logit still reaches `total`.
            let distance = if e > 0.0 { z - largest } else { 0.0 };
            total[lane] += f64::from(e);
            weighted[lane] += f64::from(e * distance);
        };
        let (es, zs) = (self.exponentials.chunks_exact(LANES), logits.chunks_exact(LANES));
        for (&e, &z) in es.remainder().iter().zip(zs.remainder()) {
            add(0, e, z);
        }
        for (e, z) in es.zip(zs) {
            for lane in 0..LANES {
                add(lane, e[lane], z[lane]);
            }
        }
        Sums { total: total.iter().sum(), weighted: weighted.iter().sum() }
    }

    /// Keeps the shortest prefix of the candidates whose exponentials reach `mass`.
    fn cut_to_mass(&mut self, mass: f64) {
        let mut reached = 0.0;
        let enough = self.candidates.iter().position(|c| {
            reached += f64::from(self.exponentials[c.id]);
            reached >= mass
        });
        if let Some(last) = enough {
            self.candidates.truncate(last + 1);
        }
    }

    /// Counts and tokens of systematic draws from the tokens that are no candidates, by falling count, then by id.
    ///
    /// The candidates' exponentials were taken out by [`Selector::tail_log_sum`].
    fn draw(&mut self, logits: &[f32], largest: f64, draws: u32, uniform: f64) -> Vec<(i32, usize)> {
        const BLOCK: usize = 256;
        assert!(draws > 0, "a selection draws at least once");
        assert!((0.0..1.0).contains(&uniform), "draws begin at a number in 0..1, found {uniform}");
        if !self.rescale_faint_tail(logits, largest) {
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

    /// Makes the exponentials of the rest relative to its own largest logit where they are too faint to draw from; false
    /// if there is nothing to draw from.
    fn rescale_faint_tail(&mut self, logits: &[f32], largest: f64) -> bool {
        if sum_f64(&self.exponentials) > TRUSTED {
            return true;
        }
        let mut tail = logits.to_vec();
        self.candidates.iter().for_each(|candidate| tail[candidate.id] = f32::NEG_INFINITY);
        let tail_largest = maximum(&tail);
        debug_assert!(f64::from(tail_largest) <= largest, "the largest logit is a candidate");
        if tail_largest == f32::NEG_INFINITY {
            return false;
        }
        self.exponentials.clear();
        self.exponentials.extend(tail.iter().map(|&z| exp_non_positive(z - tail_largest)));
        true
    }

    /// log Σ exp(z - largest) over the tokens that are no candidates; overwrites the candidates' exponentials.
    fn tail_log_sum(&mut self, logits: &[f32], largest: f64) -> f64 {
        for candidate in &self.candidates {
            self.exponentials[candidate.id] = 0.0;
        }
        let sum = sum_f64(&self.exponentials);
        if sum > TRUSTED {
            return sum.ln();
        }
        let mut cut = vec![true; logits.len()];
        for candidate in &self.candidates {
            cut[candidate.id] = false;
        }
        let tail = || logits.iter().zip(&cut).filter(|&(_, &cut)| cut).map(|(&z, _)| f64::from(z));
        let tail_largest = tail().fold(f64::NEG_INFINITY, f64::max);
        if tail_largest == f64::NEG_INFINITY {
            return f64::NEG_INFINITY;
        }
        tail_largest - largest + tail().map(|z| (z - tail_largest).exp()).sum::<f64>().ln()
    }
}

/// Below this the exponentials are too close to the end of f32's range to trust the smaller ones.
const TRUSTED: f64 = 1e-20;

/// Independent accumulators of a sum: as many as fill the vector units.
const LANES: usize = 8;

/// The log probability as it is stored: finite and at most 0.
pub(crate) fn narrow(log_prob: f64) -> f32 {
    (log_prob as f32).clamp(f32::MIN, 0.0)
}

/// log Σ exp(z / temperature).
fn log_partition(logits: &[f32], largest: f64, temperature: f32) -> f32 {
    assert!(temperature > 0.0 && temperature.is_finite(), "a temperature is positive, found {temperature}");
    let (inverse, shift) = (1.0 / temperature, largest as f32);
    let mut sums = [0.0_f64; LANES];
    let chunks = logits.chunks_exact(LANES);
    for &z in chunks.remainder() {
        sums[0] += f64::from(exp_non_positive((z - shift) * inverse));
    }
    for chunk in chunks {
        for (sum, &z) in sums.iter_mut().zip(chunk) {
            *sum += f64::from(exp_non_positive((z - shift) * inverse));
        }
    }
    (largest / f64::from(temperature) + sums.iter().sum::<f64>().ln()) as f32
}

fn sum_f64(values: &[f32]) -> f64 {
    let mut sums = [0.0_f64; LANES];
    let chunks = values.chunks_exact(LANES);
    sums[0] += chunks.remainder().iter().map(|&value| f64::from(value)).sum::<f64>();
    for chunk in chunks {
        for (sum, &value) in sums.iter_mut().zip(chunk) {
            *sum += f64::from(value);
        }
    }
    sums.iter().sum()
}

/// The largest value that is not NaN, or -inf.
fn maximum(values: &[f32]) -> f32 {
    let greater = |a: f32, b: f32| if b > a { b } else { a };
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let chunks = values.chunks_exact(LANES);
    for &value in chunks.remainder() {
        lanes[0] = greater(lanes[0], value);
    }
    for chunk in chunks {
        for (lane, &value) in lanes.iter_mut().zip(chunk) {
            *lane = greater(*lane, value);
        }
    }
    lanes.into_iter().fold(f32::NEG_INFINITY, greater)
}
