//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::{
    cluster::{Jobs, Task},
    labels::{export::Export, import::Import, merge::Merge},
};

const MAP: &str = "\
The way of the data:

  instructions.jsonl ─ prepare ─► sequences/
                                      │
              teacher ─ teacher-labels ─► labels/     self-contained: all that a student needs
                                            │
                         student ─ train-student ─► adapter/ or model/
                                                        │
                                                    evaluate ─► scores ─ report ─► one table

Every stage reads one recipe (TOML); labelling and training go on where they were interrupted.

Exit codes: 0 done, 1 failed, 2 bad usage or recipe, 3 bad or mismatched data, 4 device or memory,
75 interrupted: run again.";

/// Offline knowledge distillation of language models: a teacher writes label shards, a student learns from them without it.
#[derive(Parser)]
#[command(name = "softshard", version, after_help = MAP, disable_help_subcommand = true)]
pub(crate) struct Arguments {
    /// What to do.
    #[command(subcommand)]
    pub(crate) command: Command,
    /// How events are written to stderr.
    #[arg(long, global = true, value_enum, default_value_t = LogFormat::Text)]
    pub(crate) log_format: LogFormat,
    /// Read labels and sequences piece by piece instead of mapping their files, as is always done on network file systems.
    #[arg(long, global = true)]
    pub(crate) no_mmap: bool,
}

/// How events are written to stderr.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    /// For people: bars on a terminal, plain lines elsewhere.
    Text,
    /// One JSON object a line.
    Json,
}

/// One stage each, in the order of the data.
#[derive(Subcommand)]
pub(crate) enum Command {
    /// Write a small world of checkable articles and summaries, and its tokenizer
    DemoData(DemoData),
    /// Instruction JSONL to token ids and loss masks: sequences/
    Prepare(Stage),
    /// Train the teacher on the sequences first (section [finetune])
    Finetune(Stage),
    /// Stage 1: the teacher reads each sequence once and writes label shards: labels/
    TeacherLabels(TeacherLabels),
    /// Stage 1 on many machines: jobs of a cluster, each some of the shards, and after them `labels finalize`
    Submit(Box<Jobs>),
    /// Submit again what is missing of the labels, as storage says, with the options of the submission before
    Resume(Box<Jobs>),
    /// Stage 2: a student learns from label shards, without the teacher: adapter/ or model/
    TrainStudent(TrainStudent),
    /// Answers of a trained model and their scores: evaluations/NAME.json
    Evaluate(Stage),
    /// All evaluations of a recipe's output as one table, and the curves of its trainings as a page
    Report(Report),
    /// Add an adapter to the weights of its base: a model folder that needs no adapter
    Merge(crate::merge::Merge),
    /// Print a published schema: of the shards, of their manifests, plans and commits, of recipes
    Schema(Schema),
    /// Judge, read, compare, merge and exchange label datasets
    #[command(subcommand)]
    Labels(Labels),
    /// Judge models before they are loaded
    #[command(subcommand)]
    Model(Model),
}

/// Arguments of `schema`.
#[derive(Args)]
#[group(required = true, multiple = false)]
pub(crate) struct Schema {
    /// Which one, as labels.parquet, labels-manifest, plan or recipe; all are listed where there is no such one
    pub(crate) name: Option<String>,
    /// Write all into a folder
    #[arg(long, value_name = "DIR")]
    pub(crate) all: Option<PathBuf>,
}

/// What every stage takes.
#[derive(Args)]
pub(crate) struct Stage {
    /// The run's recipe (TOML)
    pub(crate) recipe: PathBuf,
    /// Override one value of the recipe by its path, such as student.loss.alpha=0.1
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub(crate) overrides: Vec<String>,
    /// Where tensors live: cpu, or cuda:0; to label and to train several, as cuda:0,1, or all with cuda
    #[arg(long, default_value = "cpu")]
    pub(crate) device: String,
}

/// Arguments of `train-student`.
#[derive(Args)]
pub(crate) struct TrainStudent {
    /// The run
    #[command(flatten)]
    pub(crate) stage: Stage,
    /// Print how much memory the run will take at most, part by part, and stop before anything is loaded
    #[arg(long)]
    pub(crate) plan: bool,
}

/// Arguments of `teacher-labels`.
#[derive(Args)]
pub(crate) struct TeacherLabels {
    /// The run
    #[command(flatten)]
    pub(crate) stage: Stage,
    /// Label only the shards of one of several processes: which one, from 0 on, or `auto` as the scheduler says;
    /// `labels finalize` ends the dataset
    #[arg(long, value_name = "I", requires = "of")]
    pub(crate) task: Option<Task>,
    /// How many processes there are
    #[arg(long, value_name = "N", requires = "task", value_parser = positive)]
    pub(crate) of: Option<usize>,
    /// Price of a device for an hour, in any currency: what the rest of the corpus will cost is said at the end
    #[arg(long, value_name = "PRICE")]
    pub(crate) price_per_hour: Option<f64>,
}

