//! Bytes against angles, both on logarithmic axes.

use crate::Measured;

const WIDTH: f64 = 420.0;
const HEIGHT: f64 = 300.0;
/// Left, top, right and bottom of the axes.
const FRAME: [f64; 4] = [48.0, 34.0, WIDTH - 12.0, HEIGHT - 40.0];
const BYTES: [f64; 2] = [8.0, 800.0];
const DEGREES: [f64; 2] = [0.02, 60.0];
/// Okabe and Ito's colours, which people with any colour vision tell apart.
const FAMILIES: [(&str, &str); 5] = [
    ("top_k, renormalised", "#D55E00"),
    ("top_k, bucket", "#E69F00"),
    ("top_p, bucket", "#CC79A7"),
    ("sampled", "#0072B2"),
    ("top_k_sampled", "#009E73"),
];

/// An SVG picture.
pub(crate) fn draw(name: &str, rows: &[Measured]) -> String {
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"sans-serif\" \
         font-size=\"11\" fill=\"#333\">\n<rect width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"#fff\"/>\n"
    );
    let [left, top, right, bottom] = FRAME;
    let mut line = |text: String| {
        svg.push_str(&text);
        svg.push('\n');
    };
    line(format!(
        "<text x=\"{left}\" y=\"20\" font-weight=\"bold\">{name}: angle to the gradient of full KD</text>"
    ));
    for bytes in [10.0, 30.0, 100.0, 300.0] {
        let x = along(bytes, BYTES, [left, right]);
        line(format!("<path d=\"M{x:.1} {top}V{bottom}\" stroke=\"#ddd\"/>"));
        let y = bottom + 15.0;
        line(format!("<text x=\"{x:.1}\" y=\"{y}\" text-anchor=\"middle\">{bytes}</text>"));
    }
    for degrees in [0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0] {
        let y = along(degrees, DEGREES, [bottom, top]);
        line(format!("<path d=\"M{left} {y:.1}H{right}\" stroke=\"#ddd\"/>"));
        let (x, y) = (left - 6.0, y + 4.0);
        line(format!("<text x=\"{x}\" y=\"{y:.1}\" text-anchor=\"end\">{degrees}°</text>"));
    }
    let (x, y) = (f64::midpoint(left, right), bottom + 32.0);
    line(format!("<text x=\"{x}\" y=\"{y}\" text-anchor=\"middle\">bytes per labelled token</text>"));
    for (index, (family, colour)) in FAMILIES.into_iter().enumerate() {
        let points: Vec<[f64; 2]> = rows
            .iter()
            .filter(|row| row.family == family)
            .map(|row| {
                [along(row.bytes_per_token, BYTES, [left, right]), along(row.degrees, DEGREES, [bottom, top])]
            })
            .collect();
        let path: Vec<String> = points.iter().map(|[x, y]| format!("{x:.1},{y:.1}")).collect();
        line(format!("<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\"/>", path.join(" ")));
        for [x, y] in points {
            line(format!("<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3\" fill=\"{colour}\"/>"));
        }
        let (x, y) = (right - 128.0, top + 14.0 + 15.0 * index as f64);
        line(format!("<circle cx=\"{x}\" cy=\"{}\" r=\"3\" fill=\"{colour}\"/>", y - 4.0));
        line(format!("<text x=\"{}\" y=\"{y}\">{family}</text>", x + 8.0));
    }
    svg + "</svg>\n"
}

/// Place of a value on a logarithmic axis.
fn along(value: f64, [low, high]: [f64; 2], [start, end]: [f64; 2]) -> f64 {
    let share = (value.clamp(low, high) / low).ln() / (high / low).ln();
    start + (end - start) * share
}
