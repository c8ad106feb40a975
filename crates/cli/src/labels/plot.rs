//! Plots as SVG that stands in a page: bars, histograms and a reliability diagram, in the colours of the page around them.
//!
//! Lengths are units of the view box, which a page shows as pixels or smaller. Colours are classes of the page's style.

use std::fmt::{Display, Write};

use softshard_labels::{Bin, CalibrationBin};

use super::{count, float, percent};

/// Of a plot that stands beside another.
const WIDTH: f64 = 460.0;
/// Room for the numbers of a vertical axis.
const LEFT: f64 = 46.0;
const RIGHT: f64 = 14.0;
/// Room for the numbers and the name of a horizontal axis.
const BOTTOM: f64 = 42.0;
const TOP: f64 = 26.0;
/// Bars that have room for a number each.
const NUMBERED_BARS: usize = 10;

/// `text` with what HTML would take for its own replaced.
pub(super) fn escape(text: impl Display) -> String {
    let mut escaped = String::new();
    for letter in text.to_string().chars() {
        match letter {
            '&' => escaped += "&amp;",
            '<' => escaped += "&lt;",
            '>' => escaped += "&gt;",
            '"' => escaped += "&quot;",
            letter => escaped.push(letter),
        }
    }
    escaped
}

/// Elements of one SVG.
struct Canvas {
    width: f64,
    height: f64,
    elements: String,
}

impl Canvas {
    fn new(width: f64, height: f64) -> Self {
        Self { width, height, elements: String::new() }
    }

    fn line(&mut self, class: &str, [x1, y1]: [f64; 2], [x2, y2]: [f64; 2]) {
        self.add(format_args!(
            r#"<line class="{class}" x1="{x1:.1}" y1="{y1:.1}" x2="{x2:.1}" y2="{y2:.1}"/>"#
        ));
    }

    /// A bar of the rectangle between two corners; `says` is shown under the pointer.
    fn bar(&mut self, class: &str, [x1, y1]: [f64; 2], [x2, y2]: [f64; 2], says: &str) {
        let (width, height) = ((x2 - x1).max(0.0), (y2 - y1).max(0.0));
        self.add(format_args!(
            r#"<rect class="{class}" x="{x1:.1}" y="{y1:.1}" width="{width:.1}" height="{height:.1}"><title>{}</title></rect>"#,
            escape(says)
        ));
    }

    fn dot(&mut self, [x, y]: [f64; 2], says: &str) {
        self.add(format_args!(
            r#"<circle class="dot" cx="{x:.1}" cy="{y:.1}" r="3.5"><title>{}</title></circle>"#,
            escape(says)
        ));
    }

