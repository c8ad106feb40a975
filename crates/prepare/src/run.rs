//! The stage: rows in, two sequence datasets out.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use rayon::prelude::*;
use softshard_labels::{
    Example as HeldOut, Observer, Progress, Provenance, Sequence, SequenceDataset, SequenceKey,
    SequenceWriter, SequencesInfo,
};

use crate::config::{DataConfig, EmptyResponses, Split, Template, TokenizerConfig};
use crate::encode::{Encoder, Outcome, Question};
use crate::rows::{Content, Inputs, Reading, Row};
use crate::summary::Summary;
use crate::{Error, Tokenizer, provenance};

/// Reads the rows, tokenises them and writes `out_dir/train` and `out_dir/valid` (a side without sequences is not
/// written).
///
/// The rows are read twice: once to check every row and to fix the split, before anything is written, and once to
/// encode them (in parallel, in the order of the input). What a pipe gives is kept meanwhile, in a file without a name
/// beside `out_dir`. Memory: one step of rows, 16 bytes for each sequence.
///
/// # Errors
/// [`Error::Row`] names the first bad row, [`Error::File`] a file that is none, or that changed between the readings;
/// [`Error::Interrupted`] where `stop` was set. None leaves a manifest that was not there before.
pub fn run(
    data: &DataConfig,
    config: &TokenizerConfig,
    out_dir: &Path,
    stop: &AtomicBool,
    observer: &dyn Observer,
) -> Result<Summary, Error> {
    let started = Instant::now();
    data.validate()?;
    let tokenizer = Tokenizer::load(&config.path)?;
    let encoder = Encoder::new(data, config, &tokenizer)?;
    if data.template() == Some(Template::Chat) {
        encoder.check_chat_template()?;
    }
    let inputs = Inputs::open(data, Some(folder_beside(out_dir)), stop)?;
    let made_from = provenance::of_recipe(data, config, &tokenizer)?;
    let survey = survey(&inputs, data, stop)?;

    let output = |split: Split| Output {
        dir: out_dir.join(split.name()),
        was_there: out_dir.join(split.name()).exists(),
        info: SequencesInfo {
            tokenizer: tokenizer.fingerprint().clone(),
            template: data.template_name().into(),
            split: split.name().into(),
            seed: data.split.seed,
        },
        made_from: made_from.clone(),
        sequences_per_shard: data.sequences_per_shard,
        writer: None,
    };
    let (mut train, mut valid) = (output(Split::Train), output(Split::Valid));
    let mut summary = Summary::new(data);
    let mut seen = HashSet::new();
    let encoded = inputs.for_each_step(data, stop, |step| {
        let encode = |row: &Row| -> Result<(Split, Outcome, Option<HeldOut>), Error> {
            if stop.load(Ordering::Relaxed) {
                return Err(Error::Interrupted);
            }
            let split = survey.split(row);
            let held_out = if split == Split::Valid { held_out(&encoder, row)? } else { None };
            Ok((split, encoder.encode(row)?, held_out))
        };
        let outcomes: Vec<Result<_, Error>> = step.par_iter().map(encode).collect();
        for outcome in outcomes {
            let (split, outcome, example) = outcome?;
            if let Some(sequence) = summary.count(split, outcome, |key: SequenceKey| seen.insert(key)) {
                let side = if split == Split::Valid { &mut valid } else { &mut train };
                side.push(sequence, example.as_ref())?;
            }
        }
        observer.progress(&progress(&summary, survey.reading.rows()));
        Ok(())
    });
    let again = encoded.and_then(|again| {
        survey.reading.check_same(&again, &inputs)?;
        provenance::check_unchanged(&made_from, data, config)?;
        Ok(again)
    });
    let whole = again.and_then(|again| {
        summary.read = again.counts;
        summary.finish(started.elapsed());
        something_to_learn(summary)
    });
    let summary = match whole {
        Ok(summary) => summary,
        Err(error) => {
            train.discard()?;
            valid.discard()?;
            return Err(error);
        }
    };
    train.finish()?;
    valid.finish()?;
    Ok(summary)
}

/// Refuses rows of which nothing is left to learn from.
fn something_to_learn(summary: Summary) -> Result<Summary, Error> {
    if summary.tokens() == 0 {
        Err(Error::NothingLeft(Box::new(summary)))
    } else if summary.train.sequences == 0 {
        Err(Error::AllHeldOut(Box::new(summary)))
    } else {
        Ok(summary)
    }
}

/// One side of the split on disk. A side without sequences has no folder.
struct Output {
    dir: PathBuf,
    was_there: bool,
    info: SequencesInfo,
    made_from: Provenance,
    sequences_per_shard: usize,
    writer: Option<SequenceWriter>,
}

