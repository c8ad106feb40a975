//! The stage: plan the shards, label those that are missing, finish the dataset.

use std::{ops::Range, path::Path, sync::atomic::AtomicBool, time::Instant};

use anyhow::Result;
use softshard_labels::{Error, LabelPlan, LabelWriter, Observer, Output, OwnTokenizer, SequenceDataset};
use softshard_model::DecoderConfig;

use crate::{
    config::LabelsConfig,
    devices::{Job, label},
    plan::plan,
    rows::place,
    summary::Summary,
    teacher::Teacher,
    watch::Watch,
};

/// What a labelling run reads and where it writes.
pub struct TeacherInputs<'a> {
    /// Recipe section `[labels]`.
    pub labels: &'a LabelsConfig,
    /// Sequence dataset of one split.
    pub sequences: &'a Path,
    /// Sequences that a temperature is fitted on, where the recipe calibrates the teacher.
    pub held_out: Option<&'a Path>,
    /// The teacher's tokenizer; sequences of one with other ids are refused.
    pub tokenizer: &'a OwnTokenizer,
    /// Receives the label dataset.
    pub output: &'a Output,
    /// The part of the shards that this process labels; all, and the dataset is finished, where it is not given.
    pub part: Option<Part>,
    /// Set to stop at the next shard boundary.
    pub stop: &'a AtomicBool,
    /// Sees each batch as progress, and the metrics of each committed shard.
    pub observer: &'a dyn Observer,
}

/// One of several processes that label a dataset together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// Which one, below `of`.
    pub task: usize,
    /// How many there are.
    pub of: usize,
}

impl Part {
    /// Its shards, of `count`: neighbours, as many as those of every other part or one more. None where there are more parts than
    /// shards before it.
    ///
    /// # Panics
    /// If there is no such part.
    pub fn shards(self, count: usize) -> Range<usize> {
        let Self { task, of } = self;
        assert!(task < of, "task {task} of {of}");
        let start = |task: usize| {
            let product = task as u128 * count as u128 / of as u128;
            usize::try_from(product).expect("at most the count")
        };
        start(task)..start(task + 1)
    }
}

/// Labels every shard of the part that is not committed yet; where there is no part, then finishes the dataset.
///
/// # Errors
/// An output of another plan, sequences of another tokenizer or over the teacher's context, logits that are not finite
/// (the sequence is named), a device without memory for one sequence, I/O. A stop that was asked for is an
/// [`std::io::ErrorKind::Interrupted`].
pub fn run(teacher: &mut Teacher, inputs: &TeacherInputs) -> Result<Summary> {
    let began = Instant::now();
    let sequences = SequenceDataset::open(inputs.sequences)?;
    let config = DecoderConfig::load(&teacher.config.model)?;
    check_fit(&teacher.config.model, &config, inputs.tokenizer, (inputs.sequences, &sequences))?;
    let planned = if LabelWriter::is_begun(inputs.output)? {
        Some(LabelWriter::open(inputs.output)?.plan().teacher.clone())
    } else {
        check_lengths(&sequences, &config, inputs.labels.sequences_per_shard)?;
        teacher.labellers()?; // one that cannot be loaded leaves no plan
        None
    };
    let identity = teacher.identity(planned.as_ref(), inputs.held_out)?;
    let writer = begin(inputs, plan(identity, inputs.labels, &sequences)?)?;

    let mut summary = Summary { shards: writer.plan().shards.len(), ..Summary::default() };
    let missing = missing(&writer, inputs.part, &mut summary)?;
    if !missing.is_empty() {
        let labellers = teacher.labellers()?;
        let job = Job { labellers, sequences: &sequences, writer: &writer, stop: inputs.stop };
        let watch = Watch::new(writer.plan(), &missing, summary, inputs.observer);
        let labelled = label(&job, &missing, &watch);
        summary = watch.end(labellers);
        labelled?;
    }
    summary.seconds.load = teacher.take_load_seconds();
    match inputs.part {
        None => {
            let manifest = writer.finish()?;
            summary.bytes = manifest.shards.iter().map(|shard| shard.bytes).sum();
            summary.dataset_labelled_tokens = manifest.shards.iter().map(|shard| shard.labelled_tokens).sum();
        }
        Some(_) => summary.remaining_tokens = remaining(&sequences, &writer)?,
    }
    summary.seconds.total = began.elapsed().as_secs_f64();
    Ok(summary)
}

