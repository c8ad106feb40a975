//! What the stage did, for people and for machines.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use serde::Serialize;
use softshard_labels::{Sequence, SequenceKey, Split};

use crate::config::DataConfig;
use crate::encode::{Notes, Outcome};

/// What [`crate::run`] did. Displayed as a small table.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Summary {
    /// Rows (or documents) read.
    pub rows: u64,
    /// What they were, and what of them was not used.
    pub read: RowCounts,
    /// Sequences to learn from.
    pub train: SplitSummary,
    /// Sequences that choose.
    pub valid: SplitSummary,
    /// Sequences that are reported.
    pub test: SplitSummary,
    /// Rows that became no sequence, by reason.
    pub dropped: Dropped,
    /// What is to be known about the loss mask of the sequences written.
    pub mask: MaskSummary,
    /// The limit of the recipe.
    pub max_prompt_tokens: usize,
    /// The limit of the recipe.
    pub max_tokens: usize,
    /// Wall time.
    pub seconds: f64,
    /// Tokens written in a second.
    pub tokens_per_second: f64,
}

/// Sequences of one side of the split.
#[derive(Clone, Debug, Default, Serialize)]
pub struct SplitSummary {
    /// Sequences written.
    pub sequences: u64,
    /// Their tokens.
    pub tokens: u64,
    /// Tokens under the loss mask.
    pub labelled_tokens: u64,
    /// The longest sequence.
    pub longest_tokens: u64,
    /// Sequences cut at `max_tokens`.
    pub cut: u64,
}

/// Names of columns that are told; rows of JSON may have any.
const MAX_COLUMNS: usize = 64;

/// What the rows that were read are, and what of them was not used.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct RowCounts {
    /// Rows by the columns that make their shape.
    pub shapes: BTreeMap<String, u64>,
    /// Texts of a column `system` that became the first turn.
    pub merged_system_texts: u64,
    /// Turns of which parts of text became one text.
    pub joined_parts: u64,
    /// Turns of the assistant that their row keeps out of the loss.
    pub turns_not_trained: u64,
    /// Columns with something in them that no one reads, and in how many rows.
    pub unused_columns: BTreeMap<String, u64>,
    /// The same for columns that the recipe ignores.
    pub ignored_columns: BTreeMap<String, u64>,
}

impl RowCounts {
    pub(crate) fn new(ignored: &[String]) -> Self {
        let ignored_columns = ignored.iter().map(|name| (name.clone(), 0)).collect();
        Self { ignored_columns, ..Self::default() }
    }

    pub(crate) fn add(
        &mut self,
        shape: &str,
        merged_system_text: bool,
        turns_not_trained: u64,
        joined_parts: u64,
    ) {
        match self.shapes.get_mut(shape) {
            Some(rows) => *rows += 1,
            None => drop(self.shapes.insert(shape.to_owned(), 1)),
        }
        self.merged_system_texts += u64::from(merged_system_text);
        self.turns_not_trained += turns_not_trained;
        self.joined_parts += joined_parts;
    }

    pub(crate) fn add_columns(&mut self, unused: &[String], ignored: &[String]) {
        for (names, columns) in [(unused, &mut self.unused_columns), (ignored, &mut self.ignored_columns)] {
            for name in names {
                if let Some(rows) = columns.get_mut(name) {
                    *rows += 1;
                } else if columns.len() < MAX_COLUMNS {
                    columns.insert(name.clone(), 1);
                }
            }
        }
    }
}

impl fmt::Display for RowCounts {
    /// Lines for what is worth one, each ended with a newline.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let counts = [
            (self.merged_system_texts, "system texts put before their conversation"),
            (self.joined_parts, "turns put together from parts of text"),
            (self.turns_not_trained, "turns of the assistant not trained, as their row says"),
        ];
        for (count, what) in counts.iter().filter(|(count, _)| *count > 0) {
            writeln!(f, "{} {what}", grouped(*count))?;
        }
        for (columns, what) in [(&self.unused_columns, "not used"), (&self.ignored_columns, "ignored")] {
            if !columns.is_empty() {
                let columns: Vec<String> =
                    columns.iter().map(|(name, rows)| format!("{name} ({})", grouped(*rows))).collect();
                writeln!(f, "columns {what}, and in how many rows: {}", columns.join(", "))?;
            }
        }
        Ok(())
    }
}

