//! One recipe describes one whole run: parsed strictly, checked once, paths made absolute.

mod check;
mod output;
mod place;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use fs_err as fs;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use softshard_evaluate::EvaluateConfig;
use softshard_labels::{Output, OwnTokenizer, Split};
use softshard_prepare::{DataConfig, Tokenizer, TokenizerConfig};
use softshard_share::{Place, S3, Writers};
use softshard_student::TrainConfig;
use softshard_teacher::{LabelsConfig, TeacherConfig};

pub(crate) use output::OutputConfig;
pub(crate) use place::local;
use place::{absolute, remote};

use crate::shell;

/// Whether labels are in a store.
pub(crate) fn remote_labels(place: &Path) -> bool {
    remote(place).is_some()
}

/// A recipe that cannot be used: exit code 2.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct RecipeError(pub(crate) String);

/// A whole run.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Recipe {
    /// What is learnt from, and how it is cut.
    pub(crate) data: DataConfig,
    /// The tokenizer of teacher and student.
    pub(crate) tokenizer: TokenizerConfig,
    /// Training of the teacher before it labels.
    pub(crate) finetune: Option<TrainConfig>,
    /// The model that labels.
    pub(crate) teacher: Option<TeacherConfig>,
    /// What is kept of its distributions.
    #[serde(default)]
    pub(crate) labels: LabelsConfig,
    /// The model that learns from the labels.
    pub(crate) student: Option<TrainConfig>,
    /// How answers are made and scored.
    #[serde(default)]
    pub(crate) evaluate: EvaluateConfig,
    /// Where everything is written.
    pub(crate) output: OutputConfig,
}

impl Recipe {
    /// Reads `path`, applies `key=value` overrides, resolves paths against the recipe's folder, and checks the values.
    ///
    /// # Errors
    /// Names the file and line (or the override), what was expected and what was found.
    pub(crate) fn load(path: &Path, overrides: &[String]) -> Result<Self, RecipeError> {
        Self::load_from(path, overrides, path.parent().unwrap_or(Path::new(".")))
    }

    /// The same, with paths from `folder`: of a copy that lies elsewhere.
    ///
    /// # Errors
    /// As [`Recipe::load`].
    pub(crate) fn load_from(path: &Path, overrides: &[String], folder: &Path) -> Result<Self, RecipeError> {
        let bad = |problem: String| RecipeError(format!("recipe `{}`: {problem}", path.display()));
        let text = fs::read_to_string(path).map_err(|error| RecipeError(format!("recipe: {error}")))?;
        // The file alone first: errors of the parser name its line and column.
        let mut recipe: Recipe =
            toml::from_str(&text).map_err(|error| bad(error.to_string().trim().to_owned()))?;
        if !overrides.is_empty() {
            let mut table: toml::Table = toml::from_str(&text).map_err(|error| bad(error.to_string()))?;
            for assignment in overrides {
                set(&mut table, assignment)
                    .map_err(|problem| bad(format!("--set {assignment}: {problem}")))?;
            }
            recipe = Recipe::deserialize(table).map_err(|error| {
                bad(format!("with --set {}: {}", overrides.join(" --set "), error.message()))
            })?;
        }
        let folder = fs::canonicalize(if folder.as_os_str().is_empty() { Path::new(".") } else { folder })
            .map_err(|error| bad(error.to_string()))?;
        check_text(&folder).map_err(bad)?;
        recipe.resolve(&folder);
        recipe.check().map_err(bad)?;
        Ok(recipe)
    }

    fn resolve(&mut self, base: &Path) {
        let resolve = |path: &mut PathBuf| *path = absolute(base, path);
        self.data.instructions.iter_mut().chain(&mut self.data.text).for_each(resolve);
        resolve(&mut self.tokenizer.path);
        for train in self.finetune.iter_mut().chain(&mut self.student) {
            resolve(&mut train.model);
            train.adapter.iter_mut().for_each(resolve);
            let folders = train.mixture.iter_mut().map(|mixed| &mut mixed.labels);
            folders.filter(|folder| remote(folder).is_none()).for_each(resolve);
            let held_out = train.evaluation.iter_mut().filter_map(|evaluation| evaluation.data.as_mut());
            held_out.filter(|path| remote(path).is_none()).for_each(resolve);
        }
        if let Some(teacher) = &mut self.teacher {
            resolve(&mut teacher.model);
            teacher.adapter.iter_mut().for_each(resolve);
        }
        self.evaluate.model.iter_mut().chain(&mut self.evaluate.adapter).for_each(resolve);
        self.evaluate.summaries.iter_mut().for_each(|summaries| resolve(&mut summaries.file));
        for task in self.evaluate.task.values_mut() {
            resolve(&mut task.file);
            task.shots_file.iter_mut().for_each(resolve);
        }
        let OutputConfig { dir, sequences, teacher, labels, student, evaluations, prometheus } =
            &mut self.output;
        resolve(dir);
        prometheus.iter_mut().for_each(resolve);
        for path in [sequences, teacher, student, evaluations] {
            *path = absolute(dir, path);
        }
        if remote(labels).is_none() {
            *labels = absolute(dir, labels);
        }
    }

