//! What a row asks: contexts, choices, and which are right.

/// A row as a task asks it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Question {
    /// What stands before everything, shots included.
    pub(crate) description: String,
    /// One for all choices, or one for each.
    pub(crate) contexts: Vec<String>,
    /// What follows a context, its delimiter included.
    pub(crate) continuations: Vec<String>,
    /// The choices themselves: their lengths normalise.
    pub(crate) choices: Vec<String>,
    /// Which are right.
    pub(crate) gold: Vec<usize>,
    /// What its document is called, where several rows are of one.
    pub(crate) document: Option<String>,
    /// Shots are of the same subject.
    pub(crate) subject: Option<String>,
}

impl Question {
    /// One context for all choices, one of which is right, with a delimiter between.
    pub(crate) fn of(context: String, choices: Vec<String>, gold: usize, delimiter: &str) -> Self {
        Self {
            description: String::new(),
            contexts: vec![context],
            continuations: choices.iter().map(|choice| format!("{delimiter}{choice}")).collect(),
            choices,
            gold: vec![gold],
            document: None,
            subject: None,
        }
    }

    /// The context of a choice.
    pub(crate) fn context(&self, choice: usize) -> &str {
        &self.contexts[choice.min(self.contexts.len() - 1)]
    }

    /// The question with its answer, as it stands before others.
    pub(crate) fn solved(&self) -> String {
        let gold = self.gold.first().copied().unwrap_or(0);
        format!("{}{}\n\n", self.context(gold), self.continuations[gold])
    }
}
