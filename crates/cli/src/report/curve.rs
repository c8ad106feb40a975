//! Curves over steps as SVG: a pale line of the values, a smooth one over it, and points of what was measured now and then.

use crate::{
    numbers::{float, grouped},
    page::plot::{BOTTOM, Canvas, Frame, LEFT, RIGHT, TOP, WIDTH, even, ticks_around},
};

const HEIGHT: f64 = 270.0;
/// Points of a line; a longer one is drawn as the least and the most of so many parts.
const POINTS: usize = 500;
/// A smooth line is a mean over this part of the run.
const SMOOTHED: f64 = 0.04;

/// What is drawn of one training.
pub(super) struct Curve<'a> {
    pub(super) name: &'a str,
    /// Class of its colour.
    pub(super) class: String,
    /// Values of each step.
    pub(super) steps: &'a [(f64, f64)],
    /// Measured after some steps.
    pub(super) points: &'a [(f64, f64)],
}

/// What the axes are.
pub(super) struct Axes<'a> {
    /// Stands over the plot.
    pub(super) unit: &'a str,
    /// Whether 0 is the least value.
    pub(super) from_zero: bool,
    /// Share of the values that fits below the top: those of the first steps do not make all others flat.
    pub(super) seen: f64,
    /// Whether values are a schedule's, which need no smooth line.
    pub(super) is_exact: bool,
    pub(super) show: fn(f64, usize) -> String,
}

/// The plot; empty where there is nothing to draw.
pub(super) fn plot(curves: &[Curve], axes: &Axes, says: &str) -> String {
    let values = curves.iter().flat_map(|curve| curve.steps.iter().chain(curve.points));
    let last_step = values.clone().map(|&(step, _)| step).fold(0.0, f64::max);
    if last_step == 0.0 {
        return String::new();
    }
    let mut canvas = Canvas::new(WIDTH, HEIGHT);
    let frame = Frame { left: LEFT, right: WIDTH - RIGHT, top: TOP, bottom: HEIGHT - BOTTOM };
    let ([low, high], rows) = ticks_around(range(curves, axes), 5.0, axes.show);
    frame.rows(&mut canvas, &rows);
    canvas.text("name", [0.0, 12.0], axes.unit);
    let last = last_step.max(1.0);
    let at = |&(step, value): &(f64, f64)| [frame.x(step / last), frame.y((value - low) / (high - low))];
    canvas.clip(frame);
    // All pale lines lie below all others.
    for curve in curves.iter().filter(|_| !axes.is_exact) {
        canvas.path(&format!("raw {}", curve.class), thinned(curve.steps).iter().map(at), curve.name);
    }
    for curve in curves {
        let smooth = if axes.is_exact { curve.steps.to_vec() } else { smoothed(curve.steps) };
        canvas.path(&format!("smooth {}", curve.class), every(&smooth).map(at), curve.name);
        if curve.steps.is_empty() {
            canvas.path(&format!("between {}", curve.class), curve.points.iter().map(at), curve.name);
        }
    }
    canvas.unclip();
    for curve in curves {
        for point @ (step, value) in curve.points {
            let value = (axes.show)(*value, 4);
            let says = format!("{} after step {}: {value}", curve.name, grouped(*step));
            canvas.dot(&format!("point {}", curve.class), at(point), &says);
        }
    }
    frame.columns(&mut canvas, &step_ticks(last), "step");
    canvas.finish(says)
}

/// Least and most of what is drawn, without the rare values at the top.
fn range(curves: &[Curve], axes: &Axes) -> [f64; 2] {
    let mut seen = Vec::new();
    for curve in curves {
        let mut values: Vec<f64> = curve.steps.iter().map(|(_, value)| *value).collect();
        values.sort_by(f64::total_cmp);
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "an index of the values")]
        let most = (axes.seen * (length(&values) - 1.0)).round() as usize;
        seen.extend([0, most].iter().filter_map(|index| values.get(*index)));
        seen.extend(curve.points.iter().map(|(_, value)| *value));
    }
    let least = seen.iter().copied().fold(f64::INFINITY, f64::min);
    let most = seen.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let low = if axes.from_zero { least.min(0.0) } else { least };
    if most > low {
        return [low, most];
    }
    // A straight line lies in the middle, and one at 0 on the axis.
    let around = 0.1 * most.abs();
    if around > 0.0 { [low - around, most + around] } else { [0.0, 1.0] }
}

fn length<T>(values: &[T]) -> f64 {
    float(u64::try_from(values.len()).expect("a length fits 64 bits"))
}

/// Of each step the mean over a part of the run around it, as much before it as there is at the start: so it does not lag.
pub(super) fn smoothed(values: &[(f64, f64)]) -> Vec<(f64, f64)> {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a part of the length")]
    let half = (0.5 * SMOOTHED * length(values)).round() as usize;
    let mut sums = vec![0.0];
    for (_, value) in values {
        sums.push(sums[sums.len() - 1] + value);
    }
    let mean = |(index, &(step, _)): (usize, &(f64, f64))| {
        let (first, end) = (index - half.min(index), (index + half.min(index) + 1).min(values.len()));
        (step, (sums[end] - sums[first]) / length(&values[first..end]))
    };
    values.iter().enumerate().map(mean).collect()
}

