//! The bytes of a data file: mapped where it lies on a local file system, read piece by piece elsewhere.
//!
//! A map is the one place with unsafe code.

use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use sha2::{Digest, Sha256};

use super::regular::{self, Links};
use crate::values::{Error, HINT_DAMAGED};

/// Linux maps pages that are in its cache beside the one that is read: up to so many bytes.
const NEIGHBOURS: usize = 1 << 16;
/// Bytes that are hashed at a time.
const PIECE: usize = 1 << 20;

static NEVER_MAP: AtomicBool = AtomicBool::new(false);

/// From now on this process maps no data file, as if every [`ReadLimits`](crate::ReadLimits) said so: what a program's
/// own switch calls before it opens anything.
///
/// To read a map of a file that somebody cuts short ends the process with SIGBUS; to read the file is an error then.
pub fn never_map() {
    NEVER_MAP.store(true, Ordering::Relaxed);
}

/// A data file, open for reading. What is hashed, mapped and read is the same file, whatever gets its name meanwhile.
#[derive(Debug)]
pub(crate) struct DataFile {
    path: PathBuf,
    /// Its size when it was opened.
    bytes: usize,
    /// Open until [`DataFile::release`].
    handle: Option<fs_err::File>,
    /// Mapped read-only; the map keeps the file open.
    map: Option<Map>,
}

impl DataFile {
    /// Opens a file, and maps it if `memory_map` and its file system allow.
    pub(crate) fn open(path: &Path, memory_map: bool) -> Result<Self, Error> {
        let file = regular::open(path, Links::Refused)?;
        let bytes = usize::try_from(file.metadata()?.len())
            .map_err(|_| Error::bad("file", "a size below the address space", "a larger one"))?;
        let map = match bytes {
            0 => Some(Map::default()),
            _ if memory_map && !NEVER_MAP.load(Ordering::Relaxed) && is_local(&file) => {
                Some(Map::open(&file)?)
            }
            _ => None,
        };
        Ok(Self { path: path.to_owned(), bytes, handle: Some(file), map })
    }

    /// Closes the file, as a dataset may have more files than a process may hold open. A map stays; without one the file is
    /// opened again for each piece. Someone else may have changed it since the last piece: pieces are hashed each time.
    pub(crate) fn release(&mut self) {
        self.handle = None;
    }

    /// Size of the file when it was opened.
    pub(crate) fn len(&self) -> usize {
        self.bytes
    }

    /// Whether pieces stay what they were when they were looked at first.
    pub(crate) fn is_mapped(&self) -> bool {
        self.map.is_some()
    }

    /// Bytes of a range, which lies within the file.
    pub(crate) fn range(&self, range: Range<usize>) -> Result<Bytes, Error> {
        if let Some(map) = &self.map {
            return Ok(map.bytes.slice(range));
        }
        let mut bytes = vec![0; range.len()];
        match &self.handle {
            Some(file) => self.read(file, range.start, &mut bytes)?,
            None => self.read(&regular::open(&self.path, Links::Refused)?, range.start, &mut bytes)?,
        }
        Ok(bytes.into())
    }

    /// The pages of a range need not count as memory in use any more: they come back when they are read again. So what a
    /// process holds does not grow with the files that it has read.
    pub(crate) fn forget(&self, range: Range<usize>) {
        if let Some(map) = &self.map {
            map.forget(range);
        }
    }

    fn read(&self, file: &fs_err::File, start: usize, into: &mut [u8]) -> Result<(), Error> {
        let range = start..start + into.len();
        let start = u64::try_from(start).expect("a place in a file fits 64 bits");
        file.file().read_exact_at(into, start).map_err(|error| match error.kind() {
            std::io::ErrorKind::UnexpectedEof => {
                let expected = format!("at least {} bytes", range.end);
                Error::bad("file", expected, "fewer: it was cut while it was read").hint(HINT_DAMAGED)
            }
            kind => {
                let path = self.path.display();
                let message = format!("failed to read {range:?} of file `{path}`: {error}");
                std::io::Error::new(kind, message).into()
            }
        })
    }

    /// BLAKE3 of the whole file, hexadecimal.
    pub(crate) fn blake3(&self) -> Result<String, Error> {
        let mut blake3 = blake3::Hasher::new();
        self.each_piece(|piece| {
            blake3.update(piece);
        })?;
        Ok(blake3.finalize().to_hex().to_string())
    }

    /// BLAKE3 and SHA-256 of the whole file, hexadecimal.
    pub(crate) fn hashes(&self) -> Result<[String; 2], Error> {
        let (mut blake3, mut sha256) = (blake3::Hasher::new(), Sha256::new());
        self.each_piece(|piece| {
            blake3.update(piece);
            sha256.update(piece);
        })?;
        Ok([blake3.finalize().to_hex().to_string(), hexadecimal(&sha256.finalize())])
    }

    /// Reads the file from its start, also where it is mapped: pages that are only hashed need not count as memory in use.
    fn each_piece(&self, mut each: impl FnMut(&[u8])) -> Result<(), Error> {
        let mut buffer = vec![0; PIECE.min(self.bytes)];
        for start in (0..self.bytes).step_by(PIECE) {
            let piece = &mut buffer[..PIECE.min(self.bytes - start)];
            let file = self.handle.as_ref().expect("whole files are hashed before they are released");
            self.read(file, start, piece)?;
            each(piece);
        }
        Ok(())
    }
}

