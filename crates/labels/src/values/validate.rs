//! What sequences and labels must hold, checked when they are written and again when they are read.

use std::fmt;

use super::error::Error;
use super::labels::{LabelLimits, SequenceLabels};
use super::selection::OptionalColumn;
use super::view::LabelsView;

/// Kept and cut mass may differ from 1 by this much: sums of f32 exponentials, and a tail from f64.
const MASS_TOLERANCE: f64 = 1e-3;
/// Log-probabilities of one token, computed twice from f32 logits, relative to their size (at least 1 nat).
const GOLD_TOLERANCE: f32 = 1e-3;

/// Checks the ids and the loss mask of a sequence.
pub(crate) fn check_sequence(input_ids: &[i32], positions: &[i32], vocab_size: u32) -> Result<(), Error> {
    ids("input_ids", input_ids, vocab_size)?;
    if positions.is_empty() {
        return Err(Error::bad("positions", "at least one labelled position", "none"));
    }
    let length =
        i32::try_from(input_ids.len()).map_err(|_| Error::bad("input_ids", "fewer ids", input_ids.len()))?;
    let mut previous = 0;
    for (index, &position) in positions.iter().enumerate() {
        if position <= previous || position >= length {
            let expected = format!("a position above {previous} and below {length}");
            return Err(Error::bad(format_args!("positions[{index}]"), expected, position));
        }
        previous = position;
    }
    Ok(())
}

/// Checks labels of one plan; keeps scratch memory between sequences.
pub(crate) struct Validator<'a> {
    limits: &'a LabelLimits,
    /// For each id the stamp of the position that had it last. Stamps and not bits: nothing is cleared behind a
    /// position, and neighbouring ids do not wait for each other.
    seen: Vec<u8>,
    /// Of the position in hand.
    stamp: u8,
}

/// Ids from here on are compared by sorting, so that memory does not grow with what a file says.
const STAMPED_IDS: u32 = 1 << 20;

impl<'a> Validator<'a> {
    pub(crate) fn new(limits: &'a LabelLimits) -> Self {
        Self { limits, seen: Vec::new(), stamp: 0 }
    }

    /// See [`SequenceLabels::validate`].
    pub(crate) fn labels(&mut self, labels: &LabelsView<'_>) -> Result<(), Error> {
        check_sequence(labels.input_ids, labels.positions, self.limits.input_vocab_size)?;
        lengths(labels, self.limits)?;
        let stamped = self.limits.label_vocab_size.min(STAMPED_IDS);
        self.seen.resize(usize::try_from(stamped).expect("at most 2^20"), 0);
        if !self.all_entries_hold(labels) {
            self.entries(labels)?;
        }
        let at = |field: &str, values: &[f32], holds: fn(f32) -> bool, expected: &str| match values
            .iter()
            .position(|value| !holds(*value))
        {
            None => Ok(()),
            Some(index) => {
                let place = format!("position {} {field}", labels.positions[index]);
                Err(Error::bad(place, expected, values[index]))
            }
        };
        at("log_sum_exp", labels.log_sum_exp, f32::is_finite, "a finite number")?;
        at("tail_log_mass", labels.tail_log_mass, |mass| mass <= 0.0, "at most 0")?;
        at("entropy", labels.entropy, |nats| nats.is_finite() && nats >= 0.0, "at least 0 and finite")?;
        at("gold_log_prob", labels.gold_log_prob, is_log_prob, "at most 0 and finite")?;
        for (index, partition) in labels.log_partitions.iter().enumerate() {
            at(&format!("log_partitions[{index}]"), partition, f32::is_finite, "a finite number")?;
        }
        for (index, tail) in labels.tail_log_masses.iter().enumerate() {
            at(&format!("tail_log_masses[{index}]"), tail, |mass| mass <= 0.0, "at most 0")?;
        }
        Ok(())
    }

    /// The fast way through the entries of all positions. Where it says no, [`Validator::entries`] decides.
    fn all_entries_hold(&mut self, labels: &LabelsView<'_>) -> bool {
        let draws = self.limits.draws;
        labels.entries().all(|here| {
            let (exact, drawn) = here.token_ids.split_at(here.log_probs.len());
            // Ids that differ and have a stamp are ids of the vocabulary.
            self.differ(here.token_ids)
                && all_fall(exact, here.log_probs)
                && draws.is_none_or(|draws| draws_hold(drawn, here.sample_counts, draws))
        })
    }

    /// Checks the entries of each position and names what is wrong.
    fn entries(&mut self, labels: &LabelsView<'_>) -> Result<(), Error> {
        ids("token_ids", labels.token_ids, self.limits.label_vocab_size)?;
        for here in labels.entries() {
            let (exact, drawn) = here.token_ids.split_at(here.log_probs.len());
            entries(exact, here.log_probs)
                .and_then(|()| self.unique(here.token_ids))
                .and_then(|()| match self.limits.draws {
                    Some(wanted) => draws(drawn, here.sample_counts, wanted),
                    None => Ok(()),
                })
                .map_err(|error| error.within(format_args!("position {}", here.position)))?;
        }
        Ok(())
    }

