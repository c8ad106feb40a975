//! Safetensors in and out, and files that appear whole or not at all.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use burn::tensor::{Device, Tensor, TensorData};
use memmap2::Mmap;
use safetensors::tensor::{Dtype, Metadata, SafeTensors, View};

use crate::{Error, Precision};

/// One mapped safetensors file whose header has been checked against its length.
#[derive(Debug)]
pub(crate) struct WeightsFile {
    path: PathBuf,
    map: Mmap,
    metadata: Metadata,
    /// Where the tensors' bytes begin.
    start: usize,
}

impl WeightsFile {
    pub(crate) fn open(path: &Path) -> Result<Self, Error> {
        let map = map_read_only(path)?;
        let (header, metadata) = SafeTensors::read_metadata(&map)
            .map_err(|source| Error::Safetensors { file: path.to_owned(), source })?;
        // The length of the header stands before it, in eight bytes.
        Ok(Self { path: path.to_owned(), map, metadata, start: header + 8 })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Names and shapes of the tensors.
    pub(crate) fn shapes(&self) -> BTreeMap<String, Vec<usize>> {
        self.metadata.tensors().into_iter().map(|(name, info)| (name, info.shape.clone())).collect()
    }

    /// A tensor of one or two dimensions in 32-bit floats; a vector becomes one row.
    ///
    /// # Errors
    /// The tensor is not of floats, or an element is NaN or infinite.
    ///
    /// # Panics
    /// The file has no such tensor: callers have compared [`shapes`](Self::shapes).
    pub(crate) fn tensor(
        &self,
        name: &str,
        precision: Precision,
        device: &Device,
    ) -> Result<Tensor<2>, Error> {
        let info = self.metadata.info(name).expect("callers have compared the names");
        let (begin, end) = info.data_offsets;
        let bytes = &self.map[self.start + begin..self.start + end];
        let values: Vec<f32> = match info.dtype {
            Dtype::F32 => bytes.as_chunks().0.iter().map(|&four| f32::from_le_bytes(four)).collect(),
            Dtype::BF16 => {
                bytes.as_chunks().0.iter().map(|&two| bf16_to_f32(u16::from_le_bytes(two))).collect()
            }
            Dtype::F16 => {
                bytes.as_chunks().0.iter().map(|&two| f16_to_f32(u16::from_le_bytes(two))).collect()
            }
            other => {
                let problem = format!("tensor `{name}`: expected F32, BF16 or F16, found {other}");
                return Err(Error::config(&self.path, problem));
            }
        };
        if let Some(index) = values.iter().position(|value| !value.is_finite()) {
            let (file, tensor, value) = (self.path.clone(), name.to_owned(), values[index]);
            return Err(Error::NonFinite { file, tensor, index, value });
        }
        let columns = info.shape.last().copied().unwrap_or(1);
        let shape = [values.len() / columns.max(1), columns];
        Ok(Tensor::from_data(TensorData::new(values, shape), (device, precision.dtype())))
    }
}

fn bf16_to_f32(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

fn f16_to_f32(bits: u16) -> f32 {
    let sign = u32::from(bits >> 15) << 31;
    let exponent = u32::from(bits >> 10) & 0x1f;
    let mantissa = u32::from(bits) & 0x3ff;
    let magnitude = match exponent {
        // Zero and subnormals: mantissa · 2^-24, exact in 32 bits.
        0 => (mantissa as f32 * f32::from_bits(0x3380_0000)).to_bits(),
        0x1f => 0x7f80_0000 | (mantissa << 13),
        _ => ((exponent + 112) << 23) | (mantissa << 13),
    };
    f32::from_bits(sign | magnitude)
}

#[expect(unsafe_code, reason = "a memory map can only be opened so")]
fn map_read_only(path: &Path) -> Result<Mmap, Error> {
    let file = fs_err::File::open(path)?;
    // SAFETY: the map is read-only and lives in this module; weight files are written beside their name and renamed,
    // never changed in place, so the mapped bytes stay as they are while the map exists.
    unsafe { Mmap::map(file.file()) }.map_err(|error| {
        std::io::Error::new(error.kind(), format!("failed to map `{}`: {error}", path.display())).into()
    })
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
        let values = self.tensor.to_data();
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
    name.push(format!(".tmp-{}", std::process::id()));
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
    fn half_precision_is_converted_exactly() {
        let halves = [
            (0x0000, 0.0),
            (0x8000, -0.0),
            (0x3c00, 1.0),
            (0xc000, -2.0),
            (0x7bff, 65504.0),
            (0x0400, 2f32.powi(-14)),
            (0x0001, 2f32.powi(-24)),
            (0x83ff, -1023.0 * 2f32.powi(-24)),
            (0x3555, 0.333_251_95),
        ];
        for (bits, expected) in halves {
            assert_eq!(f16_to_f32(bits).to_bits(), expected.to_bits(), "{bits:#06x}");
        }
        assert!(f16_to_f32(0x7c00).is_infinite() && f16_to_f32(0x7e00).is_nan());
        assert_eq!(bf16_to_f32(0xbfc0), -1.5);
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
