//! What a template may cost, and how it fails.

use std::cell::Cell;
use std::fmt;

/// Steps of one rendering: an operation, an item of a list, or [`BYTES_PER_STEP`] bytes of text. A conversation of a
/// thousand turns takes some hundred thousand; all of them take less than a second.
const MAX_STEPS: u64 = 10_000_000;
/// Bytes of text that are copied or searched in about the time of one step.
const BYTES_PER_STEP: usize = 64;
/// Bytes of one text and of the whole rendering.
pub(super) const MAX_TEXT_BYTES: usize = 64 << 20;
/// Lists in lists, which are printed, compared and freed by recursion.
pub(super) const MAX_NESTING: u32 = 200;
/// Expressions, statements and macros that are evaluated inside of each other. Jinja2 is Python and fails at a like
/// depth; here it bounds the stack.
const MAX_DEPTH: u32 = 800;

/// What kind of exception Python would raise, or why we do not go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// `TypeError`.
    Type,
    /// `ValueError`, `OverflowError` and the like.
    Value,
    /// Any other exception that the template raises.
    Raised,
    /// What Jinja2 may do and we do not.
    Refused,
    /// A limit of this file.
    Limit,
}

/// Why a template gives no text.
#[derive(Clone, Debug)]
pub(super) struct Failure(Box<Fault>);

#[derive(Clone, Debug)]
struct Fault {
    kind: Kind,
    message: String,
    line: Option<usize>,
}

impl Failure {
    pub(super) fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self(Box::new(Fault { kind, message: message.into(), line: None }))
    }

    pub(super) fn kind(&self) -> Kind {
        self.0.kind
    }

    /// The same with the line of the template, if it has none yet.
    pub(super) fn at(mut self, line: usize) -> Self {
        self.0.line.get_or_insert(line);
        self
    }

    pub(super) fn line(&self) -> Option<usize> {
        self.0.line
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.message)
    }
}

pub(super) type Outcome<T> = Result<T, Failure>;

pub(super) fn type_error<T>(message: impl Into<String>) -> Outcome<T> {
    Err(Failure::new(Kind::Type, message))
}

pub(super) fn value_error<T>(message: impl Into<String>) -> Outcome<T> {
    Err(Failure::new(Kind::Value, message))
}

pub(super) fn raised<T>(message: impl Into<String>) -> Outcome<T> {
    Err(Failure::new(Kind::Raised, message))
}

/// Refuses by name what Jinja2 may do and we do not.
pub(super) fn refused<T>(what: impl fmt::Display) -> Outcome<T> {
    Err(Failure::new(Kind::Refused, format!("{what} is not supported in chat templates here")))
}

/// Counts what a rendering costs.
#[derive(Default)]
pub(super) struct Meter {
    steps: Cell<u64>,
    depth: Cell<u32>,
}

impl Meter {
    /// Counts `steps` more.
    pub(super) fn steps(&self, steps: usize) -> Outcome<()> {
        let steps = self.steps.get().saturating_add(u64::try_from(steps).unwrap_or(u64::MAX));
        self.steps.set(steps);
        if steps <= MAX_STEPS { Ok(()) } else { Self::too_many_steps() }
    }

    /// Counts a text that is made or searched; `bytes` is its length.
    pub(super) fn text(&self, bytes: usize) -> Outcome<()> {
        self.size(bytes)?;
        self.steps(1 + bytes / BYTES_PER_STEP)
    }

    /// Refuses a text of so many bytes if it is too long.
    pub(super) fn size(&self, bytes: usize) -> Outcome<()> {
        if bytes <= MAX_TEXT_BYTES {
            return Ok(());
        }
        let message = format!("expected a text of at most {MAX_TEXT_BYTES} bytes, found {bytes}");
        Err(Failure::new(Kind::Limit, message))
    }

    #[cold]
    fn too_many_steps() -> Outcome<()> {
        let message =
            format!("expected an end after at most {MAX_STEPS} steps, found a template that goes on");
        Err(Failure::new(Kind::Limit, message))
    }

    /// One level deeper; [`Meter::leave`] comes back.
    pub(super) fn enter(&self) -> Outcome<()> {
        let depth = self.depth.get() + 1;
        self.depth.set(depth);
        if depth > MAX_DEPTH {
            return Err(Failure::new(Kind::Limit, "maximum recursion depth exceeded"));
        }
        self.steps(1)
    }

    pub(super) fn leave(&self) {
        self.depth.set(self.depth.get() - 1);
    }
}
