//! The temperature at which a teacher's probabilities fit held-out tokens best.
//!
//! Temperature scaling (arXiv 1706.04599): one number T for all logits, chosen to minimise the negative log-likelihood of
//! held-out tokens, `mean(log Σ exp(z/T) - z_gold/T)`. It changes how sure the teacher is, never what it prefers.

use anyhow::Result;
use burn::tensor::Tensor;
use rand::{SeedableRng, seq::index};
use rand_chacha::ChaCha8Rng;
use softshard_labels::{Error, Sequence, SequenceDataset};
use softshard_losses::{HeadOptions, Keep, label_rows};

use crate::labeller::{Labeller, head_failed};

/// Held-out tokens that the temperature is fitted on, or all, if there are fewer.
const TOKENS: usize = 8192;
/// Temperatures that are looked at, and how many of them at a time.
const COLDEST: f64 = 0.1;
const HOTTEST: f64 = 10.0;
const POINTS: usize = 21;
/// Times the range is narrowed down to the neighbours of the best point.
const ROUNDS: usize = 4;
/// Of what is kept: machines whose sums have another order are to find the same number.
const STEPS_PER_UNIT: f64 = 1000.0;

/// Fits the temperature, in steps of a thousandth.
///
/// # Errors
/// Logits that are not finite, or held-out tokens that fit better the colder or hotter the teacher is.
pub(crate) fn fit(labeller: &Labeller, held_out: &SequenceDataset) -> Result<f64> {
    let sequences = sample(held_out)?;
    let states = States::of(labeller, &sequences)?;
    let (mut low, mut high) = (COLDEST.ln(), HOTTEST.ln());
    let mut best = 0.0;
    for _ in 0..ROUNDS {
        let step = (high - low) / (POINTS - 1) as f64;
        let points: Vec<f64> = (0..POINTS).map(|point| low + step * point as f64).collect();
        let losses = states.negative_log_likelihoods(labeller, &points)?;
        let lowest = (0..POINTS).min_by(|a, b| losses[*a].total_cmp(&losses[*b])).expect("there are points");
        best = points[lowest];
        (low, high) = (best - step, best + step);
    }
    let temperature = (best.exp() * STEPS_PER_UNIT).round() / STEPS_PER_UNIT;
    if temperature <= COLDEST || temperature >= HOTTEST {
        let expected =
            format!("a temperature between {COLDEST} and {HOTTEST} that fits held-out tokens best");
        let hint = "is this teacher trained, and are the held-out sequences made with its tokenizer?";
        return Err(Error::bad("`teacher.calibration`", expected, temperature).hint(hint).into());
    }
    let [before, after] = states.negative_log_likelihoods(labeller, &[0.0, temperature.ln()])?[..] else {
        unreachable!("two temperatures, two losses");
    };
    tracing::info!(
        "calibration: temperature {temperature:.3}, negative log-likelihood of {} held-out tokens {before:.4} → {after:.4} nats",
        states.labelled,
    );
    Ok(temperature)
}

/// Sequences drawn with the seed of the dataset until they have enough labelled tokens.
fn sample(held_out: &SequenceDataset) -> Result<Vec<Sequence>> {
    let mut random = ChaCha8Rng::seed_from_u64(held_out.manifest().info.seed);
    let (mut sample, mut labelled) = (Vec::new(), 0);
    for row in index::sample(&mut random, held_out.len(), held_out.len().min(TOKENS)) {
        if labelled >= TOKENS {
            break;
        }
        let read = held_out.read_range(row..row + 1)?;
        labelled += read.iter().map(|sequence| sequence.positions.len()).sum::<usize>();
        sample.extend(read);
    }
    Ok(sample)
}

/// Hidden states of the held-out tokens, by batch: every temperature is tried on the same ones.
struct States<'a> {
    batches: Vec<(Vec<&'a Sequence>, Tensor<2>)>,
    labelled: usize,
}

impl<'a> States<'a> {
    fn of(labeller: &Labeller, sequences: &'a [Sequence]) -> Result<Self> {
        let (_, members) = labeller.batches(sequences);
        let mut batches = Vec::new();
        for block in labeller.blocks(&members) {
            batches.extend(labeller.states(block)?);
        }
        let labelled = sequences.iter().map(|sequence| sequence.positions.len()).sum();
        Ok(Self { batches, labelled })
    }

    /// Mean over the tokens at each temperature, given by its logarithm.
    fn negative_log_likelihoods(&self, labeller: &Labeller, log_temperatures: &[f64]) -> Result<Vec<f64>> {
        #[expect(clippy::cast_possible_truncation, reason = "logits are f32")]
        let temperatures: Vec<f32> = log_temperatures.iter().map(|log| log.exp() as f32).collect();
        let options = HeadOptions {
            keep: Keep::TopK { k: 1 },
            logit_scale: 1.0,
            temperatures: &temperatures,
            rows_per_chunk: labeller.pace.rows_per_chunk,
        };
        let mut sums = vec![0.0; temperatures.len()];
        for (batch, hidden) in &self.batches {
            let gold: Vec<i32> = batch.iter().flat_map(|sequence| sequence.gold()).collect();
            let labels = label_rows(hidden.clone(), labeller.decoder.head(), &gold, &[], &options);
            let labels = labels.map_err(|error| head_failed(error, batch))?;
            for ((sum, temperature), partitions) in
                sums.iter_mut().zip(&temperatures).zip(&labels.log_partitions)
            {
                for (row, partition) in partitions.iter().enumerate() {
                    let logit = f64::from(labels.gold_log_prob[row]) + f64::from(labels.log_sum_exp[row]);
                    *sum += f64::from(*partition) - logit / f64::from(*temperature);
                }
            }
        }
        Ok(sums.into_iter().map(|sum| sum / self.labelled as f64).collect())
    }
}
