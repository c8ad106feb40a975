//! Shares of independent trials.

use super::{BadValues, Interval, distributions::normal_quantile};

/// Wilson's score interval of a share (E. B. Wilson, "Probable inference", 1927): never outside 0 to 1, and
/// not empty where all or none succeed. Trials are independent: one row of each document.
///
/// # Errors
/// No trials, more successes than trials, a level that is none.
pub fn wilson(successes: u64, trials: u64, level: f64) -> Result<Interval, BadValues> {
    if trials == 0 {
        return Err(BadValues::TooFew { what: "trials", expected: 1, found: 0 });
    }
    #[expect(clippy::cast_precision_loss, reason = "counts are far below 2^53")]
    let (hits, n) = (successes as f64, trials as f64);
    super::all("successes", "at most as many as trials", &[hits], |hits| hits <= n)?;
    super::all("level", "above 0 and below 1", &[level], |level| 0.0 < level && level < 1.0)?;
    let z = normal_quantile((1.0 - level) / 2.0);
    let (share, square) = (hits / n, z * z);
    let centre = (share + square / (2.0 * n)) / (1.0 + square / n);
    let half = (square * (share * (1.0 - share) / n + square / (4.0 * n * n))).sqrt() / (1.0 + square / n);
    let lower = if successes == 0 { 0.0 } else { centre - half };
    let upper = if successes == trials { 1.0 } else { centre + half };
    Ok(Interval { lower, upper })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_and_bad_counts() {
        assert_eq!(wilson(0, 10, 0.95).unwrap().lower, 0.0);
        assert_eq!(wilson(10, 10, 0.95).unwrap().upper, 1.0);
        assert_eq!(wilson(0, 0, 0.95).unwrap_err().to_string(), "expected at least 1 trials, found 0");
        assert!(wilson(11, 10, 0.95).is_err() && wilson(1, 10, 1.0).is_err());
    }
}
