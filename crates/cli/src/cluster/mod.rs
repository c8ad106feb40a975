//! Labelling on many machines: `submit`, `resume` and `labels finalize`.
//!
//! Every task is an idempotent worker, and storage alone says what is done: a scheduler may forget, repeat or double its jobs
//! (docs/cluster.md).

mod files;
mod finalize;
mod kubernetes;
mod options;
mod slurm;
mod tasks;
mod work;

use std::path::Path;

use anyhow::{Result, bail};

pub(crate) use finalize::{Finalize, finalize};
pub(crate) use options::Jobs;
pub(crate) use tasks::Task;

use crate::{
    recipe::{Recipe, RecipeError},
    shell,
};
use files::{Engine, Files};
use finalize::Finished;
use options::{Options, Submission};
use softshard_labels::Output;
use work::{Split, tasks_with_missing};

/// `softshard submit`.
///
/// # Errors
/// A recipe that cannot be labelled, sequences or an output that are not there, a scheduler that refuses.
pub(crate) fn submit(jobs: &Jobs) -> Result<()> {
    let recipe = Recipe::load(&jobs.recipe, &jobs.overrides)?;
    start(jobs, &recipe, Options::given(jobs)?)
}

/// `softshard resume`: as `submit`, of what is missing, with the options of the submission before.
///
/// # Errors
/// As [`submit`]; nothing that could be resumed.
pub(crate) fn resume(jobs: &Jobs) -> Result<()> {
    let named = Recipe::load(&jobs.recipe, &jobs.overrides)?;
    let before = Options::read(&named, jobs.engine)?;
    let is_begun = work::is_begun(&named, &work::labels(&named)?)?;
    if before.is_none() && !is_begun {
        bail!(
            "`{}`: expected labels that were begun, found none\nhint: `softshard submit {} --engine {}` begins them",
            named.output.labels.display(),
            shell::path(&jobs.recipe),
            jobs.engine.folder(),
        );
    }
    let copy = Files::of(&named, jobs.engine).recipe();
    let options = Options::given(jobs)?.over(before, &copy);
    // Of labels that were begun the jobs' copy holds: a recipe that was edited since would be refused by every worker.
    let recipe = if is_begun && copy.exists() {
        let base = options.recipe.parent().unwrap_or(Path::new("/"));
        Recipe::load_from(&copy, &jobs.overrides, base)?
    } else {
        // What was set then is set again.
        Recipe::load(&options.recipe, &options.overrides)?
    };
    start(jobs, &recipe, options)
}

/// Looks at the storage, and hands the engine the tasks that have something to do.
fn start(jobs: &Jobs, recipe: &Recipe, options: Options) -> Result<()> {
    Recipe::section(recipe.teacher.as_ref(), "teacher", "submit")?;
    if options.then_student {
        Recipe::section(recipe.student.as_ref(), "student", "submit --then-student")?;
        recipe.labels_folder("submit --then-student")?;
    }
    let labels = work::labels(recipe)?;
    let mut splits = if jobs.dry_run { work::look(recipe, &labels)? } else { work::survey(recipe, &labels)? };
    if splits.iter().all(|split| split.missing.is_empty()) {
        match all_committed(jobs, recipe, &labels, &options)? {
            // Committed once, and damaged since.
            Some(missing) => splits = missing,
            None => return Ok(()),
        }
    }
    let most = match jobs.engine {
        Engine::Slurm => slurm::max_array_size(jobs.dry_run)?,
        Engine::Kubernetes => kubernetes::MAX_TASKS,
    };
    let shards = splits.iter().map(|split| split.shards).max().unwrap_or(0);
    let of = options.tasks.unwrap_or(shards.min(most)).min(shards);
    if of > most {
        let place = match jobs.engine {
            Engine::Slurm => "MaxArraySize of this cluster",
            Engine::Kubernetes => "one Job",
        };
        let message = format!("`--tasks`: expected at most {most} ({place}), found {of}");
        return Err(RecipeError(message).into());
    }
    let tasks = tasks_with_missing(&splits, of);
    for split in &splits {
        println!("{split}");
    }
    let submission = Submission { recipe, options: &options, of, tasks: &tasks };
    options.write(recipe, jobs.engine, jobs.dry_run)?;
    match jobs.engine {
        Engine::Slurm => slurm::submit(&submission, jobs.dry_run),
        Engine::Kubernetes => kubernetes::write(&submission),
    }
}

/// Finishes labels of which every shard has a commit; those that are missing all the same. A dry run only looks.
fn all_committed(
    jobs: &Jobs,
    recipe: &Recipe,
    labels: &Output,
    options: &Options,
) -> Result<Option<Vec<Split>>> {
    if jobs.dry_run {
        let splits = work::check(recipe, labels)?;
        if splits.iter().any(|split| !split.missing.is_empty()) {
            return Ok(Some(splits));
        }
        let path = shell::path(&jobs.recipe);
        println!(
            "nothing is missing: every shard is there; `softshard labels finalize {path}` finishes them"
        );
        return Ok(None);
    }
    let lines = match finalize::finish(recipe, labels)? {
        Finished::All(lines) => lines,
        Finished::Missing(missing) => return Ok(Some(missing)),
    };
    println!("nothing is missing: every shard is there, and the labels are finished");
    lines.iter().for_each(|line| println!("{line}"));
    if options.then_student {
        let command = student_command(jobs.engine, &Files::of(recipe, jobs.engine), options);
        println!("the student's job, where it has not run: {command}");
    }
    Ok(None)
}

/// The command that starts the student's job of the submission before, or the job itself where none had one.
fn student_command(engine: Engine, files: &Files, options: &Options) -> String {
    let (command, path) = match engine {
        Engine::Slurm => ("sbatch ", files.with("-student.sbatch")),
        Engine::Kubernetes => ("kubectl apply --filename=", files.with("-student.yaml")),
    };
    if path.exists() {
        return format!("{command}{}", shell::path(&path));
    }
    let mut words = vec![shell::path(&options.recipe)];
    words.extend(options.overrides.iter().map(|value| shell::word(&format!("--set={value}"))));
    words.extend(options.accept().map(|word| shell::word(&word)));
    words.push(shell::word(&format!("--device={}", options.device())));
    format!("softshard train-student {}", words.join(" "))
}