    /// Section `[name]`, or an error that says which stage needs it.
    pub(crate) fn section<'a, T>(
        section: Option<&'a T>,
        name: &str,
        stage: &str,
    ) -> Result<&'a T, RecipeError> {
        section
            .ok_or_else(|| RecipeError(format!("recipe: `{stage}` expected a section [{name}], found none")))
    }

    /// Where the sequences of a side lie.
    pub(crate) fn sequences(&self, split: Split) -> PathBuf {
        self.output.sequences.join(split.name())
    }

    /// The sides that are labelled: those that the recipe names, or else all that it asks for and all that are prepared.
    pub(crate) fn labelled_splits(&self) -> Vec<Split> {
        let is_there = |split: &Split| self.data.split.wants(*split) || self.sequences(*split).exists();
        let all = || Split::ALL.into_iter().filter(is_there).collect();
        self.labels.splits.clone().unwrap_or_else(all)
    }

    /// Where labels are written. A store is opened and tried, which takes a moment, and seconds where nobody answers.
    ///
    /// # Errors
    /// A store that cannot be reached or written, or that is not safe for so many `writers`.
    pub(crate) fn labels_output(&self, writers: Writers) -> anyhow::Result<Output> {
        let labels = &self.output.labels;
        let Some(place) = remote(labels) else { return Ok(labels.into()) };
        let place = Place::parse(place).map_err(RecipeError)?;
        Ok(Output::Store(Arc::new(S3::open(place, writers)?), String::new()))
    }

    /// The folder of the labels, for a `stage` that reads them.
    ///
    /// # Errors
    /// They are in a store.
    pub(crate) fn labels_folder(&self, stage: &str) -> Result<&Path, RecipeError> {
        let Some(place) = remote(&self.output.labels) else { return Ok(&self.output.labels) };
        Err(RecipeError(format!(
            "recipe: `output.labels`: expected a folder, as `{stage}` reads labels from the disk, found `{place}`\n\
             hint: copy them, `aws s3 cp --recursive {} labels`, and name the copy, `--set output.labels=$PWD/labels`",
            shell::word(place)
        )))
    }

    /// The recipe's tokenizer. Where `model` has one of its own, it must give the same ids for all of this one's tokens; templates
    /// and special tokens may differ, as they do between base and instruct models.
    ///
    /// # Errors
    /// Either cannot be read; they give other ids.
    pub(crate) fn tokenizer_for(&self, model: &Path) -> anyhow::Result<OwnTokenizer> {
        let tokenizer = Tokenizer::load(&self.tokenizer.path)?;
        tokenizer.expect_ids_of_model(model)?;
        Ok(tokenizer.own())
    }

    /// Writes the resolved recipe as `recipe.toml` beside labels, wherever they are.
    ///
    /// # Errors
    /// It cannot be written there.
    pub(crate) fn write_beside_labels(&self, labels: &Output) -> anyhow::Result<()> {
        Ok(labels.write("recipe.toml", toml::to_string_pretty(self)?.as_bytes())?)
    }

    /// Writes the resolved recipe as `recipe.toml` into `folder`.
    ///
    /// # Errors
    /// The folder cannot be written.
    pub(crate) fn write_beside(&self, folder: &Path) -> anyhow::Result<()> {
        fs::create_dir_all(folder)?;
        let unfinished = folder.join(".recipe.toml.writing");
        fs::write(&unfinished, toml::to_string_pretty(self)?)?;
        Ok(fs::rename(unfinished, folder.join("recipe.toml"))?)
    }
}

/// Refuses a folder whose name is no text before any work: the paths below it are written into recipes and plans.
fn check_text(folder: &Path) -> Result<(), String> {
    match folder.to_str() {
        Some(_) => Ok(()),
        None => Err(format!(
            "expected a folder whose path is UTF-8, found {}\nhint: rename the folder, or put the recipe elsewhere",
            shell::path(folder)
        )),
    }
}

