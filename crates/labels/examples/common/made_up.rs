//! A made-up teacher with 128,256 tokens whose distributions have the statistics of real ones.
//!
//! A position has some hundred ids for which there is evidence, and a background: all other ids by Zipf's law, so that
//! frequent ids are in most tails. Evidence falls by a power of the rank that differs from position to position: easy
//! ones are nearly certain, hard ones spread over thousands of ids. The distribution is known in full: kept and cut mass,
//! entropy and draws are exact. Tuned to a mean entropy of 2.0 nats and a mean mass of 0.93 in the top 64; the benchmark prints
//! what came out.

use std::collections::BTreeMap;

use softshard_labels::{Selection, SequenceLabels};

/// Tokens of the made-up teacher.
pub(crate) const VOCABULARY: u32 = 128_256;
/// Tokens of a sequence that are not labelled, and that are.
const PROMPT_TOKENS: u32 = 40;
pub(crate) const LABELLED_TOKENS: u32 = 120;
/// Ids with evidence at a position.
const CANDIDATES: usize = 400;
/// Ids that a text is about: half of the evidence of its positions is for them.
const TOPIC: usize = 3_000;

/// Sequences and distributions, the same for the same seed.
pub(crate) struct MadeUpTeacher {
    /// Sums of the background's probabilities up to each id.
    cumulative: Vec<f64>,
    /// Σ p ln p of the background.
    negative_entropy: f64,
    /// The most probable ids of the background, most probable first.
    frequent: Vec<usize>,
}

/// The distribution of one position: weights, to be divided by their sum.
pub(crate) struct Distribution<'a> {
    teacher: &'a MadeUpTeacher,
    /// Ids with evidence and their weights, by id.
    evidence: Vec<(usize, f64)>,
    /// Sums of the weights of `evidence`, in its order.
    cumulative: Vec<f64>,
    /// Sums of the background's weights of the ids in `evidence`.
    replaced: Vec<f64>,
    /// Weight of the whole background, ids with evidence included.
    background: f64,
    /// All weights together.
    total: f64,
}

impl MadeUpTeacher {
    /// Needs some megabytes.
    pub(crate) fn new() -> Self {
        let mut random = Random::new(1);
        let weights: Vec<f64> =
            (0..VOCABULARY).map(|id| (0.8 * random.normal() - 1.05 * f64::from(id + 8).ln()).exp()).collect();
        let total: f64 = weights.iter().sum();
        let probabilities: Vec<f64> = weights.iter().map(|weight| weight / total).collect();
        let mut frequent: Vec<usize> = (0..probabilities.len()).collect();
        frequent.sort_by(|a, b| probabilities[*b].total_cmp(&probabilities[*a]));
        frequent.truncate(CANDIDATES + 1024);
        Self {
            negative_entropy: probabilities.iter().map(|p| p * p.ln()).sum(),
            cumulative: probabilities
                .iter()
                .scan(0.0, |sum, p| {
                    *sum += p;
                    Some(*sum)
                })
                .collect(),
            frequent,
        }
    }

    /// An id of the background.
    pub(crate) fn frequent_id(&self, random: &mut Random) -> usize {
        let target = random.unit() * self.cumulative[self.cumulative.len() - 1];
        self.cumulative.partition_point(|sum| *sum <= target).min(self.cumulative.len() - 1)
    }

    /// What a text is about.
    pub(crate) fn topic(&self, random: &mut Random) -> Vec<usize> {
        (0..TOPIC)
            .map(
                |index| {
                    if index % 2 == 0 { self.frequent_id(random) } else { random.log_uniform(VOCABULARY) }
                },
            )
            .collect()
    }

    /// The distribution of a position in a text about `topic`.
    pub(crate) fn distribution(&self, topic: &[usize], random: &mut Random) -> Distribution<'_> {
        let power = POWER_MEDIAN * (POWER_SPREAD * random.normal()).exp();
        let mut ids = Vec::new();
        while ids.len() < CANDIDATES {
            while ids.len() < CANDIDATES {
                ids.push(match ids.len() % 2 {
                    0 => self.frequent_id(random),
                    _ => topic[random.below(topic.len())],
                });
            }
            ids.sort_unstable();
            ids.dedup();
        }
        // Exponential noise: the sorted weights fall by this power of their rank.
        let mut weight = || (-power * random.unit().max(1e-300).ln()).exp();
        let evidence: Vec<(usize, f64)> = ids.into_iter().map(|id| (id, weight())).collect();
        let sums = evidence.iter().scan(0.0, |sum, (_, weight)| {
            *sum += weight;
            Some(*sum)
        });
        let cumulative: Vec<f64> = sums.collect();
        let sum = cumulative[CANDIDATES - 1];
        let background = sum * BACKGROUND_MEDIAN * (BACKGROUND_SPREAD * random.normal()).exp();
        let replaced = evidence.iter().scan(0.0, |sum, (id, _)| {
            *sum += background * self.probability(*id);
            Some(*sum)
        });
        let replaced: Vec<f64> = replaced.collect();
        let total = sum + background - replaced[CANDIDATES - 1];
        Distribution { teacher: self, evidence, cumulative, replaced, background, total }
    }

    fn probability(&self, id: usize) -> f64 {
        self.cumulative[id] - if id == 0 { 0.0 } else { self.cumulative[id - 1] }
    }
}

