//! Tables and bars in plain text.

use softshard_labels::visible_line;

/// Rows with columns padded to their widest cell, the first to the left and all others to the right.
pub(crate) fn aligned(rows: &[Vec<String>]) -> String {
    padded(rows).iter().map(|line| format!("  {line}").trim_end().to_owned() + "\n").collect()
}

/// The same at the margin, with a rule below the first row.
pub(crate) fn ruled(rows: &[Vec<String>]) -> String {
    let padded = padded(rows);
    let rule = "─".repeat(padded.first().map_or(0, |line| line.chars().count()));
    let mut lines: Vec<&str> = padded.iter().map(|line| line.trim_end()).collect();
    lines.insert(lines.len().min(1), &rule);
    lines.join("\n")
}

fn padded(rows: &[Vec<String>]) -> Vec<String> {
    // Names in them are strangers': a cell is one line.
    let shown = |row: &Vec<String>| row.iter().map(|cell| visible_line(cell).into_owned()).collect();
    let rows: Vec<Vec<String>> = rows.iter().map(shown).collect();
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let cells = |column: usize| rows.iter().filter_map(move |row| row.get(column));
    let widths: Vec<usize> = (0..columns)
        .map(|column| cells(column).map(|cell| cell.chars().count()).max().unwrap_or(0))
        .collect();
    let line = |row: &Vec<String>| {
        let cells = row.iter().zip(&widths).enumerate().map(|(index, (cell, width))| match index {
            0 => format!("{cell:<width$}"),
            _ => format!("{cell:>width$}"),
        });
        cells.collect::<Vec<_>>().join("  ")
    };
    rows.iter().map(line).collect()
}

/// A bar of up to `width` cells for a share of the longest bar, in eighths of a cell.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "between 0 and 8 × width")]
pub(crate) fn bar(share: f64, width: u8) -> String {
    const PARTS: [&str; 8] = ["", "▏", "▎", "▍", "▌", "▋", "▊", "▉"];
    let eighths = (share.clamp(0.0, 1.0) * f64::from(width) * 8.0).round() as usize;
    // What is there is seen.
    let eighths = if share > 0.0 { eighths.max(1) } else { 0 };
    "█".repeat(eighths / 8) + PARTS[eighths % 8]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_stand_to_the_right() {
        let rows = [vec!["a".to_owned(), "1".to_owned()], vec!["bcd".to_owned(), "1,000".to_owned()]];
        assert_eq!(aligned(&rows), "  a        1\n  bcd  1,000\n");
        assert_eq!(ruled(&rows), "a        1\n──────────\nbcd  1,000");
        let hostile = [vec!["a\x1b[2J\nb".to_owned(), "1".to_owned()]];
        assert_eq!(aligned(&hostile), "  a\\x1b[2J\\nb  1\n");
    }

    #[test]
    fn bars_are_eighths_of_a_cell() {
        let bars: Vec<String> = [0.0, 1e-9, 0.5, 0.5625, 1.0].map(|share| bar(share, 4)).into();
        assert_eq!(bars, ["", "▏", "██", "██▎", "████"]);
    }
}