    fn text(&mut self, class: &str, [x, y]: [f64; 2], text: &str) {
        self.add(format_args!(r#"<text class="{class}" x="{x:.1}" y="{y:.1}">{}</text>"#, escape(text)));
    }

    fn add(&mut self, element: std::fmt::Arguments<'_>) {
        writeln!(self.elements, "{element}").expect("a text takes everything");
    }

    /// The SVG; `says` stands for it where it is not seen.
    fn finish(self, says: &str) -> String {
        let Self { width, height, elements } = self;
        let says = escape(says);
        format!(
            "<svg viewBox=\"0 0 {width:.0} {height:.0}\" role=\"img\" aria-label=\"{says}\">\n{elements}</svg>\n"
        )
    }
}

/// The inner rectangle of a plot: shares of 0..1 to lengths.
#[derive(Clone, Copy)]
struct Frame {
    left: f64,
    right: f64,
    top: f64,
    bottom: f64,
}

impl Frame {
    fn x(self, share: f64) -> f64 {
        self.left + share * (self.right - self.left)
    }

    fn y(self, share: f64) -> f64 {
        self.bottom - share * (self.bottom - self.top)
    }

    /// Horizontal lines with their numbers on the left, and the axis below.
    fn rows(self, canvas: &mut Canvas, ticks: &[(f64, String)]) {
        for (share, name) in ticks {
            let y = self.y(*share);
            if *share > 0.0 {
                canvas.line("grid", [self.left, y], [self.right, y]);
            }
            canvas.text("end", [self.left - 7.0, y + 4.0], name);
        }
        canvas.line("axis", [self.left, self.bottom], [self.right, self.bottom]);
    }

    /// Ticks with their numbers below, and the name of the axis.
    fn columns(self, canvas: &mut Canvas, ticks: &[(f64, String)], name: &str) {
        for (share, number) in ticks {
            let x = self.x(*share);
            canvas.line("axis", [x, self.bottom], [x, self.bottom + 4.0]);
            canvas.text("mid", [x, self.bottom + 17.0], number);
        }
        canvas.text("mid name", [self.x(0.5), self.bottom + 35.0], name);
    }

    /// A vertical line, and its name above the frame, where no bar reaches.
    fn mark(self, canvas: &mut Canvas, share: f64, name: &str) {
        let x = self.x(share);
        canvas.line("mark", [x, self.top - 4.0], [x, self.bottom]);
        canvas.text("end mark", [self.right, 12.0], &format!("┆ {name}"));
    }
}

/// Steps of 1, 2, 2.5 or 5 times a power of ten, at most `most` of them up to `end`.
fn step(end: f64, most: f64) -> f64 {
    let least = end / most;
    let power = 10f64.powf(least.log10().floor());
    let fits = [1.0, 2.0, 2.5, 5.0, 10.0].map(|factor| factor * power);
    fits.into_iter().find(|step| *step >= least * (1.0 - 1e-9)).unwrap_or(10.0 * power)
}

/// Even ticks from 0 to the first that reaches `end`, as shares of that last one, which is given too.
fn ticks_beyond(end: f64, most: f64, show: impl Fn(f64, usize) -> String) -> (f64, Vec<(f64, String)>) {
    let step = step(end.max(1e-9), most);
    let count = (end / step - 1e-9).ceil().max(1.0);
    let ticks = even(count).map(|index| (index / count, show(index * step, digits(step))));
    (count * step, ticks.collect())
}

/// Even ticks from 0 that lie within `end`, as shares of it.
fn ticks_within(end: f64, most: f64) -> Vec<(f64, String)> {
    let step = step(end, most);
    let digits = digits(step);
    even((end / step + 1e-9).floor())
        .map(|index| (index * step / end, format!("{:.digits$}", index * step)))
        .collect()
}

/// 0, 1, 2, … up to `last`.
fn even(last: f64) -> impl Iterator<Item = f64> {
    std::iter::successors(Some(0.0), move |index| (index + 1.0 <= last).then_some(index + 1.0))
}

/// Decimal places that tell multiples of `step` apart.
fn digits(step: f64) -> usize {
    (0..6)
        .find(|&places| {
            let scaled = step * 10f64.powi(places);
            (scaled - scaled.round()).abs() < 1e-6
        })
        .map_or(6, |places| usize::try_from(places).expect("below 6"))
}

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
        canvas.dot([x, upper.y(bin.accuracy)], &says(bin));
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

/// `100000` as `100 k`.
fn thousands(value: f64) -> String {
    match value {
        value if value >= 1e6 => format!("{:.0} M", value / 1e6),
        value if value >= 1e3 => format!("{:.0} k", value / 1e3),
        value => format!("{value:.0}"),
    }
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
    fn ticks_are_round_numbers() {
        let names = |end, most| -> Vec<String> {
            ticks_within(end, most).into_iter().map(|(_, name)| name).collect()
        };
        assert_eq!(names(4.0, 8.0), ["0.0", "0.5", "1.0", "1.5", "2.0", "2.5", "3.0", "3.5", "4.0"]);
        assert_eq!(names(72.0, 8.0), ["0", "10", "20", "30", "40", "50", "60", "70"]);
        assert_eq!(names(0.3, 8.0), ["0.00", "0.05", "0.10", "0.15", "0.20", "0.25", "0.30"]);
        let (end, ticks) = ticks_beyond(81.2, 5.0, |value, digits| format!("{value:.digits$} %"));
        assert!((end - 100.0).abs() < 1e-9, "{end}");
        assert_eq!(ticks.last().map(|(share, name)| (*share, name.as_str())), Some((1.0, "100 %")));
    }

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

    #[test]
    fn strangers_text_stays_text() {
        assert_eq!(escape("<script>\"&"), "&lt;script&gt;&quot;&amp;");
    }
}
