//! Memory that the threads of this process decode in, all of them together: a limit of each row group alone would grow with the cores.

use std::cell::Cell;
use std::marker::PhantomData;
use std::sync::{Condvar, Mutex, PoisonError};

/// Bytes that may be decoded at a time. What is larger alone is decoded alone.
const MOST: usize = 1 << 30;

static IN_USE: Mutex<usize> = Mutex::new(0);
static GIVEN_BACK: Condvar = Condvar::new();

thread_local! {
    static HELD: Cell<usize> = const { Cell::new(0) };
}

/// A part of the memory, for as long as it lives; on the thread that asked for it.
#[derive(Debug)]
pub(crate) struct Share {
    bytes: usize,
    of_this_thread: PhantomData<*const ()>,
}

impl Share {
    /// Waits until there are so many bytes. A thread that has a share decodes within it: who has something never waits, so all come
    /// to their end.
    pub(crate) fn of(bytes: usize) -> Self {
        let is_first = HELD.replace(HELD.get() + 1) == 0;
        let bytes = if is_first { bytes } else { 0 };
        if bytes > 0 {
            let full = |in_use: &mut usize| *in_use > 0 && in_use.saturating_add(bytes) > MOST;
            let in_use = IN_USE.lock().unwrap_or_else(PoisonError::into_inner);
            let mut in_use = GIVEN_BACK.wait_while(in_use, full).unwrap_or_else(PoisonError::into_inner);
            *in_use += bytes;
        }
        Self { bytes, of_this_thread: PhantomData }
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        HELD.set(HELD.get() - 1);
        if self.bytes > 0 {
            *IN_USE.lock().unwrap_or_else(PoisonError::into_inner) -= self.bytes;
            GIVEN_BACK.notify_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::thread;

    use super::*;

    #[test]
    fn sixty_four_threads_have_no_more_together_than_one() {
        const PART: usize = MOST / 3;
        let (now, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
        thread::scope(|scope| {
            for _ in 0..64 {
                scope.spawn(|| {
                    let _outer = Share::of(PART);
                    most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                    drop(Share::of(PART)); // within the first: does not wait
                    thread::yield_now();
                    now.fetch_sub(1, Ordering::SeqCst);
                });
            }
            // Larger than all there is: alone, and not never.
            scope.spawn(|| drop(Share::of(2 * MOST)));
        });
        assert!(most.into_inner() <= 3);
    }
}
