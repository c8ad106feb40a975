//! The command line: what there is to do. A command with a file of its own has its arguments there.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use crate::{
    cluster::Jobs, compare::Compare, diff::Diff, doors::Accept, labels::Labels, logging::LogFormat,
    lookback::Lookback, merge::Merge, model::Model, report::Report, schema::Schema, scorer::ScorerCommand,
    stage::Stage, teacher_labels::TeacherLabels,
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

Every stage reads one recipe (TOML); labelling, training and evaluation go on where they were interrupted.

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

/// One stage each, in the order of the data.
#[derive(Subcommand)]
pub(crate) enum Command {
    /// Write a small world of checkable articles and summaries, and its tokenizer
    DemoData(DemoData),
    /// Instruction JSONL to token ids and loss masks: sequences/
    Prepare(Stage),
    /// Train the teacher on the sequences first (section [finetune])
    Finetune(Checked),
    /// Stage 1: the teacher reads each sequence once and writes label shards: labels/
    TeacherLabels(TeacherLabels),
    /// Stage 1 on many machines: jobs of a cluster, each some of the shards, and after them `labels finalize`
    Submit(Box<Jobs>),
    /// Submit again what is missing of the labels, as storage says, with the options of the submission before
    Resume(Box<Jobs>),
    /// Stage 2: a student learns from label shards, without the teacher: adapter/ or model/
    TrainStudent(TrainStudent),
    /// Answers of a trained model and their scores: evaluations/NAME/TASK.json
    Evaluate(Checked),
    /// All evaluations of a recipe's output as one table, and the curves of its trainings as a page
    Report(Report),
    /// Results on the same rows, each beside the first: paired differences with intervals, and a word for each
    Compare(Compare),
    /// Why two runs, models, datasets or results are not the same, in words
    Diff(Diff),
    /// Add an adapter to the weights of its base: a model folder that needs no adapter
    Merge(Merge),
    /// Print a published schema: of the shards, of their manifests, plans and commits, of recipes
    Schema(Schema),
    /// Judge, read, compare, merge and exchange label datasets
    #[command(subcommand)]
    Labels(Labels),
    /// Judge models before they are loaded
    #[command(subcommand)]
    Model(Model),
    /// Factual rate by attention: whether a model looks at the document while it writes
    #[command(subcommand)]
    Lookback(Lookback),
    /// How well documents support answers, by a model that was trained to say it (docs/scorers.md)
    #[command(subcommand)]
    Scorer(ScorerCommand),
}

/// Arguments of a stage that compares what it reads with its recipe.
#[derive(Args)]
pub(crate) struct Checked {
    /// The run
    #[command(flatten)]
    pub(crate) stage: Stage,
    /// What is taken though it differs
    #[command(flatten)]
    pub(crate) accept: Accept,
}

/// Arguments of `train-student`.
#[derive(Args)]
pub(crate) struct TrainStudent {
    /// The run
    #[command(flatten)]
    pub(crate) stage: Stage,
    /// What is taken though it differs
    #[command(flatten)]
    pub(crate) accept: Accept,
    /// Print how much memory the run will take at most, part by part, and stop before anything is loaded
    #[arg(long)]
    pub(crate) plan: bool,
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

impl Command {
    /// Whether nothing is lost where it ends because nobody reads on.
    pub(crate) fn only_prints(&self) -> bool {
        match self {
            Self::Report(_) | Self::Compare(_) | Self::Diff(_) | Self::Model(Model::Inspect(_)) => true,
            Self::Schema(options) => options.all.is_none(),
            Self::Labels(Labels::Stats(options)) => options.html.is_none(),
            Self::Labels(Labels::Export(options)) => options.is_to_stdout(),
            Self::Labels(Labels::Finalize(_) | Labels::Merge(_) | Labels::Import(_)) => false,
            Self::Labels(_) | Self::Scorer(ScorerCommand::Check(_) | ScorerCommand::Validate(_)) => true,
            _ => false,
        }
    }
}
