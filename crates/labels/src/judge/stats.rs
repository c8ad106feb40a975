//! What a label dataset holds, in numbers: sizes, entropy, what was kept, and how good its teacher is.

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};

use serde::Serialize;

use crate::dataset::LabelDataset;
use crate::host::parallel;
use crate::shard::LabelGroup;
use crate::values::{Error, LabelsView};

/// Steps in which values are counted: percentiles are as exact as this, in nats or as a share.
const STEPS_PER_UNIT: f64 = 4096.0;
/// Bins of the expected calibration error.
const CALIBRATION_BINS: usize = 15;
/// Most bars of an entropy histogram, and the widths they may have, in nats.
const BARS: f64 = 16.0;
const WIDTHS: [f64; 6] = [0.05, 0.1, 0.25, 0.5, 1.0, 2.0];
/// Borders of the histogram of retained mass: what matters lies close to 1.
const MASS_BORDERS: [f64; 10] = [0.0, 0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 0.999, 0.9999, 1.0];
/// Percentiles that are given.
const PERCENTILES: [u8; 7] = [1, 5, 25, 50, 75, 95, 99];

/// Statistics of a label dataset.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LabelStats {
    /// Data files.
    pub shards: usize,
    /// Sequences.
    pub sequences: u64,
    /// Tokens of the sequences.
    pub input_tokens: u64,
    /// Labelled positions.
    pub labelled_tokens: u64,
    /// Entries kept over all positions.
    pub entries: u64,
    /// Sizes of the data files.
    pub bytes: u64,
    /// Columns in their order, and last what is no column: footers and magic bytes.
    pub columns: Vec<ColumnSize>,
    /// Entropy of the full distribution, nats; none where the plan omits it.
    pub entropy_nats: Option<Spread>,
    /// Probability of the exact entries, or of the drawn ones where none is exact; from the exact tail.
    pub retained_mass: Spread,
    /// Kept entries of a position.
    pub entries_per_position: Spread,
    /// Share of the positions at which the gold token was kept.
    pub gold_kept: f64,
    /// How good the teacher is on the gold tokens.
    pub teacher: TeacherScores,
}

/// Bytes of one column over all shards.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ColumnSize {
    /// Name of the column.
    pub name: String,
    /// In the files.
    pub bytes: u64,
    /// Pages without compression.
    pub uncompressed_bytes: u64,
}

/// How a value is spread over the labelled positions.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Spread {
    /// Mean.
    pub mean: f64,
    /// Least value.
    pub minimum: f64,
    /// Greatest value.
    pub maximum: f64,
    /// Values below which 1, 5, 25, 50, 75, 95 and 99 percent of the positions lie, to 1/4096.
    pub percentiles: BTreeMap<u8, f64>,
    /// Counts by range.
    pub histogram: Vec<Bin>,
}

/// A bar of a histogram.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Bin {
    /// Lower end, included.
    pub lower: f64,
    /// Upper end, excluded but in the last bin.
    pub upper: f64,
    /// Positions.
    pub count: u64,
}

/// The teacher against the gold tokens.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TeacherScores {
    /// Mean negative log-likelihood of the gold tokens, nats; none where the plan omits it.
    pub gold_nll_nats: Option<f64>,
    /// How well the teacher knows what it knows; none where all entries are drawn, as its best guess is not known then.
    pub calibration: Option<Calibration>,
}

/// The teacher's most probable token against the gold token.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Calibration {
    /// Share of positions at which the gold token is more probable than any other. A tie is not right, also where rounding made it.
    pub top_1_accuracy: f64,
    /// Mean probability of the most probable token.
    pub confidence: f64,
    /// Expected calibration error of the most probable token, 15 bins of equal width (arXiv 1706.04599).
    pub expected_error: f64,
    /// The bins.
    pub bins: Vec<CalibrationBin>,
}

/// Positions at which the teacher is similarly sure.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct CalibrationBin {
    /// Lower end of the confidences, excluded.
    pub lower: f64,
    /// Upper end, included.
    pub upper: f64,
    /// Positions.
    pub count: u64,
    /// Mean confidence, 0 if there are none.
    pub confidence: f64,
    /// Share of correct predictions, 0 if there are none.
    pub accuracy: f64,
}

/// Values counted in small steps, so that memory does not grow with the dataset.
#[derive(Clone, Debug)]
struct Tally {
    counts: BTreeMap<u64, u64>,
    steps_per_unit: f64,
    sum: f64,
    minimum: f64,
    maximum: f64,
}

