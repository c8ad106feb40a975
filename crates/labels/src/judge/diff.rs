//! Why two label datasets are not interchangeable.

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};

use serde::Serialize;

use crate::dataset::LabelDataset;
use crate::host::parallel;
use crate::values::{Error, SequenceKey, SequenceLabels, json};

/// Keys of the plan that say where labels lie, not what they are; the sequences are compared one by one.
const LAYOUT: [&str; 3] = ["row_group_tokens", "sequences", "shards"];
/// Rows that one thread compares at a time.
const ROWS_AT_ONCE: usize = 256;

/// What differs between a left and a right dataset.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LabelDiff {
    /// Keys of the plans that differ.
    pub plan: Vec<KeyDifference>,
    /// Sequences of each that were compared; a sequence that comes twice counts once.
    pub sequences: [usize; 2],
    /// Sequences whose labels are equal.
    pub equal: usize,
    /// Sequences whose labels differ, in the order of the left dataset.
    pub different: Vec<SequenceDifference>,
    /// Keys of the sequences that the left dataset alone has, hexadecimal.
    pub only_left: Vec<String>,
    /// Keys of the sequences that the right dataset alone has, hexadecimal.
    pub only_right: Vec<String>,
}

/// A key of the plan with two values.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct KeyDifference {
    /// Dotted path.
    pub key: String,
    /// As JSON; long values are cut.
    pub left: String,
    /// As JSON; long values are cut.
    pub right: String,
    /// Whether it says only where labels lie, not what they are.
    pub layout_only: bool,
}

/// A sequence that has other labels on the right.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SequenceDifference {
    /// Key of the sequence, hexadecimal.
    pub key: String,
    /// Its row in each dataset.
    pub rows: [usize; 2],
    /// Positions that are labelled on one side alone.
    pub positions_on_one_side: usize,
    /// Positions that keep other tokens.
    pub positions_with_other_tokens: usize,
    /// Greatest |log_prob| difference over the tokens kept on both sides, nats.
    pub max_log_prob: f32,
    /// Greatest difference of the gold token's log-probability, nats.
    pub max_gold_log_prob: f32,
    /// Columns that differ in any way.
    pub columns: Vec<String>,
}

impl LabelDiff {
    /// Compares two datasets; reads all of both.
    ///
    /// `source` is not compared. Memory: the indices of both datasets and what differs.
    ///
    /// # Errors
    /// [`Error::Bad`] if a row group is damaged; [`Error::Io`] with [`io::ErrorKind::Interrupted`] when `stop` is set.
    pub fn of(left: &LabelDataset, right: &LabelDataset, stop: &AtomicBool) -> Result<Self, Error> {
        let plan = json::changes(&left.manifest().plan, &right.manifest().plan).into_iter();
        let plan = plan.map(|[key, left, right]| {
            let layout_only = LAYOUT.contains(&key.as_str());
            KeyDifference { key, left, right, layout_only }
        });
        let first_rows = |dataset: &LabelDataset| -> Vec<usize> {
            (0..dataset.len()).filter(|row| dataset.find(&dataset.key(*row)) == Some(*row)).collect()
        };
        let (left_rows, right_rows) = (first_rows(left), first_rows(right));
        let (mut pairs, mut only_left) = (Vec::new(), Vec::new());
        for row in &left_rows {
            match right.find(&left.key(*row)) {
                Some(other) => pairs.push([*row, other]),
                None => only_left.push(left.key(*row).to_string()),
            }
        }
        let only_right = right_rows.iter().map(|row| right.key(*row));
        let only_right = only_right.filter(|key| left.find(key).is_none()).map(|key| key.to_string());
        let different = compare([left, right], &pairs, stop)?;
        Ok(Self {
            plan: plan.collect(),
            sequences: [left_rows.len(), right_rows.len()],
            equal: pairs.len() - different.len(),
            different,
            only_left,
            only_right: only_right.collect(),
        })
    }

