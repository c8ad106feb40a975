//! How numbers are said to people.

/// `12345.6` as `12,346`.
pub(crate) fn grouped(value: f64) -> String {
    let digits = format!("{:.0}", value.max(0.0));
    let mut text = String::with_capacity(digits.len() * 4 / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// The same of a count.
pub(crate) fn number(count: usize) -> String {
    self::count(u64::try_from(count).expect("a count fits 64 bits"))
}

/// The same of 64 bits.
pub(crate) fn count(count: u64) -> String {
    grouped(float(count))
}

/// As a number that is computed with.
#[expect(clippy::cast_precision_loss, reason = "for people")]
pub(crate) fn float(count: u64) -> f64 {
    count as f64
}

/// A share of 1 as `12.34 %`.
pub(crate) fn percent(share: f64) -> String {
    format!("{:.2} %", 100.0 * share)
}

/// `1,234 B`, `12.3 MB`.
pub(crate) fn size(bytes: u64) -> String {
    let units = [(1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")];
    let unit = units.into_iter().find(|(unit, _)| float(bytes) >= 10.0 * unit);
    unit.map_or_else(
        || format!("{} B", count(bytes)),
        |(unit, name)| format!("{:.1} {name}", float(bytes) / unit),
    )
}

/// Bytes in gigabytes, as sizes of GPUs are said.
pub(crate) fn memory(bytes: f64) -> String {
    if bytes < 1e9 { format!("{:.0} MB", bytes / 1e6) } else { format!("{:.1} GB", bytes / 1e9) }
}

/// `12 s`, `3.4 min`, `5.6 hours`.
pub(crate) fn duration(seconds: f64) -> String {
    match seconds {
        seconds if seconds < 120.0 => format!("{seconds:.0} s"),
        seconds if seconds < 7200.0 => format!("{:.1} min", seconds / 60.0),
        seconds => format!("{:.1} hours", seconds / 3600.0),
    }
}

/// A loss with the digits that tell two steps apart.
pub(crate) fn nats(value: f64) -> String {
    match value.abs() {
        size if size >= 100.0 => format!("{value:.1}"),
        size if size >= 10.0 => format!("{value:.2}"),
        size if size >= 0.1 || size == 0.0 => format!("{value:.3}"),
        size if size >= 1e-4 => format!("{value:.5}"),
        _ => format!("{value:.1e}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digits_are_grouped_by_three() {
        let grouped: Vec<_> =
            [0.0, 12.4, 999.6, 12_345.6, 1_234_567.0].into_iter().map(super::grouped).collect();
        assert_eq!(grouped, ["0", "12", "1,000", "12,346", "1,234,567"]);
    }

    #[test]
    fn sizes_and_times_are_short() {
        assert_eq!(
            [9_999, 10_000, 12_345_678, 30_000_000_000].map(size),
            ["9,999 B", "10.0 kB", "12.3 MB", "30.0 GB"]
        );
        assert_eq!([12.3, 300.0, 36_000.0].map(duration), ["12 s", "5.0 min", "10.0 hours"]);
    }
}