impl Tally {
    fn new(steps_per_unit: f64) -> Self {
        let (minimum, maximum) = (f64::INFINITY, f64::NEG_INFINITY);
        Self { counts: BTreeMap::new(), steps_per_unit, sum: 0.0, minimum, maximum }
    }

    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "values are small, from 0")]
    fn add(&mut self, value: f64) {
        *self.counts.entry((value * self.steps_per_unit) as u64).or_default() += 1;
        self.sum += value;
        self.minimum = self.minimum.min(value);
        self.maximum = self.maximum.max(value);
    }

    fn merge(&mut self, other: &Self) {
        for (step, count) in &other.counts {
            *self.counts.entry(*step).or_default() += count;
        }
        self.sum += other.sum;
        self.minimum = self.minimum.min(other.minimum);
        self.maximum = self.maximum.max(other.maximum);
    }

    fn value(&self, step: u64) -> f64 {
        float(step) / self.steps_per_unit
    }

    fn count(&self) -> u64 {
        self.counts.values().sum()
    }

    fn percentile(&self, percent: u8) -> f64 {
        let wanted = float(self.count()) * f64::from(percent) / 100.0;
        let mut below = 0;
        for (step, count) in &self.counts {
            below += count;
            if float(below) >= wanted {
                return self.value(*step).clamp(self.minimum, self.maximum);
            }
        }
        self.maximum
    }

    /// A spread with a histogram between these borders.
    fn spread(&self, borders: &[f64]) -> Spread {
        let last = borders.len().saturating_sub(2);
        let bin = |(index, pair): (usize, &[f64])| {
            let inside = |value: f64| value >= pair[0] && (value < pair[1] || index == last);
            let steps = self.counts.iter().filter(|(step, _)| inside(self.value(**step)));
            Bin { lower: pair[0], upper: pair[1], count: steps.map(|(_, count)| count).sum() }
        };
        Spread {
            mean: self.sum / float(self.count()).max(1.0),
            minimum: self.minimum,
            maximum: self.maximum,
            percentiles: PERCENTILES.map(|percent| (percent, self.percentile(percent))).into(),
            histogram: borders.windows(2).enumerate().map(bin).collect(),
        }
    }

    /// Borders of bars of one width, from 0 to the greatest value.
    fn even_borders(&self, widths: &[f64]) -> Vec<f64> {
        let fits = |width: &&f64| self.maximum / **width < BARS;
        let width = widths.iter().find(fits).copied().unwrap_or((self.maximum / BARS).ceil());
        let mut borders = vec![0.0];
        while borders.len() < 2 || borders[borders.len() - 1] <= self.maximum {
            borders.push(width * float(u64::try_from(borders.len()).expect("a length fits 64 bits")));
        }
        borders
    }
}

/// What one thread counts.
struct Counts {
    entropy: Tally,
    mass: Tally,
    entries: Tally,
    gold_kept: u64,
    /// Positions with a known gold log-probability, and its negative sum.
    gold: (u64, f64),
    /// Positions, correct ones, sum of confidences.
    bins: [(u64, u64, f64); CALIBRATION_BINS],
}

impl Counts {
    fn new() -> Self {
        Self {
            entropy: Tally::new(STEPS_PER_UNIT),
            mass: Tally::new(STEPS_PER_UNIT * 16.0),
            entries: Tally::new(1.0),
            gold_kept: 0,
            gold: (0, 0.0),
            bins: [(0, 0, 0.0); CALIBRATION_BINS],
        }
    }

    fn add(&mut self, labels: &LabelsView<'_>) {
        let gold = crate::values::tokens_at(labels.input_ids, labels.positions);
        for (index, (&gold, here)) in gold.iter().zip(labels.entries()).enumerate() {
            self.mass.add((1.0 - f64::from(labels.tail_log_mass[index]).exp()).clamp(0.0, 1.0));
            self.entries.add(float(u64::try_from(here.token_ids.len()).expect("a length fits 64 bits")));
            self.gold_kept += u64::from(here.token_ids.contains(&gold));
            if let Some(nats) = labels.entropy.get(index) {
                self.entropy.add(f64::from(*nats).max(0.0));
            }
            if let Some(log_prob) = labels.gold_log_prob.get(index) {
                self.gold = (self.gold.0 + 1, self.gold.1 - f64::from(*log_prob));
            }
            if let Some(log_prob) = here.log_probs.first() {
                let ties = here.log_probs.get(1) == Some(log_prob);
                self.guess(f64::from(*log_prob).exp(), here.token_ids[0] == gold && !ties);
            }
        }
    }

    /// Counts a most probable token.
    fn guess(&mut self, confidence: f64, is_right: bool) {
        let bin =
            (1..CALIBRATION_BINS).find(|bin| confidence <= border(*bin)).unwrap_or(CALIBRATION_BINS) - 1;
        let (positions, right, sum) = &mut self.bins[bin];
        *positions += 1;
        *right += u64::from(is_right);
        *sum += confidence;
    }

    fn merge(&mut self, other: &Self) {
        self.entropy.merge(&other.entropy);
        self.mass.merge(&other.mass);
        self.entries.merge(&other.entries);
        self.gold_kept += other.gold_kept;
        self.gold = (self.gold.0 + other.gold.0, self.gold.1 + other.gold.1);
        for (bin, other) in self.bins.iter_mut().zip(&other.bins) {
            *bin = (bin.0 + other.0, bin.1 + other.1, bin.2 + other.2);
        }
    }

