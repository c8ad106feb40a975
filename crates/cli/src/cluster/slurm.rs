//! A job array of Slurm, the job that finishes the labels after it, and the student's after that.

use std::{
    env,
    fmt::Write as _,
    io,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, anyhow, bail};
use fs_err as fs;

use super::{
    files::{Engine, Files, short_hash},
    options::{Options, Submission},
    tasks::list,
};
use crate::{recipe::RecipeError, shell};

/// Slurm's default: indices of an array are below it.
const MAX_ARRAY_SIZE: usize = 1001;

/// What a batch script does around its command.
const AROUND: &str = include_str!("around.sh");

/// One batch script.
struct Script<'a> {
    /// First line of its comment.
    what: String,
    /// Name of the job and of its files.
    name: &'a str,
    /// Name of its log, as sbatch writes it.
    log: &'a str,
    /// From the command line.
    options: &'a str,
    /// `#SBATCH` lines that win over these.
    directives: String,
    /// Whether it goes on in a new allocation where it was stopped.
    requeues: bool,
    /// Arguments of the binary, as bash reads them.
    arguments: String,
}

/// The jobs of a submission.
pub(super) fn submit(submission: &Submission, is_dry: bool) -> Result<()> {
    let Submission { recipe, options, of, tasks, .. } = *submission;
    let files = Files::of(recipe, Engine::Slurm);
    let array = write_array(submission, &files)?;
    let finalize = write_finalize(options, &files)?;
    let student = options.then_student.then(|| write_student(submission, &files)).transpose()?;
    println!("{} tasks of {of}: {}", tasks.len(), list(tasks));
    if is_dry {
        return say_commands(&array, &finalize, student.as_deref());
    }

    let array = sbatch(&array, None)?;
    println!("job {array}: labels, an array");
    // After any end: whether all is there, storage says, and a task that failed may have been done by another.
    let after = |error| {
        anyhow!("{error}\nhint: array {array} is submitted; `softshard labels finalize` finishes by hand")
    };
    let finalize = sbatch(&finalize, Some(format!("afterany:{array}"))).map_err(after)?;
    println!("job {finalize}: finishes the labels, after the array");
    let mut all = format!("{array} {finalize}");
    if let Some(student) = student {
        let after = |error| {
            anyhow!(
                "{error}\nhint: jobs {all} are submitted, which make and finish the labels; `softshard resume` submits the student's"
            )
        };
        let student = sbatch(&student, Some(format!("afterok:{finalize},singleton"))).map_err(after)?;
        println!("job {student}: trains the student, if they are finished");
        write!(all, " {student}")?;
    }
    say_how_to_follow(submission, &files, &array, &all);
    Ok(())
}

/// The script of the array that makes the labels.
fn write_array(submission: &Submission, files: &Files) -> Result<PathBuf> {
    let Submission { options, of, tasks, .. } = *submission;
    let device = quoted(options.device())?;
    let recipe_path = options.recipe.display();
    let at_once = options.at_once.map(|count| format!("%{count}")).unwrap_or_default();
    write(
        files,
        "",
        &Script {
            what: format!(
                "Labels of {recipe_path}: each task is an idempotent worker, which skips what is done."
            ),
            name: "softshard-labels",
            log: "%A_%a",
            options: options.sbatch(),
            directives: format!("#SBATCH --array={}{at_once}\n", list(tasks)),
            requeues: true,
            arguments: format!(
                "teacher-labels \"$recipe\" --task \"$SLURM_ARRAY_TASK_ID\" --of {of} --device {device}{}",
                accepted(options)?
            ),
        },
    )
}

/// The script that finishes them.
fn write_finalize(options: &Options, files: &Files) -> Result<PathBuf> {
    let recipe_path = options.recipe.display();
    write(
        files,
        "-finalize",
        &Script {
            what: format!(
                "Finishes the labels of {recipe_path}, or says which shards are missing; needs no GPU."
            ),
            name: "softshard-finalize",
            log: "%j",
            options: options.sbatch_finalize(),
            directives: String::new(),
            requeues: false,
            arguments: "labels finalize \"$recipe\"".to_owned(),
        },
    )
}

