//! A device without memory for what was asked: half of it may fit.

use std::any::Any;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};

use burn::tensor::Device;

use crate::Error;

/// The device has no memory left for what was asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutOfMemory(String);

impl fmt::Display for OutOfMemory {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        to.write_str(&self.0)
    }
}

impl std::error::Error for OutOfMemory {}

impl OutOfMemory {
    /// If this is what a runtime's message says.
    pub fn of_message(message: &str) -> Option<Self> {
        const SAYS: [&str; 7] = [
            "out of memory",
            "out_of_memory",
            "out-of-memory",
            "outofmemory",
            "out of device memory",
            "not enough memory",
            "can't allocate",
        ];
        let lower = message.to_lowercase();
        let first_line = message.lines().next().unwrap_or_default();
        SAYS.iter().any(|words| lower.contains(words)).then(|| Self(first_line.to_owned()))
    }

    /// If this is what a panic says.
    pub fn of_panic(panic: &(dyn Any + Send)) -> Option<Self> {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        Self::of_message(text.or_else(|| panic.downcast_ref::<&str>().copied())?)
    }
}

/// Does the work; that a device is out of memory, which comes from the depths of a runtime as a panic, is an error. Other panics go on.
///
/// # Errors
/// [`OutOfMemory`].
pub fn guarded<T>(work: impl FnOnce() -> T) -> Result<T, OutOfMemory> {
    // What unwinds leaves nothing behind: weights are only read, and tensors of the work are dropped.
    catch_unwind(AssertUnwindSafe(work))
        .map_err(|panic| OutOfMemory::of_panic(&*panic).unwrap_or_else(|| resume_unwind(panic)))
}

/// Batches on a device whose memory may not suffice for them: what is too large is done in halves, and so large a batch is not
/// tried again.
#[derive(Debug)]
pub struct Fitting {
    /// Tokens of a batch that may fit.
    tokens: AtomicUsize,
}

impl Default for Fitting {
    fn default() -> Self {
        Self { tokens: AtomicUsize::new(usize::MAX) }
    }
}

impl Fitting {
    /// What `work` gives for the members of a batch: one result, or one for each part of it that fitted, in their order. The device is
    /// waited for. `tokens` are those of some members.
    ///
    /// # Errors
    /// Those of `work`; [`OutOfMemory`] of a single member; [`Error::Device`] if the device failed otherwise.
    pub fn each<M, R, E>(
        &self,
        members: &[M],
        tokens: &impl Fn(&[M]) -> usize,
        device: &Device,
        work: &impl Fn(&[M]) -> Result<R, E>,
    ) -> Result<Vec<R>, E>
    where
        E: From<OutOfMemory> + From<Error>,
    {
        let size = tokens(members);
        let is_one = members.len() < 2;
        if is_one || size <= self.tokens.load(Ordering::Relaxed) {
            match guarded(|| finished(device, work(members)?)) {
                Ok(Ok(Ok(result))) => return Ok(vec![result]),
                Ok(Ok(Err(error))) | Err(error) if is_one => return Err(error.into()),
                Ok(Err(error)) => return Err(error),
                Ok(Ok(Err(_))) | Err(_) => {}
            }
            self.tokens.fetch_min((size / 2).max(1), Ordering::Relaxed);
            device.memory_cleanup();
            tracing::warn!("out of memory with {size} tokens at a time: once more in halves");
        }
        let (first, second) = members.split_at(members.len() / 2);
        let mut results = self.each(first, tokens, device, work)?;
        results.extend(self.each(second, tokens, device, work)?);
        Ok(results)
    }
}

/// Waits for the device, as a GPU is asked and not waited for: want of memory shows here at the latest.
fn finished<R, E: From<Error>>(device: &Device, result: R) -> Result<Result<R, OutOfMemory>, E> {
    match device.sync().map_err(|error| error.to_string()) {
        Ok(()) => Ok(Ok(result)),
        Err(message) => match OutOfMemory::of_message(&message) {
            Some(error) => Ok(Err(error)),
            None => Err(Error::Device(message).into()),
        },
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[derive(Debug, PartialEq)]
    enum Failed {
        OutOfMemory(OutOfMemory),
        Otherwise(String),
    }

    impl From<OutOfMemory> for Failed {
        fn from(error: OutOfMemory) -> Self {
            Self::OutOfMemory(error)
        }
    }

    impl From<Error> for Failed {
        fn from(error: Error) -> Self {
            Self::Otherwise(error.to_string())
        }
    }

    #[test]
    fn only_want_of_memory_is_caught() {
        let error = guarded(|| panic!("out of device memory allocating 12 bytes\nbacktrace")).map(|()| 0);
        assert_eq!(error.unwrap_err().to_string(), "out of device memory allocating 12 bytes");
        assert!(catch_unwind(|| guarded(|| panic!("another bug"))).is_err(), "a bug stays a panic");
        assert_eq!(guarded(|| 3), Ok(3));
    }

    /// A device with room for so many numbers, which panics as Burn does.
    #[test]
    fn what_does_not_fit_is_done_in_halves_and_in_order_and_not_tried_again() {
        let device = Device::flex();
        for room in [1, 2, 3, 8, 29, 30] {
            let (fitting, failed) = (Fitting::default(), Cell::new(0));
            let work = |members: &[u32]| -> Result<Vec<u32>, Failed> {
                if members.len() > room {
                    failed.set(failed.get() + 1);
                    panic!("out of device memory allocating {} bytes", members.len());
                }
                Ok(members.to_vec())
            };
            let members: Vec<u32> = (0..30).collect();
            let done = |times: u32| {
                let parts = fitting.each(&members, &|members| members.len(), &device, &work).unwrap();
                assert_eq!(parts.concat(), members, "time {times}");
            };
            done(1);
            let first = failed.get();
            assert_eq!(first == 0, room >= 30);
            done(2);
            assert_eq!(failed.get(), first, "what did not fit is not tried again");
        }
    }

    #[test]
    fn one_that_does_not_fit_and_other_errors_are_given() {
        let device = Device::flex();
        let each = |work: &dyn Fn() -> Result<(), Failed>| {
            let tokens = |members: &[u32]| members.len();
            Fitting::default().each(&[1, 2, 3], &tokens, &device, &|_| work()).unwrap_err()
        };
        let error = each(&|| panic!("CUDA_ERROR_OUT_OF_MEMORY"));
        assert!(matches!(error, Failed::OutOfMemory(_)), "{error:?}");
        let error = each(&|| Err(Failed::Otherwise("disk full".to_owned())));
        assert_eq!(error, Failed::Otherwise("disk full".to_owned()));
    }
}
