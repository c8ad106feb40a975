//! How the C library's allocator treats the memory of tensors.

/// Blocks up to this size come from the heap; larger ones are mapped, and unmapped when they are freed.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const LARGEST_FROM_HEAP: i32 = 1 << 30;

/// Keeps freed memory for the next tensor. By default glibc returns large blocks to the system and gets them back page by
/// page: a quarter of a forward pass (docs/log.md). Call it first in `main`, before threads have arenas of their own.
/// Memory that was in use once is given back when the process ends. Returns whether the allocator took the settings;
/// elsewhere than on glibc it does nothing.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
#[expect(unsafe_code, reason = "the C library's settings can only be changed so")]
pub fn keep_freed_memory() -> bool {
    // SAFETY: `mallopt` only stores numbers; it is called before other threads allocate.
    let accepted = unsafe {
        [
            libc::mallopt(libc::M_ARENA_MAX, 1),
            libc::mallopt(libc::M_MMAP_THRESHOLD, LARGEST_FROM_HEAP),
            libc::mallopt(libc::M_TRIM_THRESHOLD, i32::MAX),
        ]
    };
    !accepted.contains(&0)
}

/// Does nothing: the settings are glibc's.
#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
pub fn keep_freed_memory() -> bool {
    true
}
