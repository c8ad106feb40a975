//! The tasks that are known, and what is scored of each.

use softshard_prepare::{Error, FileRow};

use super::{
    factuality::{FIB_PROMPT, check_prompt, factor, fib},
    harness::{hellaswag, mapped, mapping, mmlu, truthful_qa, winogrande},
    question::Question,
    settings::{Mapping, TaskConfig},
};

/// Names of the tasks that are known.
pub const TASKS: [&str; 12] = [
    "arc_easy",
    "arc_challenge",
    "openbookqa",
    "piqa",
    "boolq",
    "hellaswag",
    "winogrande",
    "mmlu",
    "truthfulqa_mc1",
    "truthfulqa_mc2",
    "fib",
    "factor",
];

/// How a task asks its rows, and with it what is scored.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Kind {
    /// Columns alone.
    Mapped(Mapping),
    HellaSwag,
    Winogrande,
    Mmlu,
    /// The first answer is the best.
    TruthfulQa1,
    /// The mass of what is true.
    TruthfulQa2,
    /// Summaries that are faithful or not, with this prompt.
    Fib(String),
    Factor,
}

impl Kind {
    /// Of a section of the recipe.
    ///
    /// # Errors
    /// A sentence naming the key: the task is not known and has no mapping, or has settings of another one.
    pub(crate) fn of(name: &str, config: &TaskConfig) -> Result<Self, String> {
        let place = format!("`evaluate.task.{name}");
        let known = config.like.as_deref().unwrap_or(name);
        if config.prompt.is_some() && known != "fib" {
            return Err(format!("{place}.prompt`: expected none, as only `fib` has a prompt, found one"));
        }
        if config.shots > 0 && ["truthfulqa_mc1", "truthfulqa_mc2", "fib", "factor"].contains(&known) {
            return Err(format!("{place}.shots`: expected 0 for `{known}`, found {}", config.shots));
        }
        if let Some(own) = &config.mapping {
            if TASKS.contains(&name) {
                return Err(format!(
                    "{place}.mapping`: expected none, as `{name}` is known, found one; name it otherwise"
                ));
            }
            return Ok(Self::Mapped(own.clone()));
        }
        if let Some(known) = mapping(known) {
            return Ok(Self::Mapped(known));
        }
        Ok(match known {
            "hellaswag" => Self::HellaSwag,
            "winogrande" => Self::Winogrande,
            "mmlu" => Self::Mmlu,
            "truthfulqa_mc1" => Self::TruthfulQa1,
            "truthfulqa_mc2" => Self::TruthfulQa2,
            "factor" => Self::Factor,
            "fib" => {
                let prompt = config.prompt.as_deref().unwrap_or(FIB_PROMPT);
                check_prompt(prompt).map_err(|problem| format!("{place}.prompt`: {problem}"))?;
                Self::Fib(prompt.to_owned())
            }
            other => {
                let all = TASKS.join(", ");
                return Err(format!(
                    "`evaluate.task.{name}`: expected a `mapping`, or one of {all}, found {other:?} (`like` names a known one)"
                ));
            }
        })
    }

    /// What a row asks; none where there is nothing to compare.
    ///
    /// # Errors
    /// A column is missing or holds something else.
    pub(crate) fn question(&self, row: &FileRow) -> Result<Option<Question>, Error> {
        match self {
            Self::Fib(prompt) => fib(row, prompt),
            Self::Mapped(mapping) => mapped(row, mapping).map(Some),
            Self::HellaSwag => hellaswag(row).map(Some),
            Self::Winogrande => winogrande(row).map(Some),
            Self::Mmlu => mmlu(row).map(Some),
            Self::TruthfulQa1 => truthful_qa(row, "mc1_targets").map(Some),
            Self::TruthfulQa2 => truthful_qa(row, "mc2_targets").map(Some),
            Self::Factor => factor(row).map(Some),
        }
    }
}