    /// Whether a student may read either for the other: the same sequences with the same labels, of plans that differ
    /// in layout at most.
    pub fn interchangeable(&self) -> bool {
        self.plan.iter().all(|key| key.layout_only)
            && self.different.is_empty()
            && self.only_left.is_empty()
            && self.only_right.is_empty()
    }
}

/// The pairs of rows whose labels differ.
fn compare(
    datasets: [&LabelDataset; 2],
    pairs: &[[usize; 2]],
    stop: &AtomicBool,
) -> Result<Vec<SequenceDifference>, Error> {
    let chunks: Vec<&[[usize; 2]]> = pairs.chunks(ROWS_AT_ONCE).collect();
    let found = parallel::map(chunks.len(), |index| {
        let mut found = Vec::new();
        for &rows in chunks[index] {
            if stop.load(Ordering::Relaxed) {
                return Err(io::Error::new(io::ErrorKind::Interrupted, "interrupted while comparing").into());
            }
            let [left, right] = [datasets[0].read(rows[0])?, datasets[1].read(rows[1])?];
            found.extend(difference(datasets[0].key(rows[0]), rows, &left, &right));
        }
        Ok(found)
    })?;
    Ok(found.into_iter().flatten().collect())
}

/// What differs between two labels of one sequence.
fn difference(
    key: SequenceKey,
    rows: [usize; 2],
    left: &SequenceLabels,
    right: &SequenceLabels,
) -> Option<SequenceDifference> {
    let columns: Vec<String> = [
        ("positions", left.positions != right.positions),
        ("counts", left.counts != right.counts),
        ("token_ids", left.token_ids != right.token_ids),
        ("log_probs", left.log_probs != right.log_probs),
        ("sample_counts", left.sample_counts != right.sample_counts),
        ("log_sum_exp", left.log_sum_exp != right.log_sum_exp),
        ("tail_log_mass", left.tail_log_mass != right.tail_log_mass),
        ("entropy", left.entropy != right.entropy),
        ("gold_log_prob", left.gold_log_prob != right.gold_log_prob),
        ("log_partitions", left.log_partitions != right.log_partitions),
        ("tail_log_masses", left.tail_log_masses != right.tail_log_masses),
    ]
    .into_iter()
    .filter(|(_, differs)| *differs)
    .map(|(name, _)| name.to_owned())
    .collect();
    if columns.is_empty() {
        return None;
    }
    let [left, right] = [left, right].map(by_position);
    let mut found = SequenceDifference {
        key: key.to_string(),
        rows,
        positions_on_one_side: right.keys().filter(|position| !left.contains_key(position)).count(),
        positions_with_other_tokens: 0,
        max_log_prob: 0.0,
        max_gold_log_prob: 0.0,
        columns,
    };
    for (position, (left, left_gold)) in &left {
        let Some((right, right_gold)) = right.get(position) else {
            found.positions_on_one_side += 1;
            continue;
        };
        found.positions_with_other_tokens += usize::from(!left.keys().eq(right.keys()));
        for (id, log_prob) in left {
            let pair = log_prob.zip(right.get(id).copied().flatten());
            found.max_log_prob = found.max_log_prob.max(distance(pair));
        }
        found.max_gold_log_prob = found.max_gold_log_prob.max(distance(left_gold.zip(*right_gold)));
    }
    Some(found)
}

/// How far two values lie apart, where there are two.
fn distance(pair: Option<(f32, f32)>) -> f32 {
    pair.map_or(0.0, |(one, other)| (one - other).abs())
}

/// The tokens of a position with their log-probabilities (drawn ones have none), and that of its gold token.
type Position = (BTreeMap<i32, Option<f32>>, Option<f32>);

fn by_position(labels: &SequenceLabels) -> BTreeMap<i32, Position> {
    let mut positions = BTreeMap::new();
    for (index, here) in labels.entries().enumerate() {
        let log_probs = here.log_probs.iter().copied().map(Some).chain(std::iter::repeat(None));
        let entries = here.token_ids.iter().copied().zip(log_probs).collect();
        positions.insert(here.position, (entries, labels.gold_log_prob.get(index).copied()));
    }
    positions
}
