//! The largest piece of memory that these tests asked for.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

/// The limits of the tests bound a row group to 1 MiB and a footer to 64 KiB, whose structures may take 512 times as much.
pub(crate) const MOST: usize = 48 << 20;

struct Watched;

static LARGEST: AtomicUsize = AtomicUsize::new(0);

#[global_allocator]
static ALLOCATOR: Watched = Watched;

#[expect(unsafe_code, reason = "an allocator cannot be watched without")]
// SAFETY: all calls go to the system's allocator as they came.
unsafe impl GlobalAlloc for Watched {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        LARGEST.fetch_max(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller keeps the promises of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps the promises of `dealloc`, and all memory is the system's.
        unsafe { System.dealloc(pointer, layout) }
    }
}

/// Fails if a piece was larger than it may be.
#[track_caller]
pub(crate) fn assert_small() {
    let largest = LARGEST.load(Ordering::Relaxed);
    assert!(largest <= MOST, "{largest} bytes were asked for at once");
}
