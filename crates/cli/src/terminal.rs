//! Standard error: bars where it is a terminal, and lines above them.

use std::{
    io::{self, IsTerminal, Write},
    sync::{Arc, Mutex, PoisonError},
};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use softshard_labels::visible;
use tracing_subscriber::fmt::MakeWriter;

const STYLE: &str = "{prefix:>14} {wide_bar} {pos}/{len} {msg}";
const ROW_STYLE: &str = "{prefix:>14} {msg}";

/// What is drawn now; of a process there is one, which all that write to it share.
#[derive(Clone, Default)]
pub(crate) struct Terminal(Arc<Mutex<Option<Drawn>>>);

/// Lines of a terminal.
struct Drawn {
    all: MultiProgress,
    total: ProgressBar,
    /// Above the total: of each worker, or of what is learnt.
    rows: Vec<ProgressBar>,
    rows_stay: bool,
}

impl Drawn {
    fn new(stage: &str) -> Self {
        let all = MultiProgress::new();
        let total = all.add(line(STYLE, stage.to_owned()));
        Drawn { all, total, rows: Vec::new(), rows_stay: false }
    }

    fn draw(&mut self, Picture { done, total, message, rows, rows_stay }: Picture) {
        while self.rows.len() < rows.len() {
            self.rows.push(self.all.insert_before(&self.total, line(ROW_STYLE, String::new())));
        }
        for (line, (prefix, message)) in self.rows.iter().zip(rows) {
            line.set_prefix(prefix);
            line.set_message(message);
        }
        self.rows_stay = rows_stay;
        self.total.set_length(total);
        self.total.set_position(done);
        self.total.set_message(message);
    }
}

fn line(style: &str, prefix: String) -> ProgressBar {
    let style = ProgressStyle::with_template(style).unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(0).with_style(style.progress_chars("━╸ ")).with_prefix(prefix)
}

/// What is to be seen of a stage.
pub(crate) struct Picture {
    pub(crate) done: u64,
    pub(crate) total: u64,
    /// Behind the total.
    pub(crate) message: String,
    /// Lines above it, each with its name.
    pub(crate) rows: Vec<(String, String)>,
    /// Whether these stay when the total is left.
    pub(crate) rows_stay: bool,
}

impl Terminal {
    /// Whether there is one: it may hang up.
    pub(crate) fn is_there() -> bool {
        io::stderr().is_terminal()
    }

    fn with<R>(&self, use_it: impl FnOnce(&mut Option<Drawn>) -> R) -> R {
        use_it(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Begins the bar of a stage.
    pub(crate) fn begin(&self, stage: &str) {
        self.with(|drawn| *drawn = Some(Drawn::new(stage)));
    }

    /// Draws what was begun.
    pub(crate) fn draw(&self, picture: Picture) {
        self.with(|drawn| {
            if let Some(lines) = drawn {
                lines.draw(picture);
            }
        });
    }

    /// Leaves the total as it stands.
    pub(crate) fn leave(&self) {
        if let Some(lines) = self.with(Option::take) {
            let end = if lines.rows_stay { ProgressBar::abandon } else { ProgressBar::finish_and_clear };
            lines.rows.iter().for_each(end);
            lines.total.abandon();
        }
    }

    /// A line above the bars.
    pub(crate) fn say(&self, line: &str) {
        self.above_bars(|| tell(line));
    }

    fn above_bars<R>(&self, write: impl FnOnce() -> R) -> R {
        self.with(|drawn| match drawn {
            // A terminal that has hung up is none any more, and indicatif panics where it cannot draw.
            Some(lines) if Self::is_there() => lines.all.suspend(write),
            _ => write(),
        })
    }
}

/// A line to standard error, in one piece, with what a terminal would obey made visible. Whoever read it may
/// have left: that ends no stage.
pub(crate) fn tell(line: &str) {
    let _ = io::stderr().write_all(format!("{}\n", visible(line)).as_bytes());
}

/// Writes log lines above the bars.
pub(crate) struct AboveBars<'a>(&'a Terminal);

impl Write for AboveBars<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.above_bars(|| io::stderr().write(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

impl<'a> MakeWriter<'a> for Terminal {
    type Writer = AboveBars<'a>;

    fn make_writer(&'a self) -> AboveBars<'a> {
        AboveBars(self)
    }
}
