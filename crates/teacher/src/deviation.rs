//! How far two labellings of the same positions are apart, beyond what rounding explains.

use std::collections::BTreeMap;

use softshard_labels::{LabelPlan, OptionalColumn, PositionEntries, Selection, SequenceLabels};

/// Mantissa bits of an f32.
const MANTISSA_BITS: u32 = 23;

/// A column as reports name it, in their order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Column {
    /// Which tokens are kept: how far one that only one side keeps is from the cut.
    TokenIds,
    LogProbs,
    /// Draws that went to another token.
    SampleCounts,
    /// The same at all positions together.
    AllSampleCounts,
    LogSumExp,
    TailLogMass,
    Entropy,
    GoldLogProb,
    /// Index of an extra temperature.
    LogPartition(usize),
    /// The same.
    TailAtTemperature(usize),
}

impl Column {
    /// As it is called in the shards.
    pub(crate) fn name(self, plan: &LabelPlan) -> String {
        match self {
            Self::TokenIds => "token_ids".to_owned(),
            Self::LogProbs => "log_probs".to_owned(),
            Self::SampleCounts => "sample_counts".to_owned(),
            Self::AllSampleCounts => "sample_counts (sum)".to_owned(),
            Self::LogSumExp => OptionalColumn::LogSumExp.name().to_owned(),
            Self::TailLogMass => "tail_log_mass".to_owned(),
            Self::Entropy => OptionalColumn::Entropy.name().to_owned(),
            Self::GoldLogProb => OptionalColumn::GoldLogProb.name().to_owned(),
            Self::LogPartition(index) => plan.partition_columns()[index].clone(),
            Self::TailAtTemperature(index) => plan.tail_columns()[index].clone(),
        }
    }
}

/// Mantissa bits that values were rounded to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bits {
    log_probs: u32,
    per_position: u32,
    log_sum_exp: u32,
}

impl Bits {
    /// Nothing was rounded.
    pub(crate) const ALL: Self =
        Self { log_probs: MANTISSA_BITS, per_position: MANTISSA_BITS, log_sum_exp: MANTISSA_BITS };

    /// As the writer rounds labels of the plan.
    pub(crate) fn of(plan: &LabelPlan) -> Self {
        let per_position = plan.position_mantissa_bits;
        let log_sum_exp = if plan.temperatures.is_empty() { per_position } else { MANTISSA_BITS };
        Self { log_probs: plan.mantissa_bits, per_position, log_sum_exp }
    }
}

/// The greatest deviation in a column at one position.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Deviation {
    pub(crate) column: Column,
    /// Index of the position.
    pub(crate) index: usize,
    /// The entry, where the column has entries.
    pub(crate) token: Option<i32>,
    pub(crate) stored: f64,
    pub(crate) live: f64,
    /// Nats; draws for `sample_counts`.
    pub(crate) deviation: f64,
}

/// Deviations of `stored`, which was rounded to `bits`, from exact `live` labels of the same positions.
pub(crate) fn deviations(
    stored: &SequenceLabels,
    live: &SequenceLabels,
    selection: &Selection,
    bits: Bits,
) -> Vec<Deviation> {
    let mut found = Vec::new();
    for (index, (left, right)) in stored.entries().zip(live.entries()).enumerate() {
        let tails = [stored.tail_log_mass[index], live.tail_log_mass[index]].map(f64::from);
        let position = Position { index, left, right, tails, bits };
        found.extend(position.entries(selection));
    }
    let columns = [
        (Column::LogSumExp, &stored.log_sum_exp, &live.log_sum_exp, bits.log_sum_exp),
        (Column::Entropy, &stored.entropy, &live.entropy, bits.per_position),
        (Column::GoldLogProb, &stored.gold_log_prob, &live.gold_log_prob, bits.per_position),
    ];
    let partitions = stored.log_partitions.iter().zip(&live.log_partitions).enumerate();
    let partitions =
        partitions.map(|(index, (stored, live))| (Column::LogPartition(index), stored, live, MANTISSA_BITS));
    let tails =
        stored.tail_log_masses.iter().zip(&live.tail_log_masses).enumerate().map(
            |(index, (stored, live))| (Column::TailAtTemperature(index), stored, live, bits.per_position),
        );
    // Beyond other tokens there is another mass, and which are kept is looked at by itself.
    let same: Vec<bool> = stored
        .entries()
        .zip(live.entries())
        .map(|(left, right)| exact(&left).keys().eq(exact(&right).keys()))
        .collect();
    for (column, stored, live, bits) in columns.into_iter().chain(partitions).chain(tails) {
        for (index, (stored, live)) in stored.iter().zip(live).enumerate() {
            if matches!(column, Column::TailAtTemperature(_)) && !same[index] {
                continue;
            }
            let (stored, live) = (f64::from(*stored), f64::from(*live));
            found.push(Deviation {
                column,
                index,
                token: None,
                stored,
                live,
                deviation: apart(stored, live, bits),
            });
        }
    }
    found
}

