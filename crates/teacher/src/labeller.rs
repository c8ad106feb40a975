//! The teacher at work: sequences to labels, in batches of like length.

use std::{
    io, iter,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    thread,
    time::Instant,
};

use anyhow::{Context, Result};
use burn::tensor::{Device, Tensor};
use rayon::{ThreadPool, ThreadPoolBuilder, prelude::*};
use softshard_labels::{Observer, Progress, Sequence, SequenceLabels};
use softshard_losses::{HeadError, HeadOptions, label_rows};
use softshard_model::{Decoder, OutOfMemory, batches_by_length};

use crate::{
    batch_size::{BatchTokens, device_failed, in_halves},
    config::TeacherConfig,
    noise,
    rows::{Wanted, not_finite, split, uniforms},
};

/// Loads the teacher with its adapter.
pub(crate) fn load(teacher: &TeacherConfig, device: &Device) -> Result<Decoder> {
    let mut decoder = Decoder::load_with(&teacher.model, device, &teacher.load_options())?;
    if let Some(adapter) = &teacher.adapter {
        decoder.load_adapter(adapter)?;
    }
    Ok(decoder)
}

/// How much is computed at a time. Labels are the same for any pace but for rounding errors.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pace {
    /// Batches at a time.
    pub(crate) workers: usize,
    /// Tokens of a batch, padding included.
    pub(crate) max_tokens_per_batch: usize,
    /// Tokens whose states are in memory at a time where layers are streamed.
    pub(crate) tokens_per_block: usize,
    /// Rows that meet the vocabulary at a time.
    pub(crate) rows_per_chunk: usize,
}

/// A batch that was labelled.
#[derive(Clone, Debug, Default)]
pub(crate) struct Batch {
    pub(crate) sequences: u64,
    pub(crate) tokens: u64,
    pub(crate) padded_tokens: u64,
    pub(crate) labelled_tokens: u64,
    /// Of the device: of a batch that had one of two cores, half of what the clock showed.
    pub(crate) forward_seconds: f64,
    pub(crate) head_seconds: f64,
    /// Of the distributions of the labelled tokens, in nats, and their mass that was kept: sums, of the first selection.
    pub(crate) entropy: f64,
    pub(crate) retained_mass: f64,
}

/// Says how many of `total` sequences are done after each batch.
pub(crate) fn progress(observer: &dyn Observer, stage: &'static str, total: usize) -> impl Fn(&Batch) + Sync {
    let done = Mutex::new((0, 0));
    move |batch| {
        let mut done = done.lock().unwrap_or_else(PoisonError::into_inner);
        *done = (done.0 + batch.sequences, done.1 + batch.tokens);
        observer.progress(&Progress {
            stage,
            done: done.0,
            total: total as u64,
            unit: "sequences",
            tokens: Some(done.1),
            ..Progress::default()
        });
    }
}

/// A loaded teacher.
pub(crate) struct Labeller {
    pub(crate) decoder: Decoder,
    pub(crate) pace: Pace,
    /// Tokens of a batch and of a block that fitted so far: at most those of the pace.
    fits: AtomicUsize,
    block_fits: AtomicUsize,
    /// Threads that compute alone, one for each batch at a time; none where there is one.
    lanes: Vec<ThreadPool>,
    /// Batches and blocks that did not fit and were done again in halves.
    retries: AtomicU64,
}

/// Labels of each of what was wanted, in the order of the sequences.
type Labelled = Vec<Vec<SequenceLabels>>;

impl Labeller {
    /// A teacher on its device that computes `workers` batches at a time.
    pub(crate) fn load(teacher: &TeacherConfig, device: &Device, workers: usize) -> Result<Self> {
        let decoder = load(teacher, device)?;
        let max_tokens_per_batch = BatchTokens::resolve(teacher.max_tokens_per_batch, &decoder, workers);
        let TeacherConfig { tokens_per_block, rows_per_chunk, .. } = *teacher;
        let pace = Pace { workers, max_tokens_per_batch, tokens_per_block, rows_per_chunk };
        let lane =
            |_| ThreadPoolBuilder::new().num_threads(1).build().context("a thread could not be started");
        let lanes = if workers > 1 { (0..workers).map(lane).collect::<Result<_, _>>()? } else { Vec::new() };
        let most = || AtomicUsize::new(usize::MAX);
        Ok(Self { decoder, pace, fits: most(), block_fits: most(), lanes, retries: AtomicU64::new(0) })
    }

    /// Batches that did not fit in memory and were done again in halves.
    pub(crate) fn retries(&self) -> u64 {
        self.retries.load(Ordering::Relaxed)
    }

