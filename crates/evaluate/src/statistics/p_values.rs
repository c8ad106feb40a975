//! How often chance alone makes a difference as large.

use rand_chacha::rand_core::RngCore;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::{
    BadValues, Part, Resampling, all,
    parts::{check, ratio},
    same_length,
};

/// Of so many documents that differ all flips are tried; of more, as many as there are draws.
const ALL_FLIPS: usize = 16;
/// Differences that are equal but for the order of their sums, over the sum of what is flipped.
const TIES: f64 = 1e-10;

/// The sign-flip test of a difference of means.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct SignFlip {
    /// The share of flips with a difference at least as large, either way.
    pub p: f64,
    /// Whether all flips were tried.
    pub exact: bool,
}

/// The sign-flip test (R. A. Fisher's, of pairs): were the two the same, each document's scores could as well
/// be swapped. All flips where 16 documents or fewer differ; else `draws` of them, and p = (1 + as large) /
/// (1 + draws).
///
/// # Errors
/// Other documents, fewer than two, a number that is not finite.
pub fn sign_flip(
    baseline: &[Part],
    candidate: &[Part],
    resampling: &Resampling,
) -> Result<SignFlip, BadValues> {
    same_length("documents of the candidate", baseline.len(), candidate.len())?;
    check(baseline)?;
    check(candidate)?;
    resampling.check(baseline.len())?;
    let flips = Flips::of(baseline, candidate);
    if flips.swaps.len() <= ALL_FLIPS {
        return Ok(SignFlip { p: flips.exact(), exact: true });
    }
    let as_large = (0..resampling.draws).into_par_iter().filter(|&draw| {
        let mut random = resampling.stream(draw);
        let mut totals = flips.totals;
        for swaps in flips.swaps.chunks(64) {
            let mut bits = random.next_u64();
            for swap in swaps {
                if bits & 1 == 1 {
                    totals.swap(swap, 1.0);
                }
                bits >>= 1;
            }
        }
        flips.as_large(&totals)
    });
    let as_large = super::number(as_large.count());
    Ok(SignFlip { p: (1.0 + as_large) / (1.0 + super::number(resampling.draws)), exact: false })
}

/// What the documents that differ change when their scores are swapped.
struct Flips {
    totals: Totals,
    swaps: Vec<Part>,
    /// From here on a difference is as large as the one that was found.
    threshold: f64,
}

#[derive(Clone, Copy)]
struct Totals {
    baseline: Part,
    candidate: Part,
}

impl Totals {
    /// Swaps a document's scores (`by` 1), or back (-1).
    fn swap(&mut self, swap: &Part, by: f64) {
        self.baseline.sum += by * swap.sum;
        self.baseline.weight += by * swap.weight;
        self.candidate.sum -= by * swap.sum;
        self.candidate.weight -= by * swap.weight;
    }

    fn difference(&self) -> f64 {
        self.candidate.sum / self.candidate.weight - self.baseline.sum / self.baseline.weight
    }
}

impl Flips {
    fn of(baseline: &[Part], candidate: &[Part]) -> Self {
        let total = |parts: &[Part]| Part {
            sum: parts.iter().map(|part| part.sum).sum(),
            weight: parts.iter().map(|part| part.weight).sum(),
        };
        let totals = Totals { baseline: total(baseline), candidate: total(candidate) };
        let swap =
            |(from, to): (&Part, &Part)| Part { sum: to.sum - from.sum, weight: to.weight - from.weight };
        let differs = |swap: &Part| swap.sum != 0.0 || swap.weight != 0.0;
        let swaps: Vec<Part> = baseline.iter().zip(candidate).map(swap).filter(differs).collect();
        let difference = ratio(candidate.iter()) - ratio(baseline.iter());
        let moved: f64 = swaps.iter().map(|swap| swap.sum.abs()).sum();
        let threshold = difference.abs() - TIES * moved / totals.baseline.weight.min(totals.candidate.weight);
        Self { totals, swaps, threshold }
    }

    /// A flip that leaves one side without any weight has no difference: it counts as one that is as large.
    fn as_large(&self, totals: &Totals) -> bool {
        let difference = totals.difference().abs();
        difference >= self.threshold || difference.is_nan()
    }

    /// Over all flips, each one swap away from the one before (Gray code).
    fn exact(&self) -> f64 {
        let all = 1_u64 << self.swaps.len();
        let (mut totals, mut as_large) = (self.totals, 0_u64);
        for flip in 1..=all {
            as_large += u64::from(self.as_large(&totals));
            let gray = (flip ^ (flip >> 1)) & (all - 1);
            if let Some(swap) = self.swaps.get(flip.trailing_zeros() as usize) {
                totals.swap(swap, if gray >> flip.trailing_zeros() & 1 == 1 { 1.0 } else { -1.0 });
            }
        }
        #[expect(clippy::cast_precision_loss, reason = "there are 2^16 at most")]
        let p = as_large as f64 / all as f64;
        p
    }
}

