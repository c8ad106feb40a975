//! Every command as one short function: load the recipe, run the stage, say what came out.

use std::path::Path;

use anyhow::Result;
use fs_err as fs;
use softshard_evaluate::{Breakdown, EvaluateInputs, Evaluation};
use softshard_labels::{Difference, Split};
use softshard_model::DecoderConfig;
use softshard_prepare::demo;
use softshard_student::{Alpha, LossConfig, MemoryPlan, Mixed, Objective, TrainConfig, TrainInputs};

use crate::{
    arguments::{Arguments, Checked, Command, DemoData, TrainStudent},
    cluster,
    compare::compare,
    device, devices,
    diff::diff,
    doors::{self, Accept},
    labels, lookback,
    merge::merge,
    model::{self, Model},
    recipe::{Recipe, RecipeError},
    report::{report, side_by_side},
    schema, scorer,
    session::Session,
    stage::Stage,
    table::aligned,
    teacher_labels::teacher_labels,
    training_summary::Told,
};

/// Runs the command.
///
/// # Errors
/// Whatever stopped it; see [`crate::exit`] for the exit codes.
pub(crate) fn run(arguments: &Arguments, session: &Session) -> Result<()> {
    match &arguments.command {
        Command::DemoData(options) => demo_data(options),
        Command::Prepare(stage) => prepare(stage, session),
        Command::Finetune(stage) => finetune(stage, session),
        Command::TeacherLabels(options) => teacher_labels(options, session),
        Command::Submit(jobs) => cluster::submit(jobs),
        Command::Resume(jobs) => cluster::resume(jobs),
        Command::TrainStudent(options) => train_student(options, session),
        Command::Evaluate(stage) => evaluate(stage, session),
        Command::Report(options) => report(options),
        Command::Compare(options) => compare(options),
        Command::Diff(options) => diff(options),
        Command::Merge(options) => merge(options, session),
        Command::Schema(options) => schema::run(options),
        Command::Labels(command) => labels::run(command, session),
        Command::Model(Model::Inspect(options)) => model::inspect(options),
        Command::Lookback(command) => lookback::run(command, session),
        Command::Scorer(command) => scorer::run(command, session),
    }
}

fn demo_data(options: &DemoData) -> Result<()> {
    let DemoData { output, seed, rows, vocab_size } = options.clone();
    demo::write_all(&output, &demo::DemoOptions { seed, rows, vocab_size })?;
    println!("demo data: {rows} articles with their summaries, and a tokenizer: {}", output.display());
    Ok(())
}

fn prepare(stage: &Stage, session: &Session) -> Result<()> {
    let recipe = Recipe::load(&stage.recipe, &stage.overrides)?;
    let summary = softshard_prepare::run(
        &recipe.data,
        &recipe.tokenizer,
        &recipe.output.sequences,
        session.stop,
        &session.observer(),
    )?;
    recipe.write_beside(&recipe.output.sequences)?;
    println!("{summary}");
    println!("sequences: {}", recipe.output.sequences.display());
    Ok(())
}

fn finetune(Checked { stage, accept }: &Checked, session: &Session) -> Result<()> {
    let recipe = Recipe::load(&stage.recipe, &stage.overrides)?;
    let config = Recipe::section(recipe.finetune.as_ref(), "finetune", "finetune")?;
    let objective = config.objective.unwrap_or(Objective::Supervised);
    // A teacher has no teacher: without this `pretrain` would ask for labels.
    let loss = LossConfig { alpha: Alpha::Constant(0.0), ..config.loss.clone() };
    let config = &TrainConfig { loss, ..config.clone() };
    let folder = recipe.sequences(Split::Train);
    let accepted = doors::sequences(&recipe, &folder, accept)?;
    let run = ("finetune", config, objective);
    train(&recipe, stage, session, run, (&[Mixed::once(folder)], &accepted), &recipe.output.teacher, false)
}

fn train_student(options: &TrainStudent, session: &Session) -> Result<()> {
    let stage = &options.stage;
    let recipe = Recipe::load(&stage.recipe, &stage.overrides)?;
    let config = Recipe::section(recipe.student.as_ref(), "student", "train-student")?;
    let objective = config.objective.unwrap_or(Objective::Distill);
    let data = if !config.mixture.is_empty() {
        config.mixture.clone()
    } else if objective.reads_labels(&config.loss) {
        vec![Mixed::once(recipe.labels_folder("train-student")?.join("train"))]
    } else {
        vec![Mixed::once(recipe.sequences(Split::Train))]
    };
    let accepted = train_doors(&recipe, config, objective, &data, &options.accept)?;
    let run = ("train-student", config, objective);
    train(&recipe, stage, session, run, (&data, &accepted), &recipe.output.student, options.plan)
}

/// What a student reads against its recipe. Sequences count where it reads them, or labels of them.
fn train_doors(
    recipe: &Recipe,
    config: &TrainConfig,
    objective: Objective,
    data: &[Mixed],
    accept: &Accept,
) -> Result<Vec<Difference>> {
    let mut accepted = Vec::new();
    if config.mixture.is_empty() {
        accepted = doors::sequences(recipe, &recipe.sequences(Split::Train), accept)?;
    }
    if objective.reads_labels(&config.loss) {
        accepted.extend(doors::labels(recipe, data, accept)?);
    }
    Ok(accepted)
}