const POWER_MEDIAN: f64 = 2.02;
const POWER_SPREAD: f64 = 0.5;
const BACKGROUND_MEDIAN: f64 = 0.02;
const BACKGROUND_SPREAD: f64 = 1.0;

impl Distribution<'_> {
    /// Of an id with evidence.
    fn weight(&self, id: usize) -> Option<f64> {
        let index = self.evidence.binary_search_by_key(&id, |(id, _)| *id).ok()?;
        Some(self.evidence[index].1)
    }

    /// Log-probability of an id.
    pub(crate) fn log_prob(&self, id: usize) -> f64 {
        let weight = self.weight(id).unwrap_or_else(|| self.background * self.teacher.probability(id));
        (weight / self.total).ln()
    }

    /// The `count` most probable ids with their log-probabilities, falling.
    pub(crate) fn top(&self, count: usize) -> Vec<(usize, f64)> {
        let others = self.teacher.frequent.iter().filter(|id| self.weight(**id).is_none()).take(count);
        let ids = self.evidence.iter().map(|(id, _)| id).chain(others);
        let mut top: Vec<(usize, f64)> = ids.map(|id| (*id, self.log_prob(*id))).collect();
        top.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        top.truncate(count);
        top
    }

    /// In nats, of the whole distribution.
    pub(crate) fn entropy(&self) -> f64 {
        // Of weights w = c p of the background: Σ w ln w = c Σ p ln p + c ln c, without the ids that have evidence.
        let c = self.background;
        let mut sum = c * self.teacher.negative_entropy + c * c.ln();
        for (id, weight) in &self.evidence {
            let replaced = c * self.teacher.probability(*id);
            sum += weight * weight.ln() - replaced * replaced.ln();
        }
        self.total.ln() - sum / self.total
    }

    /// Weight of all ids up to this one.
    fn weight_up_to(&self, id: usize) -> f64 {
        let with_evidence = self.evidence.partition_point(|(other, _)| *other <= id);
        let (weight, replaced) = match with_evidence {
            0 => (0.0, 0.0),
            count => (self.cumulative[count - 1], self.replaced[count - 1]),
        };
        weight + self.background * self.teacher.cumulative[id] - replaced
    }

    /// Systematic draws from all ids but those of `exact`, as docs/label-format.md has them: ids and counts, falling.
    pub(crate) fn draws(&self, exact: &[usize], draws: u32, uniform: f64) -> Vec<(usize, i32)> {
        let mut exact = exact.to_vec();
        exact.sort_unstable();
        let sums = exact.iter().scan(0.0, |sum, id| {
            *sum += self.log_prob(*id).exp() * self.total;
            Some(*sum)
        });
        let sums: Vec<f64> = [0.0].into_iter().chain(sums).collect();
        let up_to = |id: usize| self.weight_up_to(id) - sums[exact.partition_point(|other| *other <= id)];
        let last = self.teacher.cumulative.len() - 1;
        let mut counts = BTreeMap::<usize, i32>::new();
        for draw in 0..draws {
            let target = (uniform + f64::from(draw)) / f64::from(draws) * up_to(last);
            let (mut low, mut high) = (0, last);
            while low < high {
                let middle = usize::midpoint(low, high);
                if up_to(middle) > target { high = middle } else { low = middle + 1 }
            }
            // Rounded sums may point at an exact id, which has no weight here.
            while exact.binary_search(&low).is_ok() {
                low += 1;
            }
            *counts.entry(low).or_default() += 1;
        }
        let mut counts: Vec<(usize, i32)> = counts.into_iter().collect();
        counts.sort_by_key(|(id, count)| (-count, *id));
        counts
    }

    /// An id, drawn.
    pub(crate) fn draw(&self, random: &mut Random) -> usize {
        let with_evidence = self.cumulative[self.cumulative.len() - 1];
        let target = random.unit() * self.total;
        if target < with_evidence {
            let index = self.cumulative.partition_point(|sum| *sum <= target);
            return self.evidence[index].0;
        }
        loop {
            let id = self.teacher.frequent_id(random);
            if self.weight(id).is_none() {
                return id;
            }
        }
    }
}

/// SplitMix64 (Steele et al. 2014).
pub(crate) struct Random(u64);