/// What the jobs take though it differs, each with a space before it.
fn accepted(options: &Options) -> Result<String, RecipeError> {
    options.accept().map(|word| Ok(format!(" {}", quoted(&word)?))).collect()
}

/// What a person does with the jobs that were submitted: the array, and `all`.
fn say_how_to_follow(submission: &Submission, files: &Files, array: &str, all: &str) {
    let Submission { options, tasks, .. } = *submission;
    let recipe_path = shell::path(&options.recipe);
    let first = tasks.first().copied().unwrap_or_default();
    println!("watch:  squeue --jobs={}", all.replace(' ', ","));
    println!(
        "logs:   tail -f {}",
        shell::path(&files.logs().join(format!("{}-{array}_{first}.log", files.name())))
    );
    println!("state:  softshard resume {recipe_path} --engine slurm --dry-run    (from storage)");
    println!("cancel: scancel {all}");
    println!(
        "resume: softshard resume {recipe_path} --engine slurm    (at any time: tasks that run twice do no harm)"
    );
}

/// The script that trains the student. Of two jobs of one output the later one waits: their names are the same.
fn write_student(submission: &Submission, files: &Files) -> Result<PathBuf> {
    let Submission { recipe, options, .. } = *submission;
    let name = format!("softshard-student-{}", short_hash(&recipe.output.student));
    let directives = format!(
        "# One at a time of each output.\n#SBATCH --job-name={name}\n#SBATCH --dependency=singleton\n"
    );
    let script = Script {
        what: format!("Trains the student of {} on the finished labels.", options.recipe.display()),
        name: &name,
        log: "%j",
        options: options.sbatch_student(),
        directives,
        requeues: true,
        arguments: format!(
            "train-student \"$recipe\" --device {}{}",
            quoted(options.device())?,
            accepted(options)?
        ),
    };
    write(files, "-student", &script)
}

/// What would be submitted.
fn say_commands(array: &Path, finalize: &Path, student: Option<&Path>) -> Result<()> {
    println!("nothing is submitted; these commands would do it:");
    println!("  labels=$(sbatch --parsable {})", quoted_path(array)?);
    println!("  finalize=$(sbatch --parsable --dependency=afterany:$labels {})", quoted_path(finalize)?);
    if let Some(student) = student {
        let flags = "--dependency=afterok:$finalize,singleton --kill-on-invalid-dep=yes";
        println!("  sbatch {flags} {}", quoted_path(student)?);
    }
    Ok(())
}

/// Writes a script beside the run.
fn write(files: &Files, suffix: &str, script: &Script) -> Result<PathBuf> {
    let path = files.with(&format!("{suffix}.sbatch"));
    let log = files.logs().join(format!("{}{suffix}-", files.name()));
    // sbatch replaces what follows a percent sign.
    let log = text_of(&log)?.replace('%', "%%") + script.log + ".log";
    if log.contains('"') || log.contains('\\') {
        return Err(RecipeError(format!(
            "`output.dir`: expected a path without quotes and backslashes, found {log}"
        ))
        .into());
    }
    let binary = env::current_exe().context("cannot tell where this program is")?;
    let mut text = String::from("#!/usr/bin/env bash\n");
    let Script { what, name, options, directives, requeues, arguments, .. } = script;
    writeln!(text, "# {}", what.replace(char::is_control, " "))?;
    writeln!(
        text,
        "# Written by `softshard submit` (docs/cluster.md); `sbatch` on this file submits it again."
    )?;
    writeln!(text, "#SBATCH --job-name={name}")?;
    writeln!(text, "#SBATCH --output=\"{log}\"")?;
    writeln!(
        text,
        "# Two minutes before the time limit: stop at the next boundary, and go on in a new allocation."
    )?;
    writeln!(text, "#SBATCH --signal=B:TERM@120")?;
    if !options.is_empty() {
        writeln!(text, "#SBATCH {options}")?;
    }
    writeln!(text, "# A task whose node fails starts again elsewhere, and goes on in the same log.")?;
    writeln!(text, "#SBATCH --requeue\n#SBATCH --open-mode=append")?;
    text += directives;
    writeln!(text, "\nrecipe={}", quoted_path(&files.recipe())?)?;
    writeln!(text, "softshard={}", quoted_path(&binary)?)?;
    writeln!(text, "requeues={}", if *requeues { "1" } else { "" })?;
    text += &AROUND.replace("ARGUMENTS", arguments);
    fs::write(&path, text)?;
    Ok(path)
}

