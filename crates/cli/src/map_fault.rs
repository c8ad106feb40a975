//! What happens when a mapped file is cut short by somebody else: the kernel answers the next look at it with SIGBUS.
//!
//! No code can go on from there, as the bytes that it works with are gone. So the process says which file it was and
//! ends; what it had finished, such as checkpoints, is whole on the disk. One of two places of this crate with unsafe code.

use std::io;

#[cfg(not(target_os = "linux"))]
pub(crate) fn diagnose() -> io::Result<()> {
    Ok(())
}

/// Lets a SIGBUS inside of a mapped file end the process with a diagnosis and the exit code of bad data.
///
/// # Errors
/// The kernel refuses the handler.
#[cfg(target_os = "linux")]
#[expect(unsafe_code, reason = "a signal handler cannot be installed without")]
pub(crate) fn diagnose() -> io::Result<()> {
    use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

    // On the stack that the standard library gives each thread for signals. Other threads may come to the same fault.
    let flags = SaFlags::SA_SIGINFO | SaFlags::SA_ONSTACK;
    let action = SigAction::new(SigHandler::SigAction(linux::on_sigbus), flags, SigSet::empty());
    // SAFETY: the handler calls nothing but open, read, write, sigaction, raise and _exit, which are safe in a signal
    // handler; it allocates nothing, takes no lock, cannot panic and keeps to memory of its own. Nobody else relies on a
    // handler of SIGBUS: the one of the standard library names stack overflows, which are SIGSEGV on Linux.
    unsafe { sigaction(Signal::SIGBUS, &action) }?;
    Ok(())
}

#[cfg(target_os = "linux")]
mod linux {
    use std::{
        ffi::{c_int, c_void},
        os::fd::{AsFd, BorrowedFd},
    };

    use nix::{
        fcntl::{OFlag, open},
        libc::{_exit, siginfo_t},
        sys::{
            signal::{SigHandler, Signal, raise, signal},
            stat::Mode,
        },
        unistd::{read, write},
    };

    use crate::exit::BAD_DATA;

    const BEFORE: &[u8] = b"\nerror: `";
    const AFTER: &[u8] = b"`: expected the bytes that were mapped, found that they are gone: the file was cut short, or \
        its disk failed, while it was in use\nhint: put the file back and run again, finished work is kept; with \
        `--no-mmap` labels and sequences are read instead, and a copy of a model on a local disk is not cut short\n";

    /// Names the file that the fault lies in and ends the process. A fault elsewhere kills it, as without this handler.
    #[expect(
        unsafe_code,
        reason = "a signal handler gets a pointer, and must not run what waits for the end of main"
    )]
    pub(super) extern "C" fn on_sigbus(_: c_int, info: *mut siginfo_t, _: *mut c_void) {
        // SAFETY: with SA_SIGINFO the kernel gives a valid `siginfo_t`, and SIGBUS has an address.
        let address = unsafe { (*info).si_addr() }.addr();
        // SAFETY: standard error is never closed by this process.
        let stderr = unsafe { BorrowedFd::borrow_raw(2) };
        let mut line = Line::new();
        if line.find(address).is_none() {
            // SAFETY: the default action needs no handler. The signal waits until this one returns.
            let again =
                unsafe { signal(Signal::SIGBUS, SigHandler::SigDfl) }.and_then(|_| raise(Signal::SIGBUS));
            if again.is_err() {
                // SAFETY: as below.
                unsafe { _exit(i32::from(BAD_DATA)) }
            }
            return;
        }
        for part in [BEFORE, line.path(), AFTER] {
            let mut rest = part;
            while let Some(written) = write(stderr, rest).ok().filter(|written| *written > 0) {
                rest = rest.get(written..).unwrap_or_default();
            }
        }
        // SAFETY: ends the process at once; no destructor could do more with what is lost.
        unsafe { _exit(i32::from(BAD_DATA)) }
    }

    /// A line of /proc/self/maps: `7f00-7f10 r--s 00000000 fe:00 131 /path`. Longer paths are cut.
    struct Line {
        bytes: [u8; 1024],
        length: usize,
    }

    impl Line {
        fn new() -> Self {
            Self { bytes: [0; 1024], length: 0 }
        }

        /// Reads on to the line of the map of a file that `address` lies in.
        fn find(&mut self, address: usize) -> Option<()> {
            let maps = open(c"/proc/self/maps", OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty()).ok()?;
            let mut buffer = [0; 1024];
            loop {
                let size = read(maps.as_fd(), &mut buffer).ok().filter(|size| *size > 0)?;
                for byte in buffer.get(..size)? {
                    if *byte != b'\n' {
                        if let Some(free) = self.bytes.get_mut(self.length) {
                            *free = *byte;
                            self.length += 1;
                        }
                    } else if self.holds(address) == Some(true) {
                        return (!self.path().is_empty()).then_some(());
                    } else {
                        self.length = 0;
                    }
                }
            }
        }

        /// Whether the map of this line has `address`.
        fn holds(&self, address: usize) -> Option<bool> {
            let mut words = self.bytes.get(..self.length)?.split(|byte| matches!(byte, b'-' | b' '));
            let [start, end] = [hexadecimal(words.next()?)?, hexadecimal(words.next()?)?];
            Some((start..end).contains(&address))
        }

        /// What follows the numbers of a line: from its first slash.
        fn path(&self) -> &[u8] {
            let line = self.bytes.get(..self.length).unwrap_or_default();
            let slash = line.iter().position(|byte| *byte == b'/');
            slash.and_then(|slash| line.get(slash..)).unwrap_or_default()
        }
    }

    fn hexadecimal(digits: &[u8]) -> Option<usize> {
        digits.iter().try_fold(0usize, |number, digit| {
            let value = match digit {
                b'0'..=b'9' => digit - b'0',
                b'a'..=b'f' => digit - b'a' + 10,
                _ => return None,
            };
            number.checked_mul(16)?.checked_add(usize::from(value))
        })
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn addresses_are_found_in_the_maps_of_files() {
            let mut line = Line::new();
            let code = addresses_are_found_in_the_maps_of_files as *const () as usize;
            assert_eq!(line.find(code), Some(()));
            let path = std::env::current_exe().expect("a test has a path");
            assert_eq!(line.path(), path.as_os_str().as_encoded_bytes());
            let local = 0u8;
            assert_eq!(Line::new().find((&raw const local).addr()), None, "a stack is no file");
            assert_eq!(Line::new().find(1), None);
        }
    }
}
