//! Names of tasks: one, a list of them, or the one that a scheduler says.

use std::{env, fmt::Write, str::FromStr};

use crate::recipe::RecipeError;

/// Slurm's name for the index of a task of an array.
const SLURM: &str = "SLURM_ARRAY_TASK_ID";
/// Kubernetes' name for the index of a pod of an Indexed Job.
const KUBERNETES: &str = "JOB_COMPLETION_INDEX";
/// Tasks of which the scheduler's index chooses one, where it counts from 0 and not all are to be done.
pub(super) const LIST: &str = "SOFTSHARD_TASKS";

/// What `--task` says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Task {
    /// This one.
    Number(usize),
    /// The one that the scheduler's environment says.
    Auto,
}

impl FromStr for Task {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            _ => text
                .parse()
                .map(Self::Number)
                .map_err(|_| "expected a whole number from 0, or `auto`".to_owned()),
        }
    }
}

impl Task {
    /// The task's number.
    ///
    /// # Errors
    /// `auto` where no scheduler says which.
    pub(crate) fn number(&self) -> Result<usize, RecipeError> {
        self.number_in(|name| env::var(name).ok())
    }

    fn number_in(&self, variable: impl Fn(&str) -> Option<String>) -> Result<usize, RecipeError> {
        if let Self::Number(number) = self {
            return Ok(*number);
        }
        let Some((name, text)) = [SLURM, KUBERNETES].iter().find_map(|name| Some((name, variable(name)?)))
        else {
            return Err(RecipeError(format!(
                "`--task auto`: expected {SLURM} or {KUBERNETES} in the environment, found neither\n\
                 hint: `--task 0 --of 4` is the first of four tasks"
            )));
        };
        let bad = |name: &str, expected: &str, found: &str| {
            RecipeError(format!("`--task auto`: {name}: expected {expected}, found {found:?}"))
        };
        let index: usize = text.parse().map_err(|_| bad(name, "a whole number", &text))?;
        let Some(list) = variable(LIST) else { return Ok(index) };
        let tasks =
            parse_list(&list).ok_or_else(|| bad(LIST, "ascending numbers and ranges, as 3,7-9", &list))?;
        let expected = format!("an index below the {} of {LIST}", tasks.len());
        tasks.get(index).copied().ok_or_else(|| bad(name, &expected, &text))
    }
}

/// Ascending numbers as `0-3,7,9-12`, which is how Slurm writes them.
pub(super) fn list(numbers: &[usize]) -> String {
    let mut text = String::new();
    for run in numbers.chunk_by(|one, next| one + 1 == *next) {
        let comma = if text.is_empty() { "" } else { "," };
        let written = match run {
            [only] => write!(text, "{comma}{only}"),
            [first, .., last] => write!(text, "{comma}{first}-{last}"),
            [] => Ok(()),
        };
        written.expect("a String takes any text");
    }
    text
}

/// The numbers of such a list.
fn parse_list(text: &str) -> Option<Vec<usize>> {
    /// As many as the largest Indexed Job has.
    const MOST: usize = 100_000;
    let mut numbers: Vec<usize> = Vec::new();
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last) = (first.parse::<usize>().ok()?, last.parse::<usize>().ok()?);
        let follows = numbers.last().is_none_or(|before| *before < first);
        if !follows || first > last || last - first >= MOST - numbers.len() {
            return None;
        }
        numbers.extend(first..=last);
    }
    Some(numbers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_written_as_slurm_does_and_read_back() {
        for (numbers, text) in [
            (vec![0], "0"),
            (vec![0, 1], "0-1"),
            (vec![3, 7, 8, 9], "3,7-9"),
            (vec![0, 2, 4, 5, 6, 1000], "0,2,4-6,1000"),
        ] {
            assert_eq!(list(&numbers), text);
            assert_eq!(parse_list(text), Some(numbers));
        }
        for bad in ["", "1,", "2,1", "3-1", "1,1", "a", "0-100000", "0-18446744073709551615"] {
            assert_eq!(parse_list(bad), None, "{bad}");
        }
    }

    #[test]
    fn the_scheduler_says_which_task() {
        let with = |variables: &[(&str, &str)], task: &Task| {
            task.number_in(|name| {
                variables.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned())
            })
        };
        assert_eq!(with(&[(SLURM, "7")], &Task::Auto).ok(), Some(7));
        assert_eq!(with(&[(KUBERNETES, "2")], &Task::Auto).ok(), Some(2));
        assert_eq!(with(&[(KUBERNETES, "2"), (LIST, "3,7-9")], &Task::Auto).ok(), Some(8));
        assert_eq!(with(&[(SLURM, "7")], &Task::Number(1)).ok(), Some(1));
        for (variables, expected) in [
            (&[][..], "found neither"),
            (&[(SLURM, "x")], "a whole number, found \"x\""),
            (&[(KUBERNETES, "4"), (LIST, "3,7-9")], "an index below the 4"),
            (&[(KUBERNETES, "0"), (LIST, "9-7")], "ascending numbers"),
        ] {
            let error = with(variables, &Task::Auto).expect_err("refused").to_string();
            assert!(error.contains(expected), "{error}");
        }
        assert!("3,4".parse::<Task>().is_err());
    }
}
