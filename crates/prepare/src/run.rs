//! The stage: rows in, two sequence datasets out.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use rayon::prelude::*;
use softshard_labels::{Sequence, SequenceDataset, SequenceKey, SequenceWriter, SequencesInfo};

use crate::config::{DataConfig, EmptyResponses, Split, Template, TokenizerConfig};
use crate::conversation::Conversation;
use crate::encode::{Encoder, Outcome};
use crate::rows::{Content, Row, rows};
use crate::summary::Summary;
use crate::{Error, Tokenizer};

/// Rows that are encoded in one parallel step; the stop flag is looked at in between.
const ROWS_PER_STEP: usize = 1024;

/// Reads the rows, tokenises them and writes `out_dir/train` and `out_dir/valid` (a side without sequences is not
/// written).
///
/// The rows are read twice: once to check every line and to fix the split, before anything is written, and once to
/// encode them (in parallel, in the order of the input). Memory: one step of rows, 16 bytes for each sequence.
///
/// # Errors
/// [`Error::Row`] names the first bad line; [`Error::Interrupted`] where `stop` was set. Neither leaves a
/// manifest that was not there before.
pub fn run(
    data: &DataConfig,
    config: &TokenizerConfig,
    out_dir: &Path,
    stop: &AtomicBool,
) -> Result<Summary, Error> {
    let started = Instant::now();
    data.validate()?;
    let tokenizer = Tokenizer::load(&config.path)?;
    let encoder = Encoder::new(data, config, &tokenizer)?;
    if data.template() == Some(Template::Chat) {
        check_chat_template(&tokenizer)?;
    }
    let survey = survey(data, stop)?;

    let output = |split: Split| Output {
        dir: out_dir.join(split.name()),
        info: SequencesInfo {
            tokenizer: tokenizer.fingerprint().clone(),
            template: data.template_name().into(),
            split: split.name().into(),
            seed: data.split.seed,
        },
        sequences_per_shard: data.sequences_per_shard,
        writer: None,
    };
    let (mut train, mut valid) = (output(Split::Train), output(Split::Valid));
    let mut summary = Summary::new(data);
    let mut seen = HashSet::new();
    for_each_step(data, stop, |step| {
        let outcomes: Vec<Result<Outcome, Error>> = step.par_iter().map(|row| encoder.encode(row)).collect();
        for (row, outcome) in step.iter().zip(outcomes) {
            let split = survey.split(row);
            if let Some(sequence) = summary.count(split, outcome?, |key: SequenceKey| seen.insert(key)) {
                match split {
                    Split::Train => train.push(sequence)?,
                    Split::Valid => valid.push(sequence)?,
                }
            }
        }
        report(summary.rows, survey.rows, summary.tokens());
        Ok(())
    })?;
    summary.finish(started.elapsed());
    if summary.tokens() == 0 {
        return Err(Error::NothingLeft(Box::new(summary)));
    }
    if summary.train.sequences == 0 {
        return Err(Error::AllHeldOut(Box::new(summary)));
    }
    train.finish()?;
    valid.finish()?;
    Ok(summary)
}

/// One side of the split on disk. A side without sequences has no folder.
struct Output {
    dir: PathBuf,
    info: SequencesInfo,
    sequences_per_shard: usize,
    writer: Option<SequenceWriter>,
}

impl Output {
    fn push(&mut self, sequence: Sequence) -> Result<(), Error> {
        let writer = match &mut self.writer {
            Some(writer) => writer,
            None => {
                let writer = SequenceWriter::create(&self.dir, self.info.clone(), self.sequences_per_shard)?;
                self.writer.insert(writer)
            }
        };
        Ok(writer.push(sequence)?)
    }

    /// Commits what was pushed; if that is nothing, removes the dataset of an earlier run, which would be mistaken
    /// for this run's.
    fn finish(self) -> Result<(), Error> {
        if let Some(writer) = self.writer {
            writer.finish()?;
        } else if SequenceDataset::open(&self.dir).is_ok() {
            fs_err::remove_file(self.dir.join("manifest.json"))?;
            fs_err::remove_dir_all(&self.dir)?;
        }
        Ok(())
    }
}

/// A row as the evaluation needs it: the prompt to answer, and the answer to compare with.
#[derive(Clone, Debug)]
pub struct Example {
    /// `file.jsonl:12`.
    pub source: String,
    /// The prompt as text.
    pub prompt: String,
    /// The prompt's token ids: exactly those with which the row's sequence begins in training.
    pub prompt_ids: Vec<i32>,
    /// The instruction; the last message of the user in a conversation.
    pub instruction: String,
    /// The text the instruction is about; empty if there is none.
    pub context: String,
    /// The reference answer.
    pub response: String,
    /// The row's category, if it has one.
    pub category: Option<String>,
    /// What the row says is true, if it does (see [`crate::demo::Facts`]).
    pub facts: Option<serde_json::Value>,
}

