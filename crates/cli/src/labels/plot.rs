//! Plots of a label dataset: bars, histograms and a reliability diagram.

use softshard_labels::{Bin, CalibrationBin};

use crate::{
    numbers::{count, float, percent},
    page::plot::{
        BOTTOM, Canvas, Frame, LEFT, RIGHT, TOP, WIDTH, even, thousands, ticks_beyond, ticks_within,
    },
};

/// Bars that have room for a number each.
const NUMBERED_BARS: usize = 10;

/// How the bins of a histogram lie beside each other.
pub(super) enum Spacing {
    /// As wide as they are.
    ToScale,
    /// All equally wide, with a number at each border.
    Equal,
}

/// Shares of positions by range of `name`, and where their mean lies.
pub(super) fn histogram(
    bins: &[Bin],
    spacing: &Spacing,
    mean: Option<f64>,
    name: &str,
    show: impl Fn(f64) -> String,
) -> String {
    let mut canvas = Canvas::new(WIDTH, 250.0);
    let frame = Frame { left: LEFT, right: WIDTH - RIGHT, top: TOP, bottom: 250.0 - BOTTOM };
    let positions: u64 = bins.iter().map(|bin| bin.count).sum();
    let share = |bin: &Bin| float(bin.count) / float(positions.max(1));
    let most = bins.iter().map(share).fold(0.0, f64::max);
    let (top, rows) = ticks_beyond(100.0 * most, 5.0, |value, digits| format!("{value:.digits$} %"));
    frame.rows(&mut canvas, &rows);
    canvas.text("name", [0.0, 12.0], "share of positions");

    let [start, end] = [bins.first().map_or(0.0, |bin| bin.lower), bins.last().map_or(1.0, |bin| bin.upper)];
    let place = |index: usize, value: f64| match spacing {
        Spacing::ToScale => (value - start) / (end - start),
        Spacing::Equal => index_share(index, bins.len()),
    };
    let mut numbers = Vec::new();
    for (index, bin) in bins.iter().enumerate() {
        let (left, right) = (frame.x(place(index, bin.lower)), frame.x(place(index + 1, bin.upper)));
        let (range, share) = (format!("{} to {}", show(bin.lower), show(bin.upper)), share(bin));
        // What is there is seen.
        let least = if bin.count > 0 { frame.bottom - 0.8 } else { frame.bottom };
        let height = frame.y(100.0 * share / top).min(least);
        let says = format!("{range}: {} positions, {}", count(bin.count), percent(share));
        canvas.bar("bar", [left + 0.75, height], [right - 0.75, frame.bottom], &says);
        if bins.len() <= NUMBERED_BARS && bin.count > 0 {
            let number = if share < 0.0005 { "<0.1".to_owned() } else { format!("{:.1}", 100.0 * share) };
            numbers.push(([f64::midpoint(left, right), height - 4.0], number));
        }
    }
    if let Some(mean) = mean {
        frame.mark(&mut canvas, place(0, mean), &format!("mean {}", show(mean)));
    }
    numbers.iter().for_each(|(at, number)| canvas.text("mid small", *at, number));
    let columns = match spacing {
        Spacing::ToScale => ticks_within(end - start, 8.0),
        Spacing::Equal => {
            let borders = bins.iter().map(|bin| bin.lower).chain([end]).enumerate();
            borders.map(|(index, border)| (index_share(index, bins.len()), show(border))).collect()
        }
    };
    frame.columns(&mut canvas, &columns, name);
    canvas.finish(&format!("Histogram of {name} over {} positions", count(positions)))
}

/// A horizontal bar with its numbers.
pub(super) struct Row {
    /// What it stands for.
    pub(super) name: String,
    /// Its length.
    pub(super) value: f64,
    /// What stands behind it, in columns.
    pub(super) numbers: [String; 3],
}

/// Horizontal bars over an axis called `name`; `header` stands over the numbers.
pub(super) fn bars(rows: &[Row], header: [&str; 3], name: &str) -> String {
    const LINE: f64 = 24.0;
    const BAR: f64 = 13.0;
    /// Right ends of the columns of numbers.
    const COLUMNS: [f64; 3] = [756.0, 842.0, 940.0];
    let height = TOP + LINE * index_float(rows.len()) + BOTTOM;
    let mut canvas = Canvas::new(940.0, height);
    let frame = Frame { left: 136.0, right: 660.0, top: TOP, bottom: height - BOTTOM };
    let most = rows.iter().map(|row| row.value).fold(0.0, f64::max);
    let (end, ticks) = ticks_beyond(most, 6.0, |value, digits| format!("{value:.digits$}"));
    for (share, _) in ticks.iter().filter(|(share, _)| *share > 0.0) {
        canvas.line("grid", [frame.x(*share), frame.top], [frame.x(*share), frame.bottom]);
    }
    for (text, right) in header.iter().zip(COLUMNS) {
        canvas.text("end name", [right, 14.0], text);
    }
    for (index, row) in rows.iter().enumerate() {
        let middle = frame.top + LINE * (index_float(index) + 0.5);
        canvas.text("end code", [frame.left - 9.0, middle + 4.0], &row.name);
        let right = frame.x(row.value / end).max(frame.left + if row.value > 0.0 { 1.0 } else { 0.0 });
        let says = format!("{}: {} {name}", row.name, row.numbers[0]);
        canvas.bar("bar", [frame.left, middle - BAR / 2.0], [right, middle + BAR / 2.0], &says);
        for (number, right) in row.numbers.iter().zip(COLUMNS) {
            canvas.text("end number", [right, middle + 4.0], number);
        }
    }
    canvas.line("axis", [frame.left, frame.top], [frame.left, frame.bottom]);
    canvas.line("axis", [frame.left, frame.bottom], [frame.right, frame.bottom]);
    frame.columns(&mut canvas, &ticks, name);
    canvas.finish(&format!("Bars of {name}"))
}

