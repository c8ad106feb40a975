//! Safetensors in and out, and files that appear whole or not at all.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use burn::tensor::{Bytes, DType, Device, Tensor, TensorData};
use memmap2::{Mmap, MmapOptions};
use safetensors::tensor::{Dtype, View};

use crate::convert::{self, Refused};
use crate::header::{Entry, Header};
use crate::{Error, Precision};

/// Numbers of two tensors that are compared at a time.
const BLOCK: usize = 1 << 20;

/// One open safetensors file whose header has been checked against its length; its tensors are not in memory.
#[derive(Debug)]
pub(crate) struct WeightsFile {
    path: PathBuf,
    file: fs_err::File,
    header: Header,
}

impl WeightsFile {
    pub(crate) fn open(path: &Path) -> Result<Self, Error> {
        let file = open_file(path)?;
        let header = Header::read(&file, path)?;
        Ok(Self { path: path.to_owned(), file, header })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn header(&self) -> &Header {
        &self.header
    }

    /// Names and shapes of the tensors.
    pub(crate) fn shapes(&self) -> BTreeMap<String, Vec<usize>> {
        self.header.tensors.iter().map(|(name, entry)| (name.clone(), entry.shape.clone())).collect()
    }

    /// A tensor of one or two dimensions; a vector becomes one row. It alone is mapped, while it is converted.
    ///
    /// # Errors
    /// The tensor is not of floats, or an element is not finite or too large for the precision.
    ///
    /// # Panics
    /// The file has no such tensor: callers have compared [`shapes`](Self::shapes).
    pub(crate) fn tensor(
        &self,
        name: &str,
        precision: Precision,
        device: &Device,
    ) -> Result<Tensor<2>, Error> {
        let entry = self.entry(name)?;
        let map = self.map(entry)?;
        let columns = entry.shape.last().copied().unwrap_or(1);
        let rows = entry.shape.iter().rev().skip(1).product();
        let shape = [rows, columns];
        let refused = |refused| self.refused(name, entry.dtype, refused);
        let data = match precision {
            Precision::F32 => {
                TensorData::new(convert::to_f32(entry.dtype, map.bytes()).map_err(refused)?, shape)
            }
            Precision::Bf16 => {
                let bits = convert::to_bf16(entry.dtype, map.bytes()).map_err(refused)?;
                TensorData::from_bytes(Bytes::from_elems(bits), shape, DType::BF16)
            }
        };
        Ok(Tensor::from_data(data, (device, precision.dtype())))
    }

    /// Whether a tensor has the shape and, in 32-bit floats, the numbers of another file's. Memory: a block of both.
    ///
    /// # Panics
    /// A file has no such tensor.
    pub(crate) fn has_equal(&self, name: &str, other: &Self, its_name: &str) -> bool {
        let entries = [(self, name), (other, its_name)].map(|(file, name)| {
            let entry = &file.header.tensors[name];
            let is_readable = convert::is_readable(entry.dtype);
            is_readable.then(|| file.map(entry).ok()).flatten().map(|map| (entry, map))
        });
        let [Some((one, map)), Some((another, its_map))] = entries else { return false };
        if one.shape != another.shape || one.dtype == another.dtype {
            // Zeros of both signs are told apart, which does no harm: both tensors are then kept.
            return one.shape == another.shape && map.bytes() == its_map.bytes();
        }
        let [width, its_width] = [one, another].map(|entry| entry.dtype.bitsize() / 8);
        let blocks = map.bytes().chunks(width * BLOCK).zip(its_map.bytes().chunks(its_width * BLOCK));
        blocks.into_iter().all(|(bytes, its_bytes)| {
            let numbers = convert::to_f32(one.dtype, bytes).ok();
            numbers.is_some() && numbers == convert::to_f32(another.dtype, its_bytes).ok()
        })
    }

    /// Where a tensor is and what it is of.
    ///
    /// # Errors
    /// It is not of floats.
    ///
    /// # Panics
    /// As [`tensor`](Self::tensor).
    pub(crate) fn entry(&self, name: &str) -> Result<&Entry, Error> {
        let entry = self.header.tensors.get(name).expect("callers have compared the names");
        if convert::is_readable(entry.dtype) {
            return Ok(entry);
        }
        let problem = format!("tensor `{name}`: {}", expected_floats(entry.dtype));
        Err(Error::config(&self.path, problem))
    }

    /// The error of an element that a conversion refused.
    pub(crate) fn refused(&self, name: &str, dtype: Dtype, Refused { index, value }: Refused) -> Error {
        let (file, tensor) = (self.path.clone(), name.to_owned());
        if value.is_finite() {
            return Error::TooLarge { file, tensor, index, value, dtype: dtype.to_string() };
        }
        Error::NonFinite { file, tensor, index, value }
    }

    /// A tensor's bytes.
    ///
    /// # Errors
    /// The file system refuses.
    #[expect(unsafe_code, reason = "a memory map can only be opened so")]
    pub(crate) fn map(&self, entry: &Entry) -> Result<Mapped, Error> {
        let place = self.header.place(entry);
        let Ok(length @ 1..) = usize::try_from(entry.bytes()) else { return Ok(Mapped(None)) };
        let mut options = MmapOptions::new();
        options.offset(place.start).len(length);
        // SAFETY: the map is read-only and lives no longer than its conversion; weight files are written beside their
        // name and renamed, never changed in place, so the mapped bytes stay as they are while the map exists.
        let map = unsafe { options.map(self.file.file()) }.map_err(|error| {
            let what = format!("failed to map {length} bytes of `{}`: {error}", self.path.display());
            std::io::Error::new(error.kind(), what)
        })?;
        Ok(Mapped(Some(map)))
    }
}

/// What is said of a tensor whose number format is none that weights have.
pub(crate) fn expected_floats(found: Dtype) -> String {
    format!("expected F32, BF16 or F16, found {found}")
}

/// The bytes of one tensor; absent where it has none, as nothing cannot be mapped.
pub(crate) struct Mapped(Option<Mmap>);

impl Mapped {
    pub(crate) fn bytes(&self) -> &[u8] {
        self.0.as_deref().unwrap_or_default()
    }
}

/// Opens a file of a folder that somebody gave: at once, as a pipe in its place would be waited for.
///
/// # Errors
/// It is no regular file, or cannot be opened.
pub(crate) fn open_file(path: &Path) -> Result<fs_err::File, Error> {
    let opened = std::fs::OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path);
    let file = opened.map_err(|error| {
        std::io::Error::new(error.kind(), format!("failed to open file `{}`: {error}", path.display()))
    })?;
    if !file.metadata()?.is_file() {
        return Err(Error::config(path, "expected a regular file, found a folder, a pipe or a device"));
    }
    Ok(fs_err::File::from_parts(file, path))
}

