//! The same work for each shard, on all cores.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use crate::values::Error;

/// Threads beyond any use.
const MOST: usize = 1024;

/// Cores of this process, or as many as `RAYON_NUM_THREADS` says: what it says to the other crates of a program.
pub(crate) fn threads() -> usize {
    static THREADS: OnceLock<usize> = OnceLock::new();
    *THREADS.get_or_init(|| {
        let said = std::env::var("RAYON_NUM_THREADS").ok().and_then(|text| text.parse().ok());
        let cores = || thread::available_parallelism().map_or(1, usize::from);
        said.filter(|threads| (1..=MOST).contains(threads)).unwrap_or_else(cores)
    })
}

/// Calls `work` with each index below `count`, and with none above one that failed, once that is known. Of several errors
/// the one with the lowest index is given.
pub(crate) fn map<T: Send>(
    count: usize,
    work: impl Fn(usize) -> Result<T, Error> + Sync,
) -> Result<Vec<T>, Error> {
    map_on(threads(), count, work)
}

/// The same on so many threads: for work that waits.
pub(crate) fn map_on<T: Send>(
    threads: usize,
    count: usize,
    work: impl Fn(usize) -> Result<T, Error> + Sync,
) -> Result<Vec<T>, Error> {
    let threads = threads.min(count);
    let (next, failed) = (AtomicUsize::new(0), AtomicUsize::new(usize::MAX));
    let take = || {
        let mut done = Vec::new();
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            if index >= count || index > failed.load(Ordering::Relaxed) {
                return done;
            }
            let result = work(index);
            if result.is_err() {
                failed.fetch_min(index, Ordering::Relaxed);
            }
            done.push((index, result));
        }
    };
    let mut results: Vec<(usize, Result<T, Error>)> = thread::scope(|scope| {
        // Where no more threads may be made (`ulimit -u`) fewer do it, and this one where there is none. Otherwise it waits, so
        // that its own calls of the system are the same in every run: tests count them.
        let start = |_| thread::Builder::new().spawn_scoped(scope, take).ok();
        let workers: Vec<_> = (0..threads).map_while(start).collect();
        let own = if workers.is_empty() { take() } else { Default::default() };
        workers
            .into_iter()
            .flat_map(|worker| worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
            .chain(own)
            .collect()
    });
    results.sort_unstable_by_key(|(index, _)| *index);
    results.into_iter().map(|(_, result)| result).collect()
}

/// A thread of its own.
pub(crate) fn spawn<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<thread::JoinHandle<T>, Error> {
    thread::Builder::new().spawn(work).map_err(|error| {
        let message = format!("a thread could not be started: {error}");
        std::io::Error::new(error.kind(), message).into()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn after_an_error_little_more_is_done_and_the_lowest_is_given() {
        let calls = AtomicUsize::new(0);
        let error = map(100_000, |index| {
            calls.fetch_add(1, Ordering::Relaxed);
            if index >= 7 { Err(Error::bad(index, "none", "one")) } else { Ok(index) }
        });
        assert!(error.unwrap_err().to_string().starts_with("7: "));
        assert!(calls.into_inner() <= 7 + threads());
        assert_eq!(map(3, Ok).unwrap(), [0, 1, 2]);
    }
}