/// Entries of one position on both sides.
struct Position<'a> {
    index: usize,
    left: PositionEntries<'a>,
    right: PositionEntries<'a>,
    tails: [f64; 2],
    bits: Bits,
}

impl Position<'_> {
    fn entries(&self, selection: &Selection) -> Vec<Deviation> {
        let mut found = Vec::new();
        let (left, right) = (exact(&self.left), exact(&self.right));
        if selection.is_exact() {
            let common = left.iter().filter_map(|(id, stored)| Some((*id, *stored, *right.get(id)?)));
            let log_probs = common.map(|(id, stored, live)| {
                let deviation = apart(stored, live, self.bits.log_probs);
                self.found(Column::LogProbs, Some(id), [stored, live], deviation)
            });
            found.extend(log_probs.max_by(|a, b| a.deviation.total_cmp(&b.deviation)));
            found.push(self.cut(&left, &right, selection));
            found.push(self.tail(&left, &right));
        }
        if selection.draws().is_some() {
            let moved = self.moved();
            // Without exact entries the tail is that of the drawn ones, which are others then.
            if moved.deviation == 0.0 && !selection.is_exact() {
                found.push(self.tail(&left, &right));
            }
            found.push(moved);
        }
        found
    }

    fn found(
        &self,
        column: Column,
        token: Option<i32>,
        [stored, live]: [f64; 2],
        deviation: f64,
    ) -> Deviation {
        Deviation { column, index: self.index, token, stored, live, deviation }
    }

    /// Tokens that one side alone keeps must lie at the cut of the other side: no more probable than its last one, and,
    /// where a mass decides how many are kept, at that mass.
    fn cut(&self, left: &Exact, right: &Exact, selection: &Selection) -> Deviation {
        let mut worst = self.found(Column::TokenIds, None, [0.0, 0.0], 0.0);
        for (here, there, is_stored) in [(left, right, true), (right, left, false)] {
            let last = there.values().copied().fold(0.0, f64::min);
            for (id, log_prob) in here.iter().filter(|(id, _)| !there.contains_key(id)) {
                let rounding =
                    half_step(*log_prob, self.bits.log_probs).max(half_step(last, self.bits.log_probs));
                let deviation = (log_prob - last - rounding).max(0.0);
                if deviation > worst.deviation {
                    let pair = if is_stored { [*log_prob, last] } else { [last, *log_prob] };
                    worst = self.found(Column::TokenIds, Some(*id), pair, deviation);
                }
            }
        }
        if let Selection::TopP { p, .. } = selection
            && left.len() != right.len()
        {
            let [stored, live] =
                self.aligned_tails(left, right).map(|tail| (1.0 - tail.exp()).max(f64::MIN_POSITIVE));
            // The exact side decides: the mass of what both keep is either side of p there by no more than this.
            let deviation = (live.ln() - p.ln()).abs();
            let rounding = self.tail_rounding(left, right) * (1.0 - stored) / stored;
            let deviation = (deviation - rounding).max(0.0);
            if deviation > worst.deviation {
                worst = self.found(Column::TokenIds, None, [stored, live], deviation);
            }
        }
        worst
    }

    /// Log of the mass beyond the entries that both sides have.
    fn aligned_tails(&self, left: &Exact, right: &Exact) -> [f64; 2] {
        let alone = |here: &Exact, there: &Exact| -> f64 {
            here.iter().filter(|(id, _)| !there.contains_key(id)).map(|(_, log_prob)| log_prob.exp()).sum()
        };
        let [stored, live] = self.tails;
        let with = |tail: f64, mass: f64| if mass > 0.0 { (tail.exp() + mass).ln() } else { tail };
        [with(stored, alone(left, right)), with(live, alone(right, left))]
    }

    /// How far rounding may move the log of the stored side's aligned tail.
    fn tail_rounding(&self, left: &Exact, right: &Exact) -> f64 {
        let alone = left.iter().filter(|(id, _)| !right.contains_key(id));
        let entries = alone.map(|(_, log_prob)| half_step(*log_prob, self.bits.log_probs));
        entries.fold(half_step(self.tails[0], self.bits.per_position), f64::max)
    }

    fn tail(&self, left: &Exact, right: &Exact) -> Deviation {
        let [stored, live] = self.aligned_tails(left, right);
        let deviation = difference(stored, live, self.tail_rounding(left, right));
        self.found(Column::TailLogMass, None, [stored, live], deviation)
    }

    /// Draws that went to other tokens; names the token with the greatest difference.
    fn moved(&self) -> Deviation {
        let (left, right) = (drawn(&self.left), drawn(&self.right));
        let ids = left.keys().chain(right.keys().filter(|id| !left.contains_key(id)));
        let of = |side: &BTreeMap<i32, i32>, id| f64::from(side.get(id).copied().unwrap_or(0));
        let differences = ids.map(|id| (*id, of(&left, id), of(&right, id)));
        let (mut total, mut worst) = (0.0, (None, 0.0, 0.0));
        for (id, stored, live) in differences {
            let difference: f64 = (stored - live).abs();
            total += difference;
            if difference > f64::abs(worst.1 - worst.2) {
                worst = (Some(id), stored, live);
            }
        }
        self.found(Column::SampleCounts, worst.0, [worst.1, worst.2], total / 2.0)
    }
}