/// The rows of one side of the split (`None`: of both), in the order of the input, ready to be answered. Rows with a
/// prompt over the limit or an empty response are left out, as in training.
///
/// # Errors
/// As [`run`].
pub fn examples(
    data: &DataConfig,
    config: &TokenizerConfig,
    tokenizer: &Tokenizer,
    split: Option<Split>,
) -> Result<Vec<Example>, Error> {
    data.validate()?;
    if data.is_text() {
        return Err(Error::Config(
            "[data]: expected `instructions` to take examples from, found `text`".into(),
        ));
    }
    let encoder = Encoder::new(data, config, tokenizer)?;
    let never = AtomicBool::new(false);
    let survey = survey(data, &never)?;
    let mut examples = Vec::new();
    for_each_step(data, &never, |step| {
        let chosen = step
            .par_iter()
            .filter(|row| split.is_none_or(|split| survey.split(row) == split) && !row.has_empty_response());
        let step: Result<Vec<Option<Example>>, Error> = chosen.map(|row| example(&encoder, row)).collect();
        examples.extend(step?.into_iter().flatten());
        Ok(())
    })?;
    Ok(examples)
}

fn example(encoder: &Encoder, row: &Row) -> Result<Option<Example>, Error> {
    let prompt = encoder.prompt(row)?;
    let prompt_ids = encoder.prompt_ids(&prompt)?;
    if prompt_ids.len() > encoder.max_prompt_tokens() {
        return Ok(None);
    }
    let (instruction, context, response) = match &row.content {
        Content::Instruction { instruction, context, response } => {
            (instruction.clone(), context.clone(), response.as_str())
        }
        Content::Conversation(conversation) => {
            let last = conversation.prompt().iter().rev().find(|message| message.role() == "user");
            let instruction = last.map(|message| message.text().to_owned()).unwrap_or_default();
            (instruction, String::new(), conversation.response())
        }
        Content::Document(text) => (String::new(), String::new(), text.as_str()),
    };
    Ok(Some(Example {
        source: row.place.source(),
        prompt,
        prompt_ids,
        instruction,
        context,
        response: response.to_owned(),
        category: row.category.clone(),
        facts: row.facts.clone(),
    }))
}

/// What the first reading found: every line is good, and where the split lies.
struct Survey {
    rows: u64,
    seed: u64,
    /// The largest hash that is held out.
    last_valid: Option<u64>,
}

impl Survey {
    fn split(&self, row: &Row) -> Split {
        match self.last_valid {
            Some(last) if row.split_hash(self.seed) <= last => Split::Valid,
            _ => Split::Train,
        }
    }
}

fn survey(data: &DataConfig, stop: &AtomicBool) -> Result<Survey, Error> {
    let seed = data.split.seed;
    let mut hashes = Vec::new();
    let mut empty: Option<(u64, Row)> = None;
    let mut count = 0u64;
    for_each_step(data, stop, |step| {
        count += u64::try_from(step.len()).expect("a length fits 64 bits");
        if data.split.valid_rows.is_some() {
            hashes.par_extend(step.par_iter().map(|row| row.split_hash(seed)));
        }
        for row in step.iter().filter(|row| row.has_empty_response()) {
            empty.get_or_insert((0, row.clone())).0 += 1;
        }
        Ok(())
    })?;
    if let Some((rows, first)) = empty.filter(|_| data.empty_responses == EmptyResponses::Error) {
        let problem = format!("expected a response, found an empty one (in {rows} of {count} rows)");
        return Err(first.place.error(problem, "correct the row, or set `data.empty_responses = \"drop\"`"));
    }
    let last_valid = match (data.split.valid_fraction, data.split.valid_rows) {
        (Some(fraction), _) if fraction > 0.0 => Some((fraction * 2f64.powi(64)) as u64),
        (_, Some(wanted)) if wanted > 0 => {
            hashes.sort_unstable();
            hashes.get(wanted - 1).or(hashes.last()).copied()
        }
        _ => None,
    };
    Ok(Survey { rows: count, seed, last_valid })
}

/// Reads all rows, a step at a time.
fn for_each_step(
    data: &DataConfig,
    stop: &AtomicBool,
    mut work: impl FnMut(&[Row]) -> Result<(), Error>,
) -> Result<(), Error> {
    let mut rows = rows(data);
    loop {
        if stop.load(Ordering::Relaxed) {
            return Err(Error::Interrupted);
        }
        let step: Vec<Row> = rows.by_ref().take(ROWS_PER_STEP).collect::<Result<_, _>>()?;
        if step.is_empty() {
            return Ok(());
        }
        work(&step)?;
    }
}

/// A template that cannot tell prompt and answer apart is refused before anything is written.
fn check_chat_template(tokenizer: &Tokenizer) -> Result<(), Error> {
    let template = tokenizer.chat_template().expect("checked by the encoder");
    template.conversation(&Conversation::short("question", "answer")).map(|_| ())
}

fn report(done: u64, total: u64, tokens: u64) {
    tracing::info!(target: "softshard::progress", stage = "prepare", done, total, unit = "rows", tokens);
}