/// Reads a text file that is no longer than such files are.
///
/// # Errors
/// It is longer, no text, or cannot be read.
pub fn read_text(path: &Path, most_bytes: u64) -> Result<String, Error> {
    let file = open_file(path)?;
    let length = file.metadata()?.len();
    if length > most_bytes {
        return Err(Error::config(path, format!("expected at most {most_bytes} bytes, found {length}")));
    }
    let mut bytes = Vec::new();
    file.take(most_bytes).read_to_end(&mut bytes)?;
    String::from_utf8(bytes).map_err(|error| Error::config(path, format!("expected UTF-8, found {error}")))
}

/// A tensor on its way to a file; it leaves the device only when its bytes are written.
struct Outgoing {
    shape: Vec<usize>,
    tensor: Tensor<2>,
}

impl View for Outgoing {
    fn dtype(&self) -> Dtype {
        Dtype::F32
    }
    fn shape(&self) -> &[usize] {
        &self.shape
    }
    fn data(&self) -> Cow<'_, [u8]> {
        let values = self.tensor.to_data().convert::<f32>();
        let values = values.as_slice::<f32>().expect("parameters are 32-bit floats");
        Cow::Owned(values.iter().flat_map(|value| value.to_le_bytes()).collect())
    }
    fn data_len(&self) -> usize {
        4 * self.shape.iter().product::<usize>()
    }
}

/// Writes tensors with the shapes they have in files.
pub(crate) fn write_tensors(
    path: &Path,
    tensors: impl IntoIterator<Item = (String, Vec<usize>, Tensor<2>)>,
) -> Result<(), Error> {
    let tensors = tensors.into_iter().map(|(name, shape, tensor)| (name, Outgoing { shape, tensor }));
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    write_whole(path, |temporary| {
        safetensors::serialize_to_file(tensors, Some(metadata), temporary).map_err(|error| {
            std::io::Error::other(format!("failed to write `{}`: {error}", temporary.display())).into()
        })
    })
}

/// Writes pretty-printed JSON.
pub(crate) fn write_json(path: &Path, value: &serde_json::Value) -> Result<(), Error> {
    write_whole(path, |temporary| Ok(fs_err::write(temporary, format!("{value:#}\n"))?))
}

/// Lets `write` fill a sibling of `path`, which then takes its name once it is on the disk.
fn write_whole(path: &Path, write: impl FnOnce(&Path) -> Result<(), Error>) -> Result<(), Error> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs_err::create_dir_all(folder)?;
    let mut name = path.file_name().unwrap_or_default().to_owned();
    // One name, as a folder has one writer: what a killed one left is replaced.
    name.push(".tmp");
    let temporary = folder.join(name);
    let written = write(&temporary).and_then(|()| {
        fs_err::File::open(&temporary)?.sync_all()?;
        fs_err::rename(&temporary, path)?;
        Ok(fs_err::File::open(folder)?.sync_all()?)
    });
    if written.is_err() {
        // Nothing more can be done if this fails as well: the first error is the one to tell.
        let _ = fs_err::remove_file(&temporary);
    }
    written
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pipe_is_not_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.json");
        let made = std::process::Command::new("mkfifo").arg(&path).status().unwrap();
        assert!(made.success());
        for error in [read_text(&path, 100).unwrap_err(), WeightsFile::open(&path).unwrap_err()] {
            assert!(error.to_string().contains("expected a regular file"), "{error}");
        }
        let missing = read_text(&folder.path().join("none"), 100).unwrap_err();
        assert!(matches!(missing, Error::Io(error) if error.kind() == std::io::ErrorKind::NotFound));
    }

    #[test]
    fn a_failed_write_leaves_the_old_file_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.json");
        write_json(&path, &serde_json::json!({ "a": 1 })).unwrap();
        let failed = write_whole(&path, |temporary| {
            fs_err::write(temporary, "half")?;
            Err(Error::Lora("stop".into()))
        });
        assert!(failed.is_err());
        assert_eq!(fs_err::read_to_string(&path).unwrap(), "{\n  \"a\": 1\n}\n");
        assert_eq!(fs_err::read_dir(folder.path()).unwrap().count(), 1);
    }
}
