//! Curves over steps as SVG: a pale line of the values, a smooth one over it, and points of what was measured now and then.

use crate::{
    labels::float,
    page::plot::{BOTTOM, Canvas, Frame, LEFT, RIGHT, TOP, WIDTH, even, ticks_around},
    progress::grouped,
};

const HEIGHT: f64 = 270.0;
/// Points of a line; a longer one is drawn as the least and the most of so many parts.
const POINTS: usize = 500;
/// The smooth line remembers this part of the run.
const REMEMBERED: f64 = 0.03;
/// Values outside these shares do not make a plot higher: a first loss, a gradient that exploded.
const SEEN: [f64; 2] = [0.01, 0.99];

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
    let ([low, high], rows) = ticks_around(range(curves, axes.from_zero), 5.0, axes.show);
    frame.rows(&mut canvas, &rows);
    canvas.text("name", [0.0, 12.0], axes.unit);
    let [first, last] = [0.0, last_step.max(1.0)];
    let at = |&(step, value): &(f64, f64)| {
        let share = |value: f64, [low, high]: [f64; 2]| ((value - low) / (high - low)).clamp(0.0, 1.0);
        [frame.x(share(step, [first, last])), frame.y(share(value, [low, high]))]
    };
    // All pale lines lie below all others.
    for curve in curves {
        canvas.path(&format!("raw {}", curve.class), thinned(curve.steps).iter().map(at), curve.name);
    }
    for curve in curves {
        let smooth = smoothed(curve.steps);
        canvas.path(&format!("smooth {}", curve.class), every(&smooth).map(at), curve.name);
        if curve.points.len() > 1 && curve.steps.is_empty() {
            canvas.path(&format!("between {}", curve.class), curve.points.iter().map(at), curve.name);
        }
    }
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

/// Least and most of what is drawn, without what is rare.
fn range(curves: &[Curve], from_zero: bool) -> [f64; 2] {
    let mut seen = Vec::new();
    for curve in curves {
        let mut values: Vec<f64> = curve.steps.iter().map(|(_, value)| *value).collect();
        values.sort_by(f64::total_cmp);
        let last = length(&values) - 1.0;
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "an index of the values"
        )]
        seen.extend(SEEN.iter().filter_map(|share| values.get((share * last).round() as usize)));
        seen.extend(curve.points.iter().map(|(_, value)| *value));
    }
    let least = seen.iter().copied().fold(f64::INFINITY, f64::min);
    let most = seen.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let low = if from_zero { least.min(0.0) } else { least };
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

/// A mean that forgets, over as many steps as are a small part of the run; its first values are those that there are.
pub(super) fn smoothed(values: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let keep = 1.0 - 1.0 / (REMEMBERED * length(values)).max(1.0);
    let (mut sum, mut weight) = (0.0, 0.0);
    let smooth = |&(step, value): &(f64, f64)| {
        sum = keep * sum + value;
        weight = keep * weight + 1.0;
        (step, sum / weight)
    };
    values.iter().map(smooth).collect()
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
    fn a_smooth_line_ends_near_its_last_values_and_forgets_its_first() {
        let falling: Vec<(f64, f64)> =
            (1..=1000).map(|step| (f64::from(step), if step < 10 { 100.0 } else { 2.0 })).collect();
        let smooth = smoothed(&falling);
        assert!(
            (smooth[0].1 - 100.0).abs() < 1e-9 && (smooth[999].1 - 2.0).abs() < 1e-9,
            "{:?}",
            smooth[999]
        );
        let few = smoothed(&falling[..20]);
        assert_eq!(few, falling[..20], "a short run is drawn as it is");
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
        assert_eq!(range(&[curve(&[])], false), [1.8, 2.2]);
        assert_eq!(range(&[curve(&[(1.0, 3.0)])], true), [0.0, 3.0]);
        let axes = Axes { unit: "nats", from_zero: false, show: |value, digits| format!("{value:.digits$}") };
        let svg = plot(&[curve(&[(500.0, 2.1)])], &axes, "Loss");
        for part in
            [r#"class="raw c0""#, r#"class="smooth c0""#, "a after step 500: 2.1000", ">1,000<", ">nats<"]
        {
            assert!(svg.contains(part), "expected {part} in\n{svg}");
        }
        assert_eq!(plot(&[], &axes, "Loss"), "");
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
