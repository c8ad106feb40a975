//! An exponential that the compiler turns into vector instructions.

/// Below this, e^x is taken as zero: its f32 is about to leave the normal range.
const FLUSH: f32 = -87.0;

/// e^x for x ≤ 0, with a relative error below 2e-7; exact at 0, zero below -87, NaN for NaN.
///
/// The library's `exp` is a call per element. This is the polynomial of Cephes' `expf` with the rounding
/// done by adding 1.5·2^23, so that a loop over it has neither branches nor calls.
#[inline(always)]
pub fn exp_non_positive(x: f32) -> f32 {
    const ROUND: f32 = 12_582_912.0; // 1.5 * 2^23: adding it leaves the nearest integer in the low bits
    const LN_2_HIGH: f32 = 0.693_359_4;
    const LN_2_LOW: f32 = -2.121_944_4e-4;
    let rounded = x * std::f32::consts::LOG2_E + ROUND;
    let n = rounded - ROUND;
    let r = x - n * LN_2_HIGH - n * LN_2_LOW;
    let polynomial = 1.987_569_1e-4_f32;
    let polynomial = polynomial * r + 1.398_199_9e-3;
    let polynomial = polynomial * r + 8.333_452e-3;
    let polynomial = polynomial * r + 4.166_579_6e-2;
    let polynomial = polynomial * r + 1.666_666_5e-1;
    let polynomial = polynomial * r + 0.5;
    let mantissa = polynomial * r * r + r + 1.0;
    let exponent = rounded.to_bits().wrapping_sub(ROUND.to_bits()).wrapping_add(127);
    let power = f32::from_bits(exponent.wrapping_shl(23));
    if x < FLUSH { 0.0 } else { mantissa * power }
}

#[cfg(test)]
mod tests {
    use super::exp_non_positive;

    #[test]
    fn agrees_with_the_library() {
        const RELATIVE: f64 = 2e-7; // about two units in the last place of f32
        for step in 0..=870_000_u32 {
            let x = -(step as f32) * 1e-4;
            let expected = f64::from(x).exp();
            let error = (f64::from(exp_non_positive(x)) - expected).abs() / expected;
            assert!(error < RELATIVE, "exp({x}): relative error {error}");
        }
    }

    #[test]
    fn edges() {
        assert_eq!(exp_non_positive(0.0), 1.0);
        assert_eq!(exp_non_positive(-0.0), 1.0);
        assert_eq!(exp_non_positive(-87.5), 0.0);
        assert_eq!(exp_non_positive(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp_non_positive(-1e30), 0.0);
        assert!(exp_non_positive(f32::NAN).is_nan());
    }
}
