//! How often intervals hold the truth, simulated: what makes an interval one of 95 %.

use rand_chacha::{
    ChaCha8Rng,
    rand_core::{RngCore, SeedableRng},
};
use rayon::prelude::*;

use super::{Part, Question, Resampling, compare, estimate, number, two_levels};

/// Of 95 %: what 800 to 2,000 simulations may show of it, with room for a few documents.
const COVERAGE: std::ops::RangeInclusive<f64> = 0.93..=0.97;

/// A uniform number above 0 and below 1.
fn uniform(random: &mut ChaCha8Rng) -> f64 {
    (f64::from(random.next_u32()) + 0.5) / 4_294_967_296.0
}

/// A number of the standard normal distribution (Box and Muller).
fn normal(random: &mut ChaCha8Rng) -> f64 {
    let radius = (-2.0 * uniform(random).ln()).sqrt();
    radius * (std::f64::consts::TAU * uniform(random)).cos()
}

/// The share of simulations that say yes; each has random numbers of its own.
fn share(simulations: usize, seed: u64, holds: impl Fn(&mut ChaCha8Rng) -> bool + Sync) -> f64 {
    let run = |index: &usize| {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        random.set_stream(*index as u64);
        holds(&mut random)
    };
    number((0..simulations).into_par_iter().filter(run).count()) / number(simulations)
}

/// Documents of one to five rows: two models whose scores share what is easy and hard about a document.
fn documents(
    n: usize,
    random: &mut ChaCha8Rng,
    score: impl Fn(f64, f64, &mut ChaCha8Rng) -> f64,
) -> [Vec<Part>; 2] {
    let mut both = [Vec::with_capacity(n), Vec::with_capacity(n)];
    for _ in 0..n {
        let rows = 1 + random.next_u32() % 5;
        let ease = normal(random);
        for (model, parts) in [0.0, 1.0].into_iter().zip(&mut both) {
            let of_model = ease + 0.5 * normal(random);
            let sum = (0..rows).map(|_| score(model, of_model, random)).sum();
            parts.push(Part { sum, weight: f64::from(rows) });
        }
    }
    both
}

/// Right or wrong, the second model more often right.
fn binary(model: f64, ease: f64, random: &mut ChaCha8Rng) -> f64 {
    let right = 1.0 / (1.0 + (-(ease + 0.5 * model)).exp());
    f64::from(u8::from(uniform(random) < right))
}

/// A likelihood: long tails to one side.
fn skewed(model: f64, ease: f64, random: &mut ChaCha8Rng) -> f64 {
    -(0.5 * ease - 0.2 * model).exp() * uniform(random).ln()
}

const SCORES: [fn(f64, f64, &mut ChaCha8Rng) -> f64; 2] = [binary, skewed];

/// Differences of clustered rows: the mean of very many is the truth.
#[test]
fn paired_differences() {
    for (score, seed) in SCORES.into_iter().zip(1..) {
        let many = documents(2_000_000, &mut ChaCha8Rng::seed_from_u64(seed), score);
        let [from, to] = many.map(|parts| super::mean(&parts).unwrap());
        for (n, simulations, draws) in [(50, 2_000, 800), (150, 1_500, 600), (1_000, 800, 400)] {
            let resampling = Resampling { draws, seed, level: 0.95 };
            let question = Question { resampling, ..Question::default() };
            let found = share(simulations, seed + 10, |random| {
                let [from_parts, to_parts] = documents(n, random, score);
                compare(&from_parts, &to_parts, &question).unwrap().interval.contains(to - from)
            });
            eprintln!("difference, scores {seed}, n {n}: {found}");
            assert!(COVERAGE.contains(&found), "scores {seed}, n {n}: {found}");
        }
    }
}

/// A mean of one model; and what rows drawn as if independent would claim.
#[test]
fn means_by_document_not_by_row() {
    let one = |random: &mut ChaCha8Rng, n: usize| {
        let rows = 4;
        let document = |random: &mut ChaCha8Rng| {
            let ease = normal(random);
            (0..rows).map(|_| ease + 0.5 * normal(random)).collect::<Vec<f64>>()
        };
        (0..n).map(|_| document(random)).collect::<Vec<_>>()
    };
    let resampling = Resampling { draws: 500, ..Resampling::default() };
    let found = |by_row: bool| {
        share(1_000, 3, |random| {
            let documents = one(random, 50);
            let part = |rows: &[f64]| Part { sum: rows.iter().sum(), weight: number(rows.len()) };
            let parts: Vec<Part> = match by_row {
                false => documents.iter().map(|rows| part(rows)).collect(),
                true => documents.iter().flatten().map(|&row| part(&[row])).collect(),
            };
            estimate(&parts, &resampling).unwrap().interval.contains(0.0)
        })
    };
    let (by_document, by_row) = (found(false), found(true));
    eprintln!("mean: by document {by_document}, by row {by_row}");
    assert!(COVERAGE.contains(&by_document), "{by_document}");
    assert!(by_row < 0.8, "{by_row}: rows of a document are not independent");
}

/// Three or five seeds of each recipe on one hundred documents.
#[test]
fn seeds_outside_documents_inside() {
    // Where seeds do not matter, what is estimated of them is still not below 0: the interval is too wide.
    for (seeds, spread, most) in [(3, 0.3, 0.97), (5, 0.1, 0.97), (3, 0.0, 0.99)] {
        let found = share(2_000, 5, |random| {
            let ease: Vec<f64> = (0..100).map(|_| normal(random)).collect();
            let mut recipe = |better: f64| -> Vec<Vec<Part>> {
                let mut seed = || -> Vec<Part> {
                    let shift = better + spread * normal(random);
                    let part = |ease: &f64| Part { sum: ease + shift + 0.7 * normal(random), weight: 1.0 };
                    ease.iter().map(part).collect()
                };
                (0..seeds).map(|_| seed()).collect()
            };
            let (from, to) = (recipe(0.0), recipe(0.2));
            two_levels(&from, &to, 0.95).unwrap().interval.contains(0.2)
        });
        eprintln!("seeds {seeds}, spread {spread}: {found}");
        assert!((0.93..=most).contains(&found), "{seeds} seeds of spread {spread}: {found}");
    }
}

/// A difference of the size that is said to be seen with 80 % power is a win that often, and p below 0.05.
#[test]
fn power() {
    let resampling = Resampling { draws: 500, ..Resampling::default() };
    let question = Question { resampling, ..Question::default() };
    let n = 60;
    // Differences of standard deviation 1: their standard error is known.
    let size = super::smallest_difference(1.0 / number(n).sqrt(), number(n) - 1.0, 0.95).unwrap();
    let test = |by: f64, seed: u64, holds: fn(&super::Comparison) -> bool| {
        share(1_000, seed, |random| {
            let candidate: Vec<Part> =
                (0..n).map(|_| Part { sum: by + normal(random), weight: 1.0 }).collect();
            holds(&compare(&vec![Part { sum: 0.0, weight: 1.0 }; n], &candidate, &question).unwrap())
        })
    };
    let wins = test(size, 7, |found| found.word == super::Word::Win);
    let flips = test(size, 8, |found| found.sign_flip.p < 0.05);
    let false_alarms = test(0.0, 9, |found| found.sign_flip.p < 0.05);
    eprintln!("power: wins {wins}, flips {flips}, false alarms {false_alarms}");
    assert!((0.76..=0.84).contains(&wins), "{wins}");
    assert!((0.76..=0.84).contains(&flips), "{flips}");
    assert!((0.03..=0.07).contains(&false_alarms), "{false_alarms}");
}
