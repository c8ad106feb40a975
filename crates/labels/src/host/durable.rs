//! Files that are either whole and on the disk or not there at all.
//!
//! Everything is written below `_softshard/tmp`, synced, and then linked or renamed to its name. A failed sync is
//! never tried again: the kernel may have dropped the pages and answer "fine" the second time.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::io::{self, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use super::data_file::DataFile;
use super::regular::{self, Links};
use crate::values::Error;

/// Private folder of a dataset.
pub(crate) const PRIVATE: &str = "_softshard";
/// Stands for a machine that cannot be told from others; no hash has these letters.
const UNKNOWN: &str = "unknown";

/// A file below `_softshard/tmp`, removed when dropped.
#[derive(Debug)]
pub(crate) struct TempFile {
    path: PathBuf,
    nonce: String,
}

impl TempFile {
    /// Creates an empty file in the dataset at `root`.
    pub(crate) fn create(root: &Path) -> Result<(Self, fs_err::File), Error> {
        let nonce = nonce();
        let path = root.join(PRIVATE).join("tmp").join(&nonce);
        let file = fs_err::File::create_new(&path)?;
        Ok((Self { path, nonce }, file))
    }

    /// Creates a file with this content and syncs it.
    pub(crate) fn with(root: &Path, bytes: &[u8]) -> Result<Self, Error> {
        let (temp, mut file) = Self::create(root)?;
        file.write_all(bytes).map_err(|error| write_failed(&error, bytes.len()))?;
        file.sync_all()?;
        Ok(temp)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Names this attempt.
    pub(crate) fn nonce(&self) -> &str {
        &self.nonce
    }

    /// Gives the file its name, atomically; says `false` if the name is taken.
    pub(crate) fn link(&self, to: &Path) -> io::Result<bool> {
        // Not fs_err's: its message names the two paths the wrong way round.
        match std::fs::hard_link(&self.path, to) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
            Err(error) => {
                let (from, to) = (self.path.display(), to.display());
                let hint = match error.kind() {
                    io::ErrorKind::PermissionDenied | io::ErrorKind::Unsupported => {
                        "\nhint: the output folder must be on a file system with hard links"
                    }
                    _ => "",
                };
                Err(io::Error::new(
                    error.kind(),
                    format!("failed to link file `{from}` to `{to}`: {error}{hint}"),
                ))
            }
        }
    }

    /// Gives the file its name, atomically, in place of what had it.
    pub(crate) fn rename(&self, to: &Path) -> Result<(), Error> {
        fs_err::rename(&self.path, to)?;
        sync_parent(to)
    }
}

impl Drop for TempFile {
    fn drop(&mut self) {
        if let Err(error) = remove_if_there(&self.path) {
            tracing::warn!(%error, "a temporary file stays behind");
        }
    }
}

/// Where files are written before they get their names: a dataset, or a folder of this machine that goes when it is dropped.
#[derive(Debug)]
pub(crate) struct Scratch {
    root: PathBuf,
    is_temporary: bool,
}

impl Scratch {
    /// In the dataset at `root`.
    pub(crate) fn within(root: &Path) -> Self {
        Self { root: root.to_owned(), is_temporary: false }
    }

    /// A new folder below `$TMPDIR`, or where this system has its temporary files; those of dead processes of this machine are
    /// removed.
    pub(crate) fn temporary() -> Result<Self, Error> {
        const NAME: &str = "softshard-";
        let folder = std::env::temp_dir();
        let machine = machine();
        for entry in fs_err::read_dir(&folder)?.flatten() {
            let name = entry.file_name();
            let is_dead = |nonce| is_of_dead_process(nonce, machine.as_deref());
            if name.to_str().and_then(|name| name.strip_prefix(NAME)).is_some_and(is_dead)
                && let Err(error) = fs_err::remove_dir_all(entry.path())
            {
                tracing::debug!(%error, "a scratch folder stays behind"); // another user's
            }
        }
        let root = folder.join(format!("{NAME}{}", nonce()));
        std::fs::DirBuilder::new().mode(0o700).create(&root).map_err(|error| {
            let message = format!("failed to create folder `{}`: {error}", root.display());
            io::Error::new(
                error.kind(),
                format!("{message}\nhint: TMPDIR names another place for a shard or two"),
            )
        })?;
        let scratch = Self { root, is_temporary: true };
        fs_err::create_dir_all(scratch.root.join(PRIVATE).join("tmp"))?;
        Ok(scratch)
    }