/// Shards of the part that have no valid commit. A part looks at its own alone: many of them at one dataset are not to hash all of it
/// each.
fn missing(writer: &LabelWriter, part: Option<Part>, summary: &mut Summary) -> Result<Vec<usize>> {
    let Some(part) = part else {
        summary.own_shards = summary.shards;
        return Ok(writer.missing()?);
    };
    let own = part.shards(summary.shards);
    summary.own_shards = own.len();
    Ok(writer.missing_of(own)?)
}

/// Begins the dataset, or goes on with it. Of several workers that begin at the same time on different machines, each may have fitted
/// its own temperature: the one that was first counts.
fn begin(inputs: &TeacherInputs, mut plan: LabelPlan) -> Result<LabelWriter> {
    let error = match LabelWriter::create_or_resume(inputs.output, plan.clone()) {
        Ok(writer) => return Ok(writer),
        Err(error) => error,
    };
    let is_calibrated = |plan: &LabelPlan| plan.teacher.altered.as_ref().is_some_and(|one| one.is_calibrated);
    if matches!(error, Error::OtherPlan { .. }) && is_calibrated(&plan) {
        let first = LabelWriter::open(inputs.output)?;
        if is_calibrated(first.plan()) {
            let scale = first.plan().teacher.altered.as_ref().map(|one| one.logit_scale);
            plan.teacher.altered.iter_mut().zip(scale).for_each(|(one, scale)| one.logit_scale = scale);
            if plan == *first.plan() {
                return Ok(first);
            }
        }
    }
    Err(error.into())
}

/// Tokens, by the number of their sequences, of shards that nobody has committed.
fn remaining(sequences: &SequenceDataset, writer: &LabelWriter) -> Result<u64> {
    let shards = &writer.plan().shards;
    let rows: u64 = writer.uncommitted()?.into_iter().map(|shard| shards[shard][1] - shards[shard][0]).sum();
    let manifest = sequences.manifest();
    Ok(u64::try_from(
        u128::from(manifest.input_tokens) * u128::from(rows) / u128::from(manifest.rows.max(1)),
    )?)
}

/// Refuses sequences of another tokenizer, and a tokenizer that is too large for the model.
pub(crate) fn check_fit(
    model: &Path,
    config: &DecoderConfig,
    tokenizer: &OwnTokenizer,
    (path, sequences): (&Path, &SequenceDataset),
) -> Result<(), Error> {
    let info = &sequences.manifest().info;
    let place = format!("sequences `{}`", path.display());
    tokenizer.expect_reads(&info.tokenizer, info.template == "chat", place)?;
    tokenizer.expect_fits(model, config.vocab_size)
}

/// Refuses a sequence over the teacher's context before any work; reads some rows at a time.
pub(crate) fn check_lengths(sequences: &SequenceDataset, config: &DecoderConfig, rows: usize) -> Result<()> {
    let limit = config.context();
    for first in (0..sequences.len()).step_by(rows) {
        let end = (first + rows).min(sequences.len());
        if let Some(long) = sequences.read_range(first..end)?.iter().find(|one| one.input_ids.len() > limit) {
            let expected = format!("at most the {limit} positions of the teacher");
            let hint = "set `data.max_tokens` and prepare again";
            return Err(Error::bad(place(long), expected, long.input_ids.len()).hint(hint).into());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_all_shards_once() {
        for (count, of) in [(0, 1), (1, 1), (10, 3), (3, 10), (128, 128), (1001, 7)] {
            let parts: Vec<_> = (0..of).map(|task| Part { task, of }.shards(count)).collect();
            let all: Vec<usize> = parts.iter().cloned().flatten().collect();
            assert_eq!(all, (0..count).collect::<Vec<_>>());
            let lengths = || parts.iter().map(ExactSizeIterator::len);
            assert!(lengths().max() <= lengths().min().map(|least| least + 1));
        }
    }
}
