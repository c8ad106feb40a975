//! Checks a GPU, and measures it: `make gpu`. One Markdown table on stdout, row by row; see docs/gpu.md.
//!
//! Each part runs in a process of its own, so that a fault of the device or a part that hangs costs that part alone. The
//! exit code is 0 only if every check held, and 4 if there is no such device.

mod card;
mod flops;
mod head;
mod labelling;
mod made_up;
mod parity;
mod peers;
mod shapes;
mod speed;
mod student;
mod table;

#[path = "../../src/device.rs"]
mod device;
#[path = "../../src/lost_task.rs"]
mod lost_task;

use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use burn::tensor::{DType, Device};
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
    /// The folder with what measures transformers and PEFT, and with the lengths of Dolly
    #[arg(long, default_value = "tests/gpu")]
    peers: PathBuf,
    /// Minutes for everything
    #[arg(long, default_value_t = 9.0)]
    minutes: f64,
    /// These parts alone, with commas between them
    #[arg(long, value_delimiter = ',')]
    only: Vec<Part>,
    /// Where a model of 15 GB is written for as long as this runs, in memory at best; the temporary folder if it is not given
    #[arg(long)]
    scratch: Option<PathBuf>,
    /// Only this part, in this process
    #[arg(long, requires = "results")]
    part: Option<Part>,
    /// The part begins the table
    #[arg(long)]
    first: bool,
    /// Where parts leave what later ones need
    #[arg(long)]
    results: Option<PathBuf>,
    /// Seconds for this part
    #[arg(long, default_value_t = 60.0)]
    seconds: f64,
}

/// In the order in which they run: what must be known first, and what was measured before last.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum, Debug)]
enum Part {
    Card,
    Head,
    Parity,
    Weights,
    LabelPeers,
    Labels,
    StudentPeers,
    Student,
    SmallStudent,
    ForwardPeers,
    Small,
    Large,
}

impl Part {
    /// Its share of the time. What is not used is there for those that follow.
    fn share(self) -> f64 {
        match self {
            Self::Card => 0.05,
            Self::Head => 0.04,
            Self::Parity => 0.15,
            Self::Weights => 0.05,
            Self::LabelPeers => 0.12,
            Self::Labels => 0.14,
            Self::StudentPeers => 0.12,
            Self::Student => 0.15,
            Self::SmallStudent => 0.15,
            Self::ForwardPeers => 0.01,
            Self::Small | Self::Large => 0.01,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Card => "device",
            Self::Head => "head",
            Self::Parity => "parity",
            Self::Weights => "weights",
            Self::LabelPeers => "labelling, transformers",
            Self::Labels => "labelling",
            Self::StudentPeers => "student, PEFT",
            Self::Student => "student",
            Self::SmallStudent => "student, less memory",
            Self::ForwardPeers => "transformers",
            Self::Small => shapes::SMALL.name,
            Self::Large => shapes::LARGE.name,
        }
    }

    /// Whether its failure is one of ours. A peer may be absent, or too old.
    fn counts(self) -> bool {
        !matches!(self, Self::LabelPeers | Self::StudentPeers | Self::ForwardPeers)
    }