    /// What temporary files are made in.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if self.is_temporary
            && let Err(error) = fs_err::remove_dir_all(&self.root)
        {
            tracing::warn!(%error, "a scratch folder stays behind");
        }
    }
}

/// Names an attempt: machine, process, and something by chance.
pub(crate) fn nonce() -> String {
    let chance = RandomState::new().build_hasher().finish();
    let machine = machine().unwrap_or_else(|| UNKNOWN.to_owned());
    format!("{machine}-{}-{chance:016x}", std::process::id())
}

/// A path with something behind its last part.
pub(crate) fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// An error of a write, with the size that was asked for.
pub(crate) fn write_failed(error: &io::Error, bytes: usize) -> io::Error {
    io::Error::new(error.kind(), format!("{error} (writing {bytes} bytes)"))
}

/// Makes the folders of a dataset and sees to it that they stay.
pub(crate) fn create_folders(root: &Path, folders: &[&str]) -> Result<(), Error> {
    fs_err::create_dir_all(root)?;
    for folder in folders {
        fs_err::create_dir_all(root.join(folder))?;
        sync_parent(&root.join(folder))?;
    }
    sync_parent(root)
}

/// Whether a file was not there.
pub(crate) fn is_not_found(error: &Error) -> bool {
    matches!(error, Error::Io(error) if error.kind() == io::ErrorKind::NotFound)
}

/// A writer that finishes clears the temporary files of all others: what then misses its file is done again.
fn again_if_cleared<T>(attempt: impl Fn() -> Result<T, Error>) -> Result<T, Error> {
    const ATTEMPTS: usize = 8;
    for _ in 1..ATTEMPTS {
        match attempt() {
            Err(error) if is_not_found(&error) => tracing::debug!(%error, "doing it again"),
            done => return done,
        }
    }
    attempt()
}

/// Creates `to` with this content; says `false` if it is there already, whatever it holds.
pub(crate) fn write_new(root: &Path, to: &Path, bytes: &[u8]) -> Result<bool, Error> {
    let created = again_if_cleared(|| Ok(TempFile::with(root, bytes)?.link(to)?))?;
    sync_parent(to)?;
    Ok(created)
}

/// Gives `to` this content; if it has it, only sees to it that it stays.
pub(crate) fn put(root: &Path, to: &Path, bytes: &[u8]) -> Result<(), Error> {
    again_if_cleared(|| match regular::read(to, Links::Refused) {
        Ok(found) if found == bytes => sync_parent(to),
        Err(error) if !is_not_found(&error) => Err(error),
        _ => TempFile::with(root, bytes)?.rename(to),
    })
}

/// Links a finished data file to its hashed name; what has that name already is kept if it is the same.
pub(crate) fn link_data(temp: &TempFile, to: &Path, bytes: u64, blake3_hex: &str) -> Result<(), Error> {
    if !temp.link(to)? && !holds(to, bytes, blake3_hex)? {
        tracing::warn!(path = %to.display(), "replacing a damaged file");
        temp.rename(to)?;
    }
    sync_parent(to)
}

/// Whether a regular file is there with this size and hash.
pub(crate) fn holds(path: &Path, bytes: u64, blake3_hex: &str) -> Result<bool, Error> {
    match fs_err::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error.into()),
        Ok(metadata) if !metadata.is_file() || metadata.len() != bytes => Ok(false),
        Ok(_) => Ok(DataFile::open(path, false)?.blake3()? == blake3_hex),
    }
}