impl Random {
    /// Neighbouring seeds give streams that have nothing in common.
    pub(crate) fn new(seed: u64) -> Self {
        let mut random = Self(seed.wrapping_mul(0xD134_2543_DE82_EF95));
        random.word();
        random
    }

    fn word(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// In 0..1.
    #[expect(clippy::cast_precision_loss, reason = "53 bits fit")]
    pub(crate) fn unit(&mut self) -> f64 {
        (self.word() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// In 0..end.
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "small and not negative"
    )]
    pub(crate) fn below(&mut self, end: usize) -> usize {
        (self.unit() * end as f64) as usize
    }

    /// In 0..end, small numbers most often.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "below `end` and not negative"
    )]
    pub(crate) fn log_uniform(&mut self, end: u32) -> usize {
        (f64::from(end).powf(self.unit()) - 1.0) as usize
    }

    /// Of mean 0 and deviation 1.
    pub(crate) fn normal(&mut self) -> f64 {
        let (radius, angle) = (self.unit().max(1e-300), self.unit());
        (-2.0 * radius.ln()).sqrt() * (std::f64::consts::TAU * angle).cos()
    }
}

/// Exact labels of a sequence.
#[expect(clippy::cast_possible_truncation, reason = "labels are f32")]
pub(crate) fn sequence(teacher: &MadeUpTeacher, seed: u64, selection: &Selection) -> SequenceLabels {
    let mut random = Random::new(seed);
    let topic = teacher.topic(&mut random);
    let id = |id: usize| i32::try_from(id).expect("below the vocabulary size");
    let positions = PROMPT_TOKENS..PROMPT_TOKENS + LABELLED_TOKENS;
    let mut labels = SequenceLabels {
        source: None,
        input_ids: (0..PROMPT_TOKENS).map(|_| id(teacher.frequent_id(&mut random))).collect(),
        positions: positions.map(u32::cast_signed).collect(),
        counts: Vec::new(),
        token_ids: Vec::new(),
        log_probs: Vec::new(),
        sample_counts: Vec::new(),
        log_sum_exp: Vec::new(),
        tail_log_mass: Vec::new(),
        entropy: Vec::new(),
        gold_log_prob: Vec::new(),
        log_partitions: Vec::new(),
        tail_log_masses: Vec::new(),
    };
    for _ in 0..LABELLED_TOKENS {
        let distribution = teacher.distribution(&topic, &mut random);
        // The text is what this teacher would say.
        let gold = distribution.draw(&mut random);
        labels.input_ids.push(id(gold));
        labels.gold_log_prob.push(distribution.log_prob(gold) as f32);
        labels.log_sum_exp.push((20.0 + 3.0 * random.normal()) as f32);
        labels.entropy.push(distribution.entropy() as f32);
        let uniform = random.unit();
        let (exact, drawn) = match *selection {
            Selection::TopK { k } => (top(&distribution, k), Vec::new()),
            Selection::TopP { p, k } => (up_to_mass(top(&distribution, k), p), Vec::new()),
            Selection::Sampled { draws } => (Vec::new(), distribution.draws(&[], draws, uniform)),
            Selection::TopKSampled { k, draws } => {
                let exact = top(&distribution, k);
                let ids: Vec<usize> = exact.iter().map(|(token, _)| *token).collect();
                (exact, distribution.draws(&ids, draws, uniform))
            }
        };
        // Beyond the exact entries, and beyond the drawn ones where none is exact.
        let beyond = if exact.is_empty() { &drawn[..] } else { &[] };
        let drawn_mass: f64 = beyond.iter().map(|(token, _)| distribution.log_prob(*token).exp()).sum();
        let mass = exact.iter().map(|(_, log_prob)| log_prob.exp()).sum::<f64>() + drawn_mass;
        labels.tail_log_mass.push((1.0 - mass).max(1e-30).ln() as f32);
        labels.counts.push(id(exact.len() + drawn.len()));
        labels.token_ids.extend(exact.iter().map(|(token, _)| id(*token)));
        labels.token_ids.extend(drawn.iter().map(|(token, _)| id(*token)));
        labels.log_probs.extend(exact.iter().map(|(_, log_prob)| *log_prob as f32));
        labels.sample_counts.extend(drawn.iter().map(|(_, count)| *count));
    }
    labels
}

fn top(distribution: &Distribution<'_>, k: u32) -> Vec<(usize, f64)> {
    distribution.top(usize::try_from(k).expect("fits"))
}

/// The first entries, until they have this mass.
fn up_to_mass(entries: Vec<(usize, f64)>, p: f64) -> Vec<(usize, f64)> {
    let mut mass = 0.0;
    let reached = entries.iter().position(|(_, log_prob)| {
        mass += log_prob.exp();
        mass >= p
    });
    let kept = reached.map_or(entries.len(), |last| last + 1);
    entries.into_iter().take(kept).collect()
}