    /// Whether all ids have a stamp and none comes twice.
    fn differ(&mut self, ids: &[i32]) -> bool {
        if self.stamp == u8::MAX {
            self.seen.fill(0);
            self.stamp = 0;
        }
        self.stamp += 1;
        let (stamp, mut differ) = (self.stamp, true);
        for &id in ids {
            let id = usize::try_from(id.cast_unsigned()).unwrap_or(usize::MAX);
            let Some(seen) = self.seen.get_mut(id) else { return false };
            differ &= *seen != stamp;
            *seen = stamp;
        }
        differ
    }

    /// Checks that no id comes twice.
    fn unique(&mut self, ids: &[i32]) -> Result<(), Error> {
        if self.differ(ids) {
            return Ok(());
        }
        let mut sorted = ids.to_vec();
        sorted.sort_unstable();
        match sorted.windows(2).find(|pair| pair[0] == pair[1]) {
            None => Ok(()),
            Some(pair) => Err(Error::bad("token_ids", "every id once", format_args!("{} twice", pair[0]))),
        }
    }
}

/// See [`SequenceLabels::validate_exact`]; the labels passed [`labels`] before.
pub(crate) fn exact(labels: &SequenceLabels) -> Result<(), Error> {
    for (row, here) in labels.entries().enumerate() {
        let Some(&least) = here.log_probs.last() else { continue };
        let position = here.position;
        let index = usize::try_from(position).expect("checked against the sequence");

        let kept: f64 = here.log_probs.iter().map(|log_prob| f64::from(log_prob.exp())).sum();
        let mass = kept + f64::from(labels.tail_log_mass[row]).exp();
        if (mass - 1.0).abs() > MASS_TOLERANCE {
            let place = format!("position {position} log_probs and tail_log_mass");
            return Err(Error::bad(place, "a mass of 1 in all", format_args!("{mass:.4}")));
        }

        let Some(&gold) = labels.gold_log_prob.get(row) else { continue };
        let tolerance = GOLD_TOLERANCE * gold.abs().max(1.0);
        let place = || format!("position {position} gold_log_prob of id {}", labels.input_ids[index]);
        let hint = "labels at a position describe the token that stands there, given the tokens before it";
        let entry = here.token_ids.iter().position(|id| *id == labels.input_ids[index]);
        match entry.and_then(|entry| here.log_probs.get(entry)) {
            Some(log_prob) if (log_prob - gold).abs() > tolerance => {
                return Err(Error::bad(place(), log_prob, gold).hint(hint));
            }
            None if gold > least + tolerance => {
                let expected = format!("at most {least}, the least that was kept");
                return Err(Error::bad(place(), expected, gold).hint(hint));
            }
            _ => {}
        }
    }
    Ok(())
}

/// All lengths follow from `positions`, `counts` and the plan.
fn lengths(labels: &LabelsView<'_>, limits: &LabelLimits) -> Result<(), Error> {
    let positions = labels.positions.len();
    same("counts", positions, labels.counts.len())?;
    let [min, max] = limits.entries_per_position.map(i64::from);
    let (mut entries, mut exact) = (0usize, 0usize);
    for (&count, position) in labels.counts.iter().zip(labels.positions) {
        let within = (min..=max).contains(&i64::from(count));
        let Some(count) = usize::try_from(count).ok().filter(|_| within) else {
            let expected = if min == max { min.to_string() } else { format!("{min}..={max}") };
            return Err(Error::bad(format_args!("position {position} count"), expected, count));
        };
        entries += count;
        exact += limits.exact(count);
    }
    same("token_ids", entries, labels.token_ids.len())?;
    same("log_probs", exact, labels.log_probs.len())?;
    same("sample_counts", entries - exact, labels.sample_counts.len())?;
    same("tail_log_mass", positions, labels.tail_log_mass.len())?;
    let optional = |column, field: &str, found: usize| {
        same(field, if limits.has(column) { positions } else { 0 }, found)
    };
    optional(OptionalColumn::LogSumExp, "log_sum_exp", labels.log_sum_exp.len())?;
    optional(OptionalColumn::Entropy, "entropy", labels.entropy.len())?;
    optional(OptionalColumn::GoldLogProb, "gold_log_prob", labels.gold_log_prob.len())?;
    for (field, columns, temperatures) in [
        ("log_partitions", &labels.log_partitions, limits.temperatures),
        ("tail_log_masses", &labels.tail_log_masses, limits.tails()),
    ] {
        if columns.len() != temperatures {
            return Err(Error::bad(field, format_args!("{temperatures} temperatures"), columns.len()));
        }
        for (index, column) in columns.iter().enumerate() {
            same(format_args!("{field}[{index}]"), positions, column.len())?;
        }
    }
    Ok(())
}