/// The training loop, for either model.
fn train(
    recipe: &Recipe,
    stage: &Stage,
    session: &Session,
    (name, config, objective): (&'static str, &softshard_student::TrainConfig, Objective),
    (data, accepted): (&[Mixed], &[Difference]),
    output: &Path,
    plan_only: bool,
) -> Result<()> {
    let devices = devices::open(&stage.device)?;
    check_adapter(name, config, output)?;
    let tokenizer = recipe.tokenizer_for(&config.model)?;
    // The recipe names the folder, or the tokenizer.json in it.
    let path = &recipe.tokenizer.path;
    let tokenizer_folder = if path.is_file() { path.parent().unwrap_or(path) } else { path };
    let inputs = TrainInputs {
        config,
        objective,
        stage: name,
        data,
        template: recipe.data.template_name(),
        tokenizer_folder,
        tokenizer: &tokenizer,
        accepted,
        output,
        devices: &devices,
        stop: session.stop,
        observer: &(),
    };
    if plan_only {
        print!("{}", memory_table(&MemoryPlan::of(&inputs)?));
        return Ok(());
    }
    let observer =
        session.recording(recipe.output.training_metrics(output), Some(config.loss.divergence.name()));
    let summary = softshard_student::run(&TrainInputs { observer: &observer, ..inputs })?;
    drop(observer);
    recipe.write_beside(output)?;
    let best_by = config.evaluation.as_ref().map(|evaluation| evaluation.best_by);
    let peaks = devices.iter().filter_map(|(device, _)| softshard_model::peak_bytes(device));
    let peak_bytes = peaks.max();
    print!("{}", Told { name, summary: &summary, best_by, peak_bytes });
    println!("{}: {}", if config.trains_adapter() { "adapter" } else { "model" }, summary.output.display());
    Ok(())
}

/// Refuses an adapter that the model cannot have, which its `config.json` says, and one that this run would write
/// over.
fn check_adapter(stage: &str, config: &TrainConfig, output: &Path) -> Result<()> {
    if !config.trains_adapter() {
        return Ok(());
    }
    let shape = DecoderConfig::load(&config.model)?;
    let (section, model) = (stage.strip_prefix("train-").unwrap_or(stage), config.model.display());
    if let Some(adapter) = &config.adapter {
        let own = output.join("adapter");
        let same = fs::canonicalize(adapter).ok().zip(fs::canonicalize(&own).ok());
        if *adapter == own || same.is_some_and(|(one, other)| one == other) {
            return Err(RecipeError(format!(
                "recipe: `{section}.adapter`: expected another folder than the one that this run writes, found `{}`\n\
                 hint: name another output",
                adapter.display()
            ))
            .into());
        }
        shape.adapter_shape(adapter)?;
    }
    let Some(lora) = &config.lora else { return Ok(()) };
    shape.lora_shape(lora).map_err(|error| {
        RecipeError(format!("recipe: `{section}`: {error}\nhint: these are the linear maps of `{model}`"))
    })?;
    Ok(())
}

/// What a run will hold in memory at most.
fn memory_table(plan: &MemoryPlan) -> String {
    let megabytes = |bytes: u64| format!("{:.1} MB", bytes as f64 / 1e6);
    let mut rows: Vec<Vec<String>> =
        plan.parts.iter().map(|part| vec![part.name.clone(), megabytes(part.bytes)]).collect();
    rows.push(vec!["expected peak".to_owned(), megabytes(plan.bytes())]);
    let note = "label shards are mapped: the system takes their pages back when it needs them, so they are not counted";
    format!("{}{note}\n", aligned(&rows))
}

fn evaluate(Checked { stage, accept }: &Checked, session: &Session) -> Result<()> {
    let recipe = Recipe::load(&stage.recipe, &stage.overrides)?;
    let device = device::open(&stage.device)?;
    let split = recipe.evaluate.split;
    let of_labels = recipe.labels_folder("evaluate")?;
    let (sequences, labels) = (recipe.sequences(split), of_labels.join(split.name()));
    let mut accepted = Vec::new();
    if recipe.evaluate.scores_held_out() {
        let has_train = of_labels.join("train").exists();
        if !labels.exists() && recipe.labelled_splits().contains(&split) && has_train {
            tracing::warn!(
                "`{}`: there are no labels of `{}`, so no distance to the teacher; `softshard teacher-labels` makes them",
                of_labels.display(),
                split.name()
            );
        }
        accepted = doors::sequences(&recipe, &sequences, accept)?;
        accepted.extend(doors::labels(&recipe, &[Mixed::once(labels.clone())], accept)?);
    }
    let evaluations = softshard_evaluate::run(&EvaluateInputs {
        config: &recipe.evaluate,
        tokenizer: &recipe.tokenizer,
        student_base: recipe.student.as_ref().map(|student| student.model.as_path()),
        student_load: recipe.student.as_ref().map(TrainConfig::load_options).unwrap_or_default(),
        student: &recipe.output.student,
        sequences: &sequences,
        labels: &labels,
        accept: &accept.names,
        accepted: &accepted,
        output: &recipe.output.evaluations,
        device: &device,
        stop: session.stop,
        observer: &session.observer(),
    })?;
    evaluations.iter().for_each(say_evaluation);
    Ok(())
}

fn say_evaluation(evaluation: &Evaluation) {
    let rows: Vec<Vec<String>> = evaluation.anchors().into_iter().chain([evaluation.cells()]).collect();
    let table = side_by_side(&evaluation.header(), &rows);
    println!("{}\n{table}", evaluation.described_rows());
    match &evaluation.seconds {
        Some(Breakdown { load, choices, .. }) if evaluation.choices.is_some() => {
            println!("  seconds: load {load:.1}, choices {choices:.1}");
        }
        Some(Breakdown { load, answers, .. }) if evaluation.summaries.is_some() => {
            println!("  seconds: load {load:.1}, answers {answers:.1}");
        }
        Some(Breakdown { load, held_out, answers, .. }) => {
            println!("  seconds: load {load:.1}, held-out {held_out:.1}, answers {answers:.1}");
        }
        None => println!("  as it was: made from the same"),
    }
}