/// Submits a script; the id of its job.
fn sbatch(script: &Path, dependency: Option<String>) -> Result<String> {
    let mut command = Command::new("sbatch");
    command.arg("--parsable");
    if let Some(dependency) = dependency {
        command.arg(format!("--dependency={dependency}")).arg("--kill-on-invalid-dep=yes");
    }
    let said = run(command.arg(script))?;
    // ID, or ID;CLUSTER; a site's wrapper may say more before it.
    let id = said.lines().rev().find_map(|line| line.trim().split(';').next()).unwrap_or_default();
    if id.is_empty() || !id.bytes().all(|byte| byte.is_ascii_digit()) {
        bail!("sbatch: expected the id of a job, found {said:?}");
    }
    Ok(id.to_owned())
}

/// Most tasks of an array here.
pub(super) fn max_array_size(is_dry: bool) -> Result<usize> {
    let config = match run(Command::new("scontrol").args(["show", "config"])) {
        Err(error) if is_dry => {
            tracing::warn!("taking Slurm's default MaxArraySize of {MAX_ARRAY_SIZE}: {error}");
            return Ok(MAX_ARRAY_SIZE);
        }
        config => config?,
    };
    match array_size_of(&config) {
        Some(0) => bail!(
            "scontrol show config: expected job arrays, found `MaxArraySize = 0`: this cluster has none"
        ),
        Some(size) => Ok(size),
        None => bail!("scontrol show config: expected MaxArraySize, found none"),
    }
}

fn array_size_of(config: &str) -> Option<usize> {
    let entries = config.lines().filter_map(|line| line.split_once('='));
    let (_, size) = entries.into_iter().find(|(key, _)| key.trim() == "MaxArraySize")?;
    size.trim().parse().ok()
}

/// What a command of Slurm says.
fn run(command: &mut Command) -> Result<String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command.output().map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => anyhow!(
            "{name}: expected Slurm on this machine, found no such command\n\
             hint: submit from a login node; `--dry-run` writes the scripts anywhere"
        ),
        _ => anyhow!("{name}: {error}"),
    })?;
    if !output.status.success() {
        bail!("{name}: {}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn text_of(path: &Path) -> Result<&str, RecipeError> {
    let is_plain = |text: &&str| !text.contains(char::is_control);
    path.to_str().filter(is_plain).ok_or_else(|| {
        RecipeError(format!("`{}`: expected a path of plain text for a batch script", path.display()))
    })
}

fn quoted_path(path: &Path) -> Result<String, RecipeError> {
    quoted(text_of(path)?)
}

/// A word as bash reads it.
pub(super) fn quoted(text: &str) -> Result<String, RecipeError> {
    if text.contains(char::is_control) {
        return Err(RecipeError(format!("expected plain text for a batch script, found {text:?}")));
    }
    Ok(shell::word(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_quoted_for_bash() {
        assert_eq!(quoted("/a b/it's").ok().as_deref(), Some(r"'/a b/it'\''s'"));
        assert!(quoted("a\nb").is_err());
    }

    #[test]
    fn the_size_of_an_array_is_read_from_the_configuration() {
        let config = "Configuration data\nMailProg = /usr/bin/mail\nMaxArraySize            = 4001\nMaxJobCount = 10\n";
        assert_eq!(array_size_of(config), Some(4001));
        assert_eq!(array_size_of("MaxJobCount = 10"), None);
    }
}
