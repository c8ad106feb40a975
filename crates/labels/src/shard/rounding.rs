//! Rounds log-probabilities to a few mantissa bits, so that their low bytes compress to nothing.

use crate::values::{LabelLimits, SequenceLabels};

const MANTISSA_BITS: u32 = f32::MANTISSA_DIGITS - 1;

/// Rounds to `bits` mantissa bits (1..=23), to the nearest, ties to even. The value must be a finite number or an infinity.
pub(crate) fn round_mantissa(value: f32, bits: u32) -> f32 {
    let dropped = MANTISSA_BITS - bits;
    if dropped == 0 {
        return value;
    }
    let raw = value.to_bits();
    let odd = (raw >> dropped) & 1;
    let rounded = raw + (1 << (dropped - 1)) - 1 + odd;
    f32::from_bits(rounded >> dropped << dropped)
}

/// Rounds log-probabilities of entries to `of_entries` mantissa bits and the columns with one value per position to
/// `of_positions`. Where there are extra temperatures, log-sum-exps and partitions keep every bit: they are subtracted from each
/// other.
pub(crate) fn round(labels: &mut SequenceLabels, of_entries: u32, of_positions: u32) {
    let round = |values: &mut [f32], bits| {
        values.iter_mut().for_each(|value| *value = round_mantissa(*value, bits));
    };
    round(&mut labels.log_probs, of_entries);
    for values in [&mut labels.tail_log_mass, &mut labels.entropy, &mut labels.gold_log_prob] {
        round(values, of_positions);
    }
    labels.tail_log_masses.iter_mut().for_each(|values| round(values, of_positions));
    if labels.log_partitions.is_empty() {
        round(&mut labels.log_sum_exp, of_positions);
    }
}

/// Puts exact entries of equal log-probability in the order of their ids: a teacher that sorts by logits or in f64 has
/// other ties than f32 log-probabilities have. Labels whose lengths do not agree are left for validation to refuse.
pub(crate) fn sort_ties(labels: &mut SequenceLabels, limits: &LabelLimits) {
    let (mut entry, mut log_probs) = (0usize, labels.log_probs.as_slice());
    for &count in &labels.counts {
        let Ok(count) = usize::try_from(count) else { return };
        let exact = limits.exact(count);
        let ids = entry.checked_add(exact).and_then(|end| labels.token_ids.get_mut(entry..end));
        let (Some(mut ids), Some((here, rest))) = (ids, log_probs.split_at_checked(exact)) else { return };
        for tied in here.chunk_by(|a, b| a == b) {
            let (run, rest) = ids.split_at_mut(tied.len());
            run.sort_unstable();
            ids = rest;
        }
        (entry, log_probs) = (entry.saturating_add(count), rest);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_to_the_nearest_even() {
        assert_eq!(round_mantissa(-1.0 - 1.0 / 1024.0, 10), -1.0 - 1.0 / 1024.0);
        assert_eq!(round_mantissa(-1.0 - 0.5 / 1024.0, 10), -1.0);
        assert_eq!(round_mantissa(-1.0 - 1.5 / 1024.0, 10), -1.0 - 2.0 / 1024.0);
        assert_eq!(round_mantissa(-1.0 - 0.51 / 1024.0, 10), -1.0 - 1.0 / 1024.0);
        assert_eq!(round_mantissa(-1.999_999_9, 10), -2.0);
        assert_eq!(round_mantissa(-0.3, 23), -0.3);
        assert_eq!(round_mantissa(0.0, 1), 0.0);
        assert_eq!(round_mantissa(f32::NEG_INFINITY, 10), f32::NEG_INFINITY);
    }
}
