//! Checks a GPU, and measures it: `make gpu`. One Markdown table on stdout, row by row; see docs/gpu.md.
//!
//! Each part runs in a process of its own, so that a fault of the device or a part that hangs costs that part alone. The
//! exit code is 0 only if every check held, and 4 if there is no such device.

mod card;
mod head;
mod parity;
mod shapes;
mod speed;
mod table;

#[path = "../../src/device.rs"]
mod device;

use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use clap::{Parser, ValueEnum};

use table::{Outcome, Row};

const FAILED: u8 = 1;
const NO_DEVICE: u8 = 4;
/// What a part may use of its time before it starts nothing new: the rest is for what it is at.
const OWN_SHARE: f64 = 0.8;

/// Parity with the CPU, and speed, of one device.
#[derive(Parser, Clone)]
struct Options {
    /// cuda:0, or cpu for a dry run
    #[arg(long, default_value = "cuda:0")]
    device: String,
    /// Small shapes: whether everything runs, not how fast
    #[arg(long)]
    quick: bool,
    /// The folder with the golden models `tiny-*`
    #[arg(long, default_value = "tests/peers/golden")]
    golden: PathBuf,
    /// A Python that may have torch and transformers
    #[arg(long, default_value = "python3")]
    python: String,
    /// What measures transformers
    #[arg(long, default_value = "tests/gpu/transformers_forward.py")]
    peer: PathBuf,
    /// Minutes for everything
    #[arg(long, default_value_t = 9.5)]
    minutes: f64,
    /// Only this part, in this process
    #[arg(long, requires = "results")]
    part: Option<Part>,
    /// Where parts leave what later ones need
    #[arg(long)]
    results: Option<PathBuf>,
    /// Seconds for this part
    #[arg(long, default_value_t = 60.0)]
    seconds: f64,
}

/// In the order in which they run.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum, Debug)]
enum Part {
    Card,
    Head,
    Parity,
    Transformers,
    Small,
    Large,
}

impl Part {
    /// Its share of the time.
    fn share(self) -> f64 {
        match self {
            Self::Card => 0.10,
            Self::Head => 0.08,
            Self::Parity => 0.31,
            Self::Transformers => 0.17,
            Self::Small => 0.16,
            Self::Large => 0.18,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Card => "device",
            Self::Head => "head",
            Self::Parity => "parity",
            Self::Transformers => "transformers",
            Self::Small => shapes::SMALL.name,
            Self::Large => shapes::LARGE.name,
        }
    }

    /// Whether its failure is one of ours. The peer may be absent, or too old.
    fn counts(self) -> bool {
        self != Self::Transformers
    }
}

/// What a part has to work with.
struct Bench {
    options: Options,
    results: PathBuf,
    /// When nothing new is started.
    until: Instant,
}

impl Bench {
    fn seconds_left(&self) -> f64 {
        self.until.saturating_duration_since(Instant::now()).as_secs_f64()
    }

    fn result(&self, name: &str) -> PathBuf {
        self.results.join(name)
    }
}

fn main() -> ExitCode {
    let options = Options::parse();
    match options.part {
        Some(part) => one(part, options),
        None => all(&options),
    }
}

/// One part, in this process.
fn one(part: Part, options: Options) -> ExitCode {
    let results = options.results.clone().expect("clap asks for it");
    let until = Instant::now() + Duration::from_secs_f64(options.seconds * OWN_SHARE);
    let bench = Bench { options, results, until };
    if part == Part::Transformers {
        return code(speed::transformers(&bench));
    }
    let device = match device::open(&bench.options.device) {
        Ok(device) => device,
        Err(error) => {
            eprintln!("error: {error}");
            return ExitCode::from(NO_DEVICE);
        }
    };
    code(match part {
        Part::Card => card::run(&bench, &device),
        Part::Head => head::run(&bench, &device),
        Part::Parity => parity::run(&bench, &device),
        Part::Small => speed::run(&bench, &device, &shapes::SMALL),
        Part::Large => speed::run(&bench, &device, &shapes::LARGE),
        Part::Transformers => unreachable!("it opens no device"),
    })
}

fn code(all_well: anyhow::Result<bool>) -> ExitCode {
    match all_well {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(FAILED),
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(FAILED)
        }
    }
}

/// All parts, each in a process of its own.
fn all(options: &Options) -> ExitCode {
    let start = Instant::now();
    let end = start + Duration::from_secs_f64(options.minutes * 60.0);
    let folder = match tempfile::tempdir() {
        Ok(folder) => folder,
        Err(error) => {
            eprintln!("error: no temporary folder: {error}");
            return ExitCode::from(FAILED);
        }
    };
    let mut failed = false;
    let parts = Part::value_variants();
    for (index, &part) in parts.iter().enumerate() {
        let later: f64 = parts[index + 1..].iter().map(|part| part.share()).sum();
        let left = end.saturating_duration_since(Instant::now()).as_secs_f64();
        // What the parts before did not use is this part's.
        let seconds = (left - later * options.minutes * 60.0).max(1.0);
        eprintln!("── {} (at most {seconds:.0} s) ──", part.name());
        let problem = match child(part, options, folder.path(), seconds) {
            Ok(Some(status)) if status.success() => continue,
            Ok(Some(status)) if status.code() == Some(i32::from(NO_DEVICE)) => {
                return ExitCode::from(NO_DEVICE);
            }
            Ok(Some(status)) => format!("ended with {status}"),
            Ok(None) => format!("not finished in {seconds:.0} s"),
            Err(error) => format!("not started: {error}"),
        };
        failed |= part.counts();
        Row::new(part.name(), "the part").ours(problem).say(Outcome::Failed);
    }
    eprintln!("all parts: {:.0} s", start.elapsed().as_secs_f64());
    if failed { ExitCode::from(FAILED) } else { ExitCode::SUCCESS }
}

/// How the part ended; `None` if its time was over.
fn child(part: Part, options: &Options, results: &Path, seconds: f64) -> std::io::Result<Option<ExitStatus>> {
    let name = part.to_possible_value().expect("no part is hidden");
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["--part", name.get_name(), "--device", &options.device, "--python", &options.python]);
    command.arg("--golden").arg(&options.golden).arg("--peer").arg(&options.peer);
    command.arg("--results").arg(results).args(["--seconds", &format!("{seconds:.1}")]);
    if options.quick {
        command.arg("--quick");
    }
    if part == Part::Parity {
        // Many small products of many shapes: the first good kernel will do.
        command.env("CUBECL_AUTOTUNE_LEVEL", "minimal");
    }
    wait(command.stdin(Stdio::null()).spawn()?, seconds)
}

/// Ends the process when its time is over.
fn wait(mut child: Child, seconds: f64) -> std::io::Result<Option<ExitStatus>> {
    let end = Instant::now() + Duration::from_secs_f64(seconds);
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if Instant::now() >= end {
            child.kill()?;
            child.wait()?;
            return Ok(None);
        }
        thread::sleep(Duration::from_millis(50));
    }
}
