//! Parts of plots as SVG that stands in a page, in the colours of the page around them.
//!
//! Lengths are units of the view box, which a page shows as pixels or smaller. Colours are classes of the page's style.

use std::fmt::Write;

use super::escape;

/// Of a plot that stands beside another.
pub(crate) const WIDTH: f64 = 460.0;
/// Room for the numbers of a vertical axis.
pub(crate) const LEFT: f64 = 46.0;
pub(crate) const RIGHT: f64 = 14.0;
/// Room for the numbers and the name of a horizontal axis.
pub(crate) const BOTTOM: f64 = 42.0;
pub(crate) const TOP: f64 = 26.0;

/// Elements of one SVG.
pub(crate) struct Canvas {
    width: f64,
    height: f64,
    elements: String,
}

impl Canvas {
    pub(crate) fn new(width: f64, height: f64) -> Self {
        Self { width, height, elements: String::new() }
    }

    pub(crate) fn line(&mut self, class: &str, [x1, y1]: [f64; 2], [x2, y2]: [f64; 2]) {
        self.add(format_args!(
            r#"<line class="{class}" x1="{x1:.1}" y1="{y1:.1}" x2="{x2:.1}" y2="{y2:.1}"/>"#
        ));
    }

    /// A bar of the rectangle between two corners; `says` is shown under the pointer.
    pub(crate) fn bar(&mut self, class: &str, [x1, y1]: [f64; 2], [x2, y2]: [f64; 2], says: &str) {
        let (width, height) = ((x2 - x1).max(0.0), (y2 - y1).max(0.0));
        self.add(format_args!(
            r#"<rect class="{class}" x="{x1:.1}" y="{y1:.1}" width="{width:.1}" height="{height:.1}"><title>{}</title></rect>"#,
            escape(says)
        ));
    }

    pub(crate) fn dot(&mut self, class: &str, [x, y]: [f64; 2], says: &str) {
        self.add(format_args!(
            r#"<circle class="{class}" cx="{x:.1}" cy="{y:.1}" r="3.5"><title>{}</title></circle>"#,
            escape(says)
        ));
    }

    /// A line through points.
    pub(crate) fn path(&mut self, class: &str, points: impl IntoIterator<Item = [f64; 2]>, says: &str) {
        let mut through = String::new();
        for [x, y] in points {
            let command = if through.is_empty() { 'M' } else { 'L' };
            write!(through, "{command}{x:.1} {y:.1}").expect("a text takes everything");
        }
        self.add(format_args!(
            r#"<path class="{class}" d="{through}"><title>{}</title></path>"#,
            escape(says)
        ));
    }

    /// From here to [`Canvas::unclip`] what lies outside the frame is not drawn.
    pub(crate) fn clip(&mut self, frame: Frame) {
        let Frame { left, right, top, bottom } = frame;
        let (width, height) = (right - left, bottom - top);
        self.add(format_args!(
            r#"<svg class="clip" x="{left}" y="{top}" width="{width}" height="{height}" viewBox="{left} {top} {width} {height}">"#
        ));
    }

    pub(crate) fn unclip(&mut self) {
        self.add(format_args!("</svg>"));
    }