/// Rows that became no sequence, by reason.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Dropped {
    /// The prompt is over `max_prompt_tokens`.
    pub prompt_too_long: u64,
    /// The same token ids came before.
    pub duplicate: u64,
    /// The response is empty (with `empty_responses = "drop"`).
    pub empty_response: u64,
    /// The row itself leaves all out that would be labelled (`weight`, `train`).
    pub left_out: u64,
    /// No token is left to label.
    pub too_short: u64,
}

/// What is to be known about the loss mask of the sequences written.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct MaskSummary {
    /// Tokens cut off at `max_tokens`, labelled or not.
    pub cut_tokens: u64,
    /// Labelled tokens that hold text beside the answer, too: as where a prompt's last line break and the answer's first are one
    /// token.
    pub straddling_tokens: u64,
    /// Sequences with such tokens.
    pub straddling_sequences: u64,
    /// Turns without a label because the row leaves them out of the loss (`weight`, `train`).
    pub turns_left_out: u64,
    /// Turns without a label that the row takes into the loss: the mask does not.
    pub turns_not_taken_in: u64,
    /// Sequences whose answer begins before the template's generation prompt ends.
    pub shorter_prompts: u64,
    /// Sequences without the beginning-of-sequence token that the tokenizer puts before a text.
    pub without_bos: u64,
    /// Marks of the template (`{% generation %}`) whose first or last character no token holds.
    pub unmatched_marks: u64,
}

impl MaskSummary {
    fn add(&mut self, notes: &Notes) {
        self.cut_tokens += notes.cut_tokens;
        self.straddling_tokens += notes.straddling;
        self.straddling_sequences += u64::from(notes.straddling > 0);
        self.turns_left_out += notes.left_out;
        self.turns_not_taken_in += notes.not_taken_in;
        self.shorter_prompts += u64::from(notes.has_shorter_prompt);
        self.without_bos += u64::from(notes.is_without_bos);
        self.unmatched_marks += notes.unmatched_marks;
    }
}

impl fmt::Display for MaskSummary {
    /// A line, with the line break before it, for each number that is not 0.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let straddling = format!(
            "tokens with text of prompt and answer, labelled, in {} sequences",
            grouped(self.straddling_sequences)
        );
        let lines = [
            (self.cut_tokens, "tokens cut off at `max_tokens`"),
            (self.straddling_tokens, straddling.as_str()),
            (self.turns_left_out, "turns left out of the loss by their rows"),
            (self.turns_not_taken_in, "turns that their rows take into the loss and `data.mask` does not"),
            (self.shorter_prompts, "answers that begin before the template's generation prompt ends"),
            (self.without_bos, "sequences without the first token that the tokenizer puts before a text"),
            (
                self.unmatched_marks,
                "marks of the template with ends that no token holds: masked as transformers does",
            ),
        ];
        let mut lines = lines.into_iter().filter(|(count, _)| *count > 0);
        lines.try_for_each(|(count, line)| write!(f, "\n{} {line}", grouped(count)))
    }
}

impl Dropped {
    /// All of them.
    pub fn total(&self) -> u64 {
        self.prompt_too_long + self.duplicate + self.empty_response + self.left_out + self.too_short
    }
}

impl Summary {
    pub(crate) fn new(data: &DataConfig) -> Self {
        Self { max_prompt_tokens: data.max_prompt_tokens, max_tokens: data.max_tokens, ..Self::default() }
    }

    /// Counts an outcome and gives back the sequence if it is to be written; `is_new` answers for its key.
    pub(crate) fn count(
        &mut self,
        split: Split,
        outcome: Outcome,
        is_new: impl FnOnce(SequenceKey) -> bool,
    ) -> Option<Sequence> {
        self.rows += 1;
        let (sequence, notes) = match outcome {
            Outcome::Kept { sequence, notes } => (sequence, notes),
            Outcome::PromptTooLong => return count_one(&mut self.dropped.prompt_too_long),
            Outcome::EmptyResponse => return count_one(&mut self.dropped.empty_response),
            Outcome::LeftOut => return count_one(&mut self.dropped.left_out),
            Outcome::TooShort => return count_one(&mut self.dropped.too_short),
        };
        if !is_new(sequence.key()) {
            return count_one(&mut self.dropped.duplicate);
        }
        let side = match split {
            Split::Train => &mut self.train,
            Split::Valid => &mut self.valid,
            Split::Test => &mut self.test,
        };
        let tokens = length(&sequence.input_ids);
        side.sequences += 1;
        side.tokens += tokens;
        side.labelled_tokens += length(&sequence.positions);
        side.longest_tokens = side.longest_tokens.max(tokens);
        side.cut += u64::from(notes.cut_tokens > 0);
        self.mask.add(&notes);
        Some(sequence)
    }