    /// Labels of `sequences`, in their order, for each of `wanted`; one forward pass serves all of them. What does not fit
    /// in the memory of the device is done again in halves.
    pub(crate) fn label(
        &self,
        sequences: &[Sequence],
        wanted: &[Wanted],
        done: impl Fn(&Batch) + Sync,
    ) -> Result<Labelled> {
        let (order, batches) = self.batches(sequences);
        let blocks = self.blocks(&batches);
        let lanes = if self.decoder.is_streamed() { &[] } else { self.lanes.as_slice() };
        let at_a_time = lanes.len().min(blocks.len()).max(1) as f64;
        let done = |batch: &Batch| {
            let (forward_seconds, head_seconds) =
                (batch.forward_seconds / at_a_time, batch.head_seconds / at_a_time);
            done(&Batch { forward_seconds, head_seconds, ..batch.clone() });
        };
        let label = |block: &&[Vec<&Sequence>]| self.label_or_halve(block, wanted, &done);
        let labelled = each_on(lanes, &blocks, label)?;

        let empty = || iter::repeat_with(|| None).take(sequences.len()).collect();
        let mut all: Vec<Vec<Option<SequenceLabels>>> = wanted.iter().map(|_| empty()).collect();
        let mut start = 0;
        for block in labelled {
            let indices = &order[start..start + block[0].len()];
            start += indices.len();
            for (into, rows) in all.iter_mut().zip(block) {
                indices.iter().zip(rows).for_each(|(&index, row)| into[index] = Some(row));
            }
        }
        Ok(all.into_iter().map(|rows| rows.into_iter().flatten().collect()).collect())
    }

