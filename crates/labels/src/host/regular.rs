//! Opens files that others made: a pipe in a dataset is not waited for, and a link in it is not followed.

use std::fs::FileType;
use std::io::{self, Read};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;

use rustix::{fs::OFlags, io::Errno};

use crate::values::{Error, quoted};

/// What to do with a link in place of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Links {
    /// The path was given by the user.
    Followed,
    /// The name was found in a dataset, which has no links.
    Refused,
}

/// Opens a regular file for reading, at once whatever is there.
pub(crate) fn open(path: &Path, links: Links) -> Result<fs_err::File, Error> {
    let bad = |found: &str| Error::bad(quoted(path), "a regular file", found);
    let mut flags = OFlags::NONBLOCK;
    if links == Links::Refused {
        flags |= OFlags::NOFOLLOW;
    }
    let flags = i32::try_from(flags.bits()).expect("the flags of open are an int");
    // Not fs_err's: its error hides the system's number.
    let opened = std::fs::OpenOptions::new().read(true).custom_flags(flags).open(path);
    let file = opened.map_err(|error| match error.raw_os_error().map(Errno::from_raw_os_error) {
        Some(Errno::LOOP) => bad("a link"),
        Some(Errno::NXIO) => bad("a socket or a device"),
        _ => io::Error::new(error.kind(), format!("failed to open file {}: {error}", quoted(path))).into(),
    })?;
    let file = fs_err::File::from_parts(file, path);
    let kind = file.metadata()?.file_type();
    if kind.is_file() { Ok(file) } else { Err(bad(name_of(kind))) }
}

/// The content of a file that a user gave, or nothing where there is none.
///
/// # Errors
/// It is no regular file, or cannot be read.
pub fn read_if_there(path: &Path) -> Result<Option<Vec<u8>>, Error> {
    let mut bytes = Vec::new();
    match open(path, Links::Followed) {
        Ok(mut file) => file.read_to_end(&mut bytes)?,
        Err(error) if super::durable::is_not_found(&error) => return Ok(None),
        Err(error) => return Err(error),
    };
    Ok(Some(bytes))
}

/// What a file is that is none.
pub(crate) fn name_of(kind: FileType) -> &'static str {
    match () {
        () if kind.is_symlink() => "a link",
        () if kind.is_dir() => "a folder",
        () if kind.is_fifo() => "a pipe",
        () if kind.is_socket() => "a socket",
        () => "a device",
    }
}

/// A small file, as JSON is, that is larger is refused before it is parsed: a manifest of 100,000 shards has 45 MB.
pub(crate) const MAX_BYTES: u64 = 64 << 20;

/// Reads a whole file that is small by its nature.
pub(crate) fn read(path: &Path, links: Links) -> Result<Vec<u8>, Error> {
    let file = open(path, links)?;
    let size = file.metadata()?.len();
    let mut bytes = Vec::new();
    // It may grow meanwhile.
    if size <= MAX_BYTES {
        file.take(MAX_BYTES + 1).read_to_end(&mut bytes)?;
    }
    let size = size.max(u64::try_from(bytes.len()).expect("a length fits 64 bits"));
    if size > MAX_BYTES {
        return Err(Error::bad(quoted(path), format_args!("at most {MAX_BYTES} bytes"), size));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_file_is_named_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        fs_err::write(path("file"), "text").unwrap();
        std::os::unix::fs::symlink(path("file"), path("link")).unwrap();
        rustix::fs::mknodat(
            rustix::fs::CWD,
            path("pipe"),
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR,
            0,
        )
        .unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(path("socket")).unwrap();
        for links in [Links::Followed, Links::Refused] {
            open(&path("file"), links).unwrap();
            for (name, found) in [("pipe", "a pipe"), ("socket", "a socket or a device"), (".", "a folder")] {
                let error = open(&path(name), links).unwrap_err();
                assert!(error.is_bad_data() && error.to_string().ends_with(found), "{name}: {error}");
            }
        }
        open(&path("link"), Links::Followed).unwrap();
        let error = open(&path("link"), Links::Refused).unwrap_err();
        assert!(error.is_bad_data() && error.to_string().contains("found a link"), "{error}");
        assert!(crate::host::durable::is_not_found(&open(&path("none"), Links::Refused).unwrap_err()));
        assert_eq!(read_if_there(&path("none")).unwrap(), None);
        assert_eq!(read_if_there(&path("link")).unwrap().as_deref(), Some(&b"text"[..]));
        assert!(read_if_there(&path("pipe")).unwrap_err().is_bad_data());
    }
}
