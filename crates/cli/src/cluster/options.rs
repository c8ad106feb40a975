//! Arguments of `submit` and `resume`, and what is remembered of them between the two.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::Args;
use fs_err as fs;
use serde::{Deserialize, Serialize};

use super::files::{Engine, Files, replace};
use crate::{
    doors::Accept,
    recipe::{Recipe, RecipeError},
    stage::positive,
};

/// Arguments of `submit` and of `resume`, which takes from the submission before what is not given.
#[derive(Args)]
pub(crate) struct Jobs {
    /// The run's recipe (TOML)
    pub(crate) recipe: PathBuf,
    /// Override one value of the recipe by its path, for all jobs
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub(crate) overrides: Vec<String>,
    /// What the jobs take though it differs
    #[command(flatten)]
    accept: Accept,
    /// What runs the jobs
    #[arg(long, value_enum)]
    pub(crate) engine: Engine,
    /// Where tensors live in every job [default: cpu]
    #[arg(long)]
    device: Option<String>,
    /// Tasks that the shards are cut into [default: one for each shard, at most MaxArraySize]
    #[arg(long, value_name = "N", value_parser = positive)]
    tasks: Option<usize>,
    /// Tasks that run at a time [default: all]
    #[arg(long, value_name = "M", value_parser = positive)]
    at_once: Option<usize>,
    /// Train the student when the labels are finished
    #[arg(long)]
    then_student: bool,
    /// Options of sbatch for all jobs, such as "--partition=gpu --gres=gpu:1 --time=4:00:00" (slurm)
    #[arg(long, value_name = "OPTIONS", allow_hyphen_values = true)]
    sbatch: Option<String>,
    /// The same for the job that finishes the labels, which needs no GPU, instead of --sbatch (slurm)
    #[arg(long, value_name = "OPTIONS", allow_hyphen_values = true)]
    sbatch_finalize: Option<String>,
    /// The same for the student's job, instead of --sbatch (slurm)
    #[arg(long, value_name = "OPTIONS", allow_hyphen_values = true)]
    sbatch_student: Option<String>,
    /// Image that holds softshard (kubernetes)
    #[arg(long, value_name = "IMAGE")]
    image: Option<String>,
    /// A volume claim and where pods see it, such as runs:/runs; the recipe's paths are below it (kubernetes)
    #[arg(long, value_name = "NAME:PATH")]
    claim: Vec<String>,
    /// Write the files of the jobs and say what is missing, but submit nothing
    #[arg(long)]
    pub(super) dry_run: bool,
}

/// What jobs are made with. Kept beside their files for `resume`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Options {
    /// The recipe, absolute: jobs read a copy of what it was.
    pub(super) recipe: PathBuf,
    /// `--set`, in order.
    pub(super) overrides: Vec<String>,
    /// `--accept`: names of differences that the jobs take.
    accept: Vec<String>,
    /// `--device`.
    device: Option<String>,
    /// Parts that the shards are cut into.
    pub(super) tasks: Option<usize>,
    /// Tasks at a time.
    pub(super) at_once: Option<usize>,
    /// Whether the student is trained after it.
    pub(super) then_student: bool,
    sbatch: Option<String>,
    sbatch_finalize: Option<String>,
    sbatch_student: Option<String>,
    image: Option<String>,
    claims: Vec<Claim>,
}

/// A volume claim and where pods see it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Claim {
    /// Of the claim.
    pub(super) name: String,
    /// Absolute.
    pub(super) path: PathBuf,
}

/// All that an engine needs to make jobs of the labelling of one recipe.
pub(super) struct Submission<'a> {
    pub(super) recipe: &'a Recipe,
    pub(super) options: &'a Options,
    /// Parts that the shards of every split are cut into.
    pub(super) of: usize,
    /// Those of them that have something to do, ascending.
    pub(super) tasks: &'a [usize],
}

impl Options {
    /// Those of a command line.
    pub(super) fn given(jobs: &Jobs) -> Result<Self, RecipeError> {
        let bad = |flag: &str, expected: &str, found: &str| {
            RecipeError(format!("`{flag}`: expected {expected}, found {found:?}"))
        };
        for (flag, text) in [
            ("--sbatch", &jobs.sbatch),
            ("--sbatch-finalize", &jobs.sbatch_finalize),
            ("--sbatch-student", &jobs.sbatch_student),
        ] {
            if let Some(text) = text.as_ref().filter(|text| text.contains(char::is_control)) {
                return Err(bad(flag, "options on one line", text));
            }
        }
        let claim = |text: &String| {
            let parts = text.split_once(':').filter(|(name, path)| is_name(name) && is_plain_path(path));
            let (name, path) = parts.ok_or_else(|| {
                bad("--claim", "the name of a claim and an absolute path, as runs:/runs", text)
            })?;
            Ok(Claim { name: name.to_owned(), path: path.into() })
        };
        let recipe =
            fs::canonicalize(&jobs.recipe).map_err(|error| RecipeError(format!("recipe: {error}")))?;
        Ok(Options {
            recipe,
            overrides: jobs.overrides.clone(),
            accept: jobs.accept.names.clone(),
            device: jobs.device.clone(),
            tasks: jobs.tasks,
            at_once: jobs.at_once,
            then_student: jobs.then_student,
            sbatch: jobs.sbatch.clone(),
            sbatch_finalize: jobs.sbatch_finalize.clone(),
            sbatch_student: jobs.sbatch_student.clone(),
            image: jobs.image.clone(),
            claims: jobs.claim.iter().map(claim).collect::<Result<_, RecipeError>>()?,
        })
    }