    /// Batches of like length, as large as may fit, and of each of their members in turn its index among the sequences.
    pub(crate) fn batches<'b>(&self, sequences: &'b [Sequence]) -> (Vec<usize>, Vec<Vec<&'b Sequence>>) {
        let lengths: Vec<usize> = sequences.iter().map(|sequence| sequence.input_ids.len()).collect();
        let most = self.pace.max_tokens_per_batch.min(self.fits.load(Ordering::Relaxed));
        let batches = batches_by_length(&lengths, most);
        let members =
            batches.iter().map(|batch| batch.iter().map(|&index| &sequences[index]).collect()).collect();
        (batches.concat(), members)
    }

    /// Neighbouring batches whose states fit in memory together, as streamed weights are read once for a block of them; resident
    /// ones serve one batch at a time.
    pub(crate) fn blocks<'a, 'b>(&self, batches: &'a [Vec<&'b Sequence>]) -> Vec<&'a [Vec<&'b Sequence>]> {
        if !self.decoder.is_streamed() {
            return batches.chunks(1).collect();
        }
        let most = self.pace.tokens_per_block.min(self.block_fits.load(Ordering::Relaxed));
        let mut blocks = Vec::new();
        let mut first = 0;
        let mut tokens = 0;
        for (index, batch) in batches.iter().enumerate() {
            if index > first && tokens + padded(batch) > most {
                blocks.push(&batches[first..index]);
                (first, tokens) = (index, 0);
            }
            tokens += padded(batch);
        }
        if first < batches.len() {
            blocks.push(&batches[first..]);
        }
        blocks
    }

    /// Hidden states before the labelled tokens of each batch, `[N, D]`; what does not fit in memory is done again in halves, which
    /// are then batches of their own.
    pub(crate) fn states<'b>(
        &self,
        block: &[Vec<&'b Sequence>],
    ) -> Result<Vec<(Vec<&'b Sequence>, Tensor<2>)>> {
        let states =
            |block: &[Vec<&'b Sequence>]| Ok(block.iter().cloned().zip(self.hidden(block)?).collect());
        self.in_halves(block, &states)
    }

    fn hidden(&self, block: &[Vec<&Sequence>]) -> Result<Vec<Tensor<2>>> {
        let inputs: Vec<(Vec<_>, Vec<_>)> = (block.iter())
            .map(|batch| batch.iter().map(|one| (one.input_ids.as_slice(), one.positions.as_slice())).unzip())
            .collect();
        let hidden = self.decoder.hidden_before_each(&inputs, self.is_parallel(block))?;
        // A GPU is asked and not waited for.
        self.decoder.device().sync().map_err(|error| device_failed(error.to_string()))?;
        Ok(hidden)
    }

    /// Whether the batches of a block are computed beside each other.
    fn is_parallel(&self, block: &[Vec<&Sequence>]) -> bool {
        block.len() > 1 && self.pace.workers > 1
    }

    fn in_halves<'b, R>(
        &self,
        block: &[Vec<&'b Sequence>],
        work: &impl Fn(&[Vec<&'b Sequence>]) -> Result<Vec<R>>,
    ) -> Result<Vec<R>> {
        if let [batch] = block
            && batch.len() > 1
            && padded(batch) > self.fits.load(Ordering::Relaxed)
        {
            // Cut before it was known what fits.
            let (first, second) = batch.split_at(batch.len() / 2);
            let mut results = self.in_halves(&[first.to_vec()], work)?;
            results.extend(self.in_halves(&[second.to_vec()], work)?);
            return Ok(results);
        }
        let on_retry = |block: &[Vec<&Sequence>]| {
            let tokens: usize = block.iter().map(padded).sum();
            let fits = if let [_] = block { &self.fits } else { &self.block_fits };
            fits.fetch_min((tokens / 2).max(1), Ordering::Relaxed);
            self.retries.fetch_add(1, Ordering::Relaxed);
            self.decoder.device().memory_cleanup();
            tracing::warn!("out of memory with {tokens} tokens at a time: once more in halves");
        };
        in_halves(block, work, &on_retry).map_err(|error| match error.downcast::<OutOfMemory>() {
            Ok(error) => too_large(block, &error),
            Err(error) => error,
        })
    }

    /// Labels of a block; where it does not fit in memory, of its halves.
    fn label_or_halve(
        &self,
        block: &[Vec<&Sequence>],
        wanted: &[Wanted],
        done: &(impl Fn(&Batch) + Sync),
    ) -> Result<Labelled> {
        let work = |block: &[Vec<&Sequence>]| self.label_block(block, wanted);
        let mut labels: Labelled = wanted.iter().map(|_| Vec::new()).collect();
        for (rows, batch) in self.in_halves(block, &work)? {
            labels.iter_mut().zip(rows).for_each(|(into, mut rows)| into.append(&mut rows));
            done(&batch);
        }
        Ok(labels)
    }

    /// All batches of a block go through a layer before the next one; each is longest sequence first.
    fn label_block(&self, block: &[Vec<&Sequence>], wanted: &[Wanted]) -> Result<Vec<(Labelled, Batch)>> {
        let began = Instant::now();
        let hidden = self.hidden(block)?;
        let forward_seconds = began.elapsed().as_secs_f64();
        let began = Instant::now();
        let select =
            |(batch, hidden): (&Vec<&Sequence>, Tensor<2>)| self.select_batch(batch, &hidden, wanted);
        let mut selected: Vec<(Labelled, Batch)> = if self.is_parallel(block) {
            block.par_iter().zip(hidden).map(select).collect::<Result<_>>()?
        } else {
            block.iter().zip(hidden).map(select).collect::<Result<_>>()?
        };
        if let [_, _, ..] = block {
            // They were selected beside each other: each has its part of what the clock shows.
            let head_seconds = began.elapsed().as_secs_f64();
            let all = block.iter().map(Vec::len).sum::<usize>() as f64;
            for (_, batch) in &mut selected {
                let share = batch.sequences as f64 / all;
                (batch.forward_seconds, batch.head_seconds) = (share * forward_seconds, share * head_seconds);
            }
        } else if let [(_, batch)] = selected.as_mut_slice() {
            batch.forward_seconds = forward_seconds;
        }
        Ok(selected)
    }

    /// Labels of a batch from the hidden states before its labelled tokens, `[N, D]`.
    fn select_batch(
        &self,
        batch: &[&Sequence],
        hidden: &Tensor<2>,
        wanted: &[Wanted],
    ) -> Result<(Labelled, Batch)> {
        let gold: Vec<i32> = batch.iter().flat_map(|sequence| sequence.gold()).collect();
        let mut told = Batch {
            sequences: batch.len() as u64,
            tokens: batch.iter().map(|sequence| sequence.input_ids.len() as u64).sum(),
            padded_tokens: (batch.len() * batch[0].input_ids.len()) as u64,
            labelled_tokens: gold.len() as u64,
            ..Batch::default()
        };
        let mut all = Vec::with_capacity(wanted.len());
        for wanted in wanted {
            let options = HeadOptions {
                keep: wanted.keep,
                logit_scale: wanted.logit_scale,
                temperatures: wanted.temperatures,
                rows_per_chunk: self.pace.rows_per_chunk,
            };
            let uniforms = uniforms(batch, wanted);
            let began = Instant::now();
            let labels = label_rows(hidden.clone(), self.decoder.head(), &gold, &uniforms, &options);
            let mut labels = labels.map_err(|error| head_failed(error, batch))?;
            told.head_seconds += began.elapsed().as_secs_f64();
            if all.is_empty() {
                told.entropy = labels.entropy.iter().map(|&nats| f64::from(nats)).sum();
                told.retained_mass =
                    labels.tail_log_mass.iter().map(|&tail| 1.0 - f64::from(tail).exp()).sum();
            }
            noise::exchange(&mut labels, batch, wanted, (hidden, &self.decoder.head()))?;
            all.push(split(batch, labels, wanted));
        }
        Ok((all, told))
    }
}

/// What the head said of rows of a batch.
pub(crate) fn head_failed(error: HeadError, batch: &[&Sequence]) -> anyhow::Error {
    match error {
        HeadError::NonFinite { row } => not_finite(batch, row).into(),
        HeadError::Device(reason) => device_failed(reason),
    }
}

/// Tokens of a batch with its padding: its first sequence is the longest.
#[expect(clippy::ptr_arg, reason = "used as a function of an element")]
fn padded(batch: &Vec<&Sequence>) -> usize {
    batch.len() * batch[0].input_ids.len()
}

/// Nothing can be halved any more: one sequence, the longest at the most, is too large.
fn too_large(block: &[Vec<&Sequence>], error: &OutOfMemory) -> anyhow::Error {
    let longest = block.iter().flatten().map(|sequence| sequence.input_ids.len()).max().unwrap_or(0);
    let message = format!(
        "the device is out of memory with one sequence at a time (the longest here has {longest} tokens): {error}\n\
         hint: a smaller `teacher.rows_per_chunk`, `residency = \"streamed\"` or `quantise` take less; finished shards are intact"
    );
    io::Error::new(io::ErrorKind::OutOfMemory, message).into()
}

/// Results of all items in their order, which are begun in their order, one on each of the `lanes` at a time. An operation inside stays
/// in its lane: whole batches side by side need no waiting for each other. Without lanes, or for one item, the caller works.
fn each_on<T: Sync, R: Send>(
    lanes: &[ThreadPool],
    items: &[T],
    work: impl Fn(&T) -> Result<R> + Sync,
) -> Result<Vec<R>> {
    if lanes.is_empty() || items.len() < 2 {
        return items.iter().map(work).collect();
    }
    let next = AtomicUsize::new(0);
    let results: Vec<Mutex<Option<R>>> = items.iter().map(|_| Mutex::new(None)).collect();
    let run = || -> Result<()> {
        let mut rest = Rest(Some((&next, items.len())));
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            let Some(item) = items.get(index) else { break };
            let result = work(item)?;
            *results[index].lock().unwrap_or_else(PoisonError::into_inner) = Some(result);
        }
        rest.0 = None;
        Ok(())
    };
    thread::scope(|scope| {
        let threads: Vec<_> =
            lanes.iter().take(items.len()).map(|lane| scope.spawn(|| lane.install(run))).collect();
        let ended: Vec<_> = threads.into_iter().map(thread::ScopedJoinHandle::join).collect();
        ended.into_iter().try_for_each(|ended| ended.unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    })?;
    let taken = results.into_iter().map(|result| result.into_inner().unwrap_or_else(PoisonError::into_inner));
    Ok(taken.flatten().collect())
}

/// After an error or a panic nobody begins another item.
struct Rest<'a>(Option<(&'a AtomicUsize, usize)>);

impl Drop for Rest<'_> {
    fn drop(&mut self) {
        if let Some((next, end)) = self.0 {
            next.store(end, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn items_are_done_once_and_in_order() {
        let items: Vec<usize> = (0..100).collect();
        let lanes = |count: usize| -> Vec<ThreadPool> {
            (0..count).map(|_| ThreadPoolBuilder::new().num_threads(1).build().unwrap()).collect()
        };
        for workers in [0, 1, 3, 120] {
            let tripled = each_on(&lanes(workers), &items, |&item| Ok(3 * item)).unwrap();
            assert_eq!(tripled, items.iter().map(|item| 3 * item).collect::<Vec<_>>());
        }
        let failed =
            each_on(&lanes(3), &items, |&item| if item == 7 { anyhow::bail!("seven") } else { Ok(item) });
        assert_eq!(failed.unwrap_err().to_string(), "seven");
        let threads = each_on(&lanes(2), &items, |_| Ok(rayon::current_num_threads())).unwrap();
        assert!(threads.iter().all(|&threads| threads == 1), "{threads:?}");
    }
}
