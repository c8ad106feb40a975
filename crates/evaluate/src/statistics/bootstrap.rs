//! Documents drawn again and again, and intervals from what comes out.

use rand_chacha::{
    ChaCha8Rng,
    rand_core::{RngCore, SeedableRng},
};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::{
    BadValues,
    distributions::{normal_cdf, t_quantile},
    number,
};

/// Resamples without any weight that are drawn again before it is an error.
const TRIES: usize = 100;

/// From where to where a value may be.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Interval {
    /// Lower end.
    pub lower: f64,
    /// Upper end.
    pub upper: f64,
}

impl Interval {
    /// Whether it has a value inside or at its ends.
    pub fn contains(&self, value: f64) -> bool {
        self.lower <= value && value <= self.upper
    }
}

/// How documents are drawn.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Resampling {
    /// How often as many documents as there are are drawn with replacement.
    pub draws: usize,
    /// Seed of the draws. Resamples of two statistics with one seed have the same documents.
    pub seed: u64,
    /// How often an interval is to hold the true value, 0 to 1.
    pub level: f64,
}

impl Default for Resampling {
    fn default() -> Self {
        Self { draws: 10_000, seed: 0, level: 0.95 }
    }
}

impl Resampling {
    /// A statistic of each resample of `documents` documents, given their numbers, in the order of the draws:
    /// the same bytes on any number of threads, as each draw has a random stream of its own.
    ///
    /// # Errors Fewer than two documents, no draws, a level that is none; a statistic that is not finite in
    /// 100 draws one after the other (of few documents with a weight a resample may have none: it is drawn
    /// again).
    pub fn replicates(
        &self,
        documents: usize,
        statistic: impl Fn(&[usize]) -> f64 + Sync,
    ) -> Result<Vec<f64>, BadValues> {
        self.check(documents)?;
        let replicate = |drawn: &mut Vec<usize>, index: usize| {
            let mut random = self.stream(index);
            for _ in 0..TRIES {
                drawn.clear();
                drawn.extend((0..documents).map(|_| below(documents, &mut random)));
                let value = statistic(drawn);
                if value.is_finite() {
                    return value;
                }
            }
            f64::NAN
        };
        let draws = (0..self.draws).into_par_iter();
        let values: Vec<f64> = draws.map_init(|| Vec::with_capacity(documents), replicate).collect();
        super::all("resample", "a finite statistic", &values, f64::is_finite)?;
        Ok(values)
    }

    /// The random numbers of one draw.
    pub(super) fn stream(&self, draw: usize) -> ChaCha8Rng {
        let mut random = ChaCha8Rng::seed_from_u64(self.seed);
        random.set_stream(draw as u64);
        random
    }

    /// What can be drawn, and an interval made of it.
    pub(super) fn check(&self, documents: usize) -> Result<(), BadValues> {
        for (what, expected, found) in [("documents", 2, documents), ("draws", 1, self.draws)] {
            if found < expected {
                return Err(BadValues::TooFew { what, expected, found });
            }
        }
        super::all("level", "above 0 and below 1", &[self.level], |level| 0.0 < level && level < 1.0)
    }

    /// The quantiles of the replicates, a little further out than the level says: Φ(√(n/(n-1)) · t) below and
    /// above, t of n-1 degrees of freedom (Hesterberg, "What teachers should know about the bootstrap", 2015,
    /// arXiv 1411.5279). Of few documents the plain quantiles hold the truth too seldom, as if the deviation
    /// were divided by n and not n-1.
    pub fn percentile(&self, replicates: Vec<f64>, documents: usize) -> Interval {
        let tail = self.tail(documents);
        let [lower, upper] = quantiles(replicates, [tail, 1.0 - tail]);
        Interval { lower, upper }
    }

    /// The percentile interval mirrored at the estimate: for errors of calibration, which are too large in a
    /// sample, and in a resample as much larger again.
    pub fn basic(&self, estimate: f64, replicates: Vec<f64>, documents: usize) -> Interval {
        let Interval { lower, upper } = self.percentile(replicates, documents);
        Interval { lower: 2.0 * estimate - upper, upper: 2.0 * estimate - lower }
    }

    /// The share of the replicates below an interval.
    pub(super) fn tail(&self, documents: usize) -> f64 {
        let n = number(documents);
        normal_cdf((n / (n - 1.0)).sqrt() * t_quantile((1.0 - self.level) / 2.0, n - 1.0))
    }
}

/// A number from 0 to `end` - 1; how often each comes differs by less than `end` / 2^32 of it.
fn below(end: usize, random: &mut ChaCha8Rng) -> usize {
    ((u64::from(random.next_u32()) * end as u64) >> 32) as usize
}

/// Quantiles of values, linear between neighbours (the 7th definition of Hyndman and Fan, numpy's).
fn quantiles<const N: usize>(mut values: Vec<f64>, shares: [f64; N]) -> [f64; N] {
    values.par_sort_unstable_by(f64::total_cmp);
    shares.map(|share| {
        let place = share * number(values.len() - 1);
        let lower = values[place.floor() as usize];
        lower + (values[place.ceil() as usize] - lower) * place.fract()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::statistics::{Part, estimate};

    #[test]
    fn any_number_of_threads_draws_the_same() {
        let parts: Vec<Part> =
            (0..37).map(|n| Part { sum: f64::from(n * n % 11), weight: f64::from(1 + n % 3) }).collect();
        let with = |threads: usize, seed: u64| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let resampling = Resampling { draws: 500, seed, level: 0.95 };
            let found = pool.install(|| estimate(&parts, &resampling)).unwrap();
            serde_json::to_string(&found).unwrap()
        };
        assert_eq!(with(1, 7), with(4, 7));
        assert_eq!(with(1, 7), with(3, 7));
        assert_ne!(with(1, 7), with(1, 8));
    }

    #[test]
    fn all_documents_are_drawn_alike() {
        let mut random = ChaCha8Rng::seed_from_u64(1);
        let mut counts = [0_u32; 7];
        (0..70_000).for_each(|_| counts[below(7, &mut random)] += 1);
        assert!(counts.iter().all(|count| (9_600..10_400).contains(count)), "{counts:?}");
    }

    #[test]
    fn a_resample_without_weight_is_drawn_again() {
        // Of eight documents two have facts; one resample of ten has neither.
        let mut parts = vec![Part::default(); 8];
        parts[2] = Part { sum: 1.0, weight: 2.0 };
        parts[5] = Part { sum: 3.0, weight: 3.0 };
        let found = estimate(&parts, &Resampling::default()).unwrap();
        assert_eq!((found.value, found.interval), (0.8, Interval { lower: 0.5, upper: 1.0 }));
        let never = Resampling::default().replicates(3, |_| f64::NAN);
        assert_eq!(never.unwrap_err().to_string(), "resample 0: expected a finite statistic, found NaN");
    }

    #[test]
    fn nothing_to_draw_is_refused() {
        let draw = |resampling: Resampling, documents| resampling.replicates(documents, |_| 0.0).unwrap_err();
        let usual = Resampling::default();
        assert_eq!(draw(usual, 1).to_string(), "expected at least 2 documents, found 1");
        assert_eq!(
            draw(Resampling { draws: 0, ..usual }, 9).to_string(),
            "expected at least 1 draws, found 0"
        );
        for level in [0.0, 1.0, 95.0, f64::NAN] {
            let message = draw(Resampling { level, ..usual }, 9).to_string();
            assert_eq!(message, format!("level 0: expected above 0 and below 1, found {level}"));
        }
    }
}