    /// These, and of `before` what is not given: of two overrides of one key the later holds. `copy` is
    /// the recipe that the jobs before read.
    pub(super) fn over(self, before: Option<Self>, copy: &Path) -> Self {
        let Some(before) = before else { return self };
        // The jobs' copy stands for the recipe that it was made of.
        let recipe = if self.recipe == copy { before.recipe } else { self.recipe };
        let mut overrides = before.overrides;
        for one in self.overrides {
            overrides.retain(|earlier| key(earlier) != key(&one));
            overrides.push(one);
        }
        let mut accept = before.accept;
        accept.extend(self.accept);
        accept.sort();
        accept.dedup();
        Options {
            recipe,
            overrides,
            accept,
            device: self.device.or(before.device),
            tasks: self.tasks.or(before.tasks),
            at_once: self.at_once.or(before.at_once),
            then_student: self.then_student || before.then_student,
            sbatch: self.sbatch.or(before.sbatch),
            sbatch_finalize: self.sbatch_finalize.or(before.sbatch_finalize),
            sbatch_student: self.sbatch_student.or(before.sbatch_student),
            image: self.image.or(before.image),
            claims: if self.claims.is_empty() { before.claims } else { self.claims },
        }
    }

    /// Of the submission before, if there was one.
    pub(super) fn read(recipe: &Recipe, engine: Engine) -> Result<Option<Self>> {
        let path = Files::of(recipe, engine).options();
        let text = match fs::read_to_string(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            text => text?,
        };
        let hint = || format!("options of the submission before `{}`\nhint: remove the file", path.display());
        Ok(Some(serde_json::from_str(&text).with_context(hint)?))
    }

    /// Writes them where `resume` looks, and the resolved recipe, which is what jobs read: one that is edited while they wait
    /// would make another plan. What a submission left there a dry run leaves as it is.
    pub(super) fn write(&self, recipe: &Recipe, engine: Engine, is_dry: bool) -> Result<()> {
        let files = Files::of(recipe, engine);
        fs::create_dir_all(files.logs())?;
        let text = toml::to_string_pretty(recipe)?;
        if is_dry && files.options().exists() && files.recipe().exists() {
            if fs::read_to_string(files.recipe())? != text {
                let path = files.recipe();
                println!(
                    "jobs read {}, which is another recipe: without --dry-run it is replaced",
                    path.display()
                );
            }
            return Ok(());
        }
        replace(&files.recipe(), &text)?;
        replace(&files.options(), &(serde_json::to_string_pretty(self)? + "\n"))
    }

    /// Where tensors live in the jobs.
    pub(super) fn device(&self) -> &str {
        self.device.as_deref().unwrap_or("cpu")
    }

    /// `--accept=NAME` for the jobs that compare what they read.
    pub(super) fn accept(&self) -> impl Iterator<Item = String> {
        self.accept.iter().map(|name| format!("--accept={name}"))
    }

    /// Options of sbatch for the array.
    pub(super) fn sbatch(&self) -> &str {
        self.sbatch.as_deref().unwrap_or("")
    }

    /// Options of sbatch for the job that finishes the labels.
    pub(super) fn sbatch_finalize(&self) -> &str {
        self.sbatch_finalize.as_deref().unwrap_or(self.sbatch())
    }

    /// Options of sbatch for the student's job.
    pub(super) fn sbatch_student(&self) -> &str {
        self.sbatch_student.as_deref().unwrap_or(self.sbatch())
    }

    /// Image and volume claims of pods.
    pub(super) fn pods(&self) -> Result<(&str, &[Claim]), RecipeError> {
        let missing = || RecipeError("`--engine kubernetes` expected `--image`, found none".to_owned());
        Ok((self.image.as_deref().ok_or_else(missing)?, &self.claims))
    }
}

/// Whether Kubernetes takes this as the name of an object.
pub(super) fn is_name(text: &str) -> bool {
    let is_good = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    (1..=63).contains(&text.len())
        && text.bytes().all(is_good)
        && !text.starts_with('-')
        && !text.ends_with('-')
}

fn is_plain_path(text: &str) -> bool {
    Path::new(text).is_absolute() && !text.contains(|letter: char| letter.is_control() || letter == ':')
}

/// What an override sets.
fn key(assignment: &str) -> &str {
    assignment.split_once('=').map_or(assignment, |(key, _)| key).trim()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_given_is_as_before() {
        let options = |text: &str| serde_json::from_str::<Options>(text).expect("options");
        let before = options(
            r#"{"recipe": "/recipe.toml", "overrides": ["a=1", "b=2", "c=4"], "tasks": 8, "sbatch": "-p gpu", "device": "cuda:0", "accept": ["data.template"]}"#,
        );
        let given = options(
            r#"{"recipe": "/recipe.toml", "overrides": ["b=2", "a=3"], "tasks": 4, "then_student": true, "accept": ["data.mask"]}"#,
        );
        let expected = options(
            r#"{"recipe": "/recipe.toml", "overrides": ["c=4", "b=2", "a=3"], "tasks": 4, "sbatch": "-p gpu", "device": "cuda:0", "then_student": true, "accept": ["data.mask", "data.template"]}"#,
        );
        let copy = Path::new("/run/slurm/labels.recipe.toml");
        assert_eq!(given.clone().over(Some(before.clone()), copy), expected);
        assert_eq!(given.clone().over(None, copy), given);
        let of_copy = Options { recipe: copy.into(), ..given };
        assert_eq!(of_copy.over(Some(before), copy), expected);
        assert_eq!(expected.sbatch_finalize(), "-p gpu");
    }

    #[test]
    fn names_are_those_that_kubernetes_takes() {
        for (name, is_good) in
            [("runs", true), ("a-1", true), ("", false), ("-a", false), ("A", false), ("a_b", false)]
        {
            assert_eq!(is_name(name), is_good, "{name}");
        }
    }
}
