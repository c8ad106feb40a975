//! Shards go to the devices as they get free, while other threads read the next ones and write those before.

use std::{
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    thread,
    time::Instant,
};

use anyhow::{Result, anyhow};
use softshard_labels::{LabelWriter, Sequence, SequenceDataset};

use crate::{
    labeller::Labeller,
    rows::Wanted,
    watch::{Shard, Watch},
    writing::{Labelled, write_shards},
};

/// What is labelled, by whom, and where it goes.
pub(crate) struct Job<'a> {
    /// One for each device.
    pub(crate) labellers: &'a [Labeller],
    pub(crate) sequences: &'a SequenceDataset,
    pub(crate) writer: &'a LabelWriter,
    pub(crate) stop: &'a AtomicBool,
}

/// A shard's sequences, ready to be labelled.
type Read = Result<(usize, Vec<Sequence>)>;

/// Labels and commits the `missing` shards. After an error, those that were labelled before it are committed.
pub(crate) fn label(job: &Job, missing: &[usize], watch: &Watch) -> Result<()> {
    let failed = AtomicBool::new(false);
    let ends = || job.stop.load(Ordering::Relaxed) || failed.load(Ordering::Relaxed);
    let wanted = [Wanted::of(job.writer.plan())?];
    // One shard that is read is in the reader's hands, one of each device that is labelled in its own.
    let (ahead, shards) = sync_channel::<Read>(0);
    let (to_write, labelled) = sync_channel::<Labelled>(0);
    let shards = Mutex::new(Some(shards));
    thread::scope(|scope| {
        let (shards, ends, failed) = (&shards, &ends, &failed);
        let reader = LetGo { shards, failed };
        scope.spawn(move || read_ahead(job, missing, &ahead, watch, ends));
        let writing = scope.spawn(move || {
            let written = write_shards(job.writer, labelled, watch);
            failed.fetch_or(written.is_err(), Ordering::Relaxed);
            written
        });
        let devices: Vec<_> = (job.labellers.iter().enumerate())
            .map(|(device, labeller)| {
                let (to_write, wanted) = (to_write.clone(), &wanted);
                scope.spawn(move || {
                    let work = || work((device, labeller), shards, wanted, &to_write, watch, ends);
                    let result = catch_unwind(AssertUnwindSafe(work));
                    if !matches!(result, Ok(Ok(()))) {
                        failed.store(true, Ordering::Relaxed);
                        watch.failed();
                    }
                    result
                })
            })
            .collect();
        drop(to_write);
        let results: Vec<_> = devices.into_iter().map(thread::ScopedJoinHandle::join).collect();
        // The reader may still wait for somebody to take what it has.
        drop(reader);
        writing.join().map_err(|_| anyhow!("the thread that writes shards panicked"))??;
        for result in results {
            result.and_then(|ended| ended).unwrap_or_else(|panic| resume_unwind(panic))?;
        }
        if job.stop.load(Ordering::Relaxed) && !watch.is_done() { Err(watch.stopped()) } else { Ok(()) }
    })
}

/// Nobody takes what the reader has any more; also where a thread could not be started, which is a panic: all others would wait.
struct LetGo<'a> {
    shards: &'a Mutex<Option<Receiver<Read>>>,
    failed: &'a AtomicBool,
}

impl Drop for LetGo<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            self.failed.store(true, Ordering::Relaxed);
        }
        drop(self.shards.lock().unwrap_or_else(PoisonError::into_inner).take());
    }
}

/// Reads shard after shard, one ahead of the devices.
fn read_ahead(
    job: &Job,
    missing: &[usize],
    ahead: &SyncSender<Read>,
    watch: &Watch,
    ends: &(impl Fn() -> bool + Sync),
) {
    for &shard in missing {
        if ends() {
            return;
        }
        let began = Instant::now();
        let read = read(job, shard).map(|sequences| (shard, sequences));
        watch.read(began.elapsed());
        if ahead.send(read).is_err() {
            return;
        }
    }
}

fn read(job: &Job, shard: usize) -> Result<Vec<Sequence>> {
    let [first, end] = job.writer.plan().shards[shard];
    Ok(job.sequences.read_range(usize::try_from(first)?..usize::try_from(end)?)?)
}

/// Labels shards on one device until there are no more, or the run ends.
fn work(
    (device, labeller): (usize, &Labeller),
    shards: &Mutex<Option<Receiver<Read>>>,
    wanted: &[Wanted; 1],
    to_write: &SyncSender<Labelled>,
    watch: &Watch,
    ends: &(impl Fn() -> bool + Sync),
) -> Result<()> {
    loop {
        let next = shards.lock().unwrap_or_else(PoisonError::into_inner).as_ref().map(Receiver::recv);
        let Some(Ok(next)) = next else { return Ok(()) };
        if ends() {
            return Ok(());
        }
        let (index, sequences) = next?;
        let shard = Mutex::new(Shard::new(index));
        let labels = labeller.label(&sequences, wanted, |batch| {
            shard.lock().unwrap_or_else(PoisonError::into_inner).add(batch);
            watch.batch(device, batch, labeller.retries());
        })?;
        let shard = shard.into_inner().unwrap_or_else(PoisonError::into_inner);
        for rows in labels {
            if to_write.send(Labelled { shard: shard.ended(), rows }).is_err() {
                return Ok(()); // the writer failed: its error is the one to see
            }
        }
    }
}
