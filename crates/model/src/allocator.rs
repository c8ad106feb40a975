//! How the C library's allocator treats the memory of tensors.

/// Blocks up to this size come from the heap; larger ones are mapped, and unmapped when they are freed.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const LARGEST_FROM_HEAP: i32 = 1 << 30;
/// The heap grows by blocks of this size while it is reserved.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const RESERVED_AT_ONCE: usize = 1 << 29;

/// Keeps freed memory for the next tensor, in large pages where the system has them. By default glibc
/// returns large blocks to the system and gets them back page by page: a quarter of a forward pass; and with
/// pages of 4 KB matrix products wait for addresses: another quarter (docs/log.md). Call it first in `main`,
/// before threads have arenas of their own. Memory that was in use once is given back when the process ends.
/// Returns whether the allocator took the settings; elsewhere than on glibc it does nothing.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
#[expect(unsafe_code, reason = "the C library's settings can only be changed so")]
pub fn keep_freed_memory() -> bool {
    // SAFETY: `mallopt` only stores numbers; it is called before other threads allocate.
    let accepted = unsafe {
        [
            libc::mallopt(libc::M_ARENA_MAX, 1),
            libc::mallopt(libc::M_MMAP_THRESHOLD, LARGEST_FROM_HEAP),
            // Never.
            libc::mallopt(libc::M_TRIM_THRESHOLD, -1),
        ]
    };
    let accepted = !accepted.contains(&0);
    if accepted && may_reserve() {
        ask_for_large_pages();
    }
    accepted
}

/// Reserves addresses for the heap, three quarters as many as there is memory, and asks for large pages
/// there. Nothing of it is in memory before it is used.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
#[expect(unsafe_code, reason = "the C library's heap can only be grown so")]
fn ask_for_large_pages() {
    // SAFETY: the calls read numbers of the system.
    let (pages, page) = unsafe { (libc::sysconf(libc::_SC_PHYS_PAGES), libc::sysconf(libc::_SC_PAGESIZE)) };
    let (Ok(pages), Ok(page)) = (usize::try_from(pages), usize::try_from(page)) else { return };
    let count = pages.saturating_mul(page) / 4 * 3 / RESERVED_AT_ONCE;
    let size = RESERVED_AT_ONCE - page;
    // SAFETY: the blocks are freed once, and nobody reads or writes them; what is advised of are whole pages
    // of the heap between the first block and the last.
    unsafe {
        let blocks: Vec<_> = std::iter::repeat_with(|| libc::malloc(size))
            .take(count)
            .take_while(|block| !block.is_null())
            .collect();
        if let (Some(&first), Some(&last)) = (blocks.first(), blocks.last()) {
            let (first, end) = (first.addr().next_multiple_of(page), (last.addr() + size) / page * page);
            if first < end {
                // A hint: where the system has no large pages, nothing is lost.
                libc::madvise(blocks[0].with_addr(first), end - first, libc::MADV_HUGEPAGE);
            }
        }
        blocks.into_iter().rev().for_each(|block| libc::free(block));
    }
}

/// Not where addresses count: under a limit on them, or where the system promises no more than it has.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
#[expect(unsafe_code, reason = "limits are asked of the C library")]
fn may_reserve() -> bool {
    let unlimited = |resource| {
        let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        // SAFETY: the call fills in the structure.
        unsafe { libc::getrlimit(resource, &raw mut limit) == 0 && limit.rlim_cur == libc::RLIM_INFINITY }
    };
    let strict =
        fs_err::read_to_string("/proc/sys/vm/overcommit_memory").is_ok_and(|mode| mode.trim() == "2");
    unlimited(libc::RLIMIT_AS) && unlimited(libc::RLIMIT_DATA) && !strict
}

/// Does nothing: the settings are glibc's.
#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
pub fn keep_freed_memory() -> bool {
    true
}
