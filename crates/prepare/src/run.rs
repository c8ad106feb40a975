//! The stage: rows in, a sequence dataset for each side of the split out.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use rayon::prelude::*;
use softshard_labels::{
    Example as HeldOut, Observer, Progress, Provenance, Sequence, SequenceKey, SequenceWriter, SequencesInfo,
    Split,
};

use crate::config::{DataConfig, EmptyResponses, SplitConfig, Template, TokenizerConfig};
use crate::encode::{Encoder, Outcome, Question};
use crate::rows::{Content, Inputs, Reading, Row};
use crate::summary::Summary;
use crate::{Error, Tokenizer, provenance};

/// Reads the rows, tokenises them and writes `out_dir/train`, `out_dir/valid` and `out_dir/test` (a side of which there are
/// to be no rows is not written).
///
/// The rows are read twice: once to check every row and to fix the split, before anything is written, and once to
/// encode them (in parallel, in the order of the input). What a pipe gives is kept meanwhile, in a file without a name
/// beside `out_dir`. Memory: one step of rows, 16 bytes for each sequence.
///
/// A run that was killed is done again, to the same bytes. `train` is committed last, and taken back first where it is of
/// an earlier run: where it is, the other sides are there, and of the same run.
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

    let info = |split: Split| SequencesInfo {
        tokenizer: tokenizer.fingerprint().clone(),
        template: data.template_name().into(),
        split: split.name().into(),
        seed: data.split.seed,
    };
    let mut outputs = Split::ALL.map(|split| Output {
        dir: out_dir.join(split.name()),
        was_there: out_dir.join(split.name()).exists(),
        info: info(split),
        made_from: made_from.clone(),
        sequences_per_shard: data.sequences_per_shard,
        writer: None,
    });
    let mut summary = Summary::new(data);
    let encoded =
        encode_all((&inputs, data, stop, observer), (&encoder, &survey), &mut outputs, &mut summary);
    let whole = encoded.and_then(|again| {
        survey.reading.check_same(&again, &inputs)?;
        provenance::check_unchanged(&made_from, data, config)?;
        if stop.load(Ordering::Relaxed) {
            return Err(Error::Interrupted); // the last moment at which nothing has changed
        }
        summary.read = again.counts;
        summary.finish(started.elapsed());
        every_side(summary, &data.split)
    });
    match whole {
        Ok(summary) => commit(outputs).map(|()| summary),
        Err(error) => {
            outputs.into_iter().try_for_each(Output::discard)?;
            Err(error)
        }
    }
}

/// Encodes every row and gives its sequence to its side.
fn encode_all(
    (inputs, data, stop, observer): (&Inputs, &DataConfig, &AtomicBool, &dyn Observer),
    (encoder, survey): (&Encoder, &Survey),
    outputs: &mut [Output; 3],
    summary: &mut Summary,
) -> Result<Reading, Error> {
    let mut seen = HashSet::new();
    inputs.for_each_step(data, stop, |step| {
        let encode = |row: &Row| -> Result<(Split, Outcome, Option<HeldOut>), Error> {
            if stop.load(Ordering::Relaxed) {
                return Err(Error::Interrupted);
            }
            let split = survey.split(row);
            let held_out = if split == Split::Train { None } else { held_out(encoder, row)? };
            Ok((split, encoder.encode(row)?, held_out))
        };
        let outcomes: Vec<Result<_, Error>> = step.par_iter().map(encode).collect();
        for outcome in outcomes {
            let (split, outcome, example) = outcome?;
            if let Some(sequence) = summary.count(split, outcome, |key: SequenceKey| seen.insert(key)) {
                outputs[split as usize].push(sequence, example.as_ref())?;
            }
        }
        observer.progress(&progress(summary, survey.reading.rows()));
        Ok(())
    })
}