    /// Seconds below which it is not begun; of those that may be left out.
    fn least_seconds(self) -> f64 {
        match self {
            Self::ForwardPeers | Self::Small | Self::Large => 20.0,
            _ => 0.0,
        }
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

    /// A file or folder that a part leaves for those that follow.
    fn result(&self, name: &str) -> PathBuf {
        self.results.join(name)
    }

    /// The folder of the model.
    fn model(&self) -> PathBuf {
        self.options.scratch.as_ref().unwrap_or(&self.results).join("model")
    }

    /// JSON that was left there.
    fn read(&self, name: &str) -> Option<serde_json::Value> {
        serde_json::from_str(&std::fs::read_to_string(self.result(name)).ok()?).ok()
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
    let run: PartOf = match part {
        Part::Weights => return alone(&bench, made_up::weights),
        Part::LabelPeers => return alone(&bench, labelling::peers),
        Part::StudentPeers => return alone(&bench, student::peers),
        Part::ForwardPeers => return alone(&bench, speed::peers),
        Part::Card => card::run,
        Part::Head => head::run,
        Part::Parity => parity::run,
        Part::Labels => labelling::run,
        Part::Student => |bench, device| student::run(bench, device, student::RESIDENT),
        Part::SmallStudent => |bench, device| student::run(bench, device, student::SMALL),
        Part::Small => |bench, device| speed::run(bench, device, &shapes::SMALL),
        Part::Large => |bench, device| speed::run(bench, device, &shapes::LARGE),
    };
    watch_for_lost_tasks();
    let device = match device::open(&bench.options.device) {
        Ok(device) => device,
        Err(error) => {
            eprintln!("error: {error}");
            return ExitCode::from(NO_DEVICE);
        }
    };
    if part != Part::Parity && !device.supports_dtype(DType::BF16) {
        eprintln!("error: this part needs bf16, in which `{}` does not compute", bench.options.device);
        return ExitCode::from(FAILED);
    }
    alone(&bench, |bench| run(bench, &device))
}

/// What a lost task leaves cannot be trusted, and so the part ends.
fn watch_for_lost_tasks() {
    use tracing_subscriber::{layer::SubscriberExt, util::SubscriberInitExt};

    let lost = lost_task::LostTasks(|reason: String| {
        lost_task::end(move || {
            eprintln!("error: {}", device::DeviceError::of_lost_task(&reason));
            std::process::exit(i32::from(FAILED));
        })
    });
    tracing_subscriber::registry().with(lost).init();
}

/// A part that computes on the device: whether all of it was well.
type PartOf = fn(&Bench, &Device) -> anyhow::Result<bool>;

fn alone(bench: &Bench, run: impl FnOnce(&Bench) -> anyhow::Result<bool>) -> ExitCode {
    if bench.options.first {
        table::heading();
    }
    code(run(bench))
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
    let places = [std::env::temp_dir(), options.scratch.clone().unwrap_or_else(std::env::temp_dir)];
    let folders = match places.iter().map(tempfile::tempdir_in).collect::<Result<Vec<_>, _>>() {
        Ok(folders) => folders,
        Err(error) => {
            eprintln!("error: no temporary folder: {error}");
            return ExitCode::from(FAILED);
        }
    };
    let (results, scratch) = (folders[0].path(), folders[1].path());
    let mut failed = false;
    let chosen = |part: &&Part| options.only.is_empty() || options.only.contains(part);
    let parts: Vec<Part> = Part::value_variants().iter().filter(chosen).copied().collect();
    let shares = |parts: &[Part]| parts.iter().map(|part| part.share()).sum::<f64>();
    for (index, &part) in parts.iter().enumerate() {
        let left = end.saturating_duration_since(Instant::now()).as_secs_f64();
        // What the parts before did not use is this part's.
        let later = shares(&parts[index + 1..]) / shares(&parts);
        let seconds = (left - later * options.minutes * 60.0).max(1.0);
        if seconds < part.least_seconds() && !options.quick {
            Row::new(part.name(), "the part").ours("no time left").say(Outcome::Skipped);
            continue;
        }
        eprintln!("── {} (at most {seconds:.0} s) ──", part.name());
        let problem = match child(part, options, [results, scratch], seconds, index == 0) {
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
fn child(
    part: Part,
    options: &Options,
    [results, scratch]: [&Path; 2],
    seconds: f64,
    is_first: bool,
) -> std::io::Result<Option<ExitStatus>> {
    let name = part.to_possible_value().expect("no part is hidden");
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["--part", name.get_name(), "--device", &options.device, "--python", &options.python]);
    command.arg("--golden").arg(&options.golden).arg("--peers").arg(&options.peers);
    command.arg("--results").arg(results).arg("--scratch").arg(scratch);
    command.args(["--seconds", &format!("{seconds:.1}")]);
    command.args(
        [("--quick", options.quick), ("--first", is_first)].iter().filter(|flag| flag.1).map(|flag| flag.0),
    );
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
