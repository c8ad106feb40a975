//! Programs in Python that measure transformers and PEFT on the same shapes, where they are there.

use std::fs;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::Bench;
use crate::table::{self, Outcome, Row};

/// The exit code with which a peer says that something it needs is not there.
const ABSENT: i32 = 77;
/// The one with which it says that its time was over; what it has measured by then counts.
const LATE: i32 = 75;

/// What the peers of labelling, of the student and of forward passes leave.
pub(crate) const LABELLING: &str = "label-peers.json";
pub(crate) const STUDENT: &str = "student-peers.json";
pub(crate) const FORWARD: &str = "forward-peers.json";
/// All of them.
pub(crate) const ALL: [&str; 3] = [LABELLING, STUDENT, FORWARD];

/// A program and what it is to measure.
pub(crate) struct Peer<'a> {
    /// Its file, beside the others.
    pub(crate) script: &'a str,
    pub(crate) jobs: Value,
    /// Where it leaves its result.
    pub(crate) result: &'a str,
}

impl Peer<'_> {
    /// Runs it, and says in `row` what it is. `None` where it cannot run.
    ///
    /// # Errors
    /// It fails.
    pub(crate) fn run(&self, bench: &Bench, row: Row) -> Result<Option<Value>> {
        let options = &bench.options;
        let script = options.peers.join(self.script);
        let list = bench.result(&format!("{}.jobs.json", self.script));
        fs::write(&list, self.jobs.to_string())?;
        let output = Command::new(&options.python)
            .arg(&script)
            .args([&list, &bench.result(self.result)])
            .args(["--device", &options.device, "--seconds", &format!("{:.1}", bench.seconds_left())])
            .args(["--matrix", if options.quick { "64" } else { "8192" }])
            .output();
        let said = match output {
            Ok(said) => said,
            Err(error) => {
                row.ours(format!("`{}`: {error}", options.python)).say(Outcome::Skipped);
                return Ok(None);
            }
        };
        let text = String::from_utf8_lossy(&said.stderr);
        eprint!("{text}");
        let last = text.lines().last().unwrap_or_default();
        if said.status.code() == Some(ABSENT) {
            row.ours(last).say(Outcome::Skipped);
            return Ok(None);
        }
        let is_late = said.status.code() == Some(LATE);
        ensure!(said.status.success() || is_late, "{}: {}: {last}", script.display(), said.status);
        let measured = bench.read(self.result).context("the peer wrote no result in its time")?;
        row.ours(measured["versions"].as_str().unwrap_or_default())
            .against(format!("its own product: {:.4} TFLOP/s", number(&measured, "matrix_tflops")))
            .say(Outcome::Measured);
        if is_late {
            row_of_late(self.script);
        }
        Ok(Some(measured))
    }
}

fn row_of_late(script: &str) {
    Row::new("peers", script).ours("its time was over: the rest was not run").say(Outcome::Skipped);
}

/// A number of an object, 0 where it is not there.
pub(crate) fn number(value: &Value, key: &str) -> f64 {
    value[key].as_f64().unwrap_or(0.0)
}

/// The most memory that a peer held.
pub(crate) fn gib(one: &Value) -> String {
    table::gib(one["bytes"].as_u64().unwrap_or(0))
}
