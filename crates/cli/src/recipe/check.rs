//! Refuses recipes whose values do not go together, before any work.

use softshard_share::Place;
use softshard_student::{LossConfig, Metric, Objective, same_temperature};

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
        if let Some(place) = remote(&self.output.labels) {
            Place::parse(place).map_err(|problem| format!("`output.labels`: {problem}"))?;
        }
        self.check_objectives()?;
        self.check_labels_fit()
    }

    /// Refuses objectives and mixtures that their stage has no data for.
    fn check_objectives(&self) -> Result<(), String> {
        if let Some(finetune) = &self.finetune {
            if finetune.objective == Some(Objective::Distill) {
                let expected =
                    "`finetune.objective`: expected \"supervised\" or \"pretrain\", found \"distill\"";
                return Err(format!("{expected}\nhint: that is `train-student`"));
            }
            if !finetune.mixture.is_empty() {
                let expected =
                    "`finetune.mixture`: expected none, as `finetune` learns from the recipe's own sequences";
                return Err(expected.to_owned());
            }
        }
        for (section, train, usual) in [
            ("finetune", &self.finetune, Objective::Supervised),
            ("student", &self.student, Objective::Distill),
        ] {
            let Some(evaluation) = train.as_ref().and_then(|train| train.evaluation.as_ref()) else {
                continue;
            };
            let objective = train.as_ref().and_then(|train| train.objective).unwrap_or(usual);
            let reads_labels = train.as_ref().is_some_and(|train| objective.reads_labels(&train.loss));
            if evaluation.best_by == Metric::Kl && (section == "finetune" || !reads_labels) {
                let expected = "expected \"nll\" or \"ece\" where there is no teacher, found \"kl\"";
                return Err(format!("`{section}.evaluation.best_by`: {expected}"));
            }
            if let Some(place) = evaluation.data.as_deref().and_then(remote) {
                return Err(format!("`{section}.evaluation.data`: {}", not_local(place)));
            }
        }
        let Some(student) = &self.student else { return Ok(()) };
        let Some(mixed) = student.mixture.first() else { return Ok(()) };
        if !student.objective.unwrap_or(Objective::Distill).reads_labels(&student.loss) {
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