/// Exact entries: id → log-probability.
type Exact = BTreeMap<i32, f64>;

fn exact(entries: &PositionEntries<'_>) -> Exact {
    let log_probs = entries.log_probs.iter().copied().map(f64::from);
    entries.token_ids.iter().copied().zip(log_probs).collect()
}

/// Drawn entries: id → count.
fn drawn(entries: &PositionEntries<'_>) -> BTreeMap<i32, i32> {
    let ids = entries.token_ids[entries.log_probs.len()..].iter().copied();
    ids.zip(entries.sample_counts.iter().copied()).collect()
}

/// How far `live` is from every number that rounds to `stored`.
fn apart(stored: f64, live: f64, bits: u32) -> f64 {
    difference(stored, live, half_step(stored, bits))
}

fn difference(stored: f64, live: f64, rounding: f64) -> f64 {
    // Both may be -∞, as the log of no mass is.
    if stored.total_cmp(&live).is_eq() { 0.0 } else { ((stored - live).abs() - rounding).max(0.0) }
}

/// Half the distance between neighbours of `value` that have `bits` mantissa bits: rounding moved it no further.
fn half_step(value: f64, bits: u32) -> f64 {
    if bits >= MANTISSA_BITS || value == 0.0 || !value.is_finite() {
        return 0.0;
    }
    let exponent = value.abs().log2().floor();
    (exponent - f64::from(bits) - 1.0).exp2()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Three tokens of mass 1/2, 1/4, 1/8 at one position.
    fn labels() -> SequenceLabels {
        SequenceLabels {
            source: None,
            input_ids: vec![3, 1],
            positions: vec![1],
            counts: vec![3],
            token_ids: vec![0, 1, 2],
            log_probs: vec![0.5f32.ln(), 0.25f32.ln(), 0.125f32.ln()],
            sample_counts: vec![],
            log_sum_exp: vec![1.0],
            tail_log_mass: vec![0.125f32.ln()],
            entropy: vec![1.0],
            gold_log_prob: vec![0.25f32.ln()],
            log_partitions: vec![],
            tail_log_masses: vec![],
        }
    }

    fn of(stored: &SequenceLabels, live: &SequenceLabels, selection: &Selection, column: Column) -> f64 {
        let bits = Bits { log_probs: 7, per_position: 10, log_sum_exp: 10 };
        let found = deviations(stored, live, selection, bits);
        let of_column = found.into_iter().filter(|one| one.column == column);
        of_column.map(|one| one.deviation).fold(f64::NEG_INFINITY, f64::max)
    }

    const TOP_3: Selection = Selection::TopK { k: 3 };

    #[test]
    fn rounding_is_no_deviation_and_more_is() {
        let (mut stored, live) = (labels(), labels());
        // Neighbours of 7 mantissa bits below 1 are 1/256 apart.
        stored.log_probs[0] += 1.0 / 513.0;
        assert_eq!(of(&stored, &live, &TOP_3, Column::LogProbs), 0.0);
        stored.log_probs[0] += 1.0 / 256.0;
        let found = of(&stored, &live, &TOP_3, Column::LogProbs);
        assert!((found - (1.0 / 513.0 + 1.0 / 512.0)).abs() < 1e-6, "{found}");
        stored.entropy[0] += 0.1;
        let found = of(&stored, &live, &TOP_3, Column::Entropy);
        assert!((found - (0.1 - 1.0 / 2048.0)).abs() < 1e-6, "{found}");
    }

    #[test]
    fn tokens_may_change_places_at_the_cut_and_nowhere_else() {
        let (mut stored, live) = (labels(), labels());
        stored.token_ids[2] = 9;
        assert_eq!(of(&stored, &live, &TOP_3, Column::TokenIds), 0.0, "as probable as the last");
        assert_eq!(of(&stored, &live, &TOP_3, Column::TailLogMass), 0.0, "the mass of what both keep");
        stored.token_ids = vec![9, 1, 2];
        let found = of(&stored, &live, &TOP_3, Column::TokenIds);
        assert!((found - 4f64.ln()).abs() < 0.01, "1/2 is four times the last: {found}");
    }

    #[test]
    fn a_mass_may_be_reached_one_entry_later_only_at_that_mass() {
        let (mut stored, live) = (labels(), labels());
        stored.counts = vec![2];
        stored.token_ids.pop();
        stored.log_probs.pop();
        stored.tail_log_mass = vec![0.25f32.ln()];
        let found = of(&stored, &live, &Selection::TopP { p: 0.75, k: 9 }, Column::TokenIds);
        assert!(found < 1e-6, "two entries have just 0.75: {found}");
        let found = of(&stored, &live, &Selection::TopP { p: 0.8, k: 9 }, Column::TokenIds);
        assert!(found > 0.06, "they have no 0.8: {found}");
        assert!(of(&stored, &live, &Selection::TopP { p: 0.75, k: 9 }, Column::TailLogMass) < 1e-6);
    }

    #[test]
    fn draws_that_moved_are_counted() {
        let mut live = labels();
        live.log_probs.clear();
        live.sample_counts = vec![5, 3, 2];
        let mut stored = live.clone();
        stored.sample_counts = vec![6, 2, 2];
        let sampled = Selection::Sampled { draws: 10 };
        assert_eq!(of(&stored, &live, &sampled, Column::SampleCounts), 1.0);
        assert_eq!(of(&stored, &live, &sampled, Column::TailLogMass), f64::NEG_INFINITY, "of other tokens");
        assert_eq!(of(&live, &live, &sampled, Column::TailLogMass), 0.0);
    }
}
