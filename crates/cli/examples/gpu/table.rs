//! One row of the table at a time, as soon as it is known.

use std::io::{self, Write};

/// How a row came out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Outcome {
    /// A check that held.
    Ok,
    /// A check that did not hold.
    Failed,
    /// A measurement, which cannot fail.
    Measured,
    /// A measurement with an aim, and whether it was reached: a matter of speed, not of being right.
    Aim(bool),
    /// Left out: there is no time, or nothing to compare with.
    Skipped,
}

impl Outcome {
    pub(crate) fn of(held: bool) -> Self {
        if held { Self::Ok } else { Self::Failed }
    }
}

/// A row that is being put together.
pub(crate) struct Row {
    part: String,
    what: String,
    ours: String,
    against: String,
    ratio: String,
}

pub(crate) fn heading() {
    print("| part | what | softshard | bound or peer | ratio | |\n|---|---|---|---|---|---|\n");
}

impl Row {
    pub(crate) fn new(part: impl Into<String>, what: impl Into<String>) -> Self {
        Self {
            part: part.into(),
            what: what.into(),
            ours: String::new(),
            against: String::new(),
            ratio: String::new(),
        }
    }

    pub(crate) fn ours(mut self, text: impl Into<String>) -> Self {
        self.ours = text.into();
        self
    }

    pub(crate) fn against(mut self, text: impl Into<String>) -> Self {
        self.against = text.into();
        self
    }

    pub(crate) fn ratio(mut self, ratio: f64) -> Self {
        self.ratio = format!("{ratio:.2}");
        self
    }

    /// Prints it, and whether it stands in the way of success.
    pub(crate) fn say(self, outcome: Outcome) -> bool {
        let word = match outcome {
            Outcome::Ok => "ok",
            Outcome::Failed => "**FAILED**",
            Outcome::Measured => "",
            Outcome::Aim(true) => "aim met",
            Outcome::Aim(false) => "aim missed",
            Outcome::Skipped => "not run",
        };
        let cells =
            [&self.part, &self.what, &self.ours, &self.against, &self.ratio].map(|cell| one_line(cell));
        print(&format!("| {} | {word} |\n", cells.join(" | ")));
        outcome != Outcome::Failed
    }
}

/// A cell has one line, and no bar of its own.
fn one_line(text: &str) -> String {
    let line: String = text.split_whitespace().collect::<Vec<_>>().join(" ").replace('|', "/");
    match line.char_indices().nth(240) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line,
    }
}

fn print(text: &str) {
    let mut out = io::stdout().lock();
    // Nobody reads on: the exit code still tells.
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

/// Bytes in words.
pub(crate) fn gib(bytes: u64) -> String {
    const GIB: f64 = (1u64 << 30) as f64;
    format!("{:.1} GiB", bytes as f64 / GIB)
}