    fn teacher(&self) -> TeacherScores {
        let (known, sum) = self.gold;
        TeacherScores {
            gold_nll_nats: (known > 0).then(|| sum / float(known)),
            calibration: self.calibration(),
        }
    }

    fn calibration(&self) -> Option<Calibration> {
        let guesses: u64 = self.bins.iter().map(|bin| bin.0).sum();
        let share = |sum: f64| sum / float(guesses);
        let bin = |(index, (count, correct, sum)): (usize, &(u64, u64, f64))| {
            let divisor = float(*count).max(1.0);
            let (lower, upper) = (border(index), border(index + 1));
            let (confidence, accuracy) = (sum / divisor, float(*correct) / divisor);
            CalibrationBin { lower, upper, count: *count, confidence, accuracy }
        };
        let bins: Vec<CalibrationBin> = self.bins.iter().enumerate().map(bin).collect();
        let gap = |bin: &CalibrationBin| float(bin.count) * (bin.accuracy - bin.confidence).abs();
        (guesses > 0).then(|| Calibration {
            top_1_accuracy: share(float(self.bins.iter().map(|bin| bin.1).sum())),
            confidence: share(self.bins.iter().map(|bin| bin.2).sum()),
            expected_error: share(bins.iter().map(gap).sum()),
            bins,
        })
    }
}

impl LabelStats {
    /// Reads all of a dataset, its shards in parallel. Same dataset, same numbers, on any machine.
    ///
    /// # Errors
    /// [`Error::Bad`] if a row group is damaged; [`Error::Io`] with [`io::ErrorKind::Interrupted`] when `stop` is set.
    pub fn of(dataset: &LabelDataset, stop: &AtomicBool) -> Result<Self, Error> {
        let shards = dataset.shards();
        let counted = parallel::map(shards.len(), |shard| {
            let _share = shards[shard].largest_share();
            let (mut counts, mut labels) = (Counts::new(), LabelGroup::default());
            for group in 0..shards[shard].groups() {
                if stop.load(Ordering::Relaxed) {
                    return Err(
                        io::Error::new(io::ErrorKind::Interrupted, "interrupted while counting").into()
                    );
                }
                dataset.decode((shard, group), &mut labels)?;
                (0..labels.sequences.rows()).for_each(|row| counts.add(&labels.row(row)));
            }
            Ok(counts)
        })?;
        let mut counts = Counts::new();
        counted.iter().for_each(|shard| counts.merge(shard));
        let manifest = dataset.manifest();
        let positions = float(manifest.labelled_tokens).max(1.0);
        Ok(Self {
            shards: shards.len(),
            sequences: manifest.rows,
            input_tokens: manifest.input_tokens,
            labelled_tokens: manifest.labelled_tokens,
            entries: counts.entries.counts.iter().map(|(entries, count)| entries * count).sum(),
            bytes: manifest.shards.iter().map(|shard| shard.bytes).sum(),
            columns: column_sizes(dataset),
            entropy_nats: (counts.entropy.count() > 0)
                .then(|| counts.entropy.spread(&counts.entropy.even_borders(&WIDTHS))),
            retained_mass: counts.mass.spread(&MASS_BORDERS),
            entries_per_position: counts
                .entries
                .spread(&counts.entries.even_borders(&[1.0, 2.0, 4.0, 8.0, 16.0])),
            gold_kept: float(counts.gold_kept) / positions,
            teacher: counts.teacher(),
        })
    }
}

/// Bytes of the columns over all shards, from the footers, and of the rest.
fn column_sizes(dataset: &LabelDataset) -> Vec<ColumnSize> {
    let mut columns: Vec<ColumnSize> = Vec::new();
    for shard in dataset.shards() {
        for (index, (name, [bytes, uncompressed_bytes])) in shard.column_sizes().into_iter().enumerate() {
            match columns.get_mut(index) {
                Some(column) => {
                    column.bytes += bytes;
                    column.uncompressed_bytes += uncompressed_bytes;
                }
                None => columns.push(ColumnSize { name, bytes, uncompressed_bytes }),
            }
        }
    }
    let all: u64 = dataset.manifest().shards.iter().map(|shard| shard.bytes).sum();
    let rest = all.saturating_sub(columns.iter().map(|column| column.bytes).sum());
    columns.push(ColumnSize { name: "(footers)".to_owned(), bytes: rest, uncompressed_bytes: rest });
    columns
}

fn border(bin: usize) -> f64 {
    let float = |count: usize| float(u64::try_from(count).expect("a count fits 64 bits"));
    float(bin) / float(CALIBRATION_BINS)
}

#[expect(clippy::cast_precision_loss, reason = "counts stay below 2^53")]
fn float(count: u64) -> f64 {
    count as f64
}
