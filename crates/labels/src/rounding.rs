//! Rounds log-probabilities to a few mantissa bits, so that their low bytes compress to nothing.

use crate::SequenceLabels;

const MANTISSA_BITS: u32 = f32::MANTISSA_DIGITS - 1;

/// Rounds to `bits` mantissa bits (1..=23), to the nearest, ties to even. The value must be finite.
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

/// Rounds all `log_probs`.
pub(crate) fn round_log_probs(labels: &mut SequenceLabels, bits: u32) {
    labels.log_probs.iter_mut().for_each(|value| *value = round_mantissa(*value, bits));
}

/// Puts entries of equal log-probability in the order of their ids: a teacher that sorts by logits or in f64 has other
/// ties than f32 log-probabilities have. Labels whose lengths do not agree are left for validation to refuse.
pub(crate) fn sort_ties(labels: &mut SequenceLabels) {
    let mut start = 0usize;
    for &count in &labels.counts {
        let end = usize::try_from(count).ok().and_then(|count| start.checked_add(count));
        let range = start..end.unwrap_or(usize::MAX);
        let (Some(log_probs), Some(mut ids)) =
            (labels.log_probs.get(range.clone()), labels.token_ids.get_mut(range.clone()))
        else {
            return;
        };
        for tied in log_probs.chunk_by(|a, b| a == b) {
            let (run, rest) = ids.split_at_mut(tied.len());
            run.sort_unstable();
            ids = rest;
        }
        start = range.end;
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
    }
}