/// Refuses rows of which nothing is left to learn from, or on a side that the recipe asks for.
fn every_side(summary: Summary, wanted: &SplitConfig) -> Result<Summary, Error> {
    let is_empty = |split: &Split| summary.side(*split).sequences == 0;
    if summary.tokens() == 0 {
        Err(Error::NothingLeft(Box::new(summary)))
    } else if is_empty(&Split::Train) {
        Err(Error::AllHeldOut(Box::new(summary)))
    } else if let Some(split) = Split::ALL.into_iter().filter(|split| wanted.wants(*split)).find(is_empty) {
        Err(Error::NothingHeldOut { split: split.name(), summary: Box::new(summary) })
    } else {
        Ok(summary)
    }
}

/// Commits all sides: what there is of an earlier run goes first, `train` before all, which comes back last.
fn commit(mut outputs: [Output; 3]) -> Result<(), Error> {
    outputs.iter_mut().try_for_each(Output::retract)?;
    outputs.into_iter().rev().try_for_each(Output::finish)
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
            // The folder of all sides, unless something else is in it.
            let _ = self.dir.parent().map(std::fs::remove_dir);
        }
        Ok(())
    }

    /// Takes away what an earlier run left, unless it is what this run writes.
    fn retract(&mut self) -> Result<(), Error> {
        match &mut self.writer {
            Some(writer) => Ok(writer.retract()?),
            None => Ok(SequenceWriter::remove(&self.dir)?),
        }
    }

    /// Commits what was pushed.
    fn finish(self) -> Result<(), Error> {
        self.writer.map_or(Ok(()), |writer| writer.finish().map(drop).map_err(Error::from))
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

/// The rows of one side of the split (`None`: of all), in the order of the input, ready to be answered: of a
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
    /// The largest hash of `valid`.
    last_valid: Option<u64>,
    /// The smallest hash of `test`.
    first_test: Option<u64>,
}

impl Survey {
    fn split(&self, row: &Row) -> Split {
        let hash = row.split_hash(self.seed);
        if self.last_valid.is_some_and(|last| hash <= last) {
            Split::Valid
        } else if self.first_test.is_some_and(|first| hash >= first) {
            Split::Test
        } else {
            Split::Train
        }
    }
}

/// The largest hash of `valid` and the smallest of `test`; `hashes` are those of all rows, where rows are counted.
fn boundaries(split: &SplitConfig, mut hashes: Vec<u64>) -> Result<[Option<u64>; 2], Error> {
    let of_fraction =
        |fraction: Option<f64>| fraction.filter(|one| *one > 0.0).map(|one| (one * 2f64.powi(64)) as u64);
    let [valid, test] = [split.valid_rows, split.test_rows].map(|rows| rows.unwrap_or(0));
    if valid == 0 && test == 0 {
        let last = of_fraction(split.test_fraction).map(|size| u64::MAX - size);
        return Ok([of_fraction(split.valid_fraction), last]);
    }
    let (wanted, rows) = (valid.saturating_add(test), hashes.len());
    if wanted >= rows {
        return Err(Error::TooFewRows { wanted, rows });
    }
    hashes.sort_unstable();
    let at = |row: Option<usize>| row.map(|row| hashes[row]);
    Ok([at(valid.checked_sub(1)), at((test > 0).then(|| rows - test))])
}

fn survey(inputs: &Inputs, data: &DataConfig, stop: &AtomicBool) -> Result<Survey, Error> {
    let seed = data.split.seed;
    let mut hashes = Vec::new();
    let mut empty: Option<(u64, Row)> = None;
    let reading = inputs.for_each_step(data, stop, |step| {
        if data.split.valid_rows.is_some() || data.split.test_rows.is_some() {
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
    let [last_valid, first_test] = boundaries(&data.split, hashes)?;
    Ok(Survey { reading, seed, last_valid, first_test })
}

/// The nearest folder above a path that is there: where a file without a name may lie beside the output.
fn folder_beside(path: &Path) -> &Path {
    path.ancestors().skip(1).find(|folder| folder.is_dir()).unwrap_or(Path::new("."))
}

fn progress(summary: &Summary, total: u64) -> Progress<'static> {
    let (done, tokens) = (summary.rows, Some(summary.tokens()));
    Progress { stage: "prepare", done, total, unit: "rows", tokens, ..Progress::default() }
}