impl Output {
    fn push(&mut self, sequence: Sequence, example: Option<&HeldOut>) -> Result<(), Error> {
        let writer = match &mut self.writer {
            Some(writer) => writer,
            None => {
                let writer = SequenceWriter::create(&self.dir, self.info.clone(), self.sequences_per_shard)?;
                self.writer.insert(writer.made_from(self.made_from.clone()))
            }
        };
        Ok(writer.push_example(sequence, example)?)
    }

    /// Leaves nothing behind where nothing was.
    fn discard(self) -> Result<(), Error> {
        let began = self.writer.is_some();
        drop(self.writer);
        if began && !self.was_there {
            fs_err::remove_dir_all(&self.dir)?;
            // The folder of both sides, unless something else is in it.
            let _ = self.dir.parent().map(std::fs::remove_dir);
        }
        Ok(())
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
    /// The prompt's token ids: exactly those with which the row's sequence begins in training, up to the first token
    /// that holds something of the answer.
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

/// The rows of one side of the split (`None`: of both), in the order of the input, ready to be answered: of a
/// conversation, the last answer. Rows with a prompt over the limit or an empty response are left out, as in training,
/// and those whose sequence is cut before the answer.
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
    let inputs = Inputs::open(data, None, &never)?;
    let survey = survey(&inputs, data, &never)?;
    let mut examples = Vec::new();
    let again = inputs.for_each_step(data, &never, |step| {
        let chosen = step.par_iter().filter(|row| split.is_none_or(|split| survey.split(row) == split));
        let step: Result<Vec<Option<Example>>, Error> = chosen.map(|row| example(&encoder, row)).collect();
        examples.extend(step?.into_iter().flatten());
        Ok(())
    })?;
    survey.reading.check_same(&again, &inputs)?;
    Ok(examples)
}

fn example(encoder: &Encoder, row: &Row) -> Result<Option<Example>, Error> {
    let Some(Question { prompt, prompt_ids, answer }) = encoder.question(row)? else { return Ok(None) };
    let (instruction, context, response) = match &row.content {
        Content::Instruction { instruction, context, response } => {
            (instruction.clone(), context.clone(), response.clone())
        }
        Content::Conversation(conversation) => {
            let last = conversation.prompt().iter().rev().find(|message| message.role() == "user");
            let instruction = last.map(|message| message.text().to_owned()).unwrap_or_default();
            // A turn that only calls tools has no text of its own.
            let text = conversation.response();
            (instruction, String::new(), if text.trim().is_empty() { answer } else { text.to_owned() })
        }
        Content::Completion { prompt, completion } => (prompt.clone(), String::new(), completion.clone()),
        Content::Tokens { .. } => (prompt.clone(), String::new(), answer),
        Content::Document(text) => (String::new(), String::new(), text.clone()),
    };
    Ok(Some(Example {
        source: row.place.source(),
        prompt,
        prompt_ids,
        instruction,
        context,
        response,
        category: row.category.clone(),
        facts: row.facts.clone(),
    }))
}

/// What the evaluation of a held-out row needs beside its sequence; a document of a corpus has no prompt.
fn held_out(encoder: &Encoder, row: &Row) -> Result<Option<HeldOut>, Error> {
    if matches!(row.content, Content::Document(_)) {
        return Ok(None);
    }
    let Some(example) = example(encoder, row)? else { return Ok(None) };
    let Example { prompt_ids, instruction, context, response, category, facts, .. } = example;
    let prompt_tokens = prompt_ids.len();
    Ok(Some(HeldOut { prompt_tokens, instruction, context, reference: response, category, facts }))
}

/// What the first reading found: every line is good, and where the split lies.
struct Survey {
    reading: Reading,
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

fn survey(inputs: &Inputs, data: &DataConfig, stop: &AtomicBool) -> Result<Survey, Error> {
    let seed = data.split.seed;
    let mut hashes = Vec::new();
    let mut empty: Option<(u64, Row)> = None;
    let reading = inputs.for_each_step(data, stop, |step| {
        if data.split.valid_rows.is_some() {
            hashes.par_extend(step.par_iter().map(|row| row.split_hash(seed)));
        }
        for row in step.iter().filter(|row| row.has_empty_response()) {
            empty.get_or_insert((0, row.clone())).0 += 1;
        }
        Ok(())
    })?;
    if let Some((rows, first)) = empty.filter(|_| data.empty_responses == EmptyResponses::Error) {
        let problem =
            format!("expected a response, found an empty one (in {rows} of {} rows)", reading.rows());
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
    Ok(Survey { reading, seed, last_valid })
}

/// The nearest folder above a path that is there: where a file without a name may lie beside the output.
fn folder_beside(path: &Path) -> &Path {
    path.ancestors().skip(1).find(|folder| folder.is_dir()).unwrap_or(Path::new("."))
}

fn progress(summary: &Summary, total: u64) -> Progress<'static> {
    let (done, tokens) = (summary.rows, Some(summary.tokens()));
    Progress { stage: "prepare", done, total, unit: "rows", tokens, ..Progress::default() }
}
