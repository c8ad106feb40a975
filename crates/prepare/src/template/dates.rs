//! The day of `strftime_now`: from the recipe, so that the same data gives the same sequences tomorrow.

use super::limits::{Outcome, refused};

/// A day, at midnight unless a time is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Moment {
    year: i32,
    month: usize,
    day: u32,
    hour: u32,
    minute: u32,
    second: u32,
}

const DAYS: [&str; 7] = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"];
const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];

impl Moment {
    /// `2025-01-31`, or `2025-01-31 12:30:00`.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let (date, time) = text.split_once([' ', 'T']).unwrap_or((text, "00:00:00"));
        let [year, month, day] = numbers(date, '-', [4, 2, 2])?;
        let [hour, minute, second] = numbers(time, ':', [2, 2, 2])?;
        let is_good = (1..=9999).contains(&year)
            && (1..=12).contains(&month)
            && (1..=days_of(year, month)).contains(&day)
            && hour < 24
            && minute < 60
            && second < 60;
        let moment = Self {
            year: i32::try_from(year).ok()?,
            month: usize::try_from(month).ok()?,
            day,
            hour,
            minute,
            second,
        };
        is_good.then_some(moment)
    }

    /// Days of the year before this one.
    fn day_of_year(&self) -> u32 {
        let year = self.year.unsigned_abs();
        (1..self.month).map(|month| days_of(year, u32::try_from(month).expect("twelve months"))).sum::<u32>()
            + self.day
    }

    /// 0 is Monday.
    fn weekday(&self) -> usize {
        // Sakamoto's method, which gives 0 for Sunday.
        const SHIFT: [u32; 12] = [0, 3, 2, 5, 0, 3, 5, 1, 4, 6, 2, 4];
        let year = self.year.unsigned_abs() - u32::from(self.month < 3);
        let day = year + year / 4 - year / 100 + year / 400 + SHIFT[self.month - 1] + self.day;
        usize::try_from((day + 6) % 7).expect("seven days")
    }

    /// Week and year of ISO 8601.
    fn iso_week(&self) -> (i32, u32) {
        let weekday = u32::try_from(self.weekday()).expect("seven days");
        let week = (self.day_of_year() + 9 - weekday) / 7;
        let weeks = |year: i32| {
            let last = Self { year, month: 12, day: 31, ..*self };
            let leap = days_of(year.unsigned_abs(), 2) == 29;
            if last.weekday() == 3 || last.weekday() == 4 && leap { 53 } else { 52 }
        };
        match week {
            0 => (self.year - 1, weeks(self.year - 1)),
            53 if weeks(self.year) == 52 => (self.year + 1, 1),
            _ => (self.year, week),
        }
    }

    /// `datetime.strftime`, in the C locale.
    pub(super) fn format(&self, format: &str) -> Outcome<String> {
        let mut out = String::new();
        let mut rest = format;
        while let Some(at) = rest.find('%') {
            out.push_str(&rest[..at]);
            let mut directive = rest[at + 1..].chars();
            let plain = rest[at + 1..].strip_prefix('-');
            if plain.is_some() {
                directive.next();
            }
            let Some(kind) = directive.next() else { return refused("a `%` at the end of a date's format") };
            let text = self.directive(kind)?;
            match plain {
                Some(_) if text.bytes().all(|digit| digit.is_ascii_digit()) => {
                    let digits = text.trim_start_matches('0');
                    out.push_str(if digits.is_empty() { "0" } else { digits });
                }
                Some(_) => return refused(format_args!("`%-{kind}` in a date's format")),
                None => out.push_str(&text),
            }
            rest = directive.as_str();
        }
        Ok(out + rest)
    }

    fn directive(&self, kind: char) -> Outcome<String> {
        let Self { year, month, day, hour, minute, second } = *self;
        let (month_name, day_name) = (MONTHS[month - 1], DAYS[self.weekday()]);
        let hour_of_12 = if hour % 12 == 0 { 12 } else { hour % 12 };
        let half = if hour < 12 { "AM" } else { "PM" };
        let weekday = u32::try_from(self.weekday()).expect("seven days");
        let of_year = self.day_of_year();
        Ok(match kind {
            'Y' => year.to_string(),
            'y' => format!("{:02}", year % 100),
            'C' => format!("{:02}", year / 100),
            'm' => format!("{month:02}"),
            'd' => format!("{day:02}"),
            'e' => format!("{day:2}"),
            'B' => month_name.into(),
            'b' | 'h' => month_name[..3].into(),
            'A' => day_name.into(),
            'a' => day_name[..3].into(),
            'w' => ((weekday + 1) % 7).to_string(),
            'u' => (weekday + 1).to_string(),
            'j' => format!("{of_year:03}"),
            'U' => format!("{:02}", (of_year + 6 - (weekday + 1) % 7) / 7),
            'W' => format!("{:02}", (of_year + 6 - weekday) / 7),
            'V' => format!("{:02}", self.iso_week().1),
            'G' => self.iso_week().0.to_string(),
            'H' => format!("{hour:02}"),
            'I' => format!("{hour_of_12:02}"),
            'k' => format!("{hour:2}"),
            'l' => format!("{hour_of_12:2}"),
            'M' => format!("{minute:02}"),
            'S' => format!("{second:02}"),
            'f' => "000000".into(),
            'p' => half.into(),
            'P' => half.to_lowercase(),
            'F' => self.format("%Y-%m-%d")?,
            'D' | 'x' => self.format("%m/%d/%y")?,
            'T' | 'X' => self.format("%H:%M:%S")?,
            'R' => self.format("%H:%M")?,
            'r' => self.format("%I:%M:%S %p")?,
            'c' => self.format("%a %b %e %H:%M:%S %Y")?,
            'z' | 'Z' => String::new(),
            'n' => "\n".into(),
            't' => "\t".into(),
            '%' => "%".into(),
            other => return refused(format_args!("`%{other}` in a date's format")),
        })
    }
}

fn numbers(text: &str, separator: char, lengths: [usize; 3]) -> Option<[u32; 3]> {
    let parts: Vec<&str> = text.split(separator).collect();
    let parts: [&str; 3] = parts.try_into().ok()?;
    let mut numbers = [0; 3];
    for ((number, part), length) in numbers.iter_mut().zip(parts).zip(lengths) {
        let is_number = part.len() == length && part.bytes().all(|digit| digit.is_ascii_digit());
        *number = part.parse().ok().filter(|_| is_number)?;
    }
    Some(numbers)
}

fn days_of(year: u32, month: u32) -> u32 {
    match month {
        2 if year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400)) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_are_written_as_python_writes_them() {
        let day = Moment::parse("2024-12-30").unwrap();
        let found = day.format("%a %A %d %b %B %Y %y %j %w %u %V %G %U %W %-d %p %I %%").unwrap();
        assert_eq!(found, "Mon Monday 30 Dec December 2024 24 365 1 1 01 2025 52 53 30 AM 12 %");
        assert_eq!(
            Moment::parse("2024-02-29 13:05:09").unwrap().format("%F %T %-I").unwrap(),
            "2024-02-29 13:05:09 1"
        );
    }

    #[test]
    fn what_is_no_day_is_refused() {
        for text in ["2025-02-29", "2025-13-01", "25-01-01", "today", "2025-01-01 24:00:00", "2025-1-1"] {
            assert_eq!(Moment::parse(text), None, "{text}");
        }
        assert!(Moment::parse("2025-01-31").unwrap().format("%Q").unwrap_err().to_string().contains("`%Q`"));
    }
}