fn same(field: impl fmt::Display, expected: usize, found: usize) -> Result<(), Error> {
    if expected == found { Ok(()) } else { Err(Error::bad(field, format_args!("{expected} values"), found)) }
}

fn ids(field: &str, ids: &[i32], vocab_size: u32) -> Result<(), Error> {
    let outside = |id: &i32| id.cast_unsigned() >= vocab_size;
    match ids.iter().position(outside) {
        None => Ok(()),
        Some(index) => {
            let expected = format!("an id in 0..{vocab_size}");
            Err(Error::bad(format_args!("{field}[{index}]"), expected, ids[index]))
        }
    }
}

fn is_log_prob(value: f32) -> bool {
    value.is_finite() && value <= 0.0
}

/// One position: log-probabilities at most 0 and falling, ties by id.
fn entries(ids: &[i32], log_probs: &[f32]) -> Result<(), Error> {
    let ordered = |(p, id): (&[f32], &[i32])| p[0] > p[1] || (p[0] == p[1] && id[0] < id[1]);
    let pairs = || log_probs.windows(2).zip(ids.windows(2));
    if all_fall(ids, log_probs) {
        return Ok(());
    }
    if let Some(index) = log_probs.iter().position(|value| !is_log_prob(*value)) {
        return Err(Error::bad(format_args!("log_probs[{index}]"), "at most 0 and finite", log_probs[index]));
    }
    let before = pairs()
        .position(|pair| !ordered(pair))
        .expect("every value is a log-probability, so two are not in order");
    let expected = format!("entries after {} of id {}, falling, ties by id", log_probs[before], ids[before]);
    let found = format!("{} of id {}", log_probs[before + 1], ids[before + 1]);
    Err(Error::bad(format_args!("log_probs[{}]", before + 1), expected, found))
}

/// Whether counts fall, ties by id, from 1 on, and add up; there are none where nothing was left to draw.
fn draws_hold(ids: &[i32], counts: &[i32], draws: u32) -> bool {
    let ordered = |(c, id): (&[i32], &[i32])| (c[0] > c[1]) | ((c[0] == c[1]) & (id[0] < id[1]));
    let falls = counts.windows(2).zip(ids.windows(2)).all(ordered);
    let sum: i64 = counts.iter().map(|count| i64::from(*count)).sum();
    falls && counts.last().is_none_or(|least| *least > 0 && sum == i64::from(draws))
}

/// One position: counts of at least 1 that fall, ties by id, and add up to the draws.
fn draws(ids: &[i32], counts: &[i32], draws: u32) -> Result<(), Error> {
    if draws_hold(ids, counts, draws) {
        return Ok(());
    }
    let expected = format!("counts from 1 on, falling, ties by id, {draws} in all");
    let pairs: Vec<String> = ids.iter().zip(counts).map(|(id, count)| format!("{id}: {count}")).collect();
    Err(Error::bad("sample_counts", expected, format_args!("{{{}}}", pairs.join(", "))))
}

/// Whether log-probabilities fall, ties by id, from at most 0 to a finite number: all in between are such as well, and
/// a NaN is in no order. Without a way out of the loop, so that several pairs are compared at a time.
fn all_fall(ids: &[i32], log_probs: &[f32]) -> bool {
    if !log_probs.first().into_iter().chain(log_probs.last()).copied().all(is_log_prob) {
        return false;
    }
    let (Some((_, next_probs)), Some((_, next_ids))) = (log_probs.split_first(), ids.split_first()) else {
        return true;
    };
    let pairs = log_probs.iter().zip(next_probs).zip(ids.iter().zip(next_ids));
    let unordered = pairs.fold(0, |unordered, ((p, next_p), (id, next_id))| {
        unordered | u32::from(!((p > next_p) | ((p == next_p) & (id < next_id))))
    });
    unordered == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_beyond_the_stamps_are_compared_as_well() {
        let limits = LabelLimits {
            input_vocab_size: 10,
            label_vocab_size: 1 << 30,
            entries_per_position: [1, 9],
            exact_entries: 9,
            draws: None,
            omit: Vec::new(),
            temperatures: 0,
            tails: false,
        };
        let mut validator = Validator::new(&limits);
        validator.seen.resize(1 << 20, 0);
        for _ in 0..600 {
            validator.unique(&[3, 1 << 29, 4, 1 << 21]).unwrap();
            validator.unique(&[3, 4, 9]).unwrap();
        }
        for twice in [[1 << 21, 4, 1 << 21], [4, 1 << 21, 4], [4, 7, 4]] {
            let error = validator.unique(&twice).unwrap_err().to_string();
            let expected = format!("token_ids: expected every id once, found {} twice", twice[0]);
            assert_eq!(error, expected);
        }
    }
}