/// Sets `a.b.c=value`; the value is TOML, or a string where it is no TOML value.
fn set(table: &mut toml::Table, assignment: &str) -> Result<(), String> {
    let (path, text) = assignment.split_once('=').ok_or("expected KEY=VALUE, found no `=`")?;
    let value = match toml::from_str::<toml::Table>(&format!("value = {text}")) {
        Ok(mut parsed) => parsed.remove("value").ok_or("expected a value")?,
        Err(_) => toml::Value::String(text.to_owned()),
    };
    let (parents, last) = path.rsplit_once('.').map_or(("", path), |(parents, last)| (parents, last));
    let mut table = table;
    for parent in parents.split('.').filter(|parent| !parent.is_empty()) {
        let entry = table.entry(parent).or_insert_with(|| toml::Value::Table(toml::Table::new()));
        table = entry.as_table_mut().ok_or_else(|| format!("`{parent}` is a value, not a section"))?;
    }
    table.insert(last.to_owned(), value);
    Ok(())
}

#[cfg(test)]
mod tests {
    use softshard_teacher::Part;

    use super::*;

    const RECIPE: &str = r#"
[data]
instructions = "train.jsonl"
[tokenizer]
path = "tokenizer"
[student]
model = "../models/student"
[student.loss]
alpha = 0.5
[output]
dir = "run"
"#;

    fn load(text: &str, overrides: &[&str]) -> Result<Recipe, RecipeError> {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("recipe.toml");
        fs::write(&path, text).expect("the recipe is written");
        let overrides: Vec<String> = overrides.iter().map(|&text| text.to_owned()).collect();
        Recipe::load(&path, &overrides)
    }

    #[test]
    fn overrides_reach_nested_values_and_paths_become_absolute() {
        let recipe = load(RECIPE, &["student.loss.alpha=10", "output.student=sft"]).expect("a good recipe");
        let student = recipe.student.expect("the section is there");
        assert_eq!(student.loss.alpha, softshard_student::Alpha::Constant(10.0));
        assert!(student.model.is_absolute());
        assert!(recipe.output.student.ends_with("run/sft"));
        assert!(recipe.output.labels.ends_with("run/labels"));
    }

