//! The scorers by name: what each reads and gives stands in docs/scorers.md.

use std::fmt;
use std::str::FromStr;

/// A scorer's rules: text form, chunks, and what its classes mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// LettuceDetect and TinyLettuce: unsupported spans, by a ModernBERT that classifies tokens.
    LettuceDetect,
    /// HHEM-2.1-Open: a T5 encoder, the whole text at once.
    Hhem,
    /// MiniCheck: sentences of the answer against chunks, by RoBERTa or by the first step of a Flan-T5.
    MiniCheck,
    /// AlignScore: sentences against chunks, by a RoBERTa with the head of three classes.
    AlignScore,
    /// FactKB: the whole text at once, by RoBERTa.
    FactKb,
    /// A classifier with a class called `entailment`, RoBERTa or ModernBERT, by AlignScore's rules.
    Nli,
    /// A decoder that is asked: the probability of Yes.
    Judge,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::LettuceDetect,
        Self::Hhem,
        Self::MiniCheck,
        Self::AlignScore,
        Self::FactKb,
        Self::Nli,
        Self::Judge,
    ];

    /// As on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::LettuceDetect => "lettuce-detect",
            Self::Hhem => "hhem",
            Self::MiniCheck => "mini-check",
            Self::AlignScore => "align-score",
            Self::FactKb => "fact-kb",
            Self::Nli => "nli",
            Self::Judge => "judge",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        to.write_str(self.name())
    }
}

impl FromStr for Kind {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        Self::ALL.into_iter().find(|kind| kind.name() == name).ok_or_else(|| {
            let names = Self::ALL.map(Self::name).join(", ");
            format!("expected one of {names}")
        })
    }
}
