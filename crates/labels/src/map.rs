//! Memory maps: the one place with unsafe code.

use std::path::Path;

use bytes::Bytes;

use crate::Error;

/// Maps a file read-only; the bytes keep it open and mapped.
#[expect(unsafe_code, reason = "a memory map cannot be opened without")]
pub(crate) fn map(path: &Path) -> Result<Bytes, Error> {
    let file = fs_err::File::open(path)?;
    if file.metadata()?.len() == 0 {
        return Ok(Bytes::new());
    }
    // SAFETY: a shard never changes in place. Writers give a file its name when it is complete and synced, and replace
    // or remove it by name only, which leaves the mapped inode as it is. Nothing here holds a reference to the bytes
    // as anything but `u8`, for which every value is valid; decoded values are copied out and checked.
    let map = unsafe { memmap2::Mmap::map(file.file()) }.map_err(|error| {
        std::io::Error::new(error.kind(), format!("failed to map file `{}`: {error}", path.display()))
    })?;
    Ok(Bytes::from_owner(map))
}