/// What can be done with labels that are there.
#[derive(Subcommand)]
pub(crate) enum Labels {
    /// Check everything: hashes, schema and every row; names shard, row and column of all that is wrong
    Verify(Dataset),
    /// Tokens, bytes per column, entropy, retained mass, and how good the teacher is
    Stats(Stats),
    /// One sequence, coloured by the teacher's confidence, and its alternatives
    Inspect(Inspect),
    /// Why two datasets are not interchangeable
    Diff(Diff),
    /// Before a long run: bytes, hours and retained mass of several selections, from a small sample
    Plan(Plan),
    /// Score random positions of finished labels again with the live teacher
    Audit(Audit),
    /// Finish labels that many workers made, or say which shards are missing; reads no teacher
    Finalize(Finalize),
    /// Join parts of one plan, or labels of different sequences that were made alike
    Merge(Merge),
    /// Make labels of what DistillKit, vLLM, OpenAI-compatible servers or others wrote
    Import(Box<Import>),
    /// Write labels for Hugging Face trainers, or as JSONL
    Export(Export),
}

/// What can be asked of a model.
#[derive(Subcommand)]
pub(crate) enum Model {
    /// Shape, parameters and memory of models from their config.json alone, no weights needed: will it fit, and how?
    Inspect(InspectModel),
}

/// Arguments of `model inspect`.
#[derive(Args)]
pub(crate) struct InspectModel {
    /// Model folders, or their config.json under any name
    #[arg(required = true, value_name = "PATH")]
    pub(crate) paths: Vec<PathBuf>,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// A label dataset, and how to speak of it.
#[derive(Args)]
pub(crate) struct Dataset {
    /// Folder of the labels, which holds manifest.json
    #[arg(value_parser = crate::recipe::local)]
    pub(crate) dir: PathBuf,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Arguments of `labels stats`.
#[derive(Args)]
pub(crate) struct Stats {
    /// The dataset
    #[command(flatten)]
    pub(crate) dataset: Dataset,
    /// Write them as one page with plots, which needs no other file
    #[arg(long, value_name = "FILE")]
    pub(crate) html: Option<PathBuf>,
}

/// Arguments of `labels inspect`.
#[derive(Args)]
pub(crate) struct Inspect {
    /// Folder of the labels, which holds manifest.json
    #[arg(value_parser = crate::recipe::local)]
    pub(crate) dir: PathBuf,
    /// Key of the sequence: 32 hexadecimal digits
    #[arg(long, value_name = "HEX", conflicts_with = "row")]
    pub(crate) key: Option<String>,
    /// Row of the sequence, over all shards
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) row: usize,
    /// The labels' tokenizer: tokenizer.json or its folder; ids are shown without it
    #[arg(long, value_name = "PATH")]
    pub(crate) tokenizer: Option<PathBuf>,
    /// Alternatives shown at each position
    #[arg(long, value_name = "N", default_value_t = 4)]
    pub(crate) top: usize,
}

/// Arguments of `labels diff`.
#[derive(Args)]
pub(crate) struct Diff {
    /// Folder of labels
    #[arg(value_parser = crate::recipe::local)]
    pub(crate) left: PathBuf,
    /// Folder of other labels
    #[arg(value_parser = crate::recipe::local)]
    pub(crate) right: PathBuf,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Arguments of `report`.
#[derive(Args)]
pub(crate) struct Report {
    /// The run's recipe (TOML)
    pub(crate) recipe: PathBuf,
    /// Override one value of the recipe by its path, such as output.dir=other
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub(crate) overrides: Vec<String>,
    /// Write tables and the curves of all trainings as one page, which needs no other file
    #[arg(long, value_name = "FILE")]
    pub(crate) html: Option<PathBuf>,
}

/// Arguments of `labels finalize`.
#[derive(Args)]
pub(crate) struct Finalize {
    /// The run's recipe (TOML)
    pub(crate) recipe: PathBuf,
    /// Override one value of the recipe by its path, such as output.labels=other
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub(crate) overrides: Vec<String>,
}

/// Arguments of `labels plan`.
#[derive(Args)]
pub(crate) struct Plan {
    /// The run
    #[command(flatten)]
    pub(crate) stage: Stage,
    /// Sequences of the sample; more where they have less than 2,000 labelled tokens
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = positive)]
    pub(crate) sample: usize,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Arguments of `labels audit`.
#[derive(Args)]
pub(crate) struct Audit {
    /// The run
    #[command(flatten)]
    pub(crate) stage: Stage,
    /// Folder of the labels [default: the recipe's, of every split]
    #[arg(long, value_name = "DIR")]
    pub(crate) labels: Option<PathBuf>,
    /// Labelled positions of each dataset that are scored again
    #[arg(long, value_name = "N", default_value_t = 200, value_parser = positive)]
    pub(crate) positions: usize,
    /// Chooses the positions
    #[arg(long, default_value_t = 0)]
    pub(crate) seed: u64,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

pub(crate) fn positive(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|count| *count > 0).ok_or_else(|| "expected a whole number above 0".to_owned())
}

/// Arguments of `demo-data`.
#[derive(Args, Clone)]
pub(crate) struct DemoData {
    /// Folder to write to
    pub(crate) output: PathBuf,
    /// Seed of the small world
    #[arg(long, default_value_t = 1)]
    pub(crate) seed: u64,
    /// Articles with their summaries
    #[arg(long, default_value_t = 8_000)]
    pub(crate) rows: usize,
    /// Entries of the tokenizer's vocabulary
    #[arg(long, default_value_t = 768)]
    pub(crate) vocab_size: usize,
}
