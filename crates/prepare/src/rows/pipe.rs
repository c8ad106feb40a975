//! Pipes: what they give is there once, and rows are read twice, so it is kept in a file meanwhile.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use crate::Error;

/// How long a signal waits, at most.
const TICK: Duration = Duration::from_millis(50);
/// After this long without a byte it is said what is waited for.
const PATIENCE: Duration = Duration::from_secs(5);

/// Reads a pipe to its end into a file in `folder`. The file has no name, so whatever becomes of this process, the
/// file goes with it.
///
/// A pipe may block for ever, be it in `open` without a writer or in `read`: a thread does both, and is left behind
/// when `stop` is set.
pub(super) fn spool(path: &Path, folder: &Path, stop: &AtomicBool) -> Result<File, Error> {
    let within = |error: io::Error| {
        let place = format!("keeping what `{}` gives in `{}`", path.display(), folder.display());
        io::Error::new(error.kind(), format!("{place}: {error}"))
    };
    let file = tempfile::tempfile_in(folder).map_err(within)?;
    let mut writer = file.try_clone().map_err(within)?;
    let (said, says) = channel();
    let name = path.to_owned();
    std::thread::spawn(move || {
        let copy = || -> io::Result<()> {
            let mut pipe = fs_err::File::open(&name)?;
            let mut buffer = vec![0; 1 << 16];
            loop {
                match pipe.read(&mut buffer)? {
                    0 => return Ok(()),
                    bytes => writer.write_all(&buffer[..bytes])?,
                }
                if said.send(None).is_err() {
                    return Ok(()); // Nobody waits any more.
                }
            }
        };
        let mut copy = copy;
        let end = copy();
        let _nobody_waits = said.send(Some(end));
    });
    let mut silent_since = Some(Instant::now());
    loop {
        if stop.load(Ordering::Relaxed) {
            return Err(Error::Interrupted);
        }
        match says.recv_timeout(TICK) {
            Ok(None) => silent_since = None,
            Ok(Some(end)) => return Ok(end.map(|()| file).map_err(within)?),
            Err(RecvTimeoutError::Disconnected) => {
                return Err(within(io::Error::other("the reader of the pipe ended")).into());
            }
            Err(RecvTimeoutError::Timeout) => {
                if silent_since.is_some_and(|since| since.elapsed() > PATIENCE) {
                    tracing::info!("waiting for something to write to the pipe `{}`", path.display());
                    silent_since = None;
                }
            }
        }
    }
}