    #[test]
    fn the_recipes_that_come_along_are_good() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../pipelines");
        let entries =
            fs::read_dir(folder).expect("pipelines/ is there").map(|entry| entry.expect("an entry").path());
        let recipes: Vec<PathBuf> =
            entries.filter(|path| path.extension().is_some_and(|extension| extension == "toml")).collect();
        assert!(recipes.len() >= 4, "{recipes:?}");
        for recipe in recipes {
            Recipe::load(&recipe, &[]).unwrap_or_else(|error| panic!("{error}"));
        }
    }

    #[test]
    fn every_task_has_metrics_of_its_own() {
        let recipe = load(RECIPE, &["output.prometheus=softshard.prom"]).expect("a good recipe");
        let alone = recipe.output.labelling_metrics("teacher-labels", None);
        assert!(alone.lines.expect("lines").ends_with("run/metrics/teacher-labels.jsonl"));
        assert!(alone.tensorboard.ends_with("run/metrics/tensorboard/teacher-labels"));
        let folder = alone.prometheus.expect("named").parent().expect("a folder").to_owned();
        let task = recipe.output.labelling_metrics("teacher-labels", Some(Part { task: 3, of: 8 }));
        assert_eq!(task.name, "teacher-labels-00003-of-00008");
        assert_eq!(task.prometheus, Some(folder.join("softshard-00003-of-00008.prom")));
        let training = recipe.output.training_metrics(&recipe.output.student);
        assert!(training.lines.is_none() && training.tensorboard.ends_with("run/student/tensorboard"));
        assert_eq!((training.name.as_str(), training.prometheus.is_some()), ("student", true));
    }

    #[test]
    fn an_unknown_key_is_refused_by_name_and_place() {
        let error = load(&RECIPE.replace("alpha", "alhpa"), &[]).expect_err("a misspelt key").to_string();
        assert!(error.contains("unknown field `alhpa`"), "{error}");
        assert!(error.contains("line 9, column 1"), "{error}");
        let error = load(RECIPE, &["student.los.alpha=1"]).expect_err("a misspelt override").to_string();
        assert!(error.contains("unknown field `los`"), "{error}");
    }

    #[test]
    fn values_out_of_range_are_refused_by_key() {
        let error = load(RECIPE, &["student.loss.alpha=-1"]).expect_err("a negative weight").to_string();
        assert!(error.contains("`student.loss.alpha`: expected numbers of at least 0, found -1"), "{error}");
        for (key, expected) in [
            ("labels.splits=[]", "`labels.splits`: expected some of train, valid, test in this order"),
            ("labels.splits=[\"valid\", \"train\"]", "found [\"valid\", \"train\"]"),
            (
                "labels.splits=[\"train\", \"test\"]",
                "expected sides that `data.split` asks for, found \"test\"",
            ),
            ("evaluate.split=train", "`evaluate.split`: expected \"test\" or \"valid\", found \"train\""),
        ] {
            let error = load(RECIPE, &[key]).expect_err("no such side").to_string();
            assert!(error.contains(expected), "{error}");
        }
        load(RECIPE, &["labels.splits=[\"test\"]", "data.split.test_rows=1"]).expect("a good recipe");
        let error = load(RECIPE, &["labels.mantissa_bits=24"]).expect_err("too many bits").to_string();
        assert!(error.contains("`labels.mantissa_bits`: expected 1 to 23, found 24"), "{error}");
    }

    #[test]
    fn labels_may_go_to_a_store_and_are_read_from_a_folder() {
        let recipe =
            load(RECIPE, &["output.labels=s3://bucket/a/../prefix"]).expect_err("no prefix").to_string();
        assert!(recipe.contains("`output.labels`: expected a prefix"), "{recipe}");
        let recipe = load(RECIPE, &["output.labels=gs://bucket/prefix"]).expect_err("no S3").to_string();
        assert!(
            recipe.contains("expected a path or `s3://bucket/prefix`, found `gs://bucket/prefix`"),
            "{recipe}"
        );
        let recipe = load(RECIPE, &["output.labels=s3://bucket/prefix"]).expect("a place");
        assert_eq!(recipe.output.labels, Path::new("s3://bucket/prefix"));
        let error = recipe.labels_folder("train-student").expect_err("not on the disk").to_string();
        assert!(error.contains("aws s3 cp --recursive s3://bucket/prefix labels"), "{error}");
        assert!(local("s3://bucket").is_err() && local("s3/bucket").is_ok());
    }

    #[test]
    fn a_mixture_is_for_a_student_that_reads_labels() {
        let mixture = r#"student.mixture=[{ labels = "a/train" }, { labels = "/b/train", weight = 0.5 }]"#;
        let recipe = load(RECIPE, &[mixture]).expect("a good recipe");
        let mixture_of = recipe.student.expect("the section is there").mixture;
        assert!(mixture_of[0].labels.is_absolute() && mixture_of[0].labels.ends_with("a/train"));
        assert_eq!((mixture_of[0].weight, mixture_of[1].weight), (1.0, 0.5));
        assert_eq!(mixture_of[1].labels, Path::new("/b/train"));

        let refused =
            |overrides: &[&str]| load(RECIPE, overrides).expect_err("no labels are read").to_string();
        let error = refused(&[mixture, "student.objective=supervised"]);
        assert!(error.contains("`student.mixture`: expected none"), "{error}");
        refused(&[mixture, "student.objective=pretrain", "student.loss.alpha=0"]);
        load(RECIPE, &[mixture, "student.objective=pretrain"]).expect("it reads labels");
        let error = refused(&[r#"student.mixture=[{ labels = "s3://bucket/train" }]"#]);
        assert!(error.contains("aws s3 cp --recursive s3://bucket/train labels"), "{error}");
        let error = refused(&[r#"student.mixture=[{ labels = "a", weight = 0.0 }]"#]);
        assert!(error.contains("expected a weight above 0"), "{error}");
        let error = refused(&[r#"finetune={ model = "m", objective = "distill" }"#]);
        assert!(error.contains("hint: that is `train-student`"), "{error}");
    }

    #[test]
    fn a_student_needs_the_temperature_that_its_labels_have() {
        let teacher = "teacher.model=teacher";
        let refused =
            |overrides: &[&str]| load(RECIPE, overrides).expect_err("another temperature").to_string();
        let at_2 = [teacher, "student.loss.temperature=2"];
        let error = refused(&at_2);
        let expected = "`student.loss.temperature`: expected 1 or one of `labels.temperatures`, [], found 2";
        assert!(error.contains(expected), "{error}");
        refused(&[&at_2[..], &["labels.temperatures=[1.5, 3.0]"]].concat());
        let sampled = r#"labels.selection={ kind = "sampled", draws = 50 }"#;
        let error = refused(&[&at_2[..], &["labels.temperatures=[2.0]", sampled]].concat());
        assert!(
            error.contains("expected 1, as `labels.selection` (sampled, 50 draws) draws at it"),
            "{error}"
        );

        for good in [
            &[teacher, "labels.temperatures=[2.0]", sampled][..],
            &[&at_2[..], &["labels.temperatures=[2.0]"]].concat(),
            &[&at_2[..], &["student.loss.alpha=0"]].concat(),
            &[&at_2[..], &["student.objective=supervised"]].concat(),
            &["student.loss.temperature=2"], // of labels that were made elsewhere
        ] {
            load(RECIPE, good).unwrap_or_else(|error| panic!("{good:?}: {error}"));
        }
    }
}