/// McNemar's exact test of two that were each right or wrong on the same rows: `only_baseline` rows only the
/// one had right, `only_candidate` only the other (Q. McNemar, 1947; exact by the binomial distribution with
/// one half). Rows are independent: one of each document.
pub fn mcnemar(only_baseline: u64, only_candidate: u64) -> f64 {
    let (fewer, n) = (only_baseline.min(only_candidate), only_baseline + only_candidate);
    #[expect(clippy::cast_precision_loss, reason = "counts are far below 2^53")]
    let (mut k, n) = (fewer as f64, n as f64);
    // P(X ≤ k) from its largest term down; each is k / (n - k + 1) of the one above it.
    let log_term = libm::lgamma(n + 1.0) - libm::lgamma(k + 1.0) - libm::lgamma(n - k + 1.0);
    let (mut term, mut sum) = (1.0, 0.0);
    while term > sum * 1e-18 {
        sum += term;
        term *= k / (n - k + 1.0);
        k -= 1.0;
    }
    (2.0 * sum * (log_term - n * std::f64::consts::LN_2).exp()).min(1.0)
}

/// Holm's adjustment of the p values of one table (S. Holm, 1979): the i-th smallest of m times m - i + 1, at
/// most 1, and none below a smaller one's.
///
/// # Errors
/// A p below 0, above 1 or not a number.
pub fn holm(p_values: &[f64]) -> Result<Vec<f64>, BadValues> {
    all("p value", "0 to 1", p_values, |p| (0.0..=1.0).contains(&p))?;
    let mut order: Vec<usize> = (0..p_values.len()).collect();
    order.sort_by(|&a, &b| p_values[a].total_cmp(&p_values[b]));
    let mut adjusted = vec![0.0; p_values.len()];
    let mut largest = 0.0_f64;
    for (rank, &index) in order.iter().enumerate() {
        largest = largest.max(p_values[index] * super::number(p_values.len() - rank)).min(1.0);
        adjusted[index] = largest;
    }
    Ok(adjusted)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(scores: &[f64]) -> Vec<Part> {
        scores.iter().map(|&sum| Part { sum, weight: 1.0 }).collect()
    }

    #[test]
    fn flips_by_hand() {
        let usual = Resampling::default();
        // Differences 1, 2, 3: of eight flips only all and none sum to 6.
        let found = sign_flip(&parts(&[0.0; 4]), &parts(&[1.0, 2.0, 3.0, 0.0]), &usual).unwrap();
        assert_eq!(found, SignFlip { p: 0.25, exact: true });
        // 1, 1, -1 sum to 1 or -1 in six flips, to 3 or -3 in two.
        let found = sign_flip(&parts(&[0.0, 0.0, 1.0]), &parts(&[1.0, 1.0, 0.0]), &usual).unwrap();
        assert_eq!(found.p, 1.0);
        // Nothing differs.
        let found = sign_flip(&parts(&[1.0, 0.0]), &parts(&[1.0, 0.0]), &usual).unwrap();
        assert_eq!(found, SignFlip { p: 1.0, exact: true });
        assert!(sign_flip(&parts(&[1.0, 0.0]), &parts(&[1.0, 0.0, 1.0]), &usual).is_err());
    }

    #[test]
    fn drawn_flips_come_near_all_flips() {
        let candidate: Vec<f64> = (0..16).map(|n| f64::from(n * 7 % 16) - 5.5).collect();
        let exact = sign_flip(&parts(&[0.0; 16]), &parts(&candidate), &Resampling::default()).unwrap();
        assert!(exact.exact);
        // One more that is next to equal: now flips are drawn.
        let candidate = [candidate, vec![1e-9]].concat();
        let drawn = sign_flip(&parts(&[0.0; 17]), &parts(&candidate), &Resampling::default()).unwrap();
        assert!(!drawn.exact && (drawn.p - exact.p).abs() < 0.02, "{drawn:?} {exact:?}");
        // The smallest that draws can say.
        let drawn = sign_flip(&parts(&[0.0; 30]), &parts(&[1.0; 30]), &Resampling::default()).unwrap();
        assert_eq!(drawn.p, 1.0 / 10_001.0);
    }

    #[test]
    fn weights_are_swapped_with_their_sums() {
        let of = |sum, weight| Part { sum, weight };
        let baseline = [of(1.0, 4.0), of(1.0, 2.0)];
        let candidate = [of(3.0, 3.0), of(2.0, 2.0)];
        // 1 - 1/3 as they are; first swapped: 3/6 - 4/5; second: 4/5 - 3/6... only all and none are as large.
        let found = sign_flip(&baseline, &candidate, &Resampling::default()).unwrap();
        assert_eq!(found, SignFlip { p: 0.5, exact: true });
    }

    #[test]
    fn nothing_discordant_and_no_p() {
        assert_eq!((mcnemar(0, 0), mcnemar(5, 5), mcnemar(1, 0)), (1.0, 1.0, 1.0));
        assert_eq!(holm(&[]).unwrap(), [0.0; 0]);
        let found = holm(&[0.5, f64::NAN]).unwrap_err().to_string();
        assert_eq!(found, "p value 1: expected 0 to 1, found NaN");
    }
}
