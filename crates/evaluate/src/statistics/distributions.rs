//! The normal distribution and Student's t.

/// Iterations of a continued fraction, which needs far fewer.
const ITERATIONS: usize = 10_000;

/// Φ(x).
pub(super) fn normal_cdf(x: f64) -> f64 {
    0.5 * libm::erfc(-x / std::f64::consts::SQRT_2)
}

/// Φ⁻¹(p), 0 < p < 1.
pub(super) fn normal_quantile(p: f64) -> f64 {
    // The upper tail by symmetry: near 1 a share has fewer digits than near 0.
    if p > 0.5 {
        return -normal_quantile(1.0 - p);
    }
    let mut lower = -40.0;
    let mut upper = 0.0;
    // Bisection down to neighbouring numbers: it is asked for a few times a table.
    loop {
        let middle = 0.5 * (lower + upper);
        if middle <= lower || middle >= upper {
            return middle;
        }
        if normal_cdf(middle) < p { lower = middle } else { upper = middle }
    }
}

/// P(|t| ≥ |x|) of Student's t.
pub(super) fn t_two_sided(x: f64, degrees_of_freedom: f64) -> f64 {
    let square = x * x;
    incomplete_beta(
        degrees_of_freedom / 2.0,
        0.5,
        degrees_of_freedom / (degrees_of_freedom + square),
        square / (degrees_of_freedom + square),
    )
}

/// The quantile of Student's t, 0 < p < 1.
pub(super) fn t_quantile(p: f64, degrees_of_freedom: f64) -> f64 {
    if p == 0.5 {
        return 0.0;
    }
    let outside = 2.0 * p.min(1.0 - p);
    let (mut lower, mut upper) = (0.0, 1.0);
    while t_two_sided(upper, degrees_of_freedom) > outside {
        (lower, upper) = (upper, 2.0 * upper);
    }
    loop {
        let middle = 0.5 * (lower + upper);
        if middle <= lower || middle >= upper {
            return if p < 0.5 { -middle } else { middle };
        }
        if t_two_sided(middle, degrees_of_freedom) > outside { lower = middle } else { upper = middle }
    }
}

/// The regularised incomplete beta function I_x(a, b), given x and 1 - x, by Lentz's continued fraction
/// (Numerical Recipes, section 6.4).
fn incomplete_beta(a: f64, b: f64, x: f64, rest: f64) -> f64 {
    if x <= 0.0 {
        return 0.0;
    }
    if rest <= 0.0 {
        return 1.0;
    }
    if x > (a + 1.0) / (a + b + 2.0) {
        return 1.0 - incomplete_beta(b, a, rest, x);
    }
    let front = libm::lgamma(a + b) - libm::lgamma(a) - libm::lgamma(b) + a * x.ln() + b * rest.ln();
    front.exp() * continued_fraction(a, b, x) / a
}

fn continued_fraction(a: f64, b: f64, x: f64) -> f64 {
    let away_from_zero = |value: f64| if value.abs() < 1e-300 { 1e-300 } else { value };
    let mut c = 1.0;
    let mut d = 1.0 / away_from_zero(1.0 - (a + b) * x / (a + 1.0));
    let mut value = d;
    for m in 1..ITERATIONS {
        let m = super::number(m);
        let even = m * (b - m) * x / ((a + 2.0 * m - 1.0) * (a + 2.0 * m));
        d = 1.0 / away_from_zero(1.0 + even * d);
        c = away_from_zero(1.0 + even / c);
        value *= d * c;
        let odd = -(a + m) * (a + b + m) * x / ((a + 2.0 * m) * (a + 2.0 * m + 1.0));
        d = 1.0 / away_from_zero(1.0 + odd * d);
        c = away_from_zero(1.0 + odd / c);
        value *= d * c;
        if (d * c - 1.0).abs() < 1e-16 {
            break;
        }
    }
    value
}