/// Removes a file; it is fine if it is not there.
pub(crate) fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs_err::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Removes the files of `folder` for which `remove` says so by name, and syncs the folder.
pub(crate) fn remove_files(folder: &Path, remove: impl Fn(&str) -> bool) -> Result<(), Error> {
    for entry in fs_err::read_dir(folder)? {
        let entry = entry?;
        if entry.file_name().to_str().is_some_and(&remove) {
            tracing::debug!(path = %entry.path().display(), "removing a leftover");
            remove_if_there(&entry.path())?;
        }
    }
    Ok(fs_err::File::open(folder)?.sync_all()?)
}

/// Removes temporary files whose process is gone: of this machine only, for others cannot be asked.
pub(crate) fn remove_dead(root: &Path) -> Result<(), Error> {
    let machine = machine();
    remove_files(&root.join(PRIVATE).join("tmp"), |nonce| is_of_dead_process(nonce, machine.as_deref()))
}

/// Whether the process that a nonce names was one of this machine and is gone. What is not known is not dead.
fn is_of_dead_process(nonce: &str, machine: Option<&str>) -> bool {
    let mut parts = nonce.split('-');
    let (of, process) = (parts.next(), parts.next().and_then(|part| part.parse::<i32>().ok()));
    machine.is_some() && of == machine && process.is_some_and(is_gone)
}

/// Whether there is no process of this id. The kernel is asked, as `/proc` may hide the processes of others (`hidepid`): to one that
/// we may not signal it says so.
#[cfg(target_os = "linux")]
fn is_gone(process: i32) -> bool {
    use rustix::{io::Errno, process::Pid, process::test_kill_process};

    Pid::from_raw(process).is_some_and(|process| test_kill_process(process) == Err(Errno::SRCH))
}

#[cfg(not(target_os = "linux"))]
fn is_gone(_: i32) -> bool {
    false
}

/// Syncs the folder that a path lies in.
pub(crate) fn sync_parent(path: &Path) -> Result<(), Error> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    Ok(fs_err::File::open(parent)?.sync_all()?)
}

/// Names the boot and the process namespace in which process ids mean something; `None` where that cannot be told.
fn machine() -> Option<String> {
    let boot = std::fs::read("/proc/sys/kernel/random/boot_id").ok().filter(|boot| !boot.is_empty())?;
    let namespace = std::fs::read_link("/proc/self/ns/pid").ok()?;
    let mut hasher = blake3::Hasher::new();
    hasher.update(&boot);
    hasher.update(namespace.as_os_str().as_encoded_bytes());
    Some(hasher.finalize().to_hex()[..8].to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A process of another user is not signalled, and is alive: EPERM. What is not of this boot and namespace is not asked about.
    #[test]
    fn only_a_process_that_is_known_to_be_gone_is_dead() {
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let gone = child.id();
        child.wait().unwrap();
        let here = machine().expect("Linux has both");
        let is_dead = |machine: Option<&str>, of: &str, process: u32| {
            is_of_dead_process(&format!("{of}-{process}-0123456789abcdef"), machine)
        };
        assert!(is_dead(Some(&here), &here, gone));
        for alive in [std::process::id(), 1] {
            assert!(!is_dead(Some(&here), &here, alive), "{alive}");
        }
        assert!(!is_dead(Some("00000000"), &here, gone), "of another machine");
        assert!(!is_dead(None, UNKNOWN, gone), "nobody knows of which machine");
        assert!(!is_dead(Some(&here), UNKNOWN, gone), "nobody knows of which machine");
        for odd in [
            "",
            "-",
            "x-1",
            &format!("{here}-0-1"),
            &format!("{here}--5-1"),
            &format!("{here}-99999999999-1"),
        ] {
            assert!(!is_of_dead_process(odd, Some(&here)), "{odd}");
        }
    }
}