/// Bytes as lower-case hexadecimal digits.
pub(crate) fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A file in memory.
#[derive(Debug, Default)]
struct Map {
    bytes: Bytes,
    /// What the bytes are of; none for an empty file.
    whole: Option<Arc<memmap2::Mmap>>,
}

/// Lets [`Bytes`] and [`Map`] share one.
struct Mapped(Arc<memmap2::Mmap>);

impl AsRef<[u8]> for Mapped {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Map {
    #[expect(unsafe_code, reason = "a memory map cannot be opened without")]
    fn open(file: &fs_err::File) -> Result<Self, Error> {
        // SAFETY: a shard never changes in place. Writers give a file its name when it is complete and synced, and replace
        // or remove it by name only, which leaves the mapped inode as it is. Nothing here holds a reference to the bytes
        // as anything but `u8`, for which every value is valid; decoded values are copied out and checked.
        let map = unsafe { memmap2::Mmap::map(file.file()) }.map_err(|error| {
            let path = file.path().display();
            std::io::Error::new(error.kind(), format!("failed to map file `{path}`: {error}"))
        })?;
        let whole = Arc::new(map);
        Ok(Self { bytes: Bytes::from_owner(Mapped(whole.clone())), whole: Some(whole) })
    }

    #[expect(
        unsafe_code,
        reason = "to give pages back is the same as to read them again only for maps of files"
    )]
    fn forget(&self, range: Range<usize>) {
        let Some(map) = &self.whole else { return };
        let (start, end) = (range.start.saturating_sub(NEIGHBOURS), map.len().min(range.end + NEIGHBOURS));
        // SAFETY: the map is of a file and nobody writes through it, so a page that is read again has the file's bytes, as before.
        let given_back =
            unsafe { map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, start, end - start) };
        // Advice: without it memory is in use until the system wants it.
        drop(given_back);
    }
}

/// Whether a file lies on a file system of this machine alone. On all others (NFS, SMB, FUSE, Lustre, GPFS, CephFS, 9p, and
/// what is not known here) another machine can cut a mapped file short, and a page that does not arrive is a SIGBUS.
#[cfg(target_os = "linux")]
fn is_local(file: &fs_err::File) -> bool {
    rustix::fs::fstatfs(file).is_ok_and(|found| {
        u64::try_from(found.f_type).is_ok_and(|kind| LOCAL.iter().any(|(local, _)| *local == kind))
    })
}

#[cfg(not(target_os = "linux"))]
fn is_local(_file: &fs_err::File) -> bool {
    false
}

/// Local file systems as `statfs` numbers them: linux/magic.h, and for the rest their own sources.
#[cfg(target_os = "linux")]
const LOCAL: [(u64, &str); 17] = [
    (0xef53, "ext2, ext3, ext4"),
    (0x5846_5342, "xfs"),
    (0x9123_683e, "btrfs"),
    (0x2fc1_2fc1, "zfs"),
    (0x0102_1994, "tmpfs"),
    (0x8584_58f6, "ramfs"),
    (0x794c_7630, "overlay"),
    (0xf2f5_2010, "f2fs"),
    (0xca45_1a4e, "bcachefs"),
    (0x7371_7368, "squashfs"),
    (0xe0f5_e1e2, "erofs"),
    (0x9660, "iso9660"),
    (0x3153_464a, "jfs"),
    (0x5265_4973, "reiserfs"),
    (0x3434, "nilfs"),
    (0x2011_bab0, "exfat"),
    (0x7366_746e, "ntfs3"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_the_bytes_of_the_map() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let content: Vec<u8> = (0..3 * PIECE / 2).map(|index| u8::try_from(index % 251).unwrap()).collect();
        fs_err::write(&path, &content).unwrap();
        let [mapped, pieces] = [true, false].map(|memory_map| DataFile::open(&path, memory_map).unwrap());
        assert!(mapped.is_mapped(), "a temporary folder is local");
        assert!(!pieces.is_mapped());
        assert_eq!(mapped.range(5..PIECE + 7).unwrap(), content[5..PIECE + 7]);
        assert_eq!(pieces.range(5..PIECE + 7).unwrap(), content[5..PIECE + 7]);
        assert_eq!(mapped.hashes().unwrap(), pieces.hashes().unwrap());
        assert_eq!(mapped.hashes().unwrap()[0], blake3::hash(&content).to_hex().to_string());

        fs_err::write(&path, &content[..PIECE]).unwrap();
        let error = pieces.range(5..PIECE + 7).unwrap_err();
        let expected = format!("file: expected at least {} bytes, found fewer: it was cut", PIECE + 7);
        assert!(error.to_string().starts_with(&expected), "{error}");
        assert!(error.is_bad_data());
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn what_is_not_known_to_be_local_is_not_mapped() {
        // NFS, SMB, CIFS, SMB2, FUSE, Lustre, GPFS, CephFS, 9p, AFS, BeeGFS.
        let network = [
            0x6969,
            0x517b,
            0xff53_4d42,
            0xfe53_4d42,
            0x6573_5546,
            0x0bd0_0bd0,
            0x4750_4653,
            0x00c3_6400,
            0x0102_1997,
            0x5346_414f,
            0x1983_0326,
        ];
        assert!(LOCAL.iter().all(|(kind, _)| !network.contains(kind)));
        // A file system that is real and not in the table.
        assert!(!is_local(&fs_err::File::open("/proc/self/status").unwrap()));
    }
}