/// Some of the points, the last one among them.
fn every(values: &[(f64, f64)]) -> impl Iterator<Item = &(f64, f64)> {
    let stride = values.len().div_ceil(POINTS).max(1);
    let skipped = values.len().saturating_sub(1) % stride;
    values.iter().skip(skipped).step_by(stride)
}

/// The least and the most of each part of a long line.
fn thinned(values: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let part = values.len().div_ceil(POINTS);
    if part <= 2 {
        return values.to_vec();
    }
    let ends = |part: &[(f64, f64)]| {
        let by_value = |left: &&(f64, f64), right: &&(f64, f64)| left.1.total_cmp(&right.1);
        let mut ends: Vec<_> =
            part.iter().min_by(by_value).into_iter().chain(part.iter().max_by(by_value)).copied().collect();
        ends.sort_by(|left, right| left.0.total_cmp(&right.0));
        ends
    };
    values.chunks(part).flat_map(ends).collect()
}

/// Ticks at whole steps, as shares of the last one.
fn step_ticks(last: f64) -> Vec<(f64, String)> {
    let ([_, end], ticks) = ticks_around([0.0, last], 6.0, |_, _| String::new());
    let spacing = (end / (length(&ticks) - 1.0)).max(1.0);
    let whole = even((last / spacing + 1e-9).floor()).map(|index| index * spacing);
    whole.filter(|step| step.fract() == 0.0).map(|step| (step / last, grouped(step))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_smooth_line_does_not_lag() {
        let falling: Vec<(f64, f64)> =
            (1..=1000).map(|step| (f64::from(step), if step <= 10 { 100.0 } else { 2.0 })).collect();
        let smooth = smoothed(&falling);
        assert_eq!(smooth[..5], falling[..5]);
        assert!((smooth[40].1 - 2.0).abs() < 1e-9 && (smooth[999].1 - 2.0).abs() < 1e-9, "{:?}", smooth[40]);
        let saw: Vec<(f64, f64)> = (0..1000).map(|step| (f64::from(step), f64::from(step % 2))).collect();
        assert!(smoothed(&saw)[100..].iter().all(|(_, value)| (value - 0.5).abs() < 0.03));
        assert_eq!(smoothed(&saw[..10]), saw[..10], "a short run is drawn as it is");
        assert_eq!(every(&smooth).last(), smooth.last());
        assert!(every(&smooth).count() <= POINTS);
    }

    #[test]
    fn long_lines_keep_their_peaks() {
        let spike = |step: i32| (f64::from(step), if step == 777 { 9.0 } else { 1.0 });
        let line: Vec<(f64, f64)> = (0..10_000).map(spike).collect();
        let thin = thinned(&line);
        assert!(thin.len() <= 2 * POINTS && thin.contains(&(777.0, 9.0)));
        assert!(thin.is_sorted_by(|left, right| left.0 <= right.0));
    }

    #[test]
    fn rare_values_make_no_plot_higher_and_points_do() {
        let steps: Vec<(f64, f64)> =
            (0..1000).map(|step| (f64::from(step), 2.0)).chain([(1000.0, 1e6)]).collect();
        let curve = |points| Curve { name: "a", class: "c0".to_owned(), steps: &steps, points };
        let axes = |from_zero| {
            let show = |value, digits| format!("{value:.digits$}");
            Axes { unit: "nats", from_zero, seen: 0.95, is_exact: false, show }
        };
        assert_eq!(range(&[curve(&[])], &axes(false)), [1.8, 2.2]);
        assert_eq!(range(&[curve(&[(1.0, 3.0)])], &axes(true)), [0.0, 3.0]);
        let svg = plot(&[curve(&[(500.0, 2.1)])], &axes(false), "Loss");
        for part in
            [r#"class="raw c0""#, r#"class="smooth c0""#, "a after step 500: 2.1000", ">1,000<", ">nats<"]
        {
            assert!(svg.contains(part), "expected {part} in\n{svg}");
        }
        assert_eq!(plot(&[], &axes(false), "Loss"), "");
    }

    #[test]
    fn ticks_stand_at_whole_steps() {
        let names = |last| step_ticks(last).into_iter().map(|(_, name)| name).collect::<Vec<_>>();
        assert_eq!(names(3.0), ["0", "1", "2", "3"]);
        assert_eq!(names(12.0), ["0", "2", "4", "6", "8", "10", "12"]);
        assert_eq!(names(15.0), ["0", "5", "10", "15"]);
        assert_eq!(names(1_500.0), ["0", "250", "500", "750", "1,000", "1,250", "1,500"]);
    }
}