/// How often the most probable token is right, by how probable it is; below, how many positions each bin has.
pub(super) fn reliability(bins: &[CalibrationBin]) -> String {
    let mut canvas = Canvas::new(WIDTH, 594.0);
    let upper = Frame { left: LEFT, right: WIDTH - RIGHT, top: TOP, bottom: TOP + WIDTH - LEFT - RIGHT };
    let lower = Frame { top: upper.bottom + 46.0, bottom: 594.0 - BOTTOM, ..upper };
    let fifths: Vec<(f64, String)> =
        even(5.0).map(|fifth| (fifth / 5.0, format!("{:.1}", fifth / 5.0))).collect();
    upper.rows(&mut canvas, &fifths);
    canvas.text("name", [0.0, 12.0], "share that is right");
    let filled = || bins.iter().filter(|bin| bin.count > 0);
    let says = |bin: &CalibrationBin| {
        let CalibrationBin { lower, upper, count, confidence, accuracy } = bin;
        let count = self::count(*count);
        format!("{lower:.2} to {upper:.2}, mean {confidence:.4}: {accuracy:.4} right of {count} positions")
    };
    for bin in filled() {
        let (left, right) = (upper.x(bin.lower) + 0.75, upper.x(bin.upper) - 0.75);
        canvas.bar("bar pale", [left, upper.y(bin.accuracy)], [right, upper.bottom], &says(bin));
    }
    canvas.line("diagonal", [upper.x(0.0), upper.y(0.0)], [upper.x(1.0), upper.y(1.0)]);
    for bin in filled() {
        let (x, [low, high]) = (upper.x(bin.confidence), wilson(bin.accuracy, float(bin.count)));
        canvas.line("whisker", [x, upper.y(low)], [x, upper.y(high)]);
        canvas.dot("dot", [x, upper.y(bin.accuracy)], &says(bin));
    }
    for (share, _) in &fifths {
        canvas.line("axis", [upper.x(*share), upper.bottom], [upper.x(*share), upper.bottom + 4.0]);
    }

    // Counts by powers of ten: the sure positions outnumber all others.
    let most = bins.iter().map(|bin| bin.count).max().unwrap_or(0).max(10);
    let decades = float(most).log10().ceil();
    let spaced = if decades > 3.0 { 2.0 } else { 1.0 };
    let powers = even((decades / spaced).floor()).map(|index| index * spaced);
    let powers = powers.map(|power| (power / decades, thousands(10f64.powf(power))));
    lower.rows(&mut canvas, &powers.collect::<Vec<_>>());
    canvas.text("name", [0.0, lower.top - 14.0], "positions, by powers of ten");
    for bin in filled() {
        let height = lower.y(float(bin.count).log10() / decades).min(lower.bottom - 0.8);
        let (left, right) = (lower.x(bin.lower) + 0.75, lower.x(bin.upper) - 0.75);
        canvas.bar("bar", [left, height], [right, lower.bottom], &says(bin));
    }
    lower.columns(&mut canvas, &fifths, "confidence: probability of the most probable token");
    canvas.finish("Reliability diagram of the teacher's most probable token, with the positions of each bin")
}

/// The 95 % interval of a share (Wilson 1927).
fn wilson(share: f64, count: f64) -> [f64; 2] {
    const Z: f64 = 1.96;
    let divisor = 1.0 + Z * Z / count;
    let middle = (share + Z * Z / (2.0 * count)) / divisor;
    let half = Z * (share * (1.0 - share) / count + Z * Z / (4.0 * count * count)).sqrt() / divisor;
    [(middle - half).max(0.0), (middle + half).min(1.0)]
}

fn index_float(index: usize) -> f64 {
    float(u64::try_from(index).expect("an index fits 64 bits"))
}

fn index_share(index: usize, of: usize) -> f64 {
    index_float(index) / index_float(of.max(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_are_as_high_as_their_share() {
        let bins = [Bin { lower: 0.0, upper: 1.0, count: 3 }, Bin { lower: 1.0, upper: 2.0, count: 1 }];
        let svg = histogram(&bins, &Spacing::ToScale, Some(0.5), "nats", |value| format!("{value:.1}"));
        // 75 % of 80 %, and 25 % of 80 %, of 182 units.
        for part in [r#"height="170.6""#, r#"height="56.9""#, "mean 0.5", "1.0 to 2.0: 1 positions, 25.00 %"]
        {
            assert!(svg.contains(part), "expected {part} in\n{svg}");
        }
    }

    #[test]
    fn an_interval_holds_the_share_and_stays_a_share() {
        let [low, high] = wilson(0.5, 100.0);
        assert!((low - 0.4038).abs() < 1e-4 && (high - 0.5962).abs() < 1e-4, "{low} {high}");
        let [low, high] = wilson(1.0, 3.0);
        assert!(low < 0.5 && (high - 1.0).abs() < 1e-9, "{low} {high}");
    }
}
