//! Refuses recipes whose values do not go together, before any work.

use softshard_labels::Split;
use softshard_share::Place;
use softshard_student::{LossConfig, Metric, Objective, TrainConfig, same_temperature};

use super::{
    Recipe,
    place::{not_local, remote},
};

impl Recipe {
    /// Checks every section by itself, and then one with another.
    ///
    /// # Errors
    /// Names the key, what was expected and what was found.
    pub(super) fn check(&self) -> Result<(), String> {
        self.data.validate().map_err(|error| error.to_string())?;
        for (section, train) in [("finetune", &self.finetune), ("student", &self.student)] {
            if let Some(train) = train {
                train.check(section)?;
            }
        }
        if let Some(teacher) = &self.teacher {
            teacher.check()?;
        }
        self.evaluate.check()?;
        self.labels.check()?;
        let is_missing = |split: &&Split| !self.data.split.wants(**split);
        if let Some(split) = self.labels.splits.iter().flatten().find(is_missing) {
            let name = split.name();
            return Err(format!(
                "`labels.splits`: expected sides that `data.split` asks for, found \"{name}\"\n\
                 hint: `data.split.{name}_rows` holds rows out for it"
            ));
        }
        if let Some(place) = remote(&self.output.labels) {
            Place::parse(place).map_err(|problem| format!("`output.labels`: {problem}"))?;
        }
        self.check_finetune()?;
        self.check_student()?;
        self.check_labels_fit()
    }

    /// Refuses what `finetune` has no data for.
    fn check_finetune(&self) -> Result<(), String> {
        let Some(finetune) = &self.finetune else { return Ok(()) };
        if finetune.objective == Some(Objective::Distill) {
            let expected = "`finetune.objective`: expected \"supervised\" or \"pretrain\", found \"distill\"";
            return Err(format!("{expected}\nhint: that is `train-student`"));
        }
        if !finetune.mixture.is_empty() {
            let expected =
                "`finetune.mixture`: expected none, as `finetune` learns from the recipe's own sequences";
            return Err(expected.to_owned());
        }
        check_evaluation("finetune", finetune, false)
    }

    /// Refuses an evaluation and a mixture that the student has no data for.
    fn check_student(&self) -> Result<(), String> {
        let Some(student) = &self.student else { return Ok(()) };
        let reads_labels = student.objective.unwrap_or(Objective::Distill).reads_labels(&student.loss);
        check_evaluation("student", student, reads_labels)?;
        let Some(mixed) = student.mixture.first() else { return Ok(()) };
        if !reads_labels {
            return Err(format!(
                "`student.mixture`: expected none, as the objective learns from the recipe's own sequences, found `{}`\n\
                 hint: `objective = \"distill\"` with `alpha = 0` learns the gold tokens of label datasets",
                mixed.labels.display()
            ));
        }
        match student.mixture.iter().find_map(|mixed| remote(&mixed.labels)) {
            None => Ok(()),
            Some(place) => Err(format!("`student.mixture`: {}", not_local(place))),
        }
    }

    /// Refuses a student that cannot learn from the labels that this recipe makes. Without a teacher it makes none.
    fn check_labels_fit(&self) -> Result<(), String> {
        let (Some(student), Some(_)) = (&self.student, &self.teacher) else { return Ok(()) };
        let (LossConfig { alpha, temperature, .. }, labels) = (&student.loss, &self.labels);
        let objective = student.objective.unwrap_or(Objective::Distill);
        let reads_own = objective.reads_labels(&student.loss) && student.mixture.is_empty();
        if reads_own {
            student.loss.check_selection(&labels.selection).map_err(|error| error.to_string())?;
        }
        #[expect(clippy::float_cmp, reason = "1 is written, not computed")]
        if !reads_own || alpha.is_zero() || *temperature == 1.0 {
            return Ok(());
        }
        let key = "`student.loss.temperature`";
        if labels.selection.draws().is_some() {
            let selection = &labels.selection;
            return Err(format!(
                "{key}: expected 1, as `labels.selection` ({selection}) draws at it, found {temperature}\n\
                 hint: labels of the selection top_k or top_p have other temperatures"
            ));
        }
        if labels.temperatures.iter().any(|stored| same_temperature(*stored, *temperature)) {
            return Ok(());
        }
        let stored = &labels.temperatures;
        Err(format!(
            "{key}: expected 1 or one of `labels.temperatures`, {stored:?}, found {temperature}\n\
             hint: labels that are there already need not be made again where they have it: name it in `labels.temperatures`"
        ))
    }
}

/// Refuses a best step that nothing is known to judge by, and held-out data that is not here.
fn check_evaluation(section: &str, train: &TrainConfig, has_teacher: bool) -> Result<(), String> {
    let Some(evaluation) = &train.evaluation else { return Ok(()) };
    if evaluation.best_by == Metric::Kl && !has_teacher {
        let expected = "expected \"nll\" or \"ece\" where there is no teacher, found \"kl\"";
        return Err(format!("`{section}.evaluation.best_by`: {expected}"));
    }
    match evaluation.data.as_deref().and_then(remote) {
        None => Ok(()),
        Some(place) => Err(format!("`{section}.evaluation.data`: {}", not_local(place))),
    }
}