    /// What was written of one side.
    pub fn side(&self, split: Split) -> &SplitSummary {
        match split {
            Split::Train => &self.train,
            Split::Valid => &self.valid,
            Split::Test => &self.test,
        }
    }

    /// Tokens written.
    pub fn tokens(&self) -> u64 {
        Split::ALL.iter().map(|split| self.side(*split).tokens).sum()
    }

    pub(crate) fn finish(&mut self, elapsed: Duration) {
        self.seconds = elapsed.as_secs_f64();
        self.tokens_per_second = self.tokens() as f64 / self.seconds.max(f64::EPSILON);
    }
}

fn count_one(counter: &mut u64) -> Option<Sequence> {
    *counter += 1;
    None
}

fn length(values: &[i32]) -> u64 {
    u64::try_from(values.len()).expect("a length fits 64 bits")
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "       sequences        tokens      labelled  longest      cut")?;
        for split in Split::ALL {
            let SplitSummary { sequences, tokens, labelled_tokens, longest_tokens, cut } = self.side(split);
            let [sequences, tokens, labelled] = [*sequences, *tokens, *labelled_tokens].map(grouped);
            writeln!(
                f,
                "{:<5}  {sequences:>9}  {tokens:>12}  {labelled:>12}  {:>7}  {:>7}",
                split.name(),
                grouped(*longest_tokens),
                grouped(*cut)
            )?;
        }
        write!(f, "{} rows read, {} dropped", grouped(self.rows), grouped(self.dropped.total()))?;
        let reasons = [
            (self.dropped.prompt_too_long, format!("with a prompt over {} tokens", self.max_prompt_tokens)),
            (self.dropped.duplicate, "duplicate".into()),
            (self.dropped.empty_response, "with an empty response".into()),
            (self.dropped.left_out, "left out of the loss by the row itself".into()),
            (self.dropped.too_short, "without a token to label".into()),
        ];
        let reasons: Vec<String> = reasons
            .iter()
            .filter(|(count, _)| *count > 0)
            .map(|(count, reason)| format!("{} {reason}", grouped(*count)))
            .collect();
        if !reasons.is_empty() {
            write!(f, ": {}", reasons.join(", "))?;
        }
        writeln!(f, "{}", self.mask)?;
        write!(f, "{}", self.read)?;
        let speed = format!("{:.0}", self.tokens_per_second);
        let speed = speed.parse().map_or(speed, grouped);
        write!(f, "{} tokens in {:.1} s, {speed} tokens/s", grouped(self.tokens()), self.seconds)
    }
}

/// 1234567 as `1,234,567`.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_aligned() {
        let mut summary =
            Summary { max_prompt_tokens: 512, max_tokens: 1024, rows: 15_011, ..Summary::default() };
        summary.train = SplitSummary {
            sequences: 14_000,
            tokens: 3_000_000,
            labelled_tokens: 1_200_000,
            longest_tokens: 1024,
            cut: 12,
        };
        summary.dropped.duplicate = 11;
        summary.mask.add(&Notes { straddling: 2, has_shorter_prompt: true, ..Notes::default() });
        summary.finish(Duration::from_secs(4));
        assert_eq!(
            summary.to_string(),
            "       sequences        tokens      labelled  longest      cut\n\
             train     14,000     3,000,000     1,200,000    1,024       12\n\
             valid          0             0             0        0        0\n\
             test           0             0             0        0        0\n\
             15,011 rows read, 11 dropped: 11 duplicate\n\
             2 tokens with text of prompt and answer, labelled, in 1 sequences\n\
             1 answers that begin before the template's generation prompt ends\n\
             3,000,000 tokens in 4.0 s, 750,000 tokens/s"
        );
    }
}