    pub(crate) fn text(&mut self, class: &str, [x, y]: [f64; 2], text: &str) {
        self.add(format_args!(r#"<text class="{class}" x="{x:.1}" y="{y:.1}">{}</text>"#, escape(text)));
    }

    fn add(&mut self, element: std::fmt::Arguments<'_>) {
        writeln!(self.elements, "{element}").expect("a text takes everything");
    }

    /// The SVG; `says` stands for it where it is not seen.
    pub(crate) fn finish(self, says: &str) -> String {
        let Self { width, height, elements } = self;
        let says = escape(says);
        format!(
            "<svg viewBox=\"0 0 {width:.0} {height:.0}\" role=\"img\" aria-label=\"{says}\">\n{elements}</svg>\n"
        )
    }
}

/// The inner rectangle of a plot: shares of 0..1 to lengths.
#[derive(Clone, Copy)]
pub(crate) struct Frame {
    pub(crate) left: f64,
    pub(crate) right: f64,
    pub(crate) top: f64,
    pub(crate) bottom: f64,
}

impl Frame {
    pub(crate) fn x(self, share: f64) -> f64 {
        self.left + share * (self.right - self.left)
    }

    pub(crate) fn y(self, share: f64) -> f64 {
        self.bottom - share * (self.bottom - self.top)
    }

    /// Horizontal lines with their numbers on the left, and the axis below.
    pub(crate) fn rows(self, canvas: &mut Canvas, ticks: &[(f64, String)]) {
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
    pub(crate) fn columns(self, canvas: &mut Canvas, ticks: &[(f64, String)], name: &str) {
        for (share, number) in ticks {
            let x = self.x(*share);
            canvas.line("axis", [x, self.bottom], [x, self.bottom + 4.0]);
            canvas.text("mid", [x, self.bottom + 17.0], number);
        }
        canvas.text("mid name", [self.x(0.5), self.bottom + 35.0], name);
    }

    /// A vertical line, and its name above the frame, where no bar reaches.
    pub(crate) fn mark(self, canvas: &mut Canvas, share: f64, name: &str) {
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
pub(crate) fn ticks_beyond(
    end: f64,
    most: f64,
    show: impl Fn(f64, usize) -> String,
) -> (f64, Vec<(f64, String)>) {
    let ([_, last], ticks) = ticks_around([0.0, end.max(1e-9)], most, show);
    (last, ticks)
}

/// Even ticks from the last that is not above `low` to the first that reaches `high`, as shares of what lies between these
/// two, which are given too; `show` is told the decimal places that tell ticks apart.
pub(crate) fn ticks_around(
    [low, high]: [f64; 2],
    most: f64,
    show: impl Fn(f64, usize) -> String,
) -> ([f64; 2], Vec<(f64, String)>) {
    let step = step(high - low, most);
    let first = (low / step + 1e-9).floor();
    let count = ((high / step - 1e-9).ceil() - first).max(1.0);
    let ticks = even(count).map(|index| (index / count, show((first + index) * step, digits(step))));
    ([first * step, (first + count) * step], ticks.collect())
}

/// Even ticks from 0 that lie within `end`, as shares of it.
pub(crate) fn ticks_within(end: f64, most: f64) -> Vec<(f64, String)> {
    let step = step(end, most);
    let digits = digits(step);
    even((end / step + 1e-9).floor())
        .map(|index| (index * step / end, format!("{:.digits$}", index * step)))
        .collect()
}

/// 0, 1, 2, … up to `last`.
pub(crate) fn even(last: f64) -> impl Iterator<Item = f64> {
    std::iter::successors(Some(0.0), move |index| (index + 1.0 <= last).then_some(index + 1.0))
}

/// Decimal places that tell multiples of `step` apart.
pub(crate) fn digits(step: f64) -> usize {
    (0..6)
        .find(|&places| {
            let scaled = step * 10f64.powi(places);
            (scaled - scaled.round()).abs() < 1e-6
        })
        .map_or(6, |places| usize::try_from(places).expect("below 6"))
}

/// `100000` as `100 k`.
pub(crate) fn thousands(value: f64) -> String {
    match value {
        value if value >= 1e6 => format!("{:.0} M", value / 1e6),
        value if value >= 1e3 => format!("{:.0} k", value / 1e3),
        value => format!("{value:.0}"),
    }
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
        let ([first, last], ticks) =
            ticks_around([2.13, 3.9], 5.0, |value, digits| format!("{value:.digits$}"));
        let names: Vec<&str> = ticks.iter().map(|(_, name)| name.as_str()).collect();
        assert_eq!((first, last, &names[..]), (2.0, 4.0, &["2.0", "2.5", "3.0", "3.5", "4.0"][..]));
    }
}
